"""The content of `config.json` of a checkpoint, and checks of it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from ..core import Schedule
from ..noise.predictions import KINDS
from ..noise.schedules import SCHEDULES, from_config
from ..scores.base import base_of, shapes_of
from ..scores.model import ScoreModel
from ..scores.networks import MLP, UNet
from .folders import read_json


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type: finite numbers, 64-bit integers, booleans not as numbers.

    Lists count as sequences and tuples, as in JSON.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in inner)
    if origin in (Sequence, tuple, list):
        return isinstance(value, list | tuple) and all(fits(v, inner[0]) for v in value)
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return fits(value, int) or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and abs(value) < 2**63
    if hint is str:
        return type(value) is str and value.isprintable()
    return type(value) is hint


def check_fields(given: Mapping[str, Any], made: Callable[..., Any], where: str) -> None:
    """Raise `ValueError` unless these are the arguments of a class or function, each of its type.

    For a dataclass these are its fields, otherwise the arguments that can be positional.
    """
    if dataclasses.is_dataclass(made):
        hints = get_type_hints(made)
        names = [field.name for field in dataclasses.fields(made)]
    else:
        call = made.__init__ if inspect.isclass(made) else made
        hints = get_type_hints(call)
        parameters = inspect.signature(made).parameters.values()
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if odd := sorted(given.keys() ^ set(names)):
        raise ValueError(f"{where}: fields missing or unknown: {', '.join(odd)[:200]}")
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{where}: {name} cannot be {short(value)}")


def short(value: Any, most: int = 60) -> str:
    """Return a value as text that fits in a line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list too deep
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


