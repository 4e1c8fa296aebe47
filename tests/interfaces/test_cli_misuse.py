"""What is refused before anything is done: options of another way, files of options; and no memory."""

import io
import sys

import numpy as np
import pytest
import torch
from few_support import at_few_levels
from PIL import Image

from gradlogp.interfaces.cli import main

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table with classes, pictures, and a model of each, two steps old."""
    torch.set_default_dtype(torch.float32)
    path, rng = tmp_path_factory.mktemp("misuse"), np.random.default_rng(0)
    rows = [f"{a:.4f},{b:.4f},{'left' if a < 0 else 'right'}" for a, b in rng.normal(size=(40, 2))]
    (path / "points.csv").write_text("\n".join(["a,b,side", *rows]))
    np.save(path / "images.npy", rng.random((30, 1, 8, 8)).astype(np.float32))
    np.save(path / "odd.npy", rng.random((30, 1, 5, 5)).astype(np.float32))
    np.save(path / "one.npy", rng.random((1, 8, 8)))
    (path / "pngs").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path / "pngs" / f"{i}.png")
    quick = ["--steps", "2", "--quiet"]
    table = [str(path / "points.csv"), "--out", str(path / "table"), "--label", "side"]
    with at_few_levels():
        assert main(["fit", *table, "--width", "4", *quick]) == 0
        assert (
            main(["fit", str(path / "images.npy"), "--out", str(path / "pictures"), *quick]) == 0
        )
    return path


def call(capsys, folder, line, *more):
    code = main([*line.replace("@", f"{folder}/").split(), *map(str, more)])
    out, err = capsys.readouterr()
    return code, out, err


def refuse(capsys, folder, line, says, code=2):
    got, out, err = call(capsys, folder, line)
    assert got == code, (line, out, err)
    errors = [text for text in err.splitlines() if text.startswith("gradlogp: ")]
    assert errors == err.splitlines()[-1:], err  # notes on the data may come before
    assert says in errors[0], (line, err)


def test_an_option_of_another_way_is_misuse(capsys, folder):
    restore = "restore @pictures --out @r.png --image @one.npy --task "
    for line, says in (
        (restore + "denoise --blur 1", "--blur belongs to --task deblur, not to denoise"),
        (restore + "deblur --factor 2", "--factor belongs to --task enlarge, not to deblur"),
        (restore + "enlarge --box 1 2 1 2", "--box belongs to --task inpaint, not to enlarge"),
        (restore + "denoise --mask @one.npy", "--mask belongs to --task inpaint"),
        (restore + "denoise --values 0 1", "--values is for pictures"),
        ("fit @images.npy --out @x --width 4", "--width is for vectors"),
        ("fit @images.npy --out @x --depth 2", "--depth is for vectors"),
        ("fit @pngs --out @x --columns a", "--columns is for tables"),
        ("fit digits --out @x --label a", "--label is for tables"),
        ("fit @images.npy --out @x --header", "are for .csv files"),
        ("fit moons --out @x --no-header", "are for .csv files"),
        ("sample-size --dim 3 --columns a", "--columns is for --data"),
        ("sample-size --dim 3 --label a", "--label is for --data"),
        ("sample-size --dim 3 --header", "--header is for --data"),
        ("info --header", "--header is for a .csv file"),
        ("info @table --header", "--header is for a .csv file"),
        ("sample @table --json", "--json is for a density"),
        ("sample --target ring --n 3", "--n is for a checkpoint"),
    ):
        refuse(capsys, folder, line, says)
    assert not (folder / "x").exists()
    assert not (folder / "r.png").exists()


def test_the_nearest_name_is_offered(capsys, folder):
    for line, says in (
        ("sample --target ringg", "did you mean 'ring'?"),
        ("sample @table --class lefd", "did you mean 'left'?"),
        ("sample --target ring --kernel baoabb", 'Did you mean "baoab"?'),
        ("sample @table --method flwo", 'Did you mean "flow"?'),
        ("demo digit", 'Did you mean "digits"?'),
        ("fit mons --out @x", "did you mean 'moons'?"),
        ("smaple", 'Did you mean "sample"?'),
        ("fit moons --out @x --stesp 3", "Did you mean --steps?"),
        ("verify statistic_", "did you mean 'statistics'?"),
    ):
        refuse(capsys, folder, line, says)
    refuse(
        capsys, folder, "fit @points.csv --out @x --columns sid", "did you mean 'side'?", code=1
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = 3\n", "'steps', which is outside any table, is not a command"),
        ("fit = 3\n", "'fit' must be a table"),
        ("[fitt]\nsteps = 3\n", "[fitt] is not a command; did you mean 'fit'?"),
        ("[fit]\nstepz = 3\n", "[fit] has no option 'stepz'; did you mean 'steps'?"),
        ("[sample]\nstepz = 3\n", "[sample] has no option 'stepz'"),  # of another command
        ("[fit]\nsteps = [\n", "is not a TOML file"),
    ],
)
def test_a_file_of_options_is_checked_as_a_whole(capsys, folder, tmp_path, text, says):
    path = tmp_path / "run.toml"
    path.write_text(text)
    refuse(capsys, folder, f"--config {path} fit moons --out @x", says)
    refuse(capsys, folder, f"--config {path} fit moons --out @x", f"{path}")
    path.write_bytes(b"[fit]\nsteps = 3 # \xff\n")
    refuse(capsys, folder, f"--config {path} info", "is not a TOML file")


def test_options_of_a_file_in_both_spellings(capsys, folder, tmp_path):
    path = tmp_path / "run.toml"
    for key in ("batch-size", "batch_size"):
        path.write_text(f"[fit]\n{key} = 0\n")
        refuse(
            capsys,
            folder,
            f"--config {path} fit moons --out @x",
            "batch_size must be an integer of at least 1",
        )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 TiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …"),
        RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807]"),
    ],
    ids=["numpy", "cpu", "cuda", "overflow"],
)
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("fit @points.csv --out @x --no-table", "out of memory; lower --batch-size or --width"),
        ("sample @table", "out of memory; lower --n"),
        ("evaluate @table @points.csv --label side", "out of memory; lower --n"),
        ("info moons", "out of memory ("),
    ],
)
def test_out_of_memory_says_what_to_lower(capsys, folder, monkeypatch, error, line, says):
    from gradlogp.interfaces.cli import check, learn, use

    def fail(*arguments, **options):
        raise error

    for module, name in ((check, "load"), (learn, "load"), (use, "load_estimator")):
        monkeypatch.setattr(module, name, fail)
    refuse(capsys, folder, line, says, code=1)


def test_more_samples_than_memory_are_refused_before_the_work(capsys, folder):
    refuse(capsys, folder, f"sample @table --n {10**15}", "out of memory; lower --n", code=1)


def test_what_nobody_foresaw_is_a_line_that_says_so(capsys, folder, monkeypatch):
    from gradlogp.interfaces.cli import use

    def fail(*arguments, **options):
        raise KeyError("a key")

    monkeypatch.setattr(use, "load_estimator", fail)
    refuse(capsys, folder, "sample @table", "KeyError: 'a key'; this is a bug in gradlogp", code=1)


def test_a_code_page_without_our_signs_loses_nothing(monkeypatch):
    """Latin-1 has no ✓, and cp1252 no −: they are escaped, and everything is printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["verify", "statistics.weight", "--quick", "--quiet"]) == 0
    out.seek(0)
    text = out.read()
    assert "claims pass" in text
    assert "ok true" in text


def test_images_of_odd_sides_are_learned_as_images(capsys, folder):
    code, _, err = call(capsys, folder, "fit @odd.npy --out @odd --steps 2")
    assert code == 0
    assert "read as images (N, C, H, W): 1 channel, 5×5" in err


def test_a_label_can_be_left_out(capsys, folder):
    """With --no-class-conditional the column of --label is neither a dimension nor a class."""
    line = "fit @points.csv --out @plain --label side --no-class-conditional --steps 2 --width 4"
    assert call(capsys, folder, line)[0] == 0
    code, out, _ = call(capsys, folder, "sample @plain --n 3 --steps 2 --quiet")
    assert code == 0
    assert len(out.splitlines()[0].split(",")) == 2


def test_help_warns_that_a_file_of_python_is_run(capsys, folder):
    assert "A Python file" in call(capsys, folder, "--help")[1]
    assert "WARNING: a .py file is run" in " ".join(
        call(capsys, folder, "sample --help")[1].split()
    )
