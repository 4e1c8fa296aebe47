"""A run in progress: from the state of its chains to the `Chain` that is returned."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...core import Density, Generator
from ...distributions.parameters import parameters_of
from ..chain import Chain
from ..guard import Guarded
from ..tuning import Adaptation
from .reading import alike, plain, read, rebuilt, rebuilt_values
from .resume import VERSION, begin, check_saved, merge, narrowed, noise_of
from .rounds import Round, Thinning, rounds
from .stream import Keep, Place, Store, Stream, event_of
from .warmup import Walkers, WarmUp, retuned, tune, tuned_values


class Asked(NamedTuple):
    """The arguments of a run."""

    n_steps: int
    thinning: Thinning
    how: Adaptation | None

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        steps = {"n_steps": int(self.n_steps)} | {
            k: int(v) for k, v in self.thinning._asdict().items()
        }
        return steps | {"adapt": plain(self.how)}


@dataclasses.dataclass
class Walk:
    """A run in progress.

    `tuned` is what was tuned of the kernel, by this run or by the one that it continues, and `mine` the
    chunks of chains that this one of several processes moves once the kernel is tuned.
    """

    kernel: Any
    target: Guarded
    asked: Asked
    end: Round
    tuned: Mapping[str, Any] | None
    warmup: WarmUp | None = None
    mine: list[slice] | None = None

    @property
    def counts(self) -> tuple[int, int, Thinning, int]:
        """Steps taken and requested, which are kept, and after how many divergent ones count."""
        n_steps, thinning, how = self.asked
        return self.end.done, n_steps, thinning, 0 if how is None else thinning.burn_in

    def go(self, store: Store | Stream, tell: Callable[..., None] | None) -> Chain:
        """Take all steps that are left."""
        n_steps, thinning, how = self.asked
        self.target.lenient = True
        if how is not None and not self.end.done:
            walkers = Walkers(self.end.parts, self.target, store.watching(tell))
            with store.interruptible():
                self.warmup = tune(how, self.kernel, walkers, thinning.burn_in)
            self.kernel = self.warmup.kernel
            self.tuned = tuned_values(self.kernel)
            self.end = Round(thinning.burn_in, walkers.parts, None)
            self.target.failures.clear()
            store.save(self.moving)
        if self.mine is not None:
            self.end = self.end._replace(parts=narrowed(self.end.parts, self.mine))
        done, parts, _ = self.end
        for new in rounds(self.kernel, self.target, parts, thinning, n_steps, store, tell, done):
            if (before := self.end.diverged) is not None and new.diverged is not None:
                new = new._replace(diverged=before + new.diverged)
            self.end = new
            if store.due:
                store.save(self.moving)
        store.save(self.moving)
        draws, info = store.finish(thinning.kept(self.end.done))
        step_size = getattr(self.kernel, "step_size", None)
        return Chain(
            draws,
            info,
            merge(self.end.parts),
            complete=self.end.done == n_steps,
            divergences=self.end.diverged,
            step_size=float(step_size) if isinstance(step_size, float | int) else None,
            resume=self.resume(),
            kernel=self.kernel,
            target=self.target.target,
            failures=dict(self.target.failures),
            warmup=self.warmup,
            parameters=parameters_of(self.target),
        )

    def resume(self) -> dict[str, Any]:
        """Return the state from which `run(resume=)` continues."""
        state = merge(self.end.parts)
        return {
            "version": VERSION,
            "state": state._asdict(),
            "noise": noise_of(self.end.parts),
            "device": state.x.device.type,
            "since": self.asked.thinning.left_over(self.end.done),
            **({} if self.tuned is None else {"tuned": self.tuned}),
        }

    def moving(self) -> dict[str, Any]:
        """Return the state from which a killed run continues, as plain values."""
        resume, warmup = self.resume(), None
        if self.warmup is not None:
            names = [
                f.name for f in dataclasses.fields(WarmUp) if f.name not in ("kernel", "state")
            ]
            warmup = {name: plain(getattr(self.warmup, name)) for name in names}
        return {
            "done": int(self.end.done),
            "draws": int(self.asked.thinning.kept(self.end.done)),
            "resume": plain(resume),
            "divergences": plain(self.end.diverged),
            "failures": dict(self.target.failures),
            "warmup": warmup,
        }


def go_on(
    stream: Stream,
    kernel: Any,
    target: Density,
    asked: Asked,
    generator: Generator | None,
    chunk_size: int | None,
) -> Walk:
    """Return the run of a stream in its saved state, with its files open.

    Raises:
        ValueError: If its arguments, kernel or target differ.
    """
    saved = stream.saved = read(stream.path)
    defaults = Asked(0, Thinning(0, 1), None).plain()
    for name, value in asked.plain().items():
        if not (alike(value, saved[name]) or alike(value, defaults[name])):
            raise ValueError(
                f"{stream.path} is a run with {name}={rebuilt(saved[name])}, got "
                f"{rebuilt(value)}: omit it"
            )
    if not alike(given := plain(kernel), saved["kernel"]):
        raise ValueError(
            f"{stream.path} is a run of {_listed(saved['kernel'])}, but {_listed(given)} was given: "
            "continue with the kernel of that run"
        )
    if saved["resume"]["noise"] is None:
        raise ValueError(
            f"{stream.path} is a run on the caller's own noise source, which its files do not "
            f"hold: it cannot be continued"
        )
    device = saved["resume"]["device"]
    state = {name: value.to(device) for name, value in saved["resume"]["state"].items()}
    resume = check_saved(saved["resume"] | {"state": state}, None, generator)
    asked = Asked(
        saved["n_steps"],
        Thinning(saved["burn_in"], saved["thin"], saved["since"]),
        rebuilt(saved["adapt"]),
    )
    guarded, tuned = Guarded(target), resume.get("tuned")
    kernel = retuned(kernel, tuned)
    parts = begin(kernel, guarded, state["x"], resume, generator, chunk_size)
    parameters = parameters_of(target)
    n_draws, own = asked.thinning.kept(asked.n_steps), saved["parameters"]
    if (len(state["x"]), n_draws, *event_of(state["x"], parameters)) != saved["shape"] or (
        None if parameters is None else parameters.shapes
    ) != (None if own is None else own["shapes"]):
        raise ValueError(
            f"{stream.path} holds draws of shape {saved['shape']}, from a different target"
        )
    stream.go_on(parameters)
    guarded.failures.update(saved["failures"])
    warmup = saved["warmup"]
    return Walk(
        kernel, guarded, asked, Round(saved["done"], parts, saved["divergences"]), tuned,
        warmup and WarmUp(kernel=kernel, state=None, **rebuilt_values(warmup)),
    )  # fmt: skip


def check_alone(path: str | os.PathLike[str], x0: Tensor | None, keep: Keep | Place) -> None:
    """Raise `ValueError` for starting points or a different file beside a continued stream."""
    if x0 is not None:
        raise ValueError("pass x0= or resume=, not both: a resumed run starts where it ended")
    if keep != "memory" and (
        isinstance(keep, Place) or Path(keep).absolute() != Path(path).absolute()
    ):
        raise ValueError(
            f"{path} continues in its own file; omit keep=, or pass resume=Chain.open(...) to write "
            "further draws elsewhere"
        )


def _listed(kernel: Mapping[str, Any]) -> str:
    """Return a kernel as it would be written."""
    if "class" not in kernel:
        return str(kernel.get("opaque"))
    fields = (
        f"{name}={value if isinstance(value, int | float | str | tuple | None) else '…'}"
        for name, value in kernel.items()
        if name != "class"
    )
    return f"{kernel['class']}({', '.join(fields)})"
