"""Noise, protocols and derivatives in time: the ground that everything else stands on."""

import math
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from support import close, seeded

import gradlogp as glp
from gradlogp.core import (
    BLOCK,
    Estimate,
    Injected,
    NoiseSource,
    Streams,
    block_of,
    check_batch,
    check_same_shape,
    choice,
    chunks,
    distances,
    mean_and_error,
    neighbours,
    new_seed,
    per_sample,
    permutation,
    proportion,
    rand_like,
    randn_like,
    randomness,
    sum_event,
)
from gradlogp.core.protocols import derivatives
from gradlogp.noise.schedules import VP

# ---------------------------------------------------------------------------- streams


TOTAL = 2 * BLOCK + 300
CHUNKINGS = [
    [0, TOTAL],
    [0, BLOCK, 2 * BLOCK, TOTAL],
    [0, 1, 700, BLOCK + 5, TOTAL - 1, TOTAL],
    [*range(0, TOTAL, 511), TOTAL],
]


def draws(cuts, seed=11, block=BLOCK):
    """Three draws in a row, of different laws, shapes and types, chunk by chunk."""
    parts = [[], [], []]
    for start, stop in pairwise(cuts):
        streams = Streams(seed, start, stop, cuts[-1], block=block)
        n = stop - start
        parts[0].append(randn_like(torch.empty(n, 3), streams))
        parts[1].append(rand_like(torch.empty(n, 2, 2, dtype=torch.float32), streams))
        parts[2].append(randn_like(torch.empty(n), streams))
    return [torch.cat(p) for p in parts]


@pytest.mark.parametrize("cuts", CHUNKINGS[1:], ids=["blocks", "odd", "even"])
def test_noise_does_not_depend_on_the_chunks(cuts):
    for whole, chunked in zip(draws(CHUNKINGS[0]), draws(cuts), strict=True):
        assert torch.equal(whole, chunked)


@pytest.mark.parametrize(("cuts", "block"), [((0, 7, 60), 60), ((0, 7, 60), 61), ((0, 7, 60), 13)])
def test_nor_where_blocks_are_small_or_there_is_only_one(cuts, block):
    """One block of all chains is drawn at once, also if a chunk has only some of them."""
    for whole, chunked in zip(draws((0, 60), block=block), draws(cuts, block=block), strict=True):
        assert torch.equal(whole, chunked)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    inner=st.sets(st.integers(1, 79), max_size=6), total=st.integers(1, 80),
    block=st.integers(1, 90), d=st.integers(1, 12), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_nor_for_any_chunks_blocks_and_dimensions(inner, total, block, d, seed):
    cuts = [0, *sorted(i for i in inner if i < total), total]
    parts, again = [], []
    for start, stop in pairwise(cuts):
        streams = Streams(seed, start, stop, total, block=block)
        parts.append(randn_like(torch.empty(stop - start, d), streams))
        again.append(rand_like(torch.empty(stop - start), streams))
    whole = Streams(seed, 0, total, total, block=block)
    assert torch.equal(torch.cat(parts), randn_like(torch.empty(total, d), whole))
    assert torch.equal(torch.cat(again), rand_like(torch.empty(total), whole))


def test_blocks_have_as_many_numbers_whatever_an_event_is():
    shapes = [(), (1,), (2,), (8,), (32,), (28, 28), (3, 512, 512)]
    assert [block_of(torch.Size(s)) for s in shapes] == [32768, 32768, 16384, 4096, 1024, 32, 16]
    assert block_of(torch.Size([28, 28]), "cuda") == 1024
    with pytest.raises(ValueError, match="block must be an integer of at least 1, got 0"):
        Streams(0, 0, 3, 3, block=0)


@pytest.mark.parametrize("piece", [1, 50, 100, 1000])
@pytest.mark.parametrize("block", [25, 60])
def test_large_rows_are_drawn_piece_by_piece(block, piece, monkeypatch):
    """A chunk with a part of a block holds no more of it than a piece, and gets the same noise."""
    monkeypatch.setattr(randomness, "PIECE", piece)
    parts = [
        randn_like(torch.empty(stop - start, 13), Streams(3, start, stop, 60, block=block))
        for start, stop in pairwise((0, 7, 24, 25, 26, 60))
    ]
    whole = randn_like(torch.empty(60, 13), Streams(3, 0, 60, 60, block=block))
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) == whole.numel()


@pytest.mark.parametrize("block", [10, 4])
def test_chains_of_few_dimensions_are_contiguous(block):
    for d in (1, 2, 8):
        z = randn_like(torch.empty(10, d), Streams(0, 0, 10, 10, block=block))
        assert z.shape == (10, d)
        assert z.mT.is_contiguous()
    assert randn_like(torch.empty(10, 9), Streams(0, 0, 10, 10, block=block)).is_contiguous()


