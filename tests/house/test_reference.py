"""The reference: every public name is in it, and what it says of the checks of a name is true."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import bibliography
import evidence
import names
import outside
import pytest
import torch
from door_support import public_names
from mutants.mutants import MUTANTS

import gradlogp as glp
from gradlogp.check import theory

PROGRAMS = ("interfaces/", "core/randomness.py")
"""Where a mutant may be in no public name: the command line, and what is set up for forks."""


def test_every_public_name_is_there_once():
    """Against another walk of the package, and the names of the top level."""
    found = names.everything()
    assert len({n.home for n in found}) == len({n.path for n in found}) == len(found) > 400
    values = [id(n.value) for n in found]
    assert not [path for path, value in public_names().items() if id(value) not in values]
    top = {n for n in glp._NAMES if id(getattr(glp, n)) not in values}
    assert not top
    for name in names.everything():
        module = name.called.replace("glp", "gradlogp", 1).rpartition(".")[0]
        assert getattr(importlib.import_module(module), name.short) is name.value, name.called


def test_every_public_name_says_what_it_is():
    assert not [name.path for name in names.everything() if not names.documentation(name)]


def test_rooms_are_those_of_the_package():
    assert set(names.ROOMS) == set(glp._ROOMS)


def test_every_function_and_class_is_checked():
    """By a claim or a test that names it, or through what returns or uses it, which has one."""
    bare = []
    for name in names.everything():
        own = evidence.of(name)
        through = [evidence.of(user) for user in own.through]
        if name.kind != "data" and not any(e.claims or e.tests for e in (own, *through)):
            bare.append(name.path)
    assert not bare, bare


def words(path, seen=None):
    """The words of a test file and of the files of the tests that it imports."""
    seen = seen if seen is not None else set()
    if path in seen or not path.exists():
        return set()
    seen.add(path)
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r"\w+", text))
    for module in re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.MULTILINE):
        for folder in (evidence.TESTS, path.parent):
            found |= words(folder / f"{module.replace('.', '/')}.py", seen)
    return found


def test_what_is_named_exists_and_names_the_name():
    """Read another way than it was found: by words."""
    claims = {check.name for check in theory.CHECKS}
    mutants = {(m.name, m.test) for m in MUTANTS}
    in_theory = set()
    for file in evidence.THEORY.glob("*.py"):
        in_theory |= words(file)
    said = {}
    for name in names.everything():
        found = evidence.of(name)
        assert {c.name for c in found.claims} <= claims
        assert not found.claims or name.home[1] in in_theory, name.path
        assert {(m.name, m.test) for m in found.mutants} <= mutants
        for test in found.tests:
            file, _, function = test.partition("::")
            path = evidence.TESTS / file
            said[file] = said.get(file) or words(path) | words(evidence.TESTS / "conftest.py")
            assert function in said[file], test
            found_by_class = "vars" in said[file] and "hasattr" in said[file]
            assert name.home[1] in said[file] or found_by_class, (name.path, test)


def test_every_mutant_breaks_a_definition_of_a_public_name():
    public = {(evidence.PACKAGE / n.home[0], n.home[1]) for n in names.everything()}
    for mutant in MUTANTS:
        place = evidence.place_of(mutant)
        assert place is not None, mutant.name
        lines = (evidence.PACKAGE / mutant.file).read_text(encoding="utf-8").splitlines()
        node = names.definitions(place[0])[place[1]]
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        body = "\n".join(lines[first - 1 : node.end_lineno])
        assert mutant.old.strip("\n").splitlines()[0] in body, mutant.name
        assert evidence.owners(place, public) or mutant.file.startswith(PROGRAMS), mutant.name


def test_checks_that_are_known():
    """Of a few names, what is known to check them."""
    by_name = {n.called: evidence.of(n) for n in names.everything()}
    ula = by_name["glp.langevin.ULA"]
    assert "samplers.ula_law" in {c.name for c in ula.claims}
    assert "M3: √h for √(2h)" in {m.name for m in ula.mutants}  # in a separate helper
    assert "check/test_conformance_kernels.py::test_every_kernel" in ula.tests
    assert "M12: samples come from the raw weights" in {m.name for m in by_name["glp.fit"].mutants}
    assert [n.short for n in by_name["glp.diffusion.Likelihood"].through] == ["log_likelihood"]
    assert not by_name["glp.geometry.project"].claims


TESTS_OF_A_ROOM = """
import gradlogp as glp
from gradlogp import geometry
from gradlogp.noise import schedules as levels
from support_of_it import KERNELS

