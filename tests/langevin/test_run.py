"""The driver `run`: where draws go, what an interrupt leaves, and that a run can go on."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from gradlogp import (
    Chain,
    Gaussian,
    as_target,
    run,
)
from gradlogp.core import Injected, Streams, block_of, randomness
from gradlogp.langevin import (
    BAOAB,
    GHMC,
    HMC,
    MALA,
    ULA,
    ParallelTempering,
    warm_up,
)
from gradlogp.langevin.kernels.steps import LangevinInfo, LangevinState
from gradlogp.langevin.run import driver, rounds
from gradlogp.langevin.run.rounds import Thinning
from gradlogp.langevin.tuning import Adaptation

NORMAL = as_target(log_prob=lambda x: -x.square().flatten(1).sum(1) / 2, score=lambda x: -x)


def same(a, b):
    """Bit for bit: draws, information and state."""
    assert torch.equal(a.draws, b.draws)
    for x, y in zip((*a.info, *a.state), (*b.info, *b.state), strict=True):
        assert torch.equal(x, y)


def generator_at(seed):
    return torch.Generator().manual_seed(seed)


BLOCK = 256
"""Chains of two dimensions that share a stream, where `small_blocks` is used."""


def start(n, d=2):
    return torch.randn(n, d, generator=generator_at(7))


@pytest.fixture
def small_blocks(monkeypatch):
    """Let streams be shared by few chains, so that few make several blocks."""
    monkeypatch.setattr(randomness, "NUMBERS", 2 * BLOCK)
    assert block_of(torch.Size([2])) == BLOCK


@pytest.fixture(params=[0.0, 1e3], ids=["short rounds", "long rounds"])
def seconds(request, monkeypatch):
    """Rounds of a single step, and rounds that hold all of the steps of these tests."""
    monkeypatch.setattr(rounds, "ROUND_SECONDS", request.param)


# ---------------------------------------------------------------------------- going on


@pytest.mark.parametrize("kernel", [MALA(0.8), BAOAB(0.5)])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_parts_are_the_whole(kernel, chunk_size, tmp_path):
    x0 = start(7)
    whole = run(kernel, NORMAL, x0, 30, generator=generator_at(0), chunk_size=chunk_size)
    first = run(kernel, NORMAL, x0, 17, generator=generator_at(0), chunk_size=chunk_size)
    torch.save(first.resume, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    for resume in (first, saved):
        second = run(kernel, NORMAL, resume=resume, n_steps=13, chunk_size=chunk_size)
        assert torch.equal(torch.cat([first.draws, second.draws], 1), whole.draws)
        for x, y in zip(second.state, whole.state, strict=True):
            assert torch.equal(x, y)
        for x, y, z in zip(first.info, second.info, whole.info, strict=True):
            assert torch.equal(torch.cat([x, y], 1), z)
        assert torch.equal(second.resume["noise"], whole.resume["noise"])


@pytest.fixture
def blocks(small_blocks):
    """Starts of three blocks, the last of which is not full, and their draws."""
    x0 = start(2 * BLOCK + 30).double()
    return x0, run(MALA(0.8), NORMAL, x0, 8, generator=generator_at(0))


@pytest.mark.parametrize("size", [None, 67, BLOCK, BLOCK + 5])
def test_blocks_go_on_in_chunks_of_any_size(size, blocks):
    x0, whole = blocks
    first = run(MALA(0.8), NORMAL, x0, 5, generator=generator_at(0), chunk_size=size)
    second = run(MALA(0.8), NORMAL, resume=first, n_steps=3, chunk_size=140)
    torch.testing.assert_close(second.draws, whole.draws[:, 5:], rtol=1e-12, atol=1e-12)
    assert torch.equal(second.resume["noise"], whole.resume["noise"])
    assert len(second.resume["noise"]) == 3


def test_thinning_goes_on_with_another_thin():
    """Steps since the last draw of a run that kept fewer are not draws of this one."""
    whole = run(ULA(0.3), NORMAL, start(3), 22, generator=generator_at(0))
    first = run(ULA(0.3), NORMAL, start(3), 17, thin=10, generator=generator_at(0))
    second = run(ULA(0.3), NORMAL, resume=first, n_steps=5, thin=3)
    assert torch.equal(second.draws, whole.draws[:, [18, 21]])  # 7 steps had passed; 9 and 12 now
    assert second.info.diverging.shape == (3, 2)


@pytest.mark.parametrize("steps", [(4, 3, 8), (1, 9, 5), (7, 7, 1)])
def test_thinning_goes_on_where_it_was(steps):
    x0, thin = start(3), 3
    whole = run(ULA(0.3), NORMAL, x0, sum(steps) + 6, 6, thin, generator=generator_at(0))
    part = run(ULA(0.3), NORMAL, x0, 6 + steps[0], 3, thin, generator=generator_at(0))
    draws = [part.draws[:, 1:]]  # a burn-in of 3 instead of 6 gave one more
    for n in steps[1:]:
        since = part.resume["since"]
        if (since + n) // thin == 0:
            with pytest.raises(ValueError, match="keep no draw"):
                run(ULA(0.3), NORMAL, resume=part, n_steps=n, thin=thin)
            return
        part = run(ULA(0.3), NORMAL, resume=part, n_steps=n, thin=thin)
        draws.append(part.draws)
    assert torch.equal(torch.cat(draws, 1), whole.draws)


def test_own_streams_go_on():
    x0 = start(5)
    streams, more = Streams(3, 0, 5, 5), Streams(3, 0, 5, 5)
    whole = run(MALA(0.5), NORMAL, x0, 9, generator=streams)
    first = run(MALA(0.5), NORMAL, x0, 4, generator=more)
    assert first.resume["noise"] is None
    second = run(MALA(0.5), NORMAL, resume=first, n_steps=5, generator=more)
    assert torch.equal(second.draws, whole.draws[:, 4:])


def resumed(change=None, **options):
    chain = run(ULA(0.3), NORMAL, start(4), 3, generator=generator_at(0))
    saved = dict(chain.resume) | (change or {})
    options = {"kernel": ULA(0.3), "n_steps": 2} | options
    return run(target=NORMAL, resume=saved, **options)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: resumed(x0=start(4)), "not both"),
        (lambda: resumed(generator=generator_at(1)), "omit generator="),
        (lambda: resumed(kernel=MALA(0.3)), "MALA"),
        (lambda: resumed({"version": 1}), "resume has version 1, but this library reads 2"),
        (lambda: resumed({"other": 2}), "resume must be"),
        (lambda: resumed({"noise": None}), "your own noise source"),
        (lambda: resumed({"device": "cuda"}), "map_location"),
        (lambda: resumed(n_steps=0), "keep no draw"),
        (lambda: run(ULA(0.1), NORMAL, n_steps=3), "x0 is missing"),
        (lambda: run(ULA(0.1), NORMAL, start(3)), "keep no draw"),
    ],
)
def test_what_cannot_go_on_is_refused(case, message):
    with pytest.raises(ValueError, match=message):
        case()


# ---------------------------------------------------------------------------- where draws go


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.usefixtures("seconds")
def test_kept_draws_are_the_same_everywhere(chunk_size, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "BUFFER_BYTES", 5 * 3 * 2 * 8)  # a few draws at a time
    args = (MALA(0.8), NORMAL, start(7), 30, 5, 2)
    kept = [
        run(*args, generator=generator_at(0), keep=keep, chunk_size=chunk_size)
        for keep in ("memory", "cpu", tmp_path / "a.npy", str(tmp_path / "b.npy"))
    ]
    assert kept[0].draws.shape == (7, 12, 2)
    for other in kept[1:]:
        same(other, kept[0])
    on_disk = np.load(tmp_path / "a.npy")
    assert np.array_equal(on_disk, kept[0].draws.numpy())
    kept[2].draws[0, 0, 0] = 5.0  # a view of the file
    assert np.load(tmp_path / "a.npy", mmap_mode="r")[0, 0, 0] == 5.0


def test_few_draws_wait_at_any_time(monkeypatch):
    """With room for three draws of a chunk, no block of more than three is ever stored."""
    monkeypatch.setattr(rounds, "BUFFER_BYTES", 3 * 4 * 2 * 8)
    sizes = []
    write = rounds.Store.write

    def spy(self, where, first, draws, infos):
        sizes.append(len(draws))
        write(self, where, first, draws, infos)

    monkeypatch.setattr(rounds.Store, "write", spy)
    run(ULA(0.1), NORMAL, start(8), 20, thin=2, generator=generator_at(0), chunk_size=4)
    assert max(sizes) <= 3
    assert sum(sizes) == 2 * 10


def test_float32_stays_float32(tmp_path):
    chain = run(ULA(0.1), NORMAL, start(3).float(), 4, keep=tmp_path / "x.npy")
    assert chain.draws.dtype == torch.float32
    assert np.load(tmp_path / "x.npy").dtype == np.float32


def test_bad_places_are_refused(tmp_path):
    args = (ULA(0.1), NORMAL, start(3), 4)
    with pytest.raises(ValueError, match=r"'memory', 'cpu' or the path of a \.npy file"):
        run(*args, keep="disk")
    (tmp_path / "x.npy").write_text("precious")
    with pytest.raises(ValueError, match="exists"):
        run(*args, keep=tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_text() == "precious"
    with pytest.raises(ValueError, match="bfloat16"):
        run(ULA(0.1), NORMAL, start(3).bfloat16(), 4, keep=tmp_path / "y.npy")


# ---------------------------------------------------------------------------- Ctrl-C


class Interrupting:
    """A density at which Ctrl-C is pressed once, at the n-th evaluation of its score."""

    def __init__(self, n, times=1):
        self.calls, self.n, self.times = 0, n, times

    def score(self, x):
        self.calls += 1
        if self.n <= self.calls < self.n + self.times:
            raise KeyboardInterrupt
        return -x

    def log_prob(self, x):
        return NORMAL.log_prob(x)


@pytest.mark.parametrize(
    ("kernel", "at", "chunk_size"),
    [(MALA(0.8), 8, None), (ULA(0.3), 25, None), (ULA(0.3), 9, 3), (MALA(0.8), 25, 3)],
)
@pytest.mark.usefixtures("seconds")
def test_an_interrupt_keeps_what_was_drawn(kernel, at, chunk_size, tmp_path):
    x0, n = start(7), 30
    whole = run(kernel, NORMAL, x0, n, generator=generator_at(0), chunk_size=chunk_size)
    for keep in ("memory", tmp_path / "x.npy"):
        with pytest.warns(RuntimeWarning, match=rf"interrupted after \d+ of {n} steps"):
            part = run(
                kernel,
                Interrupting(at),
                x0,
                n,
                generator=generator_at(0),
                keep=keep,
                chunk_size=chunk_size,
            )
        done = part.draws.shape[1]
        assert not part.complete
        if chunk_size is None or rounds.ROUND_SECONDS:
            assert done == at - 1 - (1 if chunk_size is None else 3)  # some are at the start
        assert 0 < done < n
        assert torch.equal(part.draws, whole.draws[:, :done])
        assert torch.equal(part.state.x, whole.draws[:, done - 1])
        assert "interrupted" in str(part.summary())
        rest = run(kernel, NORMAL, resume=part, n_steps=n - done, chunk_size=chunk_size)
        assert torch.equal(rest.draws, whole.draws[:, done:])
        assert rest.complete
    assert np.isnan(np.load(tmp_path / "x.npy")[:, done:]).all()


def test_an_interrupt_in_burn_in_leaves_no_draw():
    with pytest.warns(RuntimeWarning, match="after 5 of 30 steps: 0 draws"):
        part = run(MALA(0.5), Interrupting(7), start(3), 30, 20, generator=generator_at(0))
    assert part.draws.shape == (3, 0, 2)
    assert part.info.acceptance.shape == (3, 0)
    whole = run(MALA(0.5), NORMAL, start(3), 30, 20, generator=generator_at(0))
    rest = run(MALA(0.5), NORMAL, resume=part, n_steps=25, burn_in=15)
    same(rest, whole)


def test_an_interrupt_from_the_progress_bar():
    def press(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match="after 4 of 9 steps"):
        part = run(ULA(0.5), NORMAL, start(3), 9, progress=press)
    assert part.draws.shape[1] == 4


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_before_the_first_step_is_raised(at):
    with pytest.raises(KeyboardInterrupt):
        run(ULA(0.5), Interrupting(at), start(3), 9)


def test_a_second_interrupt_is_raised():
    with pytest.raises(KeyboardInterrupt):
        run(ULA(0.5), Interrupting(5, times=2), start(3), 9)


def test_an_interrupt_on_own_streams_is_raised():
    with pytest.raises(KeyboardInterrupt):
        run(ULA(0.5), Interrupting(5), start(3), 9, generator=Streams(0, 0, 3, 3))
    with pytest.raises(KeyboardInterrupt):
        run(ULA(0.5), Interrupting(3), start(3), 2, generator=Injected(*torch.zeros(2, 3, 2)))


# ---------------------------------------------------------------------------- tuned on the way

WIDE = Gaussian([1.0, -2.0], torch.diag(torch.tensor([25.0, 0.04], dtype=torch.float64)))
HOW = {
    "step size": Adaptation(),
    "asked for": Adaptation(0.8),
    "diagonal": Adaptation(preconditioner="diagonal"),
    "matrix": Adaptation(0.7, "matrix"),
}
every_way = pytest.mark.parametrize("how", HOW.values(), ids=HOW)


@every_way
def test_tuning_in_a_run_is_tuning_before_it(how):
    """The same noise through `warm_up`, then a plain run."""
    x0, burn_in, n = start(6), 60, 25
    before, within = Streams(3, 0, 6, 6), Streams(3, 0, 6, 6)
    tuned = warm_up(MALA(0.1), WIDE, x0, burn_in, how, generator=before)
    kernel, state = tuned.kernel, tuned.state
    apart = run(kernel, WIDE, state.x, n, thin=2, generator=before)
    one = run(MALA(0.1), WIDE, x0, burn_in + n, burn_in, 2, generator=within, adapt=how)
    same(one, apart)
    assert one.kernel == kernel != MALA(0.1)
    assert one.step_size == kernel.step_size
    assert one.draws.shape[1] == 12


def test_without_adapt_nothing_is_tuned(monkeypatch):
    args = (MALA(0.3), NORMAL, start(4), 20, 5)
    one = run(*args, generator=generator_at(0))
    same(one, run(*args, generator=generator_at(0), adapt=False))
    assert one.kernel is args[0]
    assert "tuned" not in one.resume
    found = Chain(one.draws, one.info, one.state), (20, 20, Thinning(5, 1))
    monkeypatch.setattr(driver, "compiled", lambda *args: found)
    assert run(*args, engine="fused").kernel is args[0]


@pytest.mark.parametrize(
    ("kernel", "rate", "n"),
    [(MALA(1e-4), 0.574, 300), (HMC(5.0, 4), 0.8, 600), (HMC(0.1, 1), 0.574, 300),
     (GHMC(3.0), 0.574, 300)],
    ids=["MALA", "HMC", "HMC of one leapfrog", "GHMC"],
)  # fmt: skip
def test_the_acceptance_of_the_kept_draws_is_the_best(kernel, rate, n):
    x0, target = start(100, 8), Gaussian(torch.zeros(8), torch.arange(1.0, 9.0))
    chain = run(kernel, target, x0, n + 40, n, generator=generator_at(1), adapt=True)
    assert abs(float(chain.info.acceptance.mean()) - rate) < 0.02
    assert type(chain.kernel) is type(kernel)
    stats = chain.to_arviz()["sample_stats"]["step_size"]
    assert (stats == chain.kernel.step_size).all()  # frozen


@pytest.mark.parametrize(
    ("how", "chunk_size"),
    [*((how, None) for how in HOW.values()), (HOW["matrix"], 3)],
    ids=[*HOW, "matrix in chunks"],
)
def test_a_tuned_run_goes_on_bit_for_bit(how, chunk_size, tmp_path):
    x0, options = start(7), {"chunk_size": chunk_size}
    args = (MALA(0.1), WIDE, x0)
    whole = run(*args, 100, 60, generator=generator_at(0), adapt=how, **options)
    first = run(*args, 77, 60, generator=generator_at(0), adapt=how, **options)
    torch.save(first.resume, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    for kernel, resume in ((first.kernel, first), (MALA(0.1), first), (MALA(5.0), saved)):
        second = run(kernel, WIDE, resume=resume, n_steps=23, **options)
        assert second.kernel == whole.kernel
        assert torch.equal(torch.cat([first.draws, second.draws], 1), whole.draws)
        third = run(kernel, WIDE, resume=second.resume, n_steps=5, **options)
        assert third.kernel == whole.kernel


@pytest.mark.usefixtures("small_blocks")
def test_tuning_does_not_depend_on_chunks():
    x0 = start(BLOCK + 30)
    one, two = (
        run(MALA(0.1), WIDE, x0, 45, 40, generator=generator_at(0), adapt=HOW["matrix"],
            chunk_size=size)
        for size in (None, 100)
    )  # fmt: skip
    torch.testing.assert_close(one.draws, two.draws, rtol=1e-8, atol=1e-8)
    assert abs(one.step_size / two.step_size - 1) < 1e-9


def test_an_interrupt_after_tuning_keeps_what_was_drawn():
    calls = 1 + 50  # at the start, and one a step of the burn-in
    whole = run(MALA(0.1), NORMAL, start(3), 80, 50, generator=generator_at(0), adapt=True)
    with pytest.warns(RuntimeWarning, match=r"interrupted after 59 of 80 steps: 9 draws"):
        part = run(
            MALA(0.1), Interrupting(calls + 10), start(3), 80, 50, generator=generator_at(0),
            adapt=True,
        )  # fmt: skip
    rest = run(MALA(0.1), NORMAL, resume=part, n_steps=21)
    assert torch.equal(torch.cat([part.draws, rest.draws], 1), whole.draws)
    for at in (20, calls + 1):
        with pytest.raises(KeyboardInterrupt):
            run(MALA(0.1), Interrupting(at), start(3), 80, 50, adapt=True)


def test_steps_that_are_tried_do_not_count_as_divergent():
    """A MALA of step 10³ on a quartic overflows at first; the tuned one does not."""
    quartic = as_target(score=lambda x: -(x**3), log_prob=lambda x: -(x**4).sum(1) / 4)
    x0 = 100 * start(20, 1)
    chain = run(MALA(1e60), quartic, x0, 400, 300, generator=generator_at(0), adapt=True)
    assert int(chain.divergences.sum()) == 0
    assert chain.step_size < 10


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda x: run(MALA(0.1), NORMAL, x, 9, adapt=True), "n_steps must be an integer"),
        (lambda x: run(MALA(0.1), NORMAL, x, 50, 39, adapt=HOW["matrix"]), "integer of at least 40"),
        (lambda x: run(ULA(0.1), NORMAL, x, 9, 5, adapt=True), "ULA has no acceptance"),
        (lambda x: run(GHMC(0.1), NORMAL, x, 90, 50, adapt=HOW["matrix"]), "no field precond"),
        (
            lambda x: run(ParallelTempering((0.1, 0.2), (1.0, 2.0)), NORMAL, x, 9, 5, adapt=True),
            "must be one number",
        ),
        (lambda x: run(MALA(0.1), NORMAL, x, 9, 5, adapt=0.5), "True, False or an Adaptation"),
        (lambda x: run(MALA(0.1), NORMAL, x, 9, 5, adapt=True, engine="fused"), "cannot adapt"),
        (lambda x: run(MALA(0.1), NORMAL, x, 9, 5, adapt=True, engine="fast"), "engine must be"),
        (lambda x: Adaptation(1.0), "target_acceptance"),
        (lambda x: Adaptation(preconditioner="dense"), "preconditioner must be 'none', 'diagonal'"),
        (
            lambda x: run(
                ParallelTempering(0.1), NORMAL,
                resume=run(MALA(0.1), NORMAL, x, 60, 50, adapt=HOW["matrix"]), n_steps=3,
            ),
            "which ParallelTempering",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused(case, message, as_user):
    with pytest.raises(ValueError, match=message):
        case(start(3))


# ---------------------------------------------------------------------------- messages


@pytest.mark.usefixtures("seconds")
def test_divergent_steps_are_counted_in_every_round():
    x0 = torch.tensor([[0.1], [1e200], [0.2]])
    quartic = as_target(score=lambda x: -(x**3))
    for size in (None, 1):
        with pytest.warns(RuntimeWarning, match=r"1 of 3 chains diverged, in 6 of 18 steps"):
            chain = run(ULA(0.1), quartic, x0, 6, 5, chunk_size=size)
        assert chain.divergences.tolist() == [0, 6, 0]
        assert chain.complete


@dataclass(frozen=True)
class AllAtOnce:
    """A kernel whose flags are one number in memory, set in every third step."""

    def init(self, x, target):
        return LangevinState(x, torch.zeros_like(x))

    def step(self, state, target, *, generator=None):
        count = state.score + 1
        flag = (count[0, 0] % 3 == 0).expand(len(count))
        return LangevinState(state.x, count), LangevinInfo(flag)


def test_flags_that_are_one_number_in_memory_are_counted():
    with pytest.warns(RuntimeWarning, match=r"5 of 5 chains diverged, in 15 of 50 steps"):
        chain = run(AllAtOnce(), NORMAL, start(5), 10)
    assert chain.divergences.tolist() == [3] * 5
    assert chain.info.diverging.sum(1).tolist() == [3] * 5


def test_one_of_many_chains_diverges():
    n = 1024
    x0 = torch.cat([start(n - 1), torch.full((1, 2), 1e15)])  # cubed twice
    cubic = as_target(score=lambda x: -(x**3))
    with pytest.warns(RuntimeWarning, match=rf"1 of {n} chains diverged, in 2 of {3 * n} steps"):
        chain = run(ULA(1e-3), cubic, x0, 3, generator=generator_at(0))
    assert chain.info.diverging.sum(1).tolist() == [0] * (n - 1) + [2]


def test_no_warning_where_nothing_diverges():
    chain = run(ULA(0.1), NORMAL, start(3), 6)
    assert chain.divergences.tolist() == [0, 0, 0]
    assert chain.step_size == 0.1


def test_progress_tells_stage_speed_acceptance_and_divergences():
    reported = []
    run(
        MALA(0.5),
        NORMAL,
        start(6),
        5,
        chunk_size=2,
        progress=lambda done, total, note="": reported.append((done, total, note)),
    )
    assert [t[:2] for t in reported] == [(i, 15) for i in range(1, 16)]
    end = r"[\d.e+]+ steps/s, acceptance 0\.\d\d, 0 divergent"
    assert re.fullmatch(f"draws, {end}", reported[-1][2])
    ula = []
    run(ULA(0.5), NORMAL, start(6), 5, progress=lambda i, n, note: ula.append(note))
    assert re.fullmatch(r"draws, [\d.e+]+ steps/s, 0 divergent", ula[-1])
    two = []
    far, quartic = torch.tensor([[1e200], [0.5]]), as_target(score=lambda x: -(x**3))
    with pytest.warns(RuntimeWarning, match="diverged"):
        run(ULA(0.1), quartic, far, 7, 3, progress=lambda i, n, note: two.append(note))
    assert [note.split(",")[0] for note in two] == ["warm-up"] * 3 + ["draws"] * 4
    assert two[0].endswith("1 divergent")
    assert two[-1].endswith("4 divergent")  # those of the stage