def test_noise_of_the_chains_is_distinct_and_has_its_law():
    z, u, _ = draws([0, TOTAL])
    assert u.dtype == torch.float32
    assert len(z.flatten().unique()) == z.numel()
    assert not torch.equal(z, draws([0, TOTAL], seed=12)[0])
    values = z.flatten()
    assert abs(float(values.mean()) * values.numel() ** 0.5) < 4.5
    assert abs(float(values.square().mean() - 1) * (values.numel() / 2) ** 0.5) < 4.5
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(float(u.mean() - 0.5) * (12 * u.numel()) ** 0.5) < 4.5
    # blocks are independent: the correlation of the first two is 0 within its error
    a, b = z[:BLOCK].flatten(), z[BLOCK : 2 * BLOCK].flatten()
    assert abs(float((a * b).mean()) * len(a) ** 0.5) < 4.5


def test_nearby_seeds_give_different_blocks():
    """Block k of seed s must not be block k' of seed s', which a plain seed + block would make so."""
    like = torch.empty(2 * BLOCK, 1)
    one, two = (randn_like(like, Streams(s, 0, 2 * BLOCK, 2 * BLOCK)) for s in (5, 6))
    assert not torch.equal(one[BLOCK:], two[:BLOCK])
    assert len(torch.cat([one, two]).unique()) == 4 * BLOCK


def test_streams_of_every_chunk():
    streams = Streams.split(11, TOTAL, 511)
    assert [(s.start, s.stop) for s in streams] == [
        (i, min(i + 511, TOTAL)) for i in range(0, TOTAL, 511)
    ]
    z = torch.cat([randn_like(torch.empty(s.stop - s.start, 3), s) for s in streams])
    assert torch.equal(z, draws([0, TOTAL])[0])


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5), (0, 11), (10, 11)])
def test_streams_refuse_chains_that_are_not_there(start, stop):
    with pytest.raises(ValueError, match=rf"chains \[{start}, {stop}\) are not within the 10"):
        Streams(0, start, stop, 10)


def test_streams_refuse_noise_for_other_chains():
    with pytest.raises(ValueError, match="serve 4 chains, but noise for 5 was requested"):
        randn_like(torch.empty(5, 2), Streams(0, 2, 6, 10))


# ---------------------------------------------------------------------------- draws


@pytest.mark.parametrize("draw", [randn_like, rand_like])
def test_draws_are_reproducible_and_follow_the_input(draw):
    x = torch.empty(4, 3, dtype=torch.float32)
    before = torch.get_rng_state()
    a, b = draw(x, seeded(3)), draw(x, seeded(3))
    assert torch.equal(a, b)
    assert a.dtype == torch.float32
    assert a.shape == x.shape
    assert not torch.equal(a, draw(x, seeded(4)))
    assert torch.equal(before, torch.get_rng_state())
    g = seeded(3)
    assert not torch.equal(draw(x, g), draw(x, g))  # and the generator moves on
    torch.manual_seed(7)
    a = draw(x)
    torch.manual_seed(7)
    assert torch.equal(a, draw(x))


def test_choice(generator):
    weights = torch.tensor([1.0, 0.0, 3.0, 6.0])  # need not sum to 1
    k = choice(weights, 40_000, generator)
    p = weights / 10
    z = (k.bincount(minlength=4) / 40_000 - p) / (p * (1 - p) / 40_000).sqrt().clamp(min=1e-12)
    assert z.abs().max() < 4.5
    assert torch.equal(choice(weights, 9, seeded(1)), choice(weights, 9, seeded(1)))


def test_permutation(generator):
    assert torch.equal(permutation(50, generator).sort().values, torch.arange(50))
    assert torch.equal(permutation(50, seeded(1)), permutation(50, seeded(1)))
    assert not torch.equal(permutation(50, seeded(1)), permutation(50, seeded(2)))
    where = torch.stack([permutation(4, generator) for _ in range(4000)]).double()
    assert ((where.mean(0) - 1.5) / (1.25 / 4000) ** 0.5).abs().max() < 4.5


def test_new_seed():
    assert new_seed(seeded(1)) == new_seed(seeded(1))
    g = seeded(1)
    assert len({new_seed(g) for _ in range(20)}) == 20
    assert all(0 <= new_seed(g) < 2**62 for _ in range(20))
    torch.manual_seed(0)
    first = new_seed(None)
    torch.manual_seed(0)
    assert new_seed(None) == first


# ---------------------------------------------------------------------------- shapes


