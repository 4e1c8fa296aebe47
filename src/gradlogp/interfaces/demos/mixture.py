"""Two Gaussians, for which everything is known: the learned field beside the exact one."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch

from ...check.compare import compare
from ...check.metrics import fisher_divergence
from ...core import Estimate, mean_and_error, rand_like
from ...diffusion import AnnealedLangevin, evolve, log_likelihood
from ...distributions.analytic import GaussianMixture
from ...langevin.kernels import ULA
from ...langevin.run import run as run_chain
from ...learn import fit
from ...learn.objectives import excess, multilevel
from ...noise import blurred
from ...noise.schedules import VE, Levels
from ...scores import ExactScore, ScoreModel
from ...scores.networks import MLP
from ...show.plots import fields, levels, scatter_pair, trajectories
from ...show.report import Row, Section
from ..pipeline import draw, sample_levels
from .common import Outcome, annealed_paths, finish, train

STEPS = 1500
N_TRAIN = 50_000
HELD_OUT = 10_000
SCORED = 2000
GENERATED = 10_000
CHAINS = 4000
LEVELS = 60
LIMIT = 0.01  # of the dimension: largest σ²-weighted excess at any level
LEAD = (
    "½ N((−2, 0), I) + ½ N((2, 0), I): the noised law, its score and the floor of the loss are known "
    "in closed form at every noise level, so every number here has an exact counterpart."
)


def mode_weights(seed: int, n: int) -> tuple[Estimate, Estimate]:
    """Return the weight of the 0.8 mode from plain and from annealed Langevin with exact scores.

    The modes 0.8 N((5, 5), I) and 0.2 N((−5, −5), I) are far apart; the chains start uniformly on
    [−8, 8]². A chain of plain Langevin stays in the basin where it started.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600
    """
    g = torch.Generator().manual_seed(seed)
    law = GaussianMixture([0.8, 0.2], [[5.0, 5.0], [-5.0, -5.0]], 1.0)
    start = 16 * rand_like(torch.empty(n, 2), g) - 8
    plain = run_chain(ULA(0.1), law, start, 1000, burn_in=999, generator=g).draws[:, 0]
    ladder = Levels(torch.logspace(1.5, -1, LEVELS, dtype=torch.float64))
    dynamics = AnnealedLangevin(n_steps=50, relative_step=0.1)
    annealed = evolve(dynamics, ExactScore(law, ladder), n, generator=g)
    weight = lambda x: mean_and_error((x.sum(1) > 0).double())
    return weight(plain), weight(annealed)


def run(out: Path, *, seed: int = 0, steps: int = STEPS, quiet: bool = False) -> Outcome:
    """Learn the score of a known law and compare everything with the exact answer."""
    began = time.perf_counter()
    g = torch.Generator().manual_seed(seed)
    law = GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0)
    x, x_held = law.sample(N_TRAIN, generator=g), law.sample(HELD_OUT, generator=g)
    schedule = VE(0.05, 10.0)
    exact = ExactScore(law, schedule)
    model = ScoreModel(MLP(2, 96, 3, generator=g), schedule, "v")
    records = fit(
        model, x, steps=steps, batch_size=1024, held_out=x_held, exact=exact,
        generator=g,
    )  # fmt: skip
    history = train(records, steps, quiet=quiet)

    with torch.no_grad():
        floor = mean_and_error(multilevel(exact, x_held, generator=g))
        above = [
            mean_and_error(excess(model, exact, x_held, t.to(x).expand(len(x_held)), generator=g))
            for t in torch.linspace(0, 1, 10)
        ]
    worst = max(above, key=lambda e: e.value)
    samples = draw(model, GENERATED, sample_levels(model), generator=g, quiet=quiet)
    comparison = compare(
        samples, x_held, law.sample(HELD_OUT, generator=g), baselines=False, generator=g
    )
    plain, annealed = mode_weights(seed, CHAINS)
    smallest = law.noised(1.0, schedule.sigma_min)
    nats = log_likelihood(model, x_held[:SCORED], n_steps=48).log_prob
    nats = nats - smallest.log_prob(x_held[:SCORED])
    gap, learned = mean_and_error(nats), blurred(model).score
    divergence = fisher_divergence(learned, smallest.score, x_held)
    rows_score = [
        Row(
            "largest σ²-weighted excess over levels", *worst, 0.0, verdict=worst.value <= 2 * LIMIT,
            note=f"at most {LIMIT:.0%} of d = 2; the exact score has 0",
        ),
        Row("Fisher divergence at the smallest level", *divergence, 0.0, note="½ E‖s_θ − s‖²"),
        Row(
            "log-likelihood, learned minus exact", *gap, 0.0,
            note="nats per point; minus this is the KL divergence",
        ),
    ]  # fmt: skip
    rows_weights = [
        Row(
            "weight 0.8 by plain Langevin", *plain, 0.8,
            note="wrong on purpose: it keeps the weights of the starting points",
        ),
        Row(
            "weight 0.8 by annealed Langevin", *annealed, 0.8,
            verdict=abs(annealed.value - 0.8) <= max(0.02, 4 * annealed.standard_error),
            note=f"exact noised scores, {LEVELS} levels of 50 steps",
        ),
    ]  # fmt: skip

    grid_levels = [float(schedule(t)[1]) for t in torch.linspace(0, 1, 10)]
    bounds = (-5.0, 5.0, -4.0, 4.0)
    paths = annealed_paths(model, 16, generator=g)
    sections = [
        Section(
            "The learned field beside the exact one",
            "Both at the smallest noise level. They may differ where there are no data.",
            (
                ("field", "Learned and exact score over the density.",
                 partial(fields, (("learned score", learned), ("exact score", smallest.score)),
                         bounds=bounds, density=law.log_prob)),
                ("levels", "σ²-weighted excess over the exact floor, level by level.",
                 partial(levels, grid_levels, [e.value for e in above],
                         [e.standard_error for e in above], limit=2 * LIMIT)),
            ),
            tuple(rows_score),
        ),
        Section(
            "Samples",
            "Ten thousand samples of the learned score beside as many of the exact law.",
            (
                ("samples", "Exact samples and learned ones.",
                 partial(scatter_pair, x_held, samples, labels=("exact law", "samples"))),
            ),
            comparison.rows,
        ),
        Section(
            "Weights of far modes",
            "Two modes of weights 0.8 and 0.2, 14 standard deviations apart. Langevin dynamics at "
            "one level keeps each chain where it began; a ladder of noise levels moves them.",
            (
                ("paths", "Annealed Langevin paths under the learned score.",
                 partial(trajectories, paths, bounds=bounds, density=law.log_prob)),
            ),
            tuple(rows_weights),
        ),
        Section(
            "Learning",
            "The dashed line is the loss of the exact score. Any loss above it is excess; a "
            "loss below it would be a bug.",
            (
                ("loss", "Training loss, held-out loss, and the exact floor.",
                 partial(history.draw, floor=floor.value)),
            ),
        ),
    ]  # fmt: skip
    return finish(
        out, "Two Gaussians: the learned score against the exact one", LEAD, sections, began, seed,
        comparison, model, steps,
        data=f"{len(x):,} points of the exact law to learn from, {len(x_held):,} held out",
    )  # fmt: skip
