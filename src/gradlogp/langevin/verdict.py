r"""Whether a run can be trusted: every check that draws, energies and scores allow, in words.

The bars are stated in standard errors, corrected for the number of coordinates, so that exact
independent draws pass: a fixed bar such as R-hat below 1.01 would refuse one of two runs of 4 × 50
perfect draws, and accept errors that 10⁵ draws reveal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Verdict, check_kind
from ..distributions.as_target import has_log_prob
from ..distributions.parameters import coordinates
from .diagnostics import Mixing, e_bfmi, thinned
from .guard import Guarded
from .kernels import MCLMC, facts_of
from .tails import heavy, plain_density
from .tuning_mclmc import expected_bias

if TYPE_CHECKING:
    from .chain import Chain

ALPHA = 0.01
"""Chance that R-hat of exact draws exceeds its bar in one of the coordinates."""

LEAST_R_HAT = 1.01
"""R-hat that never counts against a run: means are then biased by far less than their deviation."""

LEAST_ESS, LEAST_TAIL = 100.0, 50.0
"""Effective draws from which error bars of means and deviations can be believed, and those of the
quantiles 5 % and 95 %, which 50 draws place within 3 %."""

LEAST_DRAWS = 4
"""Draws of a chain below which nothing is judged."""

REMEMBERED = 0.3
"""Correlation of the last draws with the first, over many chains, up to which starts are forgotten."""

LOW_ACCEPTANCE, STRAGGLER = 0.05, 0.25
"""Mean acceptance of a chain, by itself and in parts of the median chain's, below which it is stuck."""

DIVERGENT = 0.01
"""Part of the draws that may diverge: where they do, the density is not sampled."""

LEAST_E_BFMI = 0.3
"""Energy transition per energy spread below which momenta cannot carry chains through the tails."""

LONG = 200
"""Draws of a chain from which its own E-BFMI is looked at, not the mean over chains."""

Z = 5.0
"""Standard errors from which Stein's identity counts as broken."""

CHECKED = 2000
"""Draws at which scores are evaluated again."""


def judge(chain: Chain) -> Verdict:
    """Return whether the draws of a chain can be trusted, with reasons in words.

    The verdict is based on those of the following that are known: R-hat, rank-normalised, split
    and folded (for many chains whether they have forgotten their starts, and drift); effective
    sizes of x, of its tails and of x²; whether a variance exists (`tails`); acceptances of single
    chains, divergences, E-BFMI under full refreshment; the score compared with differences of the
    log-density; and for unadjusted kernels whether draws have left the support, and Stein's
    identity E[(x_i − m_i) s_i(x)] = −1, which their bias violates.

    Examples:
        >>> target, g = glp.Gaussian([0.0]), torch.Generator().manual_seed(0)
        >>> chain = glp.run(glp.langevin.ULA(1e-4), target, torch.zeros(4, 1), 100, generator=g)
        >>> glp.langevin.judge(chain).ok
        False
    """
    check_kind(chain, "chain", ("draws", "kernel", "names"), "a Chain, such as from run or sample")
    reasons, notes = [], list[str]()
    x = chain._flat()
    m, n = x.shape[:2]
    if not chain.complete:
        notes.append(f"the run was interrupted: {n} draws each chain were judged")
    reasons += _chains(chain)
    if n < LEAST_DRAWS:
        return Verdict(False, (*reasons, f"{n} draws each chain are too few to judge: draw more"))
    if not bool(torch.isfinite(x).all()):
        return Verdict(False, (*reasons, "some draws are NaN or infinite"))
    names = chain.names()
    constant = (x == x[:1, :1]).all(0).all(0)
    if bool(constant.all()):
        return Verdict(False, (*reasons, "no chain ever moved: use a smaller step_size"))
    stuck = constant
    if chain.parameters is not None:  # such as the zeros of a Cholesky factor
        stuck = constant & ~torch.tensor(chain.parameters.constant)
    if bool(stuck.any()):
        first = names[int(stuck.nonzero()[0, 0])]
        reasons.append(f"all draws of {int(stuck.sum())} coordinates are equal, such as {first}")
    if m == 1:
        reasons.append(
            "one chain cannot show what it has missed: run at least 2, better 4, from different "
            "starts"
        )
    else:
        columns: Any = (None if part is None else part[~constant] for part in chain.mixing[1:])
        found = Mixing(chain.mixing.n_split, *columns)
        kept = [name for name, flat in zip(names, constant.tolist(), strict=True) if not flat]
        reasons += _mixing(found, kept, m, n)
        if not bool(constant.any()):
            reasons += heavy(x, found.ess_tail, kept, plain_density(chain))
    if chain.warmup is not None and bool((again := chain.warmup.restarts > 0).any()):
        notes.append(
            f"{int(again.sum())} of {m} chains could not move in the warm-up and were restarted "
            "from others"
        )
    free = free_draws(chain)
    if chain.start is not None and free is not None and (lost := chain.start.unvisited(free)):
        reasons.append(
            f"{lost} of {len(chain.start.bound)} paths from scattered points ended where the "
            f"density is "
            "large but no draw lies: there are other modes (find_modes, ParallelTempering)"
        )
    steps = facts_of(chain.kernel)
    more, asides = _target(chain, steps.exact is False)
    return Verdict(not (reasons or more), (*reasons, *more, *notes, *asides))


