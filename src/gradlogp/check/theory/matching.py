r"""Claims on score matching: what each objective estimates, and where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...calculus.reverse import Probe, hutchinson_trace, probe
from ...core import Estimate, mean_and_error
from ...distributions.analytic import Gaussian, GaussianMixture
from ...learn import objectives
from ...learn.objectives.closed_form import exponential_family
from .claim import Numbers, claim, collect, exact, false, statistical

HYVARINEN = "Hyvärinen 2005, jmlr.org/papers/v6/hyvarinen05a"
VINCENT = "Vincent 2011, doi 10.1162/NECO_a_00142"
SLICED = "Song, Garg, Shi & Ermon 2019, arXiv 1905.07088"
DERIVED = "derived, docs/theory.md"

W = torch.tensor([[-0.9, 0.4], [-0.2, -1.7]], dtype=torch.float64)
C = torch.tensor([0.3, -0.5], dtype=torch.float64)
LAW = Gaussian(
    torch.tensor([0.7, -1.2], dtype=torch.float64),
    torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64),
)
MIXTURE = GaussianMixture([0.3, 0.7], torch.tensor([[-2.0], [1.0]]).double(), [0.3, 0.5])


def affine(x: Tensor) -> Tensor:
    """A score that is not the right one: W x + c."""
    return x @ W.mT + C


def bent(x: Tensor) -> Tensor:
    """A score that is neither right nor affine."""
    return (x @ W.mT + C).tanh() - 0.3 * x


def implicit_of_affine(S: Tensor) -> Tensor:
    """Return tr W + ½ (tr W S Wᵀ + ‖W μ + c‖²)."""
    v = W @ LAW.mean + C
    return torch.trace(W) + 0.5 * (torch.trace(W @ S @ W.mT) + v @ v)


@claim(statistical, "ESM − ISM = ½ E‖s‖² for any score model", HYVARINEN, 0.1)
def implicit_is_explicit(n: int, g: torch.Generator) -> Numbers:
    x = LAW.sample(n, generator=g)
    difference = objectives.explicit(bent, x, LAW.score) - objectives.implicit(bent, x)
    return torch.trace(torch.linalg.inv(LAW.cov)) / 2, mean_and_error(difference)


@claim(
    statistical, "ISM of W x + c on N(μ, S) is tr W + ½ (tr W S Wᵀ + ‖Wμ + c‖²)", HYVARINEN, 0.05
)
def implicit_value(n: int, g: torch.Generator) -> Numbers:
    loss = objectives.implicit(affine, LAW.sample(n, generator=g))
    return implicit_of_affine(LAW.cov), mean_and_error(loss)


def _probes(law: Probe, n: int, g: torch.Generator) -> Tensor:
    return probe(law, torch.empty(n, 2, dtype=torch.float64), g)


def _sliced_minus_implicit(
    loss: Callable[..., Tensor], law: Probe, n: int, g: torch.Generator
) -> Estimate:
    x = LAW.sample(n, generator=g)
    return mean_and_error(loss(affine, x, 1, law, generator=g) - objectives.implicit(affine, x))


def _trace_variance(law: Probe, n: int, g: torch.Generator) -> Numbers:
    A = (W + W.mT) / 2
    norm2, diagonal2, trace = A.square().sum(), A.diagonal().square().sum(), torch.trace(A)
    expected = {
        "gaussian": 2 * norm2,
        "rademacher": 2 * (norm2 - diagonal2),
        "sphere": norm2 - trace**2 / 2,  # 2d/(d + 2) (‖A‖² − tr² / d) for d = 2
    }[law]
    v = _probes(law, n, g)
    _, forms = hutchinson_trace(affine, torch.zeros_like(v), v.unsqueeze(0))
    return expected, mean_and_error((forms[0] - trace).square())


@claim(statistical, "SSM − ISM has mean 0 with gaussian probes", SLICED, 0.1)
def sliced_gaussian(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _sliced_minus_implicit(objectives.sliced, "gaussian", n, g)


@claim(statistical, "SSM − ISM has mean 0 with rademacher probes", SLICED, 0.1)
def sliced_rademacher(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _sliced_minus_implicit(objectives.sliced, "rademacher", n, g)


@claim(statistical, "SSM − ISM has mean 0 with sphere probes", SLICED, 0.1)
def sliced_sphere(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _sliced_minus_implicit(objectives.sliced, "sphere", n, g)


@claim(statistical, "SSM-VR − ISM has mean 0 with rademacher probes", SLICED, 0.1)
def sliced_vr_rademacher(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _sliced_minus_implicit(objectives.sliced_vr, "rademacher", n, g)


@claim(statistical, "variance of vᵀAv with gaussian probes", "Hutchinson 1990", 0.2)
def variance_gaussian(n: int, g: torch.Generator) -> Numbers:
    return _trace_variance("gaussian", n, g)


@claim(statistical, "variance of vᵀAv with rademacher probes", "Hutchinson 1990", 0.2)
def variance_rademacher(n: int, g: torch.Generator) -> Numbers:
    return _trace_variance("rademacher", n, g)


@claim(statistical, "variance of vᵀAv with sphere probes", "Hutchinson 1990", 0.2)
def variance_sphere(n: int, g: torch.Generator) -> Numbers:
    return _trace_variance("sphere", n, g)


@claim(
    false, "“SSM-VR has the score as its minimiser with unit-sphere probes”: it is the score over d",
    SLICED,
)  # fmt: skip
def unit_sphere(n: int, g: torch.Generator) -> Numbers:
    """With E[v vᵀ] = I/d, argmin over a of −a E|v|² … is the score over d: exact in the mean."""
    d = 8
    x = torch.randn(n, d, dtype=torch.float64, generator=g)
    v = probe("sphere", x, g) / math.sqrt(d)
    # s = −a x: a vᵀ(−I)v + ½ a² ‖x‖², minimal at a = −E[vᵀ(−I)v]/E‖x‖²
    _, forms = hutchinson_trace(lambda y: -y, x, v.unsqueeze(0))
    minimiser = -forms[0] / x.square().sum(1).mean()
    return 1.0, float(minimiser.mean()), 1 / d


@claim(
    false, "“SSM-VR never varies more than SSM”: on N(0, 1) by ½, with Gaussian probes", DERIVED
)
def less_variance(n: int, g: torch.Generator) -> Numbers:
    """On N(0, 1) at s = −x, Gaussian probes: −v² + ½v²x² varies by 2, −v² + ½x² by 5/2."""
    x = torch.randn(4 * n, 1, dtype=torch.float64, generator=g)
    vr, plain = (
        f(lambda y: -y, x, 1, "gaussian", generator=g)
        for f in (objectives.sliced_vr, objectives.sliced)
    )
    difference = (vr - vr.mean()).square() - (plain - plain.mean()).square()
    return 0.0, mean_and_error(difference), 0.5


@claim(
    exact, "order in h of the bias of finite-difference SSM",
    "Pang et al. 2020, arXiv 2007.03317", 0.02,
)  # fmt: skip
def finite_differences(n: int, g: torch.Generator) -> Numbers:
    x = torch.randn(2000, 3, dtype=torch.float64, generator=g)
    seed = int(torch.randint(2**31, (), generator=g))
    cubic = lambda y: -(y**3)
    same = lambda: torch.Generator().manual_seed(seed)
    truth = objectives.sliced_vr(cubic, x, generator=same()).mean()
    bias = [
        float(objectives.finite_difference(cubic, x, step=h, generator=same()).mean() - truth)
        for h in (0.1, 0.05)
    ]
    return 2.0, math.log2(bias[0] / bias[1])


def _rate(weight: bool, n: int, g: torch.Generator) -> Estimate:
    """The rate of an exponential law of rate 1, fitted by score matching on the half line."""
    x = torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g)
    fit = exponential_family(lambda y: -y, x, weight=objectives.half_line if weight else None)
    return Estimate(float(fit.theta[0]), float(fit.standard_error[0]))


@claim(
    false, "“ISM is consistent on any support”: on Exp(1) it fits the rate 0",
    "Hyvärinen 2007, doi 10.1016/j.csda.2006.09.003",
)  # fmt: skip
def boundary(n: int, g: torch.Generator) -> Numbers:
    return 1.0, _rate(False, n, g).value, 0.0


@claim(
    statistical, "with the weight x² the rate of Exp(1) is fitted right",
    "Hyvärinen 2007, doi 10.1016/j.csda.2006.09.003", 0.02,
)  # fmt: skip
def boundary_weight(n: int, g: torch.Generator) -> Numbers:
    return 1.0, _rate(True, n, g)


@claim(
    false, "“ISM holds for networks with jumps”: for −sign(x) on N(0, 1) autograd misses −2 δ(x)",
    DERIVED,
)  # fmt: skip
def jumps(n: int, g: torch.Generator) -> Numbers:
    x = torch.randn(n, 1, dtype=torch.float64, generator=g)
    loss = objectives.implicit(lambda y: -torch.sign(y) + 0 * y, x)
    return 0.5 - math.sqrt(2 / math.pi), mean_and_error(loss), 0.5


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