FORMAT_VERSION = 2
CONFIG = "config.json"
NETWORKS: tuple[type[nn.Module], ...] = (MLP, UNet)
"""The networks that a checkpoint can rebuild by itself."""

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of the tensors in a file."""


def describe(model: ScoreModel) -> dict[str, Any]:
    """Return the content of `config.json` for a model.

    Raises:
        ValueError: If the schedule is not one of this library's, which could not be rebuilt, or
            something could not be read again.
    """
    if type(model.schedule) not in SCHEDULES:
        raise ValueError(
            f"a checkpoint cannot store your own schedule {type(model.schedule).__name__}; it "
            f"supports {', '.join(c.__name__ for c in SCHEDULES)}"
        )
    known = type(model.network) in NETWORKS
    config = {
        "format": "gradlogp",
        "format_version": FORMAT_VERSION,
        "library_version": version("gradlogp"),
        "network": {"name": type(model.network).__name__}
        | (dict(model.network.config) if known else {}),  # type: ignore[arg-type]
        "schedule": {"name": type(model.schedule).__name__} | asdict(model.schedule),  # type: ignore[call-overload]
        "predicts": model.predicts,
        "event_shape": list(model.event_shape),
        "condition": None if model.condition is None else model.condition.config,
        "base": None if model.base is None else model.base.config,
        "columns": list(model.columns),
    }
    stored: dict[str, Any] = json.loads(json.dumps(config))
    _check(stored | {"extra": {}}, "this model cannot be saved")
    return stored


def parse(path: Path, *, any_version: bool = False) -> dict[str, Any]:
    """Return `config.json` of the checkpoint in a folder, with all fields of the right types.

    Raises:
        ValueError: If there is no checkpoint, its format is different, or a field cannot be right.
    """
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}")
    config = read_json(path / CONFIG)
    if config.get("format") != "gradlogp":
        raise ValueError(f"{path / CONFIG} does not belong to a gradlogp checkpoint")
    if any_version:
        return config
    if not fits(config.get("format_version"), int) or config["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has checkpoint format {short(config.get('format_version'))}, this version "
            f"reads {FORMAT_VERSION}; it was written by gradlogp "
            f"{str(config.get('library_version'))[:60]}"
        )
    _check(config, f"{path / CONFIG} is damaged")
    return config


def _check(config: dict[str, Any], where: str) -> None:
    def size(value: Any) -> bool:
        return fits(value, int) and 0 < value < 2**31

    def sizes(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(size, value))

    def named(value: Any) -> bool:
        return isinstance(value, dict) and fits(value.get("name"), str)

    def base(value: Any) -> bool:
        if value is None:
            return True
        if not isinstance(value, dict) or value.get("fallback", True) is not True:
            return False
        if value.keys() - {"fallback"} != {"components", "rank", "follows"}:
            return False
        rank, event = value["rank"], config["event_shape"]
        waves = rank == 0 and type(rank) is int and len(event) == 3 and value["follows"] is True
        whole = rank == math.prod(event)  # what a mixture needs
        return (
            size(value["components"]) and (waves or size(rank)) and type(value["follows"]) is bool
            and (waves or whole or value["components"] == 1)
        )  # fmt: skip

    fields: dict[str, Callable[[Any], bool]] = {
        "format": lambda v: v == "gradlogp", "format_version": size,
        "library_version": lambda v: fits(v, str), "network": named, "schedule": named,
        "predicts": lambda v: fits(v, str) and v in KINDS, "event_shape": sizes,
        "condition": lambda v: v is None or size(v) or sizes(v), "base": base,
        "columns": lambda v: isinstance(v, list) and all(type(c) is str for c in v),
        "extra": lambda v: isinstance(v, dict),
    }  # fmt: skip
    if odd := sorted(fields.keys() ^ config.keys()):
        raise ValueError(f"{where}: fields missing or unknown: {', '.join(odd)[:200]}")
    for name, good in fields.items():
        if not good(config[name]):
            raise ValueError(f"{where}: {name} cannot be {short(config[name])}")
    columns, entries = config["columns"], math.prod(config["event_shape"])
    if columns and len(columns) != entries:
        raise ValueError(f"{where}: columns are {len(columns)}, of {entries} entries")
    if any("\ud800" <= c <= "\udfff" for name in columns for c in name):
        raise ValueError(f"{where}: columns cannot be {ascii(columns)[:60]}")
    _schedule(config["schedule"], f"{where}: schedule")


def _schedule(given: dict[str, Any], where: str) -> Schedule:
    """Build a schedule; its values must be noise levels at every time."""
    kind = {c.__name__: c for c in SCHEDULES}.get(given["name"])
    if kind is not None:
        check_fields({k: v for k, v in given.items() if k != "name"}, kind, where)
    try:
        schedule = from_config(given)
        alpha, sigma = schedule(torch.linspace(0, 1, 9, dtype=torch.float32))
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: {error}") from None
    good = alpha.isfinite() & sigma.isfinite() & (alpha >= 0) & (sigma >= 0)
    if not bool(good.all() & (sigma[1:] > 0).all()):
        raise ValueError(f"{where} cannot be {short(given)}: its noise levels are not finite")
    return schedule


def build(
    config: dict[str, Any], shapes: Shapes, weights: Path, own: nn.Module | None
) -> ScoreModel:
    """Build the model of a configuration after comparing its sizes with those of the weights.

    Raises:
        ValueError: In one line that names file and field, if they do not fit together.
    """
    event, given = tuple(config["event_shape"]), config["condition"]
    kind = tuple(given) if isinstance(given, list) else given
    holes = config["network"].get("holes") is True
    for name, wanted, field in (
        ("z_mean", event, "event_shape"), ("coordinates.scale", event, "event_shape"),
        ("condition.null_value", kind if isinstance(kind, tuple) and not holes else None, "condition"),
        *((name, shape, "base") for name, shape in shapes_of(config["base"], event).items()),
    ):  # fmt: skip
        if shapes.get(name) != wanted:
            raise ValueError(
                f"{weights} does not fit the network: {name} has shape {shapes.get(name)}, by "
                f"{field} in {CONFIG} {wanted}"
            )
    network = _network(config["network"], shapes, weights) if own is None else own
    try:
        model = ScoreModel(
            network, from_config(config["schedule"]), config["predicts"], event, kind
        )
        model.base = base_of(config["base"], model.event_shape)
        if model.base is not None:  # in place of what values predict linearly
            model.gain = model.left = None
        return model
    except ValueError as error:
        raise ValueError(f"{weights} does not fit the network: {error}") from None


def _network(spec: dict[str, Any], shapes: Shapes, weights: Path) -> nn.Module:
    where = f"{weights.parent / CONFIG} is damaged: network"
    kind = {c.__name__: c for c in NETWORKS}.get(spec["name"])
    given = {k: v for k, v in spec.items() if k != "name"}
    if kind is None or not given:
        raise ValueError(
            f"the checkpoint holds a network {spec['name'][:60]!r} of your own: pass network="
        )
    asked = ("holes",) if kind is MLP else ("start",)
    options = {name: True for name in asked if given.get(name) is True}
    given = {k: v for k, v in given.items() if k not in options}
    check_fields(given, kind, where)
    # no number of layers or channels can be larger than what is stored of them
    most = max(len(shapes), *(n for shape in shapes.values() for n in shape), 1)
    for name, value in given.items():
        numbers = value if isinstance(value, list) else [value]
        many = name in ("depth", "blocks") and value > len(shapes)
        large = any(n is not None and n > most**2 for n in numbers)
        if many or large or len(numbers) > len(shapes):
            raise ValueError(
                f"{weights} does not fit the network: {name} = {short(value)} is too much"
            )
    stored = {k.removeprefix("network."): v for k, v in shapes.items() if k.startswith("network.")}
    try:
        with torch.device("meta"):
            wanted = {k: tuple(v.shape) for k, v in kind(**given, **options).state_dict().items()}
    except (ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())[:200]}") from None
    if wanted != stored:
        odd = sorted(k for k in wanted.keys() | stored.keys() if wanted.get(k) != stored.get(k))
        raise ValueError(f"{weights} does not fit the network: {', '.join(odd[:3])}")
    return kind(**given, **options)
