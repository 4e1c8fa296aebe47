"""The tests are tested: each way to be wrong in `mutants/` must make a test fail.

Every mutant runs in a process of its own on a copy of the sources. The same tests pass on an
unchanged copy, so that a failure is the mutant's doing. The fast tests run the mutants that were not
seen caught in the code as it is now; the ids of the tests are the numbers of the mutants.
"""

import json
import os
import subprocess
import sys

import pytest
from mutants import record
from mutants.mutants import MUTANTS, Mutant

BATCH = 8
"""Mutants that one process runs at most, so that workers can share them and no test takes long."""


def batches(numbers):
    """Deal the mutants out, neighbours apart, for they have the same slow test."""
    parts = -(-len(numbers) // BATCH)
    return [pytest.param(numbers[i::parts], id="-".join(map(str, numbers[i::parts])))
            for i in range(parts)]  # fmt: skip


def run(*arguments):
    """Run mutants; return the results."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, str(record.ROOT / "tests/mutants/run.py"), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results, numbers):
    """Every one of these mutants must make its test fail."""
    assert [result["numbers"] for result in results] == [[n] for n in numbers]
    missed = [
        f"{result['numbers'][0]}, {MUTANTS[result['numbers'][0]].name}: code {result['code']}\n"
        f"{result['said'][-2000:]}"
        for result in results
        if not result["caught"]
    ]
    assert not missed, "\n\n".join(["not caught:", *missed])


@pytest.mark.parametrize("numbers", batches(record.due(MUTANTS, record.read())))
def test_mutants_are_caught(numbers):
    """And one that changes nothing is not, in the same process."""
    quick = next(n for n, m in enumerate(MUTANTS) if m.file == "noise/predictions.py")
    *results, control = run(*numbers, "--control", quick)
    check(results, numbers)
    assert control["numbers"] == [quick]
    assert not control["caught"], control["said"][-2000:]
    assert control["code"] == 0, control["said"][-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("numbers", batches(range(len(MUTANTS))))
def test_every_mutant_is_caught(numbers):
    check(run(*numbers), numbers)


@pytest.mark.slow
def test_an_unchanged_copy_passes():
    (result,) = run("--unchanged")
    assert result["code"] == 0, result["said"][-2000:]


def test_there_are_enough_mutants_and_names_are_distinct():
    assert len(MUTANTS) == len({m.name for m in MUTANTS}) >= 15
    assert len({m.name.split(":")[0] for m in MUTANTS if m.name.startswith("M")}) >= 12


# ---------------------------------------------------------------------------- the record

SOURCE = """
LIMIT = 3

def above(x):
    return x + 1

class Kernel:
    @property
    def step(self):
        "Return a step."
        return 2 * self.h

    def other(self):
        return 0
"""
TESTS = """
def test_other():
    assert True

@mark("a", "b")
def test_step(letter):
    assert step() == 2
"""
STEP = Mutant("X: a step", "kernels.py", "2 * self.h", "self.h", "test_k.py::test_step[a]")


@pytest.mark.parametrize(
    ("mutant", "old", "new", "changes"),
    [
        (STEP, "", "", False),
        (STEP, "x + 1", "x + 2", False),  # another function of the file
        (STEP, "return 0", "return 1", False),  # of the class
        (STEP, "assert True", "assert 1", False),  # another test
        (STEP, "\nLIMIT", "\n\n\nLIMIT", False),  # only moved
        (STEP, "Return a", "Return the length of a", False),  # only described otherwise
        (STEP, "2 * self.h", "2 * self.h * 1", True),
        (STEP, "@property", "@cached", True),
        (STEP, "step() == 2", "step() > 1", True),
        (STEP, '"b")', '"c")', True),
        (STEP._replace(test="test_k.py"), "assert True", "assert 1", True),  # all tests of a file
        (STEP._replace(old="LIMIT = 3"), "LIMIT = 3", "LIMIT = 3  # so", True),
        (STEP._replace(old="LIMIT = 3"), "x + 1", "x + 2", False),
    ],
)
def test_a_mutant_is_due_when_a_body_changed(tmp_path, mutant, old, new, changes):
    found = []
    for source, tests in [
        (SOURCE, TESTS),
        (SOURCE.replace(old, new, 1), TESTS.replace(old, new, 1)),
    ]:
        for place, text in [("src/gradlogp/kernels.py", source), ("tests/test_k.py", tests)]:
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text(text)
        found.append(record.fingerprint(mutant, tmp_path))
    assert None not in found
    assert (found[0] != found[1]) is changes
    for other in (mutant._replace(new="0"), mutant._replace(name="X: another")):
        assert record.fingerprint(other, tmp_path) != found[1]
    assert record.fingerprint(STEP._replace(old="3 * self.h"), tmp_path) is None
    assert record.fingerprint(STEP._replace(test="test_k.py::test_gone"), tmp_path) is None
    assert record.fingerprint(STEP._replace(file="gone.py"), tmp_path) is None


def test_only_what_was_caught_is_known():
    """Without a record all are due; with one of all, the sample; one missed is due again."""
    known = {}
    assert record.due(MUTANTS, known) == list(range(len(MUTANTS)))
    for mutant, now in zip(MUTANTS, record.fingerprints(MUTANTS), strict=True):
        known = record.updated(known, MUTANTS, mutant, now)
    always = sorted(record.sample(MUTANTS))
    assert record.due(MUTANTS, known) == always
    assert len(always) == record.SAMPLE
    number = next(n for n in range(len(MUTANTS)) if n not in always)
    missed = record.updated(known, MUTANTS, MUTANTS[number], None)
    stale = known | {MUTANTS[number].name: "0"}
    for one in (missed, stale):
        assert record.due(MUTANTS, one) == sorted([*always, number])
    fewer = record.updated(known, MUTANTS[:number], MUTANTS[0], known[MUTANTS[0].name])
    assert set(fewer) == {m.name for m in MUTANTS[:number]}


def test_fingerprints_are_kept_while_no_file_changes(tmp_path, monkeypatch):
    place = tmp_path / "src" / "gradlogp" / "kernels.py"
    for path, text in ((place, SOURCE), (tmp_path / "tests" / "test_k.py", TESTS)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "tests" / "record.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    asked = []
    monkeypatch.setattr(record, "fingerprint", lambda m: asked.append(m) or str(len(asked)))
    gone = STEP._replace(file="gone.py")
    assert record.fingerprints([STEP, gone]) == record.fingerprints([STEP, gone]) == ["1", "2"]
    assert record.fingerprints([STEP]) == ["3"]  # other mutants
    place.write_text(SOURCE + "\n")
    assert record.fingerprints([STEP]) == ["4"]
    assert len(asked) == 4


def test_the_record_holds_mutants_that_exist():
    assert set(record.read()) <= {m.name for m in MUTANTS}
