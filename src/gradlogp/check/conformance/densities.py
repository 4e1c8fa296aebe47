"""Is a density consistent: its score, log-density, integral, draws and noised laws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...calculus.reverse import jacobian, score_from_log_prob
from ...core import Density, check_target
from .report import ROUNDED, Report, coarsest, off_by, require, seeded

DRAWS = 50_000

ALPHA, SIGMA = 0.8, 0.6
"""The noise under which laws without a density of their own are looked at."""

NODES = {1: 4001, 2: 700}
"""Nodes a dimension of the rule for an integral."""


def check_density(d: Density) -> Report:
    r"""Check a density for consistency: score, log-density, integral, draws and noised laws.

    - The score is the gradient of the log-density, and each row depends only on its own point.
    - ∫ exp(log_prob) is 1, or e^{log_normalizer} if there is that attribute: by quadrature in one
      or two dimensions. If neither is claimed, the integral is only measured.
    - Draws and score are consistent: E[s_i f(x_i)] = −E[f'(x_i)] with f = tanh, by Stein; mean and
      covariance are the stated ones.
    - For a law closed under noising: noising twice equals noising once; its density at a point is
      the mean of N(x; α x_0, σ² I) over its own draws; E[x_0 | x_t] agrees with Tweedie's formula,
      and with the mean of draws weighted by their likelihood.

    References:
        | Tweedie's Formula and Selection Bias (Efron, 2011)
        | https://doi.org/10.1198/jasa.2011.tm11181

    Arguments:
        d: A density with `log_prob` and `score`, and `event_shape` or `sample`. A law without a
            density, such as data on a circle, is checked with noise, through its `noised`.

    Returns:
        Name -> measured value. `print` shows one line each.

    Raises:
        ConformanceError: An `AssertionError` with the right number and the likeliest mistake.
        ValueError: For an object that is not a density, or whose points have no known shape.

    Examples:
        >>> found = glp.check.check_density(glp.Gaussian([1.0, 2.0]))
        >>> round(found["score over the gradient of log_prob"].value, 6)
        1.0
    """
    check_target(d, "d")
    report, law = Report(), d
    draws = _draws(d, 64, 1)
    report.eps = _precision(d, draws)
    if not _has_density(d, draws):
        if not hasattr(d, "noised"):
            raise ValueError("d must have log_prob and score, or noised, that can be evaluated")
        law = d.noised(ALPHA, SIGMA)
        draws = _draws(law, 64, 1)
    _gradient(report, law, draws)
    _integral(report, law, claims=hasattr(d, "noised") or hasattr(law, "log_normalizer"))
    if hasattr(law, "sample"):
        _sampling(report, law)
    if hasattr(d, "noised"):
        _noising(report, d)
    return report


def _draws(d: Any, n: int, seed: int) -> Tensor:
    """Return points where the density lies, in float64, and wider ones."""
    if hasattr(d, "sample"):
        return d.sample(n, generator=seeded(seed)).double()
    shape = getattr(d, "event_shape", None)
    if shape is None:
        raise ValueError(
            "d must state the shape of its points: pass event_shape= to as_target, or define .sample"
        )
    return 1.5 * torch.randn(n, *shape, generator=seeded(seed), dtype=torch.float64)


def _precision(d: Any, x: Tensor) -> float:
    """Return the rounding of its own tensors, as its draws show it, or its log-density."""
    shown = d.sample(1, generator=seeded()) if hasattr(d, "sample") else _log_prob(d, x)
    return coarsest(x if shown is None else shown)


def _has_density(d: Any, x: Tensor) -> bool:
    try:
        d.score(x)
    except ValueError:
        return False
    return True


def _log_prob(d: Any, x: Tensor) -> Tensor | None:
    """Return the log-density, or None of a density that knows its score alone."""
    try:
        return d.log_prob(x)
    except ValueError:
        return None


# ---------------------------------------------------------------------------- gradient


def _gradient(report: Report, d: Any, x: Tensor) -> None:
    before, s, log_p = x.clone(), d.score(x), _log_prob(d, x)
    require(
        s.shape == x.shape, "score(x)", tuple(s.shape), tuple(x.shape),
        "a score that is summed, or one point's score for all",
    )  # fmt: skip
    if log_p is not None:
        require(
            log_p.shape == (len(x),), "log_prob(x)", tuple(log_p.shape), (len(x),),
            "a sum over the event that is left out, or one over the batch",
        )  # fmt: skip
    require(
        torch.equal(x, before), "x after log_prob(x) and score(x)", "changed", "as it was",
        "an in-place operation",
    )  # fmt: skip
    for name in ("score", "log_prob"):
        f = getattr(d, name)
        if name == "log_prob" and log_p is None:
            continue
        whole, single = f(x), f(x.float())
        require(
            (single.dtype, whole.dtype) == (torch.float32, torch.float64)
            # a log-density may be more precise than its point, or as precise as its law
            or (name == "log_prob" and single.dtype == whole.dtype
                and torch.finfo(whole.dtype).eps <= report.eps),
            f"dtype of {name}(x)", f"{single.dtype} and {whole.dtype}",
            "torch.float32 and torch.float64", "a constant that changes the dtype",
        )  # fmt: skip
        report.small(
            f"what other points change in {name}", off_by(f(x[:3]), whole[:3]), report.allows(1e-10),
            "a coupled batch: a mean or a maximum over all points",
        )  # fmt: skip
    if log_p is None:
        return
    both = getattr(d, "log_prob_and_score", None)
    if both is not None:
        pair = both(x)
        report.small(
            "log_prob_and_score compared with both", max(off_by(pair[0], log_p), off_by(pair[1], s)),
            report.allows(1e-9), "another formula in the shared evaluation",
        )  # fmt: skip
    right = score_from_log_prob(d.log_prob)(x.detach())
    flat, size = s.detach().flatten(), right.flatten()
    slope = float(flat @ size / (size @ size)) if bool(size.any()) else 1.0
    report.hold(
        "score over the gradient of log_prob", slope, 1.0, report.allows(1e-6), {
            "a wrong sign: the gradient of the energy": -1.0,
        }, d=x[0].numel(),
    )  # fmt: skip
    report.small(
        "score, off the gradient of log_prob", off_by(s, right), report.allows(1e-7),
        "a term that is left out of one of the two",
    )  # fmt: skip


# ---------------------------------------------------------------------------- integral


def _integral(report: Report, d: Any, claims: bool) -> None:
    x = _draws(d, 2000, 2)
    dim = x[0].numel()
    if dim not in NODES or _log_prob(d, x[:1]) is None or x.ndim != 2:
        return
    centre, scale = x.median(0).values, x.std(0) / 2
    # x = m + w sinh u: fine in the middle, and far out in few steps
    u = torch.linspace(-6, 6, NODES[dim], dtype=torch.float64)
    points = torch.cartesian_prod(*[u] * dim).reshape(-1, dim)
    log_jacobian = (scale * points.cosh()).log().sum(1)
    values = torch.cat(
        [d.log_prob(part) for part in (centre + scale * points.sinh()).split(2**16)]
    )
    log_z = float((values.detach() + log_jacobian).logsumexp(0)) + dim * math.log(
        float(u[1] - u[0])
    )
    right = getattr(d, "log_normalizer", 0.0 if claims else None)
    if right is None:
        report.measure("log of the integral", log_z)
        return
    root = math.log(2 * math.pi) / 2
    slips = {
        "a factor (2π)^{d/2} left out": right + dim * root,
        "a factor (2π)^{d/2} too many": right - dim * root,
        "√(2π) for each dimension but one": right + (dim - 1) * root if dim > 1 else math.inf,
    }
    report.hold(
        "log of the integral", log_z, right, 2e-4, slips,
        else_="a normaliser that is wrong, such as det S for √det S",
    )  # fmt: skip


# ---------------------------------------------------------------------------- draws


def _sampling(report: Report, d: Any) -> None:
    x = d.sample(DRAWS, generator=seeded(3)).double()
    again = d.sample(DRAWS, generator=seeded(3)).double()
    require(
        torch.equal(x, again), "draws of the same generator", "different", "the same bits",
        "noise that does not come from generator=",
    )  # fmt: skip
    flat, s = x.flatten(1), d.score(x).detach().flatten(1)
    few = range(min(flat.shape[1], 4))
    for i in few:
        width = float(flat[:, i].std())
        f = ((flat[:, i] - flat[:, i].median()) / width).tanh()
        slope = (1 - f.square()) / width
        expected = float(slope.mean())
        report.mean(
            f"E s f(x) over −E f'(x), coordinate {i}", -s[:, i] * f / expected - slope / expected + 1,
            1.0, {"a wrong sign of the score": -1.0}, d=flat.shape[1],
        )  # fmt: skip
    mean, cov = getattr(d, "mean", None), getattr(d, "cov", None)
    if not isinstance(mean, Tensor) or mean.shape != flat.shape[1:]:
        return
    for i in few:
        report.mean(f"mean, coordinate {i}", flat[:, i], float(mean[i]))
        if not isinstance(cov, Tensor) or cov.ndim != 2:
            continue
        for j in range(i + 1):
            product = (flat[:, i] - mean[i]) * (flat[:, j] - mean[j])
            if (
                float(product.square().max() / product.square().sum()) < 0.05
            ):  # else one draw decides
                right = float(cov[i, j])
                report.mean(f"covariance {i}, {j}", product, right, {
                    "a standard deviation given where a variance is meant": right**2,
                    "a variance used where a standard deviation is needed": math.sqrt(abs(right)),
                })  # fmt: skip


# ---------------------------------------------------------------------------- noise


def _noising(report: Report, d: Any) -> None:
    for sigma in (0.05, 3.0, SIGMA):
        x = _at_level(report, d, sigma)
    x0 = d.sample(DRAWS, generator=seeded(4)).double()
    _one_level_a_row(report, d, x)
    _by_draws(report, d, x0, x[:3])


def _at_level(report: Report, d: Any, sigma: float) -> Tensor:
    """Hold the law at a noise level against its parts, and return points of it."""
    noised, v = d.noised(ALPHA, sigma), sigma**2
    x = noised.sample(8, generator=seeded(5)).double()
    twice, once = noised.noised(0.5, 0.3), d.noised(0.5 * ALPHA, math.hypot(0.5 * sigma, 0.3))
    report.small(
        "score noised twice, off that noised once", off_by(twice.score(x), once.score(x)),
        report.allows(1e-9),
        "noise whose standard deviations are added instead of its variances, or an α that is left out",
    )  # fmt: skip
    report.small(
        "log_prob noised twice, off that noised once",
        off_by(twice.log_prob(x), once.log_prob(x)), report.allows(1e-8),
        "a normaliser that forgets the noise",
    )  # fmt: skip
    x = torch.cat([x, torch.zeros_like(x[:1]), ALPHA * d.sample(1, generator=seeded(6)).double()])
    s, mean = noised.score(x).flatten(1), d.posterior_mean(x, ALPHA, sigma).flatten(1)
    flat = x.flatten(1)
    parts = torch.stack([flat.flatten(), v * s.flatten()], 1)
    apart = float(torch.linalg.cond(parts))
    if apart < 1e3:  # x and s point in different directions
        of_x = torch.linalg.lstsq(parts, (ALPHA * mean).reshape(-1, 1)).solution[0]
        most = report.allows(1e-6) + ROUNDED * report.eps * apart
        report.hold("Tweedie: coefficient of x in α E[x_0|x]", of_x, 1.0, most, {
            "a division by α² for α": 1 / ALPHA, "an α that is left out": ALPHA,
        })  # fmt: skip
    gain = float(((ALPHA * mean - flat) * s).sum() / s.square().sum())
    report.hold(
        "Tweedie: (α E[x_0|x] − x) over s", gain, v,
        report.allows(1e-6) * v + report.cancelled(flat, s),
        {"a wrong sign": -v, "σ for σ²": sigma, "a division by α": v / ALPHA, "α² for α": v * ALPHA},
    )  # fmt: skip
    report.small(
        "score of the noised law, off the gradient of its log_prob",
        off_by(v * noised.score(x), v * score_from_log_prob(noised.log_prob)(x)),
        report.allows(1e-9),
        "a term that is left out of one of the two",
    )  # fmt: skip
    report.small(
        "posterior mean, off Tweedie's formula", off_by(ALPHA * mean, flat + v * s),
        report.allows(1e-8),
        "a mean that is not weighted by the posterior",
    )  # fmt: skip
    for name, law in (("hessian", noised), ("posterior_cov", d)):
        if hasattr(law, name):
            _second(report, d, noised, x, sigma, name)
    return x


def _one_level_a_row(report: Report, d: Any, x: Tensor) -> None:
    alpha, sigma = torch.tensor([1.0, 0.5, 0.0]).double(), torch.tensor([0.3, 0.7, 1.0]).double()
    many = d.noised(alpha, sigma).score(x[:3])
    rows = [
        d.noised(float(a), float(b)).score(x[i : i + 1])
        for i, (a, b) in enumerate(zip(alpha, sigma, strict=True))
    ]
    report.small(
        "one noise level a row, off each alone", off_by(many, torch.cat(rows)), report.allows(1e-9),
        "noise levels broadcast over the wrong dimension",
    )  # fmt: skip
    report.small(
        "score where α = 0 and σ = 1, off −x", off_by(many[2], -x[2]), report.allows(1e-9),
        "data left over where only noise should be",
    )  # fmt: skip


def _second(report: Report, d: Any, noised: Any, x: Tensor, sigma: float, name: str) -> None:
    v, right = sigma**2, jacobian(noised.score, x.flatten(1)) if x.ndim == 2 else None
    if right is None:
        return
    if name == "hessian":
        report.small(
            "hessian, off the Jacobian of the score", off_by(v * noised.hessian(x), v * right),
            report.allows(1e-8),
            "a term s sᵀ left out or of the wrong sign",
        )  # fmt: skip
    else:
        expected = v / ALPHA**2 * (torch.eye(len(right[0])).to(right) + v * right)
        report.small(
            "posterior covariance, off Tweedie's", off_by(d.posterior_cov(x, ALPHA, sigma), expected),
            report.allows(1e-7), "a factor σ² or α² left out",
        )  # fmt: skip


def _by_draws(report: Report, d: Any, x0: Tensor, x: Tensor) -> None:
    """Density and posterior mean from draws weighted by N(x; α x_0, σ² I), without any formula."""
    dim = x[0].numel()
    for i, point in enumerate(x):
        log_w = -(point - ALPHA * x0).flatten(1).square().sum(1) / (2 * SIGMA**2)
        log_w = log_w - dim * math.log(SIGMA * math.sqrt(2 * math.pi))
        right = float(d.noised(ALPHA, SIGMA).log_prob(point[None]))
        ratio = (log_w - right).exp()
        if not float(ratio.square().max() / ratio.square().sum()) < 0.05:  # one draw decides
            continue
        report.mean(
            f"mean of N(x; α x_0, σ² I) over its density, point {i}", ratio, 1.0, {
                "a factor (2π)^{d/2} left out": (2 * math.pi) ** (dim / 2),
                "a factor (2π)^{d/2} too many": (2 * math.pi) ** (-dim / 2),
            }, else_="a noised density that is not that of α x_0 + σ ε",
        )  # fmt: skip
        found = d.posterior_mean(point[None], ALPHA, SIGMA).flatten(1)[0]
        for k in range(min(dim, 2)):
            away = ratio * (x0.flatten(1)[:, k] - found[k]) / ratio.mean()
            report.mean(
                f"E[x_0|x] from draws, off that of posterior_mean, point {i}, coordinate {k}", away,
                0.0, else_="a posterior mean of the noise, or of α x_0",
            )  # fmt: skip
