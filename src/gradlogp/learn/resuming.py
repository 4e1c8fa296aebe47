"""Continuing from a stored training state, with all checks before anything is used."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..scores.model import ScoreModel
from .ahead import MOST
from .checkpoint import check_scales, read_training
from .config import describe, fits, short
from .folders import check_file, one_line, verify
from .settings import TrainingSettings

AGREE = ("network", "schedule", "predicts", "event_shape", "condition", "base")
"""Fields of the configuration that a resumed model must share."""


class Begun(NamedTuple):
    """A training that goes on elsewhere: its state, and the records of the steps it has done."""

    state: Mapping[str, Any]
    records: Sequence[Any]

    def continued(self, setup: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state of its own for a training of this setup.

        Raises:
            ValueError: If the steps were taken with other settings or data, or another objective.
        """
        made = self.state["setup"]
        for name in setup:
            if name not in ("steps", "minutes", "compile") and made[name] != setup[name]:
                raise ValueError(
                    f"begun was made with {name}={short(made[name], 150)}, got "
                    f"{short(setup[name], 150)}: pass the settings, objective and data of its steps"
                )
        return own(self.state)


def objective_name(objective: Any) -> str:
    """Return what identifies an objective: its name, and the options bound to it.

    For a nested function this includes the numbers and names in its closure, for one without a
    name its constants, for an object its class and its `repr`. A function wrapped with
    `functools.wraps` counts as the inner one.
    """
    if isinstance(objective, functools.partial):
        options = [f"{k}={_value(v)}" for k, v in objective.keywords.items()]
        return ", ".join([objective_name(objective.func), *map(_value, objective.args), *options])
    objective = inspect.unwrap(objective)
    if not inspect.isroutine(objective):
        return f"{type(objective).__module__}.{type(objective).__qualname__}: {_plain(objective)}"
    name = f"{objective.__module__}.{objective.__qualname__}"
    code = getattr(objective, "__code__", None)
    if code is None or "<" not in objective.__qualname__:
        return name
    held = [v for v in inspect.getclosurevars(objective).nonlocals.values() if _simple(v)]
    inside = [c for c in code.co_consts if _simple(c)] if "<" in code.co_name else []
    return f"{name} of {', '.join(map(str, [*code.co_names, *inside, *held]))}"