@pytest.mark.usefixtures("as_user")
def test_check_batch():
    check_batch(torch.zeros(2, 3))
    check_batch(torch.zeros(0, 3, 4), torch.Size([3, 4]))
    for x, match in (
        ([[0.0]], "x must be a torch.Tensor, got list"),
        (torch.zeros(2, 3).int(), r"floating point, got torch.int32; convert it with \.float\(\)"),
        (torch.zeros(3), r"x must have shape \(B, \*event\), got \(3,\)"),
        (torch.tensor(1.0), r"x must have shape \(B, \*event\), got \(\)"),
    ):
        with pytest.raises(ValueError, match=match):
            check_batch(x)
    for x in (torch.zeros(4, 3), torch.zeros(3, 4), torch.zeros(2, 3, 4, 1)):
        with pytest.raises(ValueError, match=r"y must have shape \(B, 3, 4\)"):
            check_batch(x, torch.Size([3, 4]), "y")


def test_check_same_shape():
    check_same_shape(torch.zeros(2, 3), torch.ones(2, 3), "f")
    for out in (torch.zeros(2, 1), torch.zeros(3), torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match=r"f returned shape .* for x of \(2, 3\)"):
            check_same_shape(out, torch.zeros(2, 3), "f")


@pytest.mark.usefixtures("as_user")
def test_per_sample():
    x = torch.ones(4, 2, 3)
    t = torch.tensor([1.0, 2.0, 3.0, 4.0])
    product = per_sample(t, x) * x
    for i in range(4):
        assert (product[i] == i + 1).all()
    assert per_sample(2, x).shape == per_sample(torch.tensor(2.0), x).shape == ()
    assert per_sample(t, x.float()).dtype == torch.float32
    # a batch as long as an event dimension is not broadcast along the wrong one
    square = torch.ones(3, 3)
    assert torch.equal(per_sample(t[:3], square) * square, t[:3, None].expand(3, 3))
    for value in (t[:3], t[:1], t[:, None], torch.ones(4, 2, 3)):
        with pytest.raises(ValueError, match=r"sigma must have shape \(\) or \(4,\), got"):
            per_sample(value, x, "sigma")


def test_sum_event():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert sum_event(x).tolist() == [66.0, 210.0]
    assert sum_event(torch.ones(5, 1)).shape == (5,)


def test_mean_and_error():
    value, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float32))
    assert value == 3.0
    assert error == pytest.approx(math.sqrt(14 / 3) / 2, rel=1e-14)  # n − 1 below the squares
    assert mean_and_error(torch.tensor([3.0]))[0] == 3.0
    assert math.isnan(mean_and_error(torch.tensor([3.0]))[1])  # one number has no error bar
    assert str(Estimate(1.23456, 0.0123)) == "1.235 ± 0.012"


# ---------------------------------------------------------------------------- given noise


def test_injected_noise_comes_in_order_and_in_the_dtype_of_its_place():
    one, two = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    noise = Injected(one, two)
    like = torch.empty(2, 3, dtype=torch.float32)
    z = randn_like(like, noise)
    assert z.dtype == torch.float32
    assert torch.equal(z, one.float())
    assert noise.left == [two]
    assert torch.equal(rand_like(like[:, 0].double(), noise), two)
    assert noise.left == []
    with pytest.raises(ValueError, match="none is left"):
        randn_like(like, noise)


def test_injected_noise_of_another_shape_is_refused_and_kept():
    noise = Injected(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"noise \(2, 3\) was requested .* has shape \(3, 2\)"):
        randn_like(torch.empty(2, 3), noise)
    assert len(noise.left) == 1


def test_noise_sources_are_what_draws_and_nothing_else(as_user):
    assert isinstance(Injected(), NoiseSource)
    assert isinstance(Streams(0, 0, 1, 1), NoiseSource)
    assert not isinstance(torch.Generator(), NoiseSource)
    with pytest.raises(ValueError, match=r"got int: pass torch.Generator\(\)"):
        randn_like(torch.empty(2), 3)


def test_noise_of_the_callers_serves_one_chunk():
    x, noise = torch.empty(3, 2), Injected()
    assert list(chunks(x, None, noise)) == [(slice(0, 3), noise)]
    with pytest.raises(ValueError, match="serves one chunk"):
        next(chunks(x, 2, noise))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_distances_do_not_cancel(dtype):
    """3-4-5 triangles over an event, far from the origin, more rows than `torch.cdist` takes apart."""
    far = 2.0 ** {torch.float64: 40, torch.float32: 20, torch.bfloat16: 5, torch.float16: 8}[dtype]
    steps = torch.tensor([[[0.0], [0.0]], [[3.0], [4.0]]], dtype=dtype).repeat(20, 1, 1) + far
    found = distances(steps, steps[:3])
    assert found.dtype == dtype
    assert torch.equal(found[:2], torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 5.0]], dtype=dtype))
    assert torch.equal(found, found[:2].repeat(20, 1))
    if dtype in (torch.float64, torch.float32):  # the expansion has lost them
        assert (torch.cdist(steps[:, :, 0], steps[:, :, 0]) - 5).abs().min() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("where", ["spread", "clustered", "far", "few", "copied"])
