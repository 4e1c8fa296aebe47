"""Files of draws: full disks, files that are cut, two writers, readers beside a writer, forks."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import threading
import time

import pytest
import torch
from stream_harness import TARGET, Reference, Short, ended, forked, seeded

import gradlogp as glp
from gradlogp.core import Streams
from gradlogp.langevin import MALA, SVGD, ULA
from gradlogp.langevin.run import reading, rounds, stream
from gradlogp.langevin.run.files import Lock


def start(n=4):
    return torch.ones(n, 2)


def at(step, do):
    """Do something once, when a run reports its progress."""

    def progress(done, total):
        if done == step:
            do()

    return progress


@pytest.fixture
def often(monkeypatch):
    """Save and turn round often."""
    monkeypatch.setattr(stream, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(stream, "SHARE", 0)
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.002)


# ---------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    made = shutil.which("mount") and os.geteuid() == 0
    if (
        not made
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("n_steps", [20_000, 13_000])
def test_a_disk_that_is_full_is_an_error_before_the_first_draw(n_steps, small_disk):
    """Too small for the draws; or for them, but not for what the steps report."""
    reported = []
    with pytest.raises(OSError, match="there is no space for"):
        glp.run(
            MALA(0.5), TARGET, start(), n_steps, keep=small_disk / "x.npy", generator=seeded(0),
            progress=lambda *_: reported.append(1), burn_in=1,
        )  # fmt: skip
    assert len(reported) < 5000
    assert not (small_disk / "x.npy.lock").exists()
    if n_steps == 20_000:
        assert not reported
        assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_later_stops_no_draw_that_has_room(small_disk, often):
    """The state has no room any more: an error, and what was saved before is there."""
    path = small_disk / "x.npy"
    reference = glp.run(MALA(0.5), TARGET, start(), 300, generator=seeded(0))

    def fill():
        with open(small_disk / "other", "wb", buffering=0) as file:
            file.write(b"x" * 2**21)  # as much as there is room for

    with pytest.raises(OSError, match="space"):
        glp.run(
            MALA(0.5), TARGET, start(), 300, keep=path, generator=seeded(0),
            progress=at(100, fill),
        )  # fmt: skip
    n = glp.Chain.open(path).draws.shape[1]
    assert 0 < n <= 100
    (small_disk / "other").unlink()
    chain = glp.run(MALA(0.5), TARGET, resume=path)
    assert torch.equal(chain.draws, reference.draws)


def test_a_limit_of_the_size_of_files(tmp_path):
    """The same without root: `ulimit -f`."""

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match="there is no space for"):
            glp.run(ULA(0.5), TARGET, start(), 20_000, keep=tmp_path / "x.npy")

    assert ended(forked(work)) == 0
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- files that change


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def grow(path):
    with open(path, "ab") as file:
        file.write(b"more")


def put_another(path):
    other = path.with_name("other")
    shutil.copy(path, other)
    os.replace(other, path)


@pytest.mark.parametrize("harm", [cut, grow, os.remove, put_another])
@pytest.mark.parametrize("what", ["", ".info"])
@pytest.mark.usefixtures("often")
def test_a_file_that_is_cut_while_it_is_written_is_an_error(harm, what, tmp_path):
    path = tmp_path / "x.npy"
    victim = tmp_path / f"x.npy{what}"
    with pytest.raises(OSError, match=r"truncated or replaced|No such file"):
        glp.run(
            MALA(0.5), TARGET, start(), 40, keep=path, generator=seeded(0),
            progress=at(20, lambda: harm(victim)),
        )  # fmt: skip
    if harm is not put_another:
        with pytest.raises(ValueError, match="cannot be read"):
            glp.Chain.open(path)
        with pytest.raises(ValueError, match="cannot be read"):
            glp.run(MALA(0.5), TARGET, resume=path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has come to its end."""
    path = tmp_path_factory.mktemp("finished") / "x.npy"
    torch.set_default_dtype(torch.float64)
    glp.run(MALA(0.5), TARGET, start(), 50, keep=path, generator=seeded(0))
    return path.parent


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy") / "x.npy"


