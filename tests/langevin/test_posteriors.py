"""Posteriors with reference answers: the models of the benchmark, and three small ones sampled."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import gradlogp as glp

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import posterior_models
from posterior_models import TEN, Reference, judge, load

normal = stats.norm.logpdf
half_cauchy, half_normal = stats.halfcauchy.logpdf, stats.halfnorm.logpdf


# The densities of the parameters themselves, row by row, from the statements of the models.


def kidiq(data, b1, b2, b3, sigma):
    rows = zip(data["kid_score"], data["mom_hs"], data["mom_iq"], strict=True)
    mean = [(y, b1 + b2 * hs + b3 * iq) for y, hs, iq in rows]
    return sum(normal(y, m, sigma) for y, m in mean) + half_cauchy(sigma, scale=2.5)


def logmesquite(data, b1, b2, b3, b4, b5, b6, sigma):
    keys = ("weight", "diam1", "diam2", "canopy_height", "total_height", "group")
    total = 0.0
    for w, d1, d2, canopy, height, group in zip(*(data[key] for key in keys), strict=True):
        mean = b1 + b2 * np.log(d1 * d2 * canopy) + b3 * np.log(d1 * d2)
        mean += b4 * np.log(d1 / d2) + b5 * np.log(height) + b6 * group
        total += normal(np.log(w), mean, sigma)
    return total


def sblrc(data, *theta):
    *beta, sigma = theta
    likelihood = normal(data["y"], np.asarray(data["X"]) @ beta, sigma).sum()
    return likelihood + normal(beta, 0, 10).sum() + half_normal(sigma, scale=10)


def arK(data, alpha, *theta):
    *beta, sigma = theta
    y, K = data["y"], data["K"]
    total = normal([alpha, *beta], 0, 10).sum() + half_cauchy(sigma, scale=2.5)
    for t in range(K, data["T"]):
        mean = alpha + sum(beta[k - 1] * y[t - k] for k in range(1, K + 1))
        total += normal(y[t], mean, sigma)
    return total


def kilpisjarvi(data, alpha, beta, sigma):
    likelihood = normal(data["y"], alpha + beta * np.asarray(data["x"]), sigma).sum()
    prior = normal(alpha, data["pmualpha"], data["psalpha"])
    return likelihood + prior + normal(beta, data["pmubeta"], data["psbeta"])


def schools_c(data, *theta):
    *effects, mu, tau = theta
    likelihood = normal(data["y"], effects, data["sigma"]).sum()
    prior = normal(mu, 0, 5) + half_cauchy(tau, scale=5)
    return likelihood + normal(effects, mu, tau).sum() + prior


def schools_nc(data, *theta):
    *noise, mu, tau = theta
    likelihood = normal(data["y"], mu + tau * np.asarray(noise), data["sigma"]).sum()
    prior = normal(mu, 0, 5) + half_cauchy(tau, scale=5)
    return likelihood + normal(noise).sum() + prior


def gp_pois(data, rho, alpha, *noise):
    x = np.asarray(data["x"])
    K = alpha**2 * np.exp(-(np.subtract.outer(x, x) ** 2) / (2 * rho**2)) + 1e-10 * np.eye(len(x))
    f = np.linalg.cholesky(K) @ noise
    prior = stats.gamma.logpdf(rho, 25, scale=1 / 4) + half_normal(alpha, scale=2)
    return stats.poisson.logpmf(data["k"], np.exp(f)).sum() + normal(noise).sum() + prior


def garch(data, mu, alpha0, alpha1, beta1):
    y, variance = data["y"], data["sigma1"] ** 2
    total = normal(y[0], mu, np.sqrt(variance))
    for before, now in pairwise(y):
        variance = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * variance
        total += normal(now, mu, np.sqrt(variance))
    return total


def diamonds(data, *theta):
    *b, intercept, sigma = theta
    X = np.asarray(data["X"])[:, 1:]
    mean = (X - X.mean(0)) @ b + intercept
    prior = normal(b).sum() + stats.t.logpdf(intercept, 3, 8, 10) + stats.t.logpdf(sigma, 3, 0, 10)
    return normal(data["Y"], mean, sigma).sum() + prior


POSITIVE = {"gp_pois": slice(0, 2)}
"""Which parameters are e to the power of a coordinate; the last one by default."""


def parameters(name, z):
    """The parameters of a point, by the map that the models state."""
    theta = z.copy()
    if name == "garch":
        alpha1, share = 1 / (1 + np.exp(-z[2])), 1 / (1 + np.exp(-z[3]))
        return np.array([z[0], np.exp(z[1]), alpha1, (1 - alpha1) * share])
    where = POSITIVE.get(name, slice(-1, None))
    theta[where] = np.exp(z[where])
    return theta


def log_jacobian(name, z, h=1e-6):
    columns = [
        (parameters(name, z + h * e) - parameters(name, z - h * e)) / (2 * h)
        for e in np.eye(len(z))
    ]
    return np.linalg.slogdet(np.array(columns))[1]


@pytest.mark.parametrize("model", TEN, ids=lambda model: model.__name__)
def test_model_is_the_stated_density_with_its_jacobian(model, generator):
    name = model.__name__
    data, reference = load(name)
    posterior = model(data)
    z = torch.rand(4, posterior.dim, generator=generator) * 4 - 2
    value = posterior.log_prob(z)
    exact = [
        globals()[name](data, *parameters(name, row)) + log_jacobian(name, row)
        for row in z.numpy()
    ]
    off = value - torch.tensor(exact)
    assert value.shape == (4,)
    assert float(off.max() - off.min()) < 1e-8 + 1e-14 * float(value.abs().max())
    torch.testing.assert_close(posterior.log_prob(z[2:3]), value[2:3])
    assert posterior.names == reference.names
    assert posterior.constrain(z).shape == (4, len(reference.names))


@pytest.mark.parametrize("name", ["kidiq", "gp_pois", "schools_nc", "garch"])
def test_constrained_draws_are_the_named_parameters(name, generator):
    data, _ = load(name)
    posterior = getattr(posterior_models, name)(data)
    z = torch.randn(1, posterior.dim, generator=generator)
    theta = parameters(name, z[0].numpy())
    if name == "schools_nc":
        theta[:8] = theta[8] + theta[9] * theta[:8]
    if name == "gp_pois":
        x = np.asarray(data["x"])
        squares = np.subtract.outer(x, x) ** 2
        K = theta[1] ** 2 * np.exp(-squares / (2 * theta[0] ** 2)) + 1e-10 * np.eye(len(x))
        theta[2:] = np.linalg.cholesky(K) @ theta[2:]
    torch.testing.assert_close(posterior.constrain(z)[0], torch.as_tensor(theta))


def test_a_run_is_judged_by_its_standard_errors(generator):
    reference = Reference(
        ("a", "b"),
        torch.tensor([1.0, 2.0]),
        torch.tensor([3.0, 4.0]),
        torch.tensor([0.03, 0.04]),
        10_000,
    )
    draws = reference.mean + reference.sd * torch.randn(4, 1000, 2, generator=generator)
    exact = judge(draws, reference)
    assert exact.right
    assert 3000 < exact.ess < 6000
    shift = 6 * torch.tensor([0.0, 4.0 * (1 / 4000 + 1 / 10_000) ** 0.5])
    assert not judge(draws + shift, reference).right
    wide = reference.mean + 1.15 * (draws - reference.mean)
    assert not judge(wide, reference).right
    stuck = draws.clone()
    stuck[0] = torch.nan
    assert not judge(stuck, reference).right


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("kidiq", (250, 200)),
        *(
            pytest.param(name, (1000, 1000), marks=slow)
            for name in ("kilpisjarvi", "kidiq", "sblrc")
        ),
    ],
)
def test_sample_is_right_and_says_so(name, size, generator):
    data, reference = load(name)
    posterior = getattr(posterior_models, name)(data)
    target = glp.as_target(log_prob=posterior.log_prob, event_shape=(posterior.dim,))
    chain = glp.sample(target, size[0], n_warmup=size[1], generator=generator)
    assert chain.draws.shape == (4, size[0], posterior.dim)
    draws = posterior.constrain(chain.draws.flatten(0, 1)).unflatten(0, (4, size[0]))
    judged = judge(draws, reference)
    assert judged.right, judged
    assert chain.verdict.ok, chain.verdict
