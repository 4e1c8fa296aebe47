"""Dimension, tangents, curvature and projections from exact scores of known manifolds."""

import math

import pytest
import torch
from support import close, seeded

from gradlogp import Empirical, ExactScore, Gaussian, schedules
from gradlogp import geometry as manifold
from gradlogp.core import Injected, Streams
from gradlogp.distributions.analytic.manifolds import AffineSubspace, UniformSphere, VonMisesCircle
from gradlogp.distributions.analytic.products import Embedded, Product

ESTIMATORS = ["normal_rank", "norm", "divergence", "flipd"]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def turned(law, D, seed=0):
    """A law in a subspace of R^D that is not a coordinate subspace."""
    A = torch.randn(D, law.event_shape[0], generator=torch.Generator().manual_seed(seed))
    return Embedded(law, torch.linalg.qr(A.double())[0])


LAWS = {  # a law on a manifold of dimension k, and k
    "circle in 2": lambda: (UniformSphere(2, 1.5), 1),
    "circle in 100": lambda: (turned(VonMisesCircle(1.0, 2.0), 100), 1),
    "sphere in 5": lambda: (UniformSphere(5), 4),
    "sphere in 10": lambda: (turned(UniformSphere(3), 10), 2),
    "sphere in 60": lambda: (turned(UniformSphere(21, 3.0), 60), 20),
    "torus in 8": lambda: (turned(Product([UniformSphere(2), VonMisesCircle(0.7)]), 8), 2),
    "torus in 30": lambda: (turned(Product([VonMisesCircle(1.0, 1.0)] * 5), 30), 5),
    "plane in 6": lambda: (AffineSubspace(torch.eye(6)[:, :3] + 0.1), 3),
    "plane in 100": lambda: (turned(Gaussian(torch.zeros(12)), 100), 12),
    "points in 3": lambda: (Gaussian(torch.ones(3), 0.0), 0),
}


# ---------------------------------------------------------------------------- dimension


@every_estimator
@pytest.mark.parametrize("name", LAWS)
def test_dimension(name, estimator, generator):
    law, k = LAWS[name]()
    sigma, n = 0.01, 3
    x = law.sample(n, generator=generator).double()
    D = x.shape[1]
    stack = {"stack": 64} if estimator in ESTIMATORS[:2] else {}
    found = manifold.intrinsic_dimension(
        law.noised(1.0, sigma).score, x, sigma, estimator=estimator, generator=generator, **stack
    )
    assert found.value.shape == found.standard_error.shape == found.full.shape == (n,)
    assert not found.full.any() or D - k < 0.6
    if estimator == "normal_rank":
        assert (found.value == k).all()
        assert (found.standard_error == 0).all()
    elif estimator == "norm":
        # with the control variate the variance of one perturbation is 2 k (D − k)/D
        expected = math.sqrt(2 * k * (D - k) / D / max(64, 8 * D))
        close(found.standard_error, torch.full((n,), expected), 0.5 * expected + 0.02)
        assert ((found.value - k).abs() <= 4.5 * found.standard_error + 0.02).all()
    else:
        assert (found.standard_error == 0).all()
        close(found.value, torch.full((n,), float(k)), 0.02)
    one_less = (found.value - (k + 1)).abs() <= 4.5 * found.standard_error + 0.02
    assert not one_less.any() or estimator == "norm"


def test_dimension_exact_forms(generator):
    """On a plane the three formulas are known at every σ; also at noised points, where FLIPD is off."""
    cov, sigma = torch.tensor([0.5, 2.0, 1.0]), 0.7
    law = Embedded(Gaussian(torch.zeros(3), cov), 5)
    score = law.noised(1.0, sigma).score
    x = law.sample(4, generator=generator)
    x = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    x = x.double()
    k = (cov / (cov + sigma**2)).sum()
    dimension = lambda estimator, **options: manifold.intrinsic_dimension(
        score, x, sigma, estimator=estimator, generator=generator, **options
    )
    close(dimension("divergence").value, k.expand(4), 1e-12)
    close(dimension("flipd").value, k + sigma**2 * score(x).square().sum(1), 1e-12)
    found = dimension("norm", n_perturbations=2000)
    expected = 5 - sigma**2 * (score(x).square().sum(1) + sigma**2 * (
        2 / sigma**4 + (1 / (cov + sigma**2)).square().sum()
    ))  # E‖s(x + σz)‖² = ‖s(x)‖² + σ² ‖∇s‖²  # fmt: skip
    assert ((found.value - expected).abs() <= 4.5 * found.standard_error).all()
    assert found.standard_error.max() < 0.2


