"""Checkpoints: a directory with weights, configuration and a record of the run, replaced as a whole.

========================  ================================================================
`model.safetensors`       the averaged weights, coordinates, moments, base, scales of the condition
`averages.safetensors`    averages with other half-lives, if training kept any
`config.json`             network, schedule, prediction, condition, base, columns, to rebuild it
`run.json`                settings, data and results of the run
`training.pt`             raw weights, optimiser and generators, for resuming
`SHA256SUMS`              digests of these files, which reveal damage
========================  ================================================================

A new checkpoint is written beside the old one and takes its name only when it is complete and on
disk. One process writes, any number may read, and each reads a single version. Nothing is ever
unpickled: weights are safetensors, and the optimiser is loaded with `weights_only=True`. Sizes
stated in a file are compared with the header of the weights before anything of that size is
allocated.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..noise.coordinates import AffineCoordinates
from ..scores.base import check_base
from ..scores.conditioned import Condition
from ..scores.masked import Mask
from ..scores.model import ScoreModel
from . import config as configuration
from .claim import Claim
from .config import CONFIG, describe, fits
from .folders import (
    check_file,
    discard,
    find,
    fresh_folder,
    one_line,
    put,
    read_json,
    read_whole,
    verify,
)

AVERAGES = "averages.safetensors"
"""The file of the averages of other half-lives."""
LARGEST_HEADER = 10**8
"""Bytes of the header of a file of weights at most, by its format."""
FILES = ("model.safetensors", AVERAGES, CONFIG, "run.json", "training.pt")
"""The files of a checkpoint."""


def check_replaceable(directory: str | os.PathLike[str]) -> Path:
    """Return the path to save to, which must be free or an older checkpoint.

    Raises:
        ValueError: If there is something that is not a checkpoint and would be replaced.
    """
    found, path = find(directory), Path(os.path.realpath(directory))
    try:
        if found.exists() and (not found.is_dir() or any(found.iterdir())):
            configuration.parse(found, any_version=True)
    except ValueError:
        raise ValueError(
            f"{path} exists and is not a gradlogp checkpoint; choose another directory"
        ) from None
    return path


def claim(directory: str | os.PathLike[str]) -> Claim:
    """Become the one writer of a checkpoint.

    Raises:
        ValueError: If there is something that is not a checkpoint.
        OSError: If another process, or another training in this process, writes there.
    """
    return Claim(check_replaceable(directory))


def save(
    directory: str | os.PathLike[str],
    model: ScoreModel,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    averages: Mapping[float, Mapping[str, torch.Tensor]] | None = None,
    run: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    claimed: Claim | None = None,
) -> Path:
    """Write a checkpoint; an old one with this name stays intact until the new one is complete.

    Other files in the old folder are kept. Permissions are those of newly created files.

    Arguments:
        directory: Its path; the parent directory is created.
        model: The model.
        weights: The state to store instead of the model's own (the averaged weights).
        averages: Additional states by their half-life, to choose from when loading.
        run: Provenance and results, JSON.
        extra: Additional configuration, JSON, stored under "extra".
        training: The state for resuming: tensors, numbers and containers of these.
        claimed: The claim of a caller that writes there more than once.

    Raises:
        ValueError: If the directory holds something that is not a checkpoint, or the schedule is
            not one of this library's.
        OSError: If it cannot be written (the disk is full, or another process writes there); then
            nothing is lost.
    """
    path = check_replaceable(directory)
    config = describe(model) | {"extra": dict(extra or {})}
    with nullcontext() if claimed is not None else Claim(path):
        fresh = fresh_folder(path, FILES)
        try:
            (fresh / CONFIG).write_text(json.dumps(config, indent=2))
            (fresh / "run.json").write_text(json.dumps(dict(run or {}), indent=2))
            save_file(_plain(weights or model.state_dict()), fresh / "model.safetensors")
            if averages:
                parts = [_plain(state, f"{float(n)!r}/") for n, state in averages.items()]
                save_file({k: v for part in parts for k, v in part.items()}, fresh / AVERAGES)
            if training is not None:
                torch.save(dict(training), fresh / "training.pt")
            put(fresh, path, FILES)
        except (SafetensorError, RuntimeError) as error:  # what these call a full disk
            raise OSError(f"cannot write the checkpoint {path}: {one_line(error)}") from error
        finally:
            discard(fresh, path, FILES)
    return path


def _plain(state: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Return clones, as safetensors refuses tensors that share memory."""
    return {
        prefix + k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in state.items()
    }


