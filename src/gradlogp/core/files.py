"""Files that are complete or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

Content = bytes | str | Callable[[BinaryIO], object]
"""What a file holds: bytes, text (UTF-8), or a function that writes it."""


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield other paths to write to; after a block without errors, the files take the given names.

    They are renamed only when all are complete on disk. If anything fails before, existing files
    with these names are unchanged, and no temporary files remain. A link stays a link: the file it
    points to is replaced. Anything that is not a file (a terminal, a pipe) is yielded as it is.

    Raises:
        OSError: In one line that names the files, if they cannot be written.
    """
    ends = [Path(os.path.realpath(path)) for path in paths]
    parts = [
        end.with_name(f".{secrets.token_hex(6)}{end.suffix}") if _replaceable(end) else end
        for end in ends
    ]
    waiting = [(part, end) for part, end in zip(parts, ends, strict=True) if part != end]
    try:
        for end in ends:
            end.parent.mkdir(parents=True, exist_ok=True)
        yield tuple(parts)
        for part, end in waiting:
            if end.exists():
                shutil.copymode(end, part)
            sync(part)
        for part, end in waiting:
            os.replace(part, end)
        for folder in {end.parent for _, end in waiting}:
            sync(folder)
    except OSError as error:
        names = ", ".join(map(str, paths))
        raise OSError(f"cannot write {names}: {error.strerror or error}") from error
    finally:
        for part, end in waiting:
            if end.parent.is_dir():
                part.unlink(missing_ok=True)


def write_files(files: Mapping[Path, Content]) -> None:
    """Write files as `replacing` does: all of them, or none.

    Raises:
        OSError: In one line that names them, if they cannot be written.
    """
    with replacing(*files) as parts:
        for part, content in zip(parts, files.values(), strict=True):
            with part.open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)


def write_atomically(path: Path, content: Content) -> None:
    """Write one file; a reader finds the old one or the new one, whole."""
    write_files({path: content})


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Raise `OSError` if no file, or no file in this folder, can be made; nothing is touched."""
    end = Path(os.path.realpath(path))
    try:
        if end.is_dir() and not folder:
            raise IsADirectoryError(None, "it is a folder")
        if folder or _replaceable(end):
            above = (end, *end.parents) if folder else end.parents
            with tempfile.TemporaryFile(dir=next(place for place in above if place.exists())):
                pass
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if os.name == "nt" and path.is_dir():
        return  # it flushes names by itself, and opens no folders
    number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _replaceable(path: Path) -> bool:
    return path.is_file() or not path.exists()
