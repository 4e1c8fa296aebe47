r"""Annealed Langevin dynamics: Langevin steps at every noise level, from the largest down."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core import Generator, NoisyScoreFn, Schedule, check_same_shape, randn_like
from ..kernels.overdamped import langevin_step
from ..parametrization import predict


@dataclass(frozen=True)
class AnnealedLangevin:
    r"""Annealed Langevin dynamics (NCSN), from σ_1 (the largest) to σ_L.

    At level t, `n_steps` of

    .. math:: x \leftarrow x + h_t\, s(x, t) + \sqrt{2 h_t}\, z, \quad h_t = η σ_t^2

    and then on to level s, where x is rescaled by α_s/α_t (1 for VE and ladders). At the
    noise-free end, s = None, the state is denoised by Tweedie's formula at the level it is at.

    The dimensionless η is `relative_step`. In NCSN's notation η = ε/σ_L², with h_i = ε σ_i²/σ_L² as
    in NCSN's code; the step in NCSN's paper (α/2, √α) is half as large, h = α/2. For finite
    `n_steps` the final law is biased; on a Gaussian the bias is known exactly.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600
        | Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020)
        | https://arxiv.org/abs/2006.09011

    Arguments:
        n_steps: Langevin steps a level.
        relative_step: η, the step size at a level in units of σ_t²; stable below 2.
    """

    n_steps: int = 5
    relative_step: float = 0.1

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {self.n_steps}")
        if not 0 < self.relative_step < 2:
            raise ValueError(
                f"relative_step must lie in (0, 2), where the dynamics is stable for every law, "
                f"got {self.relative_step}"
            )

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScoreFn,
        schedule: Schedule,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x after the steps at level t, moved to level s.

        Raises:
            ValueError: If α_t = 0, where no rescaling leads to level s, or for a score of another
                shape.
        """
        alpha_t, sigma_t = schedule(t)
        h = self.relative_step * float(sigma_t) ** 2
        for _ in range(self.n_steps):
            drift = score(x, t)
            check_same_shape(drift, x, "the score")
            x = langevin_step(x, drift, h, randn_like(x, generator))
        if s is None:
            return predict(score, schedule, x, t)[0]
        if alpha_t == 0:
            raise ValueError("annealed Langevin cannot leave alpha = 0; start at an earlier time")
        ratio = float(schedule(s)[0] / alpha_t)
        return x if math.isclose(ratio, 1.0, rel_tol=1e-12) else ratio * x
