"""One writer: a folder belongs to the process that claimed it, until that process ends."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST = 4096  # bytes of a lock


class Claim:
    """The right to write to a folder: a file `.name.lock` beside it, as long as this object exists.

    The lock identifies a process by number, host and start time. The lock of a process that has
    ended is void: there is no process with this number on the host, or it started at a different
    time. A lock of another host is valid until its file is deleted.

    Arguments:
        path: The folder; it need not exist.

    Raises:
        OSError: If another process has a claim, or no lock can be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, lock = path, path.with_name(f".{path.name}.lock")
        mine = {
            "pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"), "claim": secrets.token_hex(8),
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            _check_free(path, lock)
            part = lock.with_name(f"{lock.name}.new")
            part.write_text(json.dumps(mine))
            os.replace(part, lock)
        self.release = weakref.finalize(self, _release, lock, mine)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()


def _check_free(path: Path, lock: Path) -> None:
    holder = _read(lock)
    if holder is None:
        return
    pid, host = holder["pid"], holder["host"]
    if host == socket.gethostname() and _started(pid) != holder["started"]:
        return
    who = (
        "this process" if (pid, host) == (os.getpid(), socket.gethostname()) else f"process {pid}"
    )
    raise OSError(
        f"{path} is being written by {who} on {host} since {holder['since']}: close or stop it, or "
        f"choose a different folder; if that process is gone, delete {lock}"
    )


def _read(lock: Path) -> dict[str, Any] | None:
    """Return what a lock says, or None where there is none."""
    if not os.path.lexists(lock):
        return None
    try:
        if not lock.is_file() or lock.stat().st_size > LARGEST:
            raise ValueError
        found = json.loads(lock.read_bytes())
        if not (type(found["pid"]) is int and 0 < found["pid"] < 2**31):
            raise ValueError
        return {name: found[name] for name in ("pid", "host", "started", "since")}
    except FileNotFoundError:  # released just now
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise OSError(f"{lock} is not a gradlogp lock: delete it") from None


def _release(lock: Path, mine: dict[str, Any]) -> None:
    """Delete our lock; a forked child leaves that of its parent alone."""
    if mine["pid"] != os.getpid():
        return
    try:
        if json.loads(lock.read_bytes()) == mine:
            lock.unlink()
    except (OSError, ValueError):  # somebody deleted it
        pass


def _started(pid: int) -> str | None:
    """Return when a process of this host started; None if there is none, or a dead one."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if after[0] in "ZX" else f"{boot} {after[19]}"
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"  # nobody can say: the lock holds
    return done.stdout.strip() or None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from looking at locks in this folder meanwhile, where the system can."""
    try:
        import fcntl

        number = os.open(folder, os.O_RDONLY)
    except (ImportError, PermissionError):
        yield
        return
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(number)
