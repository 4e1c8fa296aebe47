r"""Transitions for coloured noise, x_t = α_t x_0 + σ_t K^{1/2} ε."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core import Generator, NoisyScore, Transition, check_transition
from ...langevin.kernels.preconditioner import IDENTITY, Preconditioner, as_preconditioner
from ...noise.blurred import noisy_log_prob
from ...noise.score_base import ScoreWrapper
from .annealed import AnnealedLangevin
from .facts import Facts, facts_of
from .multistep import Multistep


class _White(ScoreWrapper):
    """The noisy score of y = K^{-1/2} z, for which noise is white."""

    def __init__(self, score: NoisyScore, K: Preconditioner) -> None:
        self.score, self.K = score, K

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return self.K.sqrt(self.score(self.K.sqrt(z), t))

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        if bool((alpha < 1e-6 * sigma).any()):  # E[z_0], which the score does not say
            return self.K.inv_sqrt(self.score.denoise(self.K.sqrt(z), t))
        return super()._denoise(z, t)

    def log_prob(self, z: Tensor, t: Tensor) -> Tensor:
        return noisy_log_prob(self.score, self.K.sqrt(z), t)


@dataclass(frozen=True)
class Coloured:
    r"""Any transition under noise with covariance K: p_t is the law of α_t x_0 + σ_t K^{1/2} ε.

    The transition moves y = K^{-1/2} x, where noise is white, by the score K^{1/2} s(K^{1/2} y, t).
    Seen in x, annealed Langevin dynamics is preconditioned by K:

    .. math:: x \leftarrow x + η σ_t^2 K s(x, t) + \sqrt{2 η}\, σ_t K^{1/2} z

    In high dimension this bounds the errors. White noise and an isotropic step have the same error
    in each coordinate, √d in total; with a K whose eigenvalues have a finite sum, such as the
    covariance of data that are functions on a finer and finer grid, the error has a limit. Start
    from K^{1/2} times draws of `terminal(score)`: `evolve` refuses to draw a start by itself.

    References:
        | Dimension-Free Multimodal Sampling via Preconditioned Annealed Langevin Dynamics (2026)
        | https://arxiv.org/abs/2602.01449

    Arguments:
        covariance: K: a number, a diagonal in the shape of an event, a symmetric positive definite
            matrix, or a `Preconditioner`.
        transition: The transition that moves y, such as `AnnealedLangevin()` or `Ancestral()`.
    """

    covariance: Preconditioner | Tensor | float = IDENTITY
    transition: Transition = AnnealedLangevin()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        check_transition(self.transition)
        object.__setattr__(self, "covariance", as_preconditioner(self.covariance).symmetric())

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        return facts_of(self.transition)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s."""
        return self._move(self.transition, z, t, s, score, generator)

    def begin(self) -> Transition:
        """Return the same for one run of a solver with memory."""
        inner = self.transition
        started = inner.begin() if isinstance(inner, Multistep) else inner

        def move(
            z: Tensor,
            t: Tensor,
            s: Tensor | None,
            score: NoisyScore,
            *,
            generator: Generator | None = None,
        ) -> Tensor:
            return self._move(started, z, t, s, score, generator)

        return move

    def _move(
        self,
        transition: Transition,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        generator: Generator | None,
    ) -> Tensor:
        K = as_preconditioner(self.covariance)
        y = K.inv_sqrt(z)
        return K.sqrt(transition(y, t, s, _White(score, K), generator=generator))
