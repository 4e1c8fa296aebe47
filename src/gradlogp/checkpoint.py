"""Checkpoints: a directory with weights, configuration and what was run, replaced as a whole.

======================  ================================================================
`model.safetensors`     the averaged weights and the scales: what sampling uses
`config.json`           format, network, schedule, prediction: what rebuilds the model
`run.json`              what was run, on what, with which results
`training.pt`           raw weights, optimiser and generators: what resuming needs
======================  ================================================================

A new checkpoint is written beside the old one and takes its name only when it is complete. Nothing
is ever unpickled: weights are safetensors, and the optimiser is loaded with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .model import ScoreModel
from .networks import MLP, UNet
from .schedules import from_config

FORMAT_VERSION = 1
NETWORKS: tuple[type[nn.Module], ...] = (MLP, UNet)
"""The networks that a checkpoint can rebuild by itself."""


def describe(model: ScoreModel) -> dict[str, Any]:
    """Return what `config.json` says of a model."""
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
    }


def save(
    directory: str | os.PathLike[str],
    model: ScoreModel,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    run: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; an old one of that name stays intact until the new one is complete.

    Arguments:
        directory: Where; its parent is created.
        model: The model.
        weights: The state to store instead of the model's own (the averaged weights).
        run: Provenance and results, JSON.
        extra: More configuration, JSON, kept under "extra".
        training: What resuming needs: tensors, numbers and containers of these.

    Raises:
        ValueError: If the directory holds something that is no checkpoint.
        OSError: If it cannot be written (the disk is full); nothing is lost then.
    """
    path = Path(directory)
    if path.exists() and not (path / "config.json").is_file() and any(path.iterdir()):
        raise ValueError(
            f"{path} exists and is not a gradlogp checkpoint; choose another directory"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        state = {
            k: v.detach().cpu().contiguous() for k, v in (weights or model.state_dict()).items()
        }
        save_file(state, fresh / "model.safetensors")
        if training is not None:
            torch.save(dict(training), fresh / "training.pt")
        (fresh / "run.json").write_text(json.dumps(dict(run or {}), indent=2))
        config = describe(model) | {"extra": dict(extra or {})}
        (fresh / "config.json").write_text(json.dumps(config, indent=2))
        fresh.chmod(0o755)
        _replace(fresh, path)
    except SafetensorError as error:  # safetensors reports a full disk in a type of its own
        raise OSError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return path


def _retired(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _replace(fresh: Path, path: Path) -> None:
    """Give `fresh` the name `path`; if interrupted in between, `_recover` finds the old one."""
    old = _retired(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(fresh, path)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> Path:
    if not path.exists() and _retired(path).exists():
        os.rename(_retired(path), path)
    return path


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `config.json` of a checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or one of an unknown format.
    """
    path = _recover(Path(directory))
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}")
    config = _read_json(path / "config.json")
    if config.get("format") != "gradlogp":
        raise ValueError(f"{path}/config.json is not that of a gradlogp checkpoint")
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has checkpoint format {config.get('format_version')!r}, this version reads "
            f"{FORMAT_VERSION}; it was written by gradlogp {config.get('library_version')}"
        )
    return config


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `run.json` of a checkpoint."""
    return _read_json(_recover(Path(directory)) / "run.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint is incomplete or not one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): the checkpoint is damaged"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object: the checkpoint is damaged")
    return content


def load(directory: str | os.PathLike[str], network: nn.Module | None = None) -> ScoreModel:
    """Rebuild the model of a checkpoint, with its averaged weights.

    Arguments:
        directory: The checkpoint.
        network: Needed if the network is not one of `NETWORKS`; its weights are replaced.

    Raises:
        ValueError: If the checkpoint is missing, damaged, of another format, or does not fit the
            network.
    """
    config = read_config(directory)
    path = Path(directory) / "model.safetensors"
    if network is None:
        spec = dict(config["network"])
        classes = {c.__name__: c for c in NETWORKS}
        name = spec.pop("name")
        if name not in classes or not spec:
            raise ValueError(f"the checkpoint holds a network {name!r} of your own: pass network=")
        network = classes[name](**spec)
    model = ScoreModel(
        network, from_config(config["schedule"]), config["predicts"], tuple(config["event_shape"])
    )
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the checkpoint is incomplete") from None
    except (SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged or does not fit the network: {first}") from None
    return model.eval()


def load_training(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what resuming needs.

    Raises:
        ValueError: If the checkpoint has no training state, or it is damaged.
    """
    read_config(directory)
    path = Path(directory) / "training.pt"
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no training state to resume from") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged: {first}") from None
