"""A small training that is stopped, resumed and damaged, and a child process to do it in."""

import hashlib
import json
import os
import select
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

STEPS = 60


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
        max_iter=6, width=8, depth=1, class_conditional=True, checkpoint=path, random_state=3,
        settings=glp.TrainingSettings(batch_size=16, ema_half_lives=(3.0,)), **options,
    )  # fmt: skip
    return made.fit(x, y)


def resumed(path):
    """What of a checkpoint counts when a training goes on from it: all it ends with but the time."""
    model = small()
    for _ in glp.fit(
        model, rows(), settings=glp.TrainingSettings(
            steps=STEPS, batch_size=16, ema=0.9, ema_half_lives=(4.0,)
        ),
        standardize=True, held_out=rows()[:20], checkpoint=path, resume=True, generator=seeded(7),
    ):  # fmt: skip
        pass
    return digest(model.state_dict()) + json.dumps(checkpoint.read_run(path)["history"])


def loaded(path):
    """What of a checkpoint counts when samples are drawn with it."""
    found = ScoreEstimator.load(path)
    run = checkpoint.read_run(path)
    kept = {k: v for k, v in found.get_params().items() if isinstance(v, int | float | str)}
    model = found.model_
    what = [
        model.schedule,
        model.predicts,
        model.columns,
        kept,
        run,
        getattr(found, "classes_", 0),
    ]
    what += [found.settings, found.n_features_in_, found._tensors]
    return digest(model.state_dict()) + repr(what)


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


def outcome(look, path, *, seconds=20, memory=2**29):
    """Look at a checkpoint in a child: what came of it, in a word and the text of it.

    "read": what it is; "refused": a ValueError or OSError of one line; "traceback": anything else;
    "hang": no end; "died": killed by the system.
    """
    read, write = os.pipe()

    def work():
        try:
            answer = ["read", look(path)]
        except (ValueError, OSError) as error:
            text = str(error)
            fine = text and "\n" not in text and len(text) < 1000
            answer = ["refused" if fine else "traceback", text]
        except BaseException as error:
            answer = ["traceback", f"{type(error).__name__}: {error}"]
        with os.fdopen(write, "w") as file:
            file.write(json.dumps(answer))

    number = child(work, memory=memory)
    os.close(write)
    text, end = b"", time.monotonic() + seconds
    with os.fdopen(read, "rb", buffering=0) as file:
        while time.monotonic() < end:
            if select.select([file], [], [], 0.2)[0]:
                part = file.read(2**16)
                if not part:
                    break
                text += part
    code = wait(number, max(0.5, end - time.monotonic()))
    if code is None:
        return "hang", ""
    return tuple(json.loads(text)) if text else ("died", f"exit code {code}")
