"""Checkpoints: a directory with weights, configuration and what was run, replaced as a whole.

========================  ================================================================
`model.safetensors`       the averaged weights, coordinates, moments, scales of the condition
`averages.safetensors`    more averages of other half-lives, if training kept any
`config.json`             network, schedule, prediction, condition, columns: what rebuilds it
`run.json`                what was run, on what, with which results
`training.pt`             raw weights, optimiser and generators: what resuming needs
========================  ================================================================

A new checkpoint is written beside the old one and takes its name only when it is complete. Nothing
is ever unpickled: weights are safetensors, and the optimiser is loaded with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..noise.predictions import KINDS
from ..noise.schedules import SCHEDULES, from_config
from ..scores.model import ScoreModel
from ..scores.networks import MLP, UNet
from .folders import one_line, read_json, recover, replace

FORMAT_VERSION = 2
AVERAGES = "averages.safetensors"
FILES = ("model.safetensors", AVERAGES, "config.json", "run.json", "training.pt")
NETWORKS: tuple[type[nn.Module], ...] = (MLP, UNet)
"""The networks that a checkpoint can rebuild by itself."""


def describe(model: ScoreModel) -> dict[str, Any]:
    """Return what `config.json` says of a model.

    Raises:
        ValueError: If the schedule is not one of this library's, which could not be rebuilt.
    """
    if type(model.schedule) not in SCHEDULES:
        raise ValueError(
            f"a checkpoint cannot hold the schedule {type(model.schedule).__name__} of your own; "
            f"it knows {', '.join(c.__name__ for c in SCHEDULES)}"
        )
    known = type(model.network) in NETWORKS
    return {
        "format": "gradlogp",
        "format_version": FORMAT_VERSION,
        "library_version": version("gradlogp"),
        "network": {"name": type(model.network).__name__}
        | (dict(model.network.config) if known else {}),  # type: ignore[arg-type]
        "schedule": {"name": type(model.schedule).__name__} | asdict(model.schedule),  # type: ignore[call-overload]
        "predicts": model.predicts,
        "event_shape": list(model.event_shape),
        "condition": None if model.condition is None else model.condition.config,
        "columns": list(model.columns),
    }


def check_writable(directory: str | os.PathLike[str]) -> Path:
    """Return the path to save to.

    Raises:
        ValueError: If there is something that is no checkpoint: it would be replaced.
    """
    path = recover(directory)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            read_config(path, any_version=True)
    except ValueError:
        raise ValueError(
            f"{path} exists and is not a gradlogp checkpoint; choose another directory"
        ) from None
    return path


def save(
    directory: str | os.PathLike[str],
    model: ScoreModel,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    averages: Mapping[float, Mapping[str, torch.Tensor]] | None = None,
    run: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; an old one of that name stays intact until the new one is complete.

    Files of other names in the old one are kept.

    Arguments:
        directory: Where; its parent is created.
        model: The model.
        weights: The state to store instead of the model's own (the averaged weights).
        averages: More states by their half-life, to choose from when loading.
        run: Provenance and results, JSON.
        extra: More configuration, JSON, kept under "extra".
        training: What resuming needs: tensors, numbers and containers of these.

    Raises:
        ValueError: If the directory holds something that is no checkpoint, or the schedule is
            not one of this library's.
        OSError: If it cannot be written (the disk is full); nothing is lost then.
    """
    path = check_writable(directory)
    config = describe(model) | {"extra": dict(extra or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        save_file(_plain(weights or model.state_dict()), fresh / "model.safetensors")
        if averages:
            parts = [_plain(state, f"{float(n)!r}/") for n, state in averages.items()]
            save_file({k: v for part in parts for k, v in part.items()}, fresh / AVERAGES)
        if training is not None:
            torch.save(dict(training), fresh / "training.pt")
        (fresh / "run.json").write_text(json.dumps(dict(run or {}), indent=2))
        (fresh / "config.json").write_text(json.dumps(config, indent=2))
        fresh.chmod(0o755)
        replace(fresh, path, FILES)
    except (SafetensorError, RuntimeError) as error:  # what these call a full disk
        raise OSError(f"cannot write the checkpoint {path}: {one_line(error)}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return path


def _plain(state: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return clones, as safetensors refuses tensors that share memory."""
    return {
        prefix + k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in state.items()
    }


def read_config(directory: str | os.PathLike[str], *, any_version: bool = False) -> dict[str, Any]:
    """Return `config.json` of a checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or one of an unknown format.
    """
    path = recover(directory)
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}")
    config = read_json(path / "config.json")
    if config.get("format") != "gradlogp":
        raise ValueError(f"{path}/config.json is not that of a gradlogp checkpoint")
    if config.get("format_version") != FORMAT_VERSION and not any_version:
        raise ValueError(
            f"{path} has checkpoint format {config.get('format_version')!r}, this version reads "
            f"{FORMAT_VERSION}; it was written by gradlogp {config.get('library_version')}"
        )
    if not any_version:
        _check(path / "config.json", config)
    return config


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `run.json` of a checkpoint."""
    return read_json(recover(directory) / "run.json")


def load(
    directory: str | os.PathLike[str],
    network: nn.Module | None = None,
    *,
    ema: float | None = None,
) -> ScoreModel:
    """Rebuild the model of a checkpoint, with its averaged weights.

    Arguments:
        directory: The checkpoint.
        network: Needed if the network is not one of `NETWORKS`; its weights are replaced.
        ema: Take the average of this half-life, one of the run's `ema_half_lives`, instead of
            that of decay `TrainingSettings.ema`.

    Raises:
        ValueError: If the checkpoint is missing, damaged, of another format, does not fit the
            network, or has no average of that half-life.
    """
    config = read_config(directory)
    path = recover(directory) / ("model.safetensors" if ema is None else AVERAGES)
    if ema is not None and not path.exists():
        raise ValueError(f"{path.parent} holds one average only; train with ema_half_lives=")
    try:
        state = _average(load_file(path), ema)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint is incomplete") from None
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from None
    if bad := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(f"{path} is damaged: {bad[0]} has entries that are not finite")
    where = path.parent / "config.json"
    try:
        if network is None:
            network = _network(config["network"], state, path)
        shape = torch.Size(config["event_shape"])
        kind = config["condition"]
        condition = kind if kind is None or isinstance(kind, int) else tuple(kind)
        schedule = from_config(config["schedule"])
        columns = tuple(config["columns"])
    except (KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{where} is damaged: {one_line(error)}") from None
    try:
        model = ScoreModel(network, schedule, config["predicts"], shape, condition)
        own = (v for k, v in state.items() if k.startswith("network.") and v.is_floating_point())
        model.to(next(own, model.like).dtype)
        model.load_state_dict(state)
        model.columns = columns
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the network: {one_line(error)}") from None
    return model.eval()


def _check(path: Path, config: dict[str, Any]) -> None:
    """Raise `ValueError` unless every field of a configuration is there and of its kind."""

    def sizes(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(size, value))

    def size(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31

    def named(value: Any) -> bool:
        return isinstance(value, dict) and isinstance(value.get("name"), str)

    def text(value: Any) -> bool:
        return isinstance(value, str)

    fields: dict[str, Callable[[Any], bool]] = {
        "format": text, "format_version": size, "library_version": text, "network": named,
        "schedule": named, "predicts": lambda v: v in KINDS, "event_shape": sizes,
        "condition": lambda v: v is None or size(v) or sizes(v),
        "columns": lambda v: isinstance(v, list) and all(map(text, v)),
        "extra": lambda v: isinstance(v, dict),
    }  # fmt: skip
    if odd := sorted(fields.keys() ^ config.keys()):
        raise ValueError(f"{path} is damaged: fields missing or unknown: {', '.join(odd)}")
    for name, good in fields.items():
        if not good(config[name]):
            raise ValueError(f"{path} is damaged: {name} cannot be {str(config[name])[:60]!r}")


def _average(stored: dict[str, torch.Tensor], ema: float | None) -> dict[str, torch.Tensor]:
    """Return the part of averages.safetensors that belongs to a half-life."""
    if ema is None:
        return stored
    lives = sorted({float(name.partition("/")[0]) for name in stored})
    if ema not in lives:
        known = ", ".join(f"{n:g}" for n in lives)
        raise ValueError(f"the checkpoint has no average of half-life {ema:g}; it has {known}")
    prefix = f"{float(ema)!r}/"
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def _network(spec: dict[str, Any], state: Mapping[str, torch.Tensor], path: Path) -> nn.Module:
    """Build a network of the library, once its sizes are known to be those of the weights."""
    classes = {c.__name__: c for c in NETWORKS}
    config = {k: v for k, v in spec.items() if k != "name"}
    if spec["name"] not in classes or not config:
        raise ValueError(
            f"the checkpoint holds a network {spec['name']!r} of your own: pass network="
        )
    # no number of layers or channels can be larger than what is stored of them
    most = max(len(state), *(n for v in state.values() for n in v.shape), 1)
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if any((isinstance(n, int) and n > most**2) or isinstance(n, float) for n in numbers) or (
            name in ("depth", "blocks") and not 0 < value <= len(state)
        ):
            raise ValueError(f"{path} does not fit the network: {name} = {value} is too much")
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in classes[spec["name"]](**config).state_dict().items()}
    stored = {
        k.removeprefix("network."): v.shape for k, v in state.items() if k.startswith("network.")
    }
    if shapes != stored:
        odd = sorted(k for k in shapes.keys() | stored.keys() if shapes.get(k) != stored.get(k))
        raise ValueError(f"{path} does not fit the network: {', '.join(odd[:3])}")
    return classes[spec["name"]](**config)


def load_training(
    directory: str | os.PathLike[str],
    model: ScoreModel,
    setup: Mapping[str, Any],
) -> dict[str, Any]:
    """Load the raw weights into the model, and return what else resuming needs.

    Arguments:
        directory: The checkpoint.
        model: The model; its weights are replaced.
        setup: The setup of the run that goes on.

    Raises:
        ValueError: If the checkpoint has no training state, it is damaged, or it is that of a run
            with another setup or model; the model is then as it was.
    """
    state = _read_training(directory)
    made = state["setup"]
    for name, value in setup.items():
        if made.get(name) != value:
            raise ValueError(
                f"the checkpoint was made with {name}={made.get(name)}, got {value}; "
                "a resumed run must keep its settings and data"
            )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        model.load_state_dict(before)
        raise ValueError(f"the checkpoint does not fit this model: {one_line(error)}") from None
    return state


def _read_training(directory: str | os.PathLike[str]) -> dict[str, Any]:
    read_config(directory)
    path = recover(directory) / "training.pt"
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ValueError(f"{path.parent} holds no training state to resume from") from None
    except pickle.UnpicklingError:  # its message advises to unpickle whatever it is
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and numbers: refused"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(state, dict) or not {"setup", "model"} <= state.keys():
        raise ValueError(f"{path} is damaged: it holds no training state")
    return state