def rewritten(path, **changes):
    saved = reading.read(path) | changes
    torch.save(saved, reading.beside(path, "state"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: os.remove(p), "cannot be read"),
        (lambda p: os.remove(f"{p}.info"), "cannot be read"),
        (lambda p: os.remove(f"{p}.state"), "is not a file of draws"),
        (cut, "truncated or replaced"),
        (lambda p: cut(reading.beside(p, "info")), "truncated or replaced"),
        (lambda p: cut(reading.beside(p, "state")), "damaged"),
        (lambda p: os.truncate(reading.beside(p, "state"), 0), "damaged"),
        (lambda p: rewritten(p, draws=51), "are inconsistent"),
        (lambda p: rewritten(p, shape=(4, -50, 2)), "are inconsistent"),
        (
            lambda p: rewritten(p, shape=(4, 60, 2)),
            r"truncated or replaced|from a different target",
        ),
        (lambda p: rewritten(p, dtype="O"), "are inconsistent"),
        (lambda p: rewritten(p, mark=b"another one     "), "truncated or replaced"),
        (lambda p: rewritten(p, format=2), "does not belong to a file of draws of format 1"),
        (lambda p: rewritten(p, more=1), "are inconsistent"),
        (
            lambda p: torch.save([1], reading.beside(p, "state")),
            "does not belong to a file of draws",
        ),
    ],
)
def test_what_is_damaged_is_refused(harm, message, copy):
    harm(copy)
    with pytest.raises(ValueError, match=message):
        glp.Chain.open(copy)
    with pytest.raises(ValueError, match=message):
        glp.run(MALA(0.5), TARGET, resume=copy)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": MALA(0.4)}, r"is a run of MALA\(step_size=0.5.*MALA\(step_size=0.4"),
        ({"kernel": ULA(0.5)}, "is a run of MALA"),
        ({"target": glp.Gaussian([0.0, 0.0], torch.eye(2) * 2)}, "different target"),
        ({"n_steps": 51}, "n_steps=50, got 51"),
        ({"thin": 2}, "thin=1, got 2"),
        ({"burn_in": 5, "adapt": True}, "burn_in=0, got 5"),
        ({"x0": start()}, "not both"),
        ({"keep": "cpu"}, "continues in its own file"),
        ({"generator": seeded(0)}, "omit generator="),
    ],
)
def test_a_run_goes_on_as_it_was(options, message, copy):
    arguments = {"kernel": MALA(0.5), "target": TARGET} | options
    with pytest.raises(ValueError, match=message):
        glp.run(resume=copy, **arguments)
    assert torch.equal(glp.run(MALA(0.5), TARGET, resume=copy).draws, glp.Chain.open(copy).draws)


def test_a_finished_run_opens_as_it_was(copy):
    chain = glp.run(MALA(0.5), TARGET, start(), 50, generator=seeded(0))
    opened = glp.Chain.open(copy, TARGET)
    assert torch.equal(opened.draws, chain.draws)
    assert opened.info._fields == chain.info._fields
    assert all(map(torch.equal, opened.info, chain.info))
    assert opened.kernel == chain.kernel
    assert opened.verdict == chain.verdict
    opened.draws.zero_()  # a view of its own
    assert torch.equal(glp.Chain.open(copy).draws, chain.draws)
    more = glp.run(MALA(0.5), TARGET, resume=opened, n_steps=10)
    whole = glp.run(MALA(0.5), TARGET, start(), 60, generator=seeded(0))
    assert torch.equal(more.draws, whole.draws[:, 50:])


def test_names_of_parameters_are_in_the_file(tmp_path):
    target = glp.as_target(
        log_prob=lambda a, s: -(a**2).sum(-1) / 2 - s,
        parameters={"a": (2,), "s": torch.distributions.constraints.positive},
    )
    path = tmp_path / "x.npy"
    chain = glp.run(MALA(0.3), target, torch.zeros(3, 3), 20, keep=path, generator=seeded(0))
    for opened in (glp.Chain.open(path), glp.Chain.open(path, target)):
        assert torch.equal(opened["s"], chain["s"])
        assert opened.names() == chain.names()
        assert opened.parameters.constant == chain.parameters.constant
    with pytest.raises(ValueError, match="the target has"):
        glp.Chain.open(path, glp.as_target(log_prob=lambda b: -(b**2), parameters={"b": ()}))


def test_a_kernel_of_functions_has_to_be_given_again(tmp_path):
    path = tmp_path / "x.npy"
    kernel = SVGD(0.1)
    whole = glp.run(kernel, TARGET, torch.randn(5, 2, generator=seeded(3)), 30)
    x0 = torch.randn(5, 2, generator=seeded(3))
    with pytest.warns(RuntimeWarning, match="interrupted"):
        glp.run(kernel, TARGET, x0, 30, keep=path, progress=at(9, lambda: os.kill(os.getpid(), 2)))
    assert torch.equal(glp.run(kernel, TARGET, resume=path).draws, whole.draws)


def test_noise_of_the_callers_own_cannot_go_on(tmp_path):
    path = tmp_path / "x.npy"
    glp.run(ULA(0.5), TARGET, start(), 5, keep=path, generator=Streams(0, 0, 4, 4))
    assert glp.Chain.open(path).draws.shape == (4, 5, 2)
    with pytest.raises(ValueError, match="the caller's own noise source"):
        glp.run(ULA(0.5), TARGET, resume=path, generator=Streams(0, 0, 4, 4))


def test_sample_knows_what_it_was_asked(tmp_path):
    path = tmp_path / "x.npy"
    with pytest.raises(ValueError, match="is not a file of draws"):
        glp.sample(TARGET, resume=path)
    glp.sample(TARGET, 10, n_warmup=0, start=start(), kernel=MALA(0.5), keep=path)
    assert glp.sample(TARGET, resume=path).kernel == MALA(0.5)
    with pytest.raises(ValueError, match="without counts"):
        glp.sample(TARGET, 20, resume=path)
    with pytest.raises(ValueError, match=r"exists.*continue its run with\s+resume="):
        glp.sample(TARGET, 10, keep=path)


# ---------------------------------------------------------------------------- several at once


