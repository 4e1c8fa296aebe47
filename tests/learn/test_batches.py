"""Mini-batches: the order, the rows, and what is refused."""

import numpy as np
import pytest
import torch
from support import seeded

from gradlogp.learn.batches import Batches, check_data, rows
from gradlogp.noise import coordinates

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


@pytest.mark.parametrize("before", [0, 1, 3, 7])
def test_order_goes_on_from_a_state(before):
    order = Batches(10, 3, seeded(0))
    for _ in range(before):
        order.next()
    state = order.state()
    ahead = [order.next() for _ in range(8)]
    other = Batches(10, 3, seeded(99))
    for target in (other, order):  # in another object, and back in the same
        target.restore(state)
        assert all(torch.equal(target.next(), index) for index in ahead)


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
