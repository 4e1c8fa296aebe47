"""The tests are tested: each way to be wrong in `mutants/` must make a test fail.

Every mutant runs in a process of its own on a copy of the sources. The same tests pass on an
unchanged copy, so that a failure is the mutant's doing.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "mutants"


def _mutants():
    spec = importlib.util.spec_from_file_location("mutants", HERE / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MUTANTS


MUTANTS = _mutants()
PARTS = 4  # processes that work through the mutants, so that workers can share them
QUICK = 58  # of them run with every test; all of them take twice the time of everything else


def _run(numbers):
    """Run mutants by number; return the results."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, str(HERE / "run.py"), *map(str, numbers)],
        capture_output=True, text=True, check=False, env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(numbers), done.stdout + done.stderr
    return results


def check(numbers):
    """Every one of these mutants must make its test fail."""
    for result in _run(numbers):
        mutant = MUTANTS[result["number"]]
        # 1: tests ran and failed. Anything else (no test, a syntax error) proves nothing.
        assert result["code"] == 1, f"{mutant.name}: {result['code']}\n{result['said'][-2000:]}"
        assert "error" not in result["said"].splitlines()[-1], result["said"][-2000:]


@pytest.mark.parametrize("part", range(PARTS))
def test_mutants_are_caught(part):
    check(range(QUICK)[part::PARTS])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_the_other_mutants_are_caught(part):
    check(range(QUICK, len(MUTANTS))[part::PARTS])


@pytest.mark.slow
def test_an_unchanged_copy_passes():
    (result,) = _run([-1])
    assert result["code"] == 0, result["said"][-2000:]


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 15
    assert len({m.name.split(":")[0] for m in MUTANTS if m.name.startswith("M")}) >= 12
