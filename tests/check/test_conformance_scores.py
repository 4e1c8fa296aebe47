"""Every noisy score against the public checks, and scores that are wrong in a known way."""

from typing import Any

import pytest
import torch
from density_support import LAWS
from support import SCHEDULES, every_schedule, seeded
from torch import nn

import gradlogp as glp
from gradlogp import scores
from gradlogp.check import ConformanceError, check_score
from gradlogp.noise.predictions import KINDS, to_prediction
from gradlogp.noise.schedules import VE, VP
from gradlogp.noise.score_base import ScoreWrapper
from gradlogp.scores.conditioned import ConditionedScore

LAW = LAWS["mixture"]
DATA = LAW.sample(8000, generator=seeded(1))


def perfect(kind, schedule):
    """A network that predicts what it should, by the law itself."""

    def network(z, t):
        a, b = schedule(t)
        x0 = LAW.posterior_mean(z, a, b)
        eps = -b.reshape(-1, *[1] * (z.ndim - 1)) * LAW.noised(a, b).score(z)
        return to_prediction(kind, x0, eps, a, b)

    return network


def model(condition=None, holes=False):
    network = glp.MLP(3, 16, 1, condition, holes=holes, generator=seeded())
    nn.init.normal_(network.outlet.weight, 0.0, 0.3, generator=seeded(1))
    made = glp.ScoreModel(network, VP())
    if condition is not None:
        made.condition.fit(torch.randn(50, *condition, generator=seeded(2)), 0.1)
    return made.requires_grad_(False)


