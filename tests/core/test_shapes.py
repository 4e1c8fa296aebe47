"""The shapes in signatures are checked when tests run: here, that this is really so."""

import re
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import gradlogp as glp

SOURCES = sorted((Path(__file__).parents[2] / "src" / "gradlogp").rglob("*.py"))


def test_a_wrong_shape_is_caught_by_the_signature():
    model = glp.ScoreModel(glp.MLP(2), glp.schedules.VE())
    with pytest.raises(TypeCheckError):
        model.forward(torch.zeros(3, 2).long(), torch.tensor(0.5))
    with pytest.raises(TypeCheckError):
        glp.Gaussian([0.0, 0.0]).log_prob(torch.zeros(2))  # (D,) for (B, D)
    with pytest.raises(TypeCheckError):
        glp.objectives.multilevel(model, torch.zeros(3, 2), torch.zeros(4))


def test_shape_strings_are_strings():
    """A formatter that unquotes them turns them into names that mean nothing."""
    for path in SOURCES:
        assert not re.findall(r"(?:Float|Int|Bool)\[Tensor, [^\"\s]", path.read_text()), path