def _worst(values: Tensor, names: list[str], largest: bool) -> tuple[float, str]:
    at = int(values.argmax() if largest else values.argmin())
    return float(values[at]), names[at]


def _mixing(found: Mixing, names: list[str], n_chains: int, n_draws: int) -> list[str]:
    """Return what speaks against the draws in their between-chain agreement and autocorrelation."""
    from scipy.special import fdtri, stdtrit  # `scipy.stats` is ten times slower to import

    reasons = []
    d, m = len(names), found.n_split
    # effective draws each half chain; the folded R-hat is one of x² rather than of x
    size = torch.minimum(found.ess_bulk, found.ess_square) / m
    if found.memory is None:  # of very few draws the effective size may be estimated above them
        size = size.clamp(min=2.0, max=n_draws / 2)
    rest = 1.0 if found.memory is None else 0.0  # R² is (n − 1)/n + F/n, nested 1 + F/n

    def exceeded(size: Tensor) -> Tensor:
        quantile = fdtri(m - 1, m * (size.numpy() - 1), 1 - ALPHA / (2 * d))
        return ((size - rest + torch.as_tensor(quantile)) / size).sqrt()

    # few effective draws excuse no more than 1.1, or what independent draws may show
    most = max(1.1, float(exceeded(torch.tensor([max(n_draws / 2, 2.0)], dtype=torch.float64))))
    bar = exceeded(size).clamp(min=LEAST_R_HAT, max=most)
    over = found.r_hat - bar
    if float(over.max()) > 0:
        at = int(over.argmax())
        reasons.append(
            f"the chains disagree: R-hat is {float(found.r_hat[at]):.3f} for {names[at]}, of "
            f"{int((over > 0).sum())} of {d} coordinates above {float(bar[at]):.3f}; run longer, "
            f"or look "
            "for modes that some chains have not found (find_modes, ParallelTempering)"
        )
    if found.memory is not None:
        value, name = _worst(found.memory, names, True)
        if value > REMEMBERED + 3 / math.sqrt(n_chains):
            reasons.append(
                f"the chains still remember their starts: the last draw of {name} has correlation "
                f"{value:.2f} with the first; draw more per chain"
            )
    if found.drift is not None:
        value, name = _worst(found.drift, names, True)
        if value > stdtrit(n_chains - 1, 1 - ALPHA / (4 * d)):
            reasons.append(
                f"the chains have not settled: {name} drifts by {value:.1f} standard errors from the "
                "first half of the draws to the second; use a longer warm-up"
            )
    for what, has, ess, least, why in (
        ("", "has", found.ess_bulk, LEAST_ESS, "run longer"),
        ("the tails of ", "have", found.ess_tail, LEAST_TAIL, "run longer"),
        (
            "the square of ", "has", found.ess_square, LEAST_ESS,
            "run longer; if that of x itself is large, paths are close to a half turn: jitter "
            "their length",
        ),
    ):  # fmt: skip
        value, name = _worst(ess, names, False)
        if not value >= least:
            reasons.append(
                f"{what}{name} {has} {value:.0f} effective draws, of at least {least:.0f} that error "
                f"bars need: {why}"
            )
    return reasons


