"""The fused engine: the law of the kernels, exactly where it is known, and the conduct of a chain."""

import gc
import logging
import math
import re
from threading import current_thread, main_thread

import numpy as np
import pytest
import torch
from support import COV, MEAN, z_score
from traced_support import FUNCTIONS, X

from gradlogp import Gaussian, GaussianMixture, as_target, run
from gradlogp.core import Injected
from gradlogp.distributions import targets as densities
from gradlogp.langevin import (
    BAOAB,
    HMC,
    MALA,
    NUTS,
    ULA,
    LeimkuhlerMatthews,
    fused,
)
from gradlogp.langevin.kernels.steps import started

numba = pytest.importorskip("numba")

from gradlogp.langevin.fused import functions, mixtures, noise  # noqa: E402

# Every dtype, width of a tile and kind of target compiles for five to ten seconds. What is not marked
# slow has one: functions in float64 in narrow tiles. DIAGONAL in float32 in wide ones is slow.
# Scores alone are compiled for narrow tiles, in less time, or interpreted.
DIAGONAL = GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.5, 1.0]], [[1.0, 0.5], [0.6, 1.2]])


@pytest.fixture(params=["function", pytest.param("law", marks=pytest.mark.slow)])
def mixture(request, monkeypatch):
    """DIAGONAL, and what draws n of its points: a function in narrow tiles, the law in wide ones."""
    if request.param == "law":
        return DIAGONAL, lambda n, g: DIAGONAL.sample(n, generator=g).float()
    request.getfixturevalue("narrow")
    target = as_target(log_prob=DIAGONAL.log_prob)
    return target, lambda n, g: DIAGONAL.sample(n, generator=g).double()


def correlated(x):
    difference = x - MEAN
    return -(difference @ torch.linalg.inv(COV) * difference).sum(1) / 2


GAUSSIAN = as_target(log_prob=correlated)
"""The correlated Gaussian of `MEAN` and `COV`, as a function."""