EXACT: dict[str, Any] = {f"exact, {type(s).__name__}": glp.ExactScore(LAW, s) for s in SCHEDULES}
EXACT |= {
    f"function that returns {kind}": glp.as_score(perfect(kind, VP()), kind, VP())
    for kind in KINDS
}
EXACT |= {
    "log-density": glp.as_score(lambda z, t: LAW.noised(*VP()(t)).log_prob(z), "log_prob", VP()),
    "energy": glp.as_score(lambda z, t: -LAW.noised(*VP()(t)).log_prob(z), "energy", VP()),
    "foreign": scores.ForeignScore(perfect("v", VP()), VP(), "v", noise_input="time"),
    "rescheduled": glp.RescheduledScore(glp.ExactScore(LAW, VP()), VE(0.05, 8.0)),
    "guided by nothing": glp.GuidedScore(EXACT["exact, VP"], EXACT["exact, VP"], 2.0),
}
WITHOUT_DATA = {
    "empirical": glp.EmpiricalScore(DATA[:50], VP()),
    "model": model(),
    "model given": model((2,)).given(torch.tensor([[0.3, -1.0]])),
    "model for rows": model((2,)).given(torch.randn(4, 2, generator=seeded(3))),
    "model of any part": model(holes=True).given(torch.tensor([[0.3, torch.nan, -1.0]])),
    "joint given": glp.ExactScore(LAWS["joint"], VP()).given(torch.tensor([[0.2]])),
    "guided": glp.GuidedScore(EXACT["exact, VP"], glp.ExactScore(LAWS["Gaussian"], VP()), 0.7),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_score_of_a_known_law(name):
    found = check_score(EXACT[name], data=DATA)
    slopes = [value for key, value in found.items() if key.startswith(("slope", "−E[z·s]"))]
    assert len(slopes) > 4
    assert all(abs(v.value - 1) < 5 * v.standard_error for v in slopes)
    known = name.startswith(("exact", "rescheduled"))
    ladder = EXACT[name].schedule.times is not None
    assert ("∂ log p/∂t, off what the schedule says, over its parts" in found) == (
        known and not ladder
    )
    assert ("score over the gradient of log_prob" in found) == (
        known or name in ("log-density", "energy")
    )


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_every_other_score(name):
    assert "denoise: a time for each row, off one for all" in check_score(WITHOUT_DATA[name])


def test_none_is_left_out():
    classes = {v for v in vars(scores).values() if isinstance(v, type) and hasattr(v, "denoise")}
    seen = {type(score) for score in (*EXACT.values(), *WITHOUT_DATA.values())}
    assert classes == seen
    assert ConditionedScore in seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_schedule
def test_a_law_that_its_noise_does_not_change(schedule, dtype):
    """N(0, I) is stationary under VP, and log p_t(z) does not change where others turn back."""
    law = glp.Gaussian(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    found = check_score(glp.ExactScore(law, schedule))
    over = "∂ log p/∂t, off what the schedule says, over its parts"
    assert (over in found) == (schedule.times is None)


def test_a_wrong_schedule_in_float32_is_still_seen():
    class Known(WithDensity):
        schedule = VP(0.1, 14.0)

    law = glp.GaussianMixture(LAW.weights.float(), LAW.means.float(), LAW.covs.float())
    check_score(glp.ExactScore(law, VP()))
    with pytest.raises(ConformanceError, match=r"∂ log p/∂t.*schedule other than this score's"):
        check_score(Known(glp.ExactScore(law, VP())))


# ---------------------------------------------------------------------------- wrong scores


class Own(ScoreWrapper):
    """The exact score with a part of the test's choice."""

    def __init__(self, score, **changes):
        self.score, self.changes = score, changes
        self.law = changes.get("law", score.law)

    def _score(self, z, t):
        return self.changes.get("of", lambda s, z, a, b: s)(self.score(z, t), z, *self._level(t))

    def _denoise(self, z, t):
        if "denoise" in self.changes:
            a, b = self._level(t)
            return self.changes["denoise"](z, self.score(z, t), a, b)
        return super()._denoise(z, t)

    def _level(self, t):
        return (v.reshape(-1, 1) for v in self.schedule(t))

    def rows(self, index):
        return self


class WithDensity(Own):
    """The same with the log-density of the law."""

    def log_prob(self, z, t):
        return self.changes.get("density", self.score.log_prob)(z, t)


BASE = glp.ExactScore(LAW, VE(0.05, 8.0))
OTHER = glp.ExactScore(LAW, VP(0.1, 14.0))
NO_LAW = {"law": lambda t: None}
WRONG = {
    "wrong sign": ({"of": lambda s, z, a, b: -s} | NO_LAW, Own),
    "half as large": ({"of": lambda s, z, a, b: s / 2} | NO_LAW, Own),
    "twice as large": ({"of": lambda s, z, a, b: 2 * s} | NO_LAW, Own),
    "ε̂ in place of the score": ({"of": lambda s, z, a, b: b * s} | NO_LAW, Own),
    "a division by σ too many": ({"of": lambda s, z, a, b: s / b} | NO_LAW, Own),
    "by d = 3|a mean over d = 3": ({"of": lambda s, z, a, b: s / 3} | NO_LAW, Own),
    "a missing mean": ({"of": lambda s, z, a, b: s + 3 * a} | NO_LAW, Own),
    "Tweedie.*wrong sign": ({"denoise": lambda z, s, a, b: (z - b**2 * s) / a} | NO_LAW, Own),
    "Tweedie.*σ for σ²": ({"denoise": lambda z, s, a, b: (z + b * s) / a} | NO_LAW, Own),
    "Tweedie.*a factor 2 too many": (
        {"denoise": lambda z, s, a, b: (z + 2 * b**2 * s) / a} | NO_LAW, Own,
    ),
    "law at a different noise level": ({"law": lambda t: BASE.law(t / 2)}, Own),
    "gradient of the energy": ({"density": lambda z, t: -BASE.log_prob(z, t)} | NO_LAW, WithDensity),
    "coupled batch": ({"of": lambda s, z, a, b: s - 0.1 * s.mean(0)} | NO_LAW, Own),
    "changes the dtype": ({"of": lambda s, z, a, b: s.float()} | NO_LAW, Own),
    "in-place": ({"of": lambda s, z, a, b: z.add_(1e-9) * 0 + s} | NO_LAW, Own),
}  # fmt: skip


@pytest.mark.parametrize("likely", WRONG)
def test_what_is_wrong_is_named(likely):
    changes, made = WRONG[likely]
    with pytest.raises(ConformanceError, match=likely):
        check_score(made(BASE, **changes), data=DATA)


def test_a_score_read_with_another_schedule():
    """The exact score under VP(0.1, 14) taken for one under VP(0.1, 20)."""
    read = glp.as_score(OTHER, "score", VP())
    with pytest.raises(ConformanceError, match="a schedule other than this score's"):
        check_score(read, data=DATA)

    class Known(WithDensity):
        schedule = VP()

    with pytest.raises(ConformanceError, match=r"∂ log p/∂t.*schedule other than this score's"):
        check_score(Known(OTHER))


def test_a_score_is_refused_without_noise():
    class Lenient(Own):
        def __call__(self, z, t):
            return self._score(z, t.clamp(min=0.01))

    with pytest.raises(ConformanceError, match="a division by 0 that goes unnoticed"):
        check_score(Lenient(EXACT["exact, VP"], **NO_LAW))


def test_a_learned_score_is_calibrated_or_is_not():
    """Trained for a moment, it is; an untrained one says too little of the noise."""
    law = glp.Gaussian([0.0, 0.0], 0.5)
    x = law.sample(2000, generator=seeded(4)).float()
    trained, raw = (
        glp.ScoreModel(glp.MLP(2, 32, 1, generator=seeded()), VP(), "epsilon") for _ in range(2)
    )
    list(glp.fit(trained, x, steps=200, batch_size=256, learning_rate=1e-2, generator=seeded()))
    held_out = law.sample(2000, generator=seeded(5)).float()
    found = check_score(trained.requires_grad_(False), data=held_out)
    assert len(found) > 20
    with pytest.raises(ConformanceError, match="without information"):
        check_score(raw.requires_grad_(False), data=held_out)


@pytest.mark.usefixtures("as_user")
def test_what_is_no_score_is_refused():
    with pytest.raises(ValueError, match="s must be a noisy score"):
        check_score(torch.neg)
    with pytest.raises(ValueError, match="data"):
        check_score(BASE, data=torch.full((3, 3), torch.nan))