WIDTHS = torch.tensor([0.24, 0.72, 0.96, 2.4], dtype=torch.float64)


def axes(radii):
    """The points ± √D r_i e_i, which have mean 0 and the covariance diag(r²)."""
    points = len(radii) ** 0.5 * torch.diag(radii)
    return torch.cat([points, -points])


@every_estimator
@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_what_a_width_counts_as(estimator, sigma):
    """The formulas for a Gaussian of widths τ, without chance: points and noise have their moments."""
    t2, b2, D = WIDTHS.square(), sigma**2, len(WIDTHS)
    score = Gaussian(torch.zeros(D, dtype=torch.float64), t2).noised(1.0, sigma).score
    x, options = axes(WIDTHS), {}
    if estimator in ESTIMATORS[:2]:
        # each twice, one for either half; ‖z‖² varies, and its mean is D in each
        one = torch.ones(D, dtype=torch.float64)
        z = torch.cat([axes(1.5**0.5 * one), axes(0.5**0.5 * one)]).repeat_interleave(2, 0)
        noise = Injected(*z[:, None].expand(-1, len(x), -1))
        options = {"n_perturbations": len(z), "generator": noise}
    found = manifold.intrinsic_dimension(score, x, sigma, estimator=estimator, **options).value
    once = (t2 / (t2 + b2)).sum()
    twice = (t2 * (t2 + 2 * b2) / (t2 + b2) ** 2).sum()
    assert twice - once > 0.3
    if estimator == "normal_rank":
        eigenvalues = b2 * (x.square() + b2) / (t2 + b2) ** 2
        close(eigenvalues.mean(0), b2 / (t2 + b2), 1e-12)
        threshold = 0.5 * (1 - (D / len(z)) ** 0.5) ** 2
        assert torch.equal(found, (eigenvalues < threshold).sum(1).to(found))
        assert len(found.unique()) > 1  # the coordinate counts
    else:
        close(found.mean(), twice if estimator == "flipd" else once, 1e-12)


@pytest.mark.parametrize("estimator", ["norm", "divergence", "flipd"])
def test_standard_errors(estimator, generator):
    """Over points of a sphere, where all are alike, the errors are as large as they say."""
    law, sigma, n = turned(UniformSphere(4), 9), 0.01, 400
    x = law.sample(1, generator=generator).expand(n, -1).double()
    options = {"n_perturbations": 40} if estimator == "norm" else {"n_probes": 8}
    found = manifold.intrinsic_dimension(
        law.noised(1.0, sigma).score, x, sigma, estimator=estimator, generator=generator, **options
    )
    exact = manifold.intrinsic_dimension(
        law.noised(1.0, sigma).score, x[:1], sigma, estimator="divergence"
    )
    spread = found.value.std()
    assert 0.85 < float(found.standard_error.square().mean().sqrt() / spread) < 1.15
    bias = float(found.value.mean() - exact.value)
    assert abs(bias) < 4.5 * float(spread) / n**0.5 + 1e-3
    assert found.standard_error.min() > 0


def test_a_direction_is_tangent_or_normal_by_its_width(generator):
    """A Gaussian of widths 1, 1 and τ: the last counts from τ ≳ 1.5 σ on."""
    for tau, expected in ((0.003, 2), (0.3, 3)):
        law = Gaussian(torch.zeros(3), [1.0, 1.0, tau**2])
        x = law.sample(6, generator=generator)
        found = manifold.intrinsic_dimension(
            law.noised(1.0, 0.03).score, x, 0.03, generator=generator
        )
        assert (found.value == expected).all()
        assert (found.full == (expected == 3)).all()


