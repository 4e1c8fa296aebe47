"""One training by 1, 2 and 4 processes over gloo: the same losses, one checkpoint, any number go on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from pathlib import Path

import jaxtyping
import pytest
import shared_work
import torch
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from gradlogp.core import PartOfBatch, Processes, rand_like, randn_like
from gradlogp.interfaces.cli import learn
from gradlogp.interfaces.cli.main import main
from gradlogp.learn.objectives.times import draw_times
from gradlogp.noise.schedules import VP

SCRIPT = textwrap.dedent(
    """
    import copy, json, os, sys, time
    from functools import partial
    from itertools import islice
    import torch, torch.distributed as dist
    import gradlogp as glp
    from gradlogp.learn import fit
    from gradlogp.learn.objectives import multilevel

    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=g) * torch.tensor([3.0, 0.5]) + 7
    labels = (x[:, 0] > 7).long()
    start = torch.Generator().manual_seed(1 + rank)
    network = glp.MLP(2, 16, 1, 2, generator=start)
    model = glp.ScoreModel(network, glp.schedules.VP(), "v")
    if options.get("unlike_data") and rank:
        x = x + 1

    def train(model, steps, **more):
        for record in fit(
            model, x, partial(multilevel, stratified=True), condition=labels,
            settings=glp.TrainingSettings(
                steps=steps, batch_size=50, warm_up=10, condition_dropout=0.2,
                accumulate=options.get("parts", 1), bfloat16=more.pop("bfloat16", False),
            ),
            standardize=True, held_out=x[:40], held_out_condition=labels[:40],
            generator=torch.Generator().manual_seed(2 + rank), **more,
        ):
            yield record.loss
            time.sleep(options.get("pause", 0))

    rough = []
    if "rough" in options:
        half = train(copy.deepcopy(model), options["steps"], bfloat16=True)
        rough = list(islice(half, options["rough"]))
    losses = list(train(
        model, options["steps"], checkpoint=options.get("checkpoint"),
        checkpoint_every=options.get("every", 500), resume=options.get("resume", False),
    ))
    if rank == 0:
        print(json.dumps([losses, rough]))
    """
)


STEPS, ROUGH = 60, 20
"""Steps in float32 and, before them, in bfloat16."""


class Forked:
    """A process that has all modules already: importing them takes longer than what it does."""

    def __init__(self, script, argument, environment):
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]
        if pid := os.fork():
            self.pid = pid
            return
        code = 1
        try:
            for number, file in zip((1, 2), self.files, strict=True):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv = ["-c", argument]
            os.environ.update(environment)
            as_a_user()
            exec(script, {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def communicate(self):
        """What it printed, once it has ended, and its exit code."""
        code, said = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), []
        for file in self.files:
            with file:
                file.seek(0)
                said.append(file.read())
        return *said, code


def as_a_user():
    """What a fresh interpreter has."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.set_default_dtype(torch.float32)
    warnings.resetwarnings()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(size, script=SCRIPT, out="", **options):
    """So many processes, which find one another at a free port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OUT": f"{out}/",
    }  # fmt: skip
    sys.stdout.flush()
    return [
        Forked(script, json.dumps(options), common | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(size)
    ]


def ended(processes):
    """What each printed, and its exit code."""
    return [p.communicate() for p in processes]


def losses(size, **options):
    found = ended(started(size, **options))
    assert all(code == 0 for *_, code in found), found
    return [torch.tensor(each, dtype=torch.float64) for each in json.loads(found[0][0])]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of one process, in float32 and bfloat16, and its checkpoint."""
    path = tmp_path_factory.mktemp("alone") / "m"
    return *losses(1, steps=STEPS, rough=ROUGH, checkpoint=str(path)), path


