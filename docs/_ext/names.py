"""The public names of the library, found and not listed: for each room its namespaces and their names."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import gradlogp

PACKAGE = Path(gradlogp.__file__).parent
ROOMS = (
    "core", "calculus", "show", "noise", "distributions", "scores", "langevin", "geometry",
    "learn", "diffusion", "check", "inverse", "interfaces",
)  # fmt: skip
"""In the order of the floors."""

APART = ("gradlogp.interfaces.cli", "gradlogp.interfaces.demos")
"""Namespaces that are no library: programs, which have pages of their own."""


class Name(NamedTuple):
    """A public name.

    Attributes:
        path: Where a user finds it, "gradlogp.langevin.ULA".
        home: Where it is written, as (file below the package, name).
        value: The object.
    """

    path: str
    home: tuple[str, str]
    value: Any

    @property
    def short(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


def file_of(module: str) -> Path:
    """Return the file of a module of the package, given by its full name."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree_of(file: Path) -> ast.Module:
    """Return the syntax of a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(module: str) -> dict[str, str]:
    """Return what a module of the package imports from the package, {name there: path of what it is}."""
    file, found = file_of(module), {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            for alias in node.names:
                there = ".".join([*base, *filter(None, [node.module]), alias.name])
                found[alias.asname or alias.name] = there
    return found


def exported(module: str) -> list[str]:
    """Return the names that a module hands out: `import X as X` of a package, what is written in a file.

    They are read and not asked for, since some are loaded only when first used.
    """
    file = file_of(module)
    tree = tree_of(file)
    nodes = ast.walk(tree) if file.name == "__init__.py" else ()
    found = [
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [t.id for t in targets if isinstance(t, ast.Name)]
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def home(path: str) -> tuple[str, str]:
    """Return the file in which a name is written, and the name, following the imports.

    A module that a package hands out is a file without a name.
    """
    module, _, name = path.rpartition(".")
    there = imports(module).get(name)
    if there == path:
        return str(file_of(path).relative_to(PACKAGE)), ""
    return home(there) if there else (str(file_of(module).relative_to(PACKAGE)), name)


def namespaces(room: str) -> list[str]:
    """Return the namespaces of a room: itself, then the modules and packages that it hands out."""
    here = f"gradlogp.{room}"
    found, inner = [], {here, *(f"gradlogp.{r}.{n}" for n, r in gradlogp._SUBPACKAGES.items())}
    inner |= {f"{here}.{p.parent.name}" for p in (PACKAGE / room).glob("*/__init__.py")}
    while inner:
        space = min(inner)
        inner.remove(space)
        if f"{space}.".startswith(f"{here}.") and space not in (*found, *APART):
            found.append(space)
            module = import_module(space)
            inner |= {
                f"{space}.{name}"
                for name in exported(space)
                if isinstance(getattr(module, name, None), types.ModuleType)
            }
    return found


def of_room(room: str) -> dict[str, list[Name]]:
    """Return the names of a room by namespace, each once, under its shortest path."""
    seen: set[tuple[str, str]] = set()
    found: dict[str, list[Name]] = {}
    tops = [f"gradlogp.{n}" for n, r in gradlogp._NAMES.items() if r.split(".")[0] == room]
    for space in namespaces(room):
        module = import_module(space)
        paths = [f"{space}.{name}" for name in exported(space)]
        if space == f"gradlogp.{room}":
            paths = [*paths, *tops]
        for path in paths:
            value = getattr(module, path.rpartition(".")[2], None)
            value = getattr(gradlogp, path.rpartition(".")[2]) if path in tops else value
            where = home(path)
            if (
                isinstance(value, types.ModuleType)
                or where in seen
                or Path(where[0]).parts[0] != room
            ):
                continue
            seen.add(where)
            found.setdefault(space, []).append(Name(path, where, value))
    return found


def everything() -> list[Name]:
    """Return all public names, each once."""
    return [n for room in ROOMS for names in of_room(room).values() for n in names]


def is_callable(name: Name) -> bool:
    """Whether there is something to test: a function, or a class that is no protocol or alias."""
    return inspect.isfunction(name.value) or (
        inspect.isclass(name.value) and not getattr(name.value, "_is_protocol", False)
    )
