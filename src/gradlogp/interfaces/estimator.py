r"""The short way: one estimator with scikit-learn's face that fits, samples, scores and denoises.

A word clash to know: in scikit-learn `score` is a number to maximise (here the mean log-likelihood),
in this library the score is ∇ log p. The field is `grad_log_prob`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..core import (
    NoisyScore,
    Schedule,
    check_count,
    check_kind,
    check_number,
    permutation,
)
from ..diffusion import log_likelihood
from ..learn import checkpoint
from ..learn.folders import read_whole
from ..learn.settings import TrainingSettings
from ..learn.training import fit
from ..noise import blurred, noise_range, time_at
from ..noise.predictions import Kind
from ..scores.model import ScoreModel
from ..show.progress import bar
from .kept import check_kept, reached, settings_of
from .pipeline import CHUNK, OBJECTIVE, build_model, draw, repeated, sample_weights

HERE = ("checkpoint", "resume", "device", "verbose")  # parameters of a run, not of a model
SHAPE = ("width", "depth", "predicts", "class_conditional")  # what a model is like, from the start


class ScoreEstimator(DensityMixin, BaseEstimator):
    r"""Learn the score of data; sample, evaluate and denoise with it.

    Data is standardised, the noise levels are chosen from it (`noise_levels`: from below the
    spacing of the points to their largest distance), a network learns the score at all of them by
    denoising score matching, and the averaged weights are kept. What is learned is the law of the
    data blurred by the smallest noise level, `sigma_min_`. Input may be NumPy arrays or tensors,
    vectors `(N, D)` or images `(N, C, H, W)`; results come back as what `fit` was given.

    Arguments:
        max_iter, batch_size, learning_rate, ema: `steps` and the others of `TrainingSettings`; what
            `settings` says by default.
        width: Width of the MLP, for vectors.
        depth: Its residual blocks.
        channels: Channels of the U-Net, for images.
        network: Your own network instead, network(x, c) -> like x.
        schedule: A noise schedule instead of the one chosen from the data.
        predicts: What the network predicts.
        class_conditional: Whether y holds classes to condition on; otherwise y is ignored.
        standardize: Whether to learn in coordinates of zero mean and unit variance, for each column
            or channel; "one": with one scale for all.
        objective: Another loss of each sample, objective(noisy_score, x, schedule, generator=…).
        settings: How to train; `TrainingSettings()` by default.
        held_out_fraction: Share of the data kept aside to measure the loss on.
        n_sample_steps: Steps of the probability flow when sampling, two evaluations each.
        n_likelihood_steps: Runge–Kutta steps of the likelihood, four evaluations each.
        checkpoint: Directory to save to while training.
        resume: Go on from that checkpoint.
        random_state: Seed.
        device: Where to compute.
        callback: Called with the record of every training step.
        verbose: Whether to show progress on standard error.

    Attributes:
        model_: The trained `ScoreModel`.
        held_out_loss_: Its held-out loss with standard error, or None.
        sigma_min_: The smallest noise level, in units of each column's standard deviation.
        classes_: The class labels, if class-conditional.
    """

    def __init__(
        self,
        *,
        max_iter: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        ema: float | None = None,
        width: int = 128,
        depth: int = 3,
        channels: tuple[int, ...] = (32, 64),
        network: torch.nn.Module | None = None,
        schedule: Schedule | None = None,
        predicts: Kind = "v",
        class_conditional: bool = False,
        standardize: bool | Literal["one"] = True,
        objective: Any = None,
        settings: TrainingSettings | None = None,
        held_out_fraction: float = 0.1,
        n_sample_steps: int = 32,
        n_likelihood_steps: int = 24,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        random_state: Any = None,
        device: str = "cpu",
        callback: Any = None,
        verbose: bool = False,
    ) -> None:
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.ema = ema
        self.width = width
        self.depth = depth
        self.channels = channels
        self.network = network
        self.schedule = schedule
        self.predicts = predicts
        self.class_conditional = class_conditional
        self.standardize = standardize
        self.objective, self.settings = objective, settings
        self.held_out_fraction = held_out_fraction
        self.n_sample_steps = n_sample_steps
        self.n_likelihood_steps = n_likelihood_steps
        self.checkpoint = checkpoint
        self.resume = resume
        self.random_state = random_state
        self.device = device
        self.callback = callback
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        columns: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ScoreEstimator:
        """Learn the score of X.

        Arguments:
            X: Data, `(N, D)` or `(N, C, H, W)`, N ≥ 2, finite.
            y: Classes `(N,)` if `class_conditional`; otherwise ignored.
            sample_weight: How much each sample counts, `(N,)`, not negative. Samples are learned from
                in proportion: each is there as often as its weight says, so that whole weights do
                what repeated samples do. Coordinates and the held-out loss obey too.
            columns: Names of the columns, kept with the model; those of X where it is a frame.
            extra: More to keep in every checkpoint, JSON.

        Raises:
            ValueError: For one sample, NaN or infinite entries, a constant column, missing classes,
                weights that are negative or not one a sample, or settings out of range.
        """
        given: dict[str, Any] = {
            "steps": self.max_iter, "batch_size": self.batch_size,
            "learning_rate": self.learning_rate, "ema": self.ema,
        }  # fmt: skip
        settings = replace(
            self.settings or TrainingSettings(),
            **{k: v for k, v in given.items() if v is not None},
        )
        if columns is not None:
            check_kind(columns, "columns", list | tuple | np.ndarray, "names, one for each column")
        check_kind({} if extra is None else extra, "extra", Mapping, "a dictionary")
        if self.resume and not isinstance(self.random_state, int):
            raise ValueError("resume=True needs the random_state, a number, of that run")
        self._tensors = isinstance(X, Tensor)
        X = validate_data(
            self, _as_array(X), dtype=[np.float32, np.float64], allow_nd=True, ensure_min_samples=2
        )
        x, generator = torch.from_numpy(np.array(X)), self._generator(None)
        labels = self._encode_classes(y, len(x))
        weight = sample_weights(sample_weight, len(x))
        n_held_out = int(self.held_out_fraction * len(x)) if len(x) >= 20 else 0
        order = permutation(len(x), generator)
        order = order if weight is None else order[weight[order] > 0]
        kept, aside = order[n_held_out:], order[:n_held_out]
        distinct, often = kept, None
        if weight is not None:
            often = repeated(weight[kept], generator)
            kept = kept[often]
            if len(
                aside
            ):  # one for each on average: copies are no more data, and errors would shrink
                aside = aside[repeated(weight[aside], generator, copies=1)]
            n_held_out = len(aside)
        if self.resume and self.checkpoint is not None:
            model = checkpoint.load(self.checkpoint, self.network)
            self._check_same(model, checkpoint.read_config(self.checkpoint)["extra"])
        else:
            model = build_model(
                x[distinct], network=self.network, schedule=self.schedule, predicts=self.predicts,
                standardize=self.standardize, width=self.width, depth=self.depth,
                channels=self.channels, generator=generator, repeats=often,
                condition=len(self.classes_) if self.class_conditional else None,
            )  # fmt: skip
        model.to(self.device)
        if hasattr(self, "feature_names_in_"):
            model.columns = tuple(map(str, self.feature_names_in_))
        elif columns is not None:
            model.columns = tuple(columns)
        records: Any = fit(
            model, x[kept], self.objective or OBJECTIVE,
            condition=None if labels is None else labels[kept], settings=settings,
            standardize=self.standardize,
            held_out=x[aside] if n_held_out >= 2 else None,
            held_out_condition=None if labels is None or n_held_out < 2 else labels[aside],
            checkpoint=self.checkpoint, extra={"estimator": self._kept(), **(extra or {})},
            resume=self.resume, generator=generator,
        )  # fmt: skip
        self.held_out_loss_, self.n_iter_ = reached(self.checkpoint if self.resume else None)
        with bar("learning", quiet=not self.verbose) as update, closing(records):
            for record in records:
                self.n_iter_ = record.step
                self.held_out_loss_ = record.held_out or self.held_out_loss_
                if self.callback is not None:
                    self.callback(record)
                loss = record.loss if self.held_out_loss_ is None else self.held_out_loss_.value
                update(record.step, settings.steps, f"loss {loss:.4f}")
        self.model_, (self.sigma_min_, self.sigma_max_) = model, noise_range(model.schedule)
        return self

    def _check_same(self, model: ScoreModel, extra: dict[str, Any]) -> None:
        """Raise `ValueError` if the model to go on with is not the one that was asked for."""
        made = extra.get("estimator", {}).get("parameters", {})
        pairs = {k: (made.get(k, getattr(self, k)), getattr(self, k)) for k in SHAPE}
        pairs["schedule"] = (model.schedule, self.schedule or model.schedule)
        for name, (before, now) in pairs.items():
            if before != now:
                raise ValueError(
                    f"the checkpoint was made with {name}={before}, got {now}; a resumed run must "
                    "keep its settings and data"
                )

    def _encode_classes(self, y: Any, n: int, *, known: bool = False) -> Tensor | None:
        """Return class numbers for labels y, or None if not conditional."""
        if not self.class_conditional:
            return None
        if y is None:
            raise ValueError("class_conditional=True needs y, one class a sample")
        y = np.asarray(y)
        if y.shape != (n,):
            raise ValueError(f"y must have shape ({n},), got {y.shape}")
        if not known:
            self.classes_ = np.unique(y)
        unknown = sorted(set(y.tolist()) - set(self.classes_.tolist()))
        if unknown:
            raise ValueError(f"unknown class(es) {unknown}; known: {self.classes_.tolist()}")
        return torch.from_numpy(np.searchsorted(self.classes_, y)).long()

    def _generator(self, random_state: Any) -> torch.Generator:
        state = check_random_state(self.random_state if random_state is None else random_state)
        return torch.Generator().manual_seed(int(state.randint(2**31)))

    def _at(self, X: Any, y: Any) -> tuple[Tensor, NoisyScore]:
        """Return data and the score given their classes, float64: no result depends on the batch."""
        check_is_fitted(self, "model_")
        X = validate_data(
            self, _as_array(X), dtype=[np.float64, np.float32], allow_nd=True, reset=False
        )
        x = torch.from_numpy(np.array(X, dtype=np.float64))
        labels = self._encode_classes(y, len(x), known=True)
        model: ScoreModel = copy.deepcopy(self.model_).cpu().double()
        return x, model if labels is None else model.given(labels)

    def _like_input(self, x: Tensor) -> Any:
        return x if self._tensors else x.numpy()

    def sample(self, n_samples: int = 1, y: Any = None, random_state: Any = None) -> Any:
        """Draw new samples by the probability flow, `(n_samples, *event)`.

        The same `random_state`, by default that of the estimator, gives the same samples; y are
        their classes `(n_samples,)`, if class-conditional.
        """
        check_is_fitted(self, "model_")
        check_count(n_samples, "n_samples")
        labels = self._encode_classes(y, n_samples, known=True)
        score = self.model_ if labels is None else self.model_.given(labels)
        x = draw(
            score, n_samples, self.n_sample_steps, generator=self._generator(random_state),
            quiet=not self.verbose,
        )  # fmt: skip
        return self._like_input(x.cpu())

    def grad_log_prob(self, X: Any, y: Any = None, sigma: float | None = None) -> Any:
        """Return ∇ log p(x) in data units, for the law blurred by `sigma` (`sigma_min_`).

        A larger sigma, in units of each column's standard deviation, is smoother and surer.
        """
        x, score = self._at(X, y)
        with torch.no_grad():
            return self._like_input(blurred(score, sigma).score(x))

    def score_samples(self, X: Any, y: Any = None) -> Any:
        """Return the log-density of each row in nats, by the probability flow."""
        x, score = self._at(X, y)
        found = log_likelihood(score, x, n_steps=self.n_likelihood_steps, chunk_size=CHUNK)
        return self._like_input(found.log_prob)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-density in nats: scikit-learn's score, not ∇ log p."""
        return float(np.mean(np.asarray(self.score_samples(X, y))))

    def denoise(self, X: Any, sigma: float, y: Any = None) -> Any:
        """Return E[x | x + noise = X].

        Arguments:
            X: Noisy data.
            sigma: Standard deviation of the noise, in units of each column's standard deviation.
            y: Classes, if class-conditional.

        Raises:
            ValueError: If the model was not trained at so large or small a noise.
        """
        x, score = self._at(X, y)
        check_number(sigma, "sigma", above=0)
        t = time_at(score.schedule, float(sigma))
        with torch.no_grad():
            z = score.schedule(t)[0] * score.coordinates.encode(x)
            return self._like_input(score.coordinates.decode(score.denoise(z, t)))

    def _kept(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the estimator besides the model."""
        plain = {k: v for k, v in self.get_params().items() if isinstance(v, int | float | str)}
        return {
            "parameters": {k: v for k, v in plain.items() if k not in HERE},
            "settings": None if self.settings is None else vars(self.settings),
            "n_features_in": self.n_features_in_,
            "tensors": self._tensors,
            "classes": self.classes_.tolist() if self.class_conditional else None,
        }

    def save(
        self, directory: str | os.PathLike[str], *, extra: dict[str, Any] | None = None
    ) -> Path:
        """Save to a checkpoint directory (see `gradlogp.learn.checkpoint`), with what is `extra`."""
        check_is_fitted(self, "model_")
        held_out = None if self.held_out_loss_ is None else self.held_out_loss_._asdict()
        run = {"held_out_loss": held_out, "step": self.n_iter_}
        return checkpoint.save(
            directory, self.model_, run=run, extra={"estimator": self._kept(), **(extra or {})}
        )

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], network: torch.nn.Module | None = None
    ) -> ScoreEstimator:
        """Load what `save`, or a training run with `checkpoint=`, wrote.

        Raises:
            ValueError: If the checkpoint is missing, damaged, or of another format.
        """

        def read(path: Path) -> tuple[dict[str, Any], ScoreModel]:
            config = checkpoint.read_config(path, verified=False)
            kept = config["extra"].get("estimator", {})
            where = f"{path / 'config.json'} is damaged: extra.estimator"
            check_kept(kept, config, where, _hints())
            return kept, checkpoint.load(path, network)

        kept, model = read_whole(directory, read)
        settings = settings_of(kept["settings"]) if kept.get("settings") else None
        estimator = cls(network=network, settings=settings, **kept.get("parameters", {}))
        estimator.n_features_in_ = kept.get("n_features_in", model.event_shape[0])
        estimator._tensors = kept.get("tensors", False)
        classes = kept.get("classes")
        kind = None if model.condition is None else model.condition.kind
        if classes is None and isinstance(kind, int):
            classes = range(kind)
        estimator.class_conditional = classes is not None
        if classes is not None:
            estimator.classes_ = np.asarray(classes)
        estimator.model_, estimator.held_out_loss_, estimator.n_iter_ = model, None, 0
        estimator.sigma_min_, estimator.sigma_max_ = noise_range(model.schedule)
        return estimator


def _as_array(X: Any) -> Any:
    """Return a tensor as an array of its own dtype, which scikit-learn would take to float32."""
    if not (hasattr(X, "shape") or hasattr(X, "__array__") or isinstance(X, list | tuple)):
        raise ValueError(f"X must be an array, a table or a tensor, got {type(X).__name__}")
    if not isinstance(X, Tensor):
        return X
    X = X.detach().cpu()
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # which NumPy does not have


def _hints() -> dict[str, Any]:
    """Return the types of the parameters that a checkpoint keeps."""
    hints = get_type_hints(ScoreEstimator.__init__) | {"random_state": int}
    return {name: hint for name, hint in hints.items() if name not in HERE}
