"""The pages of the reference, one a room, and the navigation; made before each build."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from functools import cache
from importlib import import_module
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import Any

import evidence
from names import PACKAGE, ROOMS, Name, everything, of_room, tree_of
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

from gradlogp.check.theory import CHECKS

INTRODUCTION = """Every public name, by the room in which it is written. The examples begin with
``import torch`` and ``import gradlogp as glp``; the tests run them, and compare what comes out.

Below each name stands what checks it, read off the sources when the site is built: the claims of the
theory that measure it, the tests that use it, and the mutants in it: mistakes made on purpose, which a
test must notice.
"""
CLAIMS = """What the theory says, as measurements, with their sources. ``gradlogp verify`` makes them,
``gradlogp verify samplers.ula_law`` one of them. A statement in quotation marks is false, and what is
true follows.
"""


def heading(text: str, mark: str) -> str:
    """Return a heading."""
    return f"{text}\n{mark * len(text)}\n"


def plain(text: str) -> str:
    """Return text in which nothing is markup."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def more(items: list[str], most: int) -> list[str]:
    """Return the first items, and how many there are beside them."""
    rest = len(items) - most
    return items if rest <= 1 else [*items[:most], f"… and {rest} more"]


def documentation(name: Name) -> str:
    """Return the docstring of a class or function, or the string that follows an assignment."""
    if name.kind != "data":
        return inspect.getdoc(name.value) or ""
    body = tree_of(PACKAGE / name.home[0]).body
    after = body[body.index(name.node) + 1 :][:1]
    text = after and isinstance(after[0], ast.Expr) and getattr(after[0].value, "value", "")
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def summary(text: str) -> str:
    """Return the first paragraph of a docstring."""
    return text.split("\n\n")[0].replace("\n", " ")


def entry(name: Name) -> str:
    """Return the directive that documents a name."""
    if name.kind != "data":
        members = "\n   :members:" if name.kind == "class" else ""
        return f".. auto{name.kind}:: {name.path}{members}\n"
    value = ast.unparse(name.node.value) if getattr(name.node, "value", None) else ""  # type: ignore[attr-defined]
    shown = f"\n   :value: {value}" if value and len(value) <= 80 else ""
    return f".. py:data:: {name.path}{shown}\n\n{indent(documentation(name), '   ')}\n"


def table(found: list[Name]) -> str:
    """Return a table of names, each with its first line."""
    rows = []
    for name in found:
        text = summary(documentation(name))
        rows.append(f"   * - :py:obj:`{name.called} <{name.path}>`\n     - {text}")
    return "\n".join([".. list-table::", "   :widths: 35 65", "", *rows]) + "\n"


def room_page(room: str) -> str:
    """Return the page of a room: its namespaces, tables of their names, and each name."""
    parts = [heading(room, "=")]
    for space, found in of_room(room).items():
        if space != f"gradlogp.{room}":
            parts.append(heading(space.removeprefix("gradlogp."), "-"))
        parts.append(inspect.getdoc(import_module(space)) or "")
        parts += ["", table(found), *map(entry, found)]
    return "\n".join(parts)


def index_page() -> str:
    """Return the page that lists the rooms."""
    listed = [*ROOMS, "claims"]
    parts = [heading("Reference", "="), INTRODUCTION]
    parts += [
        ".. toctree::",
        "   :hidden:",
        "   :titlesonly:",
        "",
        *(f"   {page}" for page in listed),
    ]
    texts = [summary(inspect.getdoc(import_module(f"gradlogp.{room}")) or "") for room in ROOMS]
    texts.append("What the theory says, as measurements: `gradlogp verify`.")
    rows = [f"   * - :doc:`{page}`\n     - {t}" for page, t in zip(listed, texts, strict=True)]
    return "\n".join([*parts, "", ".. list-table::", "   :widths: 20 80", "", *rows]) + "\n"


