"""Gaussian mixtures against the written-out formulas, differences and quadrature."""

import math

import pytest
import torch
from support import close, spd
from torch.func import grad, vmap

from gradlogp import tweedie
from gradlogp.core import Analytic
from gradlogp.distributions.analytic import Gaussian, GaussianMixture, mixture

KINDS = ("full", "diagonal", "each", "one")
CASES = [(D, kind) for D in range(1, 7) for kind in KINDS]
K = 3


def random_mixture(D, kind, g):
    """Return the law and its weights, means and covariance matrices, made without the library."""
    pi = 0.2 + torch.rand(K, generator=g)
    pi = pi / pi.sum()
    mu = 1.5 * torch.randn(K, D, generator=g)
    I = torch.eye(D)
    if kind == "full":
        covs = S = torch.stack([spd(D, g) for _ in range(K)])
    elif kind == "diagonal":
        covs = 0.3 + torch.rand(K, D, generator=g)
        S = torch.diag_embed(covs)
    elif kind == "each":
        covs = 0.3 + torch.rand(K, generator=g)
        S = covs[:, None, None] * I
    else:
        covs = 0.3 + torch.rand((), generator=g)
        S = (covs * I).repeat(K, 1, 1)
    return GaussianMixture(pi, mu, covs), pi, mu, S


def oracle(x, pi, mu, S):
    """log p, responsibilities r, s = Σ r g and H = Σ r (g gᵀ − P) − s sᵀ, with explicit inverses."""
    P = torch.linalg.inv(S)
    d = x[:, None] - mu
    quad = torch.einsum("bki,kij,bkj->bk", d, P, d)
    log_joint = pi.log() - 0.5 * (quad + torch.logdet(S) + x.shape[1] * math.log(2 * math.pi))
    r = log_joint.softmax(1)
    g = -torch.einsum("kij,bkj->bki", P, d)
    s = torch.einsum("bk,bki->bi", r, g)
    H = torch.einsum("bk,bkij->bij", r, g[..., None] * g[..., None, :] - P)
    H = H - s[:, :, None] * s[:, None]
    return log_joint.logsumexp(1), r, s, H


def points(D, n, g):
    return 2 * torch.randn(n, D, generator=g)


# ---------------------------------------------------------------------------- density


@pytest.mark.parametrize(("D", "kind"), CASES)
def test_density_score_and_hessian_are_the_written_out_formulas(D, kind, generator):
    law, pi, mu, S = random_mixture(D, kind, generator)
    x = points(D, 9, generator)
    log_p, r, s, H = oracle(x, pi, mu, S)
    close(law.log_prob(x), log_p)
    close(law.responsibilities(x), r)
    close(law.score(x), s)
    close(law.hessian(x), H)
    close(law.covs, S)
    assert law.event_shape == (D,)
    assert isinstance(law, Analytic)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_and_right_at_ten_thousand_standard_deviations(kind, generator):
    law, *_ = random_mixture(3, kind, generator)
    x = 1e4 * torch.nn.functional.normalize(torch.randn(6, 3, generator=generator), dim=1)
    s, single = law.score(x), x.float()
    assert law.score(single).dtype == torch.float32
    for value in (law.log_prob(x), law.hessian(x), law.log_prob(single), law.hessian(single)):
        assert value.isfinite().all()
    # far out one component has all the mass; which one is clear to float32 as well
    k = law.responsibilities(x).argmax(1)
    g = torch.stack(
        [-torch.linalg.solve(law.covs[j], y - law.means[j]) for j, y in zip(k, x, strict=True)]
    )
    close(s, g, rtol=1e-9, atol=1e-10)
    close(law.score(single).double(), s, rtol=1e-5, atol=1e-1)


def test_far_components_do_not_disturb_in_single_precision():
    """100 sd apart: the other component underflows, and the score is that of the nearer one."""
    law = GaussianMixture([0.3, 0.7], [[-50.0, 0.0], [50.0, 0.0]], 1.0)
    x = torch.tensor([[49.0, 2.0], [-52.0, 1.0], [1e4, 0.0]], dtype=torch.float32)
    expected = torch.tensor([[1.0, -2.0], [2.0, -1.0], [50 - 1e4, 0.0]], dtype=torch.float32)
    close(law.score(x), expected, rtol=1e-6, atol=1e-6)


