"""The arguments of an estimator as it takes them, and what a checkpoint keeps, read with distrust."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from ..core import (
    Estimate,
    check_count,
    check_device,
    check_kind,
    check_number,
    check_option,
    shown,
)
from ..learn import checkpoint
from ..learn.config import check_fields, fits, short
from ..learn.data.layout import layout
from ..learn.folders import read_whole
from ..learn.settings import DENSE, TrainingSettings
from ..scores.model import ScoreModel

HERE = (
    "checkpoint",
    "resume",
    "start",
    "device",
    "verbose",
)  # parameters of a run, not of a model
SHAPE = ("width", "depth", "predicts", "base", "condition")  # what a model is like, from the start

MOST_STEPS = 10**6  # of sampling, that a checkpoint may ask for


def settings_of(kept: dict[str, Any]) -> TrainingSettings:
    """Return settings from JSON, which has lists for tuples."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
    return TrainingSettings(**plain)


def kept_of(estimator: Any) -> dict[str, Any]:
    """Return what a checkpoint keeps of the estimator besides the model."""
    plain = {k: v for k, v in estimator.get_params().items() if isinstance(v, int | float | str)}
    return {
        "parameters": {k: v for k, v in plain.items() if k not in HERE},
        "settings": None if estimator.settings is None else vars(estimator.settings),
        "n_features_in": estimator.n_features_in_,
        "tensors": estimator._tensors,
        "classes": estimator.classes_.tolist() if estimator.condition == "classes" else None,
        "class_prior": estimator.class_prior_.tolist()
        if estimator.condition == "classes"
        else None,
        "condition_names": list(estimator.condition_names_) if estimator.condition else [],
    }


