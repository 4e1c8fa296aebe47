"""A learned model of two moons, of which one coordinate was seen, from fit to samples in data units."""

import pytest
import torch
from sklearn.datasets import make_moons

import gradlogp as glp
from gradlogp.diffusion import Ancestral, AnnealedLangevin
from gradlogp.inverse import (
    AnnealedLikelihood,
    DPSStep,
    Inpainting,
    MomentMatching,
    Observation,
    PiGDM,
    RePaint,
)

# x = 1/2 cuts both arcs, at y = √3/2 and ½ − √3/2: mean ¼ and deviation 0.62 of y
SEEN, BARE = (
    Observation(torch.tensor([[0.5]]), Inpainting(torch.tensor([True, False])), noise)
    for noise in (0.005, 0.0)
)
LADDER = glp.schedules.Levels(torch.logspace(0.7, -2, 40))


@pytest.fixture(scope="module")
def model():
    torch.set_default_dtype(torch.float32)
    g = torch.Generator().manual_seed(0)
    x = torch.as_tensor(make_moons(20_000, noise=0.05, random_state=0)[0], dtype=torch.float32)
    model = glp.ScoreModel(
        glp.MLP(2, 48, 2, generator=g), glp.schedules.VE(0.01, 10.0), predicts="v"
    )
    settings = {"steps": 350, "batch_size": 512, "learning_rate": 3e-3}
    for _ in glp.fit(model, x, standardize=True, generator=g, **settings):
        pass
    return model


SAMPLERS = {
    "MomentMatching": lambda m: (
        Ancestral(), MomentMatching(m, SEEN, max_steps=5, indefinite="stop"), 25,
    ),
    "PiGDM": lambda m: (Ancestral(), PiGDM(m, SEEN), 100),
    "DPSStep": lambda m: (DPSStep(Ancestral(), SEEN, 0.02), m, 400),
    "RePaint": lambda m: (RePaint(Ancestral(), BARE, 5), m, 60),
}  # fmt: skip


@pytest.mark.parametrize("method", SAMPLERS)
def test_what_was_seen_comes_back(method, model, generator):
    """x within 0.02 of what was seen, but for one in a hundred at most, and y on both arcs."""
    move, score, n = SAMPLERS[method](model)
    times = glp.time_grid(model.schedule, n)
    x = glp.evolve(move, score, 100, times, generator=generator)
    assert x.dtype == torch.float32
    away = (x[:, 0] - 0.5).abs()
    assert float((away < 0.02).float().mean()) >= 0.99, float(away.max())
    assert abs(float((x[:, 1] > 0.25).float().mean()) - 0.5) < 0.2


@pytest.mark.slow
def test_annealed_langevin_samples_the_other_coordinate(model, generator):
    score = AnnealedLikelihood(glp.RescheduledScore(model, LADDER), SEEN)
    x = glp.evolve(AnnealedLangevin(12, 0.8), score, 1500, generator=generator)
    assert float((x[:, 0] - 0.5).abs().max()) < 0.02
    assert abs(float(x[:, 1].mean()) - 0.254) < 0.05
    assert abs(float(x[:, 1].std()) - 0.616) < 0.05