def test_no_cancellation_far_from_the_origin(generator):
    means = torch.tensor([[0.0, 0.0], [0.25, -0.5]])
    covs = 1e-2 * torch.stack([spd(2, generator), spd(2, generator)])
    z = (0.3 * torch.randn(5, 2, generator=generator)).mul(2**20).round() / 2**20  # z + 1e6 exact
    near = GaussianMixture([0.4, 0.6], means, covs)
    far = GaussianMixture([0.4, 0.6], means + 1e6, covs)
    close(far.score(z + 1e6), near.score(z))
    close(far.hessian(z + 1e6), near.hessian(z))


# ---------------------------------------------------------------------------- noising


@pytest.mark.parametrize(("D", "kind"), CASES)
def test_noised_is_the_closed_form(D, kind, generator):
    law, pi, mu, S = random_mixture(D, kind, generator)
    x = points(D, 5, generator)
    noised = law.noised(0.6, 0.8)
    log_p, r, s, H = oracle(x, pi, 0.6 * mu, 0.36 * S + 0.64 * torch.eye(D))
    close(noised.log_prob(x), log_p)
    close(noised.responsibilities(x), r)
    close(noised.score(x), s)
    close(noised.hessian(x), H)


# ---------------------------------------------------------------------------- posterior, Tweedie


@pytest.mark.parametrize("D", [1, 2])
def test_posterior_by_quadrature(D, generator):
    law, *_ = random_mixture(D, "full", generator)
    alpha, sigma = 0.7, 0.5
    line = torch.linspace(-12, 12, 481)
    x0 = line[:, None] if D == 1 else torch.cartesian_prod(line, line)
    x = points(D, 3, generator)
    estimate = tweedie(law.noised(alpha, sigma).score, x, alpha, sigma)
    for i in range(3):
        log_w = law.log_prob(x0) - 0.5 * (x[i] - alpha * x0).square().sum(1) / sigma**2
        w = log_w.softmax(0)
        mean = w @ x0
        cov = (w[:, None] * (x0 - mean)).T @ (x0 - mean)
        close(law.posterior_mean(x, alpha, sigma)[i], mean)
        close(law.posterior_cov(x, alpha, sigma)[i], cov)
        close(estimate.mean[i], mean)
        close(estimate.cov[i], cov)


# ---------------------------------------------------------------------------- singular laws


def test_point_masses_are_the_finite_data_oracle(generator):
    """s(x) = sum_i w_i (alpha x_i - x) / sigma^2, w = softmax(-|x - alpha x_i|^2 / (2 sigma^2))."""
    data, x = torch.randn(6, 2, generator=generator), points(2, 5, generator)
    law = GaussianMixture(torch.full((6,), 1 / 6), data, 0.0)
    alpha, sigma = 0.8, 0.5
    w = (-(x[:, None] - alpha * data).square().sum(2) / (2 * sigma**2)).softmax(1)
    close(law.noised(alpha, sigma).score(x), (alpha * w @ data - x) / sigma**2)
    close(law.posterior_mean(x, alpha, sigma), w @ data)
    cov = torch.einsum("bk,ki,kj->bij", w, data, data)
    mean = w @ data
    close(law.posterior_cov(x, alpha, sigma), cov - mean[:, :, None] * mean[:, None])
    draws = law.sample(50, generator=generator)
    assert (draws[:, None] == data).all(2).any(1).all()


@pytest.mark.parametrize("covs", [0.0, [1.0, 0.0], [[1.0, 1.0], [1.0, 0.0]]])
def test_a_singular_component_leaves_no_density(covs):
    law, x = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], covs), torch.zeros(1, 2)
    for name in ("log_prob", "score", "hessian", "responsibilities"):
        with pytest.raises(ValueError, match=r"singular.*use \.noised\(alpha, sigma\)"):
            getattr(law, name)(x)
    assert law.noised(1.0, 0.1).score(x).isfinite().all()


