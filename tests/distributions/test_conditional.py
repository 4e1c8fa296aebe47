"""Joint laws given y, and classes: against numbers, densities of the joint law, and themselves."""

import pytest
import torch
from support import close, z_score

from gradlogp import ExactScore, Gaussian, GaussianMixture, evolve
from gradlogp.core import Analytic
from gradlogp.diffusion import ProbabilityFlow
from gradlogp.distributions import Classes, Joint
from gradlogp.noise.schedules import VE, VP

LAW = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-1.0, 0.5, 0.2], [1.0, -0.3, 0.4]], dtype=torch.float64),
    torch.tensor(
        [
            [[1.0, 0.3, 0.5], [0.3, 0.8, -0.2], [0.5, -0.2, 0.6]],
            [[0.5, -0.1, 0.2], [-0.1, 0.7, 0.3], [0.2, 0.3, 1.0]],
        ],
        dtype=torch.float64,
    ),
)
JOINT = Joint(LAW, 1)
Y = torch.tensor([[0.7]], dtype=torch.float64)
A, B = 0.8, 0.6
HERE = torch.tensor([[0.4, -0.9]], dtype=torch.float64)
PARTS: list[Gaussian | GaussianMixture] = [
    GaussianMixture([0.4, 0.6], torch.tensor([[-3.0, 0.0], [-1.0, 1.0]]).double(), [0.3, 0.2]),
    Gaussian(torch.tensor([2.0, -1.0]).double(), [[0.5, 0.2], [0.2, 0.4]]),
]
CLASSES = Classes(PARTS, [0.25, 0.75])
ROWS = torch.tensor([[0.7], [-1.3], [2.0], [0.0], [0.7]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0, 1])
conditions = pytest.mark.parametrize(
    ("law", "rows"), [(JOINT, ROWS), (CLASSES, LABELS)], ids=["joint", "classes"]
)


def test_the_numbers_at_one_place():
    """Worked out apart from this code, to the digits given."""
    given = JOINT.given(Y)
    noised = given.noised(A, B)
    close(noised.log_prob(HERE), torch.tensor([-2.356634254]), 1e-9)
    close(noised.score(HERE), torch.tensor([[0.60104421, 1.18442444]]), 1e-8)
    close(given.posterior_mean(HERE, A, B), torch.tensor([[0.77046989, -0.59200900]]), 1e-8)
    assert float((JOINT.noised(A, B).score(HERE) - noised.score(HERE)).abs().max()) > 0.1


def noised_joint(a, b):
    """The law of (α x + σ z, y): noise on x alone."""
    scale = torch.tensor([a, a, 1.0], dtype=torch.float64)
    noise = torch.diag(torch.tensor([b**2, b**2, 0.0], dtype=torch.float64))
    covs = scale.unsqueeze(1) * LAW.covs * scale + noise
    return GaussianMixture(LAW.weights, scale * LAW.means, covs)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.8, 0.6), (0.1, 2.0)])
def test_it_is_the_joint_over_the_marginal(a, b, generator):
    """log p(x_t | y) = log p(x_t, y) − log p(y), and its gradient that of the joint in x."""
    x, joint = 2 * torch.randn(5, 2, generator=generator), noised_joint(a, b)
    marginal = GaussianMixture(LAW.weights, LAW.means[:, 2:], LAW.covs[:, 2:, 2:])
    both = torch.cat([x, ROWS], 1)
    noised = JOINT.given(ROWS).noised(a, b)
    close(noised.log_prob(x), joint.log_prob(both) - marginal.log_prob(ROWS), 1e-11)
    close(noised.score(x), joint.score(both)[:, :2], 1e-10)


def test_a_linear_gaussian_posterior(generator):
    """θ ~ N(0, I), y = Aθ + N(0, R): C = (I + AᵀR⁻¹A)⁻¹, m = C AᵀR⁻¹ y."""
    design = torch.randn(2, 3, generator=generator)
    R = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64)
    left = torch.cat([torch.eye(3), design])
    cov = torch.cat([left, torch.cat([design.mT, design @ design.mT + R])], 1)
    y, x = torch.randn(4, 2, generator=generator), torch.randn(4, 3, generator=generator)
    C = torch.linalg.inv(torch.eye(3) + design.mT @ torch.linalg.solve(R, design))
    m = y @ torch.linalg.solve(R, design) @ C
    given = Joint(Gaussian(torch.zeros(5), cov), 2).given(y)
    expected = torch.stack([Gaussian(m[i], C).log_prob(x[i : i + 1]) for i in range(4)]).squeeze(1)
    close(given.log_prob(x), expected, 1e-10)
    close(given.score(x), (m - x) @ torch.linalg.inv(C), 1e-9)


def test_a_class_is_its_law(generator):
    x = 2 * torch.randn(6, 2, generator=generator)
    for c, part in enumerate(PARTS):
        for made in (c, torch.tensor([c]), torch.full((6,), c)):
            given = CLASSES.given(made)
            assert isinstance(given, Analytic)
            for noised, exact in ((given, part), (given.noised(A, B), part.noised(A, B))):
                close(noised.log_prob(x), exact.log_prob(x), 1e-11)
                close(noised.score(x), exact.score(x), 1e-10)
            close(given.posterior_mean(x, A, B), part.posterior_mean(x, A, B), 1e-10)
    shares = torch.tensor([0.25, 0.75]).log()
    each = torch.stack([part.log_prob(x) for part in PARTS], 1)
    close(CLASSES.log_prob(x), (each + shares).logsumexp(1), 1e-11)
    equal = Classes(PARTS)
    close(equal.log_prob(x), each.logsumexp(1) - torch.tensor(2.0).log(), 1e-11)


