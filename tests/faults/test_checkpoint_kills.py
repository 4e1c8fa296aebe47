"""Trainings that are killed at random moments: no checkpoint is lost, and all of them can go on."""

import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from checkpoint_support import STEPS, child, digest, records, rows, small, wait
from support import seeded

import gradlogp as glp
from gradlogp.learn import checkpoint, folders

pytestmark = [
    pytest.mark.usefixtures("as_user"),  # checks of shapes would take half of these trainings
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def run_in(path, exchanges=True):
    """Train in a child, from where the checkpoint is."""

    def work():
        if not exchanges:
            folders.exchange = lambda *_: False
        resume = folders.find(path).exists()
        for _ in records(path, resume=resume):
            time.sleep(0.002)

    return child(work)


def kill(path, rng, exchanges, signals):
    """Train, send a signal at a random moment; return the signal and what the process ended with."""
    number, chosen = run_in(path, exchanges), rng.choice(signals)
    time.sleep(rng.expovariate(1 / 0.15))
    try:
        os.kill(number, chosen)
    except ProcessLookupError:
        pass
    return chosen, wait(number, 60)


def campaign(folder, kills, seed, exchanges):
    """Kill trainings until so many have been killed; return what went wrong, and how many ended."""
    rng, wrong, done, codes, ends = random.Random(seed), [], 0, {}, 0
    list(records(folder / "whole"))
    end = digest(checkpoint.load(folder / "whole").state_dict())
    path = folder / "run"
    while done < kills:
        before = step_of(path)
        chosen, code = kill(path, rng, exchanges, SIGNALS)
        if code == 0:  # it was faster than the signal
            ends += 1
            if digest(checkpoint.load(path).state_dict()) != end:
                wrong.append((done, "ends in other weights"))
            shutil.rmtree(path)
            continue
        done += 1
        codes[chosen.name, code] = codes.get((chosen.name, code), 0) + 1
        # between fork and the first step no signal is caught
        if code not in (-chosen, 128 + chosen):
            wrong.append((done, f"{chosen.name} ended with {code}"))
        try:
            after = step_of(path)
        except (ValueError, OSError) as error:
            wrong.append((done, f"unreadable: {error}"))
            shutil.rmtree(path, ignore_errors=True)
            continue
        if after < before:
            wrong.append((done, f"step {after} after {before}"))
        if code == 128 + chosen and chosen != signal.SIGINT and not path.exists():
            wrong.append((done, "stopped and not saved"))
    # a slow machine may have been at no step when the signals came: nothing to go on from
    for _ in records(path, resume=folders.find(path).exists()):
        pass
    if digest(checkpoint.load(path).state_dict()) != end:
        wrong.append((done, "ends in other weights"))
    ends += 1
    if left := {item.name for item in folder.iterdir()} - {"run", "whole"}:
        wrong.append((done, f"left over: {left}"))
    return wrong, ends, codes


def step_of(path):
    """The step of a checkpoint that is whole, 0 where there is none yet."""
    if not folders.find(path).exists():
        return 0
    checkpoint.load(path)
    checkpoint.load(path, ema=4.0)
    return checkpoint.read_run(path)["step"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_few_kills(tmp_path, exchanges):
    wrong, ends, codes = campaign(tmp_path, 2, 1, exchanges)
    assert not wrong, (wrong, codes)
    assert ends


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("exchanges", [True, False])
def test_150_kills(tmp_path, exchanges):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    wrong, ends, codes = campaign(tmp_path, 150, seed, exchanges)
    print(f"{len(wrong)} of 150 wrong, {ends} runs ended, {codes}")
    assert not wrong, (seed, wrong, codes)


def test_the_harness_sees_a_writer_that_is_broken(tmp_path, monkeypatch):
    """Negative control: a writer that fills the old folder file by file is found out."""

    def put(fresh, path, known):
        path.mkdir(exist_ok=True)
        for file in sorted(fresh.iterdir()):
            with (path / file.name).open("wb", buffering=0) as copy:
                for byte in range(0, file.stat().st_size, 4096):
                    copy.write(file.read_bytes()[byte : byte + 4096])
                    time.sleep(0.01)

    monkeypatch.setattr(checkpoint, "put", put)
    rng = random.Random(2)
    for _ in range(20):
        _, code = kill(tmp_path / "run", rng, True, [signal.SIGKILL])
        try:
            step_of(tmp_path / "run")
        except (ValueError, OSError):
            return
        if code == 1:  # a training that cannot go on from what the last one left
            return
    pytest.fail("20 kills, and nothing was seen of the writer that is broken")


@pytest.mark.parametrize("exchanges", [True, False])
def test_readers_find_a_whole_one_while_it_is_replaced(tmp_path, exchanges):
    """Two readers, while a writer saves as fast as it can; each version is its number in each file."""

    def version(k):
        model = small(k)
        model.columns = (f"a{k}", f"b{k}")
        return model

    def write():
        if not exchanges:
            folders.exchange = lambda *_: False
        for k in range(1, 10**6):
            checkpoint.save(tmp_path / "run", version(k % 7), run={"k": k % 7})
            time.sleep(0.03)

    def read():
        for _ in range(6):
            model = checkpoint.load(tmp_path / "run")
            k = int(model.columns[0][1:])
            same = torch.equal(model.network.inlet.weight, version(k).network.inlet.weight)
            if not same or checkpoint.read_run(tmp_path / "run")["k"] not in range(7):
                raise SystemExit(3)

    checkpoint.save(tmp_path / "run", version(0), run={"k": 0})
    writer, readers = child(write), [child(read) for _ in range(2)]
    codes = [wait(number, 60) for number in readers]
    os.kill(writer, signal.SIGKILL)
    wait(writer, 10)
    assert codes == [0, 0]
    checkpoint.save(tmp_path / "run", version(1))
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def refuse(path):
    with pytest.raises(OSError, match=f"is being written by process {os.getppid()} on "):
        records(path)


def test_one_writer(tmp_path):
    """A second training, here or in another process, is refused and changes nothing."""
    first = records(tmp_path / "run")
    next(first)
    with pytest.raises(OSError, match="is being written by this process") as caught:
        records(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert wait(child(lambda: refuse(tmp_path / "run")), 60) == 0
    first.close()
    for _ in records(tmp_path / "run", resume=True):
        pass
    dropped = records(tmp_path / "run", resume=True)  # one that never began lets go as well
    del dropped
    list(records(tmp_path / "run"))
    with pytest.raises(ValueError, match="at least 2"):
        glp.fit(small(), torch.zeros(1, 2), checkpoint=tmp_path / "run")
    list(records(tmp_path / "run"))


@pytest.mark.skipif(sys.platform != "linux", reason="knows when a process started by /proc")
def test_locks_of_the_dead_are_void(tmp_path):
    path, lock = tmp_path / "run", tmp_path / ".run.lock"
    running = []

    def work():
        running.append(records(path))
        next(running[0])
        checkpoint.save(path, small(), claimed=running)
        os.kill(os.getpid(), signal.SIGKILL)

    number = child(work)
    assert os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT) is not None
    assert lock.exists()
    mine = lock.read_text()
    next(records(path))  # that of a process that ended and was not waited for
    os.waitpid(number, 0)
    assert not lock.exists()
    own = mine.replace(f'"pid": {number}', f'"pid": {os.getpid()}')  # of one that began otherwise
    lock.write_text(own)
    checkpoint.save(path, small())
    lock.write_text(mine)  # of no process
    checkpoint.save(path, small())
    import socket

    host = mine.replace(socket.gethostname(), "elsewhere")
    for text, says in ((host, "on elsewhere since"), ("{", "is not a gradlogp lock: delete it")):
        lock.write_text(text)
        with pytest.raises(OSError, match=says):
            checkpoint.save(path, small())
    lock.unlink()
    checkpoint.save(path, small())
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "stop", [SIGNALS[1], *(pytest.param(stop, marks=pytest.mark.slow) for stop in SIGNALS[2:])]
)
def test_a_signal_saves_and_the_run_goes_on(tmp_path, stop):
    list(records(tmp_path / "whole"))

    def work():
        for record in records(tmp_path / "run", every=1000):
            if record.step == 7:
                os.kill(os.getpid(), stop)

    assert wait(child(work), 60) == 128 + stop
    assert 7 <= checkpoint.read_run(tmp_path / "run")["step"] < STEPS
    assert digest_of_end(tmp_path / "run") == digest_of_end(tmp_path / "whole")


def digest_of_end(path):
    for _ in records(path, resume=True):
        pass
    return digest(checkpoint.load(path).state_dict())


def test_handlers_are_those_of_before(tmp_path):
    mine = lambda *_: None
    before = {s: signal.getsignal(s) for s in SIGNALS[1:]}
    signal.signal(signal.SIGHUP, mine)
    try:
        running = records(tmp_path / "run")
        next(running)
        assert signal.getsignal(signal.SIGHUP) is mine  # a handler of the user's stays
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, mine)
        running.close()
        assert signal.getsignal(signal.SIGHUP) is mine
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])


def test_a_thread_leaves_signals_alone(tmp_path):
    from threading import Thread

    ended = []
    thread = Thread(target=lambda: ended.append(len(list(records(tmp_path / "run")))))
    thread.start()
    thread.join()
    assert ended == [STEPS]


def test_the_ends_that_are_compared_are_of_one_seed(tmp_path):
    """Negative control: another seed ends elsewhere."""
    model = small()
    list(glp.fit(model, rows(), steps=STEPS, generator=seeded(8)))
    list(records(tmp_path / "run"))
    assert digest(model.state_dict()) != digest(checkpoint.load(tmp_path / "run").state_dict())