def test_a_rank_in_doubt_has_an_error(generator):
    """A direction as wide as the noise is counted or not, by chance; far from it there is no error."""
    for tau, doubtful in ((0.03, True), (0.1, False)):
        law = Gaussian(torch.zeros(3), [1.0, 1.0, tau**2])
        found = manifold.intrinsic_dimension(
            law.noised(1.0, 0.03).score, torch.zeros(200, 3), 0.03, generator=generator
        )
        assert bool((found.standard_error > 0).any()) == doubtful
        if doubtful:  # the jackknife of a count is large on the safe side
            ratio = found.standard_error.square().mean().sqrt() / found.value.std()
            assert 0.8 < float(ratio) < 4


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
def test_rows_are_alone_and_reproducible(estimator):
    """The estimate at a point depends neither on its batch-mates nor on how draws are stacked."""
    law = UniformSphere(3)
    score, x = law.noised(1.0, 0.1).score, law.sample(4, generator=seeded())
    dimension = lambda x, g, **options: manifold.intrinsic_dimension(
        score, x, 0.1, estimator=estimator, generator=g, n_perturbations=50, **options
    )
    whole = dimension(x, Streams(7, 0, 4, 4))
    part = dimension(x[2:], Streams(7, 2, 4, 4))
    stacked = dimension(x, Streams(7, 0, 4, 4), stack=16)
    for value, error, _ in (part, stacked):
        close(value[-2:], whole.value[-2:], 1e-12)
        close(error[-2:], whole.standard_error[-2:], 1e-10)


def test_one_sigma_a_sample_and_images(generator):
    sigma = torch.tensor([0.01, 0.02, 0.05])
    law = Embedded(UniformSphere(3), 12)
    x = law.sample(3, generator=generator).double()
    score = law.noised(1.0, sigma).score
    image = lambda y: score(y.flatten(1)).reshape(y.shape)
    for estimator in ESTIMATORS:
        found = manifold.intrinsic_dimension(
            image, x.reshape(3, 3, 2, 2), sigma, estimator=estimator, generator=generator
        )
        assert ((found.value - 2).abs() < 0.05 + 4.5 * found.standard_error).all()
    split = manifold.tangent_normal_split(image, x.reshape(3, 3, 2, 2), sigma)
    assert split.normal.shape == (3, 3, 2, 2)


# ---------------------------------------------------------------------------- choice of σ


def test_recommended_sigma_on_points_of_a_circle():
    """Between the gaps of 2000 points and the radius; the ends read 0."""
    angle = torch.arange(2000) * (2 * math.pi / 2000)
    data = Empirical(torch.stack([angle.cos(), angle.sin()], 1))
    found = manifold.recommend_sigma(
        lambda b: data.noised(1.0, b).score, data.data[::200], torch.logspace(-5, 1.5, 27)
    )
    gap = 2 * math.pi / 2000
    assert gap / 4 < found.low < 2 * gap
    assert 0.3 < found.high < 1.0
    close(found.dimension.value, 1.0, 0.05)
    assert found.values[0] < 0.01
    assert found.values[-1] < 0.01
    with pytest.raises(ValueError, match="no three consecutive noise levels"):
        manifold.recommend_sigma(
            lambda b: data.noised(1.0, b).score, data.data[:5], torch.logspace(0.5, 1.5, 8)
        )


def test_no_sigma_for_data_that_fill_the_space(generator):
    law = Gaussian(torch.zeros(3))
    x = law.sample(20, generator=generator)
    with pytest.raises(ValueError, match=r"between 0 and 3 .*0\.001: 3\.00"):
        manifold.recommend_sigma(lambda b: law.noised(1.0, b).score, x, torch.logspace(-3, 1, 10))


# ---------------------------------------------------------------------------- tangents, curvature


