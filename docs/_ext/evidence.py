"""What checks a public name: the claims that measure it, the tests that use it, the mutants in it.

All of it is read off the sources. A definition uses those that its body names. A test reaches what
it uses itself or through helpers of the tests, and a claim likewise through helpers of the theory. A
mutant in a private helper belongs to the public names that use the helper.
"""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from names import PACKAGE, Name, definitions, everything, file_of, home, import_nodes, imports

import gradlogp
from gradlogp.check.theory import CHECKS

ROOT = Path(__file__).parents[2]
TESTS, THEORY = ROOT / "tests", PACKAGE / "check" / "theory"

Place = tuple[Path, str]
"""A definition at the top level of a file: the file, and its name."""


class Claim(NamedTuple):
    """A row of the theory: its name, and its statement."""

    name: str
    statement: str


class Mutation(NamedTuple):
    """A way to be wrong: what it is, the test that notices, and the definition that it changes."""

    name: str
    test: str
    place: Place


class Evidence(NamedTuple):
    """What checks a name.

    Attributes:
        claims: That measure it, the most particular first.
        tests: That use it: first those that notice its mutants, then those of its room, of each the
            most particular first.
        mutants: In it, or in what is its own.
        through: Other public names that use it, where nothing names it itself: of a result, the
            functions that return it.
    """

    claims: list[Claim]
    tests: list[str]
    mutants: list[Mutation]
    through: list[Name]


def module_of(file: Path) -> str:
    """Return the full name of a file of the package; nothing for others."""
    if not file.is_relative_to(PACKAGE):
        return ""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["gradlogp", *(p for p in parts if p != "__init__")])


@cache
def locate(path: str) -> Place | None:
    """Return where "gradlogp.langevin.ULA" or "gradlogp.Gaussian.sample" is defined."""
    parts = path.split(".")
    if len(parts) > 1 and parts[0] == "gradlogp":
        if parts[1] in gradlogp._NAMES:
            return locate(".".join(["gradlogp", gradlogp._NAMES[parts[1]], *parts[1:]]))
        if parts[1] in gradlogp._SUBPACKAGES:
            return locate(".".join(["gradlogp", gradlogp._SUBPACKAGES[parts[1]], *parts[1:]]))
    for end in range(len(parts), 1, -1):
        if not file_of(".".join(parts[: end - 1])).exists():
            continue
        file, name = home(".".join(parts[:end]))
        if name in definitions(PACKAGE / file):
            return PACKAGE / file, name
    return None


@cache
def known(file: Path) -> dict[str, str | Place]:
    """Return what the imports of a file bind: paths in the package, or places in the tests."""
    found: dict[str, str | Place] = dict(imports(module_of(file))) if module_of(file) else {}
    for node in import_nodes(file):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gradlogp":
                    found[alias.asname or "gradlogp"] = alias.name if alias.asname else "gradlogp"
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                name = alias.asname or alias.name
                if node.module.split(".")[0] == "gradlogp":
                    found[name] = f"{node.module}.{alias.name}"
                for folder in (file.parent, TESTS):
                    there = folder.joinpath(*node.module.split(".")).with_suffix(".py")
                    if there.exists():
                        found[name] = (there, alias.name)
    return found


