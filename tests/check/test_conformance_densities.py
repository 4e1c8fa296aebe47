"""Every density against the public checks, and densities that are wrong in a known way."""

import math

import pytest
import torch
from density_support import KNOWN, LAWS, SINGULAR, small_logistic
from support import COV, MEAN

import gradlogp as glp
from gradlogp import distributions
from gradlogp.check import ConformanceError, check_density
from gradlogp.check.conformance.report import off_by
from gradlogp.core import randn_like

NORMAL = torch.distributions.Normal(0.0, 1.0)
OTHERS = {
    "logistic": small_logistic(),
    "function": glp.as_target(log_prob=lambda x: -x.square().sum(1), event_shape=(2,)),
    "score alone": glp.as_target(score=torch.neg, event_shape=(2,)),
    "distribution": glp.as_target(distribution=torch.distributions.MultivariateNormal(MEAN, COV)),
    "parameters": glp.as_target(
        log_prob=lambda a, b: NORMAL.log_prob(a).sum(1) - b, vectorized=True,
        parameters={"a": (2,), "b": torch.distributions.constraints.positive},
    ),
    "observed": distributions.Observed(
        lambda x: -x.square().sum(1) / 2, lambda x, rows: -(x @ rows.mT).square(), torch.eye(2)
    ),
    "with holes": distributions.WithHoles(LAWS["mixture"]),
    "given y": LAWS["joint"].given(torch.tensor([[0.3]])),
    "of a class": LAWS["classes"].given(1),
}  # fmt: skip
EVERY = LAWS | {repr(p): p for p in KNOWN} | OTHERS


@pytest.fixture(autouse=True)
def coarse_integrals(monkeypatch):
    """Fewer nodes in two dimensions: held to the same tolerance, they are enough for these laws."""
    monkeypatch.setattr("gradlogp.check.conformance.densities.NODES", {1: 4001, 2: 250})


DEAR = {"torus", "padded", "ManyWell(dim=32)"}
"""Products and embeddings of laws that are checked themselves, and one of many dimensions."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in EVERY]
)
def test_every_density(name):
    if name == "observed":  # which says nothing of the shape of its points
        with pytest.raises(ValueError, match="shape of its points"):
            check_density(EVERY[name])
        return
    found = check_density(EVERY[name])
    assert name == "score alone" or "score over the gradient of log_prob" in found
    if name in LAWS:
        assert "Tweedie: (α E[x_0|x] − x) over s" in found
        assert "mean of N(x; α x_0, σ² I) over its density, point 2" in found
    if name in SINGULAR:
        law = SINGULAR[name]
        with pytest.raises(ValueError, match=r"\.noised\(alpha, sigma\)"):
            law.score(law.sample(2))


def test_deviations_beside_what_is_infinite():
    nan, inf = math.nan, math.inf
    for a, b, right in (
        ([1.0, inf], [2.0, inf], 0.5), ([nan, 1.0], [0.0, 1.0], inf), ([0.0, 1.0], [nan, 1.0], inf),
        ([inf, nan], [inf, nan], 0.0), ([3.0], [-inf], inf), ([4.0, 2.0], [4.0, 4.0], 0.5),
    ):  # fmt: skip
        assert off_by(torch.tensor(a), torch.tensor(b)) == right, (a, b)


def test_none_is_left_out():
    classes = {
        value
        for module in (distributions, distributions.analytic, distributions.targets)
        for value in vars(module).values()
        if isinstance(value, type) and hasattr(value, "score")
    }
    assert classes == {type(p) for p in EVERY.values()}


# ---------------------------------------------------------------------------- wrong densities


class Own:
    """N(m, S) of three dimensions as anybody writes it, with a part of the test's choice."""

    event_shape = torch.Size([3])
    mean = torch.tensor([0.7, -1.2, 0.4]).double()
    cov = torch.tensor([[1.5, 0.6, 0.2], [0.6, 0.8, -0.2], [0.2, -0.2, 0.9]]).double()

    def __init__(self, law=None, **changes):
        self.law = law or glp.Gaussian(self.mean, self.cov)
        self.changes = changes

    def _as(self, name, x, value):
        return self.changes[name](x, value) if name in self.changes else value

    def log_prob(self, x):
        return self._as("log_prob", x, self.law.log_prob(x))

    def score(self, x):
        return self._as("score", x, self.law.score(x))

    def sample(self, n, *, generator=None):
        z = self.changes.get("noise", randn_like)(torch.empty(n, 3).double(), generator)
        spread = self.changes.get("spread", torch.linalg.cholesky)(self.law.cov)
        return self.law.mean + z @ spread.mT

    def noised(self, alpha, sigma):
        given = self.changes.get("noised", lambda a, b: (a, b))(alpha, sigma)
        return Own(self.law.noised(*given), **self.changes)

    def posterior_mean(self, x, alpha, sigma):
        right = self.law.posterior_mean(x, alpha, sigma)
        s = self.law.noised(alpha, sigma).score(x)
        return self.changes.get("posterior", lambda *a: right)(x, s, alpha, sigma)


