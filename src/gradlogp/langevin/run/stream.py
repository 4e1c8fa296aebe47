"""Where draws go: beside the chains, or to files, with what a run continues from when it was killed.

=================  =====================================================================
`draws.npy`        the draws, `(chain, draw, *event)`; NaN where there is none yet
`draws.npy.info`   what each step reported: a `.npy` file with a field for each quantity
`draws.npy.state`  how many draws are real, and the state of chains and noise after them
`draws.npy.lock`   the process that writes, while there is one
=================  =====================================================================

The state is written after the draws that it counts are on the disk, and atomically replaces the
previous one. So the draws that it counts are always there, whenever the process ends; later draws
are drawn again from the same noise. Readers use the state: no row that it does not count is ever
returned.
"""

from __future__ import annotations

import io
import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import check_kind
from ...distributions.parameters import Parameters
from ..tuning.start import Start
from .files import Lock, Rows, numpy_dtype, replace, taken
from .reading import FORMAT, beside, contents, info_rows_of, named, rows_of
from .stops import Stops

Keep = Literal["memory", "cpu"] | str | os.PathLike[str]
"""`memory`, `cpu`, or the path of a `.npy` file."""


class Store:
    """Draws `(chain, draw, *event)` and information `(chain, draw)`, filled a block at a time.

    Of named parameters the values are stored; positions are the free numbers behind them.
    """

    caught: int | None = None
    """The signal that ended the run."""

    def __init__(
        self, device: torch.device, x: Tensor, n_draws: int, parameters: Parameters | None = None
    ) -> None:
        shape = (len(x), n_draws, *event_of(x, parameters))
        self._parameters, self._device, self._shape = parameters, device, shape[:2]
        self.info: Any = None
        self.draws = torch.empty(shape, dtype=x.dtype, device=device)

    def write(self, where: slice, first: int, draws: list[Tensor], infos: list[Any]) -> None:
        """Store draws of the chains `where` from draw number `first` on."""
        if not draws:
            return
        if self.info is None:
            self.allocate(infos[0])
        rows = (where, slice(first, first + len(draws)))
        self.draws[rows] = values_of(draws, self._parameters).to(self._device)
        for field, values in zip(self.info, zip(*infos, strict=True), strict=True):
            field[rows] = torch.stack(values, 1).to(self._device)

    def allocate(self, info: Any) -> None:
        """Make room for information like `info`."""
        rows = (torch.empty((*self._shape, *v.shape[1:]), dtype=v.dtype) for v in info)
        self.info = type(info)(*(v.to(self._device) for v in rows))

    def watching(self, tell: Callable[..., None] | None) -> Callable[..., None] | None:
        """Return what is to be called with the information of every step of a warm-up."""
        return tell

    def interruptible(self) -> AbstractContextManager[None]:
        """Within, a run can be interrupted at any moment."""
        return nullcontext()

    @property
    def due(self) -> bool:
        """Whether it is time to `save`."""
        return False

    def save(self, moving: Callable[[], Mapping[str, Any]]) -> None:
        """Save the state from which a killed run continues; in memory there is nothing to save."""

    def finish(self, n_draws: int) -> tuple[Tensor, Any]:
        """Return the first draws and their information."""
        info = type(self.info)(*(field[:, :n_draws] for field in self.info))
        return self.draws[:, :n_draws], info


def event_of(x: Tensor, parameters: Parameters | None) -> torch.Size:
    """Return the shape of a draw."""
    return x.shape[1:] if parameters is None else torch.Size((parameters.n_flat,))


def values_of(draws: list[Tensor], parameters: Parameters | None) -> Tensor:
    """Return draws of some chains, `(chain, n, *event)`; of named parameters their values."""
    x = torch.stack(draws, 1)
    if parameters is None:
        return x
    return parameters.constrain(x.flatten(0, 1)).unflatten(0, x.shape[:2])


SAVE_SECONDS = 5.0
"""Between two states on the disk: a killed run loses no more than what it drew in this time."""

SHARE = 50
"""Saving takes at most this part of the time, 1/50: with large states it is done less often."""