@pytest.fixture(autouse=True, scope="module")
def _nothing_collected():
    """What compiling makes lives on: the collector would look through it again and again."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.fixture
def narrow(monkeypatch):
    """Put any number of chains into narrow tiles."""
    monkeypatch.setattr("gradlogp.langevin.fused.pack.width", lambda n: noise.NARROW)


@pytest.fixture
def logged():
    """The lines that the library logs."""
    lines, handler, logger = [], logging.Handler(), logging.getLogger("gradlogp")
    handler.emit = lambda record: lines.append(record.getMessage())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture(scope="module")
def cubic():
    """−x⁴/4 − x²/2 for each chain, whose score explodes from far out."""
    return as_target(log_prob=lambda x: -(x**2 / 2 + x**4 / 4).sum(1))


# ---------------------------------------------------------------------------- the law


def moments(x, mean, cov):
    """z-scores of the mean and the second central moments of independent draws `(n, D)`."""
    D, c = len(mean), x - mean
    out = [z_score(x[:, i], mean[i]) for i in range(D)]
    return out + [z_score(c[:, i] * c[:, j], cov[i, j]) for i in range(D) for j in range(i + 1)]


def transient(x0, h, k):
    """Mean and covariance of ULA on the correlated Gaussian after k steps from the point x0."""
    a = torch.eye(2) - h * torch.linalg.inv(COV)
    mean, cov = x0 - MEAN, torch.zeros(2, 2)
    for _ in range(k):
        mean, cov = a @ mean, a @ cov @ a.T + 2 * h * torch.eye(2)
    return mean + MEAN, cov


def test_ula_on_a_gaussian_has_the_exact_law_at_every_step(narrow):
    x0, h = torch.tensor([3.0, 1.0]), 0.1
    run = fused.run(ULA(h), GAUSSIAN, x0.repeat(40_000, 1), 12, seed=1)
    for k in (1, 2, 12):
        z = moments(run.draws[:, k - 1], *transient(x0, h, k))
        assert max(map(abs, z)) < 5, (k, z)
    # negative control: the same draws are not those of another step size, or of the target
    wrong = moments(run.draws[:, -1], *transient(x0, 1.1 * h, 12))
    assert max(map(abs, wrong)) > 10


def test_stationary_laws_are_exact(narrow):
    n = 20_000
    L, I = torch.linalg.inv(COV), torch.eye(2)
    h = 0.15  # L has an eigenvalue of 9.3
    x0 = Gaussian(MEAN, COV).sample(n, generator=torch.Generator().manual_seed(3)).double()
    ula = torch.linalg.inv(L @ (I - h * L / 2))
    for kernel, cov in ((ULA(h), ula), (LeimkuhlerMatthews(h), COV), (MALA(h), COV)):
        run = fused.run(kernel, GAUSSIAN, x0, 80, 79, seed=2)
        z = moments(run.state.x, MEAN, cov)
        assert max(map(abs, z)) < 5, (kernel, z)
    state = fused.run(BAOAB(0.5, friction=1.5), GAUSSIAN, x0, 80, 79, seed=4).state
    z = moments(state.x, MEAN, COV)
    z += moments(state.momentum, torch.zeros(2), I - 0.25 * L / 4)
    assert max(map(abs, z)) < 5, z
    wrong = fused.run(ULA(h), GAUSSIAN, x0, 80, 79, seed=2).state.x
    assert max(map(abs, moments(wrong, MEAN, COV))) > 10  # the bias of ULA is seen


def test_momenta_start_from_their_law(mixture):
    """After one short step x has hardly moved; more chains or threads change no chain."""
    kernel, n = BAOAB(0.05, friction=1e-3, mass=1.7, temperature=0.9), 20_000
    target, draw = mixture
    x0 = torch.zeros_like(draw(n, None))
    start = fused.run(kernel, target, x0, 1, seed=3).state
    ratio = start.momentum.double().square() / (1.7 * 0.9)
    z = (ratio.mean(0) - 1) * (n / 2) ** 0.5
    assert float(z.abs().max()) < 6  # the score adds some
    corr = (start.momentum[:, 0] * start.momentum[:, 1]).double() / (1.7 * 0.9)
    assert abs(z_score(corr, 0.0)) < 4.5
    few = fused.run(kernel, target, x0[:17], 1, seed=3).state
    assert torch.equal(few.momentum, start.momentum[:17])


def plain(kernel, law, x, n_steps, g):
    state = started(kernel, x, law, g)
    for _ in range(n_steps):
        state, info = kernel.step(state, law, generator=g)
    return state, info


@pytest.mark.parametrize("kernel", [
    ULA(0.2, temperature=0.7), LeimkuhlerMatthews(0.2, temperature=1.3),
    MALA(0.8, temperature=1.2), BAOAB(0.6, friction=0.8, mass=1.7, temperature=0.9),
])  # fmt: skip
def test_agrees_with_the_plain_engine(kernel, mixture, generator):
    n, steps, (target, draw) = 20_000, 5, mixture
    x0 = draw(n, generator)
    ours = fused.run(kernel, target, x0, steps, seed=7)
    state, info = plain(kernel, DIAGONAL, x0, steps, generator)
    torch.testing.assert_close(
        ours.state.score, DIAGONAL.score(ours.state.x), rtol=1e-4, atol=1e-4
    )
    fields = [(ours.state.x, state.x), (ours.state.x**2, state.x**2)]
    if hasattr(state, "momentum"):
        fields.append((ours.state.momentum**2, state.momentum**2))
        fields.append((ours.state.momentum * ours.state.x, state.momentum * state.x))
    if hasattr(info, "acceptance"):
        fields.append((ours.info.acceptance[:, -1:], info.acceptance[:, None]))
        fields.append((ours.info.accepted[:, -1:].float(), info.accepted[:, None].float()))
        close = torch.testing.assert_close
        close(
            ours.info.log_prob[:, -1], DIAGONAL.log_prob(ours.draws[:, -1]), rtol=1e-4, atol=1e-4
        )
        close(ours.state.log_prob, ours.info.log_prob[:, -1])
    for a, b in fields:
        a, b = a.double(), b.double()
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * error).all())


def noise_of(n, D, n_steps, seed):
    """What the steps of a Metropolis kernel draw: normal numbers, then uniform ones."""
    from gradlogp.langevin.fused import noise, pack

    w, drawn = pack.width(n), []
    lanes = noise.VECTOR * len(w)
    rng = pack._tiles(pack.seeds(seed, n), lanes).reshape(-1)
    z, u = torch.empty(D + D % 2, lanes).float().numpy(), torch.empty(lanes).float().numpy()
    for _ in range(n_steps):
        noise.normals(w, rng, z, D)
        noise.uniforms(w, rng, u)
        drawn += [torch.from_numpy(v.T[:n].copy()).double() for v in (z[:D], u)]
    return Injected(*drawn)


@pytest.mark.parametrize("kernel", [
    MALA(0.2, temperature=1.2), HMC(0.4, 3, temperature=1.3), HMC(0.3, 4, jitter=False),
    HMC(0.5, 1), HMC(4.0, 3),
])  # fmt: skip
def test_metropolis_kernels_take_the_steps_of_the_plain_engine(kernel, generator):
    """The draws are the same for the same noise, with all information about them."""
    law, n, steps = GAUSSIAN, 13, 60
    x0 = Gaussian(MEAN, COV).sample(n, generator=generator)
    ours = fused.run(kernel, law, x0, steps, seed=7)
    noise, state, reported = noise_of(n, 2, steps, 7), kernel.init(x0, law), []
    for k in range(steps):
        state, info = kernel.step(state, law, generator=noise)
        reported.append(info)
        torch.testing.assert_close(ours.draws[:, k], state.x, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(ours.state, state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for name in reported[0]._fields:
        theirs = torch.stack([getattr(info, name) for info in reported], 1)
        torch.testing.assert_close(getattr(ours.info, name), theirs, rtol=1e-8, atol=1e-8)
    assert bool(ours.info.diverging.any()) == (kernel.step_size == 4.0)


@pytest.mark.slow
def test_mala_keeps_the_mixture_exactly(generator):
    """From the law itself: its moments and the weight of a mode, where ULA with that step fails."""
    x0 = DIAGONAL.sample(40_000, generator=generator).float()
    exact = DIAGONAL.mean, DIAGONAL.cov
    kept = fused.run(MALA(0.8), DIAGONAL, x0, 40, 39, seed=5).draws[:, 0].double()
    assert max(map(abs, moments(kept, *exact))) < 5
    r = DIAGONAL.responsibilities(kept)[:, 0]
    assert abs(z_score(r, 0.3)) < 5
    lost = fused.run(ULA(0.4), DIAGONAL, x0, 40, 39, seed=5).draws[:, 0].double()
    assert max(map(abs, moments(lost, *exact))) > 10


def test_temperature_zero_is_gradient_flow(mixture, generator):
    target, draw = mixture
    x0 = draw(17, generator)
    ours = fused.run(ULA(0.1, temperature=0.0), target, x0, 20).state.x
    state, _ = plain(ULA(0.1, temperature=0.0), DIAGONAL, x0, 20, generator)
    torch.testing.assert_close(ours, state.x, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- the noise


def test_normals_are_normal():
    from gradlogp.langevin.fused import noise, pack

    w, lanes = noise.WIDE, noise.VECTOR * len(noise.WIDE)
    rng = pack._tiles(pack.seeds(3, lanes), lanes).reshape(-1)
    z, kept = torch.empty(64, lanes, dtype=torch.float32).numpy(), []
    for _ in range(50):
        noise.normals(w, rng, z, 64)
        kept.append(torch.from_numpy(z.copy()))
    z = torch.stack(kept).double()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        assert abs(z_score(z.flatten() ** power, moment)) < 5
    for edge in (0.1, 1.0, 3.0, 4.0):
        p = math.erfc(edge / 2**0.5)
        assert abs(z_score((z.abs() > edge).double().flatten(), p)) < 5
    # the two of a pair, neighbours in a chain, and neighbouring chains; squares as well
    flat = z.reshape(-1, lanes)
    for a, b in ((flat[::2], flat[1::2]), (flat[:-2], flat[2:]), (flat[:, :-1], flat[:, 1:])):
        assert abs(z_score((a * b).flatten(), 0.0)) < 5
        assert abs(z_score(((a**2 - 1) * (b**2 - 1)).flatten(), 0.0)) < 5


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kernel", [ULA(0.1), MALA(0.5), BAOAB(0.3), HMC(0.5, 2)])
def test_a_chain_depends_on_nothing_beside_it(kernel, mixture, generator):
    target, draw = mixture
    x0 = draw(200, generator)
    all_of = fused.run(kernel, target, x0, 7, seed=11)
    few = fused.run(kernel, target, x0[:17], 7, seed=11)
    assert torch.equal(all_of.draws[:17], few.draws)
    assert same([v[:17] for v in all_of.state], few.state)
    for threads in (2, 5):
        again = fused.run(kernel, target, x0, 7, seed=11, threads=threads)
        assert torch.equal(again.draws, all_of.draws)
        assert same(again.state, all_of.state)
        assert same(again.info, all_of.info)
    assert not torch.equal(fused.run(kernel, target, x0, 7, seed=12).draws, all_of.draws)
    assert len(all_of.draws[:, -1].unique(dim=0)) == 200


def test_slices_burn_in_and_thinning_choose_among_the_same_draws(mixture, generator, monkeypatch):
    (target, draw), seen = mixture, []
    x0 = draw(70, generator)
    whole = fused.run(ULA(0.1), target, x0, 23, seed=1)
    monkeypatch.setattr("gradlogp.langevin.fused.api.SLICE_SECONDS", 0.0)
    monkeypatch.setattr("gradlogp.langevin.fused.api.FEWEST", 4)
    part = fused.run(ULA(0.1), target, x0, 23, 5, 4, seed=1, progress=lambda *n: seen.append(n))
    assert torch.equal(part.draws, whole.draws[:, 8::4])
    assert torch.equal(part.state.x, whole.state.x)
    assert part.info.diverging.shape == (70, 4)
    assert seen == [(4, 23), (8, 23), (12, 23), (16, 23), (20, 23), (23, 23)]


# ---------------------------------------------------------------------------- conduct


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_keeps_what_was_drawn(threads, mixture, generator, monkeypatch):
    target, draw = mixture
    x0 = draw(200, generator)
    whole = fused.run(ULA(0.1), target, x0, 40, 5, 4, seed=1)
    monkeypatch.setattr("gradlogp.langevin.fused.api.SLICE_SECONDS", 0.0)  # ten steps at a time

    def press(done, total):
        if done == 20:
            raise KeyboardInterrupt

    part = fused.run(ULA(0.1), target, x0, 40, 5, 4, seed=1, threads=threads, progress=press)
    assert part.n_steps == 20
    assert torch.equal(part.draws, whole.draws[:, :3])  # of steps 9, 13 and 17
    assert part.info.diverging.shape == (200, 3)
    assert torch.equal(part.state.x, fused.run(ULA(0.1), target, x0, 20, seed=1).state.x)
    with pytest.warns(RuntimeWarning, match="interrupted after 20 of 40 steps: 3 draws are kept"):
        chain = run(ULA(0.1), target, x0, 40, 5, 4, engine="fused", progress=press)
    assert not chain.complete
    assert chain.draws.shape == (200, 3, 2)
    assert len(chain.draws.untyped_storage()) == x0.element_size() * chain.draws.numel()
    with pytest.warns(RuntimeWarning, match="interrupted after 20 of 20 steps: 3 draws are kept"):
        chain = run(ULA(0.1), target, x0, 20, 5, 4, engine="fused", progress=press)
    assert not chain.complete  # so that a loop over runs sees it


@pytest.mark.parametrize("behind", [(), (0,), (1, 2), (0, 1, 2)])
def test_an_interrupt_leaves_every_chain_at_the_same_step(behind, mixture, generator, monkeypatch):
    """Whether Python sees it before the parts of the chains have moved or after."""
    from gradlogp.langevin.fused import engine

    (target, draw), tiles, calls = mixture, engine.tiles, []
    x0 = draw(200, generator)
    monkeypatch.setattr("gradlogp.langevin.fused.api.SLICE_SECONDS", 0.0)

    def late(*arguments):
        calls.append(arguments)
        now, part = arguments[15], len(calls) % 3  # steps already taken
        pressed = (
            now == 10 and current_thread() is not main_thread()
        )  # who catches up is left alone
        if pressed and part in behind:
            raise KeyboardInterrupt
        tiles(*arguments)
        if pressed and not behind:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "tiles", late)
    part = fused.run(ULA(0.1), target, x0, 40, seed=1, threads=3)
    monkeypatch.setattr(engine, "tiles", tiles)
    # a part that had not begun is not begun any more, so that sometimes none has moved
    assert part.n_steps in {0: (20,), 3: (10,)}.get(len(behind), (10, 20))
    whole = fused.run(ULA(0.1), target, x0, part.n_steps, seed=1)
    assert torch.equal(part.state.x, whole.state.x)


def test_a_function_of_ones_own(cubic, narrow, generator):
    """E[x s(x)] = −1 for any density; MALA keeps the law, and either engine takes the target."""
    x0 = torch.randn(4000, 1, generator=generator)
    x = fused.run(MALA(0.3), cubic, x0, 60, 59, seed=2).draws[:, 0]
    assert abs(z_score((x * cubic.score(x)).flatten(), -1.0)) < 5
    grid = torch.linspace(-6, 6, 4001)
    p = torch.exp(-(grid**2) / 2 - grid**4 / 4)
    assert abs(z_score(x.flatten() ** 2, float((p * grid**2).sum() / p.sum()))) < 5


def test_functions_compiled_by_numba(cubic, generator):
    @numba.njit
    def score(x, out):
        for d in range(len(x)):
            out[d] = -x[d] - x[d] ** 3

    @numba.njit
    def log_prob(x):
        total = 0.0
        for d in range(len(x)):
            total -= x[d] ** 2 / 2 + x[d] ** 4 / 4
        return total

    jitted = fused.Jitted(score, log_prob)
    x = torch.randn(16, 2, generator=generator)
    for found in (on_tiles(jitted, x), (jitted.score(x), jitted.log_prob(x))):
        torch.testing.assert_close(found, (cubic.score(x), cubic.log_prob(x)))
    state, _ = plain(MALA(0.3), jitted, x[:5], 2, generator)
    torch.testing.assert_close(state.log_prob, cubic.log_prob(state.x))
    assert fused.supports(MALA(0.1), jitted)
    assert "log-density" in fused.objection(MALA(0.1), fused.Jitted(score))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_pytorch(name):
    """As the compiled machine computes them, with numbers in tiles."""
    target, x = as_target(log_prob=FUNCTIONS[name]), X.repeat(6, 1)[:16]
    found = functions.translated(target, x).on_tile(x, noise.NARROW)
    close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
    torch.testing.assert_close(found[0], target.score(x), **close)
    torch.testing.assert_close(found[1], target.log_prob(x), **close)


@pytest.mark.parametrize("kernel", [ULA(0.1), LeimkuhlerMatthews(0.1), HMC(0.3, 4)])
def test_a_run_resumes(kernel, cubic, tmp_path):
    x0, seed = torch.linspace(-1, 1, 13)[:, None], lambda: torch.Generator().manual_seed(1)
    whole = run(kernel, cubic, x0, 40, thin=3, generator=seed(), engine="fused")
    part = run(kernel, cubic, x0, 17, thin=3, generator=seed(), engine="fused", chunk_size=5)
    torch.save(part.resume, tmp_path / "run.pt")
    rest = run(kernel, cubic, resume=torch.load(tmp_path / "run.pt"), n_steps=23, thin=3)
    assert torch.equal(torch.cat([part.draws, rest.draws], 1), whole.draws)
    assert same(rest.state, whole.state)
    assert torch.equal(rest.resume["noise"], whole.resume["noise"])
    assert rest.resume["since"] == whole.resume["since"] == 1
    for options, message in (
        ({"engine": "torch"}, "its noise is that of engine='fused'"),
        ({"keep": tmp_path / "x.npy"}, "cannot continue this: it keeps draws in memory"),
        ({"x0": x0}, "pass x0= or resume=, not both"),
        ({"generator": seed()}, "omit generator="),
    ):
        with pytest.raises(ValueError, match=message):
            run(kernel, cubic, resume=part, n_steps=5, **options)
    with pytest.raises(ValueError, match="a different target"):
        run(kernel, as_target(log_prob=lambda x: -x.square().sum(1)), resume=part, n_steps=5)
    with pytest.raises(ValueError, match="continue with the kernel of that run"):
        run(BAOAB(0.1), cubic, resume=part, n_steps=5)
    plainly = run(kernel, cubic, x0, 5, engine="torch")
    with pytest.raises(ValueError, match="resumes only its own"):
        run(kernel, cubic, resume=plainly, n_steps=5, engine="fused")


def test_a_function_that_changes_during_the_run_is_noticed(monkeypatch):
    monkeypatch.setattr("gradlogp.langevin.fused.api.SLICE_SECONDS", 0.0)
    factor = [1.0]
    target = as_target(log_prob=lambda x: -factor[0] * x.square().sum(1))

    def change(done, total):
        factor[0] = 1.0 + (done >= 20)

    with pytest.raises(TypeError, match="the log-density changed during the run"):
        fused.run(ULA(0.1), target, torch.ones(13, 1), 40, progress=change)


def test_named_parameters_have_their_values(narrow):
    parameters = {"scale": torch.distributions.constraints.positive}
    target = as_target(log_prob=lambda scale: -scale, parameters=parameters)  # exponential
    z0 = torch.zeros(2000, 1)
    chain = run(
        MALA(0.8), target, z0, 200, 199, generator=torch.Generator().manual_seed(1), engine="fused"
    )
    assert abs(z_score(chain["scale"].flatten(), 1.0)) < 5
    torch.testing.assert_close(chain["scale"][:, -1], chain.state.x[:, 0].exp())


def test_the_engine_is_chosen_by_counts_alone(cubic, monkeypatch, logged):
    from gradlogp.langevin.run import engines

    def draws(target, **options):
        g = torch.Generator().manual_seed(1)
        x0 = torch.linspace(-1, 1, 13)[:, None]
        chain = run(ULA(0.01), target, x0, 20, generator=g, **options)
        return chain.draws, chain.resume.get("engine")

    plainly, compiled = draws(cubic, engine="torch")[0], draws(cubic, engine="fused")[0]
    asked, prepared = [], fused.prepared
    monkeypatch.setattr(fused, "prepared", lambda *args: asked.append(args) or prepared(*args))
    assert torch.equal(draws(cubic)[0], plainly)
    assert not asked  # a short run does not even look at the function
    assert any("compiling would take longer" in line for line in logged)
    monkeypatch.setattr(engines, "LEAST_STEPS", 20)
    assert torch.equal(draws(cubic)[0], plainly)
    assert len(asked) == 1
    monkeypatch.setattr(engines, "WORTH", 20 * 1e-5)
    found, engine = draws(cubic)
    assert engine == "fused"
    assert torch.equal(found, compiled)
    assert torch.equal(draws(cubic, chunk_size=3)[0], compiled)
    # what does not suit the engine is left to PyTorch, with the noise of PyTorch
    data = torch.randn(1, 10_000, generator=torch.Generator().manual_seed(1))
    for f, reason in (
        (lambda x: -(x - x.mean(0)).square().sum(1), "at other points it has a different value"),
        (lambda x: -(x @ data).square().mean(1), "a density of .* numbers is faster there"),
    ):
        target = as_target(log_prob=f)
        found, engine = draws(target)
        assert engine is None
        assert torch.equal(found, draws(target, engine="torch")[0])
        assert re.search(reason, "\n".join(logged))


@pytest.mark.parametrize("kernel", [ULA(0.1), LeimkuhlerMatthews(0.1), BAOAB(0.5)])
def test_a_chain_that_is_not_finite_is_frozen_and_flagged_alone(kernel, cubic, narrow):
    x0 = torch.linspace(-0.5, 0.5, 35)[:, None]
    x0[17] = 1e3
    run = fused.run(kernel, cubic, x0, 40, seed=3)
    assert run.draws.isfinite().all()
    assert all(field.isfinite().all() for field in run.state)
    assert run.divergences.nonzero().tolist() == [[17]]
    assert torch.equal(run.info.diverging.sum(1), run.divergences)
    k = int(run.info.diverging[17].int().argmax())
    assert bool((run.draws[17, k:] == run.draws[17, k - 1]).all())  # as the score there is huge
    raising = type(kernel)(kernel.step_size, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="1 of 35 chains became NaN or infinite"):
        fused.run(raising, cubic, x0, 40, seed=3)
    alone = fused.run(kernel, cubic, x0[:17], 40, seed=3)
    assert torch.equal(alone.draws, run.draws[:17])


@pytest.mark.parametrize("n", [13, pytest.param(35, marks=pytest.mark.slow)])  # a wide tile
@pytest.mark.parametrize("kernel", [MALA(0.1), HMC(0.1, 2)])
def test_what_is_not_finite_is_rejected_and_flagged(kernel, n, cubic):
    x0 = torch.linspace(-0.5, 0.5, n)[:, None]
    x0[n // 2] = 1e75
    run = fused.run(kernel, cubic, x0, 10, seed=3)
    assert run.draws.isfinite().all()
    flagged = run.info.diverging.all(1)
    assert flagged.nonzero().tolist() == [[n // 2]]
    assert not run.info.accepted[flagged].any()
    assert not run.info.diverging[~flagged].any()


def test_supports_says_why_not(cubic):
    assert fused.supports(ULA(0.1), DIAGONAL, torch.zeros(3, 2))
    assert fused.objection(ULA(0.1), DIAGONAL, torch.zeros(3, 2)) is None
    assert fused.supports(HMC(0.1, 3), DIAGONAL)
    assert not fused.supports(NUTS(0.1), DIAGONAL)
    assert "not NUTS" in fused.objection(NUTS(0.1), DIAGONAL)
    assert "HMC only without" in fused.objection(HMC(0.1, 3, torch.ones(2)), DIAGONAL)
    assert "one step size" in fused.objection(HMC(torch.ones(3), 3), DIAGONAL)
    assert "preconditioner" in fused.objection(MALA(0.1, preconditioner=2.0), DIAGONAL)
    assert "not function" in fused.objection(ULA(0.1), lambda x: x)
    assert "singular" in fused.objection(ULA(0.1), Gaussian([0.0, 0.0], [1.0, 0.0]))
    assert "several samples" in fused.objection(ULA(0.1), DIAGONAL.noised(torch.ones(3), 1.0))
    assert "pass x0" in fused.objection(ULA(0.1), cubic)
    score = as_target(score=lambda x: -x)
    assert "needs a log-density" in fused.objection(MALA(0.1), score, torch.zeros(3, 2))
    assert "on the CPU" in fused.objection(ULA(0.1), DIAGONAL, torch.zeros(3, 2).half())
    with pytest.raises(ValueError, match="not NUTS"):
        fused.run(NUTS(0.1), DIAGONAL, torch.zeros(3, 2), 5)
    with pytest.raises(ValueError, match="keep no draw"):
        fused.run(ULA(0.1), DIAGONAL, torch.zeros(3, 2), 5, 5)
    with pytest.raises(ValueError, match="threads must be an integer of at least 1"):
        fused.run(ULA(0.1), DIAGONAL, torch.zeros(3, 2), 5, threads=0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["full", "diagonal", "one", "gaussian"])
@pytest.mark.parametrize("D", [1, 3, 40])
def test_scores_of_tiles_are_those_of_the_law(D, kind, dtype, generator):
    mu = torch.randn(5, D, generator=generator)
    A = torch.randn(5, D, D, generator=generator)
    covs = {
        "full": A @ A.mT + torch.eye(D),
        "diagonal": 0.3 + torch.rand(5, D, generator=generator),
        "one": 0.8,
        "gaussian": A[0] @ A[0].T + torch.eye(D),
    }[kind]
    weights = torch.full((5,), 0.2)
    law = Gaussian(mu[0], covs) if kind == "gaussian" else GaussianMixture(weights, mu, covs)
    x0 = law.sample(70, generator=generator).to(dtype)
    run = fused.run(MALA(0.01), law, x0, 2)
    tolerance = 2e-3 if dtype == torch.float32 else 1e-10
    close = torch.testing.assert_close
    close(run.state.score, law.score(run.state.x), rtol=tolerance, atol=tolerance)
    close(run.state.log_prob, law.log_prob(run.state.x), rtol=tolerance, atol=tolerance)


def far_apart(kind, n, generator):
    """A mixture, and n points where most of its weights are below e^-670."""
    mu = 40 * torch.randn(5, 3, generator=generator)
    A = torch.randn(5, 3, 3, generator=generator)
    covs = A @ A.mT + torch.eye(3) if kind == "full" else 0.3 + A[0].repeat(5, 1)[:5].square()
    law = GaussianMixture(torch.full((5,), 0.2), mu, covs)
    drawn = law.sample(n - n // 8, generator=generator)
    x = torch.cat([drawn, mu.mean(0, keepdim=True).repeat(n // 8, 1)])
    assert float((law.responsibilities(x) == 0).double().mean()) > 0.3
    return law, x


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_components_too_far_to_count_and_points_too_far_to_score(kind, generator, monkeypatch):
    """Weights below e^-670 are 0, which is right to the last digit; what is not a number stays so."""
    by_hand = kind == "full"  # which takes a compiler long, and is compiled where chains diverge
    if by_hand:
        monkeypatch.setattr(mixtures, "_softmax", mixtures._softmax.py_func)
    law, x = far_apart(kind, 16, generator)
    for ours, theirs in zip(
        on_tiles(law, x, by_hand), (law.score(x), law.log_prob(x)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    x[5] = 1e200  # its square is not finite
    score, _ = on_tiles(law, x, by_hand)
    assert score.isfinite().all(1).logical_not().nonzero().tolist() == [[5]]
    x[:] = 1e200  # no weight of the tile is a number
    assert not on_tiles(law, x, by_hand)[0].isfinite().any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_chains_too_far_to_score_diverge(kind, generator):
    law, x0 = far_apart(kind, 64, generator)
    far = torch.cat([x0, x0[:6], torch.full((1, 3), 1e200)])
    assert fused.run(ULA(1e-3), law, far, 2).divergences.tolist() == [0] * 70 + [2]
    out = torch.full((17, 3), 1e153)  # the step from there leads to where no weight is a number
    assert law.score(out).isfinite().all()
    assert fused.run(ULA(1e5), law, out, 2).divergences.tolist() == [2] * 17


# ---------------------------------------------------------------------------- known targets

FEATURES = torch.randn(10, 7, generator=torch.Generator().manual_seed(1))
LABELS = (torch.arange(10) % 3 == 0).double()
# no parameter is 1, and no two of one density are equal: that would hide a slip
KNOWN = {
    "banana": densities.Banana(0.4, 1.3, 0.7, 0.6),
    "funnel": densities.Funnel(5, 1.4),
    "ring": densities.Ring(1.7, 0.3),
    "double well": densities.DoubleWell(3, 0.6, 2.1, -0.4),
    "line": densities.DoubleWell(1),
    "many wells": densities.ManyWell(6, densities.DoubleWell(2, 0.7, 1.9, 0.3)),
    "log cosh": densities.LogCosh(3),
    "Gumbel": densities.SkewedGumbel(4),
    "logistic": densities.LogisticRegression(FEATURES, LABELS, 1.7),
}


def on_tiles(law, x, by_hand=False):
    """Score and log-density of as many points as a tile has, as the loops have them.

    By hand, Python interprets them, which takes a tenth of the time that a compiler would.
    """
    from gradlogp.langevin.fused import noise, pack

    score, constants, rows = pack.score_of(law, x)
    score = score.py_func if by_hand else score
    columns = x.mT.contiguous().numpy()
    s, log_p = torch.empty_like(x.mT).contiguous(), torch.empty(len(x), dtype=x.dtype)
    work = torch.empty(rows, len(x), dtype=x.dtype).numpy()
    w = {noise.VECTOR * len(w): w for w in (noise.NARROW, noise.WIDE)}[len(x)]
    with np.errstate(all="ignore"):
        score(w, constants, columns, s.numpy(), log_p.numpy(), work, True)
    return s.mT, log_p


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KNOWN, "mixture"])
@pytest.mark.parametrize("kernel", [ULA(0.01), LeimkuhlerMatthews(0.01), MALA(0.05), BAOAB(0.05)])
def test_few_chains_are_those_among_many(name, kernel, generator):
    """Tiles of few chains are narrower; what they compute is the same to the bit."""
    law = DIAGONAL if name == "mixture" else KNOWN[name]
    x0 = torch.randn(70, law.event_shape[0], generator=generator).float()
    many = fused.run(kernel, law, x0, 9, seed=2)
    few = fused.run(kernel, law, x0[:16], 9, seed=2)
    assert torch.equal(many.draws[:16], few.draws)
    assert same([v[:16] for v in many.info], few.info)
    assert same([v[:16] for v in many.state], few.state)


@pytest.mark.parametrize("name", KNOWN)
def test_known_targets_have_the_score_and_log_density_of_pytorch(name, generator):
    """What a compiler makes of them is looked at in single precision."""
    law = KNOWN[name]
    x = 1.5 * torch.randn(16, law.event_shape[0], generator=generator)
    x[0] = 0.0  # the centre of the ring
    score, log_p = on_tiles(law, x, by_hand=True)
    close = torch.testing.assert_close
    close(score, law.score(x), rtol=1e-10, atol=1e-10)
    close(log_p, law.log_prob(x), rtol=1e-10, atol=1e-10)
    assert fused.supports(MALA(0.1), law, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_known_targets_in_single_precision(name, generator):
    law = KNOWN[name]
    x = torch.randn(64, law.event_shape[0], generator=generator)
    score, log_p = on_tiles(law, x.float())
    torch.testing.assert_close(score.double(), law.score(x), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(log_p.double(), law.log_prob(x), rtol=2e-5, atol=2e-5)


def test_exponentials_and_logarithms_over_the_whole_range():
    """In units of the last place; what overflows is infinite, and NaN stays."""
    from gradlogp.langevin.fused.noise import exp32, log32

    x = torch.linspace(-86.9, 88.2, 5001, dtype=torch.float32)
    e = torch.tensor([exp32(v) for v in x.numpy()], dtype=torch.float64)
    assert (e / x.double().exp() - 1).abs().max() < 3 * 2**-23
    back = torch.tensor([log32(v) for v in x.double().exp().float().numpy()])
    assert (back - x).abs().max() < 1e-5
    odd = torch.tensor([-math.inf, -200.0, 200.0, math.inf, math.nan], dtype=torch.float32)
    assert [float(exp32(v)) for v in odd.numpy()[:4]] == [0, 0, math.inf, math.inf]
    assert math.isnan(exp32(odd.numpy()[4]))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [
    ULA(0.01), LeimkuhlerMatthews(0.01), MALA(0.02), BAOAB(0.05),
], ids=lambda kernel: type(kernel).__name__)  # fmt: skip
@pytest.mark.parametrize("name", ["banana", "funnel", "ring", "many wells", "logistic"])
def test_known_targets_move_as_in_the_plain_engine(name, kernel, generator):
    law, n = KNOWN[name], 20_000
    if name == "logistic":
        x0 = torch.randn(n, 7, generator=generator)
    else:
        x0 = law.sample(n, generator=generator)
    ours = fused.run(kernel, law, x0, 5, 4, seed=3).state
    state, _ = plain(kernel, law, x0, 5, generator)
    torch.testing.assert_close(ours.score, law.score(ours.x), rtol=1e-9, atol=1e-9)
    # what a step changes, so that the spread of x0 does not hide it
    for f in (lambda x: x - x0, lambda x: (x - x0) ** 2, lambda x: x**2 - x0**2):
        a, b = f(ours.x), f(state.x)
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * error).all())


# ---------------------------------------------------------------------------- as an engine of run


def test_where_matrix_products_are_faster():
    eye = torch.eye(20) + 0.1
    full = GaussianMixture([0.5, 0.5], torch.zeros(2, 20), eye.repeat(2, 1, 1))
    few, many, wide = torch.zeros(15, 20), torch.zeros(16, 20), torch.zeros(100, 65)
    assert (
        fused.slower(full, few)
        == "15 chains in 20 dimensions with full covariances are faster there"
    )
    assert fused.slower(full, many) is None
    assert fused.slower(Gaussian(torch.zeros(65), torch.eye(65) + 0.1), wide) is not None
    assert fused.slower(Gaussian(torch.zeros(65), torch.ones(65)), wide) is None
    assert fused.slower(densities.LogCosh(65), wide) is None
    regression = densities.LogisticRegression(torch.ones(3, 20), torch.ones(3))
    assert "of a regression" in fused.slower(regression, few)
    assert fused.slower(regression, many) is None


@pytest.mark.parametrize("target", ["function", pytest.param("law", marks=pytest.mark.slow)])
def test_run_hands_over_and_falls_back(target, logged, monkeypatch, request):
    from gradlogp import langevin as chains
    from gradlogp.langevin.run import engines

    law = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0]))
    x0 = law.sample(3000, generator=torch.Generator().manual_seed(0)).float()
    if target == "function":
        request.getfixturevalue("narrow")
        law, x0 = as_target(log_prob=law.log_prob), x0.double()
    seed = lambda: torch.Generator().manual_seed(1)
    chain = chains.run(ULA(0.2), law, x0, 60, 40, 4, generator=seed(), engine="fused")
    assert chain.draws.shape == (3000, 5, 2)
    assert chain.info.diverging.shape == (3000, 5)
    assert chain.step_size == 0.2
    assert chain.resume["engine"] == "fused"
    exact = torch.tensor([0.5, 2.0]) / (1 - 0.1 / torch.tensor([0.5, 2.0]))
    last = chain.draws[:, -1].double()
    assert ((last.var(0) / exact - 1).abs() < 5 * math.sqrt(2 / 3000)).all()
    again = chains.run(ULA(0.2), law, x0, 60, 40, 4, generator=seed(), engine="fused")
    assert torch.equal(chain.draws, again.draws)

    short = chains.run(ULA(0.2), law, x0[:3], 5, generator=seed(), engine="auto")
    other = chains.run(NUTS(0.2), law, x0[:3], 5, generator=seed(), engine="auto")
    monkeypatch.setattr(engines, "LEAST_STEPS", 0)
    chains.run(NUTS(0.2), law, x0[:3], 5, generator=seed(), engine="auto")
    assert any("compiling would take longer" in line for line in logged)
    assert any("not NUTS" in line for line in logged)
    torch.testing.assert_close(
        short.draws, chains.run(ULA(0.2), law, x0[:3], 5, generator=seed()).draws
    )
    assert other.draws.shape == (3, 5, 2)
    monkeypatch.setattr(engines, "WORTH", 0.0)
    monkeypatch.setattr(engines, "LEAST_STEPS", 0)
    auto = chains.run(ULA(0.2), law, x0, 60, 40, 4, generator=seed(), engine="auto")
    assert torch.equal(auto.draws, chain.draws)


@pytest.mark.usefixtures("as_user")
def test_run_refuses_what_the_engine_cannot_do(tmp_path):
    from gradlogp import langevin as chains

    x0 = torch.zeros(3, 2)
    for kernel, options, message in (
        (NUTS(0.1), {}, "cannot run this: .*not NUTS"),
        (ULA(0.1), {"keep": tmp_path / "x.npy"}, "keeps draws in memory"),
        (ULA(0.1), {"adapt": True, "burn_in": 2}, "cannot adapt"),
    ):
        with pytest.raises(ValueError, match=message):
            chains.run(kernel, DIAGONAL, x0, 5, engine="fused", **options)
    with pytest.raises(ValueError, match="engine must be 'auto', 'torch' or 'fused', got 'jax'"):
        chains.run(ULA(0.1), DIAGONAL, x0, 5, engine="jax")


def test_without_numba_auto_falls_back_and_fused_says_how_to_install(monkeypatch):
    from gradlogp import langevin as chains
    from gradlogp.langevin.fused import api

    monkeypatch.setattr(api, "find_spec", lambda name: None)
    x0 = torch.zeros(3, 2)
    assert chains.run(ULA(0.1), DIAGONAL, x0, 5, engine="auto").draws.shape == (3, 5, 2)
    with pytest.raises(ValueError, match="pip install"):
        chains.run(ULA(0.1), DIAGONAL, x0, 5, engine="fused")
