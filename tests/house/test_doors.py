"""Every public name meets hostile arguments: our refusal that names the argument, or a finite result.

The names are found, not listed. Each is called with valid arguments, of which one at a time is
replaced.
"""

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import linecache
import math
import numbers
import pkgutil
import re
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import gradlogp as glp

SOURCE = str(Path(glp.__file__).parent)

# ---------------------------------------------------------------------------- the names

APART = ("gradlogp.interfaces", "gradlogp.check.theory", "gradlogp.show", "gradlogp.langevin.fused")
"""Rooms of their own doors: the command line (its tests misuse it), claims without arguments, figures
that draw what they are given, and an engine that compiles."""

LOOP = re.compile(
    "score|log_prob.*|log_det|log_snr|step|init|refresh|denoise|denoise_given|forward|__call__|law|"
    "noised|posterior_mean|posterior_cov|hessian|responsibilities|f|g2|rates|encode|decode|pull_back|"
    "apply|adjoint|product|solve|draw|gram|residual|linearised|pointwise|divergence|minibatch_score|"
    "log_likelihood|log_prior|sqrt|inv_sqrt|inv_quadratic|momentum|take|rows|predict"
)
"""Methods that run inside a loop: they look at shapes, and not at values."""


def modules():
    for found in pkgutil.walk_packages(glp.__path__, "gradlogp."):
        if found.ispkg and not found.name.startswith(APART):
            yield importlib.import_module(found.name)
    yield from (v for n in glp.__all__ if isinstance(v := getattr(glp, n), types.ModuleType))


def public_names():
    """Every public function and class, `{path: object}`, under the name of where it is written."""
    found = {}
    for module in (*modules(), glp):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in names:
            value = getattr(module, name)
            home = str(getattr(value, "__module__", ""))
            if callable(value) and home.startswith("gradlogp") and not home.startswith(APART):
                found[f"{home.removeprefix('gradlogp.')}.{value.__name__}"] = value
    return found


def is_record(value):
    """Whether this holds what was computed, or is a protocol, and so is no door."""
    return inspect.isclass(value) and (
        issubclass(value, tuple | Exception)
        or getattr(value, "_is_protocol", False)
        or inspect.isabstract(value)
    )


# ---------------------------------------------------------------------------- valid arguments


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


N = 12
X = torch.randn(N, 2, generator=seeded()) * 0.7 + 0.3
LAW = glp.Gaussian([0.3, -0.2], 0.6)
VP = glp.schedules.VP()
SCORE = glp.ExactScore(LAW, VP)
EYE = torch.eye(2)


def model():
    return glp.ScoreModel(glp.MLP(2, width=4, depth=1, generator=seeded()), VP, event_shape=(2,))


def observation():
    return glp.inverse.observe(X, glp.inverse.Matrix(EYE), 0.3, generator=seeded())


class Minibatched(glp.Gaussian):
    """What kernels of minibatches ask for besides."""

    n_data = 5

    def minibatch_score(self, x, index):
        return self.score(x) + 0 * index.sum()


# by annotation: the first pattern that is found
BY_TYPE = {
    r"ScoreFn \| None|Tensor \| None|\| None": lambda: None,
    r"Float\[Tensor, ' batch'\]": lambda: torch.linspace(0.2, 0.9, N),
    r"Float\[Tensor, 'n_probes batch \*event'\]": lambda: torch.ones(1, N, 2),
    r"Float\[Tensor, 'batch D m'\]": lambda: torch.ones(N, 2, 1) / 2**0.5,
    r"Float\[Tensor, '1 \*event'\]": lambda: X[:1],
    r"Float\[Tensor, 'd d'\]": lambda: EYE,
    r"Float\[Tensor": lambda: X,
    r"ScoreFn": lambda: lambda x: 0.3 - x,
    r"NoisyScore": lambda: SCORE,
    r"ScoreModel": model,
    r"Density": lambda: Minibatched([0.3, -0.2], 0.6),
    r"Analytic|Gaussian|Law": lambda: LAW,
    r"Kernel": lambda: glp.langevin.ULA(0.1),
    r"Transition": lambda: glp.diffusion.DDIM(),
    r"Schedule": lambda: VP,
    r"Observation": observation,
    r"LinearOperator": lambda: glp.inverse.Matrix(EYE),
    r"Preconditioner": lambda: glp.langevin.Preconditioner(1.0),
    r"Chain": lambda: glp.run(glp.langevin.ULA(0.1), LAW, X, 20, generator=seeded()),
    r"Generator": seeded,
    r"StepSize|float": lambda: 0.5,
    r"int": lambda: 3,
    r"bool": lambda: False,
}
# by name, or by function and name, where the type does not say enough
BY_NAME = {
    "t": lambda: torch.linspace(0.2, 0.9, N),
    "x": lambda: X, "like": lambda: X, "z": lambda: X, "v": lambda: X, "x_t": lambda: X,
    "x0": lambda: X, "eps": lambda: X, "value": lambda: X, "out": lambda: X, "name": lambda: "x",
    "z_t": lambda: X, "kind": lambda: "epsilon", "network": lambda: lambda z, t: -z,
    "step_size": lambda: 0.1, "n_steps": lambda: 4, "f": lambda: lambda x: x.square().sum(1),
    "index": lambda: torch.arange(2), "batch_size": lambda: 2, "n_draws": lambda: 10,
    "event": lambda: 2, "event_shape": lambda: torch.Size([2]), "alpha": lambda: 0.8,
    "sigma": lambda: 0.6, "covariance": lambda: EYE, "cov": lambda: EYE, "basis": lambda: EYE[:, :1],
    "A": lambda: EYE, "beta": lambda: -0.5, "log_prob": lambda: lambda x: -x.square().sum(1),
    "observation": observation, "n": lambda: 4, "mask": lambda: torch.tensor([True, False]),
    "noise_input": lambda: "time", "condition": lambda: 0, "denoiser": lambda: lambda z, sigma: z / 2,
    "target_score": lambda: lambda x: -x, "weight": lambda: lambda x: x, "noise": lambda: 0.3,
    "denoise": lambda: lambda x: x / 2, "generator": seeded, "matching": lambda: glp.objectives.implicit,
    "correction": lambda: "exact", "mean": lambda: [0.0, 0.5], "means": lambda: [[0.0, 0.0], [1.0, 1.0]],
    "weights": lambda: [0.5, 0.5], "laws": lambda: [LAW, LAW], "distribution": lambda: None,
    "betas": lambda: [0.1, 0.2], "sigmas": lambda: [1.0, 0.5, 0.1], "levels": lambda: None,
}  # fmt: skip
