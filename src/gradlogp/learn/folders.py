"""A folder that is replaced as a whole: the new one is complete before it takes the name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any


def _retired(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def replace(fresh: Path, path: Path, known: Collection[str]) -> None:
    """Give `fresh` the name `path`; if interrupted in between, `recover` finds the old one.

    Files of the old folder whose names are not among `known` are handed on to the new one.
    """
    old = _retired(path)
    _discard(old, path, known)
    if path.exists():
        os.rename(path, old)
    os.rename(fresh, path)
    _discard(old, path, known)


def _discard(old: Path, path: Path, known: Collection[str]) -> None:
    """Delete an old folder, but hand on to the new one what is not `known`."""
    for item in old.iterdir() if old.exists() else ():
        if item.name not in known and not (path / item.name).exists():
            os.rename(item, path / item.name)
    shutil.rmtree(old, ignore_errors=True)


def recover(directory: str | os.PathLike[str]) -> Path:
    """Return the path; a folder that was being replaced gets its name back."""
    path = Path(directory).resolve()  # renaming a link would leave what it points to behind
    if not path.exists() and _retired(path).exists():
        os.rename(_retired(path), path)
    return path


def one_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing: the checkpoint is incomplete or not one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): the checkpoint is damaged"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object: the checkpoint is damaged")
    return content
