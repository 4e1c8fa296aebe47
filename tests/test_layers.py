"""The architecture: imports go strictly downwards, and other rules that a parser can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradlogp

ROOT = Path(gradlogp.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    {"calculus", "folders", "streams"},
    {"core"},
    {"jets", "schedules", "networks", "progress", "diagnostics"},
    {"autodiff", "ode"},
    {"parametrization", "distributions", "ladder"},
    {"targets", "densities", "posterior", "scores", "data", "batches", "model"}
    | {"posterior_moments", "rescheduled", "guided"},
    {"objectives", "kernels", "modes", "adapters", "averaging"},
    {"transitions", "settings", "checkpoint", "pretrained", "measuring"},
    {"sampling", "training", "metrics", "fused", "planning", "manifold", "inverse"},
    {"likelihood", "bound", "chains", "adaptation"},
    {"plots", "pipeline", "theory"},
    {"estimator", "report", "sample_size"},
    {"evaluation"},
    {"demos"},
    {"cli"},
    {"__main__"},
]
"""A module imports only from lower layers; the submodules of a package also from one another."""

UNITS = {unit: level for level, units in enumerate(LAYERS) for unit in units}


def name(path):
    return path.relative_to(ROOT).as_posix()


def unit(path):
    """The module or package directly under gradlogp that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


every_file = pytest.mark.parametrize("path", FILES, ids=name)
inner = [p for p in FILES if p != ROOT / "__init__.py"]
every_module = pytest.mark.parametrize("path", inner, ids=name)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Every import of a file, also inside functions: absolute dotted names and their lines."""
    package = ["gradlogp", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                yield f"{module}.{alias.name}", node


def imported_units(path):
    """The units of gradlogp that a file imports from."""
    for target, node in imports(path):
        parts = target.split(".")
        if parts[0] == "gradlogp":
            yield parts[1] if len(parts) > 1 else "__init__", node


def test_the_parser_sees_every_kind_of_import():
    """Negative control: the imports of a file that has one of each kind."""
    path = ROOT / "metrics" / "two_sample.py"
    seen = {target for target, _ in imports(path)}
    assert "gradlogp.core.permutation" in seen
    assert "gradlogp.metrics.samples.distances" in seen
    assert any(target.startswith("sklearn") for target in seen)  # inside a function
    assert "torch" in seen
    assert {u for u, _ in imported_units(path)} == {"core", "metrics"}


def test_every_module_has_a_layer():
    missing = {unit(p) for p in inner} - set(UNITS)
    assert not missing, f"give these a layer in tests/test_layers.py: {sorted(missing)}"


@every_module
def test_imports_go_strictly_downwards(path):
    own = unit(path)
    for other, node in imported_units(path):
        if other == own or (other == "__version__"):
            continue
        assert other in UNITS, f"{name(path)}:{node.lineno} imports {other}, which has no layer"
        assert UNITS[other] < UNITS[own], (
            f"{name(path)}:{node.lineno}: {own} (layer {UNITS[own]}) imports {other} "
            f"(layer {UNITS[other]})"
        )


@pytest.mark.parametrize("own", ["kernels", "transitions", "likelihood", "metrics", "manifold"])
def test_samplers_and_metrics_know_no_network(own):
    """Whatever has the type of a score will do: they never import model or networks."""
    files = [p for p in inner if unit(p) == own]
    assert files
    for path in files:
        used = {other for other, _ in imported_units(path)}
        assert not used & {"model", "networks"}, name(path)


@every_module
def test_matplotlib_is_used_only_in_plots(path):
    if unit(path) == "plots":
        return
    for target, node in imports(path):
        assert target.split(".")[0] != "matplotlib", f"{name(path)}:{node.lineno}"


def test_plots_is_where_matplotlib_is():
    """Negative control for the test above."""
    targets = {t.split(".")[0] for p in inner if unit(p) == "plots" for t, _ in imports(p)}
    assert "matplotlib" in targets


@every_file
def test_length(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300, f"{name(path)} has {lines} lines; split it"


@every_file
def test_docstring(path):
    assert ast.get_docstring(tree(path)), f"{name(path)} has no docstring"


# ---------------------------------------------------------------------------- randomness

DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm",
    "multinomial", "normal", "bernoulli", "poisson", "manual_seed", "seed",
}  # fmt: skip


def draws(path):
    """Calls of torch.<law>(...) that draw, or seed, without being given a generator."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if re.fullmatch(r"torch\.(random\.)?\w+", called) is None:
            continue
        given = any(k.arg == "generator" for k in node.keywords)
        if called.split(".")[-1] in DRAWS and not given:
            yield called, node.lineno


@every_module
def test_noise_comes_from_a_generator(path):
    if path == ROOT / "core.py":
        return
    found = [f"{name(path)}:{line} {called}" for called, line in draws(path)]
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


def fresh(code):
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.split()


def test_import_is_light():
    modules = fresh("import gradlogp, sys; print(*sys.modules)")
    heavy = {"torch", "matplotlib", "numpy", "scipy", "sklearn", "rich", "cyclopts"}
    assert not heavy & set(modules)
    assert "gradlogp" in modules


def lazy_table():
    return {**{m: None for m in gradlogp._MODULES}, **gradlogp._NAMES}


def type_checking_imports():
    """What a type checker sees under `if TYPE_CHECKING`: name -> module (None: a module)."""
    seen = {}
    for node in tree(ROOT / "__init__.py").body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                for alias in statement.names:
                    assert alias.asname == alias.name  # `X as X`: a re-export
                    seen[alias.name] = statement.module
    return seen


def test_the_lazy_table_agrees_with_the_type_checker():
    assert type_checking_imports() == lazy_table()
    assert set(gradlogp.__all__) == {*lazy_table(), "__version__"}
    assert len(gradlogp.__all__) == len(set(gradlogp.__all__))


@pytest.mark.parametrize("public", sorted(lazy_table()))
def test_every_public_name_loads(public):
    assert getattr(gradlogp, public) is not None
    assert public in dir(gradlogp)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'scroe'"):
        gradlogp.scroe  # noqa: B018


def test_no_name_is_that_of_a_module():
    """Importing a module sets it on the package, where it would hide a function of that name."""
    modules = {unit(path) for path in inner}
    assert not modules & set(gradlogp._NAMES)
    assert modules >= set(gradlogp._MODULES)
