"""A folder that is replaced as a whole: a reader finds the old one or the new one, and renames nothing.

If the system can exchange two names atomically (Linux), it does. Otherwise the old folder has
another name while the new one takes its place, and readers look there too. Files that are read
together must all have been in the same folder; otherwise they are read again.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from ..core.files import sync

T = TypeVar("T")
SUMS = "SHA256SUMS"
"""Digests of the files of a folder, as `sha256sum -c` reads them."""

LARGEST = 2**30  # bytes of JSON; more is not what it claims to be
_AT_FDCWD, _EXCHANGE = -100, 2


def fresh_folder(path: Path, known: Collection[str]) -> Path:
    """Return a new, empty folder beside `path`, to be filled and then `put` there.

    Remains of an earlier writer are removed first. Only the one writer may call this.
    """
    new, old = _beside(path)
    if old.exists() and not path.exists():
        os.rename(old, path)
    for leftover in (new, old):
        discard(leftover, path, known)
    new.mkdir()
    return new


def put(fresh: Path, path: Path, known: Collection[str]) -> None:
    """Rename `fresh` to `path` once it is on disk; files that are not `known` are moved to it.

    All its files get the permissions of newly created files; the folder keeps its own.
    """
    (fresh / SUMS).write_text("".join(f"{digest(f)}  {f.name}\n" for f in sorted(fresh.iterdir())))
    mode = stat.S_IMODE((fresh / SUMS).stat().st_mode)
    for file in fresh.iterdir():
        file.chmod(mode)
        sync(file)
    sync(fresh)
    old = _beside(path)[1]
    if not path.exists():
        os.rename(fresh, path)
    else:
        shutil.copymode(path, fresh)
        if exchange(fresh, path):
            old = fresh
        else:
            os.rename(path, old)
            try:
                os.rename(fresh, path)
            except BaseException:
                os.rename(old, path)
                raise
    sync(path.parent)
    discard(old, path, known)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def discard(leftover: Path, path: Path, known: Collection[str]) -> None:
    """Delete a folder that is no longer needed, but move files that are not `known`."""
    if not leftover.exists():
        return
    for item in leftover.iterdir() if path.exists() else ():
        if item.name not in (*known, SUMS) and not os.path.lexists(path / item.name):
            os.rename(item, path / item.name)
    shutil.rmtree(leftover, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two folders at once; return whether the system could."""
    system = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    rename = getattr(system, "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(a), os.fsencode(b)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(b))


def find(directory: str | os.PathLike[str]) -> Path:
    """Return where the folder of this name is now; also while it is replaced, or was left so."""
    if "\0" in str(directory):
        raise ValueError(f"the name of a checkpoint has a null character, got {str(directory)!r}")
    path = Path(os.path.realpath(directory))
    old = _beside(path)[1]
    return old if not path.exists() and old.exists() else path


def read_whole(directory: str | os.PathLike[str], read: Callable[[Path], T]) -> T:
    """Return the result of `read` on the folder, all from one version of it.

    Raises:
        OSError: If for a minute the folder is replaced during each attempt.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        path = find(directory)
        before = _version(path)
        try:
            found = read(path)
        except (ValueError, OSError):
            if before == _version(find(directory)):
                raise
        else:
            if before == _version(find(directory)):
                return found
        time.sleep(0.005)
    raise OSError(f"{directory} keeps being replaced while it is read")


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns


def one_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_file(path: Path, largest: int | None = None) -> None:
    """Raise `ValueError` unless this is a file, not a pipe or a folder, and not too large."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing: the checkpoint is incomplete or not one") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is damaged: it is not a file")
    if largest is not None and found.st_size > largest:
        raise ValueError(f"{path} is damaged: it has {found.st_size} bytes, {largest} at most")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> None:
    """Raise `ValueError` if a file is not the one that was saved; folders without digests pass."""
    sums = path.parent / SUMS
    if not os.path.lexists(sums):
        return
    check_file(sums, 2**16)
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    known = {part[2]: part[1] for part in parts if part}
    if None in parts or path.name not in known:
        raise ValueError(f"{sums} is damaged: it has no SHA-256 of {path.name}")
    if digest(path) != known[path.name]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is not that in {SUMS}; if you changed it on purpose, "
            f"delete {SUMS}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: If it is missing or damaged.
    """
    check_file(path, LARGEST)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of the digits of a number
        raise ValueError(
            f"{path} is not valid JSON ({one_line(error)}): the checkpoint is damaged"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object: the checkpoint is damaged")
    return content