def claims_page() -> str:
    """Return the page of the claims, by topic."""
    parts = [heading("Claims", "="), CLAIMS]
    for topic, checks in groupby(CHECKS, lambda check: check.name.split(".")[0]):
        parts += [heading(topic, "-"), ".. list-table::", "   :widths: 30 70", ""]
        for check in checks:
            parts.append(f"   * - .. _claim-{check.name}:\n\n       ``{check.name}``")
            parts.append(f"     - {plain(check.statement)}. {plain(check.source)}.")
        parts.append("")
    return "\n".join(parts)


def checked_by(name: Name) -> list[str]:
    """Return a box with the claims, tests and mutants of a name."""
    found = evidence.of(name)
    counts = [
        f"{len(items)} {word}{'s' * (len(items) != 1)}"
        for items, word in (
            (found.claims, "claim"), (found.tests, "test"), (found.mutants, "mutant"),
        )
        if items
    ]  # fmt: skip
    if not counts and not found.through:
        return []
    lists = []
    if found.claims:
        claims = [f":ref:`{c.name} <claim-{c.name}>`: {plain(c.statement)}" for c in found.claims]
        lists.append(("Claims", more(claims, 5)))
    if found.tests:
        lists.append(("Tests", more([f"``{test}``" for test in found.tests], 6)))
    if found.mutants:
        mutants = [
            f"{plain(m.name.partition(': ')[2])}: noticed by ``{m.test}``" for m in found.mutants
        ]
        lists.append(("Mutants", more(mutants, 6)))
    if found.through:
        users = [f":py:obj:`{user.called} <{user.path}>`" for user in found.through]
        lists.append(("Through", more(users, 6)))
        counts = counts or ["the tests of " + ("what returns or uses it")]
    text = ["", f".. admonition:: Checked by {', '.join(counts)}", "   :collapsible: closed", ""]
    for title, items in lists:
        text += [f"   {title}", "", *(f"   - {item}" for item in items), ""]
    return text


def adjust(app: Sphinx, what: str, path: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep a property's first line whole: what stands before a colon is no type here."""
    if what in ("property", "attribute", "data"):
        lines.insert(0, "")


def append(app: Sphinx, what: str, path: str, value: Any, options: Any, lines: list[str]) -> None:
    """Put what checks a name below its docstring."""
    name = by_path().get(path)
    if name is not None:
        lines += checked_by(name)


def sign(
    app: Sphinx, what: str, path: str, value: Any, options: Any, arguments: str | None, result: Any
) -> tuple[str | None, Any] | None:
    """Write defaults that are made anew as `...`, which can be parsed."""
    return arguments and (arguments.replace("<factory>", "..."), result)


def skip(
    app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any
) -> bool | None:
    """Leave out fields of a named tuple, which say only their number, and what scikit-learn adds."""
    added = str(getattr(value, "__module__", "")).startswith("sklearn.")
    return True if type(value).__name__ == "_tuplegetter" or added else None


@cache
def by_path() -> dict[str, Name]:
    """Return the public names by path."""
    return {name.path: name for name in everything()}


def shorter(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Find what a docstring names by a part of its path, as in `glp.run` or `langevin.judge`."""
    target = re.sub(r"^(glp|gradlogp)\.", "", node.get("reftarget", "")).removesuffix("()")
    if node.get("refdomain") != "py" or not re.fullmatch(r"\w+(\.\w+)*", target):
        return None
    objects = env.domains.python_domain.objects
    found = [path for path in objects if path.endswith(f".{target}")]
    best = [path for path in found if path in by_path()] or found
    if len(best) != 1:
        return None
    where = objects[best[0]]
    return make_refnode(
        app.builder, node.get("refdoc", ""), where.docname, where.node_id, content, best[0]
    )


def write(app: Sphinx) -> None:
    """Write the pages; what has not changed keeps its time, so that it is not read again."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    pages = {f"{room}.rst": room_page(room) for room in ROOMS}
    pages |= {"index.rst": index_page(), "claims.rst": claims_page()}
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
            text[0] += f"\n```{{toctree}}\n:hidden:\n:titlesonly:\n:caption: {caption}\n\n"
            text[0] += "\n".join(listed) + "\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_config_value("NAVIGATION", {}, "env")
    app.connect("builder-inited", write)
    app.connect("source-read", navigate)
    app.connect("autodoc-process-docstring", adjust, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", append, priority=600)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", shorter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
