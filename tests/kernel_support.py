"""What the tests of kernels share: targets, joint states, stationary laws without sampling."""

import inspect
import math

import numpy as np
import torch
from support import COV, MEAN

from gradlogp import Gaussian, as_target
from gradlogp.core import Injected, sum_event
from gradlogp.langevin import kernels


def found(module):
    """The classes that a module exports, but for named tuples."""
    classes = [v for v in vars(module).values() if inspect.isclass(v)]
    return sorted({c for c in classes if not issubclass(c, tuple)}, key=lambda c: c.__name__)


KERNELS = [c for c in found(kernels) if hasattr(c, "step")]


def softened(x):
    return 1 + 1 / (1 + x**2)


ARGUMENTS = {
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


I2 = torch.eye(2, dtype=torch.float64)
PRECISION = torch.linalg.inv(COV)
GAUSSIAN = Gaussian(MEAN, COV)
SKEWED = as_target(score=lambda x: 1 - x.exp(), log_prob=lambda x: sum_event(x - x.exp()))
"""log p = x − e^x: the law of log E with E ~ Exp(1), skewed."""
QUARTIC = as_target(score=lambda x: -(x**3), log_prob=lambda x: -sum_event(x**4) / 4)


class HalvedQuartic:
    """The quartic from two observations, whose scores differ by a constant."""

    n_data = 2

    def log_prob(self, x):
        return QUARTIC.log_prob(x)

    def score(self, x):
        return QUARTIC.score(x)

    def minibatch_score(self, x, index):
        return self.score(x) + 2.0 * index - 1


DENSE = torch.tensor([[1.3, -0.4], [-0.4, 0.6]], dtype=torch.float64)
"""A preconditioner that commutes with nothing here."""


def step_of(kernel, target):
    return lambda x, g: kernel.step(kernel.init(x, target), target, generator=g)[0].x


MEMORY = ("momentum", "z")
"""What a state may carry from step to step beside its position."""


def memory_of(state):
    """The name of what a state carries beside its position, or None."""
    return next((field for field in MEMORY if field in state._fields), None)


def hermite(n):
    """Nodes and weights of N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())


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


def orthonormal(rule, degree):
    """A function x -> the polynomials up to a degree, orthonormal under a rule, `(n, degree+1)`."""
    nodes, weights = rule
    a, b, before, now = [], [0.0], torch.zeros_like(nodes), torch.ones_like(nodes)
    for _ in range(degree):
        a.append((weights * nodes * now**2).sum())
        then = (nodes - a[-1]) * now - b[-1] * before
        b.append((weights * then**2).sum().sqrt())
        before, now = now, then / b[-1]

    def basis(x):
        values = [torch.zeros_like(x), torch.ones_like(x)]
        for k in range(degree):
            values.append(((x - a[k]) * values[-1] - b[k] * values[-2]) / b[k + 1])
        return torch.stack(values[1:], -1)

    return basis


def quartic_bias(kernel):
    """The error of E[x²] under the stationary law of a kernel on p ~ exp(−x⁴/4).

    The law is g p (times N(0, 1) for a momentum or a last noise), g a polynomial such that every
    polynomial of the same degrees keeps its mean in a step; expectations are sums over a grid, and
    over both batches of one observation.
    """
    batched, target = hasattr(kernel, "batch_size"), HalvedQuartic()
    field = memory_of(kernel.init(torch.zeros(1, 1), target))
    rules = [grid(lambda x: -(x**4) / 4, -5, 5, 121)] + [hermite(16)] * (field is not None)
    degrees = (8, 4) if field == "momentum" else (10, 6)
    noise = [(torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]))] * batched
    noise += [hermite(8)] * (kernel.facts.draws - batched)
    columns, weight = product(*rules, *noise)
    x, rest = columns[0], columns[1:]
    state = kernel.init(x, target)
    if field is not None:
        state = state._replace(**{field: rest.pop(0)})
    new, info = kernel.step(state, target, generator=Injected(*rest))
    assert not info.diverging.any()
    bases = [orthonormal(rule, n) for rule, n in zip(rules, degrees, strict=False)]

    def basis(state):
        coordinates = [state.x] if field is None else [state.x, getattr(state, field)]
        parts = [f(v[:, 0]) for f, v in zip(bases, coordinates, strict=True)]
        return parts[0] if field is None else torch.einsum("ni,nj->nij", *parts).flatten(1)

    now, then = basis(state), basis(new)
    change = ((then - now) * weight[:, None]).mT @ now  # <K φ_i − φ_i, φ_j>
    g = torch.linalg.lstsq(change[1:, 1:], -change[1:, :1]).solution[:, 0]
    moment = (now * (weight * x[:, 0] ** 2)[:, None]).sum(0)
    exact = 2 * math.gamma(0.75) / math.gamma(0.25)
    torch.testing.assert_close(moment[0], torch.tensor(exact), rtol=1e-10, atol=1e-10)
    return float(moment[1:] @ g)
