"""Rows of datasets with workers, and rows that a function changes: the run of a tensor, bit for bit."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from support import seeded
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import gradlogp as glp
from gradlogp.core import Processes, rand_like
from gradlogp.learn.feed import Feed
from gradlogp.learn.mapped import Mapped
from gradlogp.noise.schedules import VP

QUICK = {"steps": 16, "batch_size": 32, "ema": 0.9}


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
    """Frame, order, losses, weights; what it is held against is measured alike, too."""
    a, b = make(), make()
    held = points(40)
    assert train(a, points(), held_out=held) == train(b, wrap(points()), held_out=wrap(held))
    same(a, b)


@pytest.mark.parametrize("stop", [1, 5])
def test_what_items_draw_depends_neither_on_workers_nor_on_a_stop(tmp_path, stop):
    whole, first, second = make(), make(), make(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    losses = train(whole, Jittered(points()))
    loader = DataLoader(Jittered(points()), num_workers=2, prefetch_factor=2)
    run = glp.fit(first, loader, checkpoint=tmp_path / "a", generator=seeded(7), **QUICK)
    assert [next(run).loss for _ in range(stop)] == losses[:stop]
    run.close()
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