@conditions
def test_rows_are_one_at_a_time(law, rows, generator):
    """Each row may have its own level: α and σ `()` or one for each row."""
    x, given = torch.randn(5, 2, generator=generator), law.given(rows)
    a, b = torch.linspace(0.5, 1.0, 5), torch.linspace(0.2, 1.5, 5)
    mean, noised = given.posterior_mean(x, a, b), given.noised(a, b)
    for i in range(5):
        alone, part = law.given(rows[i : i + 1]), x[i : i + 1]
        close(given.log_prob(x)[i], alone.log_prob(part)[0], 1e-12)
        close(given.score(x)[i], alone.score(part)[0], 1e-12)
        close(noised.score(x)[i], alone.noised(a[i], b[i]).score(part)[0], 1e-11)
        close(mean[i], alone.posterior_mean(part, a[i], b[i])[0], 1e-11)
        close(given.rows(slice(i, i + 1)).score(part), alone.score(part), 1e-12)
    some = torch.tensor([3, 1])
    close(noised.rows(some).score(x[some]), noised.score(x)[some], 1e-12)
    one = law.given(rows[:1])
    assert one.rows(some) is one  # one for all
    for i in range(5):  # one condition at five levels
        close(one.noised(a, b).score(x)[i], one.noised(a[i], b[i]).score(x)[i], 1e-11)


@conditions
def test_draws_have_the_moments(law, rows, generator):
    """For one row, and for rows in turn: means by the gain, and covariances that do not depend on y."""
    n, row = 40_000, rows[1:2]
    one = law.given(row).sample(n, generator=generator)
    many = law.given(row.expand(n, *row.shape[1:])).sample(n, generator=generator)
    close(law.given(row).log_weights.exp().sum(1), torch.ones(1), 1e-12)
    given = law.given(row)
    w = given.log_weights.exp()[0]
    mean = (w.unsqueeze(1) * given.means[0]).sum(0)
    inner = given.basis @ torch.diag_embed(given.variances) @ given.basis.mT
    away = given.means[0] - mean
    cov = (w[:, None, None] * (inner + away.unsqueeze(2) * away.unsqueeze(1))).sum(0)
    for draws in (one, many):
        for i in (0, 1):
            assert abs(z_score(draws[:, i], mean[i])) < 4.5
            for j in (0, 1):
                product = (draws[:, i] - mean[i]) * (draws[:, j] - mean[j])
                assert abs(z_score(product, cov[i, j])) < 4.5
    assert abs(z_score(one[:, 0], float(law.mean[0]))) > 10  # not those of all


@conditions
@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 20.0)], ids=["VP", "VE"])
def test_an_exact_score_is_conditioned(law, rows, schedule, generator):
    """Samples of each row follow their own condition, in chunks of any size."""
    score, t = ExactScore(law, schedule), torch.tensor(0.4)
    x = torch.randn(5, 2, generator=generator)
    expected = law.given(rows).noised(*schedule(t)).score(x)
    close(score.given(rows)(x, t), expected, 1e-11)
    close(score(x, t), law.noised(*schedule(t)).score(x), 1e-11)
    with pytest.raises(ValueError, match="5 rows"):
        score.given(rows)(x[:3], t)
    n = 1500
    far = rows[:2].repeat(n, *[1] * (rows.ndim - 1))
    out = evolve(ProbabilityFlow(), score.given(far), 2 * n, generator=generator, chunk_size=1250)
    for i in (0, 1):
        alone = law.given(rows[i : i + 1])
        w = alone.log_weights.exp()[0]
        mean = (w.unsqueeze(1) * alone.means[0]).sum(0)
        part = out[i::2]
        error = part.std(0) / n**0.5
        assert bool(((part.mean(0) - mean).abs() < 4.5 * error + 0.02).all())


@pytest.mark.parametrize(
    "case",
    [
        lambda: Joint(LAW, 0),
        lambda: Joint(LAW, 3),
        lambda: JOINT.given(0),
        lambda: JOINT.given(torch.zeros(4, 2)),
        lambda: JOINT.given(torch.zeros(1)),
        lambda: JOINT.given(ROWS).score(torch.zeros(3, 2)),
        lambda: JOINT.given(ROWS).sample(3),
        lambda: Classes([]),
        lambda: Classes(PARTS, [1.0]),
        lambda: Classes([PARTS[0], Gaussian(torch.zeros(3), 1.0)]),
        lambda: CLASSES.given(2),
        lambda: CLASSES.given(-1),
        lambda: CLASSES.given(torch.tensor([0.0])),
        lambda: CLASSES.given(torch.tensor([[0]])),
        lambda: ExactScore(LAW, VP()).given(0),
    ],
)
def test_bad_input(case, as_user):
    with pytest.raises(ValueError):
        case()


def test_shares_sum_to_one(as_user):
    """Shares that do not would scale the density."""
    with pytest.raises(ValueError, match="sum"):
        Classes(PARTS, [0.5, 0.7])
