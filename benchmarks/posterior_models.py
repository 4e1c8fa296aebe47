r"""Ten posteriors with reference answers, as a careful user writes them in PyTorch.

    posterior = kidiq(load("kidiq").data)     # log_prob, dim, constrain, names
    posterior.log_prob(z)                     # (B, d) -> (B,), log p up to a constant
    posterior.constrain(z)                    # (B, d) -> (B, n), in the order of the names

z is unconstrained and the log-Jacobian of the map to the parameters is in `log_prob`: σ = eᶻ adds
z, and p = 1/(1 + e⁻ᶻ) adds log p(1 − p). Data, and means and deviations of 10,000 near-independent
draws each, are those of posteriordb (BSD-3-Clause), in the two folders of `FOLDERS`.

A posterior of your own is a function here (or in a file of yours, `--own` of `posteriors.py`) and a
JSON of the same name: `data`, and `reference` with `names`, `mean`, `sd`, `se_mean` and `draws`.

References:
    | posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms (Magnusson,
      Torgander, Bürkner, Zhang, Carpenter & Vehtari, 2025), https://github.com/stan-dev/posteriordb
"""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "tests" / "langevin" / "posteriors", ROOT / "benchmarks" / "posteriors")
Data = dict[str, Any]


class Posterior(NamedTuple):
    """A log-density on an unconstrained space, and the way from there to what is asked for."""

    log_prob: Callable[[Tensor], Tensor]
    dim: int
    constrain: Callable[[Tensor], Tensor]
    names: tuple[str, ...]


class Reference(NamedTuple):
    """Mean, standard deviation and standard error of the mean of each name, from `draws` draws."""

    names: tuple[str, ...]
    mean: Tensor
    sd: Tensor
    se_mean: Tensor
    draws: int


class Loaded(NamedTuple):
    """The data of a posterior and its reference answers."""

    data: Data
    reference: Reference


def load(name: str, folders: tuple[Path, ...] = FOLDERS) -> Loaded:
    """Read `name.json`, or `name.json.xz`, from the first folder that has it."""
    for path in (Path(folder) / f"{name}.json" for folder in folders):
        if path.exists():
            text = path.read_text()
        elif (packed := path.with_suffix(".json.xz")).exists():
            text = lzma.decompress(packed.read_bytes()).decode()
        else:
            continue
        file = json.loads(text)
        known = file["reference"]
        numbers = (_tensor(known[key]) for key in ("mean", "sd", "se_mean"))
        return Loaded(file["data"], Reference(tuple(known["names"]), *numbers, known["draws"]))
    raise FileNotFoundError(f"no {name}.json or {name}.json.xz in {', '.join(map(str, folders))}")


class Judged(NamedTuple):
    """Whether a run's means and deviations are the reference's, and how well it mixed."""

    right: bool
    mean_errors: float  # the worst mean's, in combined standard errors
    sd_error: float  # the worst deviation's, relative
    sd_errors: float  # the worst deviation's, in combined standard errors
    ess: float  # the least bulk ESS
    r_hat: float