@pytest.mark.parametrize("size", [2, 4])
def test_the_whole_curve_is_that_of_one_process(size, alone, tmp_path):
    """Dropped conditions, times and noise are of the whole batch, seeds and weights those of rank 0."""
    options = {"rough": ROUGH} if size == 2 else {}
    path = tmp_path / "m"
    found, rough = losses(size, steps=STEPS, checkpoint=str(path), parts=size // 2, **options)
    torch.testing.assert_close(found, alone[0], rtol=1e-5, atol=1e-6)
    if size == 2:  # sums of bfloat16 over half a batch are rounded otherwise
        torch.testing.assert_close(rough, alone[1], rtol=0, atol=3e-4)
        assert float((rough - found[:ROUGH]).abs().max()) > 2e-5  # it is another precision
    theirs, ours = (load_file(p / "model.safetensors") for p in (alone[2], path))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_any_number_go_on_after_one_was_killed(alone, tmp_path):
    """SIGKILL of a process in the middle: the others end, and one process continues to the same end."""
    path = tmp_path / "m"
    processes = started(2, steps=STEPS, checkpoint=str(path), every=20, pause=0.05)
    deadline = time.monotonic() + 60
    while not (path / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGKILL)
    (_, error, code), _ = ended(processes)
    assert code == 1, error
    assert "another process has ended" in error.splitlines()[-1]
    assert "GLHF" not in error.splitlines()[-1]
    done = json.loads((path / "run.json").read_text())["step"]
    assert 20 <= done < STEPS
    rest, _ = losses(1, steps=STEPS, checkpoint=str(path), resume=True)
    torch.testing.assert_close(rest, alone[0][done:], rtol=1e-5, atol=1e-6)


def test_other_data_are_refused_by_all():
    for _, error, code in ended(started(2, steps=5, unlike_data=True)):
        assert code == 1
        assert "all processes must be given the same data" in error.splitlines()[-1]


def test_work_is_divided_and_comes_out_as_that_of_one_process(tmp_path):
    """Samples, likelihoods, chains, their noise and looks at samples, to the bit; errors are shared."""
    ours = shared_work.shared()
    script = Path(shared_work.__file__).read_text()
    found = ended(started(2, script, out=tmp_path))
    assert all(code == 0 for *_, code in found), found
    for rank, said in enumerate(
        ("RuntimeError: process 1 failed: TypeError", "TypeError: no law")
    ):
        theirs, error = torch.load(tmp_path / str(rank), weights_only=False)
        assert said in error
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            assert torch.equal(theirs[name], value), name


def test_parts_of_noise_make_up_the_whole():
    parts = [Processes(rank, 3).rows(10) for rank in range(3)]
    assert [p.stop - p.start for p in parts] == [3, 3, 4]

    def drawn(rows):
        g = torch.Generator().manual_seed(0)
        g = g if rows is None else PartOfBatch(g, rows, 10)
        like = torch.empty(10 if rows is None else rows.stop - rows.start, 2)
        return torch.cat([
            randn_like(like, g), rand_like(like, g),
            draw_times(VP(), like[:, 0], g, stratified=True)[:, None],
            draw_times(VP(), like[:, 0], g)[:, None],
        ], 1)  # fmt: skip

    assert torch.equal(torch.cat([drawn(rows) for rows in parts]), drawn(None))
    with pytest.raises(ValueError, match="4 rows was requested"):
        randn_like(torch.empty(4, 2), PartOfBatch(torch.Generator(), slice(0, 3), 10))


def test_too_small_batches_are_refused():
    with pytest.raises(ValueError, match="divided among 4 processes"):
        Processes(0, 4).check_batch(3)


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """One of two processes speaks, and what it saved is what one alone would have."""
    fit = ["-m", "gradlogp", "fit", "moons", "--steps", "20", "--json", "--seed", "1", "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = lambda *a: subprocess.run(
        [sys.executable, *a], capture_output=True, text=True, check=True, timeout=100
    )
    two = json.loads(run(*launch, *fit, str(tmp_path / "two")).stdout)
    one = json.loads(run(*fit, str(tmp_path / "one")).stdout)
    assert two["steps"] == one["steps"] == 20
    assert two["held_out_loss"]["value"] == pytest.approx(one["held_out_loss"]["value"], rel=1e-5)
    parts = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    for name, value in parts[1].items():
        torch.testing.assert_close(parts[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_processes_that_cannot_be_reached(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fit", "moons", "--out", str(tmp_path / "m"), "--steps", "1"]) == 1
    said = capsys.readouterr().err
    assert "WORLD_SIZE=2, but no other process" in said
    assert "RANK" in said
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_says_for_whom_and_gives_up(rank, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(learn, "PATIENCE", 1.0)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        there = s.getsockname()
    for name, value in zip(
        ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), (rank, 3, *there), strict=True
    ):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert main(["fit", "moons", "--out", str(tmp_path / "m"), "--steps", "1"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    place = f"127.0.0.1:{there[1]}"
    assert first == f"process {rank} of 3 waits for 2 other processes at {place}, at most 1 s"
    assert f"1 s passed without {'process 0' if rank else 'the others'} at {place}" in second


def test_what_is_printed_is_what_torchrun_understands(capsys):
    """Its own options end at --, and what follows, as --n, is for gradlogp."""
    root = Path(__file__).parents[2]
    printed = [(root / "docs/learning.md").read_text(), learn.HOW]
    for command in ("fit", "sample"):
        assert main([command, "--help"]) == 0
        printed.append(" ".join(capsys.readouterr().out.replace("│", " ").split()))
    for text in printed:
        commands = re.findall(r"torchrun ([^`\n]*? gradlogp (?:fit|sample))", text)
        assert commands
        for words in commands:
            rest = ["model", "--n", "3000", "--no-table"]
            found = get_args_parser().parse_args([*words.split(), *rest])
            assert found.module
            assert found.training_script == "gradlogp"
            assert found.training_script_args[1:] == rest
