"""Files of a stream of draws: reserved before the first step, locked, replaced as a whole.

All data are written with `write`, never through mapped memory: if a disk is full or a file has
been truncated, mapped memory kills the process (SIGBUS), while `write` raises an error.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_BYTES = 2**22
"""Written at once while a file is reserved."""


class Rows:
    """A `.npy` file of entries `(chain, draw, *entry)`, for draws that are still to come.

    The whole file is written at once, filled with NaN, so that there is room for the draws and no
    entry can be mistaken for a draw. After the last entry, where NumPy does not look, there is a
    `mark`: it is lost if the file is truncated, and a file with a different mark belongs to a
    different run.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], mark: bytes
    ) -> None:
        self.path, self.shape, self.dtype, self.mark = path, shape, dtype, mark
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(
            header, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        self._header = header.getvalue()
        self._entry = dtype.itemsize * int(np.prod(shape[2:], dtype=int))
        self.end = len(self._header) + self._entry * shape[0] * shape[1]
        self._file: Any = None

    def reserve(self, *, exclusive: bool) -> None:
        """Write the file without draws and keep it open.

        Raises:
            ValueError: If it exists and must be `exclusive`.
            OSError: If there is no room for it; the file is then removed.
        """
        try:
            self._file = open(self.path, "xb+" if exclusive else "wb+", buffering=0)
        except FileExistsError:
            raise ValueError(taken(self.path)) from None
        nothing = np.zeros(1, self.dtype)
        for name in self.dtype.names or (...,):
            if nothing[name].dtype.kind in "fc":
                nothing[name] = np.nan
        n = self.end - len(self._header)
        block = np.tile(nothing, max(1, min(n, BLOCK_BYTES) // self.dtype.itemsize)).tobytes()
        try:
            put(self._file, 0, self._header)
            for at in range(0, n, len(block)):
                put(self._file, len(self._header) + at, block[: n - at])
            put(self._file, self.end, self.mark)
            os.fsync(self._file.fileno())
        except BaseException as error:
            self.close()
            self.path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                size = self.end + len(self.mark)
                raise OSError(
                    error.errno,
                    f"there is no space for {size} bytes: {error.strerror}",
                    str(self.path),
                ) from None
            raise

    def open(self, mode: str = "rb") -> None:
        """Open the file of a run that has begun.

        Raises:
            ValueError: If it is missing, truncated, or belongs to a different run.
        """
        try:
            self._file = open(self.path, mode, buffering=0)
            self.check()
        except OSError as error:
            self.close()
            raise ValueError(f"{self.path} cannot be read: {error}") from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, where: slice, first: int, block: NDArray[Any]) -> None:
        """Write draws of the chains `where`, `(chain, n, *entry)`, from draw number `first` on."""
        assert self._file is not None
        content = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        at = len(self._header) + self._entry * (where.start * self.shape[1] + first)
        stride, n = self._entry * self.shape[1], len(content) // len(block)
        for chain in range(len(block)):
            put(self._file, at + chain * stride, content[chain * n : (chain + 1) * n])

    def sync(self) -> None:
        """Flush everything to the disk, if the file is still the same.

        Raises:
            OSError: If it was truncated, replaced or removed.
        """
        assert self._file is not None
        os.fsync(self._file.fileno())
        self.check()

    def check(self) -> None:
        """Raise `OSError` if the file was shortened, replaced or removed."""
        assert self._file is not None
        file = self._file.fileno()
        if os.pread(file, len(self.mark) + 1, self.end) != self.mark or not os.path.samestat(
            os.stat(self.path), os.fstat(file)
        ):
            raise OSError(
                f"{self.path} was truncated or replaced: its draws are not those of this run"
            )

    def mapped(self, mode: Any) -> NDArray[Any]:
        """Return all rows, read from the disk as they are used."""
        if not self.end - len(self._header):
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, mode, offset=len(self._header), shape=self.shape)


def put(file: Any, at: int, data: bytes | memoryview) -> None:
    """Write all of `data` from byte number `at` on."""
    while (n := os.pwrite(file.fileno(), data, at)) < len(data):
        data, at = data[n:], at + n


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the counterpart in NumPy.

    Raises:
        ValueError: If there is none.
    """
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise ValueError(
            f"a .npy file cannot hold {dtype}; keep the draws on the cpu, or run in float32"
        ) from None


def tensor(x: NDArray[Any]) -> Tensor:
    """Return a tensor on the same memory."""
    return torch.from_numpy(np.asarray(x))


def replace(path: Path, content: bytes) -> None:
    """Replace a file so that at any moment it has either the old or the new content.

    Raises:
        OSError: If it cannot be written; the old content stays.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with open(fresh, "wb", buffering=0) as file:
            put(file, 0, content)
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def taken(path: Path) -> str:
    """Return that a file exists."""
    return (
        f"{path} exists; choose another file for the draws, remove it, or continue its run with "
        f"resume={str(path)!r}"
    )


class Lock:
    """The lock of the one process, and the one run in it, that writes to a stream.

    The system releases the lock when the process ends, however it ends; the content of the file is
    then obsolete. The content counts only for a lock of another host, because not every file
    system forwards locks.

    Raises:
        ValueError: If another run holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, -1
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "start": time.time()}
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                held = not _flock(self._file)
                says = _holder(self._file)
                if held or (says and says["host"] != mine["host"]):
                    raise ValueError(_in_use(path, says, held))
                if path.exists() and os.path.samestat(os.stat(path), os.fstat(self._file)):
                    break  # else whoever held it has removed it since we opened it
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(mine).encode(), 0)

    def release(self) -> None:
        """Let others write."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)


def _flock(file: int) -> bool:
    """Lock a file, unless another process or another thread of this one has locked it."""
    import fcntl  # not on every system

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> dict[str, Any] | None:
    """Return what a lock says of who holds it; None for nothing that makes sense."""
    try:
        says = json.loads(os.pread(file, 1000, 0))
        return {"pid": int(says["pid"]), "host": str(says["host"]), "start": float(says["start"])}
    except (ValueError, KeyError, TypeError):
        return None


def _in_use(path: Path, says: dict[str, Any] | None, held: bool) -> str:
    stream = path.with_suffix("")
    if says is None:
        return f"another run writes to {stream}: wait for it, or choose another file"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(says["start"]))
    who = f"{stream} is written by process {says['pid']} on {says['host']} since {since}"
    if not held:
        return f"{who}, as far as this machine can tell; if that run has ended, remove {path}"
    return f"{who}: wait for it, or choose another file"
