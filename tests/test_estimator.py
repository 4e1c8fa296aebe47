"""The estimator: scikit-learn's contract, and what it promises beyond."""

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

import gradlogp as glp

pytestmark = pytest.mark.usefixtures("as_user")  # scikit-learn passes values of every type


@parametrize_with_checks([glp.ScoreEstimator(max_iter=5, random_state=0)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)
