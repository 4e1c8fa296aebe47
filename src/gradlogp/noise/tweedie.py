r"""Posterior mean and covariance of x_0 given x_t, from the score and its Jacobian.

The covariance is available as a matrix, as a product with a vector, or as its diagonal, exact or
estimated by probes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..calculus.reverse import jacobian, jacobian_product, probe
from ..core import (
    Generator,
    NoiseSource,
    ScoreFn,
    check_count,
    check_finite,
    check_function,
    check_generator,
    check_level,
    check_points,
    check_same_shape,
    evaluate,
    per_sample,
)
from .predictions import from_prediction


class Tweedie(NamedTuple):
    """Posterior mean `(B, *event)` and covariance `(B, d, d)` of x_0 given x_t."""

    mean: Tensor
    cov: Tensor


def tweedie(
    score: ScoreFn,
    x_t: Float[Tensor, "batch *event"],
    alpha: Tensor | float,
    sigma: Tensor | float,
) -> Tweedie:
    r"""Posterior mean and covariance of x_0 given x_t, from the score of the law of x_t.

    .. math::
        E[x_0 | x_t] = \frac{x_t + σ^2 s(x_t)}{α}, \qquad
        \mathrm{Cov}[x_0 | x_t] = \frac{σ^2}{α^2} \left( I + σ^2 \nabla s(x_t) \right)

    Arguments:
        score: The score of the law of x_t, `(B, *event) -> (B, *event)`.
        x_t: Where, shape `(B, *event)`; d is its number of entries per sample.
        alpha: α > 0, `()` or `(B,)`.
        sigma: σ, `()` or `(B,)`.

    Raises:
        ValueError: If α = 0, a shape does not fit, or the result is not finite.

    References:
        | Tweedie's Formula and Selection Bias (Efron, 2011)
        | https://doi.org/10.1198/jasa.2011.tm11181

    Examples:
        >>> law = glp.Gaussian([0.0]).noised(1.0, 2.0)
        >>> glp.tweedie(law.score, torch.tensor([[5.0]]), 1.0, 2.0)
        Tweedie(mean=tensor([[1.]]), cov=tensor([[[0.8000]]]))
    """
    check_points(x_t, "x_t")
    check_level(alpha, x_t, "alpha")
    check_level(sigma, x_t, "sigma", zero=True)
    mean, _ = from_prediction("score", evaluate(score, x_t), x_t, alpha, sigma)
    H = jacobian(score, x_t)
    a, b = per_sample(alpha, H, "alpha"), per_sample(sigma, H, "sigma")
    I = torch.eye(H.shape[-1], dtype=x_t.dtype, device=x_t.device)
    cov = (b / a) ** 2 * (I + b**2 * H)
    check_finite(mean, "the mean of x_0 at alpha and sigma")
    check_finite(cov, "the covariance of x_0 at alpha and sigma")
    return Tweedie(mean, cov)


def tweedie_product(
    score: ScoreFn,
    x_t: Float[Tensor, "batch *event"],
    v: Float[Tensor, "batch *event"],
    alpha: Tensor | float,
    sigma: Tensor | float,
) -> Float[Tensor, "batch *event"]:
    r"""Return Cov[x_0 | x_t] v without the matrix, by one vector-Jacobian product.

    .. math:: \mathrm{Cov}[x_0 | x_t]\, v = \frac{σ^2}{α^2} \left( v + σ^2 (\nabla s)^\top v \right)

    The Jacobian of a score is symmetric; that of a network is only nearly symmetric, and the
    result is then the product with its transpose. v has a vector for each sample; other arguments,
    and errors, are those of `tweedie`.
    """
    check_points(x_t, "x_t")
    check_points(v, "v")
    check_same_shape(v, x_t, "v")
    check_function(score, "score")
    why = ": where alpha = 0, x_t carries no information about x_0 and Tweedie's formula does not apply"
    a = check_level(alpha, x_t, "alpha", why=why)
    b = check_level(sigma, x_t, "sigma", zero=True)
    product = (b / a) ** 2 * (v + b**2 * jacobian_product(score, x_t, v))
    check_finite(product, "the product at alpha and sigma")
    return product


class Variance(NamedTuple):
    """The diagonal of Cov[x_0 | x_t] and its standard error over probes, each `(B, *event)`."""

    value: Tensor
    standard_error: Tensor


def tweedie_variance(
    score: ScoreFn,
    x_t: Float[Tensor, "batch *event"],
    alpha: Tensor | float,
    sigma: Tensor | float,
    *,
    n_probes: int | None = None,
    generator: Generator | None = None,
) -> Variance:
    r"""Return the posterior variance of every entry of x_0, exact or estimated by probes.

    .. math:: \mathrm{diag}\, C = E[v ⊙ C v], \quad v \text{ of independent random signs}

    Exact by d vector-Jacobian products by default. An estimate can be negative
    where its error is large. With one probe the standard error is NaN, unknown. Other arguments, and
    errors, are those of `tweedie`.

    References:
        | An Estimator for the Diagonal of a Matrix (Bekas, Kokiopoulou & Saad, 2007)
        | https://doi.org/10.1016/j.apnum.2007.01.003
    """
    check_generator(generator, NoiseSource)
    if n_probes is None:
        cov = tweedie(score, x_t, alpha, sigma).cov
        value = cov.diagonal(dim1=1, dim2=2).reshape(x_t.shape)
        return Variance(value, torch.zeros_like(value))
    check_count(n_probes, "n_probes")
    draws = []
    for _ in range(n_probes):
        v = probe("rademacher", x_t, generator)
        draws.append(v * tweedie_product(score, x_t, v, alpha, sigma))
    each = torch.stack(draws)
    error = each.std(0) if n_probes > 1 else torch.full_like(x_t, torch.nan)
    return Variance(each.mean(0), error / n_probes**0.5)
