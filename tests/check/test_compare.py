"""Rows of numbers beside their floors: right ones pass, wrong ones fail."""

import torch

import gradlogp as glp
from gradlogp.check.compare import compare, difference_row, likelihood_row

LAW = glp.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], 0.5)


def rows(samples, held_out, train, generator):
    return {row.name: row for row in compare(samples, held_out, train, generator=generator)}


def test_a_perfect_model_passes_and_a_shifted_one_fails(generator):
    samples, held_out, train = (LAW.sample(1500, generator=generator) for _ in range(3))
    found = rows(samples, held_out, train, generator)
    assert all(row.verdict is not False for row in found.values())
    distance = found["sliced Wasserstein distance"]
    assert distance.value < distance.floor + 5 * distance.standard_error
    found = rows(samples + 0.5, held_out, train, generator)
    assert found["sliced Wasserstein distance"].verdict is False
    assert "p-value 0.00498" in found["MMD²"].note  # the least that 200 permutations allow


def test_a_copying_model_fails(generator):
    held_out, train = LAW.sample(1500, generator=generator), LAW.sample(1500, generator=generator)
    copies = train + 1e-4 * torch.randn(1500, 2, generator=generator)
    found = rows(copies, held_out, train, generator)
    assert found["distance to the nearest training point"].verdict is False
    assert found["nearer to training than to held-out data"].value > 0.95


def test_units_do_not_matter(generator):
    samples, held_out, train = (LAW.sample(400, generator=generator) for _ in range(3))
    scale = torch.tensor([1e-3, 1e4])
    seeded = lambda: torch.Generator().manual_seed(0)
    a = rows(samples, held_out, train, seeded())
    b = rows(samples * scale, held_out * scale, train * scale, seeded())
    for name in a:
        assert abs(a[name].value - b[name].value) < 1e-9


def test_without_training_data_halves_give_the_floor(generator):
    samples, held_out = LAW.sample(500, generator=generator), LAW.sample(900, generator=generator)
    found = compare(samples, held_out, generator=generator)
    assert len(found) == 3
    assert all(row.floor is not None for row in found)


def test_likelihood_rows():
    row = likelihood_row("ours", torch.tensor([1.0, 2.0, 3.0]))
    assert (row.value, row.standard_error) == (2.0, 1 / 3**0.5)
    for theirs, value, verdict in ((1.0, 1.0, True), (3.1, -1.1, True), (3.2, -1.2, False)):
        gap = difference_row("gap", torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), theirs))
        assert (round(gap.value, 9), gap.verdict) == (value, verdict)  # two errors are 1.155
