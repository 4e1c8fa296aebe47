"""The tests are tested: each way to be wrong in `mutants/` must make a test fail.

Every mutant runs in a process of its own on a copy of the sources. The same tests pass on an
unchanged copy, so that a failure is the mutant's doing.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent


def _mutants():
    spec = importlib.util.spec_from_file_location("mutants", HERE / "mutants" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MUTANTS


MUTANTS = _mutants()


def _run(sources, tests):
    """Run tests against a copy of the sources; return the exit code and what was said."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    seen = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    for name in [name for name in seen if name.startswith("PYTEST_")]:
        del seen[name]
    done = subprocess.run(command, cwd=ROOT, env=seen, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def _copy(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "gradlogp", tmp_path / "gradlogp", ignore=ignore)
    return tmp_path


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.split(":")[0] + ":" + m.test)
def test_mutant_is_caught(mutant, tmp_path):
    path = _copy(tmp_path) / "gradlogp" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) >= 1, f"{mutant.file} no longer has {mutant.old!r}"
    path.write_text(text.replace(mutant.old, mutant.new))
    code, output = _run(tmp_path, [f"tests/{mutant.test}"])
    # 1: tests ran and failed. Anything else (no tests, a syntax error) proves nothing.
    assert code == 1, f"{mutant.name}: pytest ended with {code}\n{output[-2000:]}"
    assert "error" not in output.splitlines()[-1], output[-2000:]


@pytest.mark.slow
def test_an_unchanged_copy_passes(tmp_path):
    tests = sorted({f"tests/{mutant.test}" for mutant in MUTANTS})
    code, output = _run(_copy(tmp_path), tests)
    assert code == 0, output[-2000:]


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 15
    assert len({m.name.split(":")[0] for m in MUTANTS if m.name.startswith("M")}) >= 12
