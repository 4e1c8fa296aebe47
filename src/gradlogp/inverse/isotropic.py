"""The linear system of an isotropic covariance, (a R + b A Aᵀ) u = r."""

from __future__ import annotations

from torch import Tensor

from ..calculus.conjugate_gradients import solve_all
from ..core import per_sample
from .observation import Independent, NoiseCovariance
from .operators import LinearOperator, Tight


def solve_isotropic(
    operator: LinearOperator, R: NoiseCovariance, a: Tensor | float, b: Tensor | float, r: Tensor
) -> Tensor:
    """Return u with (a R + b A Aᵀ) u = r; a and b `()` or one for each sample `(B,)`.

    In closed form where A Aᵀ is a multiple of I and the noise independent, else by conjugate
    gradients.

    Raises:
        ValueError: If the matrix is singular, or the iteration does not converge.
    """
    a, b = per_sample(a, r, "a"), per_sample(b, r, "b")
    if isinstance(operator, Tight) and isinstance(R, Independent):
        return r / (a * R.std.to(r).square() + b * operator.gram)
    return solve_all(lambda v: a * R.product(v) + b * operator.apply(operator.adjoint(v)), r)
