"""A small training that is stopped, resumed and damaged, and a child process to do it in."""

import hashlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback

import torch
from support import seeded

import gradlogp as glp
from gradlogp import schedules
from gradlogp.interfaces.estimator import ScoreEstimator
from gradlogp.learn import checkpoint

STEPS = 30


def small(seed=0):
    """A model of six thousand numbers."""
    network = glp.MLP(2, 16, 1, generator=seeded(seed))
    return glp.ScoreModel(network, schedules.VP(), "v")


def rows():
    return torch.randn(80, 2, generator=seeded(3)) * 2 + 1


def records(path, *, every=3, **options):
    """A training that saves every few steps; its end is known bit for bit."""
    settings = {"steps": STEPS, "batch_size": 16, "ema": 0.9, "ema_half_lives": (4.0,)}
    return glp.fit(
        small(), rows(), settings=glp.TrainingSettings(**settings), standardize=True,
        held_out=rows()[:20], checkpoint=path, checkpoint_every=every, generator=seeded(7),
        **options,
    )  # fmt: skip


def estimator(path, **options):
    """The same through the estimator, with classes: what it keeps of itself is in the checkpoint."""
    x, y = rows().numpy(), ["a", "b"] * 40
    made = ScoreEstimator(
        max_iter=6, width=8, depth=1, condition="classes", checkpoint=path, random_state=3,
        n_sample_steps=4, n_likelihood_steps=4,
        settings=glp.TrainingSettings(batch_size=16, ema_half_lives=(3.0,)), **options,
    )  # fmt: skip
    return made.fit(x, y)


def sampled(path):
    """What of a checkpoint counts when samples are drawn with it."""
    found, run = ScoreEstimator.load(path), checkpoint.read_run(path)
    x = torch.as_tensor(found.sample(3, y=["a", "b", "a"], random_state=0))
    if not x.isfinite().all():
        raise FloatingPointError("samples are not finite")
    kept = {k: v for k, v in found.get_params().items() if isinstance(v, int | float | str)}
    model = found.model_
    what = [model.schedule, model.predicts, model.columns, kept, run, found.classes_.tolist()]
    what += [found.settings, found.n_features_in_, found._tensors, x.tolist()]
    return (
        digest(model.state_dict())
        + digest(checkpoint.load(path, ema=3.0).state_dict())
        + repr(what)
    )


def trained_on(path):
    """The part of a checkpoint that matters for resuming: its final state, except for the time."""
    found = estimator(path, resume=True)
    return digest(found.model_.state_dict()) + repr(checkpoint.read_run(path)["history"])


def both(path):
    """All that counts."""
    return sampled(path) + trained_on(path)


def digest(state):
    """A number for the weights."""
    whole = hashlib.sha256()
    for name, value in state.items():
        whole.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def child(work, *, memory=None):
    """Fork, do the work there, and leave; return the number of the process.

    The child has all that this process has imported, so that it costs no time to start.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            plain = signal.default_int_handler if stop == signal.SIGINT else signal.SIG_DFL
            signal.signal(stop, plain)
        signal.alarm(0)
        if memory is not None:
            import resource

            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(number, seconds):
    """Wait for a child; return its exit code, minus the signal that killed it, or None: it hangs."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            return None
        time.sleep(0.002)


def outcomes(look, cases, whole, folder, *, resums, seconds=30, memory=2**29):
    """Damage copies of a checkpoint, one by one, and look at each; return a word for each case.

    "same": it is read, and is what it was; "refused": one readable line of an error that is
    documented, a ValueError, an OSError, or a loss that is not finite; "accepted": it is read, and
    is something else; "traceback": any other error; "hang": no end; "died": killed by the system.
    The cases run in a child with that much more memory than now.

    Arguments:
        look: What reads it, and returns what counts.
        cases: Functions that damage the checkpoint at a path.
        whole: The checkpoint; it stays as it is.
        folder: Where the copies go.
        resums: Whether the digests are made anew, as whoever means harm would.
    """
    right, found = look(shutil.copytree(whole, folder / "right")), []
    while len(found) < len(cases):
        read, write = os.pipe()
        first = len(found)

        def work(first=first, write=write):
            with os.fdopen(write, "w") as file:
                for i, case in enumerate(cases[first:], first):
                    path = shutil.copytree(whole, folder / f"case{i}")
                    case(path)
                    if resums:
                        make_sums(path)
                    file.write(json.dumps(judged(look, path, right)) + "\n")
                    file.flush()
                    shutil.rmtree(path)

        number, last = child(work, memory=memory), time.monotonic()
        os.close(write)
        text = b""
        with os.fdopen(read, "rb", buffering=0) as file:
            while time.monotonic() < last + seconds:
                if select.select([file], [], [], 0.2)[0]:
                    if not (part := file.read(2**16)):
                        break
                    text, last = text + part, time.monotonic()
        found += [tuple(json.loads(line)) for line in text.splitlines()]
        code = wait(number, 0.1 if time.monotonic() >= last + seconds else 5)
        if len(found) < len(cases):
            found.append(("hang", "") if code is None else ("died", f"exit code {code}"))
    return found


def judged(look, path, right):
    """Return what comes of a look, in a word, and its text."""
    try:
        found = look(path)
    except (ValueError, OSError, FloatingPointError) as error:
        text = str(error)
        fine = text and "\n" not in text and len(text) < 1000
        return "refused" if fine else "traceback", text
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return ("same" if found == right else "accepted"), ""


def make_sums(path):
    """Write the digests of the files as they are."""
    files = [f for f in sorted(path.iterdir()) if f.is_file() and f.name != "SHA256SUMS"]
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files]
    if (path / "SHA256SUMS").exists():
        (path / "SHA256SUMS").write_text("".join(lines))
