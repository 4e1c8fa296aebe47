"""A field in the units of the data: what one noise level makes of it, against closed forms."""

import pytest
import torch
from support import close, every_schedule

from gradlogp import ExactScore, Gaussian, GaussianMixture, ScoreModel, blurred
from gradlogp.noise import AffineCoordinates, noise_range, perturb
from gradlogp.noise.schedules import VE, VP

MEAN = torch.tensor([300.0, -0.04, 7.0], dtype=torch.float64)
SCALE = torch.tensor([50.0, 0.002, 1.5], dtype=torch.float64)
CORRELATION = torch.tensor(
    [[1.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 1.0]], dtype=torch.float64
)
LAW = Gaussian(MEAN, SCALE[:, None] * CORRELATION * SCALE)


class InUnits(ExactScore):
    """The exact score of standardised data, with the coordinates that standardise them."""

    def __init__(self, schedule):
        self.shift, self.scale = MEAN + 0.3 * SCALE, SCALE * 1.1
        z_law = Gaussian(
            (MEAN - self.shift) / self.scale, LAW.cov / self.scale[:, None] / self.scale
        )
        super().__init__(z_law, schedule)
        self.coordinates = AffineCoordinates(self.shift, self.scale, torch.float64)


@every_schedule
@pytest.mark.parametrize("sigma", [None, 0.3, 2.0])
def test_it_is_the_law_of_the_data_blurred_in_their_own_units(schedule, sigma, generator):
    """x + σ scale ε: each column is blurred in its own units, by σ of its scale."""
    score = InUnits(schedule)
    level = noise_range(schedule)[0] if sigma is None else sigma
    exact = Gaussian(MEAN, LAW.cov + torch.diag((level * score.scale) ** 2))
    field = blurred(score, sigma)
    x = MEAN + SCALE * torch.randn(6, 3, generator=generator)
    torch.testing.assert_close(field.score(x), exact.score(x), rtol=1e-7, atol=1e-9)
    close(field.log_prob(x), exact.log_prob(x), 1e-8)
    gradient = torch.func.grad(lambda y: field.log_prob(y).sum())(x)
    torch.testing.assert_close(field.score(x), gradient, rtol=1e-9, atol=1e-12)
    wrong = Gaussian(MEAN, LAW.cov + level**2 * torch.eye(3))  # blurred in units of x itself
    assert (field.score(x) - wrong.score(x)).abs().max() > 1e-3


def test_levels_that_the_schedule_does_not_reach_are_refused():
    score = InUnits(VE(0.1, 5.0))
    for sigma in (0.0999, 5.001):
        with pytest.raises(
            ValueError, match=r"outside the noise levels of the schedule, 0\.1 to 5"
        ):
            blurred(score, sigma)
    for sigma in (0.1, 5.0):
        blurred(score, sigma)


def test_a_score_without_a_density_says_so(generator):
    class Network(torch.nn.Module):
        def forward(self, z, c):
            return -z

    field = blurred(ScoreModel(Network(), VP(), event_shape=(3,)))
    x = torch.randn(4, 3, generator=generator)
    assert field.score(x).shape == (4, 3)
    with pytest.raises(ValueError, match=r"ScoreModel.* has no log-density, which Metropolis"):
        field.log_prob(x)


def test_a_model_in_float32_answers_in_the_dtype_of_the_data(generator):
    """Points 1e7 ± 1 in float64: what the model sees of them has been centred first."""
    x = 1e7 + torch.randn(5, 2, generator=generator)
    model = ScoreModel(torch.nn.Identity(), VP(), event_shape=(2,)).float()

    class Network(torch.nn.Module):
        def forward(self, z, c):
            return 0 * z

    model.network, model.predicts = Network(), "v"  # the score of N(0, 1) in z
    model.coordinates = AffineCoordinates(torch.full((2,), 1e7), torch.ones(2), torch.float64)
    field, level = blurred(model, 0.5), 1.25
    assert field.score(x).dtype == torch.float64
    torch.testing.assert_close(field.score(x), -(x - 1e7) / level, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------- perturb

N = 40_000
BOUND = 4.5  # standard errors


@every_schedule
@pytest.mark.parametrize("each", [False, True], ids=["()", "(B,)"])
def test_perturbed_data_have_the_law_of_their_level(schedule, each, generator):
    score = InUnits(schedule)
    t = torch.tensor(0.3, dtype=torch.float64)
    x0 = LAW.sample(N, generator=generator)
    z = perturb(score, x0, t.expand(N) if each else t, generator=generator)
    law = score.law(t)
    centred = z - law.mean
    mean_error = (law.cov.diagonal() / N).sqrt()
    assert (centred.mean(0) / mean_error).abs().max() < BOUND
    found = centred.mT @ centred / N
    d = law.cov.diagonal()
    cov_error = ((d[:, None] * d + law.cov**2) / N).sqrt()  # of a product of two normals
    assert ((found - law.cov) / cov_error).abs().max() < BOUND
    wrong = score.law(torch.tensor(0.5, dtype=torch.float64))  # negative control
    assert ((found - wrong.cov) / cov_error).abs().max() > BOUND


def test_perturbing_is_its_formula_sample_by_sample(generator):
    """z_t = α_t z_0 + σ_t ε with the time of each sample, and the same ε for the same generator."""
    score, t = InUnits(VP()), torch.tensor([0.1, 0.5, 0.9])
    x0 = LAW.sample(3, generator=generator)
    state = generator.get_state()
    z = perturb(score, x0, t, generator=generator)
    eps = torch.randn(3, 3, generator=generator.set_state(state))
    alpha, sigma = (v[:, None] for v in VP()(t))
    close(z, alpha * (x0 - score.shift) / score.scale + sigma * eps, 1e-12)


@pytest.mark.usefixtures("as_user")
def test_what_cannot_be_perturbed_is_refused():
    score = ExactScore(GaussianMixture([1.0], [[0.0, 0.0]]), VP())
    t = torch.tensor(0.5)
    for x0, match in (
        (torch.zeros(0, 2), "x0 is empty"),
        (torch.full((2, 2), torch.nan), "2 of 2 rows that are not finite"),
        (torch.zeros(2), r"x0 must have shape"),
    ):
        with pytest.raises(ValueError, match=match):
            perturb(score, x0, t)
    with pytest.raises(ValueError, match=r"must have shape \(\) or \(2,\)"):
        perturb(score, torch.zeros(2, 2), torch.ones(3))
