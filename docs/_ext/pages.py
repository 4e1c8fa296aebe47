"""The pages of the reference, one a room, and the navigation; made before each build."""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import shutil
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import Any
from unittest.mock import patch

import bibliography
import evidence
from docutils import nodes
from names import ROOMS, Name, documentation, everything, of_room
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

from gradlogp.check.theory import CHECKS
from gradlogp.interfaces.cli.main import app, main

INTRODUCTION = """Every public name, by the room in which it is written.

The examples begin with ``import torch`` and ``import gradlogp as glp``; the tests run them, and compare
what comes out.

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
    return (
        "\n".join([".. list-table::", "   :class: names", "   :widths: 35 65", "", *rows]) + "\n"
    )


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
    listed = [*ROOMS, "commands", "claims", "works"]
    parts = [heading("Reference", "="), INTRODUCTION]
    parts += [
        ".. toctree::",
        "   :hidden:",
        "   :titlesonly:",
        "",
        *(f"   {page}" for page in listed),
    ]
    texts = [summary(inspect.getdoc(import_module(f"gradlogp.{room}")) or "") for room in ROOMS]
    texts += [
        "What the commands of `gradlogp` take.",
        "What the theory says, as measurements: `gradlogp verify`.",
        "What the docstrings cite.",
    ]
    rows = [f"   * - :doc:`{page}`\n     - {t}" for page, t in zip(listed, texts, strict=True)]
    return "\n".join([*parts, "", ".. list-table::", "   :widths: 20 80", "", *rows]) + "\n"


def claims_page() -> str:
    """Return the page of the claims, by topic."""
    parts = [heading("Claims", "="), CLAIMS]
    for topic, checks in groupby(CHECKS, lambda check: check.name.split(".")[0]):
        parts += [heading(topic, "-"), ".. list-table::", "   :widths: 30 70", ""]
        for check in checks:
            parts.append(f"   * - .. _claim-{check.name}:\n\n       ``{check.name}``")
            parts.append(f"     - | {plain(check.statement)}\n       | {source(check.source)}")
        parts.append("")
    return "\n".join(parts)


def commands_page() -> str:
    """Return the page of the command line: what each command says of itself."""
    parts = [
        heading("Command line", "="),
        "What ``gradlogp`` and its commands say with ``--help``.\n",
    ]
    for command in ("", *(name for name in app if not name.startswith("-"))):
        with redirect_stdout(io.StringIO()) as said, patch.dict(os.environ, COLUMNS="96"):
            main([*command.split(), "--help"])
        text = "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())
        parts += [heading(f"gradlogp {command}".strip(), "-"), ".. code-block:: none", ""]
        parts.append(indent(text, "   ") + "\n")
    return "\n".join(parts)


def source(text: str) -> str:
    """Return the source of a claim, with a link to it."""
    text = plain(text).replace("derived, docs/theory.md", ":doc:`derived </theory>`")
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text)
    text = re.sub(r"doi (10\.\S+)", r"`doi \1 <https://doi.org/\1>`__", text)
    return re.sub(r"(jmlr\.org/\S+)", r"`\1 <https://\1>`__", text)


def works_page() -> str:
    """Return the page of what is cited."""
    parts = [heading("Works cited", "="), "What the docstrings cite, and where.\n"]
    for work in bibliography.works():
        places = ", ".join(
            f"``{place}``"
            if isinstance(place, str)
            else f":py:obj:`{place.called} <{place.path}>`"
            for place in work.places
        )
        parts.append(f"| {plain(work.text())}\n| {work.address}\n| {places}\n")
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
        text += [f"   **{title}**", "", *(f"   - {item}" for item in items), ""]
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


class Linked(SphinxPostTransform):
    """Link `glp.fit` in the text of a page to its place in the reference."""

    default_priority = 5

    def run(self, **arguments: Any) -> None:
        """Replace the literals that are public names."""
        called = {name.called: name for name in everything()}
        for node in list(self.document.findall(nodes.literal)):
            name = called.get(node.astext().removesuffix("()"))
            if name is not None and not isinstance(node.parent, nodes.reference | pending_xref):
                link = pending_xref(
                    "", refdomain="py", reftype="obj", reftarget=name.path, refexplicit=True,
                    refdoc=self.env.current_document.docname, refwarn=False,
                )  # fmt: skip
                node.replace_self(link)
                link += node


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
    evidence.all_evidence()  # once, before processes that read pages are forked
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    pages = {f"{room}.rst": room_page(room) for room in ROOMS}
    pages |= {"index.rst": index_page(), "claims.rst": claims_page(), "works.rst": works_page()}
    pages["commands.rst"] = commands_page()
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
        text[0] += "\n[Reference](reference/index.rst): every public name, and what checks it.\n"
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
    app.add_post_transform(Linked)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
