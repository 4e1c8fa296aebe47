"""What a checkpoint keeps of an estimator, read with distrust."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..core import Estimate
from ..learn import checkpoint
from ..learn.fields import check_fields, fits, short
from ..learn.settings import TrainingSettings

MOST_STEPS = 10**6  # of sampling, that a checkpoint may ask for


def settings_of(kept: dict[str, Any]) -> TrainingSettings:
    """Return settings from JSON, which has lists for tuples."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
    return TrainingSettings(**plain)


def check_kept(kept: Any, config: dict[str, Any], where: str, hints: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless an estimator could have kept this: no path, nothing of a run.

    Arguments:
        kept: What a checkpoint says of an estimator.
        config: The configuration that it is a part of.
        where: How its place is named in messages.
        hints: Types of the parameters of an estimator that are kept.
    """

    def need(good: bool, field: str, found: Any) -> None:
        if not good:
            raise ValueError(f"{where}{field} cannot be {short(found)}")

    fields = ("parameters", "settings", "n_features_in", "tensors", "classes")
    need(isinstance(kept, dict) and (not kept or kept.keys() == set(fields)), "", kept)
    if not kept:  # of a training without an estimator
        return
    parameters, settings, n_features, tensors, classes = (kept[name] for name in fields)
    need(isinstance(parameters, dict), ".parameters", parameters)
    for name, value in parameters.items():
        known = name in hints
        most = MOST_STEPS if name.startswith("n_") else 2**32
        least = 0 if name == "random_state" else 1
        small = not fits(value, int) or least <= value <= most
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


def reached(directory: str | os.PathLike[str] | None) -> tuple[Estimate | None, int]:
    """Return the last held-out loss and the steps of a run to go on from, which may be at its end."""
    if directory is None:
        return None, 0
    run = checkpoint.read_run(directory)
    try:
        rows = run["history"]["rows"]
        seen = [Estimate(float(row[2]), float(row[3])) for row in rows if row[2] is not None]
        return (seen[-1] if seen else None), int(run["step"])
    except (LookupError, TypeError, ValueError):
        return None, 0