def helper():
    from gradlogp.geometry import project
    return project

def test_direct(): glp.langevin.ULA(0.1)
def test_by_helper(): return helper()
def test_by_table(): return KERNELS
def test_by_fixture(law): return law
def test_by_module(): return levels.VP()
def test_by_discovery(): return [v for v in vars(geometry).values() if hasattr(v, "standard_errors")]
def test_nothing(): return 1
"""


def test_the_walk_follows_names(tmp_path, monkeypatch):
    """Through helpers, tables, fixtures and modules, and finds nothing where there is nothing."""
    room = tmp_path / "room"
    room.mkdir()
    (room / "test_it.py").write_text(TESTS_OF_A_ROOM)
    (tmp_path / "support_of_it.py").write_text(
        "from gradlogp import langevin\nKERNELS = [langevin.MALA]\n"
    )
    (tmp_path / "conftest.py").write_text("import gradlogp\ndef law(): return gradlogp.Gaussian\n")
    monkeypatch.setattr(evidence, "TESTS", tmp_path)
    evidence.fixtures.cache_clear()
    found = {
        test.partition("::")[2]: {
            name for path, name in reached if path.is_relative_to(names.PACKAGE)
        }
        for test, reached in evidence.tests()
    }
    evidence.fixtures.cache_clear()
    assert found == {
        "test_direct": {"ULA"},
        "test_by_helper": {"project"},
        "test_by_table": {"MALA"},
        "test_by_fixture": {"Gaussian"},
        "test_by_module": {"VP"},
        "test_by_discovery": {"SigmaRange"},
        "test_nothing": set(),
    }


def test_what_is_cited_is_cited_in_one_way():
    """Of one address one title, the same authors, the same year."""
    titles = {}
    for file in names.PACKAGE.rglob("*.py"):
        for node in bibliography.documented(names.tree_of(file)):
            for title, address in bibliography.cited(ast.get_docstring(node) or ""):
                assert address.startswith("https://"), (file, title)
                found = bibliography.CITED.match(title)
                titles.setdefault(address, set()).add(found[0] if found else title)
    assert not [several for several in titles.values() if len(several) > 1]
    assert len(bibliography.works()) == len(titles) > 100


# ---------------------------------------------------------------------------- examples


def examples():
    """The public names that have an example."""
    found = names.everything()
    return [n for n in found if n.kind != "data" and ">>>" in (n.value.__doc__ or "")]


WITH_EXAMPLES = sorted(
    str(file.relative_to(names.PACKAGE))
    for file in names.PACKAGE.rglob("*.py")
    if ">>>" in file.read_text(encoding="utf-8")
)
"""Files, found by a look at their text: to find the names takes seconds when tests are collected."""


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_the_examples_of_docstrings(file, as_user, tmp_path, monkeypatch):
    """As a reader runs them, with `torch` and `glp`: what they say comes out."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    for name in [n for n in examples() if n.home[0] == file]:
        torch.manual_seed(0)
        doc, given = inspect.getdoc(name.value), {"torch": torch, "glp": glp}
        test = doctest.DocTestParser().get_doctest(doc, given, name.called, None, None)
        said = []
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert not said, "".join(said)
        assert test.examples[-1].want, f"{name.called}: an example ends with what it gives"


