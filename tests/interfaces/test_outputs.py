"""What the commands write: nothing is replaced unasked, and every terminal can show it."""

import io
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from few_support import at_few_levels

from gradlogp.core import files
from gradlogp.interfaces.cli import main
from gradlogp.interfaces.cli.common import Misuse, Stopped, claim_output, interruptible, print_rows
from gradlogp.interfaces.cli.main import in_ascii, printable
from gradlogp.show.report import Row

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("outputs")
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.save(folder / "x.npy", x)
    with at_few_levels():
        assert main(["fit", str(folder / "x.npy"), "--out", str(folder / "m"), *QUICK]) == 0
    return folder / "m"


QUICK = ["--steps", "2", "--width", "8", "--depth", "1", "--quiet"]


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def commands(model, folder):
    """Every command that writes, what it names, and what it writes beside that."""
    sample = ["sample", str(model), "--n", "5", "--steps", "2", "--quiet", "--out"]
    ring = [
        "sample",
        "--target",
        "ring",
        "--draws",
        "30",
        "--warmup",
        "30",
        "--chains",
        "2",
        "--quiet",
    ]
    data = str(model.parent / "x.npy")
    return {
        "array": ([*sample, str(folder / "a.npy")], "a.npy"),
        "picture": ([*sample, str(folder / "a.csv")], "a.png"),
        "draws": ([*ring, "--out", str(folder / "r.npz")], "r.png"),
        "fit": (["fit", data, "--out", str(folder / "m"), *QUICK], "m/config.json"),
        "geometry": (
            ["geometry", str(model), "--data", data, "--points", "5", "--quiet", "--out",
             str(folder / "g.png")], "g.png",
        ),
        "explore": (["explore", "--out", str(folder / "e.html"), "--quiet"], "e.html"),
        "demo": (
            ["demo", "mixture", "--out", str(folder), "--steps", "2", "--quiet"], "mixture/index.html",
        ),
        "restore": (
            ["restore", str(model), "--task", "denoise", "--image", data, "--out",
             str(folder / "i.png")], "i.npy",
        ),
        "report": (
            ["evaluate", str(model), data, "--n", "20", "--quiet", "--out", str(folder / "e")],
            "e/index.html",
        ),
        "rank": (
            ["evaluate", str(model), data, "--quiet", "--rank", str(folder / "k.csv")], "k.csv",
        ),
    }  # fmt: skip