WAITING_BYTES = 2**24
"""Draws that wait to be written: of many chains each write is short, and they are best few."""


class Place(NamedTuple):
    """The path of a stream, and where `sample` started, to be kept beside the draws."""

    path: str | os.PathLike[str]
    start: Start | None


class Stream:
    """A `Store` on disk: inside `with`, one run writes, and signals wait until it has saved.

    Arguments:
        path: The file of the draws.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.info: Any = None
        self.saved: dict[str, Any] = {}
        self._stops = Stops()
        self._parameters: Parameters | None = None
        self._draws: Rows | None = None
        self._infos: Rows | None = None
        self._waiting: list[tuple[Rows, slice, int, NDArray[Any]]] = []
        self._due = 0.0

    # ------------------------------------------------------------------------ its life

    def __enter__(self) -> Stream:
        self._lock = Lock(beside(self.path, "lock"))
        self._stops.install()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stops.restore()
        for rows in (self._draws, self._infos):
            if rows is not None:
                rows.close()
        self._lock.release()
        self._stops.raise_again(ended=error is None and self.complete)

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end."""
        return self.saved["done"] == self.saved["n_steps"]

    @property
    def caught(self) -> int | None:
        """The signal that ended the run."""
        return self._stops.caught

    def interruptible(self) -> AbstractContextManager[None]:
        """Within, a signal is raised as `KeyboardInterrupt` at once."""
        return self._stops.interruptible()

    def create(
        self,
        x: Tensor,
        n_draws: int,
        parameters: Parameters | None,
        asked: Mapping[str, Any],
        moving: Mapping[str, Any],
    ) -> None:
        """Reserve space for all draws.

        Raises:
            ValueError: If the file exists, or is not a `.npy` file.
            OSError: If there is no room; the file is then removed.
        """
        dtype = check_path(self.path, x.dtype)
        self._parameters = parameters
        self.saved = {
            "format": FORMAT,
            "mark": uuid.uuid4().bytes,
            "shape": (len(x), n_draws, *event_of(x, parameters)),
            "dtype": dtype.str,
            "parameters": None
            if parameters is None
            else {"shapes": parameters.shapes, "constant": parameters.constant},
            **asked,
            **moving,
            "ready": False,
            "info": None,
        }
        self._draws = rows_of(self.path, self.saved)
        self._keep()
        try:
            self._reserve(self._draws, exclusive=True)
            self.saved["ready"] = True
            self._keep()
        except BaseException:
            beside(self.path, "state").unlink(missing_ok=True)
            if self.saved["ready"]:
                self.path.unlink()
            raise

    def go_on(self, parameters: Parameters | None) -> None:
        """Open the files that the state speaks of; those that it does not are written anew."""
        self._parameters = parameters
        self._draws = rows_of(self.path, self.saved)
        if self.saved["ready"]:
            self._draws.open("rb+")
        else:
            self._reserve(self._draws, exclusive=False)
            self.saved["ready"] = True
            self._keep()
        if (spec := self.saved["info"]) is not None:
            self.info = named("Info", [name for name, *_ in spec], [None] * len(spec))
            if (rows := info_rows_of(self.path, self.saved)) is not None:
                rows.open("rb+")
                self._infos = rows
        self._due = time.monotonic() + SAVE_SECONDS

    def _reserve(self, rows: Rows, *, exclusive: bool) -> None:
        with self.interruptible():
            rows.reserve(exclusive=exclusive)

    # ------------------------------------------------------------------------ what `rounds` calls

    def write(self, where: slice, first: int, draws: list[Tensor], infos: list[Any]) -> None:
        """Take draws of the chains `where` from draw number `first` on; they wait for others."""
        if not draws:
            return
        assert self._draws is not None
        if self.info is None:
            self.allocate(infos[0])
        self.info = infos[0]
        x = values_of(draws, self._parameters).cpu().numpy()
        self._waiting.append((self._draws, where, first, x))
        if self._infos is not None:
            block = np.empty(x.shape[:2], self._infos.dtype)
            for name, values in zip(self.info._fields, zip(*infos, strict=True), strict=True):
                block[name] = torch.stack(values, 1).cpu().numpy()
            self._waiting.append((self._infos, where, first, block))
        if sum(block.nbytes for *_, block in self._waiting) > WAITING_BYTES:
            self._flush()

    def allocate(self, info: Any) -> None:
        """Make room for information like `info`, which is known after the first step."""
        self.saved["info"] = tuple(
            (name, numpy_dtype(x.dtype).str, tuple(x.shape[1:]))
            for name, x in zip(info._fields, info, strict=True)
        )
        self._infos = info_rows_of(self.path, self.saved)
        if self._infos is not None:
            self._infos.reserve(exclusive=False)
        self.info = info

    def watching(self, tell: Callable[..., None] | None) -> Callable[..., None] | None:
        """Return what is called with the information of every step of a warm-up."""

        def watch(info: Any, *steps: int) -> None:
            if self.info is None and info is not None:
                self.allocate(info)
            if tell is not None:
                tell(info, *steps)

        return watch

    def _flush(self) -> None:
        """Write what waits; draws of the same chains that follow one another in one go."""
        waiting, self._waiting = self._waiting, []
        joined: dict[tuple[Path, int], tuple[Rows, slice, int, list[NDArray[Any]]]] = {}
        for rows, where, first, block in waiting:
            key = rows.path, where.start
            _, _, start, blocks = joined.setdefault(key, (rows, where, first, []))
            if start + sum(b.shape[1] for b in blocks) != first:  # drawn again
                rows.write(where, start, np.concatenate(blocks, 1))
                joined[key] = rows, where, first, (blocks := [])
            blocks.append(block)
        for rows, where, first, blocks in joined.values():
            rows.write(where, first, np.concatenate(blocks, 1))

    # ------------------------------------------------------------------------ what `run` calls

    @property
    def due(self) -> bool:
        """Whether it is time to `save`."""
        return time.monotonic() >= self._due

    def save(self, moving: Callable[[], Mapping[str, Any]]) -> None:
        """Write the pending draws, and then the state that counts them.

        Raises:
            OSError: If they cannot be written, or a file was truncated or replaced: the state on
                the disk is then the previous one.
        """
        began = time.monotonic()
        self._flush()
        for rows in (self._draws, self._infos):
            if rows is not None:
                rows.sync()
        self.saved |= moving()
        self._keep()
        now = time.monotonic()
        self._due = now + max(SAVE_SECONDS, SHARE * (now - began))

    def _keep(self) -> None:
        """Write the state."""
        content = io.BytesIO()
        torch.save(self.saved, content)
        replace(beside(self.path, "state"), content.getvalue())

    def finish(self, n_draws: int) -> tuple[Tensor, Any]:
        """Return the first draws and their information, read from the files as they are used."""
        return contents(self.path, self.saved, n_draws, type(self.info), "r+")


def check_path(path: Path, dtype: torch.dtype) -> np.dtype[Any]:
    """Return the dtype of a new file for draws.

    Raises:
        ValueError: If it is not the path of a new `.npy` file, or NumPy does not have the dtype.
    """
    if path.suffix != ".npy":
        raise ValueError(f"keep must be 'memory', 'cpu' or the path of a .npy file, got {path}")
    if path.exists():
        raise ValueError(taken(path))
    if os.name != "posix":
        raise ValueError("draws can be kept in a file only on Linux and macOS; use keep='cpu'")
    return numpy_dtype(dtype)


def check_keep(keep: Keep | Place, dtype: torch.dtype) -> Place | None:
    """Return the path of the file, None for memory.

    Raises:
        ValueError: If keep is neither `memory` nor `cpu` nor a new `.npy` file, or the dtype has no
            counterpart in NumPy.
    """
    if isinstance(keep, str) and keep in ("memory", "cpu"):
        return None
    check_kind(
        keep, "keep", str | os.PathLike | Place, "'memory', 'cpu' or the path of a .npy file"
    )
    place = keep if isinstance(keep, Place) else Place(keep, None)
    check_path(Path(place.path), dtype)
    return place