def test_a_second_writer_is_refused(tmp_path):
    """In the same thread, in another one, and in another process."""
    path, said = tmp_path / "x.npy", []

    def second():
        for message, options in (
            ("exists", {"keep": path, "x0": start(), "n_steps": 5}),
            ("x.npy is written by process", {"resume": path}),
        ):
            with pytest.raises(ValueError, match=message):
                glp.run(MALA(0.5), TARGET, **options)
        said.append(1)

    def others():
        second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert ended(forked(second)) == 0

    chain = glp.run(MALA(0.5), TARGET, start(), 50, keep=path, progress=at(20, others))
    assert len(said) == 2
    assert chain.complete
    lock = Lock(reading.beside(path, "lock"))
    path.unlink()
    with pytest.raises(ValueError, match=f"is written by process {os.getpid()}"):
        glp.run(MALA(0.5), TARGET, start(), 50, keep=path)
    lock.release()
    assert not reading.beside(path, "lock").exists()


def test_the_lock_of_a_killed_run_is_stale(tmp_path):
    path = tmp_path / "x.npy"
    kill = at(20, lambda: os.kill(os.getpid(), signal.SIGKILL))
    work = lambda: glp.run(MALA(0.5), TARGET, start(), 50, keep=path, progress=kill)
    assert ended(forked(work)) == -9
    lock = reading.beside(path, "lock")
    says = json.loads(lock.read_text())
    assert says.keys() == {"pid", "host", "start"}
    lock.write_text(json.dumps(says | {"host": "elsewhere"}))
    with pytest.raises(ValueError, match=r"on elsewhere.*as far as this machine can tell"):
        glp.run(MALA(0.5), TARGET, resume=path)
    lock.write_text(json.dumps(says))
    assert glp.run(MALA(0.5), TARGET, resume=path).complete


def test_readers_beside_a_writer(tmp_path):
    """Whatever is read while a run writes is its beginning, and never less than before."""
    reference, path = Reference(Short()), tmp_path / "x.npy"
    pid, seen = forked(lambda: Short().begin(keep=path)), [0]
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if reading.beside(path, "state").exists():
            chain = glp.Chain.open(path)
            assert not reference.beginning(chain)
            assert chain.draws.shape[1] >= seen[-1]
            seen.append(chain.draws.shape[1])
        time.sleep(0.005)
    assert not reference.whole(Short().go_on(path), path)
    assert len(set(seen)) > 2, seen


def test_two_threads_write_two_files(tmp_path):
    reference, chains = Reference(Short()), {}
    work = lambda name: chains.update({name: Short().begin(keep=tmp_path / name)})
    threads = [threading.Thread(target=work, args=(f"{i}.npy",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, chain in chains.items():
        assert not reference.whole(chain, tmp_path / name)
    assert len(chains) == 2


def draws_of_a_worker(seed):
    torch.set_num_threads(1)
    if seed is not None:
        torch.manual_seed(seed)
    return glp.run(ULA(0.1), TARGET, start(), 3).draws.flatten().tolist()


def test_forked_workers_draw_differently_unless_they_are_seeded():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    context = multiprocessing.get_context("fork")
    firsts = []
    for _ in range(3):
        with context.Pool(1) as pool:
            firsts.append(tuple(pool.apply(draws_of_a_worker, (None,))))
            seeded_there = pool.apply(draws_of_a_worker, (0,))
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn here
    own = tuple(draws_of_a_worker(None))
    assert len({own, *firsts}) == 4
    assert draws_of_a_worker(0) == seeded_there


# ---------------------------------------------------------------------------- how much of it


def test_states_are_written_now_and_then(tmp_path, monkeypatch):
    """At the start, at the end, and no more often than the time between them allows."""
    written = []
    keep = stream.Stream._keep
    monkeypatch.setattr(
        stream.Stream, "_keep", lambda s: (written.append(s.saved["done"]), keep(s))
    )
    clock = [0.0]
    monkeypatch.setattr(stream.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(rounds.time, "monotonic", lambda: clock[0])

    def tick(done, total):
        clock[0] += 0.5

    glp.run(ULA(0.5), TARGET, start(), 60, keep=tmp_path / "x.npy", progress=tick)
    assert written[:2] == [0, 0]  # without room, and with
    steps = torch.tensor(written[2:]).diff()
    assert written[-1] == 60
    assert bool((steps[:-1] >= stream.SAVE_SECONDS / 0.5).all())
    assert len(written) <= 2 + 60 * 0.5 / stream.SAVE_SECONDS + 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(tmp_path):
    """Of 100 chains in 50 dimensions 8,000 draws are 320 MB; in memory they show."""

    def grown(keep):
        def work():
            law, x0 = glp.Gaussian(torch.zeros(50)), torch.zeros(100, 50)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            glp.run(MALA(0.1), law, x0, 8000, keep=keep, generator=seeded(0))
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            (tmp_path / "grown").write_text(str((after - before) * 1024))

        assert ended(forked(work)) == 0
        return float((tmp_path / "grown").read_text())

    assert grown(str(tmp_path / "x.npy")) < 100e6
    assert grown("memory") > 200e6  # negative control