def judge(draws: Tensor, reference: Reference) -> Judged:
    """Compare draws `(chain, draw, n)`, in the order of the names, with the reference.

    They are right where every mean is within 5 standard errors, those of run and reference combined,
    and every standard deviation within 10 % or 4 of its own. The error of a deviation s is that of
    the mean of (x − m)², over 2 s: ESS of x itself says nothing of it (antithetic chains), and the
    reference's is as of independent draws.
    """
    from arviz_stats.base import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    mean, sd = draws.mean((0, 1)), draws.flatten(0, 1).std(0)
    squares = (draws - mean).square()
    error = _tensor(array_stats.mcse(draws.numpy(), method="mean", **axes))
    error_squares = _tensor(array_stats.mcse(squares.numpy(), method="mean", **axes))
    reference_squares = squares.flatten(0, 1).std(0) / reference.draws**0.5
    mean_errors = (mean - reference.mean).abs() / error.hypot(reference.se_mean)
    off = (sd - reference.sd).abs()
    sd_errors = off / (error_squares.hypot(reference_squares) / (2 * sd))
    sd_error = off / reference.sd
    right = (mean_errors <= 5) & ((sd_error <= 0.1) | (sd_errors <= 4))
    return Judged(
        bool(draws.isfinite().all() and right.all()),
        float(mean_errors.max()),
        float(sd_error.max()),
        float(sd_errors.max()),
        float(array_stats.ess(draws.numpy(), method="bulk", **axes).min()),
        float(array_stats.rhat(draws.numpy(), **axes).max()),
    )


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _normal(residual: Tensor, log_sd: Tensor) -> Tensor:
    """Sum over the last axis of log N(residual | 0, sd²), sd one number a row."""
    return -0.5 * residual.square().sum(-1) * (-2 * log_sd).exp() - residual.shape[-1] * log_sd


def _half_cauchy(log_x: Tensor, scale: float) -> Tensor:
    """Log-density of log x, x half-Cauchy."""
    return log_x - ((log_x.exp() / scale) ** 2).log1p()


def _last_is_log(z: Tensor) -> Tensor:
    return torch.cat([z[:, :-1], z[:, -1:].exp()], 1)


def _names(stem: str, n: int) -> tuple[str, ...]:
    return tuple(f"{stem}[{i}]" for i in range(1, n + 1))


def kidiq(data: Data) -> Posterior:
    """Score of a child ~ N(β₁ + β₂ mom_hs + β₃ mom_iq, σ²); σ half-Cauchy(2.5), β flat."""
    y, hs, iq = (_tensor(data[key]) for key in ("kid_score", "mom_hs", "mom_iq"))
    X = torch.stack([torch.ones_like(y), hs, iq], 1)

    def log_prob(z):
        beta, log_sigma = z[:, :3], z[:, 3]
        return _normal(y - beta @ X.mT, log_sigma) + _half_cauchy(log_sigma, 2.5)

    return Posterior(log_prob, 4, _last_is_log, (*_names("beta", 3), "sigma"))


def logmesquite(data: Data) -> Posterior:
    """Log weight of a bush ~ N(β · logs of its sizes, σ²), β and σ flat."""
    y, d1, d2, canopy, height, group = (
        _tensor(data[key])
        for key in ("weight", "diam1", "diam2", "canopy_height", "total_height", "group")
    )
    logs = ((d1 * d2 * canopy).log(), (d1 * d2).log(), (d1 / d2).log(), height.log())
    X, y = torch.stack([torch.ones_like(y), *logs, group], 1), y.log()

    def log_prob(z):
        beta, log_sigma = z[:, :6], z[:, 6]
        return _normal(y - beta @ X.mT, log_sigma) + log_sigma

    return Posterior(log_prob, 7, _last_is_log, (*_names("beta", 6), "sigma"))


def sblrc(data: Data) -> Posterior:
    """Linear regression: y ~ N(X β, σ²), β ~ N(0, 10²), σ half-N(0, 10²)."""
    X, y = _tensor(data["X"]), _tensor(data["y"])
    d = X.shape[1]

    def log_prob(z):
        beta, log_sigma = z[:, :d], z[:, d]
        prior = -0.005 * (beta.square().sum(1) + (2 * log_sigma).exp()) + log_sigma
        return _normal(y - beta @ X.mT, log_sigma) + prior

    return Posterior(log_prob, d + 1, _last_is_log, (*_names("beta", d), "sigma"))


