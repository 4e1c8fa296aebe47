"""Every claim passes, the verdicts can fail, and a library that is wrong fails its own claims."""

import math
from importlib import import_module

import pytest
import torch

from gradlogp import objectives
from gradlogp.calculus.reverse import jacobian_trace
from gradlogp.check.theory import (
    CHECKS,
    Claim,
    denoising,
    density,
    diffusion,
    manifold,
    matching,
    name_of,
    reversal,
    samplers,
    select,
    solvers,
    statistics,
    verify,
)
from gradlogp.check.theory.claim import (
    at_most,
    claim,
    collect,
    exact,
    false,
    statistical,
)
from gradlogp.core import Estimate, Schedule, randn_like
from gradlogp.geometry import curvature
from gradlogp.langevin.kernels import overdamped, unadjusted
from gradlogp.noise.predictions import predict
from gradlogp.noise.schedules import invert_log_snr

NAMES = [name_of(check) for check in CHECKS]


def only(check, **options):
    (found,) = verify(checks=(check,), **options)
    return found


@pytest.mark.parametrize("check", CHECKS, ids=NAMES)
def test_claim(check):
    claim = only(check, quick=True)
    assert claim.verdict == "pass", claim
    assert claim.claim
    assert claim.source
    assert claim.standard_error is None or claim.standard_error >= 0
    if claim.statement == "false":
        assert "“" in claim.claim  # quoted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_other_draws(seed):
    failed = [c for c in verify(seed=seed) if c.verdict == "fail"]
    assert not failed, failed


def test_there_are_enough_claims_and_names_are_distinct():
    assert len(NAMES) == len(set(NAMES)) >= 185
    assert {name.split(".")[0] for name in NAMES} == {
        "matching", "denoising", "density", "statistics", "dynamics", "samplers",
        "particles", "annealed", "diffusion", "dimension", "reversal", "solvers", "manifold",
    }  # fmt: skip


def test_a_check_has_draws_of_its_own():
    """The same seed gives the same numbers, alone or among others; another seed gives others."""
    pair = (matching.implicit_value, matching.sliced_sphere)
    together, alone = list(verify(quick=True, checks=pair)), only(pair[1], quick=True)
    assert together[1] == alone
    assert only(pair[1], quick=True, seed=1).measured != alone.measured


def test_verdicts():
    assert at_most("c", "s", 1.0, 0.9).verdict == "pass"
    assert at_most("c", "s", 1.0, 1.1).verdict == "fail"
    assert at_most("c", "s", 1.0, math.nan).verdict == "fail"
    assert exact("c", "s", 2.0, 2.0 + 1e-9, 1e-8).verdict == "pass"
    assert exact("c", "s", 2.0, 2.0 + 1e-7, 1e-8).verdict == "fail"
    assert exact("c", "s", 2.0, math.nan, 1e-8).verdict == "fail"
    assert statistical("c", "s", 0.0, Estimate(0.4, 0.1), 0.2).verdict == "pass"
    assert statistical("c", "s", 0.0, Estimate(0.5, 0.1), 0.2).verdict == "fail"
    assert statistical("c", "s", 0.0, Estimate(0.4, 0.3), 0.2).verdict == "fail"  # too coarse
    assert statistical("c", "s", 0.0, Estimate(math.nan, 0.1), 0.2).verdict == "fail"
    assert statistical("c", "s", 0.0, Estimate(0.0, math.nan), 0.2).verdict == "fail"
    assert statistical("c", "s", 0.3, Estimate(0.3, 1e-18), 0.2) == Claim(
        "c", "s", 0.3, 0.3, 0.0, "pass", "true"
    )
    refuted = false("c", "s", 1.0, Estimate(2.0, 0.05), 2.1)
    assert (refuted.verdict, refuted.statement) == ("pass", "false")
    assert false("c", "s", 1.0, Estimate(2.0, 0.2), 2.0).verdict == "fail"  # not beyond doubt
    assert false("c", "s", 1.0, Estimate(2.0, 0.05), 3.0).verdict == "fail"  # nor what is true
    assert false("c", "s", 1.0, 1.5, 1.5).verdict == "pass"
    assert false("c", "s", 1.0, 0.5, 1.5).verdict == "fail"  # wrong on the other side
    assert false("c", "s", 1.0, 1.005, 1.005).verdict == "fail"
    assert false("c", "s", 1.0, math.nan, 2.0).verdict == "fail"


@claim(exact, "c", "s", 1e-8)
def drawn(n, generator):
    return 2.0 * n, torch.rand((), generator=generator)


@claim(false, "“c”", "s")
def undrawn():
    return 1.0, 2.0, 2.001


def test_a_declared_claim_is_judged_by_its_verdict_and_limits():
    g = torch.Generator().manual_seed(3)
    measured = float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert drawn(7, g) == Claim("c", "s", 14.0, measured, None, "fail")
    assert undrawn(7, g) == false("“c”", "s", 1.0, 2.0, 2.001)
    assert name_of(undrawn) == "test_theory.undrawn"