@pytest.mark.parametrize("method", ["jacobian", "perturbations"])
def test_tangent_space_of_a_plane_and_a_sphere(method, generator):
    V = torch.randn(7, 3, generator=generator)
    plane, sphere = AffineSubspace(V), turned(UniformSphere(3, 2.0), 6)
    x = plane.sample(4, generator=generator)
    options = {} if method == "jacobian" else {"generator": generator, "stack": 32}
    space = manifold.tangent_space(
        plane.noised(1.0, 0.01).score, x, 0.01, method=method, **options
    )
    assert (space.dimension == 3).all()
    close(space.directions.mT @ space.directions, torch.eye(7).expand(4, 7, 7), 1e-10)
    U = torch.linalg.qr(V)[0]
    v = torch.randn(4, 7, generator=generator)
    close(space.tangent_part(v), v @ U @ U.mT, 1e-6 if method == "jacobian" else 0.02)
    assert space.spectrum[:, :3].abs().max() < 0.01
    assert space.spectrum[:, 3:].min() > 0.3
    if method == "jacobian":
        close(space.spectrum[:, 3:], torch.ones(4, 4), 1e-9)
    x = sphere.sample(4, generator=generator).double()
    space = manifold.tangent_space(
        sphere.noised(1.0, 0.01).score, x, 0.01, method=method, **options
    )
    assert (space.dimension == 2).all()
    assert space.tangent_part(x).norm(dim=1).max() < 0.05


def test_split_on_the_circle(generator):
    """Tangent −(k₀/r) sin θ and normal −1/(2r), both up to O(σ²)."""
    r, k_0, sigma = 0.8, 1.5, 0.01
    law = VonMisesCircle(r, k_0)
    x = law.sample(6, generator=generator).double()
    x = r * x / x.norm(dim=1, keepdim=True)
    score = law.noised(1.0, sigma).score
    split = manifold.tangent_normal_split(score, x, sigma)
    close(split.tangent + split.normal, score(x), 1e-12)
    turn = torch.stack([-x[:, 1], x[:, 0]], 1) / r
    expected = -(k_0 / r) * (x[:, 1:] / r) * turn
    close(split.tangent, expected, 1e-3)
    close(split.normal, -x / (2 * r * r), 1e-3)
    curvature = manifold.mean_curvature(score, x, sigma, dimension=1)
    close(curvature.normal_score, split.normal, 1e-12)
    close(curvature.vector, -x / (r * r), 2e-3)
    off = manifold.tangent_normal_split(score, 1.1 * x, sigma, 1)
    close((off.normal * x).sum(1) / r * sigma**2, torch.full((6,), -0.1 * r), 1e-3)
    assert off.tangent.norm(dim=1).max() < 3  # geometry is stronger by 1/σ²


# ---------------------------------------------------------------------------- projection


def test_projection(generator):
    """One step ends O(σ²) from the nearest point; normal steps do not drift to the mode."""
    law, sigma = VonMisesCircle(1.0, 3.0), 0.05
    angle = torch.tensor([0.3, 1.5, 2.8])
    y = torch.stack([angle.cos(), angle.sin()], 1)
    x = y * torch.tensor([[1.1], [0.9], [1.05]])
    score = law.noised(1.0, sigma).score
    once = manifold.project(score, x, sigma)
    assert (once.x - y).norm(dim=1).max() < 5 * sigma**2
    close(once.last_step, (once.x - x).norm(dim=1), 1e-12)
    angle_of = lambda x: torch.atan2(x[:, 1], x[:, 0])
    drifted = manifold.project(score, x, sigma, n_steps=40)
    straight = manifold.project(score, x, sigma, n_steps=25, dimension=1)
    assert (angle_of(drifted.x) - angle)[1].abs() > 0.2
    assert (angle_of(straight.x) - angle).abs().max() < 0.01
    assert straight.last_step.max() < 1e-8
    # where the normal part vanishes: half the mean curvature times σ² inside
    close(straight.x.norm(dim=1), torch.full((3,), 1 - sigma**2 / 2), 2e-4)


