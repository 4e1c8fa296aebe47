"""Every claim passes, the verdicts can fail, and a library that is wrong fails its own claims."""

import dataclasses
import math
from importlib import import_module

import pytest
import torch
from support import close

from gradlogp import objectives
from gradlogp.calculus.reverse import jacobian_trace
from gradlogp.check.theory import CHECKS, Claim, dimension, select, solvers, statistics, verify
from gradlogp.check.theory.claim import at_most, exact, false, statistical, table
from gradlogp.core import Estimate, randn_like
from gradlogp.langevin.kernels import ULA, PreconditionedULA
from gradlogp.noise.tweedie import Variance

BY_NAME = {check.name: check for check in CHECKS}


def only(name, **options):
    (found,) = verify(checks=(BY_NAME[name],), quick=True, **options)
    return found


DEAR = {
    *(f"solvers.order_of_{of}" for of in ("euler", "churn", "ancestral", "ancestral_posterior",
      "runge_kutta", "3m_as_published")), "dynamics.distance_may_grow",
    "reversal.reverse_is_no_flow", "particles.tempering_finds_weights",
}  # fmt: skip
"""Orders that `check_transition` measures as well, and runs whose siblings are quicker."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in BY_NAME]
)
def test_claim(name):
    claim = only(name)
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
    assert len(CHECKS) == len(BY_NAME) >= 185
    assert len({name.split(".")[0] for name in BY_NAME}) == 13
    assert [check.name for check in select("Weight_at_4")] == ["statistics.weight_at_4"]
    assert select("no such thing") == ()


def test_a_check_has_draws_of_its_own():
    """The same seed gives the same numbers, alone or among others; another seed gives others."""
    name = "matching.sliced_sphere"
    pair = (BY_NAME["matching.implicit_value"], BY_NAME[name])
    assert list(verify(quick=True, checks=pair))[1] == only(name)
    assert only(name, seed=1).measured != only(name).measured


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


def test_a_declared_claim_is_judged_by_its_verdict_and_limits():
    drawn, undrawn = table(
        "a.file",
        drawn=(exact, "c", "s", 1e-8, lambda n, g: (2.0 * n, torch.rand((), generator=g))),
        undrawn=(false, "“c”", "s", lambda: (1.0, 2.0, 2.001)),
    )
    g = torch.Generator().manual_seed(3)
    measured = float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    assert drawn(7, g) == Claim("c", "s", 14.0, measured, None, "fail")
    assert undrawn(7, g) == false("“c”", "s", 1.0, 2.0, 2.001)
    assert (drawn.name, undrawn.name) == ("file.drawn", "file.undrawn")


# ---------------------------------------------------------------------------- negative controls


def wrong_denoising(score, x, sigma, *, generator=None):
    eps = randn_like(x, generator)
    return 0.5 * (score(x + sigma * eps) - eps / sigma).square().sum(1)


def half_trace(score, x, **options):
    s, trace = jacobian_trace(score, x)
    return 0.5 * trace + 0.5 * s.square().sum(1)


def as_if_unweighted(score, x, t, weight=None, *, generator=None):
    sigma = score.schedule(t)[1]
    return objectives.denoising(lambda y: score(y, t), x, sigma, generator=generator)


def half(f):
    return lambda *args, **more: f(*args, **more) / 2


def halves(f):
    return lambda *args, **more: tuple(v / 2 for v in f(*args, **more))


def half_the_noise(f):
    return lambda x, generator=None: f(x, generator) / math.sqrt(2)


def half_of_eps(f):
    return lambda *args: (lambda x0, eps: (x0, 0.5 * eps))(*f(*args))


def minus_the_trace(f):
    return lambda *args, **more: (lambda s, trace: (s, -trace))(*f(*args, **more))


def no_posterior_variance(f):
    return lambda score, x, *args, **more: Variance(0 * x, 0 * x)


WRONG = (
    ("the sign of the noise", "learn.objectives.denoising", lambda f: wrong_denoising,
     "denoising.exact_score_loses_the_floor", "denoising.learned_slope",
     "denoising.denoising_is_implicit"),
    ("half of the trace", "learn.objectives.implicit", lambda f: half_trace,
     "matching.implicit_value", "matching.implicit_is_explicit"),
    ("twice the divergence", "check.theory.density.gaussian_fisher",
     lambda f: lambda p, q: 2 * f(p, q), "density.fisher_of_gaussians"),
    ("the squared distance", "check.theory.density.gaussian_wasserstein",
     lambda f: lambda p, q: f(p, q) ** 2, "density.transport_of_gaussians"),
    ("KL the other way round", "check.theory.density.gaussian_kl",
     lambda f: lambda p, q: f(q, p), "density.kl_of_gaussians"),
    ("σ for σ² in Tweedie's formula", "check.theory.denoising.tweedie",
     lambda f: lambda s, x, a, b: f(s, x, a, math.sqrt(b)), "denoising.tweedie_mean"),
    ("probes on the unit sphere", "check.theory.matching.probe",
     lambda f: lambda law, x, g: f(law, x, g) / math.sqrt(2), "matching.variance_sphere"),
    ("√h for √(2h)", "langevin.kernels.overdamped.langevin_step",
     lambda f: lambda x, s, h, z, tau=1.0: x + h * s + math.sqrt(h * tau) * z, "samplers.ula_law"),
    ("the noise of one step only", "langevin.kernels.overdamped.langevin_step",
     lambda f: lambda x, s, h, z, tau=1.0: f(x, s, h, 2 * z, tau), "samplers.averaged_noise"),
    ("no weight at the boundary", "learn.objectives.half_line", lambda f: torch.ones_like,
     "matching.boundary_weight"),
    ("the loss of one noise level, unweighted", "learn.objectives.multilevel",
     lambda f: as_if_unweighted, "diffusion.ddpm_loss_is_denoising",
     "diffusion.ddpm_loss_is_ncsn_loss"),
    ("g for g² in the weight", "learn.objectives.weights.likelihood",
     lambda f: objectives.weights.OfTime(lambda schedule, t: schedule.g2(t).sqrt()),
     "diffusion.likelihood_weight"),
    ("g² without its 2", "core.Schedule.g2", half, "diffusion.drift_and_diffusion"),
    ("the log of a ratio for the log of its square", "scores.guided.invert_log_snr",
     lambda f: lambda schedule, v: f(schedule, v / 2), "diffusion.exploding_is_preserving"),
    ("a product twice as long", "noise.tweedie.jacobian_product",
     lambda f: lambda s, x, v: 2 * f(s, x, v), "diffusion.tweedie_without_the_matrix"),
    ("the likelihood minus the divergence", "diffusion.likelihood.jacobian_trace",
     minus_the_trace, "diffusion.likelihood_by_the_flow"),
    ("half of ε̂ in the bound", "diffusion.bound.predict", half_of_eps, "diffusion.bound_is_tight"),
    ("half the noise in DDPM's step", "diffusion.transitions.ancestral.randn_like",
     half_the_noise, "reversal.ancestral_forward"),
    ("β̃ for the optimal variance", "diffusion.transitions.ancestral.tweedie_variance",
     no_posterior_variance, "reversal.ancestral_optimal"),
    ("half the noise in the reverse SDE and in DDIM", "diffusion.transitions.reverse.randn_like",
     half_the_noise, "reversal.reverse_variance", "solvers.noise_of_ddim"),
    ("half of ε̂ in the flow", "diffusion.transitions.flow.predict", half_of_eps,
     "solvers.order_of_heun"),
    ("half of the velocity", "diffusion.transitions.flow.flow_velocity", half,
     "reversal.prior_mean_of_the_flow"),
    ("half the quadratic in 3M", "diffusion.transitions.multistep.DPMSolver._weights",
     lambda f: solvers.Circulating._weights, "solvers.order_of_3m"),
    ("half the noise in a correction", "diffusion.transitions.corrector.randn_like",
     half_the_noise, "solvers.corrector_by_level"),
    ("half of the trace in a dimension", "geometry.dimension.jacobian_trace", halves,
     "manifold.divergence_reads_the_dimension"),
    ("the wrong side of a manifold", "geometry.tangent.tangent_normal_split",
     lambda f: lambda score, *args, **more: f(lambda x: -score(x), *args, **more),
     "manifold.curvature_and_density"),
    ("a score of half the size", "distributions.analytic.directional.Directional.score", half,
     "manifold.on_the_manifold", "manifold.tangent_score",
     "manifold.divergence_reads_the_dimension"),
    ("σ for σ²", "distributions.analytic.directional.Directional.noised",
     lambda f: lambda self, a, b: f(self, a, b**0.5 if isinstance(b, float) else b),
     "manifold.off_the_manifold", "manifold.divergence_reads_the_dimension"),
)  # fmt: skip


@pytest.mark.parametrize(("place", "broken", "claims"), [
    pytest.param(place, broken, claims, id=name) for name, place, broken, *claims in WRONG
])  # fmt: skip
def test_a_wrong_library_fails(place, broken, claims, monkeypatch):
    *path, attribute = place.split(".")
    classes = [path.pop()] if path[-1][0].isupper() else []
    owner = import_module(".".join(["gradlogp", *path]))
    for name in classes:
        owner = getattr(owner, name)
    monkeypatch.setattr(owner, attribute, broken(getattr(owner, attribute)))
    for name in claims:  # each passes unbroken in `test_claim`
        assert only(name).verdict == "fail"


def test_the_bias_in_high_dimension_is_that_of_the_kernel():
    """Step size, preconditioner, temperature and all."""
    w = dimension.spectrum(50)
    right = dimension.bias(PreconditionedULA(0.1, w), w)
    close(right, dimension.BIAS * float(w.sum().sqrt()), 1e-12)
    hot = dataclasses.replace(PreconditionedULA(0.1, w), temperature=1.1)
    others = (PreconditionedULA(0.2, w), PreconditionedULA(0.1, 1.1 * w), ULA(1e-4), hot)
    for wrong in others:
        assert abs(dimension.bias(wrong, w) / right - 1) > 0.01
    a, b = dimension.moved(ULA(0.25), torch.tensor([1.0, 2.0]))
    close(a, torch.tensor([0.75, 0.875]), 1e-12)
    close(b, torch.full((2,), 0.5**0.5), 1e-12)


def test_efficiency_against_a_simulation():
    """n Var of the weight fitted by ISM to ½N(−1, 1) + ½N(1, 1), by Newton's method on samples."""
    g = torch.Generator().manual_seed(5)
    a, n, fits = 1.0, 2000, 400
    side = torch.where(torch.rand(fits, n, generator=g) < 0.5, -a, a)
    x = side + torch.randn(fits, n, generator=g)
    pi = torch.full((fits, 1), 0.5)
    for _ in range(6):  # the loss tr s' + ½ s² in π, with r = π e^{2ax}/(π e^{2ax} + 1 − π)

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