def read_config(directory: str | os.PathLike[str], *, verified: bool = True) -> dict[str, Any]:
    """Return `config.json` of a checkpoint.

    Arguments:
        directory: The checkpoint.
        verified: Whether to compare the file with its digest, as `load` does.

    Raises:
        ValueError: If there is no checkpoint, or it has a different format or is damaged.
    """

    def read(path: Path) -> dict[str, Any]:
        config = configuration.parse(path)
        if verified:
            verify(path / CONFIG)
        return config

    return read_whole(directory, read)


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `run.json` of a checkpoint.

    Raises:
        ValueError: If it is missing or damaged.
    """

    def read(path: Path) -> dict[str, Any]:
        run = read_json(path / "run.json")
        verify(path / "run.json")
        return run

    return read_whole(directory, read)


def load(
    directory: str | os.PathLike[str],
    network: nn.Module | None = None,
    *,
    ema: float | None = None,
) -> ScoreModel:
    """Rebuild the model of a checkpoint, with its averaged weights.

    Arguments:
        directory: The checkpoint.
        network: Required if the network is not one of `NETWORKS`; its weights are replaced.
        ema: Use the average with this half-life, one of the run's `ema_half_lives`, instead of
            that with decay `TrainingSettings.ema`.

    Raises:
        ValueError: If the checkpoint is missing or damaged, has a different format, does not fit
            the network, or has no average with that half-life.
    """
    return read_whole(directory, lambda path: _load(path, network, ema))


def _load(path: Path, network: nn.Module | None, ema: float | None) -> ScoreModel:
    config = configuration.parse(path)
    file = path / ("model.safetensors" if ema is None else AVERAGES)
    if ema is not None and not file.exists():
        raise ValueError(f"{path} holds only one average; train with ema_half_lives=")
    shapes = _shapes(file)
    names = _names(list(shapes), ema)
    model = configuration.build(
        config, {k: shapes[own] for k, own in names.items()}, file, network
    )
    try:
        with safe_open(file, "pt") as stored:
            state = {k: stored.get_tensor(own) for k, own in names.items()}
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from None
    if bad := [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(f"{file} is damaged: {bad[0]} has entries that are not finite")
    verify(path / CONFIG)
    verify(file)
    try:
        own = (v for k, v in state.items() if k.startswith("network.") and v.is_floating_point())
        model.to(next(own, model.like).dtype)
        model.load_state_dict(state)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file} does not fit the network: {one_line(error)}") from None
    check_scales(model, file)
    model.columns = tuple(config["columns"])
    return model.eval()


def check_scales(model: ScoreModel, file: Path) -> None:
    """Raise `ValueError` unless the scales and probabilities of a model are possible ones."""
    affine = [m for m in model.modules() if isinstance(m, AffineCoordinates)]
    good = {
        "coordinates.scale": all(bool((m.scale > 0).all()) for m in affine),
        "coordinates.bits": all(float(m.bits) in (32.0, 64.0) for m in affine),
        "z_std": bool((model.z_std > 0).all()),
        "condition.dropout": not isinstance(model.condition, Condition)
        or 0 <= float(model.condition.dropout) < 1,
        "condition.levels": not isinstance(model.condition, Mask)
        or model.condition.levels is None
        or model.condition.levels.fine(),
        "left": model.left is None or bool((model.left > 0).all()),
    } | check_base(model.base)
    if isinstance(model.condition, Mask):
        good |= model.condition.check_share("condition")
    if bad := [name for name, fine in good.items() if not fine]:
        raise ValueError(f"{file} is damaged: {bad[0]} is out of range")


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file, from its header alone.

    Raises:
        ValueError: If there is no header, or it does not belong to a file of this size.
    """
    check_file(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stored:
            n = int.from_bytes(stored.read(8), "little")
            if n > min(size - 8, LARGEST_HEADER):
                raise ValueError(f"a header of {n} bytes in a file of {size}")
            header = json.loads(stored.read(n))
        header.pop("__metadata__", None)
        shapes = {name: part["shape"] for name, part in header.items()}
        ends = [part["data_offsets"][1] for part in header.values()]
        if (
            not fits(list(shapes.values()), list[list[int]])
            or max(ends, default=0) != size - 8 - n
        ):
            raise ValueError("its header does not match its size")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from None
    return {name: tuple(shape) for name, shape in shapes.items()}


def _names(stored: list[str], ema: float | None) -> dict[str, str]:
    """Return the tensors of a file that belong to a half-life, by the names they have in a model."""
    if ema is None:
        return {name: name for name in stored}
    prefix = f"{float(ema)!r}/"
    found = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    if not found:
        try:
            lives = sorted({float(name.partition("/")[0]) for name in stored})
        except ValueError:
            raise ValueError(f"{AVERAGES} is damaged: it has tensors of no half-life") from None
        known = ", ".join(f"{n:g}" for n in lives)
        raise ValueError(f"the checkpoint has no average of half-life {ema:g}; it has {known}")
    return found


def read_training(
    directory: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the training state as it is on disk, the configuration beside it, and its path.

    Raises:
        ValueError: If there is none, or the file is damaged.
    """
    return read_whole(directory, _read_training)


def _read_training(path: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    config = configuration.parse(path)
    file = path / "training.pt"
    if not os.path.lexists(file):
        raise ValueError(f"{path} holds no training state to resume from")
    check_file(file)
    try:  # mapped: what it claims to hold takes no memory before it is looked at
        state = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError:  # its message advises to unpickle whatever it is
        raise ValueError(
            f"{file} is damaged, or holds more than tensors and numbers: refused"
        ) from None
    except Exception as error:  # a reader of a format with many ways to be broken
        raise ValueError(f"{file} is damaged: {one_line(error)}") from None
    if not isinstance(state, dict) or not all(type(name) is str for name in state):
        raise ValueError(f"{file} is damaged: it holds no training state")
    return state, config, file