def arK(data: Data) -> Posterior:
    """y_t ~ N(α + Σ_k β_k y_{t−k}, σ²); α, β ~ N(0, 10²), σ half-Cauchy(2.5)."""
    y, K = _tensor(data["y"]), data["K"]
    T = len(y)
    lagged = [y[K - k : T - k] for k in range(1, K + 1)]
    X, y = torch.stack([torch.ones(T - K, dtype=y.dtype), *lagged], 1), y[K:]

    def log_prob(z):
        beta, log_sigma = z[:, : K + 1], z[:, K + 1]
        prior = -0.005 * beta.square().sum(1) + _half_cauchy(log_sigma, 2.5)
        return _normal(y - beta @ X.mT, log_sigma) + prior

    return Posterior(log_prob, K + 2, _last_is_log, ("alpha", *_names("beta", K), "sigma"))


def kilpisjarvi(data: Data) -> Posterior:
    """Temperatures of summers: y ~ N(α + β x, σ²), x the year, normal priors, σ flat."""
    x, y = _tensor(data["x"]), _tensor(data["y"])

    def log_prob(z):
        alpha, beta, log_sigma = z[:, :1], z[:, 1:2], z[:, 2]
        a = (alpha[:, 0] - data["pmualpha"]) / data["psalpha"]
        b = (beta[:, 0] - data["pmubeta"]) / data["psbeta"]
        return _normal(y - alpha - beta * x, log_sigma) - 0.5 * (a**2 + b**2) + log_sigma

    return Posterior(log_prob, 3, _last_is_log, ("alpha", "beta", "sigma"))


def schools_c(data: Data) -> Posterior:
    """Eight schools, centred: y_j ~ N(θ_j, σ_j²), θ_j ~ N(μ, τ²); μ ~ N(0, 5²), τ half-Cauchy(5)."""
    y, sigma = _tensor(data["y"]), _tensor(data["sigma"])
    J = len(y)

    def log_prob(z):
        theta, mu, log_tau = z[:, :J], z[:, J], z[:, J + 1]
        likelihood = -0.5 * ((y - theta) / sigma).square().sum(1)
        prior = _normal(theta - mu[:, None], log_tau) - mu**2 / 50 + _half_cauchy(log_tau, 5)
        return likelihood + prior

    return Posterior(log_prob, J + 2, _last_is_log, (*_names("theta", J), "mu", "tau"))


def schools_nc(data: Data) -> Posterior:
    """The same with θ = μ + τ ε, ε ~ N(0, 1)."""
    y, sigma = _tensor(data["y"]), _tensor(data["sigma"])
    J = len(y)

    def constrain(z):
        mu, tau = z[:, J : J + 1], z[:, J + 1 :].exp()
        return torch.cat([mu + tau * z[:, :J], mu, tau], 1)

    def log_prob(z):
        mu, log_tau = z[:, J : J + 1], z[:, J + 1 :]
        theta = mu + log_tau.exp() * z[:, :J]
        likelihood = -0.5 * ((y - theta) / sigma).square().sum(1)
        prior = -0.5 * z[:, :J].square().sum(1) - mu[:, 0] ** 2 / 50
        return likelihood + prior + _half_cauchy(log_tau[:, 0], 5)

    return Posterior(log_prob, J + 2, constrain, (*_names("theta", J), "mu", "tau"))


def gp_pois(data: Data) -> Posterior:
    """Counts ~ Poisson(exp f), f = L ε a Gaussian process; ρ ~ Gamma(25, 4), α half-N(0, 2²).

    The covariance is α² exp(−(x − x')²/2ρ²) + 10⁻¹⁰ 1{x = x'} = L Lᵀ.
    """
    x, counts = _tensor(data["x"]), _tensor(data["k"])
    n = len(x)
    squares = (x[:, None] - x).square()
    jitter = 1e-10 * torch.eye(n, dtype=x.dtype)

    def field(z):
        rho, alpha = z[:, 0].exp(), z[:, 1].exp()
        K = (-0.5 * squares / rho[:, None, None] ** 2).exp()
        K = alpha[:, None, None] ** 2 * K + jitter
        L, fails = torch.linalg.cholesky_ex(K)
        return (L @ z[:, 2:, None])[..., 0], fails > 0

    def log_prob(z):
        log_rho, log_alpha, noise = z[:, 0], z[:, 1], z[:, 2:]
        f, fails = field(z)
        likelihood = (counts * f - f.exp()).sum(1)
        prior = 25 * log_rho - 4 * log_rho.exp() - (2 * log_alpha).exp() / 8 + log_alpha
        value = likelihood + prior - 0.5 * noise.square().sum(1)
        return value.masked_fill(fails, -torch.inf)

    def constrain(z):
        return torch.cat([z[:, :2].exp(), field(z)[0]], 1)

    return Posterior(log_prob, n + 2, constrain, ("rho", "alpha", *_names("f", n)))


