"""The pages: blocks of Python run, links lead somewhere, commands and names exist."""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import gradlogp as glp
from gradlogp.interfaces.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, the line of its first line of code, the code."""

    language: str
    line: int
    code: str


def name(page):
    return str(page.relative_to(ROOT))


def each_of(pages):
    return pytest.mark.parametrize("page", pages, ids=name)


def blocks(page, *languages):
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], text[: match.start(2)].count("\n") + 1, match[2])
        for match in BLOCK.finditer(text)
        if match[1] in languages
    ]


def run(block, page, names):
    """Run a block of a page; a failure names the page and the line."""
    source = "\n" * (block.line - 1) + block.code  # so that line numbers are those of the page
    try:
        exec(compile(source, name(page), "exec", dont_inherit=True), names)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = max((f.lineno or 0 for f in frames if f.filename == name(page)), default=block.line)
        if isinstance(error, SyntaxError):
            line = error.lineno
        pytest.fail(f"{name(page)}, line {line}: {type(error).__name__}: {error}")


def commands(page):
    """The command lines of gradlogp on a page, as lists of words, with their lines."""
    found = []
    for block in blocks(page, "bash", "console"):
        for i, line in enumerate(block.code.splitlines()):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["gradlogp"]:
                found.append((block.line + i, words[1:]))
    return found


@pytest.fixture
def as_reader(as_user, tmp_path, monkeypatch):
    """What a reader has: PyTorch's default dtype, no shape checks, a folder to write to."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)


@pytest.mark.pages
@each_of([page for page in PAGES if blocks(page, "python") and page.stem != "gallery"])
def test_python_runs(page, as_reader):
    """From top to bottom; every block of the README alone, as it is pasted.

    `make docs` runs the pages, and the gallery for its pictures, and ends if one is missing.
    """
    names = {"__name__": page.stem}
    for package in re.findall(r"^# needs: (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        pytest.importorskip(
            package, reason=f"{name(page)} is about {package}, which is not installed"
        )
    for block in blocks(page, "python"):
        run(block, page, {"__name__": page.stem} if page.stem == "README" else names)


@pytest.mark.slow
@each_of([page for page in PAGES if page.stem == "quickstart"])
def test_commands_run(page, as_reader, capsys):
    """In the order of the page, with the Python and the file of options between the commands."""
    names = {"__name__": page.stem}
    for block in blocks(page, "python", "console", "toml"):
        if block.language == "python":
            run(block, page, names)
        if block.language == "toml":
            Path("run.toml").write_text(block.code)
        if block.language != "console":
            continue
        for line, words in commands(page):
            if block.line <= line < block.line + block.code.count("\n"):
                code = main([*words, *["--quiet"] * (words[0] != "info")])
                judged = words[0] == "evaluate"  # samples of a small model may be distinguished
                assert code == 0 or (code == 1 and judged), (line, words)


@cache
def help_of(*command):
    """What a command says of itself, or of its options."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*command, "--help"]) == 0, command
    return said.getvalue()


@each_of([page for page in TEXTS if commands(page)])
def test_commands_exist(page):
    for line, words in commands(page):
        where = f"{name(page)}, line {line}"
        command = [word for word in words[:1] if not word.startswith("-")]
        said = help_of(*command)
        assert f"Usage: gradlogp {' '.join(command)}".strip() in said, where
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{re.escape(word)}\b", said), f"{where}: no {word}"


@each_of(PAGES)
def test_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for dotted in set(re.findall(r"\bglp\.(\w+(?:\.\w+)*)", text)):
        thing = glp
        for part in dotted.split("."):
            assert hasattr(thing, part), f"{name(page)}: there is no glp.{dotted}"
            thing = getattr(thing, part)
            if not isinstance(thing, type(glp) | type):
                break  # attributes of instances are not known here


def test_readme_lists_what_there_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`glp\.(\w+)`", text))
    assert set(glp.__all__) - listed == {"__version__"}
    for module, names in re.findall(r"`glp\.(\w+)`: ((?:`\w+`,? ?)+)", text):
        for part in re.findall(r"\w+", names):
            assert hasattr(getattr(glp, module), part), f"README.md: no glp.{module}.{part}"


def anchors(page):
    """The anchors of a page's headings, as repositories and site generators make them."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@each_of(TEXTS)
def test_links_lead_somewhere(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    targets += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", prose)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), f"{name(page)}: {target} leads out of the project"
        assert there.exists(), f"{name(page)}: {target} does not exist"
        if anchor:
            assert anchor in anchors(there), f"{name(page)}: {target} names no heading"


@each_of(TEXTS)
def test_no_absolute_paths(page):
    text = page.read_text(encoding="utf-8")
    rooted = r"(?<![\w.:/<)])/(?:[A-Za-z][\w.-]*/|home\b|root\b|tmp\b|usr\b|opt\b)|[A-Z]:\\"
    found = re.search(rooted, text)
    assert found is None, f"{name(page)}: {found}"


def test_readme_example_is_short_and_commands_are_named():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for needed in ("make demo", "make test", "reports/stars/index.html", "docs/img/walk.gif"):
        assert needed in text
    first = blocks(ROOT / "README.md", "python")[0]
    assert len([line for line in first.code.splitlines() if line.strip()]) <= 10
    for word in ("fit(", "sample(", "compare(", "verdict", "assert"):
        assert word in first.code


def test_tables_are_those_of_the_records(monkeypatch):
    """What the page on choosing says is what the benchmarks left, and what `sample_size` computes."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    choosing = importlib.import_module("choosing")
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert choosing.filled(text) == text, "run python docs/_ext/choosing.py"
    assert choosing.filled(text.replace("| 0.98 |", "| 0.97 |")) == text
    assert "| 0.98 |" in text


def test_exponents_are_those_measured():
    measured = (ROOT / "benchmarks" / "scaling.md").read_text(encoding="utf-8")
    table = measured[measured.index("| function") :]
    assert table in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {p.parent.name for p in (ROOT / "src" / "gradlogp").glob("*/__init__.py")}
    assert not {room for room in rooms if f"`{room}`" not in text}


def test_one_version():
    """The version is that of the package, in the citation and at the top of the changelog."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: \"?{re.escape(glp.__version__)}\"?$", citation, re.MULTILINE)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[([\d.]+)\]", changes, re.MULTILINE)[1] == glp.__version__


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.pages
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(path, tmp_path):
    quiet = "ignore:`torch.jit.script:DeprecationWarning"  # inside torch.func.jvp
    command = [sys.executable, "-W", "error", "-W", quiet, str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout, "an example says what it found"
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"
