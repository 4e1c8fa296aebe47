"""Runs that are ended at random moments, by signals that can be handled and by one that cannot."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import stream_harness
import torch
from stream_harness import JOBS, Plain, Reference, Short, ended, files_begun, forked

import gradlogp as glp
from gradlogp.langevin.run import reading


def judged(found):
    """How often which signal came, of what the harness says; no problems but of broken writers."""
    assert not found["problems"], "\n".join(found["problems"])
    for name, problems in found["caught"].items():  # negative controls
        assert problems, f"{name} was not caught"
    return found["seen"]


def report(n, folder):
    """What the harness says, without the checks of shapes at run time that these tests have."""
    seed = random.SystemRandom().randrange(2**32)
    command = [sys.executable, stream_harness.__file__, str(n), str(seed), str(folder)]
    print(" ".join(command))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}: {found}")
    return judged(found)


def test_runs_that_are_killed_lose_and_invent_nothing(tmp_path, as_user):
    """In this process: another would spend most of its time on imports."""
    seed = random.SystemRandom().randrange(2**32)
    found = stream_harness.found(2, seed, tmp_path)
    print(f"seed {seed}: {found}")
    assert sum(judged(found).values()) >= 2


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_three_hundred_runs_that_are_killed(tmp_path):
    seen = report(300, tmp_path)
    assert sum(seen.values()) >= 300
    assert {"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"} <= set(seen)


PROGRAM = """
import sys, time
from gradlogp.langevin.run import reading, stream
stream.SAVE_SECONDS = 0.01
sys.path.insert(0, {here!r})
from stream_harness import Plain
Plain.n_steps = 2000
Plain().begin(keep={path!r}, progress=lambda *_: time.sleep(0.001))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_fresh_interpreter(what, tmp_path, monkeypatch):
    """The shell sees 137, 143 and 129; Ctrl-C comes back with what there is."""
    path = tmp_path / "draws.npy"
    program = PROGRAM.format(here=os.path.dirname(__file__), path=str(path))
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program])
    while not (files_begun(path) and reading.read(path)["draws"] > 100):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(what)
    assert child.wait() == (0 if what == signal.SIGINT else -what)
    monkeypatch.setattr(Plain, "n_steps", 2000)
    reference = Reference(Plain())
    assert not reference.beginning(glp.Chain.open(path))
    assert not reference.whole(Plain().go_on(path), path)


# ---------------------------------------------------------------------------- signals in the process


@pytest.fixture
def reference():
    return Reference(Short())


def pressing(number, at=60):
    def progress(done, total, note=""):
        if done == at:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_has_its_own_effect_after_saving(name, reference, tmp_path):
    """A handler of the caller is called when all is saved, and is the handler again."""
    number, path, seen = getattr(signal, name), tmp_path / "x.npy", []
    handler = lambda *_: seen.append(reading.read(path)["done"])
    old = signal.signal(number, handler)
    try:
        with pytest.warns(RuntimeWarning, match="interrupted after 60 of 120 steps"):
            part = Short().begin(keep=path, progress=pressing(number))
        assert seen == [60]
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, old)
    assert not part.complete
    assert not reference.beginning(part)
    assert not reference.whole(Short().go_on(path), path)


def test_ctrl_c_comes_back_with_the_draws(reference, tmp_path):
    path = tmp_path / "x.npy"
    with pytest.warns(RuntimeWarning, match="interrupted after 60 of 120 steps"):
        part = Short().begin(keep=path, progress=pressing(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert part.draws.shape[1] == 13
    assert not reference.beginning(part)
    assert np.isnan(np.load(path)[:, 13:]).all()
    assert not reference.whole(Short().go_on(path), path)


def test_a_signal_that_is_ignored_stays_so(reference, tmp_path):
    """`nohup` ignores SIGHUP."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        chain = Short().begin(keep=tmp_path / "x.npy", progress=pressing(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, old)
    assert not reference.whole(chain, tmp_path / "x.npy")


def test_a_child_that_is_forked_meanwhile_ends_as_ever(reference, tmp_path):
    """Such as the workers of a pool, which are ended by SIGTERM."""
    codes = []

    def fork(done, total):
        if done == 60:
            if not (pid := os.fork()):
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            codes.append(ended(pid))

    chain = Short().begin(keep=tmp_path / "x.npy", progress=fork)
    assert codes == [-signal.SIGTERM]
    assert not reference.whole(chain, tmp_path / "x.npy")


def test_without_a_file_signals_are_not_touched():
    seen = []
    Short().begin(progress=lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    assert set(seen) == {signal.SIG_DFL}


def test_in_a_thread_there_are_no_handlers(reference, tmp_path):
    chains = []
    work = lambda: chains.append(Short().begin(keep=tmp_path / "x.npy"))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not reference.whole(chains[0], tmp_path / "x.npy")


def test_killed_in_the_warm_up_only_that_is_lost(tmp_path):
    job = JOBS[1]
    reference, path = Reference(job), tmp_path / "x.npy"
    assert ended(forked(lambda: job.begin(keep=path, progress=pressing(signal.SIGKILL)))) == -9
    empty = glp.Chain.open(path)
    assert empty.draws.shape == (4, 0, 2)
    assert not empty.complete
    chain = job.go_on(path)
    assert not reference.whole(chain, path)
    assert torch.equal(chain.start.bound, reference.chain.start.bound)
    assert torch.equal(chain.warmup.steps, reference.chain.warmup.steps)
