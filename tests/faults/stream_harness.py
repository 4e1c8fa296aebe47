"""Runs in forked processes that are ended at random moments, and what must be left of them.

A forked process has PyTorch already, so that hundreds can be ended. What is compared is the run that
nobody disturbed: what a reader sees at any time is the beginning of it, and what comes after the last
resumption is all of it, bit for bit.
"""

import contextlib
import functools
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import gradlogp as glp
from gradlogp.langevin import MALA
from gradlogp.langevin.run import files, reading, rounds, stream

KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
TARGET = glp.as_target(
    log_prob=lambda x: -x.square().flatten(1).sum(1) / 2, score=lambda x: -x, event_shape=(2,)
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Plain:
    """Draws of MALA after a burn-in, thinned, in two chunks."""

    target = TARGET
    n_steps, chunk_size = 300, 2

    def begin(self, **options):
        x0 = torch.ones(4, 2, dtype=torch.float64)
        return glp.run(
            MALA(0.7), self.target, x0, self.n_steps, 20, 3, generator=seeded(1),
            chunk_size=self.chunk_size, **options,
        )  # fmt: skip

    def go_on(self, path, **options):
        return glp.run(MALA(0.7), self.target, resume=path, chunk_size=self.chunk_size, **options)


class Short(Plain):
    """A few of them, for tests that are slowed down by checks of shapes."""

    n_steps, chunk_size = 120, None


class Tuned:
    """`sample`: a start, a warm-up and draws."""

    target = TARGET

    def begin(self, **options):
        return glp.sample(self.target, 300, n_warmup=80, generator=seeded(2), **options)

    def go_on(self, path, **options):
        return glp.sample(self.target, resume=path, **options)


JOBS = (Plain(), Tuned())


def hurried():
    """Save and turn round a hundred times as often, so that a short run has many moments."""
    stream.SAVE_SECONDS, stream.SHARE, rounds.ROUND_SECONDS = 0.01, 0, 0.002


def forked(work):
    """Run in a forked process and return its id; it ends with 0, or with 1 and a traceback."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):  # which `nohup` ignores
            signal.signal(number, signal.SIG_DFL)
        warnings.simplefilter("ignore")
        hurried()
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid):
    """Wait for a process and return how it ended: its code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Steps:
    """How many steps a run in another process has reported, in memory that both see."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 8)

    def __call__(self, done, total, note=""):
        self.memory[:8] = struct.pack("q", done)

    @property
    def done(self):
        return struct.unpack("q", self.memory[:8])[0]


@contextlib.contextmanager
def at_call(number, what):
    """End this process by a signal before or after its n-th call that touches a file."""
    before, calls = number % 2, [number // 2]

    def counted(f):
        def call(*args, **options):
            calls[0] -= 1
            if before and calls[0] == 0:
                os.kill(os.getpid(), what)
            out = f(*args, **options)
            if not before and calls[0] == 0:
                os.kill(os.getpid(), what)
            return out

        return call

    names = ("open", "pwrite", "fsync", "replace", "ftruncate")
    old = {name: getattr(os, name) for name in names}
    for name, f in old.items():
        setattr(os, name, counted(f))
    try:
        yield
    finally:
        for name, f in old.items():
            setattr(os, name, f)


class Trial(NamedTuple):
    """How a run was ended, and what was wrong afterwards."""

    kills: list[str]
    problems: list[str]


class Reference:
    """The undisturbed run."""

    def __init__(self, job):
        self.job = job
        began = time.monotonic()
        self.chain = job.begin()
        self.seconds = time.monotonic() - began

    def beginning(self, chain):
        """What is wrong with draws that should be the first of the run."""
        n = chain.draws.shape[1]
        wrong = [] if torch.equal(chain.draws, self.chain.draws[:, :n]) else ["wrong draws"]
        for name in chain.info._fields if n else ():
            if not torch.equal(getattr(chain.info, name), getattr(self.chain.info, name)[:, :n]):
                wrong.append(f"wrong {name}")
        return wrong

    def whole(self, chain, path):
        """What is wrong with a run that has been resumed to its end."""
        wrong = self.beginning(chain)
        if chain.draws.shape != self.chain.draws.shape or not chain.complete:
            wrong.append(f"{chain.draws.shape[1]} draws")
        if not np.array_equal(np.load(path), self.chain.draws.numpy()):
            wrong.append("other draws in the file")
        if not all(map(torch.equal, chain.state, self.chain.state)):
            wrong.append("another state")
        if not torch.equal(chain.divergences, self.chain.divergences):
            wrong.append("other divergences")
        return wrong

    def file(self, path):
        """What is wrong with the rows of the file: each is NaN, or that of the run."""
        rows = np.load(path, mmap_mode="r")
        good = (rows == self.chain.draws.numpy()) | np.isnan(rows)
        return [] if good.all() else [f"{(~good).sum()} numbers that nobody drew"]


def trial(reference, folder, rng, broken=None):
    """End a run one to three times, resume it, and look at it whenever it does not move."""
    job, path = reference.job, Path(folder) / "draws.npy"
    kills = KILLS if broken is None else KILLS[:1]  # a signal that is handled hides what is broken
    ways, problems = [], []
    for _ in range(rng.randint(1, 3)):
        what, reported, begun = rng.choice(kills), Steps(), files_begun(path)
        before = counted(path, problems)
        if problems:
            break
        by_call = rng.random() < 0.5
        number = rng.randint(2, 120)
        seconds = rng.uniform(0, 1.5 * reference.seconds)

        def work(begun=begun, by_call=by_call, number=number, what=what, reported=reported):
            if broken is not None:
                broken()
            with at_call(number, what) if by_call else contextlib.nullcontext():
                if begun:
                    job.go_on(path, progress=reported)
                else:
                    job.begin(keep=path, progress=reported)

        pid = forked(work)
        if by_call:
            how = f"{signal.Signals(what).name} at call {number}"
        else:
            time.sleep(seconds)
            how = f"{signal.Signals(what).name} after {seconds:.3f} s"
            before = max(before, counted(path, problems))
            os.kill(pid, what)
        code = ended(pid)
        ways.append(f"{how}: {code}")
        if code not in (0, -what, *((0, 130) if what == signal.SIGINT else ())):
            problems.append(f"{how} ended with {code}")
        if not files_begun(path):
            continue
        if problems:
            break
        problems += [f"{how}: {p}" for p in look(reference, path, before)]
        if problems:
            break
        if what != signal.SIGKILL and (done := steps(path)):
            if done < reported.done // chunks_of(job):
                problems.append(f"{how}: {reported.done // chunks_of(job) - done} steps lost")
        if problems:
            break
        if reading.read(path)["done"] == reading.read(path)["n_steps"]:
            ways[-1] = f"late {ways[-1]}"
    if problems:
        return Trial(ways, problems)
    try:
        chain = job.go_on(path) if files_begun(path) else job.begin(keep=path)
        problems += reference.whole(chain, path)
    except Exception as error:
        problems.append(f"cannot go on: {type(error).__name__}: {error}")
    return Trial(ways, problems)


def chunks_of(job):
    return 2 if isinstance(job, Plain) else 1


def files_begun(path):
    """Whether a run has left something to go on from."""
    return path.exists() and reading.beside(path, "state").exists()


def counted(path, problems):
    """How many draws the state on the disk counts: a state that is there can always be read."""
    try:
        return reading.read(path)["draws"] if reading.beside(path, "state").exists() else 0
    except ValueError as error:
        problems.append(f"the state: {error}")
        return 0


def steps(path):
    return reading.read(path)["done"]


def look(reference, path, before):
    """What a reader of a run that has ended finds wrong."""
    try:
        chain = glp.Chain.open(path)
    except Exception as error:
        return [f"cannot be read: {type(error).__name__}: {error}"]
    wrong = reference.beginning(chain)
    if chain.draws.shape[1] < before:
        wrong.append(f"{before - chain.draws.shape[1]} draws lost that had been counted")
    if reading.read(path)["ready"]:
        wrong += reference.file(path)
    return wrong


@functools.cache
def reference_of(job):
    """The reference of a job, which is the same for all trials; the first run is slow."""
    Reference(job)
    return Reference(job)


def many(n, seed, folder, broken=None, jobs=JOBS):
    """Run n trials; return what was wrong, and how often which signal came."""
    rng, problems, seen = random.Random(seed), [], Counter()
    references = [reference_of(job) for job in jobs]
    for i in range(n):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found = trial(references[i % len(references)], place, rng, broken)
        seen.update(kill.split()[0] for kill in found.kills)
        problems += [
            f"trial {i} of seed {seed} ({'; '.join(found.kills)}): {p}" for p in found.problems
        ]
        if broken is not None and problems:
            break
    return problems, seen


def state_before_draws():
    """A writer that is broken: the state goes to the disk before the draws that it counts."""

    def save(self, moving):
        self.saved |= moving()
        self._keep()
        self._flush()
        self._due = time.monotonic() + stream.SAVE_SECONDS

    stream.Stream.save = save


def noise_of_the_start():
    """A writer that is broken: what it saves of the noise is where that began."""
    keep = stream.Stream._keep

    def save(self):
        first = self.__dict__.setdefault("first", self.saved["resume"]["noise"])
        self.saved["resume"] = dict(self.saved["resume"]) | {"noise": first}
        keep(self)

    stream.Stream._keep = save


def not_replaced_but_rewritten():
    """A writer that is broken: the state is written over the one before, piece by piece."""

    def replace(path, content):
        with open(path, "wb", buffering=0) as file:
            for at in range(0, len(content), 256):
                files.put(file, at, content[at : at + 256])

    stream.replace = replace


BROKEN = (state_before_draws, noise_of_the_start, not_replaced_but_rewritten)


def found(n, seed, folder):
    """Return what n trials found, and with which trial each broken writer was caught."""
    problems, seen = many(n, seed, folder)
    caught = {b.__name__: many(100, seed, folder, b, JOBS[:1])[0][:1] for b in BROKEN}
    return {"problems": problems, "seen": seen, "caught": caught}


def main(n, seed, folder):
    """Print what is found."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    print(json.dumps(found(n, seed, folder)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
