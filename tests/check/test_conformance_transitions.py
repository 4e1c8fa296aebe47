"""Every transition against the public checks, and transitions that are wrong in a known way."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from support import order

from gradlogp import ExactScore, as_score
from gradlogp.check import ConformanceError, check_transition
from gradlogp.check.conformance.report import Report
from gradlogp.check.conformance.transition_laws import DATA, _path
from gradlogp.check.conformance.transitions import CASES, conduct
from gradlogp.core import randn_like
from gradlogp.diffusion import transitions
from gradlogp.diffusion.transitions import (
    DDIM,
    AdaptiveFlow,
    Ancestral,
    AnnealedLangevin,
    Churn,
    Coloured,
    DPMSolver,
    ExponentialAB,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseSDE,
    UniPC,
)
from gradlogp.diffusion.transitions.annealed_kernels import ExponentialSteps, PreconditionedSteps
from gradlogp.diffusion.transitions.facts import POINT, UNKNOWN, facts_of, table
from gradlogp.inverse import DPSStep, Inpainting, Matrix, Observation, RePaint
from gradlogp.langevin import BAOAB, MALA, LeimkuhlerMatthews, PositionDependentULA, TamedULA
from gradlogp.noise.predictions import predict
from gradlogp.noise.schedules import VP

SHOWN = [
    DDIM(), DDIM(0.7), ProbabilityFlow(1), ProbabilityFlow(2), ProbabilityFlow(4), AdaptiveFlow(),
    DPMSolver(2), DPMSolver(3), ExponentialAB(2), ExponentialAB(3), ExponentialAB(4),
    UniPC(1), UniPC(), Ancestral(), Ancestral("forward"), Ancestral("optimal"), ReverseSDE(),
    ReverseSDE(1.0, "euler"), ReverseSDE(1.0, "heun"), PredictorCorrector(), Churn(),
    AnnealedLangevin(), Coloured(),
]  # fmt: skip
"""Those of the table in the docs."""

EVERY = [
    *(AdaptiveFlow(1e-3, 1e-3) if isinstance(t, AdaptiveFlow) else t for t in SHOWN),
    DPMSolver(1), UniPC(2), ExponentialAB(1), *(ExponentialAB(k, "x0") for k in (1, 2, 3, 4)),
    ExponentialAB(2, extrapolate=True), Ancestral("optimal", n_probes=2),
    *(ReverseSDE(0.0, method) for method in ("exponential", "euler", "heun")),
    ReverseSDE(0.5), ReverseSDE(0.5, "heun"), Churn(0.0), Churn(0.1, order=1),
    Churn(0.1, s_noise=1.1), PredictorCorrector(ReverseSDE(1.0, "heun"), n_steps=3),
    PredictorCorrector(DDIM(), rule="sample"), AnnealedLangevin(3, 1.0, BAOAB),
    AnnealedLangevin(3, 5.0, ExponentialSteps(0.0)),
    AnnealedLangevin(2, 0.2, PreconditionedSteps(0.3)),
    Coloured(1.0, DPMSolver(3)), Coloured(1.0, ReverseSDE(1.0, "heun")),
]  # fmt: skip

DEAR = [
    ProbabilityFlow(4), Ancestral("optimal"), ReverseSDE(1.0, "euler"), ReverseSDE(1.0, "heun"),
    ReverseSDE(0.5), Churn(0.1, order=1), Churn(0.1, s_noise=1.1),
    PredictorCorrector(ReverseSDE(1.0, "heun"), n_steps=3), AnnealedLangevin(3, 1.0, BAOAB),
    AnnealedLangevin(3, 5.0, ExponentialSteps(0.0)),
    AnnealedLangevin(2, 0.2, PreconditionedSteps(0.3)), Coloured(1.0, DPMSolver(3)),
    Coloured(1.0, ReverseSDE(1.0, "heun")),
]  # fmt: skip
"""Those of which all is measured when there is time: a sibling goes through the same lines."""

SEEN = Observation(torch.tensor([[0.4]]), Matrix(torch.tensor([[1.0, 0.5]]).double()), 0.3)
ENTRY = Observation(torch.tensor([[0.4]]), Inpainting(torch.tensor([True, False])), 0)
SPARING = [
    AnnealedLangevin(4, 0.1, kernel)
    for kernel in (
        LeimkuhlerMatthews, TamedULA, MALA, PreconditionedSteps(1.0),
        partial(PositionDependentULA, G=torch.ones_like, divergence=torch.zeros_like),
    )
]  # fmt: skip
GUIDED = [DPSStep(Ancestral(), SEEN), RePaint(Ancestral(), ENTRY, 3), RePaint(DDIM(), ENTRY, 1)]


each = partial(pytest.mark.parametrize, "transition", ids=lambda t: type(t).__name__)


@each([pytest.param(t, marks=[pytest.mark.slow] * (repr(t) in map(repr, DEAR))) for t in EVERY])
def test_every_transition(transition):
    """What the facts state, and that a step is exact on no data where they state none."""
    facts, found = transition.facts, check_transition(transition)
    exact = [
        name.removeprefix("one long step on ").removesuffix(", off")
        for name, value in found.items()
        if name.startswith("one long step") and value.value < 1e-9
    ]
    affine = any(name.startswith("one long step") for name in found)
    assert affine or facts.adaptive or facts.draws
    if affine and not isinstance(transition, Ancestral):
        assert (POINT in exact) == (facts.exact == POINT)
    if affine and facts.order is not None:
        assert "variance at the end in fine steps, over that of p" in found
        assert f"order of the {'law' if facts.draws else 'path'}" in found


@each([*GUIDED, *SPARING])
def test_the_conduct_of_those_that_lead_to_another_law(transition):
    """And of those of which a few were enough."""
    cases = CASES if transition in SPARING else CASES[:3]  # observations are of two dimensions
    conduct(Report(), transition, transition.facts, cases)


def test_every_transition_has_facts():
    classes = {v for v in vars(transitions).values() if isinstance(v, type)}
    assert classes == {type(transition) for transition in EVERY}
    assert classes == {type(transition) for transition in SHOWN}
    assert all(facts_of(t) is t.facts or facts_of(t) == t.facts for t in EVERY + GUIDED)
    assert facts_of(lambda *a, **k: a[0]) == UNKNOWN


def test_an_adaptive_flow_held_to_one_step():
    errors = [_path(AdaptiveFlow(1e6, 1e6), n)[0] for n in (12, 24)]  # each interval in one step
    assert float(order(errors)) > AdaptiveFlow().facts.order - 0.3, errors
    assert _path(AdaptiveFlow(1e-10, 1e-10), 1)[0] < 1e-8


@each([*EVERY, *GUIDED])
def test_wrong_shapes_are_refused(transition, as_user):
    """Of a score, which is never broadcast, and of times, which are one for all samples."""
    t, s = torch.tensor(0.6), torch.tensor(0.4)
    broken, exact = as_score(lambda x, t: -x[:, :1], "score", VP()), ExactScore(DATA, VP())
    with pytest.raises(ValueError, match="shape"):
        transition(torch.ones(3, 2), t, s, broken)
    with pytest.raises(ValueError, match="at one time"):
        transition(torch.zeros(2, 2), torch.tensor([0.5, 0.6]), s, exact)


BAD = {
    ReverseSDE: {"eta": [-0.1, math.inf], "method": ["milstein"]},
    DDIM: {"eta": [1.2]}, UniPC: {"order": [0, 4]}, DPMSolver: {"order": [4]},
    ExponentialAB: {"order": [5], "predicts": ["v"]}, ProbabilityFlow: {"order": [0, 3]},
    AdaptiveFlow: {"rtol": [-1.0, math.nan], "max_steps": [0]},
    PredictorCorrector: {"snr": [0.0], "n_steps": [0], "rule": ["batch"], "predictor": [DPMSolver()]},
    Churn: {"gamma": [-0.1], "r_min": [-1.0], "r_max": [-1.0], "order": [3]},
    Ancestral: {"variance": ["beta"], "n_probes": [0, 2]},  # probes are for the optimal one alone
    AnnealedLangevin: {"n_steps": [0], "relative_step": [0.0, 2.0, math.nan]},
}  # fmt: skip


@pytest.mark.parametrize("transition", BAD)
def test_bad_arguments(transition, as_user):
    for name, values in BAD[transition].items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                transition(**{name: value})


def test_the_page_shows_the_facts():
    page = Path(__file__).parents[2] / "docs" / "diffusion.md"
    assert table(SHOWN) in page.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------- wrong transitions


class Own:
    """Euler's step of dX = [f X − a g² s] dt + b g dW, from which the flow and the SDE follow."""

    def __init__(self, a=1.0, b=1.0, **changes):
        self.a, self.b, self.changes = a, b, changes

    def __call__(self, z, t, s, score, *, generator=None):
        if s is None:
            return self.changes.get("end", lambda z, x0: x0)(z, predict(score, z, t)[0])
        f, g2, h = float(score.schedule.f(t)), float(score.schedule.g2(t)), float(t - s)
        drift = self.changes.get("drift", lambda s: s)(score(z, t))
        if not math.isfinite(g2):
            raise ValueError("the SDE has no finite coefficients where alpha = 0")
        drift_power, noise_power = self.changes.get("powers", (2, 1))
        g = math.sqrt(max(g2, 0.0))
        out = z + h * (self.a * g**drift_power * drift - f * z)
        if not self.b:
            return out
        noise = self.changes.get("noise", randn_like)(z, generator)
        return out + self.b * g**noise_power * math.sqrt(max(h, 0.0)) * noise