# ---------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("weights", "means", "covs", "match"),
    [
        ([0.5, 0.5], [0.0, 1.0], 1.0, r"means must have shape \(K, D\), got \(2,\)"),
        ([1.0], [[0.0], [1.0]], 1.0, r"weights must have shape \(2,\), got \(1,\)"),
        ([0.5, 0.6], [[0.0], [1.0]], 1.0, r"sum to 1.*got a sum of 1\.1"),
        ([0.0, 1.0], [[0.0], [1.0]], 1.0, "weights must be positive"),
        ([1.5, -0.5], [[0.0], [1.0]], 1.0, "weights must be positive"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0, 1.0], r"covs must have shape .* got \(3,\)"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, -1.0], "negative eigenvalue"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.2, 1.0]]], "not symmetric"),
    ],
)
def test_refuses_bad_parameters(weights, means, covs, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(weights, means, covs)


@pytest.mark.usefixtures("as_user")
def test_refuses_bad_points():
    law = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]])
    for name in ("log_prob", "score", "hessian"):
        for x in (torch.zeros(2), torch.zeros(3, 3)):
            with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
                getattr(law, name)(x)
    with pytest.raises(ValueError, match=r"x_t must have shape \(B, 2\)"):
        law.posterior_mean(torch.zeros(3, 3), 1.0, 1.0)


# ---------------------------------------------------------------------------- arrangements


def arranged(name, g):
    """A law for each way in which score and log_prob are worked out, and its form's name."""
    D, pi = 3, torch.tensor([0.2, 0.5, 0.3])
    mu, one, other = torch.randn(K, D, generator=g), spd(D, g), spd(D, g)
    covs = {
        "isotropic": 0.7,
        "pair": 0.7,
        "pair, diagonal": (0.5 + torch.rand(D, generator=g)).repeat(2, 1),
        "pair, full": one.repeat(2, 1, 1),
        "pair, full, far from the origin": one.repeat(2, 1, 1),
        "diagonal shared": (0.5 + torch.rand(D, generator=g)).repeat(K, 1),
        "full shared": one.repeat(K, 1, 1),
        "multiples of I as matrices": 0.4 * torch.eye(D).repeat(K, 1, 1),
        "one variance each": torch.tensor([0.4, 1.0, 2.0]),
        "diagonal": 0.5 + torch.rand(K, D, generator=g),
        "far from the origin": 0.7,
        "far apart": 0.7,
        "far apart, full shared": one.repeat(K, 1, 1),
        "full, own": torch.stack([one, other, one + other]),
        "full, own, far from the origin": torch.stack([one, other, one + other]),
        "full, own, spread": torch.stack([one, other, one + other]),
        "far apart, full": torch.stack([one, other, one + other]),
    }
    if name.startswith("pair"):
        pi, mu = torch.tensor([0.3, 0.7]), mu[:2]
    if "far from the origin" in name:
        mu = mu + 1e4
    if "far apart" in name:
        mu = 1000 * mu
    if "spread" in name:  # the exponents of float32 are computed in float64
        mu = 30 * mu
    kind = (
        "Differences" if "far apart" in name else "Quadratic" if "full, own" in name else "Linear"
    )
    return GaussianMixture(pi, mu, covs[name]), kind


ARRANGED = ["isotropic", "pair", "pair, diagonal", "pair, full",
            "pair, full, far from the origin", "diagonal shared", "full shared",
            "multiples of I as matrices", "one variance each", "diagonal", "far from the origin",
            "far apart", "far apart, full shared", "full, own", "full, own, far from the origin",
            "full, own, spread", "far apart, full"]  # fmt: skip


@pytest.mark.parametrize("name", ARRANGED)
def test_every_arrangement_is_the_straightforward_formula(name, generator):
    law, kind = arranged(name, generator)
    x = law.sample(50, generator=generator)
    x = torch.cat([x, x + 30])
    c = law._components(x)  # exponents and differences, component by component
    close(law.log_prob(x), c.log_joint.logsumexp(-1), 1e-12, 1e-12)
    g = -c.S.rotate_back(c.y / c.S.w)
    close(law.score(x), (c.r.unsqueeze(-1) * g).sum(1), 1e-12, 1e-12)
    form = law._form(x)
    assert type(form).__name__ == kind
    assert (getattr(form, "pair", None) is not None) == name.startswith("pair")
    single = x.float()
    exact = law.score(single.double())
    if "spread" in name:
        assert law._form(single).const.dtype == torch.float64
        close(law.log_prob(single).double(), law.log_prob(single.double()), 1e-6, 1e-6)
    assert law.score(single).dtype == law.log_prob(single).dtype == torch.float32
    close(law.score(single).double(), exact, 1e-5, 1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ARRANGED)
