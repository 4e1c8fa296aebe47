"""The architecture: imports go strictly downwards, and other rules that a parser can check."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from names import tree_of

import gradlogp

ROOT = Path(gradlogp.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = (
    {"core"},
    {"calculus", "show"},
    {"noise", "distributions"},
    {"scores", "langevin", "geometry"},
    {"learn", "diffusion"},
    {"check", "inverse"},
    {"interfaces"},
    {"__main__"},
)
"""A room imports only from lower floors; the files of a room also from one another."""

ONLY = {
    "matplotlib": "show/",
    "jinja2": "show/",
    "arviz_base": "langevin/chain.py",
    "diffusers": "scores/diffusers.py",
    "pandas": ("learn/data/", "interfaces/tables/"),
    "polars": "interfaces/tables/",
    "numba": "langevin/fused/",
    "cyclopts": "interfaces/cli/",
}
"""Heavy packages, each with the places that may import it."""

PROJECT = Path(__file__).parents[2]
DEVELOPERS = {"test", "lint", "docs"}
STANDARD = {*sys.stdlib_module_names, "gradlogp"}
IMPORTED_AS = {"sklearn": "scikit_learn", "PIL": "pillow"}
"""Packages that are imported under another name than they are installed."""

LENGTH = 400
"""Lines above which a file is hardly one idea."""

FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def name(path):
    return path.relative_to(ROOT).as_posix()


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


inner = [p for p in FILES if p != ROOT / "__init__.py"]


@cache
def imports(path):
    """Every import of a file, also inside functions: absolute dotted names and their lines."""
    return tuple(_imports(path))


def _imports(path):
    package = ["gradlogp", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                yield f"{module}.{alias.name}", node


def rooms_used(path):
    """The rooms that a file imports from."""
    for target, node in imports(path):
        parts = target.split(".")
        if parts[0] == "gradlogp":
            yield parts[1] if len(parts) > 1 else "__init__", node


def test_the_parser_sees_every_kind_of_import():
    """Negative control: the imports of a file that has one of each kind."""
    path = ROOT / "check" / "metrics" / "features.py"
    seen = {target for target, _ in imports(path)}
    assert "gradlogp.core.new_seed" in seen
    assert "gradlogp.check.metrics.two_sample.two_samples" in seen
    assert any(target.startswith("sklearn") for target in seen)  # inside a function
    assert "torch" in seen
    assert {r for r, _ in rooms_used(path)} == {"core", "check", "distributions"}


def test_rooms():
    """Every file lies in a room, and imports go down."""
    wrong = []
    for path in inner:
        own = room(path)
        assert own in FLOOR, f"{name(path)} lies in no room: {sorted(FLOOR)}"
        for other, node in rooms_used(path):
            if other not in (own, "__version__") and not FLOOR.get(other, 99) < FLOOR[own]:
                wrong.append(f"{name(path)}:{node.lineno} imports {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(ONLY))
def test_heavy_packages_have_one_door(package):
    users = {name(p) for p in inner for t, _ in imports(p) if t.split(".")[0] == package}
    users |= {name(p) for p in inner if f'import_module("{package}")' in p.read_text()}
    assert users, f"nothing imports {package}: drop it from this table"
    assert all(user.startswith(ONLY[package]) for user in users), users


def test_what_is_imported_is_declared():
    """Packages imported anywhere are dependencies, of the base or of an extra for users."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [w for extra, wants in extras.items() if extra not in DEVELOPERS for w in wants]
    base, more = (
        {re.split(r"[^\w-]", want)[0].lower().replace("-", "_") for want in wants}
        for wants in (project["dependencies"], users)
    )
    used = {target.split(".")[0] for path in FILES for target, _ in imports(path)}
    used = {IMPORTED_AS.get(package, package).lower() for package in used - STANDARD}
    assert used <= base | more, used - base - more
    assert base <= used, base - used


def test_theory_is_for_the_interfaces():
    theory = "gradlogp.check.theory"
    users = {name(p) for p in inner for t, _ in imports(p) if f"{t}.".startswith(f"{theory}.")}
    assert users
    assert all(u.startswith(("interfaces/", "check/")) for u in users), users


def test_length_and_docstrings():
    for path in FILES:
        assert ast.get_docstring(tree_of(path)), f"{name(path)} has no docstring"
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LENGTH, f"{name(path)} has {lines} lines: is it one idea?"


# ---------------------------------------------------------------------------- randomness

DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm",
    "multinomial", "normal", "bernoulli", "poisson", "manual_seed", "seed",
}  # fmt: skip


def draws(path):
    """Calls of torch.<law>(...) that draw, or seed, without being given a generator."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if re.fullmatch(r"torch\.(random\.)?\w+", called) is None:
            continue
        given = any(k.arg == "generator" for k in node.keywords)
        if called.split(".")[-1] in DRAWS and not given:
            yield called, node.lineno


def test_noise_comes_from_a_generator():
    files = [p for p in inner if p != ROOT / "core" / "randomness.py"]
    found = [f"{name(p)}:{line} {called}" for p in files for called, line in draws(p)]
    assert not found, "draw with core.randn_like and friends"


def test_the_parser_sees_a_draw(tmp_path):
    """Negative control."""
    path = tmp_path / "noisy.py"
    path.write_text(
        "import torch\n"
        "torch.randn(3)\n"
        "torch.randn(3, generator=g)\n"
        "torch.manual_seed(0)\n"
        "torch.Generator().manual_seed(0)\n"
        "torch.random.manual_seed(1)\n"
    )
    assert [line for _, line in draws(path)] == [2, 4, 6]


# ---------------------------------------------------------------------------- the front door


def test_import_is_light():
    done = subprocess.run(
        [sys.executable, "-c", "import gradlogp, sys; print(*sys.modules)"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    modules = set(done.stdout.split())
    assert not {"torch", "matplotlib", "numpy", "scipy", "sklearn", "rich", "cyclopts"} & modules
    assert "gradlogp" in modules


def test_the_lazy_table_agrees_with_the_type_checker():
    seen = {}
    for node in tree_of(ROOT / "__init__.py").body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                for alias in statement.names:
                    assert alias.asname == alias.name  # `X as X`: a re-export
                    seen[alias.name] = statement.module
    table = {**dict.fromkeys(gradlogp._ROOMS), **gradlogp._SUBPACKAGES, **gradlogp._NAMES}
    assert seen == table
    assert set(gradlogp.__all__) == {*table, "__version__"}
    assert len(gradlogp.__all__) == len(set(gradlogp.__all__))


def test_every_public_name_loads():
    for public in gradlogp.__all__:
        assert getattr(gradlogp, public) is not None
        assert public in dir(gradlogp)
    with pytest.raises(AttributeError, match="no attribute 'scroe'"):
        gradlogp.scroe  # noqa: B018
