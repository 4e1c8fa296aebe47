"""What the docstrings cite, gathered from their `References:` into one page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from names import PACKAGE, Name, everything, tree_of

SECTION = re.compile(r"^References:\n((?:[ ]+.*(?:\n|$))+)", re.MULTILINE)
CITED = re.compile(r"(?P<title>.+?) \((?P<authors>[^()]+), (?P<year>\d{4})\)")


class Work(NamedTuple):
    """What is cited, and where.

    Attributes:
        title: The title, with authors and year behind it.
        address: Where it is to be read.
        places: The names and files that cite it.
    """

    title: str
    address: str
    places: list[Name | str]

    def order(self) -> tuple[str, ...]:
        """Return what works are sorted by: authors, year, title."""
        found = CITED.match(self.title)
        return (found["authors"], found["year"], self.title) if found else ("~", self.title)

    def text(self) -> str:
        """Return authors, year and title in one line; the title alone where it has no authors."""
        found = CITED.match(self.title)
        rest = self.title[found.end() :] if found else ""
        return (
            f"{found['authors']}, {found['year']}. {found['title']}{rest}" if found else self.title
        )


def cited(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield title and address of what a docstring cites."""
    for section in SECTION.findall(docstring):
        lines: list[str] = []
        for line in map(str.strip, section.splitlines()):
            if line.startswith("| ") or not lines:
                lines.append(line.removeprefix("| "))
            else:
                lines[-1] += f" {line}"
        yield from zip(lines[::2], lines[1::2], strict=True)


def documented(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """Yield what may have a docstring, of a node and all statements below."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield node
    for inner in ast.iter_child_nodes(node) if not isinstance(node, ast.expr) else ():
        yield from documented(inner)


def works() -> list[Work]:
    """Return all that is cited, by authors and year."""
    public = {name.home: name for name in everything()}
    found: dict[str, Work] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        where = str(file.relative_to(PACKAGE))
        tree = tree_of(file)
        for top in (tree, *tree.body):
            for node in [top] if top is tree else documented(top):
                place = public.get((where, getattr(top, "name", "")), where)
                for title, address in cited(ast.get_docstring(node) or ""):
                    work = found.setdefault(address, Work(title, address, []))
                    if place not in work.places:
                        work.places.append(place)
    return sorted(found.values(), key=Work.order)