CASES = (
    "array", "picture", "draws", "fit", "geometry", "explore", "demo", "restore", "report", "rank",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_there_is_replaced(model, tmp_path, capsys, case):
    arguments, there = commands(model, tmp_path)[case]
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "exists: choose a different name, or replace it with --force" in err
    assert contents(tmp_path) == {there: b"mine"}


@pytest.mark.parametrize("case", ["array", "picture", "geometry", "explore", "rank"])
def test_force_replaces(model, tmp_path, capsys, case):
    arguments, there = commands(model, tmp_path)[case]
    (tmp_path / there).write_text("mine")
    assert main([*arguments, "--force"]) in (0, 1)
    assert (tmp_path / there).read_bytes() != b"mine"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_model_is_replaced_with_force_and_letters_are_not(model, tmp_path, capsys):
    fit = ["fit", str(model.parent / "x.npy"), "--out", str(tmp_path / "m"), *QUICK]
    assert main(fit) == 0
    assert main(fit) == 2
    assert main([*fit, "--resume"]) == 0
    assert main([*fit, "--force", "--seed", "1"]) == 0
    (tmp_path / "m" / "config.json").unlink()
    assert main([*fit, "--force"]) == 1
    assert "is not a gradlogp checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("case", [c for c in CASES if c != "demo"])
def test_what_cannot_be_written_is_found_before_the_work(
    model, tmp_path, capsys, case, monkeypatch
):
    arguments, _ = commands(model, tmp_path)[case]
    (tmp_path / "full").write_text("")
    arguments = [a.replace(f"{tmp_path}/", f"{tmp_path}/full/") for a in arguments]
    assert main(arguments) in (1, 2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "cannot write" in err


def test_a_full_disk_leaves_the_file_that_was_there(model, tmp_path, capsys, monkeypatch):
    arguments, _ = commands(model, tmp_path)["array"]
    assert main(arguments) == 0
    before = contents(tmp_path)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    assert main([*arguments, "--force", "--seed", "3"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_claims(tmp_path):
    claim_output(None, tmp_path / "a", tmp_path / "b" / "c", force=False)
    claim_output(tmp_path, force=False, folder=True)  # it is empty
    (tmp_path / "a").symlink_to(tmp_path / "nothing")  # what a link leads to would be made
    with pytest.raises(Misuse, match="--force"):
        claim_output(tmp_path / "a", force=False)
    with pytest.raises(Misuse, match="--force"):
        claim_output(tmp_path, force=False, folder=True)
    claim_output(tmp_path / "a", force=True)
    with pytest.raises(OSError, match="it is a folder"):
        claim_output(tmp_path, force=True)


# ---------------------------------------------------------------------------- signals


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_between_steps(number):
    before = signal.getsignal(number)
    with interruptible() as check:
        check()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        with pytest.raises(Stopped) as caught:
            check()
    assert caught.value.number == number
    assert signal.getsignal(number) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_exit_codes_of_signals(model, tmp_path, capsys, number, monkeypatch):
    from gradlogp.interfaces import estimator

    real = estimator.fit

    def fit(*arguments, **options):
        for record in real(*arguments, **options):
            if record.step == 3:
                os.kill(os.getpid(), number)
            yield record

    monkeypatch.setattr(estimator, "fit", fit)
    arguments = ["fit", str(model.parent / "x.npy"), "--out", str(tmp_path / "m"), *QUICK]
    arguments[arguments.index("2")] = "30"
    assert main(arguments) == 128 + number
    assert capsys.readouterr().err == (
        f"gradlogp: interrupted; {tmp_path / 'm'} is saved; continue with --resume\n"
    )
    monkeypatch.undo()
    torch.set_default_dtype(torch.float32)
    assert main([*arguments, "--resume"]) == 0


# ---------------------------------------------------------------------------- terminals


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_text_that_the_terminal_has_no_bytes_for(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    text = "−1.743 ± 0.021 × 10⁻⁷ σ² ✓ ∇ log p … ≤ é 中"
    with printable(stream):
        print(text, file=stream)
        stream.flush()
    said = stream.buffer.getvalue().decode(encoding)
    if encoding == "utf-8":
        assert said == f"{text}\n"
    if encoding == "ascii":
        assert said == "-1.743 +/- 0.021 x 10^-7 sigma^2 ok grad  log p ... <= e ?\n"
    if encoding == "cp1252":  # what it has is kept
        assert said.startswith("-1.743 ± 0.021 × 10^-7 sigma² ok")
    assert stream.errors == "strict"  # as before


def test_powers_in_ascii():
    assert in_ascii("x² y⁻¹ 10⁻¹² m²") == "x^2 y^-1 10^-12 m^2"
    assert in_ascii("κ₂ ≤ ε², Ω, λ") == "kappa2 <= epsilon^2, Omega, lambda"


def test_a_table_on_forty_characters(monkeypatch, capsys):
    """One row below the other, the verdict first, nothing cut; from 60 on a table as ever."""
    note = "in standard deviations, along the axes of real rows"
    rows = [Row("location", -0.371, 0.042, 0.0, verdict=False, note=note), Row("copies", "none")]
    monkeypatch.setenv("COLUMNS", "40")
    print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["✗ fail location", "  value: −0.371 ± 0.042", "  floor: 0"]
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines[3:5]) == f"note: {note}"
    assert lines[5:] == ["copies", "  value: none"]
    monkeypatch.setenv("COLUMNS", "100")
    print_rows(rows)
    assert capsys.readouterr().out.startswith("quantity")


@pytest.mark.parametrize("encoding", ["cp1252"])
def test_commands_on_an_old_terminal(encoding, monkeypatch):
    """Tables of claims have minus signs, powers and ticks in them."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["verify", "statistics.weight", "--quick", "--quiet"]) == 0
    terminal.flush()
    said = terminal.buffer.getvalue().decode(encoding)
    assert "0.0001804  ok true" in said