def _discounted(v: Tensor, beta: Tensor) -> Tensor:
    """Return s_t = v_t + β s_{t−1} = Σ_{i ≤ t} β^{t−i} v_i for all t, in log₂ T steps.

    A step doubles how far back the sum reaches: s = v + β^k v shifted by k, for k = 1, 2, 4, …
    """
    power, k = beta, 1
    while k < v.shape[1]:
        v = torch.addcmul(v, power, pad(v, (k, -k)))
        power, k = power.square(), 2 * k
    return v


def garch(data: Data) -> Posterior:
    """y_t ~ N(μ, σ_t²), σ_t² = α₀ + α₁ (y_{t−1} − μ)² + β₁ σ_{t−1}², σ₁ given; flat.

    α₀ = eᶻ, α₁ = 1/(1 + e⁻ᵘ), β₁ = (1 − α₁)/(1 + e⁻ᵛ).
    """
    y = _tensor(data["y"])
    first = _tensor([data["sigma1"] ** 2])

    def constrain(z):
        alpha1 = z[:, 2:3].sigmoid()
        return torch.cat([z[:, :1], z[:, 1:2].exp(), alpha1, (1 - alpha1) * z[:, 3:].sigmoid()], 1)

    def log_prob(z):
        mu, alpha0, alpha1, beta1 = constrain(z).split(1, 1)
        squares = (y - mu).square()
        terms = alpha0 + alpha1 * squares[:, :-1]
        variance = _discounted(torch.cat([first.expand(len(z), 1), terms], 1), beta1)
        u, v = z[:, 2], z[:, 3]
        jacobian = z[:, 1] + logsigmoid(u) + 2 * logsigmoid(-u) + logsigmoid(v) + logsigmoid(-v)
        return -0.5 * (variance.log() + squares / variance).sum(1) + jacobian

    return Posterior(log_prob, 4, constrain, ("mu", "alpha0", "alpha1", "beta1"))


def diamonds(data: Data) -> Posterior:
    """Log prices: y ~ N(X_c b + a, σ²), columns centred; b ~ N(0, 1), a ~ t₃(8, 10), σ half-t₃(10)."""
    y, X = _tensor(data["Y"]), _tensor(data["X"])[:, 1:]
    X = torch.cat([X - X.mean(0), torch.ones(len(y), 1, dtype=y.dtype)], 1)
    d = X.shape[1] - 1

    def log_prob(z):
        b, a, log_sigma = z[:, :d], z[:, d], z[:, d + 1]
        prior = -0.5 * b.square().sum(1) - 2 * ((a - 8).square() / 300).log1p()
        prior = prior - 2 * ((2 * log_sigma).exp() / 300).log1p() + log_sigma
        return _normal(y - z[:, : d + 1] @ X.mT, log_sigma) + prior

    return Posterior(log_prob, d + 2, _last_is_log, (*_names("b", d), "Intercept", "sigma"))


TEN = (
    arK,
    diamonds,
    garch,
    gp_pois,
    kidiq,
    kilpisjarvi,
    logmesquite,
    sblrc,
    schools_c,
    schools_nc,
)
