"""What the tests of kernels share: targets, joint states, stationary laws without sampling."""

import inspect
from typing import Any

import torch
from support import COV, MEAN

from gradlogp import Gaussian, as_target
from gradlogp.core import Injected, sum_event
from gradlogp.langevin import kernels

KERNELS = sorted(
    {v for v in vars(kernels).values() if inspect.isclass(v) and hasattr(v, "step")},
    key=lambda c: c.__name__,
)


def softened(x):
    return (2 + x.square()) / (1 + x.square())


ARGUMENTS: dict[str, dict[str, Any]] = {
    "AdjustedMCLMC": {"n_steps": 3},
    "ExponentialEuler": {"covariance": 0.8},
    "HMC": {"n_leapfrog": 3},
    "MCLMC": {"decoherence_length": 1.0},
    "PSGLD": {"batch_size": 4, "correction": "exact", "decay": 0.999, "regularizer": 0.1},
    "ParallelTempering": {"temperatures": (1.0, 2.0)},
    "PositionDependentULA": {"G": softened, "divergence": "autograd"},
    "PreconditionedULA": {"preconditioner": 0.8},
    "SGHMC": {"batch_size": 4},
    "SGLD": {"batch_size": 4},
    "Splitting": {"scheme": "ABOBA"},
}
"""What a kernel needs besides its step size."""


def make(kernel, step_size, **changes):
    return kernel(step_size, **{**ARGUMENTS.get(kernel.__name__, {}), **changes})


def step(kernel, target, x, *noise):
    return kernel.step(kernel.init(x, target), target, generator=Injected(*noise))


I2 = torch.eye(2, dtype=torch.float64)
PRECISION = torch.linalg.inv(COV)
GAUSSIAN = Gaussian(MEAN, COV)
SKEWED = as_target(score=lambda x: 1 - x.exp(), log_prob=lambda x: sum_event(x - x.exp()))
"""log p = x − e^x: the law of log E with E ~ Exp(1), skewed."""
QUARTIC = as_target(score=lambda x: -(x**3), log_prob=lambda x: -sum_event(x**4) / 4)


def cliff(value):
    """N(0, I) whose log-density has `value` where the first coordinate is above 1."""
    return as_target(
        score=lambda x: -x,
        log_prob=lambda x: torch.where(x[:, 0] > 1, value, -0.5 * sum_event(x**2)),
    )


DENSE = torch.tensor([[1.3, -0.4], [-0.4, 0.6]], dtype=torch.float64)
"""A preconditioner that commutes with nothing here."""


def grid(log_prob, low, high, n):
    """Nodes and weights of a density on the line: the trapezoid rule, which converges fast."""
    nodes = torch.linspace(low, high, n)
    return nodes, log_prob(nodes).softmax(0)


def product(*rules):
    """The product of rules: each coordinate `(n, 1)`, and the weights `(n,)`."""
    nodes, weights = zip(*rules, strict=True)
    mesh = torch.meshgrid(*nodes, indexing="ij")
    weight = torch.stack(torch.meshgrid(*weights, indexing="ij")).prod(0)
    return [v.reshape(-1, 1) for v in mesh], weight.reshape(-1)
