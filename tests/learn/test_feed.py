"""Mini-batches, datasets with workers, rows that a function changes: one run, bit for bit."""

import multiprocessing
import random
from typing import Any

import numpy as np
import pytest
import torch
from support import seeded
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import gradlogp as glp
from gradlogp.core import Processes, rand_like
from gradlogp.interfaces.conditions import divided
from gradlogp.learn.batches import Batches, check_data, rows
from gradlogp.learn.feed import Feed
from gradlogp.learn.mapped import Mapped
from gradlogp.noise import coordinates
from gradlogp.noise.schedules import VP

QUICK = {"steps": 10, "batch_size": 32, "ema": 0.9}


def points(n=100):
    return torch.randn(n, 2, generator=seeded(1)) * torch.tensor([2.0, 0.5]) + 3


def make(seed=0):
    return glp.ScoreModel(glp.MLP(2, 8, 1, generator=seeded(seed)), VP())


def train(model, data, **options):
    seed = options.pop("seed", 7)
    return [r.loss for r in glp.fit(model, data, generator=seeded(seed), **(QUICK | options))]


def same(a, b):
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


class Jittered(Dataset[Any]):
    """Rows that are moved at random, with all the global generators that datasets draw from."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.rand(2) + 0.1 * np.random.rand() + 0.1 * random.random(), i  # noqa: NPY002


# ---------------------------------------------------------------------------- datasets


@pytest.mark.parametrize(
    "wrap",
    [
        TensorDataset,
        lambda x: TensorDataset(x, torch.arange(len(x))),
        lambda x: DataLoader(TensorDataset(x), num_workers=2, batch_size=5, shuffle=True),
        lambda x: DataLoader(TensorDataset(x), batch_size=5),
    ],
    ids=["dataset", "pairs", "workers", "loader"],
)
def test_a_dataset_gives_the_run_of_its_tensor(wrap):
    """Frame, order, losses, weights, but for rounding: a tensor's steps are prepared together."""
    a, b = make(), make()
    held = points(40)
    ours, theirs = train(b, wrap(points()), held_out=wrap(held)), train(a, points(), held_out=held)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(b.state_dict(), a.state_dict(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("stop", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_what_items_draw_depends_neither_on_workers_nor_on_a_stop(tmp_path, stop):
    whole, first, second = make(), make(), make(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    losses = train(whole, Jittered(points()))
    loader = DataLoader(Jittered(points()), num_workers=2, prefetch_factor=2)
    run = glp.fit(first, loader, checkpoint=tmp_path / "a", generator=seeded(7), **QUICK)
    assert [next(run).loss for _ in range(stop)] == losses[:stop]
    run.close()
    assert not multiprocessing.active_children()  # nobody waits for workers later
    options = {"checkpoint": tmp_path / "a", "resume": True, "seed": 99}
    assert train(second, Jittered(points()), **options) == losses[stop:]
    same(second, whole)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002


def test_items_draw_anew_in_every_step_and_place():
    """Else one row would be moved alike whenever it comes, or all rows of a batch alike."""
    rows = Mapped(Jittered(torch.zeros(3, 2)))
    state = random.getstate()
    rows.dataset[0, 5]
    assert random.getstate() == state
    orders = [(step, torch.tensor([0, 1, 0]), slice(None)) for step in (1, 2)]
    found = torch.cat(list(rows.batches(iter(orders), 0)))
    assert len(found.flatten().unique()) == found.numel()
    again = torch.cat(list(rows.batches(iter(orders), 1)))
    assert not (found == again).any()
    assert torch.equal(rows[:], rows[torch.arange(3)])  # outside of steps they stay the same
    assert len(rows[:0]) == 0


def test_the_size_of_batches_is_that_of_the_settings_or_of_the_loader(tmp_path):
    for size, expected in ((None, 5), (20, 20)):
        loader = DataLoader(TensorDataset(points()), batch_size=5)
        records = glp.fit(make(), loader, steps=1, batch_size=size, checkpoint=tmp_path / "a")
        list(records)
        state = torch.load(tmp_path / "a" / "training.pt", weights_only=True)
        assert state["batches"]["position"] == expected


def test_datasets_that_are_refused(as_user):
    class Stream(IterableDataset[Any]):
        def __iter__(self):
            return iter(points())

    class Named(Jittered):
        def __getitem__(self, i):
            return {"x": self.x[i]}

    with pytest.raises(ValueError, match=r"data must be indexable: .* got Stream"):
        train(make(), Stream())
    with pytest.raises(ValueError, match="collated they are dict"):
        train(make(), Named(points()))
    with pytest.raises(ValueError, match=r"data must have shape \(N, 2\), got \(100, 3\)"):
        train(make(), TensorDataset(torch.zeros(100, 3)))


# ---------------------------------------------------------------------------- a function


def mirror(x, generator):
    """Flip half of the rows."""
    heads = rand_like(x[:, :1], generator) < 0.5
    return torch.where(heads, -x, x)


def test_a_function_changes_batches_in_the_units_of_the_data():
    """Learned from one half plane, the law has the other, too; the frame is that of the data."""
    x, seen = points(), []

    def spy(rows, generator):
        seen.append(rows.clone())
        return mirror(rows, generator)

    model = make()
    train(model, x, augment=spy, standardize=True, held_out=points(40))
    torch.testing.assert_close(model.coordinates.shift, x.mean(0), rtol=1e-12, atol=0)
    rows = torch.cat(seen[:3])
    assert len(rows) == 96  # an epoch: each row once, as it is
    assert {tuple(r) for r in rows.tolist()} <= {tuple(r) for r in x.tolist()}
    assert train(make(), x) == train(make(), x, augment=lambda rows, generator: rows)
    assert train(make(), x, augment=mirror) != train(make(), x)


def test_a_function_goes_on_where_it_was(tmp_path):
    whole, first, second = make(), make(), make(3)
    losses = train(whole, points(), augment=mirror)
    run = glp.fit(
        first, points(), augment=mirror, checkpoint=tmp_path / "a", generator=seeded(7), **QUICK
    )
    assert [next(run).loss for _ in range(5)] == losses[:5]
    run.close()
    options = {"checkpoint": tmp_path / "a", "resume": True, "seed": 99}
    with pytest.raises(ValueError, match="made with augment="):
        train(second, points(), **options)
    assert train(second, points(), augment=mirror, **options) == losses[5:]
    same(second, whole)


def test_a_function_sees_the_whole_batch_in_every_process():
    """So that the parts of all processes are one batch, whatever their number."""
    feeds = [
        Feed(make(), points(), 32, mirror, Processes(rank, size), 0)
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]
    for step in range(1, 5):
        whole, first, second = (feed.next(step)[0] for feed in feeds)
        assert torch.equal(torch.cat([first, second]), whole)


def test_functions_that_are_refused(as_user):
    with pytest.raises(ValueError, match=r"augment returned shape \(32, 1\)"):
        train(make(), points(), augment=lambda x, generator: x[:, :1])
    with pytest.raises(ValueError, match="augment must be a function"):
        train(make(), points(), augment="flip")
    with pytest.raises(ValueError, match="augment must be a function of 2 arguments"):
        train(make(), points(), augment=lambda x: x)


D2 = torch.Size([2])


# ---------------------------------------------------------------------------- order


def test_every_row_once_an_epoch_in_another_order_each_time():
    order = Batches(12, 4, seeded(0))
    epochs = [torch.cat([order.next() for _ in range(3)]) for _ in range(5)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


def test_a_smaller_last_batch_is_left_out_and_no_row_is_left_out_for_ever():
    order = Batches(10, 4, seeded(0))
    seen = set()
    for _ in range(20):
        epoch = torch.cat([order.next(), order.next()])
        assert len(set(epoch.tolist())) == 8
        seen |= set(epoch.tolist())
    assert seen == set(range(10))


def test_first_row_is_uniform():
    # 6000 shuffles of 6 rows: each first with 1000 +- 29
    first = torch.stack([Batches(6, 1, g).next()[0] for g in [seeded(1)] for _ in range(6000)])
    assert (torch.bincount(first, minlength=6) - 1000).abs().max() < 5 * 29


def test_batches_larger_than_the_data_are_the_data():
    order = Batches(5, 256, seeded(0))
    assert sorted(order.next().tolist()) == sorted(order.next().tolist()) == list(range(5))


def test_an_epoch_goes_on_from_a_state_that_does_not_hold_its_order(monkeypatch):
    """Whatever the dtype in which many rows are numbered."""
    monkeypatch.setattr("gradlogp.core.randomness.MANY_ROWS", 10**9)
    plain = Batches(10, 3, seeded())
    whole = [plain.next() for _ in range(12)]
    monkeypatch.setattr("gradlogp.core.randomness.MANY_ROWS", 5)
    for n in range(11):  # within an epoch, and at its end
        batches, other = Batches(10, 3, seeded()), Batches(10, 3, seeded(7))
        assert batches.order.dtype == torch.int32
        for _ in range(n):
            batches.next()
        state = batches.state()
        assert max(torch.as_tensor(v).numel() for v in state.values()) == len(plain.began)
        for index in whole[n:]:
            assert torch.equal(batches.next(), index)
        for target in (other, batches):  # in another object, and back in the same
            target.restore(state)
            assert all(torch.equal(target.next(), index) for index in whole[n:])


def test_many_rows_are_divided_in_the_order_in_which_they_are_read(monkeypatch):
    before = divided(1000, 100, None, seeded())
    monkeypatch.setattr("gradlogp.interfaces.conditions.MANY_ROWS", 1000)
    after = divided(1000, 100, None, seeded())
    for a, b in zip(before[:3], after[:3], strict=True):
        assert torch.equal(a.sort().values, b)
        assert not torch.equal(a, b)
    x = np.arange(2000.0).reshape(1000, 2)
    for index in (before.kept, after.kept):
        read = torch.cat([part for _, part in coordinates.pieces(coordinates.Subset(x, index))])
        assert torch.equal(read, torch.from_numpy(x)[after.kept])


# ---------------------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "u1", "i8", "?"])
def test_rows_are_the_same_from_memory_and_disk(tmp_path, kind):
    data = np.random.default_rng(0).integers(0, 2, (9, 3)).astype(kind)
    np.save(tmp_path / "x.npy", data)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    index = torch.tensor([7, 0, 7])
    like = torch.empty(0, dtype=torch.float32)
    own = torch.from_numpy(data).dtype
    for source in (data, mapped, torch.from_numpy(data)):
        got = rows(source, index, like)
        assert got.dtype == (own if own.is_floating_point else torch.float64)
        assert np.array_equal(got.numpy(), data[[7, 0, 7]])


def test_rows_of_an_array_are_a_copy():
    data = np.ones((3, 2))
    rows(data, slice(0, 2), torch.empty(0)).zero_()
    assert data.min() == 1


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("read", [1, 9, 2**23])
def test_rows_that_are_not_finite_are_counted(monkeypatch, read):
    monkeypatch.setattr(coordinates, "READ", read)
    x = torch.zeros(20, 2)
    x[4, 1], x[9, 0], x[19, 1] = float("nan"), float("inf"), -float("inf")
    x[9, 1] = float("nan")  # two in one row: one row
    for data in (x, x.numpy()):
        with pytest.raises(
            ValueError, match=r"^data has 3 of 20 rows that are not finite \(first: row 4\)"
        ):
            check_data(data, D2)
    check_data(x[10:19], D2)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 1), (), (2,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"data must have shape \(N, 2\), got \("):
        check_data(torch.zeros(shape), D2)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_samples_are_refused(n):
    with pytest.raises(
        ValueError, match=f"rows of data must be an integer of at least 2, got {n}"
    ):
        check_data(torch.zeros(n, 2), D2)


def test_data_that_cannot_be_learned_from(as_user):
    with pytest.raises(ValueError, match=r"tensor, a NumPy array or a dataset, got list"):
        check_data([[1.0, 2.0]] * 3, D2)
    for data in (
        torch.zeros(3, 2, dtype=torch.complex64),
        np.zeros((3, 2), complex),
        np.zeros((3, 2), "U2"),
        np.zeros((3, 2), object),
        np.zeros((3, 2), "M8[s]"),
    ):
        with pytest.raises(ValueError, match=r"real numbers, got dtype"):
            check_data(data, D2)