def _chains(chain: Chain) -> list[str]:
    """Return what speaks against single chains."""
    reasons = []
    acceptance = getattr(chain.info, "acceptance", None)
    if acceptance is not None and acceptance.numel():
        means = acceptance.double().mean(1).cpu()
        low = means < max(LOW_ACCEPTANCE, STRAGGLER * float(means.median()))
        if bool(low.any()):
            reasons.append(
                f"{int(low.sum())} of {len(low)} chains hardly move: acceptance "
                f"{float(means.min()):.2g}, and {float(means.median()):.2g} of the median chain; use a "
                "longer warm-up, a smaller step_size, or a different parametrisation where the "
                "scale varies"
            )
    n = chain.draws.shape[0] * chain.draws.shape[1]
    flags = getattr(chain.info, "diverging", None)
    diverged = 0 if flags is None else int(flags.sum())
    if diverged > DIVERGENT * n:
        cure = (
            "use a smaller step_size (a larger target_acceptance), or a different parametrisation"
        )
        if _has_nan_border(chain):
            cure = (
                "the log-density is NaN beyond a boundary: pass as_target a constraint, "
                'parameters={"x": constraints.positive}, or return -inf there'
            )
        reasons.append(
            f"{diverged} of {n} draws come from divergent steps: parts of the density are not "
            f"reached; {cure}"
        )
    failed = sum(chain.failures.values())
    if failed > DIVERGENT * n:
        first = next(iter(chain.failures))
        reasons.append(f"the target failed at {failed} points, such as {first}")
    energy, partial = getattr(chain.info, "energy", None), facts_of(chain.kernel).partial_refresh
    if energy is not None and not partial and energy.shape[1] >= LEAST_DRAWS:
        single = e_bfmi(energy.cpu().double())
        # of short chains the fraction of each is noise
        value = float(single.min() if energy.shape[1] >= LONG else single.mean())
        if value < LEAST_E_BFMI:
            reasons.append(
                f"E-BFMI is {value:.2f}, below {LEAST_E_BFMI}: the momentum cannot carry the chains "
                "through the tails; use a different parametrisation, such as a non-centred one"
            )
    return reasons


def _has_nan_border(chain: Chain) -> bool:
    """Return whether the log-density is NaN at many points twice as far out as draws."""
    free = None if chain.target is None else free_draws(chain)
    if free is None or not has_log_prob(chain.target):
        return False
    target = Guarded(chain.target)
    target.lenient = True
    x = thinned(free, CHECKED)
    if (like := getattr(chain.state, "x", None)) is not None:
        x = x.to(like)
    with torch.no_grad():
        value = target.log_prob(3 * x - 2 * x.mean(0))
    return not target.failures and float(value.isnan().double().mean()) > DIVERGENT


def _target(chain: Chain, unadjusted: bool) -> tuple[list[str], list[str]]:
    """Return what scores and log-densities at the draws speak against, and what was not judged."""
    target, x = chain.target, getattr(chain.state, "x", None)
    if target is None or x is None:
        return [], ["the bias of the step size was not judged"] if unadjusted else []
    reasons, known = [], has_log_prob(target)
    target = Guarded(target)  # what fails at a point says nothing there, and stops no summary
    target.lenient = True
    if known and (gap := score_gap(target, x[:8])) is not None and gap > 0.05:
        reasons.append(
            f"the score differs from the gradient of the log-density by {100 * gap:.0f} %: check "
            "the score you supplied"
        )
    if not unadjusted:
        return reasons, []
    if (free := free_draws(chain)) is None:
        return reasons, ["the bias of the step size was not judged: draws lie on the boundary"]
    z = free.unflatten(0, chain.draws.shape[:2]).to(x.device)
    names = chain.names()
    if chain.parameters is not None:
        names = coordinates("free number ", z.shape[2:])
    if known:
        outside = int(
            (target.log_prob(some := thinned(z.flatten(0, 1), CHECKED)) == -torch.inf).sum()
        )
        if outside:
            reasons.append(
                f"{outside} of {len(some)} draws lie where the density is 0: an "
                "unadjusted kernel does not see the boundary; use MALA or HMC, or a constraint"
            )
            return reasons, []
    found = stein(target, z)
    if found is not None:
        broken = found[1] > Z
        if bool(broken.any()):
            at = int(found[1].argmax())
            reasons.append(
                f"the step size biases the variance of {names[at]} by about "
                f"{100 * float(found[0][at]):+.0f} % ({float(found[1][at]):.0f} standard errors of "
                "Stein's identity): use a smaller one, or MALA"
            )
            return reasons, []
    return reasons, [
        f"{type(chain.kernel).__name__} is not adjusted{_by_energy(chain)}: bias that these draws do "
        "not show was not judged"
    ]