def check_kept(kept: Any, config: dict[str, Any], where: str, hints: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless an estimator could have kept this: no path, nothing of a run."""

    def need(good: bool, field: str, found: Any) -> None:
        if not good:
            raise ValueError(f"{where}{field} cannot be {short(found)}")

    fields = (
        "parameters", "settings", "n_features_in", "tensors", "classes", "class_prior",
        "condition_names",
    )  # fmt: skip
    need(isinstance(kept, dict) and (not kept or kept.keys() == set(fields)), "", kept)
    if not kept:  # of a training without an estimator
        return
    parameters, settings, n_features, tensors, classes, prior, names = map(kept.get, fields)
    need(isinstance(parameters, dict), ".parameters", parameters)
    for name, value in parameters.items():
        known = name in hints
        most = MOST_STEPS if name.startswith("n_") else 2**32
        least = 0 if name == "random_state" else 1
        whole = known and fits(value, int) and not fits(0.5, hints[name])
        small = not whole or least <= value <= most
        need(known and fits(value, hints[name]) and small, f".parameters: {name}", value)
    if settings is not None:
        need(isinstance(settings, dict), ".settings", settings)
        check_fields(settings, TrainingSettings, f"{where}.settings")
        try:
            settings_of(settings)
        except ValueError as error:
            raise ValueError(f"{where}.settings: {error}") from None
    need(n_features == config["event_shape"][0], ".n_features_in", n_features)
    need(fits(tensors, bool), ".tensors", tensors)
    need(fits(classes, list[str | int | float | bool] | None), ".classes", classes)
    kind = config["condition"] if isinstance(config["condition"], int) else None
    need((None if classes is None else len(set(classes))) == kind, ".classes", classes)
    shares = prior if fits(prior, list[float]) else []
    good = prior is None if kind is None else len(shares) == kind and all(p >= 0 for p in shares)
    need(good and (kind is None or abs(sum(shares) - 1) < 1e-6), ".class_prior", prior)
    need(fits(names, list[str]) and (not names or config["condition"] is not None),
         ".condition_names", names)  # fmt: skip
    plain = config["condition"] is None or config["network"].get("holes") is True
    made = None if plain else "values" if kind is None else "classes"
    need(
        parameters.get("condition") == made, ".parameters: condition", parameters.get("condition")
    )


def reached(directory: str | os.PathLike[str] | None) -> tuple[Estimate | None, int]:
    """Return the last held-out loss and the steps of a run to continue from, which may be complete."""
    if directory is None:
        return None, 0
    run = checkpoint.read_run(directory)
    try:
        rows = run["history"]["rows"]
        seen = [Estimate(float(row[2]), float(row[3])) for row in rows if row[2] is not None]
        return (seen[-1] if seen else None), int(run["step"])
    except (LookupError, TypeError, ValueError):
        return None, 0


def check_same(estimator: Any, model: ScoreModel, extra: dict[str, Any]) -> None:
    """Raise `ValueError` if the model to continue with is not the one that an estimator requires."""
    made = extra.get("estimator", {}).get("parameters", {})
    asked = {name: getattr(estimator, name) for name in SHAPE}
    pairs = {name: (made.get(name, now), now) for name, now in asked.items()}
    pairs["schedule"] = (model.schedule, estimator.schedule or model.schedule)
    for name, (before, now) in pairs.items():
        if before != now:
            raise ValueError(
                f"the checkpoint was made with {name}={before}, got {now}; a resumed run must "
                "keep its settings and data"
            )


def begun(estimator: Any, shape: torch.Size) -> ScoreModel | None:
    """Return the model that an estimator continues, or starts from; None if it must be built.

    Raises:
        ValueError: For ambiguous data, or a model that does not fit the data.
    """
    if estimator.network is None:
        layout(tuple(shape), "X", "pass")
    if estimator.resume and estimator.checkpoint is not None:
        model = checkpoint.load(estimator.checkpoint, estimator.network)
        check_same(estimator, model, checkpoint.read_config(estimator.checkpoint)["extra"])
        return model
    if estimator.start is None:
        return None
    model = checkpoint.load(estimator.start, estimator.network)
    kept = checkpoint.read_config(estimator.start)["extra"].get("estimator", {})
    pairs: dict[str, tuple[Any, Any]] = {
        "samples of shape": (list(model.event_shape), list(shape[1:])),
        "condition": (kept.get("parameters", {}).get("condition"), estimator.condition),
        "schedule": (model.schedule, estimator.schedule or model.schedule),
    }
    if estimator.condition == "classes":
        pairs["classes"] = (kept.get("classes"), estimator.classes_.tolist())
    for name, (before, now) in pairs.items():
        if before != now:
            raise ValueError(
                f"start={str(estimator.start)!r} has {name} {short(before)}, but this training has "
                f"{short(now)}: training that starts from a model keeps its settings"
            )
    return model


def loaded(
    directory: str | os.PathLike[str], network: torch.nn.Module | None, estimator: type
) -> tuple[dict[str, Any], ScoreModel]:
    """Return what a checkpoint keeps of such an estimator, and its model."""
    hints = get_type_hints(estimator.__init__) | {"random_state": int}  # type: ignore[misc]
    hints = {name: hint for name, hint in hints.items() if name not in HERE}

    def read(path: Path) -> tuple[dict[str, Any], ScoreModel]:
        config = checkpoint.read_config(path, verified=False)
        kept = config["extra"].get("estimator", {})
        check_kept(kept, config, f"{path / 'config.json'} is damaged: extra.estimator", hints)
        return kept, checkpoint.load(path, network)

    kept, model = read_whole(directory, read)
    settings = settings_of(kept["settings"]) if kept.get("settings") else None
    return {**kept, "settings": settings}, model


def as_array(X: Any) -> Any:
    """Return a tensor as an array of its own dtype, which scikit-learn would take to float32."""
    if not (hasattr(X, "shape") or hasattr(X, "__array__") or isinstance(X, list | tuple)):
        raise ValueError(f"X must be an array, a table or a tensor, got {type(X).__name__}")
    if isinstance(X, list | tuple):
        try:
            np.asarray(X, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"X must be numbers, rows of one length: {error}") from None
    elif isinstance(X, np.ndarray) and X.dtype.kind == "O":
        try:
            X.astype(np.float64)
        except (TypeError, ValueError) as error:  # scikit-learn wants to see the same kind
            raise type(error)(f"X must be numbers: {error}") from None
    if not isinstance(X, Tensor):
        return X
    check_kind(X, "X", Tensor, "a tensor")
    X = X.detach().cpu()
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()  # which NumPy does not have


def training_of(estimator: Any, *, dense: bool = False) -> TrainingSettings:
    """Return how an estimator trains: its settings, and what it has of its own in place of them.

    Without settings they are `DENSE` or the general ones, in the minutes where only these are set.
    """
    own: dict[str, Any] = {
        "steps": estimator.max_iter, "batch_size": estimator.batch_size,
        "learning_rate": estimator.learning_rate, "ema": estimator.ema,
    }  # fmt: skip
    given = estimator.settings
    if given is None:
        given = TrainingSettings(**DENSE) if dense else TrainingSettings()
    check_kind(given, "settings", TrainingSettings, "TrainingSettings")
    if dense and given.minutes is not None and given == TrainingSettings(minutes=given.minutes):
        given = replace(given, **DENSE | {"steps": given.steps})
    return replace(given, **{k: v for k, v in own.items() if v is not None})


def check_asked(estimator: Any) -> None:
    """Raise `ValueError` for invalid options of an estimator, whether they will be used or not."""
    for name in ("max_iter", "batch_size", "n_sample_steps", "n_likelihood_steps"):
        if getattr(estimator, name) is not None:
            check_count(getattr(estimator, name), name)
    if estimator.held_out_fraction is not None:
        check_number(estimator.held_out_fraction, "held_out_fraction", least=0, below=1)
    if estimator.channels is not None:
        check_kind(estimator.channels, "channels", list | tuple, "a tuple of integers")
        for c in estimator.channels:
            check_count(c, "each of channels")
    if not isinstance(estimator.standardize, bool):
        named = "standardize, if it is neither True nor False,"
        check_option(estimator.standardize, named, ("one",))
    if estimator.start is not None:
        check_kind(estimator.start, "start", str | os.PathLike, "the folder of a checkpoint")
        if not os.path.isdir(estimator.start):
            raise ValueError(f"start must be the folder of a checkpoint, got {estimator.start!r}")
    check_device(estimator.device)


def generator_of(random_state: Any) -> torch.Generator:
    """Return the noise of what scikit-learn takes for a seed."""
    try:
        state = check_random_state(random_state)
    except (TypeError, ValueError):
        raise ValueError(
            "random_state must be None, an integer from 0 to 2**32 - 1 or a numpy.random.RandomState, "
            f"got {shown(random_state)}"
        ) from None
    return torch.Generator().manual_seed(int(state.randint(2**31)))