class Plane(glp.Gaussian):
    """The same in two dimensions, where the integral is by quadrature."""

    gone = 0.0

    def log_prob(self, x):
        return super().log_prob(x) + self.gone


WRONG = {
    "wrong sign: the gradient of the energy": {"score": lambda x, s: -s},
    "a factor 2 too many": {"score": lambda x, s: 2 * s},
    "a missing factor 2": {"score": lambda x, s: s / 2},
    "by d = 3": {"score": lambda x, s: s / 3},
    "left out of one of the two": {"score": lambda x, s: s + 1e-4 * x.roll(1, 1)},
    "coupled batch": {"log_prob": lambda x, p: p - p.mean().detach()},
    "changes the dtype": {"score": lambda x, s: s.double()},
    "sum over the event that is left out": {"log_prob": lambda x, p: p[:, None] + 0 * x},
    "one point's score for all": {"score": lambda x, s: s.sum(1)},
    "in-place": {"score": lambda x, s: x.add_(0.1) * 0 + s},
    "E s f": {"spread": lambda C: C},
    "does not come from": {"noise": lambda x, g: torch.randn_like(x)},
    "deviations are added": {"noised": lambda a, b: (a, b**0.9)},
    r"\(2π\)\^\{d/2\} too many": {
        "log_prob": lambda x, p: p + 1.5 * math.log(2 * math.pi)
    },
    "Tweedie.*wrong sign": {"posterior": lambda x, s, a, b: (x - b**2 * s) / a},
    "Tweedie.*σ for σ²": {"posterior": lambda x, s, a, b: (x + b * s) / a},
    "division by α² for α": {"posterior": lambda x, s, a, b: (x / a + b**2 * s) / a},
}  # fmt: skip


def test_a_density_of_ones_own():
    found = check_density(Own())
    assert len([name for name in found if name.startswith("covariance")]) == 6


@pytest.mark.parametrize("likely", WRONG)
def test_what_is_wrong_is_named(likely):
    with pytest.raises(ConformanceError, match=likely):
        check_density(Own(**WRONG[likely]))


def test_a_wrong_integral_is_named():
    law = Plane(MEAN, COV)
    check_density(law)
    for gone, likely in (
        (math.log(2 * math.pi), r"\(2π\)\^\{d/2\} left out"),
        (-math.log(2 * math.pi), r"\(2π\)\^\{d/2\} too many"),
        (math.log(2 * math.pi) / 2, "each dimension but one"), (0.3, "det S for √det S"),
    ):  # fmt: skip
        law.gone = gone
        with pytest.raises(ConformanceError, match=likely):
            check_density(law)


def test_moments_that_are_wrong():
    law = Own()
    law.cov = law.cov.diag().sqrt().diag()
    with pytest.raises(ConformanceError, match="a standard deviation given where a variance"):
        check_density(law)
    law.mean = -law.mean
    with pytest.raises(ConformanceError, match=r"mean, coordinate 0.*wrong sign"):
        check_density(law)


@pytest.mark.usefixtures("as_user")
def test_what_is_no_density_is_refused():
    for wrong, message in (
        (3, "d must be a density"),
        (glp.as_target(score=torch.neg), "shape of"),
    ):
        with pytest.raises(ValueError, match=message):
            check_density(wrong)


# ---------------------------------------------------------------------------- float32

SINGLE = {
    "Gaussian": lambda: glp.Gaussian(torch.zeros(2), torch.eye(2)),
    "correlated": lambda: glp.Gaussian(MEAN.float(), COV.float()),
    "wide": lambda: glp.Gaussian(torch.zeros(3), 1e6 * torch.eye(3)),
    "mixture": lambda: glp.GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-2.0, 0.0], [1.0, 1.0]]), torch.tensor([0.5, 0.8])
    ),
    "data": lambda: glp.Empirical(torch.randn(20, 2, generator=torch.Generator().manual_seed(0))),
    "distribution": lambda: glp.as_target(
        distribution=torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    ),
}  # fmt: skip


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", SINGLE)
def test_a_law_in_float32_is_held_to_its_own_rounding(name):
    law = SINGLE[name]()
    assert check_density(law).eps == torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("off", [1.01, -1.0])
def test_a_wrong_posterior_in_float32_is_still_seen(off):
    class Wrong(glp.Gaussian):
        def posterior_mean(self, x_t, alpha, sigma):
            return (x_t + off * sigma**2 * self.noised(alpha, sigma).score(x_t)) / alpha

    with pytest.raises(ConformanceError, match="Tweedie"):
        check_density(Wrong(torch.zeros(2), torch.eye(2)))