FLOW = ReverseSDE(0.0, "euler").facts
WRONG = {
    "wrong sign": (Own(-1.0), None),
    "½ g² s, the drift of the flow": (Own(0.5), None),
    "left out": (Own(1.0, 0.0), None),
    "half the variance": (Own(1.0, math.sqrt(0.5)), None),
    "twice the variance": (Own(1.0, math.sqrt(2)), None),
    "2 g² s": (Own(2.0), None),
    "g s where g² s": (Own(powers=(1, 1)), None),
    "noise g² dW": (Own(powers=(2, 2)), None),
    "at the wrong end": (DDIM(), DDIM().facts._replace(order=2)),
    "β for β̃": (Ancestral("forward"), Ancestral().facts),
    "Tweedie": (Own(end=lambda z, x0: z), None),
    "coupled batch": (Own(drift=lambda s: s - 0.1 * s.mean(0)), None),
    "same noise for all": (Own(noise=lambda z, g: randn_like(z[:1], g).expand(z.shape)), None),
    "does not come from": (Own(noise=lambda z, g: torch.randn_like(z)), None),
    r"randn_like\(x, generator\)": (
        Own(noise=lambda z, g: torch.randn(z.shape, dtype=z.dtype, generator=g)), None,
    ),
    "changes the dtype": (Own(drift=lambda s: s.double()), None),
    "evaluated twice": (DDIM(), ProbabilityFlow(2).facts),
    "noise left out or drawn twice": (DDIM(), DDIM().facts._replace(draws=1)),
    "memory never used": (DDIM(), DDIM().facts._replace(memory=True)),
    "kept although": (DPMSolver(), DPMSolver().facts._replace(memory=False)),
    "unnoticed": (DDIM(), DDIM().facts._replace(divides_by_alpha=True)),
    "this one converges": (DDIM(0.5), DDIM(0.5).facts._replace(order=None, exact=None)),
    "pass facts= of order None": (AnnealedLangevin(1, 0.2).__call__, None),
}  # fmt: skip