def test_nearest_points_are_those_of_all_distances(where, dtype, generator, monkeypatch):
    """Products of matrices propose them; where rounding hides them, all distances are computed."""
    x, y = (torch.randn(n, 5, 4, generator=generator) for n in (40, 90))
    if where == "clustered":  # of points so close that products do not tell them apart
        y = (1e4 if dtype is torch.float16 else 1e9) * y[:3].repeat(30, 1, 1) + y
        x = y[:40] + x
    if where == "far":
        x, y = x + 2**9, y + 2**9
    if where == "few":
        x, y = x[..., :1], y[..., :1]
    if where == "copied":
        y[45:] = y[:45]
        x[:30] = y[:30]
    x, y = x.to(dtype), y.to(dtype)
    full, looks = distances(x, y), []
    module = import_module("gradlogp.core.chunks")
    real = module._distances
    monkeypatch.setattr(module, "_distances", lambda *a: looks.append(a) or real(*a))
    for k, copies in ((1, True), (1, False), (3, True)):
        looks.clear()
        value, index = neighbours(x, y, k, copies=copies)
        wanted = full if copies else full.masked_fill(full == 0, torch.inf)
        assert value.dtype == dtype
        assert torch.equal(value, wanted.sort(1).values[:, :k])
        assert torch.equal(full.gather(1, index)[value < torch.inf], value[value < torch.inf])
        all_pairs = sum(len(a) * len(b) for a, b in looks if b.ndim == 2)
        if where == "spread":
            assert all_pairs == 0
        if where == "few" or (where == "clustered" and dtype is not torch.float16):
            assert all_pairs > 1000


def test_a_proportion_has_a_binomial_error_that_is_never_0():
    assert proportion(20, 100) == Estimate(0.2, 0.04)
    assert proportion(80, 100).standard_error == pytest.approx(0.04)
    assert proportion(0, 50) == Estimate(0.0, 0.02)
    assert proportion(50, 50) == Estimate(1.0, 0.02)
    for successes, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=r"successes must lie in|n must be an integer"):
            proportion(successes, n)


def pair(t):
    return torch.sin(3 * t), torch.ones_like(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_a_constant(dtype):
    t = torch.tensor([0.1, 0.7], dtype=dtype)
    first, second = derivatives(pair, t)
    close(first, 3 * torch.cos(3 * t), 1e-6)
    assert torch.equal(second, torch.zeros_like(t))
    assert first.dtype == second.dtype == dtype
    number = derivatives(pair, torch.tensor(0.1, dtype=dtype))[0]
    assert (number.shape, number.dtype) == ((), dtype)


def test_within_every_mode():
    t = torch.tensor([0.2, 0.9])
    expected = 3 * torch.cos(3 * t)
    with torch.no_grad():
        close(derivatives(pair, t)[0], expected, 1e-12)
    with torch.inference_mode():
        close(derivatives(pair, t.clone())[0], expected, 1e-12)
    close(torch.func.vmap(lambda u: derivatives(pair, u)[0])(t), expected, 1e-12)
    first = lambda u: derivatives(pair, u)[0]
    close(torch.func.jvp(first, (t,), (torch.ones(2),))[0], expected, 1e-12)


def test_second_derivative():
    t = torch.tensor(0.3, requires_grad=True)
    first, _ = derivatives(pair, t)
    close(torch.autograd.grad(first, t)[0], -9 * math.sin(0.9), 1e-12)
    beta = -2 * VP().f(t)  # linear in t
    close(torch.autograd.grad(beta, t)[0], 19.9, 1e-9)


SOURCES = sorted((Path(__file__).parents[2] / "src" / "gradlogp").rglob("*.py"))


def test_a_wrong_shape_is_caught_by_the_signature():
    model = glp.ScoreModel(glp.MLP(2), glp.schedules.VE())
    with pytest.raises(TypeCheckError):
        model.forward(torch.zeros(3, 2).long(), torch.tensor(0.5))
    with pytest.raises(TypeCheckError):
        glp.Gaussian([0.0, 0.0]).log_prob(torch.zeros(2))  # (D,) for (B, D)
    with pytest.raises(TypeCheckError):
        glp.objectives.multilevel(model, torch.zeros(3, 2), torch.zeros(4))


def test_shape_strings_are_strings():
    """A formatter that unquotes them turns them into names that mean nothing."""
    for path in SOURCES:
        assert not re.findall(r"(?:Float|Int|Bool)\[Tensor, [^\"\s]", path.read_text()), path