def test_projection_on_a_plane_is_exact(generator):
    law = Embedded(Gaussian(torch.zeros(2), 1e6), torch.eye(5)[:, [1, 3]])
    x = torch.randn(4, 5, generator=generator)
    found = manifold.project(law.noised(1.0, 0.1).score, x, 0.1)
    close(found.x, x * torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]), 1e-6)


def test_interpolation_is_the_geodesic():
    law, sigma = UniformSphere(3, 2.0), 0.02
    a = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    b = torch.tensor([[0.0, 2.0, 0.0], [0.0, -1.0, 3.0**0.5]])
    curve = manifold.interpolate(law.noised(1.0, sigma).score, a, b, sigma, n_bisections=3)
    assert curve.shape == (9, 2, 3)
    assert torch.equal(curve[0], a)
    assert torch.equal(curve[-1], b)
    u = torch.linspace(0, 1, 9).reshape(-1, 1, 1)
    angle = torch.acos((a * b).sum(1) / 4).reshape(1, -1, 1)
    geodesic = (a * ((1 - u) * angle).sin() + b * (u * angle).sin()) / angle.sin()
    close(curve, geodesic, 1e-3)
    assert (a + 0.5 * (b - a) - curve[4]).norm(dim=1).min() > 0.5  # the chord is elsewhere


# ---------------------------------------------------------------------------- refusals, claims


def test_bad_input(as_user, generator):
    law = UniformSphere(3)
    score, x = law.noised(1.0, 0.1).score, law.sample(4, generator=generator)
    dimension, space = manifold.intrinsic_dimension, manifold.tangent_space
    choose = lambda sigmas: manifold.recommend_sigma(lambda b: law.noised(1.0, b).score, x, sigmas)
    for call, message in [
        (lambda: dimension(score, x, 0.0), "sigma must be positive"),
        (lambda: dimension(score, x, torch.ones(3)), r"sigma must have shape \(\) or \(4,\)"),
        (lambda: dimension(score, x, 0.1, n_perturbations=5), "do not span"),
        (lambda: dimension(score, x, 0.1, n_probes=5), "n_perturbations; n_probes"),
        (lambda: dimension(score, x, 0.1, estimator="flipd", n_perturbations=9), "takes n_probes"),
        (lambda: dimension(score, x, 0.1, estimator="flipd", n_probes=1), "no standard error"),
        (lambda: dimension(lambda x: x[:, :2], x, 0.1), "returned shape"),
        (lambda: dimension(score, x[:0], 0.1), "x is empty"),
        (lambda: space(score, x, 0.1, 3), "fills the space"),
        (lambda: space(score, x, 0.1, 4), "from 0 to 2"),
        (lambda: space(score, x, 0.1, n_perturbations=99), "belongs to"),
        (lambda: manifold.tangent_normal_split(score, x, 0.1, 3), "no normal directions"),
        (lambda: manifold.mean_curvature(score, x, 0.0), "sigma must be positive"),
        (lambda: manifold.project(score, x, 0.1, dimension=3), "no normal directions"),
        (lambda: manifold.interpolate(score, x, x[:2], 0.1), "one shape"),
        (lambda: choose([0.1, 0.2, 0.3]), "at least four"),
        (lambda: choose([0.0, 0.1, 0.2, 0.3]), "at least four"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------------------- a survey


def test_a_survey_of_a_circle():
    """Dimension 1 by every estimator, and curvature 1/r; of two points it says that they are few."""
    law = UniformSphere(2, 1.5)
    x = law.sample(12, generator=seeded(0))
    score = ExactScore(law, schedules.VE(0.01, 3.0))
    found = manifold.survey(score, x, 0.05, generator=seeded(1))
    assert found.k == 1
    assert found.sigma == 0.05
    assert found.low == pytest.approx(0.01)
    assert {round(mean.value) for mean, _, _ in found.dimensions.values()} == {1}
    assert found.curvature.value == pytest.approx(1 / 1.5, rel=1e-2)
    assert not found.flags
    close(manifold.data_field(score, 0.05).score(x), manifold.model_field(score, 0.05).score(x))
    few = manifold.survey(score, x[:2], 0.05, n_data=2, generator=seeded(1))
    assert few.flags
