"""The examples run as a reader runs them, and what they assert holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SLOW = {"learn_a_mixture", "ncsn_is_ddpm", "sample_a_density"}  # more than 5 s


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem)
        for path in sorted(EXAMPLES.glob("*.py"))
    ],
)
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