def _by_energy(chain: Chain) -> str:
    """Return in words by how much variances are off on a normal law, from the errors of the energy."""
    if not isinstance(chain.kernel, MCLMC):
        return ""
    W = chain.info.energy_change
    v = float(W[torch.isfinite(W)].double().square().mean()) / chain.state.x[0].numel()
    bias = expected_bias(chain.kernel.integrator, v)
    return (
        f", and its energy errors correspond to a bias of {100 * bias:+.1f} % in the variances "
        "of a normal law"
    )


def free_draws(chain: Chain) -> Tensor | None:
    """Return all draws in the space of the target's density, `(n, *event)`."""
    x = chain.draws.flatten(0, 1)
    try:
        return x if chain.parameters is None else chain.parameters.unconstrain(x)
    except ValueError:  # a draw that was rounded to the border has no free numbers
        return None


def stein(target: Any, draws: Tensor) -> tuple[Tensor, Tensor] | None:
    r"""Return the relative error of each variance by Stein's identity, and its z-score.

    .. math:: E[(x_i - c_i)\, s_i(x)] = -1

    for the law with score s and any c; 1 + the mean over draws is about the relative bias of the
    variance for a normal law. The error is estimated from the means of pieces of single chains.
    """
    m, n = draws.shape[:2]
    thin = max(1, m * n // CHECKED)
    x = draws[:, ::thin] if n >= thin else draws[:: max(1, m // CHECKED), ::n]
    with torch.no_grad():
        s = target.score(x.flatten(0, 1)).reshape(x.shape).flatten(2).double()
    x = x.flatten(2).double()
    y = 1 + (x - x.mean((0, 1))) * s
    if not bool(torch.isfinite(y).all()):
        return None
    pieces = torch.cat(
        [piece.mean(1) for piece in y.tensor_split(max(1, min(8, y.shape[1] // 4)), 1)]
    )
    if len(pieces) < 8:
        return None
    value = y.mean((0, 1))
    error = pieces.std(0) / len(pieces) ** 0.5
    return -value, value.abs() / error.clamp(min=torch.finfo(error.dtype).tiny)


def score_gap(target: Any, x: Tensor) -> float | None:
    """Return the relative difference between s·v and a central difference of log p along a direction v.

    None if rounding or curvature leaves no digits: two lengths of the difference then disagree.
    """
    with torch.no_grad():
        s = target.score(x).flatten(1).double()
        v = s / s.norm(dim=1, keepdim=True).clamp(min=1e-300)
        found = []
        for size in (1e-4, 5e-5):
            step = (size * (1 + x.flatten(1).norm(dim=1, keepdim=True)) * v).to(x).reshape(x.shape)
            length = step.flatten(1).double().norm(dim=1)
            up, down = target.log_prob(x + step), target.log_prob(x - step)
            rise = (up - down).double()
            rounding = torch.finfo(up.dtype).eps * torch.maximum(up.abs(), down.abs()).double()
            found.append(rise / (2 * length))
    one, two = found
    slope = s.norm(dim=1)
    sure = (
        torch.isfinite(one)
        & (rise.abs() > 100 * rounding)
        & ((one - two).abs() < 0.01 * two.abs().clamp(min=1e-300))
        & (slope > 0)
    )
    if not bool(sure.any()):
        return None
    return float(((two - slope).abs() / torch.maximum(two.abs(), slope))[sure].median())
