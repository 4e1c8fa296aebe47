"""Run mutants: one process that has PyTorch loaded, forked once for each.

Loading PyTorch costs more than most of the tests that have to catch a mutant. Every child puts a
copy of the sources with one replacement first on its path and runs pytest there.

    python tests/mutants/run.py [number ...]              prints one JSON object a line
    python tests/mutants/run.py --record [number ...]     and keeps in caught.json what was caught
    python tests/mutants/run.py --unchanged [number ...]  all their tests, with nothing replaced
    python tests/mutants/run.py --control N [number ...]  and last the test of N, with nothing replaced
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import record

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch

from mutants import MUTANTS


def run(mutants, folder):
    """Make these replacements in a copy of the sources and run their tests; return code and output."""
    # with what was compiled, which holds for files of the same time and size: all but the mutated
    ignore = shutil.ignore_patterns("*.opt-*")
    shutil.copytree(record.ROOT / "src" / "gradlogp", folder / "gradlogp", ignore=ignore)
    for mutant in mutants:
        path = folder / "gradlogp" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return -1, f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, not once"
        path.write_text(text.replace(mutant.old, mutant.new))
    sys.path.insert(0, str(folder))
    os.chdir(record.ROOT)
    arguments = ["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*arguments, *sorted({f"tests/{m.test}" for m in mutants})])
    import gradlogp

    assert Path(gradlogp.__file__).is_relative_to(folder), "another copy of the library was tested"
    return int(code), said.getvalue()


def run_forked(mutants):
    """Return code and output of `run` in a child process."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        child = os.fork()
        if child == 0:
            result.write_text(json.dumps(run(mutants, Path(folder))))
            os._exit(0)
        os.waitpid(child, 0)
        return json.loads(result.read_text()) if result.exists() else (-2, "the process died")


def caught(code, said):
    """Whether tests ran and failed (1). Anything else, no test or an error, proves nothing."""
    return code == 1 and "error" not in said.splitlines()[-1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--unchanged", action="store_true")
    parser.add_argument("--control", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = options.numbers or range(len(MUTANTS))
    groups = [(list(numbers), True)] if options.unchanged else [([n], False) for n in numbers]
    groups += [] if options.control is None else [([options.control], True)]
    for chosen, unchanged in groups:
        mutants = [MUTANTS[n] for n in chosen]
        if unchanged:
            mutants = [m._replace(new=m.old) for m in mutants]
        known = record.fingerprint(mutants[0])
        code, said = run_forked(mutants)
        found = caught(code, said)
        print(
            json.dumps({"numbers": chosen, "caught": found, "code": code, "said": said}),
            flush=True,
        )
        if options.record and not unchanged:
            record.write(
                record.updated(record.read(), MUTANTS, mutants[0], known if found else None)
            )


if __name__ == "__main__":
    main()
