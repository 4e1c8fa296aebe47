"""The public names of the library, found and not listed: of each room its namespaces and names."""

from __future__ import annotations

import ast
import gc
import inspect
import types
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
        node: Its definition.
    """

    path: str
    home: tuple[str, str]
    value: Any
    node: ast.AST

    @property
    def short(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def called(self) -> str:
        """What a user writes: "glp.run", "glp.langevin.ULA"."""
        top = getattr(gradlogp, self.short) if self.short in gradlogp._NAMES else None
        return (
            f"glp.{self.short}" if top is self.value else self.path.replace("gradlogp", "glp", 1)
        )

    @property
    def kind(self) -> str:
        """What it is: a class, a function, or data."""
        kinds = {ast.ClassDef: "class", ast.FunctionDef: "function"}
        return kinds.get(type(self.node), "data")


def file_of(module: str) -> Path:
    """Return the file of a module of the package, given by its full name."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree_of(file: Path) -> ast.Module:
    """Return the syntax of a file.

    Trees are kept, so the collector need not pass over them: it took three times as long as the parser.
    """
    collecting = gc.isenabled()
    gc.disable()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    gc.freeze()
    if collecting:
        gc.enable()
    return tree


@cache
def import_nodes(file: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports of a file, those inside functions included."""
    statements: list[ast.AST] = [tree_of(file)]
    for node in statements:  # grows while it is read
        within = ast.iter_child_nodes(node)
        statements += [n for n in within if not isinstance(n, ast.expr)]
    return [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def imports(module: str) -> dict[str, str]:
    """Return what a module imports from the package, {name there: path of what it is}."""
    file, found = file_of(module), {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in import_nodes(file):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            for alias in node.names:
                there = ".".join([*base, *filter(None, [node.module]), alias.name])
                found[alias.asname or alias.name] = there
    return found


def bound(node: ast.AST) -> list[str]:
    """Return the names that a statement defines: a function, a class, or what is assigned."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [n.id for t in targets if t is not None for n in ast.walk(t) if isinstance(n, ast.Name)]


@cache
def definitions(file: Path) -> dict[str, ast.stmt]:
    """Return what a file defines at its top level."""
    return {name: node for node in tree_of(file).body for name in bound(node)}


def exported(module: str) -> list[str]:
    """Return the names that a module hands out: `import X as X` in a package, all that a file writes.

    They are read and not asked for, since some are loaded only when first used.
    """
    file = file_of(module)
    nodes = import_nodes(file) if file.name == "__init__.py" else ()
    found = [
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    if isinstance(given := definitions(file).get("__all__"), ast.Assign):
        return [str(name) for name in ast.literal_eval(given.value)]
    found += definitions(file)
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


@cache
def of_room(room: str) -> dict[str, list[Name]]:
    """Return the names of a room by namespace, each once, under its shortest path."""
    seen: set[tuple[str, str]] = set()
    found: dict[str, list[Name]] = {}
    tops = [name for name, where in gradlogp._NAMES.items() if where.split(".")[0] == room]
    for space in namespaces(room):
        module = import_module(space)
        paths = [f"{space}.{name}" for name in exported(space)]
        if space == f"gradlogp.{room}":
            paths += [
                f"{space}.{gradlogp._NAMES[n]}.{n}".replace(f".{room}.{room}", f".{room}")
                for n in tops
            ]
        for path in paths:
            where = home(path)
            node = definitions(PACKAGE / where[0]).get(where[1])
            if where not in seen and node is not None and Path(where[0]).parts[0] == room:
                seen.add(where)
                short = path.rpartition(".")[2]
                value = getattr(gradlogp if short in tops else module, short)
                found.setdefault(space, []).append(Name(path, where, value, node))
    return found


def everything() -> list[Name]:
    """Return all public names, each once."""
    return [n for room in ROOMS for names in of_room(room).values() for n in names]


def documentation(name: Name) -> str:
    """Return the docstring of a class or function, or the string that follows an assignment."""
    if name.kind != "data":
        return inspect.getdoc(name.value) or ""
    body = tree_of(PACKAGE / name.home[0]).body
    after = body[body.index(name.node) + 1 :][:1]
    text = after and isinstance(after[0], ast.Expr) and getattr(after[0].value, "value", "")
    return inspect.cleandoc(text) if isinstance(text, str) else ""