def test_a_module_collects_its_own_claims_in_order():
    assert [name_of(c) for c in collect(globals())] == ["test_theory.drawn", "test_theory.undrawn"]
    assert matching.CHECKS[0] is matching.implicit_is_explicit
    assert not collect({**vars(matching), "__name__": "elsewhere"})


# ---------------------------------------------------------------------------- negative controls


def wrong_denoising(score, x, sigma, *, generator=None):
    eps = randn_like(x, generator)
    return 0.5 * (score(x + sigma * eps) - eps / sigma).square().sum(1)


def half_trace(score, x, **options):
    s, trace = jacobian_trace(score, x)
    return 0.5 * trace + 0.5 * s.square().sum(1)


def half_the_noise(x, generator=None):
    return randn_like(x, generator) / math.sqrt(2)


def minus_the_trace(score, x, **options):
    s, trace = jacobian_trace(score, x)
    return s, -trace


def half_the_noise_explained(score, x, t):
    x0, eps = predict(score, x, t)
    return x0, 0.5 * eps


def as_if_unweighted(score, x, t, weight=None, *, generator=None):
    sigma = score.schedule(t)[1]
    return objectives.denoising(lambda y: score(y, t), x, sigma, generator=generator)


def no_posterior_variance(score, x, alpha, sigma, **options):
    zero = torch.zeros_like(x)
    return import_module("gradlogp.noise.tweedie").Variance(zero, zero)


def of(name):
    """A module, where the package gives a function of the same name."""
    return import_module(f"gradlogp.{name}")


