r"""One estimator with scikit-learn's interface that fits, samples, scores and denoises.

The word "score" has two meanings: in scikit-learn `score` is a number to maximise (here the mean
log-likelihood), in this library the score is ∇ log p. The field is `grad_log_prob`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..core import (
    NoisyScore,
    Processes,
    Schedule,
    check_count,
    check_kind,
    check_number,
    check_option,
    choice,
    new_seed,
)
from ..diffusion import log_likelihood
from ..learn import checkpoint
from ..learn.arguments import Asked
from ..learn.objectives.masked import Masks
from ..learn.settings import TrainingSettings, dense
from ..learn.training import fit
from ..noise import blurred, noise_range, time_at
from ..noise.coordinates import subset
from ..noise.predictions import Kind
from ..scores.guided import GuidedScore
from ..scores.model import ScoreModel
from .base import BaseName, Correction, Judge, base_for, held_out_rows
from .conditions import (
    condition_kind,
    divided,
    given_score,
    learn_condition,
    restore_condition,
    sample_weights,
)
from .kept import as_array, begun, check_asked, generator_of, kept_of, loaded, reached, training_of
from .pipeline import Needs, build_model, chunk_of, draw, follow, in_float64, objective_for
from .trials import settled


class ScoreEstimator(DensityMixin, BaseEstimator):
    r"""Learn the score of data; sample, evaluate and denoise with it.

    Data are standardised, and noise levels are chosen from them, from the scale that the points
    resolve along their thinnest direction to their largest distance. A Gaussian or a mixture is
    fitted, and a network learns a correction to its noised score by denoising score matching. The
    averaged weights with the lowest loss on held-out rows are kept, and as much of the correction
    as these rows support. The learned law is that of the data blurred by the smallest noise level,
    `sigma_min_`. Input may be NumPy arrays or tensors: vectors `(N, D)`, images `(N, C, H, W)` of
    any size, or sequences `(N, C, L)`; results have the type of the data passed to `fit`.

    Arguments:
        max_iter, batch_size, learning_rate, ema: `steps` and the others of `TrainingSettings`; by
            default those of `settings`.
        width, depth: Width and number of residual blocks of the MLP, for vectors; the width is 128
            by default, or 64 for 4,000 rows or more of at most two columns.
        channels: Channels of the levels of the U-Net, for images and sequences; by default enough
            levels for the coarsest to be at most 8 pixels wide, and two for small images.
        network: Your own network instead, network(x, c) -> like x.
        schedule: A noise schedule instead of the one chosen from the data.
        predicts: What the network predicts.
        base: What the network corrects: the noised score of one "gaussian"; of a "mixture", if it
            is better on held-out rows than one Gaussian; "none"; or "auto": "mixture" for vectors,
            "gaussian" with classes and for images of more than 512 entries, "none" for smaller ones
            and with values, whose linear part is known. With 4,000 rows or more of at most two
            columns the network learns the whole score, and a mixture replaces it where it is better;
            with 1,000 or more of more columns this is so if a short trial of both favours it.
        condition: The kind of y on which the model is conditional: "classes" (text, integers,
            booleans) or "values" (numbers, vectors, images). By default y is ignored by `fit`.
        standardize: Learn in coordinates of zero mean and unit variance; "one": with one scale for all.
        objective: A different loss of each sample, objective(noisy_score, x, schedule,
            generator=…).
        settings: How to train; by default `TrainingSettings()`, or for 4,000 rows or more of at most
            two columns, for a whole score beside a mixture, and with `masks` if a short trial favours
            it, 1,000 steps of 1,024 rows at 0.01; or as many as fit if only `minutes` are set.
        held_out_fraction: Share of the data to hold out; by default a tenth, or a quarter of few rows.
        n_sample_steps: Number of noise levels of the probability flow for sampling, one evaluation
            each; by default measured, for an error of a hundredth of a standard deviation.
        n_likelihood_steps: Number of steps of the likelihood, one evaluation each; by default
            measured on samples, for an error of 0.003 √d nats.
        augment: A function that changes each batch, `augment(x, generator)` -> like x, as in
            `learn.fit`.
        checkpoint, resume: Directory to save to during training; whether to continue from it.
        start: A checkpoint to start from: its network, weights, coordinates and noise levels. Use
            this to continue training, or to fine-tune on other data.
        random_state: Seed.
        device: Device of the computation.
        callback: Called with the record of every training step.
        verbose: Whether to show progress on standard error.

    Attributes:
        model_: The trained `ScoreModel`.
        held_out_loss_: Its held-out loss with standard error, or None.
        correction_: The gain of the learned correction over the base in held-out nats, and whether
            it or a part was kept; else only the base is used. None without a base or held-out rows.
        sigma_min_: The smallest noise level, in units of each column's standard deviation.
        classes_, class_prior_: With condition="classes", the class labels and their frequencies.
        condition_shape_, condition_names_: With "values", the shape of a row of y, and its columns.

    Examples:
        >>> estimator = glp.ScoreEstimator(max_iter=3, width=8, random_state=0)
        >>> estimator.fit(torch.randn(200, 2)).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        *,
        max_iter: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        ema: float | None = None,
        width: int | None = None,
        depth: int = 3,
        channels: tuple[int, ...] | None = None,
        network: torch.nn.Module | None = None,
        schedule: Schedule | None = None,
        predicts: Kind = "v",
        base: BaseName = "auto",
        condition: Literal["classes", "values"] | None = None,
        standardize: bool | Literal["one"] = True,
        objective: Any = None,
        settings: TrainingSettings | None = None,
        held_out_fraction: float | None = None,
        n_sample_steps: int | None = None,
        n_likelihood_steps: int | None = None,
        augment: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        start: str | os.PathLike[str] | None = None,
        random_state: Any = None,
        device: str = "cpu",
        callback: Any = None,
        verbose: bool = False,
    ) -> None:
        self.max_iter, self.batch_size = max_iter, batch_size
        self.learning_rate, self.ema = learning_rate, ema
        self.width, self.depth, self.channels = width, depth, channels
        self.network, self.schedule = network, schedule
        self.predicts, self.base, self.condition = predicts, base, condition
        self.standardize, self.objective, self.settings = standardize, objective, settings
        self.held_out_fraction = held_out_fraction
        self.n_sample_steps, self.n_likelihood_steps = n_sample_steps, n_likelihood_steps
        self.augment, self.start, self.device = augment, start, device
        self.checkpoint, self.resume = checkpoint, resume
        self.random_state, self.callback, self.verbose = random_state, callback, verbose

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        columns: Sequence[str] | None = None,
        condition_names: Sequence[str] | None = None,
        masks: Masks | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ScoreEstimator:
        """Learn the score of X.

        Arguments:
            X: Data, `(N, D)` or `(N, C, H, W)`, N ≥ 2, finite.
            y: Classes `(N,)`, or values `(N,)`, `(N, k)` or of any shape, by `condition`; otherwise
                ignored.
            sample_weight: Weights of the samples, `(N,)`, not negative. Each sample is used in
                proportion to its weight, so that integer weights are equivalent to repeated
                samples. Coordinates and the held-out loss are weighted too.
            columns: Column names, stored with the model; by default those of X if it is a frame.
            condition_names: Column names of y.
            masks: What to hide during training, for a model that accepts any known part of a row
                (`model_.given`) in addition to the joint law.
            extra: Additional entries of every checkpoint, JSON.

        Raises:
            ValueError: For one sample, NaN or infinite entries, a constant column, a y that is missing
                or not what `condition` says, weights that are negative or not one per sample, or
                settings out of range.
        """
        check_asked(self)
        if columns is not None:
            check_kind(columns, "columns", list | tuple | np.ndarray, "names, one per column")
        if condition_names is not None:
            check_kind(condition_names, "condition_names", list | tuple | np.ndarray, "names")
        check_kind({} if extra is None else extra, "extra", Mapping, "a dictionary")
        if self.resume and not isinstance(self.random_state, int):
            raise ValueError("resume=True needs the random_state of that run, as a number")
        self._tensors, X = isinstance(X, Tensor), as_array(X)
        kinds = [np.float32, np.float64]
        x = X = validate_data(self, X, dtype=kinds, allow_nd=True, ensure_min_samples=2)
        generator = self._generator(None)
        generator.manual_seed(Processes.here().of_first(generator.initial_seed()))
        weight = sample_weights(sample_weight, len(x))
        own = self.network, self.start, self.objective, self.condition
        ours = all(v is None for v in own)
        many = ours and masks is None and dense(len(x), x.shape[1:])
        settings, large = (training_of(self, dense=how) for how in (many, True))
        given = learn_condition(self, y, len(x), condition_names, weight)
        check_option(self.base, "base", BaseName)
        objective, base = self.objective, self.base
        if masks is not None:
            check_kind(masks, "masks", Masks, "Masks, what a table hides of itself")
            if self.condition is not None or self.objective is not None:
                raise ValueError("masks= set their own objective and condition")
            given, objective, base = masks.known, masks.objective(), "none"
        kept, aside, distinct, repeats = divided(
            len(x), held_out_rows(len(x), self.held_out_fraction), weight, generator
        )
        x_kept, x_aside = (subset(x, part) for part in (kept, aside))
        x_distinct = x_kept if repeats is None else subset(x, distinct)
        seed, judged = new_seed(generator), len(aside) >= 2
        model = begun(self, torch.Size(x.shape))
        if model is None:
            model = build_model(
                x_distinct, network=self.network, schedule=self.schedule, predicts=self.predicts,
                standardize=self.standardize, width=self.width, depth=self.depth,
                base=base_for(
                    base, x_kept, x_aside, condition=self.condition,
                    standardize=self.standardize, seed=seed,
                ),
                channels=self.channels, generator=generator, repeats=repeats, dense=many,
                condition=condition_kind(self), masks=masks,
                given=None if given is None or masks is not None else given[distinct],
            )  # fmt: skip
        model.to(self.device)
        if (names := getattr(self, "feature_names_in_", columns)) is not None:
            model.columns = tuple(map(str, names))
        objective = objective_for(model) if objective is None else objective
        judge = Judge(x_aside, None if given is None else given[aside], seed)
        how: dict[str, Any] = {
            "condition": None if given is None else given[kept], "augment": self.augment,
            "standardize": self.standardize if self.start is None else False,
            "held_out": x_aside if judged else None, "generator": generator, "finish": judge,
            "held_out_condition": given[aside] if judged and given is not None else None,
        }  # fmt: skip
        asked = Asked(model, x_kept, objective, settings=settings, **how)
        before = self.checkpoint if self.resume else None
        if ours:
            asked = settled(asked, large, before, seed=seed, quiet=not self.verbose)
        records: Any = fit(
            model, x_kept, objective, settings=asked.settings, begun=asked.begun,
            keep_frame=self.start is not None, checkpoint=self.checkpoint, resume=self.resume,
            extra={"estimator": kept_of(self), **(extra or {})}, **how,
        )  # fmt: skip
        loss, step = reached(before)
        self.n_iter_, self.held_out_loss_ = follow(
            records, step, loss, self.callback, quiet=not self.verbose
        )
        return self._with(model, judge.found)

    def _with(self, model: ScoreModel, correction: Correction | None = None) -> ScoreEstimator:
        self.model_, self.correction_ = model, correction
        self.sigma_min_, self.sigma_max_ = noise_range(model.schedule)
        self._needs = Needs(model)
        return self

    def _generator(self, random_state: Any) -> torch.Generator:
        return generator_of(self.random_state if random_state is None else random_state)

    def _at(self, X: Any, y: Any) -> tuple[Tensor, NoisyScore]:
        """Return data and the score given y, float64: no result depends on the batch."""
        check_is_fitted(self, "model_")
        X = validate_data(
            self, as_array(X), dtype=[np.float64, np.float32], allow_nd=True, reset=False
        )
        x = torch.from_numpy(np.array(X, dtype=np.float64))
        return x, given_score(self, in_float64(self.model_), y, len(x))

    def _like_input(self, x: Tensor) -> Any:
        return x if self._tensors else x.numpy()

    def sample(
        self, n_samples: int = 1, y: Any = None, random_state: Any = None, *, guidance: float = 0.0
    ) -> Any:
        """Draw new samples by the probability flow, `(n_samples, *event)`.

        The same `random_state`, by default that of the estimator, gives the same samples.

        Arguments:
            n_samples: Number of samples.
            y: Classes or values to draw for, one row per sample or one for all. By default classes
                are drawn at their frequencies in the data; values are required, unless training
                omitted some (`condition_dropout`).
            random_state: Seed.
            guidance: w of `GuidedScore`: 0 draws from p(x | y), larger values move away from what
                all y have in common. It needs a model trained with `condition_dropout`.

        Raises:
            ValueError: For a y that is missing, unknown or of a wrong shape, or guidance of a
                model trained without `condition_dropout`.
        """
        check_is_fitted(self, "model_")
        check_count(n_samples, "n_samples")
        check_number(guidance, "guidance")
        g = self._generator(random_state)
        if y is None and self.condition == "classes":
            y = self.classes_[choice(torch.from_numpy(self.class_prior_), n_samples, g).numpy()]
        if guidance and y is None:
            raise ValueError("guidance= needs y, the condition to guide towards")
        score = given_score(self, self.model_, y, n_samples)
        if guidance:
            score = GuidedScore(score, self.model_.unconditional(), float(guidance))
        x = draw(score, n_samples, self.sample_levels(), generator=g, quiet=not self.verbose)
        return self._like_input(x.cpu())

    def sample_levels(self) -> int:
        """Return how many noise levels sampling uses: as requested, or measured once."""
        check_is_fitted(self, "model_")
        return self.n_sample_steps or self._needs.levels

    def likelihood_steps(self) -> int:
        """Return how many steps a likelihood takes: as requested, or measured once."""
        check_is_fitted(self, "model_")
        return self.n_likelihood_steps or self._needs.steps

    def grad_log_prob(self, X: Any, y: Any = None, sigma: float | None = None) -> Any:
        """Return ∇ log p(x) in data units, for the law blurred by `sigma` (`sigma_min_`).

        A larger sigma, in units of each column's standard deviation, is smoother and more accurate.
        """
        x, score = self._at(X, y)
        with torch.no_grad():
            return self._like_input(blurred(score, sigma).score(x))

    def score_samples(self, X: Any, y: Any = None) -> Any:
        """Return the log-density of each row in nats, by the probability flow."""
        x, score = self._at(X, y)
        # with exact divergences no noise is drawn; a run asks for its seed all the same
        asked: Any = {"chunk_size": chunk_of(score, len(x)), "generator": self._generator(0)}
        found = log_likelihood(score, x, n_steps=self.likelihood_steps(), **asked)
        return self._like_input(found.log_prob)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-density in nats: scikit-learn's score, not ∇ log p.

        As in scikit-learn, y is ignored if the model is not conditional.
        """
        y = None if self.condition is None else y
        return float(np.mean(np.asarray(self.score_samples(X, y))))

    def denoise(self, X: Any, sigma: float, y: Any = None) -> Any:
        """Return E[x | x + noise = X].

        Arguments:
            X: Noisy data.
            sigma: Standard deviation of the noise, in units of each column's standard deviation.
            y: Classes or values, one row per sample or one for all.

        Raises:
            ValueError: If the model was not trained at this noise level.
        """
        x, score = self._at(X, y)
        check_number(sigma, "sigma", above=0)
        t = time_at(score.schedule, float(sigma))
        with torch.no_grad():
            z = score.schedule(t)[0] * score.coordinates.encode(x)
            return self._like_input(score.coordinates.decode(score.denoise(z, t)))

    def save(
        self, directory: str | os.PathLike[str], *, extra: dict[str, Any] | None = None
    ) -> Path:
        """Save to a checkpoint directory (see `gradlogp.learn.checkpoint`), with what is `extra`."""
        check_is_fitted(self, "model_")
        held_out = None if self.held_out_loss_ is None else self.held_out_loss_._asdict()
        run = {"held_out_loss": held_out, "step": self.n_iter_}
        return checkpoint.save(
            directory, self.model_, run=run, extra={"estimator": kept_of(self), **(extra or {})}
        )

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], network: torch.nn.Module | None = None
    ) -> ScoreEstimator:
        """Load an estimator written by `save`, or by a training run with `checkpoint=`.

        Raises:
            ValueError: If the checkpoint is missing or damaged, or has a different format.
        """
        kept, model = loaded(directory, network, ScoreEstimator)
        settings, parameters = kept.get("settings"), kept.get("parameters", {})
        estimator = cls(network=network, settings=settings, **parameters)
        estimator.n_features_in_ = kept.get("n_features_in", model.event_shape[0])
        estimator._tensors = kept.get("tensors", False)
        restore_condition(estimator, model, kept)
        estimator.held_out_loss_, estimator.n_iter_ = None, 0
        return estimator._with(model)