def test_what_is_used_most_has_an_example():
    needed = {
        "fit", "sample", "run", "evolve", "log_likelihood", "as_target", "as_score", "compare",
        "ScoreModel", "ScoreEstimator", "Gaussian", "GaussianMixture", "ExactScore", "terminal",
    }  # fmt: skip
    shown = {name.called.removeprefix("glp.") for name in examples()}
    assert not needed - shown
    assert len(shown) >= 70


# ---------------------------------------------------------------------------- formulas


@pytest.fixture
def typeset():
    """What makes formulas of the site, where its packages are installed."""
    pytest.importorskip("ziamath")
    pytest.importorskip("math_core")
    return importlib.import_module("typeset")


def test_a_formula_becomes_mathml(typeset):
    assert "<mfrac>" in typeset.mathml(r"\frac{1}{2}", display=True)
    assert "<mtable" in typeset.mathml(r"a &= b \\ &= c", display=True)
    assert "math" in typeset.mathml("σ^2", display=False)
    with pytest.raises(ValueError, match="not understood"):
        typeset.mathml(r"\nosuchcommand x", display=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("p^{1/τ} and x_t", "p[^1/τ] and x[_t]"),
        ("‖s‖^2 = x̂_0", "‖s‖[^2] = x̂[_0]"),
        ("log_prob, max_steps, n_model_steps, x_train, __call__, a_", None),
    ],
)
def test_letters_in_the_text_are_raised_and_lowered(typeset, text, shown):
    nodes = typeset.scripts(text)
    marks = {"subscript": "[_{}]", "superscript": "[^{}]"}
    said = nodes and "".join(
        marks.get(type(node).__name__, "{}").format(node.astext()) for node in nodes
    )
    assert said == shown


# ---------------------------------------------------------------------------- a built site

GOOD = """<link href="a.css"><script src="a.js"></script><img src="a.png"><a href="https://arxiv.org">a</a>
<a href="#here">b</a><p id="here"><a href="b.html#there">c</a><svg xmlns="http://www.w3.org/2000/svg"/>"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<p id="there">')
    (tmp_path / "a.css").write_text('p { background: url("a.png"); }')
    for name in ("a.js", "a.png"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_a_site_that_needs_nothing_has_no_complaints(site):
    assert list(outside.complaints(site)) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('<script src="https://cdn.example/x.js">', "fetches https://cdn"),
        ('<script src="//cdn.example/x.js">', "fetches //cdn"),
        ('<link rel="stylesheet" href="http://fonts.example/f.css">', "fetches http://fonts"),
        ('<img srcset="a.png 1x, https://e.example/b.png 2x">', "fetches https://e"),
        ('<p style="background: url(https://e.example/b.png)">', "fetches https://e"),
        ("<style>@import 'https://e.example/f.css'; p {}</style>", "fetches https://e"),
        ('<a href="gone.html">', "gone.html does not exist"),
        ('<a href="b.html#nowhere">', "b.html#nowhere names no place"),
    ],
)
def test_what_a_site_fetches_is_found(site, text, complaint):
    (site / "c.html").write_text(text)
    (found,) = outside.complaints(site)
    assert found.startswith("c.html: ")
    assert complaint in found


def test_a_style_sheet_is_read(site):
    (site / "a.css").write_text("@font-face { src: url(https://fonts.example/f.woff); }")
    assert list(outside.complaints(site)) == ["a.css: fetches https://fonts.example/f.woff"]


def test_the_navigation_lists_every_page():
    root = Path(evidence.ROOT)
    assigned = names.definitions(root / "docs" / "conf.py")["NAVIGATION"]
    listed = re.findall(r"'([\w-]+)'", ast.unparse(assigned.value))
    pages = {page.stem for page in (root / "docs").glob("*.md")} - {"index"}
    assert {page for page in listed if page[0].islower()} == pages
