r"""Claims on score matching: what each objective estimates, and where it does not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...calculus.reverse import Probe, hutchinson_trace, probe
from ...core import Estimate, mean_and_error
from ...learn import objectives
from ...learn.objectives.closed_form import exponential_family
from .claim import DERIVED, HYVARINEN, LAW, Numbers, exact, false, order, statistical, table

SLICED = "Song, Garg, Shi & Ermon 2019, arXiv 1905.07088"
HALF_LINE = "Hyvärinen 2007, doi 10.1016/j.csda.2006.09.003"

PROBES: tuple[Probe, ...] = ("gaussian", "rademacher", "sphere")
W = torch.tensor([[-0.9, 0.4], [-0.2, -1.7]], dtype=torch.float64)
C = torch.tensor([0.3, -0.5], dtype=torch.float64)


def affine(x: Tensor) -> Tensor:
    """A score that is not the right one: W x + c."""
    return x @ W.mT + C


def bent(x: Tensor) -> Tensor:
    """A score that is neither right nor affine."""
    return affine(x).tanh() - 0.3 * x


def implicit_of_affine(S: Tensor) -> Tensor:
    """Return tr W + ½ (tr W S Wᵀ + ‖W μ + c‖²)."""
    v = W @ LAW.mean + C
    return torch.trace(W) + 0.5 * (torch.trace(W @ S @ W.mT) + v @ v)


def _implicit_is_explicit(n: int, g: torch.Generator) -> Numbers:
    x = LAW.sample(n, generator=g)
    difference = objectives.explicit(bent, x, LAW.score) - objectives.implicit(bent, x)
    return torch.trace(torch.linalg.inv(LAW.cov)) / 2, mean_and_error(difference)


def _implicit_value(n: int, g: torch.Generator) -> Numbers:
    loss = objectives.implicit(affine, LAW.sample(n, generator=g))
    return implicit_of_affine(LAW.cov), mean_and_error(loss)


def _sliced_minus_implicit(
    loss: Callable[..., Tensor], law: Probe, n: int, g: torch.Generator
) -> Numbers:
    x = LAW.sample(n, generator=g)
    difference = loss(affine, x, 1, law, generator=g) - objectives.implicit(affine, x)
    return 0.0, mean_and_error(difference)


def _trace_variance(law: Probe, n: int, g: torch.Generator) -> Numbers:
    A = (W + W.mT) / 2
    norm2, diagonal2, trace = A.square().sum(), A.diagonal().square().sum(), torch.trace(A)
    expected = {
        "gaussian": 2 * norm2,
        "rademacher": 2 * (norm2 - diagonal2),
        "sphere": norm2 - trace**2 / 2,  # 2d/(d + 2) (‖A‖² − tr² / d) for d = 2
    }[law]
    v = probe(law, torch.empty(n, 2, dtype=torch.float64), g)
    _, forms = hutchinson_trace(affine, torch.zeros_like(v), v.unsqueeze(0))
    return expected, mean_and_error((forms[0] - trace).square())


def _unit_sphere(n: int, g: torch.Generator) -> Numbers:
    """With E[v vᵀ] = I/d, argmin over a of −a E|v|² … is the score over d: exact in the mean."""
    d = 8
    x = torch.randn(n, d, dtype=torch.float64, generator=g)
    v = probe("sphere", x, g) / math.sqrt(d)
    # s = −a x: a vᵀ(−I)v + ½ a² ‖x‖², minimal at a = −E[vᵀ(−I)v]/E‖x‖²
    _, forms = hutchinson_trace(lambda y: -y, x, v.unsqueeze(0))
    return 1.0, -forms[0].mean() / x.square().sum(1).mean(), 1 / d


def _less_variance(n: int, g: torch.Generator) -> Numbers:
    """On N(0, 1) at s = −x, Gaussian probes: −v² + ½v²x² varies by 2, −v² + ½x² by 5/2."""
    x = torch.randn(4 * n, 1, dtype=torch.float64, generator=g)
    vr, plain = (
        f(lambda y: -y, x, 1, "gaussian", generator=g)
        for f in (objectives.sliced_vr, objectives.sliced)
    )
    difference = (vr - vr.mean()).square() - (plain - plain.mean()).square()
    return 0.0, mean_and_error(difference), 0.5


def _finite_differences(n: int, g: torch.Generator) -> Numbers:
    x = torch.randn(2000, 3, dtype=torch.float64, generator=g)
    seed = int(torch.randint(2**31, (), generator=g))
    cubic = lambda y: -(y**3)
    same = lambda: torch.Generator().manual_seed(seed)
    truth = objectives.sliced_vr(cubic, x, generator=same()).mean()
    coarse, fine = (
        objectives.finite_difference(cubic, x, step=h, generator=same()).mean() - truth
        for h in (0.1, 0.05)
    )
    return 2.0, order(coarse, fine)


def _rate(weight: Callable[[Tensor], Tensor] | None, n: int, g: torch.Generator) -> Estimate:
    """The rate of an exponential law of rate 1, fitted by score matching on the half line."""
    x = torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g)
    fit = exponential_family(lambda y: -y, x, weight=weight)
    return Estimate(float(fit.theta[0]), float(fit.standard_error[0]))


def _jumps(n: int, g: torch.Generator) -> Numbers:
    x = torch.randn(n, 1, dtype=torch.float64, generator=g)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the trace is 0 is what is shown
        loss = objectives.implicit(lambda y: -torch.sign(y) + 0 * y, x)
    return 0.5 - math.sqrt(2 / math.pi), mean_and_error(loss), 0.5


CHECKS = table(
    __name__,
    implicit_is_explicit=(
        statistical, "ESM − ISM = ½ E‖s‖² for any score model", HYVARINEN, 0.1,
        _implicit_is_explicit),
    implicit_value=(
        statistical, "ISM of W x + c on N(μ, S) is tr W + ½ (tr W S Wᵀ + ‖Wμ + c‖²)", HYVARINEN,
        0.05, _implicit_value),
    **{
        f"{name}_{law}": (
            statistical, f"{what} − ISM has mean 0 with {law} probes", SLICED, 0.1,
            partial(_sliced_minus_implicit, getattr(objectives, name), law))
        for name, what, laws in (("sliced", "SSM", PROBES), ("sliced_vr", "SSM-VR", PROBES[1:2]))
        for law in laws
    },
    **{
        f"variance_{law}": (
            statistical, f"variance of vᵀAv with {law} probes", "Hutchinson 1990", 0.2,
            partial(_trace_variance, law))
        for law in PROBES
    },
    unit_sphere=(
        false, "“SSM-VR has the score as its minimiser with unit-sphere probes”: it is the score "
        "over d", SLICED, _unit_sphere),
    less_variance=(
        false, "“SSM-VR never varies more than SSM”: on N(0, 1) by ½, with Gaussian probes", DERIVED,
        _less_variance),
    finite_differences=(
        exact, "order in h of the bias of finite-difference SSM",
        "Pang et al. 2020, arXiv 2007.03317", 0.02, _finite_differences),
    boundary=(
        false, "“ISM is consistent on any support”: on Exp(1) it fits the rate 0", HALF_LINE,
        lambda n, g: (1.0, _rate(None, n, g).value, 0.0)),
    boundary_weight=(
        statistical, "with the weight x² the rate of Exp(1) is fitted right", HALF_LINE, 0.02,
        lambda n, g: (1.0, _rate(objectives.half_line, n, g))),
    jumps=(
        false, "“ISM holds for networks with jumps”: for −sign(x) on N(0, 1) autograd misses −2 δ(x)",
        DERIVED, _jumps),
)  # fmt: skip