def _simple(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _value(value: Any) -> str:
    return objective_name(value) if callable(value) else _plain(value)


def _plain(value: Any) -> str:
    """Return what an object says of itself, but for where it is in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def load_training(
    directory: Any, model: ScoreModel, settings: TrainingSettings, setup: Mapping[str, Any], n: int
) -> dict[str, Any]:
    """Load the raw weights into the model, and return the rest of the state for resuming.

    Every field is checked first: its type, sizes, range, and whether it belongs to this run, which
    prepares n steps together.

    Raises:
        ValueError: If the checkpoint has no training state, or this is damaged or belongs to a run
            with a different setup or model; the model is then unchanged.
    """
    state, config, file = read_training(directory)
    wanted = set(_FIELDS)
    if odd := sorted(state.keys() ^ wanted):
        raise ValueError(f"{file} is damaged: fields missing or unknown: {', '.join(odd)[:200]}")
    made = state["setup"]
    if not isinstance(made, dict) or made.keys() != setup.keys():
        raise ValueError(f"{file} is damaged: setup cannot be {short(made)}")
    for name, value in setup.items():
        _agree(name, made[name], value)
    ours = describe(model)
    for name in AGREE:
        _agree(name, config[name], ours[name])
    check = _Check(file, model, settings, setup["n_samples"], n)
    for name, look in _FIELDS.items():
        if name != "setup":
            look(check, state[name], state)
    check_file(file, 2**30 + 4 * _size(state))  # what nobody asks for takes time to look at, too
    verify(file.parent / "config.json")
    verify(file)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        model.load_state_dict(state["model"])
        check_scales(model, file)
    except (ValueError, RuntimeError) as error:
        model.load_state_dict(before)
        raise ValueError(f"{file} is damaged: model: {one_line(error)}") from None
    return {k: own(v) for k, v in state.items()}


def steps_of(directory: Path, settings: TrainingSettings) -> int | None:
    """Return the steps that were chosen from a time when the run of a checkpoint began, or None."""
    if settings.minutes is None:
        return None
    state, _, file = read_training(directory)
    setup = state.get("setup")
    found = setup.get("steps") if isinstance(setup, dict) else None
    if type(found) is not int or found < 1:
        raise ValueError(f"{file} is damaged: setup cannot be {short(setup)}")
    return found


def _agree(name: str, made: Any, got: Any) -> None:
    if type(made) is not type(got) or made != got:
        raise ValueError(
            f"the checkpoint was made with {name}={short(made, 150)}, got {short(got, 150)}; "
            "a resumed run must keep its settings, objective, model and data"
        )


def _size(value: Any) -> int:
    """Return the bytes of all tensors in a tree."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_size, inner))


def own(value: Any) -> Any:
    """Return a copy of a tree in memory: files are replaced, and tensors go on to change."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: own(v) for k, v in value.items()}
    return [own(v) for v in value] if isinstance(value, list) else value


class _Check:
    """What the fields of a training state are compared with."""

    def __init__(
        self, file: Path, model: ScoreModel, settings: TrainingSettings, n: int, together: int
    ) -> None:
        self.file, self.model, self.settings = file, model, settings
        self.n, self.together = n, together
        self.weights = model.state_dict()
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def need(self, good: bool, field: str, found: Any) -> None:
        """Raise `ValueError`, naming the field, unless it is good."""
        if not good:
            raise ValueError(f"{self.file} is damaged: {field} cannot be {_said(found)}")

    def tensor(self, found: Any, like: Tensor, field: str) -> None:
        """Check the kind and the shape of a tensor, and that it is finite."""
        kind = isinstance(found, Tensor) and found.device.type == "cpu"
        what = ("dtype", "shape", "layout")
        kind = kind and all(getattr(found, name) == getattr(like, name) for name in what)
        self.need(kind, field, found)
        self.need(not found.is_floating_point() or bool(found.isfinite().all()), field, found)

    def tensors(self, found: Any, like: Mapping[str, Tensor], field: str) -> None:
        """Check tensors by name."""
        self.need(isinstance(found, dict), field, found)
        odd = [k for k in {**found, **like} if (k in found) != (k in like)]
        self.need(not odd, field, f"without or with {odd[0] if odd else ''}")
        for name, value in like.items():
            self.tensor(found[name], value, f"{field}.{name}")

    def step(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the number of steps done."""
        self.need(fits(found, int) and 0 <= found <= self.settings.steps, "step", found)

    def seconds(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the time spent."""
        self.need(fits(found, float) and found >= 0, "seconds", found)

    def history(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check one row per step: its number, the loss, and what was measured."""
        self.need(isinstance(found, list) and len(found) == state["step"], "history", found)
        for i, row in enumerate(found, 1):
            good = fits(row, list[float | None]) and isinstance(row, list) and len(row) == 6
            good = good and type(row[0]) is int and row[0] == i and row[1] is not None
            good = good and all((row[k] is None) == (row[k + 1] is None) for k in (2, 4))
            good = good and all(row[k] is None or row[k] >= 0 for k in (3, 5))
            self.need(good, f"history[{i - 1}]", row)

    def raw(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the raw weights."""
        self.tensors(found, self.weights, "model")

    def average(self, found: Any, state: Mapping[str, Any], field: str = "averaged") -> None:
        """Check averaged weights, and that they were averaged in every step."""
        like = {"n_averaged": torch.tensor(0)} | {
            f"module.{k}": v for k, v in self.weights.items()
        }
        self.tensors(found, like, field)
        self.need(
            int(found["n_averaged"]) == state["step"], f"{field}.n_averaged", found["n_averaged"]
        )

    def best(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the weights of the lowest loss, if something was measured."""
        if found is None:
            return
        good = isinstance(found, dict) and found.keys() == {"step", "loss", "weights"}
        self.need(good, "best", found)
        step, loss = found["step"], found["loss"]
        self.need(fits(step, int) and 0 < step <= state["step"], "best.step", step)
        self.need(type(loss) is float and fits(loss, float), "best.loss", loss)
        self.tensors(found["weights"], self.weights, "best.weights")

    def averages(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the averages of other half-lives."""
        lives = list(self.settings.ema_half_lives)
        good = isinstance(found, dict) and all(type(k) is float for k in found)
        self.need(good and sorted(found) == sorted(lives), "averages", found)
        for life, value in found.items():
            self.average(value, state, f"averages.{life:g}")

    def optimizer(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the moments of AdamW, and its options."""
        self.need(
            isinstance(found, dict) and found.keys() == {"state", "param_groups"},
            "optimizer",
            found,
        )
        groups, moments = found["param_groups"], found["state"]
        known = adamw(self.parameters, self.settings).state_dict()["param_groups"][0]
        self.need(
            isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
            and {"lr", "betas", "eps", "weight_decay", "params"} <= groups[0].keys() <= known.keys(),
            "optimizer.param_groups", groups,
        )  # fmt: skip
        known["lr"] = self.settings.rate(state["step"] - 1) if state["step"] else known["lr"]
        for name, value in groups[0].items():
            good = type(value) is type(known[name]) and value == known[name]
            self.need(good, f"optimizer.param_groups[0].{name}", value)
        good = isinstance(moments, dict) and all(
            type(i) is int and 0 <= i < len(self.parameters) and isinstance(part, dict)
            for i, part in moments.items()
        )  # fmt: skip
        self.need(good and (state["step"] > 0 or not moments), "optimizer.state", moments)
        for i, part in moments.items():
            p, field = self.parameters[i].detach(), f"optimizer.state.{i}"
            like = {"step": torch.tensor(0.0, dtype=torch.float32), "exp_avg": p, "exp_avg_sq": p}
            self.tensors(part, like, field)
            count = float(part["step"])
            self.need(count.is_integer() and 1 <= count <= state["step"], f"{field}.step", count)
            self.need(bool((part["exp_avg_sq"] >= 0).all()), f"{field}.exp_avg_sq", "negative")

    def noise(self, found: Any, state: Mapping[str, Any], field: str = "noise") -> None:
        """Check the generator of the noise, or another on the device of the model."""
        self.generator(found, torch.Generator(self.parameters[0].device), field)

    def dropping(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the generator of the conditions left out."""
        self.generator(found, torch.Generator(), "dropping")

    def generator(self, found: Any, other: torch.Generator, field: str) -> None:
        """Check that a generator takes this state."""
        self.tensor(found, other.get_state(), field)
        try:
            other.set_state(found.clone())
        except RuntimeError as error:
            self.need(False, field, f"this state: {one_line(error)}")

    def batches(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check where in the epoch the run is, and the generator of its order."""
        good = isinstance(found, dict) and found.keys() == {"position", "generator"}
        self.need(good, "batches", found)
        position = found["position"]
        self.need(fits(position, int) and 0 <= position <= self.n, "batches.position", position)
        self.generator(found["generator"], torch.Generator(), "batches.generator")

    def drawn_from(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the step that is drawn first, when the generators go on."""
        step = state["step"]
        good = fits(found, int) and max(0, step - MOST) <= found <= step
        self.need(good, "drawn_from", found)
        if step - found >= self.together:
            raise ValueError(
                f"{self.file} was written amid steps that are prepared together, here they are not: "
                "resume with the objective itself, not with a function around it, and with the "
                "data in memory"
            )

    def check_seed(self, found: Any, state: Mapping[str, Any]) -> None:
        """Check the seed of the measurements."""
        self.need(fits(found, int) and found >= 0, "check_seed", found)


_FIELDS: dict[str, Callable[..., None]] = {
    "setup": lambda *_: None, "step": _Check.step, "seconds": _Check.seconds,
    "history": _Check.history, "model": _Check.raw, "averaged": _Check.average,
    "averages": _Check.averages, "best": _Check.best, "optimizer": _Check.optimizer,
    "noise": _Check.noise, "batches": _Check.batches, "dropping": _Check.dropping,
    "augmenting": partial(_Check.noise, field="augmenting"), "check_seed": _Check.check_seed,
    "drawn_from": _Check.drawn_from,
}  # fmt: skip
"""The fields of a training state, in the order in which they are looked at."""


def _said(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of {found.dtype} {tuple(found.shape)}, finite or not"
    if isinstance(found, dict):
        return f"a dict of {short(sorted(map(str, found)))}"
    return found if isinstance(found, str) and found.startswith(("this", "with")) else short(found)


class AdamW(torch.optim.AdamW):
    """AdamW itself: what PyTorch wraps around it imports the whole compiler, for two seconds."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def adamw(parameters: Sequence[Tensor], settings: TrainingSettings) -> torch.optim.AdamW:
    """Return the optimiser of a training."""
    return AdamW(
        list(parameters), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
