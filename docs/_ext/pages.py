"""The pages of the reference, one a room, and the navigation; made before each build."""

from __future__ import annotations

import inspect
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import names
from sphinx.application import Sphinx

import gradlogp


def first_line(value: Any) -> str:
    """Return the summary of an object's docstring."""
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def entry(name: names.Name) -> str:
    """Return the directive that documents a name."""
    if inspect.isclass(name.value):
        return f".. autoclass:: {name.path}\n   :members:\n"
    if inspect.isfunction(name.value):
        return f".. autofunction:: {name.path}\n"
    return f".. autodata:: {name.path}\n   :no-value:\n"


def heading(text: str, mark: str) -> str:
    return f"{text}\n{mark * len(text)}\n"


def table(found: list[names.Name]) -> str:
    """Return a table of names, each with its first line."""
    rows = []
    for name in found:
        told = first_line(name.value) if callable(name.value) else ""
        rows.append(f"   * - `~{name.path}`\n     - {told}")
    return "\n".join([".. list-table::", "   :widths: 30 70", "", *rows]) + "\n"


def room_page(room: str) -> str:
    """Return the page of a room: its namespaces, tables of their names, and each name."""
    parts = [heading(room, "=")]
    for space, found in names.of_room(room).items():
        if space != f"gradlogp.{room}":
            parts.append(heading(space.removeprefix("gradlogp."), "-"))
        parts.append(f".. automodule:: {space}\n   :no-index:\n")
        parts += [table(found), *map(entry, found)]
    return "\n".join(parts)


def index_page() -> str:
    """Return the page that lists the rooms."""
    parts = [heading("Reference", "="), "Every public name, by room.\n"]
    parts += [".. toctree::", "   :maxdepth: 1", "", *(f"   {room}" for room in names.ROOMS)]
    rows = [
        f"   * - :doc:`{room}`\n     - {first_line(import_module(f'gradlogp.{room}'))}"
        for room in names.ROOMS
    ]
    return "\n".join([*parts, "", ".. list-table::", "   :widths: 20 80", "", *rows]) + "\n"


def write(app: Sphinx) -> None:
    """Write the pages; what has not changed keeps its time, so that it is not read again."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    pages = {f"{room}.rst": room_page(room) for room in names.ROOMS} | {"index.rst": index_page()}
    for old in folder.iterdir():
        if old.name not in pages:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file, text in pages.items():
        path = folder / file
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def navigate(app: Sphinx, page: str, text: list[str]) -> None:
    """Put the navigation at the end of the first page."""
    if page == app.config.root_doc:
        for caption, listed in app.config.NAVIGATION.items():
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
            text[0] += "\n".join(listed) + "\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_config_value("NAVIGATION", {}, "env")
    app.connect("builder-inited", write)
    app.connect("source-read", navigate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