WRONG = {
    "the sign of the noise": (
        objectives, "denoising", wrong_denoising, denoising.exact_score_loses_the_floor,
    ),
    "the sign of the noise, in a fit": (
        objectives, "denoising", wrong_denoising, denoising.learned_slope,
    ),
    "the sign of the noise, in the identity": (
        objectives, "denoising", wrong_denoising, denoising.denoising_is_implicit,
    ),
    "half of the trace": (objectives, "implicit", half_trace, matching.implicit_value),
    "half of the trace, against ESM": (
        objectives, "implicit", half_trace, matching.implicit_is_explicit,
    ),
    "twice the divergence": (
        density, "gaussian_fisher", lambda p, q: 2 * 2.572816, density.fisher_of_gaussians,
    ),
    "the squared distance": (
        density, "gaussian_wasserstein", lambda p, q: 1.17133, density.transport_of_gaussians,
    ),
    "KL the other way round": (
        density, "gaussian_kl",
        (lambda f: lambda p, q: f(q, p))(density.gaussian_kl), density.kl_of_gaussians,
    ),
    "σ for σ² in Tweedie's formula": (
        denoising, "tweedie",
        (lambda f: lambda s, x, a, b: f(s, x, a, math.sqrt(b)))(denoising.tweedie),
        denoising.tweedie_mean,
    ),
    "probes on the unit sphere": (
        matching, "probe",
        (lambda f: lambda law, x, g: f(law, x, g) / math.sqrt(2))(matching.probe),
        matching.variance_sphere,
    ),
    "√h for √(2h)": (
        overdamped, "langevin_step",
        lambda x, s, h, z, tau=1.0: x + h * s + math.sqrt(h * tau) * z, samplers.ula_law,
    ),
    "the noise of one step only": (
        unadjusted, "langevin_step",
        (lambda f: lambda x, s, h, z, tau=1.0: f(x, s, h, 2 * z, tau))(unadjusted.langevin_step),
        samplers.averaged_noise,
    ),
    "no weight at the boundary": (
        objectives, "half_line", torch.ones_like, matching.boundary_weight,
    ),
    "the loss of one noise level, unweighted": (
        objectives, "multilevel", as_if_unweighted, diffusion.ddpm_loss_is_denoising,
    ),
    "unweighted, sample by sample": (
        objectives, "multilevel", as_if_unweighted, diffusion.ddpm_loss_is_ncsn_loss,
    ),
    "g for g² in the weight": (
        objectives.weights, "likelihood",
        objectives.weights.OfTime(lambda schedule, t: schedule.g2(t).sqrt()),
        diffusion.likelihood_weight,
    ),
    "g² without its 2": (
        Schedule, "g2", (lambda f: lambda self, t: f(self, t) / 2)(Schedule.g2),
        diffusion.drift_and_diffusion,
    ),
    "the log of a ratio for the log of its square": (
        of("scores.rescheduled"), "invert_log_snr", lambda schedule, v: invert_log_snr(schedule, v / 2),
        diffusion.exploding_is_preserving,
    ),
    "a product twice as long": (
        of("noise.tweedie"), "jacobian_product",
        (lambda f: lambda s, x, v: 2 * f(s, x, v))(of("noise.tweedie").jacobian_product),
        diffusion.tweedie_without_the_matrix,
    ),
    "the likelihood minus the divergence": (
        of("diffusion.likelihood"), "jacobian_trace", minus_the_trace, diffusion.likelihood_by_the_flow,
    ),
    "half of ε̂ in the bound": (
        of("diffusion.bound"), "predict", half_the_noise_explained, diffusion.bound_is_tight,
    ),
    "half the noise in DDPM's step": (
        of("diffusion.transitions.ancestral"), "randn_like", half_the_noise, reversal.ancestral_forward,
    ),
    "β̃ for the optimal variance": (
        of("diffusion.transitions.ancestral"), "tweedie_variance", no_posterior_variance,
        reversal.ancestral_optimal,
    ),
    "half the noise in the reverse SDE": (
        of("diffusion.transitions.reverse"), "randn_like", half_the_noise, reversal.reverse_variance,
    ),
    "half of ε̂ in the flow": (
        of("diffusion.transitions.flow"), "predict", half_the_noise_explained, solvers.order_of_heun,
    ),
    "half of the velocity": (
        of("diffusion.transitions.flow"), "flow_velocity",
        (lambda f: lambda *args: f(*args) / 2)(of("diffusion.transitions.flow").flow_velocity),
        reversal.prior_mean_of_the_flow,
    ),
    "half the quadratic in 3M": (
        of("diffusion.transitions.multistep").DPMSolver, "_weights", solvers._Circulating._weights,
        solvers.order_of_3m,
    ),
    "half the noise in DDIM": (
        of("diffusion.transitions.reverse"), "randn_like", half_the_noise, solvers.noise_of_ddim,
    ),
    "half the noise in a correction": (
        of("diffusion.transitions.corrector"), "randn_like", half_the_noise, solvers.corrector_by_level,
    ),
    "half of the trace in a dimension": (
        of("geometry.dimension"), "jacobian_trace",
        (lambda f: lambda *args: tuple(v / 2 for v in f(*args)))(jacobian_trace),
        manifold.divergence_reads_the_dimension,
    ),
    "the wrong side of a manifold": (
        curvature, "tangent_normal_split",
        (lambda f: lambda score, *args, **more: f(lambda x: -score(x), *args, **more))(
            curvature.tangent_normal_split
        ),
        manifold.curvature_and_density,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_library_fails(name, monkeypatch):
    module, attribute, broken, check = WRONG[name]
    assert only(check, quick=True).verdict == "pass"
    monkeypatch.setattr(module, attribute, broken)
    assert only(check, quick=True).verdict == "fail"


# ---------------------------------------------------------------------------- efficiencies


def test_efficiency_against_a_simulation():
    """n Var of the weight fitted by ISM to ½N(−1, 1) + ½N(1, 1), by Newton's method on samples."""
    g = torch.Generator().manual_seed(5)
    a, n, fits = 1.0, 2000, 400
    side = torch.where(torch.rand(fits, n, generator=g) < 0.5, -a, a)
    x = side + torch.randn(fits, n, generator=g)
    pi = torch.full((fits, 1), 0.5)
    for _ in range(30):  # the loss tr s' + ½ s² in π, with r = π e^{2ax}/(π e^{2ax} + 1 − π)

        def loss(p):
            r = torch.sigmoid(2 * a * x + (p / (1 - p)).log())
            s = -x + a * (2 * r - 1)
            ds = -1 + 4 * a**2 * r * (1 - r)
            return (ds + 0.5 * s * s).mean(1)

        p = pi.clone().requires_grad_()
        (g1,) = torch.autograd.grad(loss(p).sum(), p, create_graph=True)
        (g2,) = torch.autograd.grad(g1.sum(), p)
        pi = (pi - g1.detach() / g2.abs()).clamp(0.02, 0.98)
    variance = n * (pi - 0.5).square().mean()
    grid = torch.linspace(-12, 12, 4001)
    normal = lambda m: torch.exp(-0.5 * (grid - m) ** 2) / math.sqrt(2 * math.pi)
    fisher = ((normal(a) - normal(-a)) ** 2 / (0.5 * (normal(a) + normal(-a)))).sum() * 24 / 4000
    efficiency = float(1 / (fisher * variance))
    assert abs(efficiency / statistics.efficiency(a) - 1) < 4.5 * math.sqrt(2 / fits)
    assert abs(efficiency / statistics.efficiency(2.0) - 1) > 1


def test_a_claim_is_a_record():
    claim = only(density.blindness)
    assert list(claim._asdict()) == [
        "claim", "source", "expected", "measured", "standard_error", "verdict", "statement",
    ]  # fmt: skip
    assert select("weight_at_4") == (statistics.weight_at_4,)
    assert select("no such thing") == ()
