"""Conversions of predictions: inverse to each other, finite at both ends; covariances from them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MIXTURE, close, every_schedule, z_score

from gradlogp import GaussianMixture
from gradlogp.noise import tweedie_product, tweedie_variance
from gradlogp.noise.predictions import KINDS, from_prediction, predict, to_prediction
from gradlogp.noise.schedules import VP, Rectified
from gradlogp.noise.tweedie import tweedie
from gradlogp.scores.adapt import as_score
from gradlogp.scores.exact import ExactScore


def pair(g, *shape):
    return torch.randn(*shape, generator=g), torch.randn(*shape, generator=g)


# ---------------------------------------------------------------------------- split and join


def test_join_is_the_table(generator):
    x0, eps = pair(generator, 4, 3)
    a, b = 0.8, 0.5
    close(to_prediction("score", x0, eps, a, b), -eps / b)
    close(to_prediction("epsilon", x0, eps, a, b), eps)
    close(to_prediction("x0", x0, eps, a, b), x0)
    close(to_prediction("v", x0, eps, a, b), a * eps - b * x0)
    close(to_prediction("velocity", x0, eps, a, b), eps - x0)


def test_v_and_velocity_are_velocities_of_their_paths(generator):
    """v = dx/dphi on x = cos(phi) x_0 + sin(phi) eps; velocity = dx/dt on x = (1 - t) x_0 + t eps."""
    x0, eps = pair(generator, 4, 3)
    h = 1e-4
    for kind, path in (
        ("v", lambda u: (math.cos(u), math.sin(u))),
        ("velocity", lambda u: (1 - u, u)),
    ):
        x = lambda u, path=path: path(u)[0] * x0 + path(u)[1] * eps
        close(
            to_prediction(kind, x0, eps, *path(0.6)),
            (x(0.6 + h) - x(0.6 - h)) / (2 * h),
            atol=1e-7,
        )


positive = st.floats(1e-3, 100.0)


@settings(deadline=None, derandomize=True, max_examples=75)
@given(kind=st.sampled_from(KINDS), alpha=positive, sigma=positive, seed=st.integers(0, 999))
def test_split_inverts_join(kind, alpha, sigma, seed):
    x0, eps = pair(torch.Generator().manual_seed(seed), 3, 2)
    x_t = alpha * x0 + sigma * eps
    tolerance = 1e-14 * (alpha + sigma) / min(alpha, sigma) * 10 + 1e-12
    value = to_prediction(kind, x0, eps, alpha, sigma)
    x0_hat, eps_hat = from_prediction(kind, value, x_t, alpha, sigma)
    close(x0_hat, x0, atol=tolerance)
    close(eps_hat, eps, atol=tolerance)
    # for any other value: it is a pair that lies on x_t, and join gives the value back
    other = value + 1.0
    x0_hat, eps_hat = from_prediction(kind, other, x_t, alpha, sigma)
    close(alpha * x0_hat + sigma * eps_hat, x_t, atol=tolerance * (1 + alpha + sigma))
    close(
        to_prediction(kind, x0_hat, eps_hat, alpha, sigma), other, rtol=1e-9, atol=1e3 * tolerance
    )


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_of_shape_b_agree_row_by_row(kind, generator):
    x0, eps = pair(generator, 3, 2, 2)
    alpha, sigma = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.1, 0.5, 0.9])
    x_t = alpha.reshape(3, 1, 1) * x0 + sigma.reshape(3, 1, 1) * eps
    value = to_prediction(kind, x0, eps, alpha, sigma)
    parts = from_prediction(kind, value, x_t, alpha, sigma)
    close(parts[0], x0)
    close(parts[1], eps)
    for i in range(3):
        row = slice(i, i + 1)
        close(to_prediction(kind, x0[row], eps[row], alpha[i], sigma[i]), value[row])
        one = from_prediction(kind, value[row], x_t[row], alpha[i], sigma[i])
        close(one[0], parts[0][row])
        close(one[1], parts[1][row])


@pytest.mark.parametrize("kind", ["v", "velocity"])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0), (0.0, 30.0)])
def test_v_and_velocity_determine_both_at_both_ends(kind, alpha, sigma, generator):
    x0, eps = pair(generator, 4, 3)
    value = to_prediction(kind, x0, eps, alpha, sigma)
    x0_hat, eps_hat = from_prediction(kind, value, alpha * x0 + sigma * eps, alpha, sigma)
    close(x0_hat, x0)
    close(eps_hat, eps)


def test_a_score_becomes_epsilon_without_passing_through_x0(generator):
    """At alpha = 1e-14 a detour over x_0 would lose every digit."""
    x0, eps = pair(generator, 4, 3)
    _, eps_hat = from_prediction("score", -eps / 0.7, 1e-14 * x0 + 0.7 * eps, 1e-14, 0.7)
    close(eps_hat, eps, rtol=1e-15, atol=0)


def test_the_noise_free_end_of_score_and_epsilon(generator):
    x0, eps = pair(generator, 4, 3)
    close(from_prediction("epsilon", eps, x0, 1.0, 0.0)[0], x0)
    close(from_prediction("score", eps, x0, 1.0, 0.0), (x0, torch.zeros(4, 3)))
    close(from_prediction("x0", x0, eps, 0.0, 1.0), (x0, eps))


@pytest.mark.usefixtures("as_user")
def test_refuses_what_is_not_determined():
    x = torch.ones(2, 3)
    ends = torch.tensor([0.5, 0.0])
    for kind in ("score", "epsilon"):
        for alpha in (0.0, ends):
            with pytest.raises(
                ValueError, match=rf"{kind} does not determine x_0 where alpha = 0"
            ):
                from_prediction(kind, x, x, alpha, 1.0)
    for sigma in (0.0, ends):
        with pytest.raises(ValueError, match=r"x0 does not determine epsilon.*sigma = 0"):
            from_prediction("x0", x, x, 1.0, sigma)
        with pytest.raises(ValueError, match="sigma = 0"):
            to_prediction("score", x, x, 1.0, sigma)


@pytest.mark.usefixtures("as_user")
def test_refuses_bad_arguments():
    x = torch.ones(2, 3)
    for call in (
        lambda: from_prediction("noise", x, x, 1.0, 1.0),
        lambda: to_prediction("noise", x, x, 1.0, 1.0),
    ):
        with pytest.raises(
            ValueError,
            match="kind must be 'score', 'epsilon', 'x0', 'v' or 'velocity', got 'noise'",
        ):
            call()
    with pytest.raises(ValueError, match=r"value returned shape \(2, 1\) for x of \(2, 3\)"):
        from_prediction("x0", x[:, :1], x, 1.0, 1.0)
    with pytest.raises(ValueError, match="x0 returned shape"):
        to_prediction("v", x[:1], x, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"alpha must have shape \(\) or \(2,\), got \(3,\)"):
        from_prediction("x0", x, x, torch.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"sigma must have shape \(\) or \(2,\), got \(2, 1\)"):
        to_prediction("x0", x, x, 1.0, torch.ones(2, 1))


# ---------------------------------------------------------------------------- predict


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9, 1.0])
def test_predict_is_the_posterior_mean(schedule, t, generator):
    law, t = MIXTURE, torch.tensor(t)
    alpha, sigma = schedule(t)
    x = alpha * law.sample(6, generator=generator) + sigma * torch.randn(6, 2, generator=generator)
    x0, eps = predict(ExactScore(law, schedule), x, t)
    mean = law.posterior_mean(x, alpha, sigma)
    close(x0, mean, atol=1e-14 * float(sigma / alpha.clamp(min=1e-6)) + 1e-10)
    close(eps, (x - alpha * mean) / sigma, rtol=1e-9)
    close(alpha * x0 + sigma * eps, x)


def test_predict_with_a_time_per_sample_up_to_where_alpha_is_zero(generator):
    law, schedule = MIXTURE, Rectified()
    x, t = torch.randn(3, 2, generator=generator), torch.tensor([0.2, 0.7, 1.0])
    x0, eps = predict(ExactScore(law, schedule), x, t)
    close(x0, law.posterior_mean(x, 1 - t, t))
    close(x0[2], law.weights @ law.means)
    close(eps[2], x[2])


def test_predict_evaluates_the_model_once(generator):
    calls = []

    def score(x, t):
        calls.append(t)
        return -x

    x, t = torch.randn(3, 2, generator=generator), torch.tensor(0.5)
    model = as_score(score, "score", VP())
    x0, eps = predict(model, x, t)
    assert len(calls) == 1
    alpha, sigma = VP()(t)
    close(eps, sigma * x)
    close(x0, (1 - sigma**2) * x / alpha)
    x0, eps = predict(model, x, torch.tensor(0.0))  # no noise: the limit, without an evaluation
    assert len(calls) == 1
    close(x0, x)
    close(eps, torch.zeros(3, 2))


@pytest.mark.usefixtures("as_user")
def test_predict_refuses_a_plain_score_where_alpha_is_zero():
    with pytest.raises(ValueError, match="does not determine x_0 where alpha = 0"):
        predict(
            as_score(lambda x, t: -x, "score", Rectified()), torch.ones(2, 3), torch.tensor(1.0)
        )
    with pytest.raises(ValueError, match=r"returned shape \(2, 1\) for x of \(2, 3\)"):
        predict(
            as_score(lambda x, t: x[:, :1], "score", VP()), torch.ones(2, 3), torch.tensor(0.5)
        )


# ---------------------------------------------------------------------------- Tweedie


def test_tweedie_with_coefficients_per_sample(generator):
    law, x = MIXTURE, torch.randn(3, 2, generator=generator)
    alpha, sigma = torch.tensor([1.0, 0.7, 0.3]), torch.tensor([0.4, 0.7, 1.5])
    mean, cov = tweedie(law.noised(alpha, sigma).score, x, alpha, sigma)
    close(mean, law.posterior_mean(x, alpha, sigma))
    close(cov, law.posterior_cov(x, alpha, sigma))


@pytest.mark.usefixtures("as_user")
def test_tweedie_refuses():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="alpha must be positive and finite, got 0"):
        tweedie(lambda y: -y, x, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"x_t must have shape \(B, \*event\)"):
        tweedie(lambda y: -y, torch.ones(3), 1.0, 1.0)
    with pytest.raises(ValueError, match="score returned shape"):
        tweedie(lambda y: y[:, :1], x, 1.0, 1.0)


SPREAD = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5, 0.1], [1.0, -1.0, 0.4]], dtype=torch.float64),
    torch.tensor([[0.5, 0.2, 0.3], [0.4, 0.1, 0.6]], dtype=torch.float64),
)


@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.8, 0.6), (1.0, 2.5), (torch.tensor([0.9, 0.5, 0.3, 1.0]), 0.7)]
)
def test_product_is_that_of_the_matrix(alpha, sigma, generator):
    x, v = torch.randn(2, 4, 3, generator=generator)
    alpha = alpha.double() if isinstance(alpha, torch.Tensor) else alpha
    C = SPREAD.posterior_cov(x, alpha, sigma)
    out = tweedie_product(SPREAD.noised(alpha, sigma).score, x, v, alpha, sigma)
    close(out, torch.einsum("bij,bj->bi", C, v), 1e-10)


def test_exact_variance_is_the_diagonal(generator):
    x = torch.randn(4, 3, generator=generator)
    found = tweedie_variance(SPREAD.noised(0.8, 0.6).score, x, 0.8, 0.6)
    C = SPREAD.posterior_cov(x, 0.8, 0.6)
    close(found.value, C.diagonal(dim1=1, dim2=2), 1e-10)
    assert float(found.standard_error.max()) == 0


def test_probed_variance_is_unbiased_and_knows_its_error(generator):
    x = torch.randn(1, 3, generator=generator)
    C = SPREAD.posterior_cov(x, 0.8, 0.6)[0]
    many = x.expand(4000, 3).clone()
    found = tweedie_variance(
        SPREAD.noised(0.8, 0.6).score, many, 0.8, 0.6, n_probes=4, generator=generator
    )
    for i in range(3):
        assert abs(z_score(found.value[:, i], C[i, i])) < 4
        wrong = C[i].sum()  # what leaving out the second sign would estimate
        assert abs(z_score(found.value[:, i], wrong)) > 10
        stated, seen = found.standard_error[:, i].square().mean(), found.value[:, i].var()
        assert abs(float(stated / seen) - 1) < 0.1


def test_one_probe_has_an_unknown_error(generator):
    x = torch.randn(2, 3, generator=generator)
    found = tweedie_variance(
        SPREAD.noised(0.8, 0.6).score, x, 0.8, 0.6, n_probes=1, generator=generator
    )
    assert found.standard_error.isnan().all()


def test_events_of_any_shape(generator):
    noised = SPREAD.noised(0.8, 0.6)
    score = lambda y: noised.score(y.flatten(1)).reshape(y.shape)
    x, v = torch.randn(2, 4, 3, 1, generator=generator)
    flat = tweedie_product(noised.score, x.flatten(1), v.flatten(1), 0.8, 0.6)
    close(tweedie_product(score, x, v, 0.8, 0.6), flat.reshape(x.shape), 1e-12)
    assert tweedie_variance(score, x, 0.8, 0.6).value.shape == x.shape


def test_refusals(as_user):
    x, score = torch.ones(2, 3), SPREAD.noised(0.8, 0.6).score
    with pytest.raises(ValueError, match="alpha = 0"):
        tweedie_product(score, x, x, 0.0, 1.0)
    with pytest.raises(ValueError, match="shape"):
        tweedie_product(score, x, x[:, :1], 0.8, 0.6)
