"""Run mutants: one process that has PyTorch loaded, forked once for each.

Loading PyTorch costs more than most of the tests that have to catch a mutant. Every child puts a
copy of the sources with one replacement first on its path and runs pytest there.

    python tests/mutants/run.py [number ...]     prints one JSON object a line
"""

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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch

from mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def run_one(mutant, folder):
    """Run the tests of a mutant (None: of all, on an unchanged copy); return code and output."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "gradlogp", folder / "gradlogp", ignore=ignore)
    tests = sorted({m.test for m in MUTANTS}) if mutant is None else [mutant.test]
    if mutant is not None:
        path = folder / "gradlogp" / mutant.file
        text = path.read_text()
        if mutant.old not in text:
            return -1, f"{mutant.file} no longer has {mutant.old!r}"
        path.write_text(text.replace(mutant.old, mutant.new))
    sys.path.insert(0, str(folder))
    os.chdir(ROOT)
    arguments = ["-x", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*arguments, *(f"tests/{test}" for test in tests)])
    import gradlogp

    assert Path(gradlogp.__file__).is_relative_to(folder), "another copy of the library was tested"
    return int(code), said.getvalue()


def main():
    torch.set_num_threads(1)
    chosen = [int(a) for a in sys.argv[1:]] or range(len(MUTANTS))
    for number in chosen:
        mutant = None if number < 0 else MUTANTS[number]
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            child = os.fork()
            if child == 0:
                code, said = run_one(mutant, Path(folder))
                result.write_text(json.dumps({"number": number, "code": code, "said": said}))
                os._exit(0)
            os.waitpid(child, 0)
            lost = json.dumps({"number": number, "code": -2, "said": "the process died"})
            print(result.read_text() if result.exists() else lost, flush=True)


if __name__ == "__main__":
    main()