def test_every_arrangement_can_be_differentiated_twice(name, generator):
    law, _ = arranged(name, generator)
    x = law.sample(4, generator=generator).requires_grad_()
    log_p = law.log_prob(x)
    (slope,) = torch.autograd.grad(log_p.sum(), x, create_graph=True)
    close(slope, law.score(x), 1e-9, 1e-9)
    v = torch.randn(4, law.event_shape[0], generator=generator)
    (Hv,) = torch.autograd.grad(slope, x, v, create_graph=True)
    close(Hv, (law.hessian(x) @ v.unsqueeze(-1)).squeeze(-1), 1e-8, 1e-8)
    (again,) = torch.autograd.grad(law.score(x), x, v, create_graph=True)
    close(again, Hv, 1e-8, 1e-8)
    assert torch.autograd.grad(again.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("first", ["plain", "func", "inference", "jvp"])
def test_what_is_kept_does_not_remember_how_it_was_made(first, generator):
    """Constants worked out inside a transform or inference mode must serve outside of it."""
    law, _ = arranged("full shared", generator)
    x = law.sample(3, generator=generator)
    total = lambda y: law.log_prob(y).sum()
    if first == "func":
        vmap(grad(lambda y: total(y[None])))(x)
    elif first == "jvp":
        torch.func.jvp(total, (x,), (x,))
    elif first == "inference":
        with torch.inference_mode():
            law.score(x)
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(y).sum(), y)
    close(slope, law.score(x))
    close(grad(total)(x), slope)


@pytest.mark.parametrize("make", [
    lambda m: GaussianMixture([0.4, 0.6], torch.stack([m, -m]), 0.5), lambda m: Gaussian(m, 0.5),
])  # fmt: skip
def test_gradients_reach_the_parameters(make, generator):
    """A law of a mean that is being fitted keeps nothing, and can be used again and again."""
    x = torch.randn(5, 2, generator=generator)
    m = torch.tensor([0.3, -0.4], requires_grad=True)
    law = make(m)
    for _ in range(2):
        (slope,) = torch.autograd.grad(law.log_prob(x).sum(), m, retain_graph=True)
        h, e = 1e-5, torch.tensor([1.0, 0.0])
        up, down = (float(make(m.detach() + s * h * e).log_prob(x).sum()) for s in (1, -1))
        close(slope[0], torch.tensor((up - down) / (2 * h)), 1e-7, 1e-7)


def test_a_law_does_not_follow_the_tensor_it_was_made_from(generator):
    for make in (lambda m: GaussianMixture([1.0], m[None]), Gaussian):
        m, x = torch.zeros(2), torch.randn(3, 2, generator=generator)
        law = make(m)
        before = law.score(x)
        m += 1
        close(law.score(x), before)


def test_values_too_far_from_every_component_are_refused():
    law = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], torch.eye(2).expand(2, 2, 2))
    assert law.conditional([0], torch.tensor([30.0])).means.isfinite().all()
    with pytest.raises(ValueError, match="values lie too far from every component"):
        law.conditional([0], torch.tensor([1e187]))


@pytest.mark.parametrize("kind", KINDS)
def test_many_points_go_in_parts(kind, generator, monkeypatch):
    """Arrays of points × components × dimensions are never larger than what is held at a time."""
    law, *_ = random_mixture(3, kind, generator)
    x, a = points(3, 11, generator), torch.rand(11, generator=generator)

    def found():
        of = lambda p: (p.log_prob(x), p.score(x), p.hessian(x), p.responsibilities(x))
        back = lambda *t: (law.posterior_mean(x, *t), law.posterior_cov(x, *t))
        return [*of(law), *of(law.noised(a, 1.0)), *of(law.noised(0.5, 2.0)),
                *back(a, 1.5 - a), *back(0.5, 2.0)]  # fmt: skip

    whole, asked = found(), []
    monkeypatch.setattr(mixture, "rows_held", lambda n: asked.append(n) or 4)
    for part, value in zip(found(), whole, strict=True):
        close(part, value, 1e-12, 1e-12)
    assert len(set(asked)) > 2  # a matrix for each component takes more than a vector
    with pytest.raises(ValueError, match="3 samples"):
        law.posterior_mean(x, a[:3], 1.0)
