r"""Two noisy scores in closed form: of a known law, and of a finite data set.

They have the same type as a trained model, so they can be used in the same way, and every sampler
can be tested without training.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Analytic, Moments, Schedule, check_analytic, check_schedule
from ..distributions.analytic.conditional import Joint, WithHoles
from ..distributions.analytic.covariance import constant
from ..distributions.analytic.empirical import Empirical
from ..distributions.analytic.gaussian import Gaussian
from ..distributions.analytic.mixture import GaussianMixture
from ..noise.coordinates import IDENTITY
from ..noise.score_base import ScoreBase
from ..noise.tabulated import Tabulated


class ExactScore(ScoreBase):
    """The exact noisy score of a density known in closed form.

    Arguments:
        density: A law closed under noising, such as `GaussianMixture`. For a `Joint` law of x and
            y, or `Classes`, this is the score of x alone, and `given(y)` that of x given y; for a
            law `WithHoles` `given(x)` is the score given the known part of x.
        schedule: The noise schedule.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> z, t = torch.tensor([[0.0]]), torch.tensor(0.5)
        >>> score(z, t)
        tensor([[0.8435]])
        >>> score.denoise(z, t)
        tensor([[2.7628]])
    """

    def __init__(self, density: Analytic, schedule: Schedule) -> None:
        check_analytic(density, "density")
        check_schedule(schedule)
        self.density, self.schedule = density, schedule
        self.event_shape = density.event_shape
        self.coordinates = IDENTITY
        self._last: tuple[Tensor, Analytic] | None = None

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Those of a Gaussian or a mixture: what is observed or guided starts from them."""
        law = self.density
        if not isinstance(law, Gaussian | GaussianMixture) or law.mean.ndim > 1:
            return None
        return Moments(law.mean, law.cov.diagonal())

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype in which the density draws."""
        return torch.empty(0, dtype=getattr(self.density, "dtype", None))

    @property
    def n_rows(self) -> int | None:
        """The rows of a condition."""
        return getattr(self.density, "n_rows", None)

    def law(self, t: Tensor) -> Analytic:
        """Return the law of z_t: of a time that a driver asks for again, the one it got before."""
        schedule, last = self.schedule, self._last
        if torch.is_grad_enabled() or not isinstance(schedule, Tabulated):
            return self.density.noised(*schedule(t))  # a derivative may go through the law
        if last is not None and last[0] is t:
            return last[1]
        law = self.density.noised(*schedule(t))
        # that of a transform of torch.func would belong to the transform
        if schedule.numbers(t) is not None and constant(t.dtype, t):
            self._last = t, law
        return law

    def log_prob(self, z: Float[Tensor, "batch *event"], t: Tensor) -> Float[Tensor, " batch"]:
        """Return log p_t(z)."""
        self._check(z, t)
        return self.law(t).log_prob(z)

    def given(self, condition: Tensor | int) -> ExactScore:
        """Return the exact score of x given y, `(1, k)` or `(B, k)`, or given a part of x.

        Raises:
            ValueError: If the density is neither a `Joint` law nor one `WithHoles`.
        """
        if not isinstance(self.density, Joint | WithHoles):
            raise ValueError(
                f"{type(self.density).__name__} has nothing to condition on; use a Joint law"
            )
        return ExactScore(self.density.given(condition), self.schedule)  # type: ignore[arg-type]

    def rows(self, index: slice | Tensor) -> ExactScore:
        """Return the score of these rows of the condition."""
        rows = getattr(self.density, "rows", None)
        return self if rows is None else ExactScore(rows(index), self.schedule)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return self.law(t).score(z)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.density.posterior_mean(z, *self.schedule(t))


class EmpiricalScore(ScoreBase):
    r"""The exact noisy score of a finite data set: what a network that memorises would learn.

    The noised law is a mixture of Gaussians at the points α x_i, so

    .. math::
        s(z, t) = \frac{α \sum_i w_i(z) x_i - z}{σ^2}, \quad
        w = \mathrm{softmax}\left( -\frac{\|z - α x_i\|^2}{2 σ^2} \right)

    Distances are computed as differences, not as ‖x‖² + ‖y‖² − 2xᵀy, which cancels. `distribution`
    is the data's law without its schedule.

    Arguments:
        data: The points, `(N, *event)`.
        schedule: The noise schedule.
        chunk_size: As for `Empirical`, which also has the same cost, of order B N D for B points.

    Raises:
        ValueError: For data without a batch dimension, empty or not finite; for a chunk_size below
            1.

    Examples:
        >>> score = glp.EmpiricalScore(torch.tensor([[-1.0], [1.0]]), glp.schedules.VE(0.01, 10.0))
        >>> score.denoise(torch.tensor([[0.3]]), torch.tensor(0.1))
        tensor([[1.]])
    """

    def __init__(
        self, data: Float[Tensor, "n *event"], schedule: Schedule, chunk_size: int | None = None
    ) -> None:
        check_schedule(schedule)
        self.distribution = Empirical(data, chunk_size)
        self.data, self.schedule = data, schedule
        self.event_shape, self.coordinates = data.shape[1:], IDENTITY
        self.moments = Moments(data.mean(0), data.var(0, correction=0))

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the data."""
        return self.data.new_empty(0)

    def law(self, t: Tensor) -> Analytic:
        """Return the law of z_t."""
        return self.distribution.noised(*self.schedule(t))

    def log_prob(self, z: Float[Tensor, "batch *event"], t: Tensor) -> Float[Tensor, " batch"]:
        """Return log p_t(z), the log of a kernel density estimate with bandwidth σ/α."""
        self._check(z, t)
        return self.law(t).log_prob(z)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return self.law(t).score(z)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.distribution.posterior_mean(z, *self.schedule(t))
