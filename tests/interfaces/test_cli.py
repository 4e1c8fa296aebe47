"""The command line as a person meets it: exit codes, one readable line, data on standard output."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from typing import get_args

import numpy as np
import pytest
import torch
from few_support import at_few_levels

import gradlogp as glp
from gradlogp.interfaces.cli import main
from gradlogp.interfaces.cli.common import Method
from gradlogp.interfaces.cli.langevin import KernelName, makers

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels", "bare_pictures")


def call(capsys, *arguments):
    """Run the command line in this process; return exit code, standard output and error."""
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def refuse(capsys, code, *arguments, says):
    """The command must end with this code and one readable line that says something."""
    got, out, err = call(capsys, *arguments)
    assert got == code, (got, out, err)
    lines = [line for line in err.strip().splitlines() if line.startswith("gradlogp: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert says in lines[0]
    return lines[0]


@pytest.fixture
def short_paths(monkeypatch):
    """Starts of chains that are looked for on few paths, at few points."""
    monkeypatch.setattr("gradlogp.langevin.tuning.start.N_PATHS", 2)
    monkeypatch.setattr("gradlogp.langevin.tuning.start.POINTS", 4)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "points.csv"
    law = glp.GaussianMixture([0.5, 0.5], [[-2.0, 5.0], [2.0, 5.0]], 0.25)
    x = law.sample(600, generator=torch.Generator().manual_seed(0))
    rows = "\n".join(f"{a:.6f},{b:.6f},{'left' if a < 0 else 'right'}" for a, b in x.tolist())
    path.write_text(f"a,b,side\n{rows}\n")
    return path


@pytest.fixture(scope="module")
def checkpoint(points, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "model"
    quick = ["--steps", "30", "--width", "16", "--quiet", "--no-table"]
    with at_few_levels():
        assert main(["fit", str(points), "--out", str(out), "--columns", "a,b", *quick]) == 0
    return out


def test_fit_says_what_it_did(points, tmp_path, capsys):
    arguments = ("--columns", "a,b", "--steps", 20, "--width", 16, "--json", "--quiet")
    code, out, _ = call(capsys, "fit", points, "--out", tmp_path / "m", *arguments)
    result = json.loads(out)
    assert code == 0
    assert result["steps"] == 20
    assert result["n"] == 600
    assert result["held_out_loss"]["standard_error"] > 0
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_sample_prints_numbers_and_nothing_else(checkpoint, capsys):
    code, out, _ = call(capsys, "sample", checkpoint, "--n", 7, "--steps", 4)
    rows = np.array([[float(v) for v in line.split(",")] for line in out.strip().splitlines()])
    assert code == 0
    assert rows.shape == (7, 2)
    again = call(capsys, "sample", checkpoint, "--n", 7, "--steps", 4)[1]
    other = call(capsys, "sample", checkpoint, "--n", 7, "--steps", 4, "--seed", 1)[1]
    assert out == again != other


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_sample_writes_files_and_a_picture(checkpoint, tmp_path, capsys, suffix):
    path = tmp_path / f"s{suffix}"
    code, out, _ = call(capsys, "sample", checkpoint, "--n", 5, "--out", path, "--steps", 3)
    assert (code, out) == (0, "")
    loaded = np.loadtxt(path, delimiter=",") if suffix == ".csv" else np.load(path)
    loaded = loaded["x"] if suffix == ".npz" else loaded
    printed = call(capsys, "sample", checkpoint, "--n", 5, "--steps", 3)[1]
    np.testing.assert_allclose(loaded, np.loadtxt(printed.splitlines(), delimiter=","), rtol=1e-6)
    assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("method", get_args(Method))
def test_every_way_of_sampling(checkpoint, capsys, method):
    code, out, _ = call(
        capsys, "sample", checkpoint, "--n", 6, "--method", method, "--steps", 4, "--quiet"
    )
    assert code == 0
    x = np.array([[float(v) for v in line.split(",")] for line in out.strip().splitlines()])
    assert x.shape == (6, 2)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("method", ["sde", "langevin", "churn", "corrector", "adaptive"])
def test_every_way_from_noise_without_signal(points, tmp_path_factory, capsys, method):
    """Rectified: α = 0 at t = 1."""
    model = tmp_path_factory.getbasetemp() / "rectified"
    if not model.exists():
        call(
            capsys, "fit", points, "--out", model, "--columns", "a,b", "--schedule", "rectified",
            "--steps", 10, "--width", 8, "--quiet", "--no-table",
        )  # fmt: skip
    code, out, err = call(
        capsys, "sample", model, "--n", 4, "--method", method, "--steps", 5, "--quiet"
    )
    assert code == 0, err
    assert len(out.strip().splitlines()) == 4


def test_evaluate_in_bits_with_probes_and_a_report(tmp_path, capsys):
    """Bits of integers: −log₂ p of dequantised data over the dimension, cells of width 1."""
    data = tmp_path / "dice.csv"
    rng = np.random.default_rng(0)
    np.savetxt(data, rng.integers(0, 8, (400, 2)), "%d", ",", header="a,b", comments="")
    model, report = tmp_path / "m", tmp_path / "report"
    quick = ("--steps", 30, "--width", 16, "--quiet", "--no-table")
    call(capsys, "fit", data, "--out", model, *quick)
    arguments = ("--levels", 8, "--n", 50, "--json", "--quiet")
    rows = {}
    for name, more in (("exact", ("--out", report)), ("probed", ("--probes", 3))):
        code, out, err = call(capsys, "evaluate", model, data, *arguments, *more)
        found = json.loads(out)
        assert code == 1  # samples of a model of plain numbers are not integers
        assert not found["ok"]
        assert "the samples of a are not integers" in " ".join(found["reasons"])
        assert err.startswith("not ok: ")
        assert err.count("\n") == 1
        rows[name] = {row["name"]: row for row in found["rows"]}
        bits = rows[name]["bits per dimension"]
        nats = rows[name]["log-likelihood"]
        assert bits["value"] == pytest.approx(-nats["value"] / (2 * np.log(2)), rel=1e-5)
        assert 2.5 < bits["value"] < 5.5  # 3 for a perfect model
    exact, probed = (rows[k]["bits per dimension"] for k in ("exact", "probed"))
    assert abs(exact["value"] - probed["value"]) < 4 * probed["standard_error"]
    page = (report / "index.html").read_text()
    assert "Evaluation of m" in page
    assert "the samples of a are not integers" in page
    refuse(capsys, 2, "evaluate", model, data, "--out", tmp_path / "p.txt", says="a folder")
    refuse(capsys, 2, "evaluate", model, data, "--levels", 1, says="levels")
    refuse(capsys, 1, "evaluate", model, data, "--levels", 4, says="integers from 0 to 3")


def test_evaluate_judges(checkpoint, points, capsys):
    code, out, err = call(
        capsys, "evaluate", checkpoint, points, "--train", points, "--columns", "a,b",
        "--n", 300, "--json", "--quiet",
    )  # fmt: skip
    found = json.loads(out)
    rows = {row["name"]: row for row in found["rows"]}
    assert code == int(not found["ok"])
    assert err.startswith("not ok: ") or code == 0
    assert rows["log-likelihood"]["standard_error"] > 0
    assert any(name.startswith("log-likelihood, mixture of") for name in rows)
    assert rows["sliced Wasserstein distance"]["floor"] > 0
    assert rows["classifier"]["floor"] == 0.5


def test_info_of_everything(checkpoint, points, capsys):
    assert json.loads(call(capsys, "info", "--json")[1])["gradlogp"] == glp.__version__
    model = json.loads(call(capsys, "info", checkpoint, "--json")[1])
    assert model["schedule"]["name"] == "VE"
    assert model["network"]["width"] == 16
    data = json.loads(call(capsys, "info", points, "--json")[1])
    assert data["rows"] == 600
    assert data["columns"] == {
        "a": "number",
        "b": "number, from 0",
        "side": "category of 2 levels",
    }
    assert json.loads(call(capsys, "info", "moons", "--json")[1])["columns"]


def test_classes(points, tmp_path, capsys):
    quick = ("--label", "side", "--columns", "a,b", "--steps", 40, "--width", 32, "--quiet")
    assert call(capsys, "fit", points, "--out", tmp_path / "m", *quick)[0] == 0
    code, out, _ = call(capsys, "sample", tmp_path / "m", "--class", "left", "--n", 50)
    first = np.array([float(line.split(",")[0]) for line in out.strip().splitlines()])
    assert code == 0
    assert (first < 0).mean() > 0.8
    refuse(capsys, 2, "sample", tmp_path / "m", "--class", "up", says="unknown class 'up'")


def test_misuse_is_two(checkpoint, points, tmp_path, capsys):
    out = ("--out", tmp_path / "m")
    ab = ("--columns", "a,b")
    for says, *arguments in (
        ('Did you mean "stars"', "demo", "star"),
        ("did you mean 'stars'", "fit", "star", *out),
        ("none.csv", "fit", tmp_path / "none.csv", *out),
        ("--out", "fit", points),
        ("steps must be an integer of at least 1", "fit", points, *out, "--steps", 0),
        ("many", "fit", points, *out, "--steps", "many"),
        ("no built-in classes", "fit", points, *out, *ab, "--class-conditional"),
        ("no checkpoint", "sample", tmp_path / "none"),
        ("cannot write", "sample", checkpoint, "--out", "x.doc"),
        ("has no classes", "sample", checkpoint, "--class", "3"),
        ("samples of shape (1, 8, 8)", "evaluate", checkpoint, "digits"),
        ("nonsense", "nonsense"),
        ("none.toml", "--config", tmp_path / "none.toml", "info"),
        ("no check has 'langevine' in its name; known: annealed", "verify", "langevine"),
        ("did you mean 'dynamics'", "verify", "dynamic_s"),
    ):
        refuse(capsys, 2, *arguments, says=says)


def test_failure_is_one(checkpoint, points, tmp_path, capsys):
    out = ("--out", tmp_path / "m", "--quiet")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    refuse(capsys, 1, "fit", empty, *out, says="empty.csv")
    refuse(capsys, 1, "fit", points, *out, "--no-table", says="side")  # text in a numeric column
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    refuse(capsys, 1, "fit", tmp_path / "one.csv", *out, says="at least two rows, got 1")
    constant = tmp_path / "constant.csv"
    constant.write_text("a,b\n" + "\n".join(f"{i},7" for i in range(40)))
    refuse(capsys, 1, "fit", constant, *out, "--no-table", says="constant")
    bad = tmp_path / "nan.csv"
    bad.write_text("a,b\n" + "\n".join(f"{i},{i * i}" for i in range(40)) + "\nnan,1\n2,inf\n")
    quick = ("--steps", 2, "--width", 4)
    refuse(capsys, 1, "fit", bad, *out, *quick, says="column 'b' has 1 infinite values")
    assert call(capsys, "fit", bad, *out, *quick, "--missing", "inf")[0] == 0
    code, _, err = call(capsys, "fit", bad, "--out", tmp_path / "ok", *quick, "--no-table")
    assert code == 0
    assert "2 of 42 rows" in err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for part in checkpoint.iterdir():
        (damaged / part.name).write_bytes(part.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"\x00" * 20)
    refuse(capsys, 1, "sample", damaged, says="damaged")
    (damaged / "config.json").unlink()
    refuse(capsys, 1, "sample", damaged, says="missing")
    refuse(capsys, 1, "fit", points, "--columns", "a,b", "--out", "/dev/null/m", says="/dev/null")


def test_options_from_a_file(points, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text('[fit]\nsteps = 11\nwidth = 8\ncolumns = "a,b"\nquiet = true\njson = true\n')
    fit = ("fit", points, "--no-table")
    code, out, _ = call(capsys, "--config", config, *fit, "--out", tmp_path / "m")
    assert code == 0
    assert json.loads(out)["steps"] == 11
    # what is typed wins over the file
    again = (*fit, "--out", tmp_path / "n", "--steps", 3)
    assert json.loads(call(capsys, "--config", config, *again)[1])["steps"] == 3
    config.write_text("[fit]\nstepz = 11\n")
    refuse(capsys, 2, "--config", config, "fit", points, "--out", tmp_path / "o", says="stepz")


SAVING_OFTEN = (
    "import sys; from gradlogp.scores import shared; shared.LEVELS = 4; "  # as in this process
    "from gradlogp.learn.training import fit; "
    "fit.__kwdefaults__['checkpoint_every'] = 5; "
    "from gradlogp.interfaces.cli import main; sys.exit(main(sys.argv[1:]))"
)


def test_interrupt_saves_and_resume_goes_on(points, tmp_path):
    """A real Ctrl-C on a real process: 130, a checkpoint, and the same model as unbroken."""
    common = [
        sys.executable, "-c", SAVING_OFTEN, "fit", str(points), "--columns", "a,b",
        "--steps", "120", "--width", "8", "--base", "gaussian", "--no-table", "--quiet", "--out",
    ]  # fmt: skip
    out = tmp_path / "run"
    said = tmp_path / "said"
    with said.open("w") as file:
        command = [*common[:1], "-X", "importtime", *common[1:], str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    deadline = time.monotonic() + 120
    while not (out / "training.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.wait(timeout=120)
    err = said.read_text()
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("gradlogp: interrupted; ")
    assert "--resume" in err
    assert "Traceback" not in err
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", err, re.MULTILINE))
    assert "torch.optim" in imported
    assert not {"torch._dynamo", "matplotlib"} & imported  # seconds, for nothing
    step = json.loads((out / "run.json").read_text())["step"]
    assert 0 < step < 120
    # in this process: starting another costs more than the training
    whole = tmp_path / "whole"
    assert main([*common[3:], str(out), "--resume"]) == 0
    assert main([*common[3:], str(whole)]) == 0
    a, b = (p / "model.safetensors" for p in (out, whole))
    assert a.read_bytes() == b.read_bytes()
    # a finished run may be resumed: nothing is left to do, and nothing changes
    assert main([*common[3:], str(out), "--resume"]) == 0
    assert a.read_bytes() == b.read_bytes()


def test_help_is_there_and_imports_nothing_heavy():
    program = (
        "import sys; from gradlogp.interfaces.cli import main; code = main(['fit', '--help']); "
        "heavy = {'torch', 'matplotlib', 'sklearn', 'scipy', 'pandas'} & set(sys.modules); "
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout


# ---------------------------------------------------------------------------- verify


def test_verify_as_a_table_and_as_json(capsys):
    code, out, err = call(capsys, "verify", "density.", "--quick", "--quiet")
    assert code == 0
    assert err == ""
    assert "E[s] = 0 on a mixture" in out  # brackets are not markup
    assert "false, as shown" in out
    assert "claims pass" in out.splitlines()[-1]
    code, out, _ = call(capsys, "verify", "statistics.weight", "--json", "--quiet")
    assert code == 0
    claims = json.loads(out)
    assert [round(c["measured"], 4) for c in claims] == [0.6013, 0.1061, 0.0072, 0.0002]
    keys = {"claim", "source", "expected", "measured", "standard_error", "verdict", "statement"}
    assert all(set(c) == keys and c["verdict"] == "pass" for c in claims)


def test_verify_exits_1_on_a_failure(capsys, monkeypatch):
    from gradlogp.check.theory import statistics

    monkeypatch.setattr(statistics, "efficiency", lambda a, sigma=0.0: 0.5)
    code, out, _ = call(capsys, "verify", "statistics.weight_at_4", "--quiet")
    assert code == 1
    assert "✗ fail" in out
    assert "0 of 1 claims pass" in out


# ---------------------------------------------------------------------------- sample --target


def test_targets_are_listed_and_each_can_be_sampled(capsys, short_paths):
    code, out, _ = call(capsys, "targets", "--json")
    assert code == 0
    rows = json.loads(out)
    names = [row["name"] for row in rows]
    assert {"gaussian", "mixture", "funnel", "ring", "many-well", "logistic"} <= set(names)
    code, out, _ = call(capsys, "targets")
    assert len(out.splitlines()) == len(names)
    for name in names:
        few = ["--draws", "5", "--warmup", "10", "--chains", "2", "--quiet"]
        code, out, _ = call(capsys, "sample", "--target", name, *few)
        assert "r_hat" in out
        assert code == (0 if "verdict: ok" in out.splitlines() else 1)


def test_sampling_a_target_prints_a_verdict_and_writes(capsys, tmp_path):
    out_file = tmp_path / "new folder" / "draws.npz"
    code, out, err = call(
        capsys, "sample", "--target", "gaussian", "--draws", "400", "--warmup", "200",
        "--out", out_file, "--seed", "1",
    )  # fmt: skip
    assert code == 0
    assert out.startswith("HMC, step size ")
    assert "\nverdict: ok\n" in out
    assert "exact means" in out
    assert "draws, " in err  # the stage
    with np.load(out_file) as written:
        assert written["draws"].shape == (4, 400, 2)
        assert written["acceptance"].shape == (4, 400)
        assert written["names"].tolist() == ["x[0]", "x[1]"]
        means = written["draws"].mean((0, 1))
    assert np.abs(means - [0.7, -1.2]).max() < 0.15
    assert out_file.with_suffix(".png").stat().st_size > 10_000
    code, out, _ = call(
        capsys, "sample", "--target", "gaussian", "--draws", "100", "--warmup", "20", "--json",
        "--quiet", "--kernel", "mala", "--step-size", "0.3", "--chains", "6", "--spread", "0.5",
    )  # fmt: skip
    found = json.loads(out)
    assert (found["kernel"], found["step_size"], found["divergences"]) == ("MALA", 0.3, 0)
    assert 0.5 < found["acceptance"] < 1
    assert [row["name"] for row in found["rows"]] == ["x[0]", "x[1]"]
    assert code == (0 if found["verdict"]["ok"] else 1)


def test_a_verdict_that_is_not_ok_exits_1_and_the_draws_are_there(capsys, tmp_path):
    """Four modes 20 deviations apart: each chain stays where it starts."""
    source, out_file = tmp_path / "four.py", tmp_path / "four.npy"
    source.write_text(
        "import torch\nat = 10 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])\n"
        "def log_prob(x):\n    return (-torch.cdist(x, at).square() / 2).logsumexp(1)\n"
    )
    few = ["--dim", "2", "--draws", "100", "--warmup", "100", "--seed", "3"]
    arguments = ["sample", "--target", f"{source}:log_prob", *few]
    code, out, err = call(capsys, *arguments, "--json", "--out", out_file)
    found = json.loads(out)
    assert code == 1
    assert found["verdict"]["ok"] is False
    why = " ".join(found["verdict"]["reasons"])
    assert "the chains disagree: R-hat" in why or "no draw comes" in why
    assert np.load(out_file).shape == (4, 100, 2)
    assert out_file.with_suffix(".png").stat().st_size > 10_000
    assert "Traceback" not in err
    few = ["--chains", "1", "--draws", "20", "--warmup", "20"]
    one = call(capsys, "sample", "--target", "gaussian", *few, "--quiet")
    assert one[0] == 1
    assert "one chain cannot show what it has missed" in one[1]


@pytest.mark.parametrize("kernel", get_args(KernelName))
def test_every_kernel_samples_a_target(capsys, short_paths, kernel):
    few = ["--draws", "4", "--warmup", "10", "--kernel", kernel, "--json", "--quiet"]
    for extra in ([], ["--step-size", "0.2"]):
        code, out, err = call(capsys, "sample", "--target", "gaussian", *few, *extra)
        assert code in (0, 1)
        assert not err
        found = json.loads(out)
        assert found["kernel"].lower() == makers(2)[kernel](0.1).__class__.__name__.lower()
        assert (found["step_size"] == 0.2) == bool(extra)


def test_sampling_a_function_of_a_file_and_a_checkpoint(capsys, tmp_path, checkpoint):
    source = tmp_path / "bowl.py"
    source.write_text(
        "import torch\nA = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])\n"
        "def log_prob(x):\n    return -0.5 * ((x @ A) ** 4).sum(1)\n"
        "class Score:\n    event_shape = torch.Size([2])\n"
        "    def score(self, x):\n        return -x\nonly_score = Score()\n"
    )
    where = f"{source}:log_prob"
    few = ["--draws", "20", "--warmup", "20", "--chains", "5", "--quiet"]
    code, out, _ = call(capsys, "sample", "--target", where, "--dim", "3", *few)
    assert code in (0, 1)
    assert "x[2]" in out
    refuse(capsys, 2, "sample", "--target", where, *few, says="state D with --dim")
    refuse(capsys, 2, "sample", "--target", f"{source}:nothing", *few, says="has no nothing")
    code, out, _ = call(capsys, "sample", "--target", f"{source}:only_score", *few)
    assert out.startswith("BAOAB, step size")
    for extra in ([], ["--kernel", "ula", "--step-size", "0.01", "--spread", "0.5"]):
        code, out, _ = call(capsys, "sample", "--target", checkpoint, *few, *extra)
        assert code in (0, 1)
        assert out.startswith("ULA, step size 0.01\n" if extra else "BAOAB, step size")
    mala = ["--kernel", "mala", *few]
    refuse(capsys, 1, "sample", "--target", checkpoint, *mala, says="no log-density")


def test_named_parameters_of_a_file_need_no_dim(capsys, tmp_path):
    source, out_file = tmp_path / "model.py", tmp_path / "draws.npz"
    source.write_text(
        "import gradlogp as glp\nfrom torch.distributions import constraints\n"
        "def f(rate, shift):\n    return rate.log() - rate - shift.square().sum(1) / 2\n"
        "target = glp.as_target(log_prob=f, parameters={'rate': constraints.positive, 'shift': (1,)})\n"
    )
    few = ["--draws", "250", "--warmup", "150", "--quiet"]
    code, out, _ = call(capsys, "sample", "--target", f"{source}:target", *few, "--out", out_file)
    assert code == 0
    assert "\nrate " in out
    assert "\nshift[0] " in out
    with np.load(out_file) as written:
        assert written["names"].tolist() == ["rate", "shift[0]"]
        rate = written["draws"][..., 0]
    assert rate.min() > 0
    assert abs(rate.mean() - 2) < 0.4  # Gamma(2, 1)
    wrong = [*few, "--dim", "3"]
    refuse(capsys, 2, "sample", "--target", f"{source}:target", *wrong, says="drop --dim 3")


def test_sampling_a_target_refuses_nonsense(capsys, tmp_path, checkpoint):
    refuse(capsys, 2, "sample", says="needs a checkpoint folder or a density")
    refuse(capsys, 2, "sample", checkpoint, "--target", "ring", says="not both")
    refuse(capsys, 2, "sample", "--target", "rang", says="'rang' is not a target")
    mala = ("--kernel", "mala")
    for says, *options in (
        ("--step-size must be", *mala, "--step-size", "-1"),
        ("--step-size needs --kernel", "--step-size", "0.1"),
        ("--chains must be", "--chains", "0"), ("--draws must be", "--draws", "0"),
        ("--warmup must be", "--warmup", "-1"), ("kernel", "--kernel", "gibbs"),
        ("use one of .npz, .npy", "--out", tmp_path / "x.txt"),
        ("--spread must", "--spread", "0"), ("--spread must", "--spread", "nan"),
        ("--spread is for a checkpoint", "--spread", "2"),
        ("--spread is for a checkpoint", "--spread", "2", *mala),
        ("drop --dim 3", "--dim", "3"),
    ):  # fmt: skip
        refuse(capsys, 2, "sample", "--target", "ring", *options, says=says)


def test_options_that_belong_to_another_way_of_sampling_are_refused(capsys, checkpoint):
    for option, value in (
        ("--draws", 10), ("--warmup", 10), ("--chains", 4), ("--kernel", "ula"),
        ("--step-size", 0.1), ("--dim", 2), ("--spread", 1),
    ):  # fmt: skip
        says = f"{option} is for a density; write --target {checkpoint}"
        refuse(capsys, 2, "sample", checkpoint, option, value, says=says)
    refuse(capsys, 2, "sample", checkpoint, "--json", says="--json is for a density")
    for option, value in (("--n", 10), ("--class", "a"), ("--method", "flow"), ("--steps", 9)):
        line = refuse(capsys, 2, "sample", "--target", "ring", option, value, says=option)
        assert "use --draws, --warmup" in line
    for option, instead in (("--burn-in", "--warmup"), ("--thin", "--draws")):
        refuse(capsys, 2, "sample", "--target", "ring", option, 9, says=instead)


def test_a_file_that_fails_says_so_in_a_line(capsys, tmp_path):
    source = tmp_path / "bad.py"
    source.write_text(
        "def boom(x):\n    raise RuntimeError('no')\n"
        "def nan(x):\n    return x.sum(1) * float('nan')\nnumber = 3\n"
    )
    few = ["--dim", "2", "--draws", "20", "--warmup", "50", "--chains", "3", "--quiet"]
    at = lambda name: ["sample", "--target", f"{source}:{name}", *few]
    refuse(capsys, 1, *at("boom"), says="failed at every point tried: RuntimeError: no")
    refuse(capsys, 1, *at("nan"), says="none of 100 points")
    refuse(capsys, 2, *at("number"), says="neither a function nor a density")
    code, _, err = call(capsys, *at("nan"), "--kernel", "ula", "--step-size", "0.1")
    assert code == 1  # every chain diverged
    assert "3 of 3 chains diverged" in err
    assert "RuntimeWarning" not in err
    source.write_text("def f(x:\n")
    refuse(capsys, 1, *at("f"), says="failed: SyntaxError")


def test_an_interrupt_before_the_first_draw(capsys, monkeypatch, tmp_path):
    from gradlogp import langevin as chains

    whole = chains.sample

    def interrupted(*arguments, **options):
        chain = whole(*arguments, **options)
        return dataclasses.replace(chain, draws=chain.draws[:, :0], complete=False)

    monkeypatch.setattr(chains, "sample", interrupted)
    out = tmp_path / "x.npz"
    few = ["--draws", "20", "--warmup", "50", "--chains", "3", "--out", out, "--quiet"]
    refuse(capsys, 130, "sample", "--target", "ring", *few, says="no draw was kept yet")
    assert not out.exists()


def test_the_stages_of_a_run_are_said(capsys, monkeypatch, short_paths):
    """Finding a start, the warm-up, the draws: what the bar is shown."""
    from gradlogp.show import progress

    reported = []

    @contextmanager
    def bar(title, *, quiet=False):
        yield lambda done, total, note="": reported.append((done, total, note.split(",")[0]))

    monkeypatch.setattr(progress, "bar", bar)
    few = ["--draws", "5", "--warmup", "40", "--chains", "2"]
    for extra in ([], ["--kernel", "baoab"]):
        reported.clear()
        call(capsys, "sample", "--target", "gaussian", *few, *extra)
        assert reported[0] == (0, 45, "finding a start")
        assert [note for _, _, note in reported[1:]] == ["warm-up"] * 40 + ["draws"] * 5
        assert reported[-1][:2] == (45, 45)


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(monkeypatch, capsys):
    from gradlogp.interfaces.cli import check

    monkeypatch.setattr(
        check, "print_json", lambda *a, **k: warnings.warn("two\nlines", stacklevel=1)
    )
    assert main(["info", "moons", "--json"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "gradlogp: two lines"