def dotted(node: ast.AST) -> list[str]:
    """Return the names of `a.b.c`, or nothing for other expressions."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


@cache
def names_in(node: ast.AST) -> frozenset[tuple[str, ...]]:
    """Return all names and dotted names in a piece of code, with the fixtures that a test takes."""
    found: set[tuple[str, ...]] = set()
    waiting: list[Any] = [node]
    while waiting:  # `ast.walk`, for a third of its time
        part = waiting.pop()
        kind = type(part)
        if kind is ast.Name:
            found.add((part.id,))
            continue
        if kind is ast.Attribute:
            found.add(tuple(dotted(part)))
            waiting.append(part.value)
            continue
        if kind is ast.arg:
            found.add((part.arg,))
        for value in vars(part).values():
            if isinstance(value, list):
                waiting += [v for v in value if isinstance(v, ast.AST)]
            elif isinstance(value, ast.AST):
                waiting.append(value)
    return frozenset(found - {()})


@cache
def fixtures() -> frozenset[str]:
    """Return what all tests may take."""
    return frozenset(definitions(TESTS / "conftest.py"))


@cache
def of_tests(file: Path) -> bool:
    """Return whether a file is one of the tests."""
    return TESTS in file.parents


def resolve(file: Path, words: Iterable[str]) -> Place | None:
    """Return the definition that a name in a file means."""
    first, *rest = words
    if first in definitions(file):
        return file, first
    bound = known(file).get(first)
    if isinstance(bound, str):
        return locate(".".join([bound, *rest]))
    if bound is None and first in fixtures() and of_tests(file):
        return TESTS / "conftest.py", first
    return bound


def discovered(file: Path, node: ast.AST) -> set[Place]:
    """Return what a test finds by `vars(module)`: the classes that have what `hasattr` asks for."""
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    asked = [
        n.args[1].value for n in calls
        if n.func.id == "hasattr" and isinstance(n.args[1], ast.Constant)
    ]  # fmt: skip
    paths = [
        ".".join([str(known(file)[first]), *rest])
        for n in calls if n.func.id == "vars" and asked
        for first, *rest in [dotted(n.args[0])] if isinstance(known(file).get(first), str)
    ]  # fmt: skip
    found = (
        locate(f"{path}.{name}")
        for path in paths
        for name, value in vars(import_module(path)).items()
        if isinstance(value, type) and all(hasattr(value, what) for what in asked)
    )
    return {place for place in found if place}


@cache
def uses(place: Place) -> frozenset[Place]:
    """Return the definitions that a definition names."""
    file, name = place
    node = definitions(file).get(name)
    words = names_in(node) if node else frozenset()
    found = {resolve(file, word) for word in words}
    found |= discovered(file, node) if node and ("vars",) in words else set()
    return frozenset(p for p in found if p is not None and p != place)


def reach(start: Iterable[Place], through: Callable[[Place], bool]) -> set[Place]:
    """Return all definitions that are used, followed through those of a kind."""
    waiting, found = list(start), set()
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            if through(place):
                waiting += uses(place)
    return found


def code_names(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """Yield the names in compiled code, alone and as `a.b` with the one that follows."""
    yield from ((name,) for name in code.co_names)
    yield from pairwise(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from code_names(inner)


def measured(thing: Any) -> set[Place]:
    """Return the definitions that a function, one with arguments bound, or an object is made of."""
    if isinstance(thing, partial):
        return set().union(*map(measured, (thing.func, *thing.args, *thing.keywords.values())))
    if not isinstance(thing, type | types.FunctionType):
        thing = type(thing)
    if not thing.__module__.startswith("gradlogp"):
        return set()
    file, name = file_of(thing.__module__), thing.__qualname__
    if name in definitions(file):
        return {(file, name)}
    found = {resolve(file, words) for words in code_names(thing.__code__)}
    cells = [cell.cell_contents for cell in thing.__closure__ or ()]
    return {p for p in found if p is not None}.union(*map(measured, cells))


def claims() -> Iterator[tuple[Claim, set[Place]]]:
    """Yield the claims of the theory, with what they measure."""
    for check in CHECKS:
        found = reach(measured(check.measure), lambda place: place[0].parent == THEORY)
        yield Claim(check.name, check.statement), found


def tests() -> Iterator[tuple[str, set[Place]]]:
    """Yield the tests, as "langevin/test_chain.py::test_names", with what they reach."""
    for file in sorted(TESTS.glob("*/test_*.py")):
        for name in definitions(file):
            if name.startswith("test_"):
                found = reach([(file, name)], lambda place: of_tests(place[0]))
                yield f"{file.relative_to(TESTS)}::{name}", found


@cache
def mutants() -> tuple[Any, ...]:
    """Return the mutants of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    from mutants.mutants import MUTANTS  # a module beside the tests

    return tuple(MUTANTS)


def place_of(mutant: Any) -> Place | None:
    """Return the definition that a mutant changes; None where its text is not in one."""
    file = PACKAGE / mutant.file
    text = file.read_text(encoding="utf-8")
    at = text.find(mutant.old)
    line = text.count("\n", 0, at + len(mutant.old) - len(mutant.old.lstrip("\n"))) + 1
    for name, node in definitions(file).items():
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])  # type: ignore[attr-defined]
        if at >= 0 and first <= line <= node.end_lineno:  # type: ignore[attr-defined]
            return file, name
    return None


@cache
def users() -> dict[Place, set[Place]]:
    """Return for each definition of the package those that name it."""
    found: dict[Place, set[Place]] = {}
    for file in PACKAGE.rglob("*.py"):
        for name in definitions(file):
            for used in uses((file, name)):
                found.setdefault(used, set()).add((file, name))
    return found


def owners(place: Place, public: set[Place]) -> set[Place]:
    """Return the public names to which a definition belongs: itself, or those that use it."""
    waiting, seen = [place], set()
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += [] if here in public else users().get(here, ())
    return seen & public


@cache
def all_evidence() -> dict[Place, Evidence]:
    """Return what checks each public name."""
    named = {(PACKAGE / n.home[0], n.home[1]): n for n in everything()}
    public = set(named)
    found = {place: Evidence([], [], [], []) for place in public}
    for claim, reached in sorted(claims(), key=lambda pair: len(pair[1] & public)):
        for place in reached & public:
            found[place].claims.append(claim)
    breadth = {}
    for test, reached in tests():
        breadth[test] = len(reached & public)
        for place in reached & public:
            found[place].tests.append(test)
    for mutant in mutants():
        changed = place_of(mutant)
        for place in owners(changed, public) if changed else ():
            found[place].mutants.append(Mutation(mutant.name, mutant.test, changed))
    for place, evidence in found.items():
        if not evidence.claims and not evidence.tests:
            above = set().union(*(owners(user, public) for user in users().get(place, ())))
            evidence.through.extend(
                sorted((named[p] for p in above - {place}), key=lambda n: n.path)
            )
        room = place[0].relative_to(PACKAGE).parts[0]
        noticing = {mutation.test.partition("[")[0] for mutation in evidence.mutants}

        def order(test: str, room: str = room, noticing: set[str] = noticing) -> tuple[Any, ...]:
            return test not in noticing, test.split("/")[0] != room, breadth[test], test

        evidence.tests.sort(key=order)
    return found


def of(name: Name) -> Evidence:
    """Return what checks a public name."""
    return all_evidence()[PACKAGE / name.home[0], name.home[1]]