def test_a_transition_of_ones_own_converges():
    found = check_transition(Own())
    assert found["order of the law on narrow data"].value > 0.75
    assert abs(found["variance at the end in fine steps, over that of p"].value - 1) < 0.02


@pytest.mark.parametrize(
    "likely",  # of sizes that are wrong alike, one for the drift and one for the noise
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("2 g² s", "twice the variance",
                                                                "left out", "noise g² dW")))
        for name in WRONG
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(likely):
    transition, facts = WRONG[likely]
    with pytest.raises(ConformanceError, match=likely):
        check_transition(transition, facts=facts)


def test_a_flow_of_ones_own():
    found = check_transition(Own(0.5, 0.0), facts=FLOW)
    assert abs(found["order of the path"].value - 1) < 0.25


@pytest.mark.parametrize("a", [-0.5, 1.0, 0.25])
def test_a_wrong_flow_is_named(a):
    likely = {-0.5: "wrong sign", 1.0: "g² s where ½", 0.25: "¼ g² s"}[a]
    with pytest.raises(ConformanceError, match=likely):
        check_transition(Own(a, 0.0), facts=FLOW)


@pytest.mark.usefixtures("as_user")
def test_what_is_no_transition_is_refused():
    for arguments, message in (((3,), "t must"), ((DDIM,), "DDIM")):
        with pytest.raises(ValueError, match=message):
            check_transition(*arguments)
    with pytest.raises(ValueError, match="facts"):
        check_transition(DDIM(), facts=3)
