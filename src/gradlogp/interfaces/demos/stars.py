"""30,445 stars: colour against absolute magnitude, the Hertzsprung–Russell diagram."""

from __future__ import annotations

import copy
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...check.baselines import fitted_mixture
from ...check.compare import compare, difference_row, likelihood_row
from ...diffusion import log_likelihood
from ...learn import data, fit
from ...noise import blurred
from ...noise.schedules import VE
from ...show import explore
from ...show.plots import fields, scatter_pair, trajectories
from ...show.progress import bar
from ...show.report import Section
from ..pipeline import CHUNK, build_model, draw, sample_levels
from .common import Outcome, annealed_paths, finish, train

STEPS = 2000
GENERATED = 10_000
HELD_OUT_SCORED = 10_000  # all of them
POINTS, LEVELS = 72, 14  # of the table that the explorer reads
LEAD = (
    "A score learned from the Hipparcos catalogue: the colour B−V of {n:,} nearby stars against "
    "their absolute magnitude. The network never saw the stars on the left of each picture."
)


def _baselines(z: Tensor, z_held: Tensor, seed: int) -> dict[str, Tensor]:
    """Return held-out log-densities of the classical estimators, in standardised coordinates."""
    from sklearn.neighbors import KernelDensity

    a, b = z.double().numpy(), z_held.double().numpy()
    n = int(0.8 * len(a))
    found = {
        f"Gaussian mixture, {k} component{'s' * (k > 1)}": fitted_mixture(k, a, seed)
        for k in (1, 32)
    }
    # the bandwidth that does best on a fifth of the training data
    widths = (0.04, 0.06, 0.08, 0.1)
    best = max(widths, key=lambda h: KernelDensity(bandwidth=h, rtol=1e-3).fit(a[:n]).score(a[n:]))
    found[f"kernel density, bandwidth {best}"] = KernelDensity(bandwidth=best, rtol=1e-4).fit(a)
    return {name: torch.from_numpy(model.score_samples(b)) for name, model in found.items()}


def run(out: Path, *, seed: int = 0, steps: int = STEPS, quiet: bool = False) -> Outcome:
    """Learn the diagram, sample 10,000 stars, and compare likelihoods on held-out stars."""
    began = time.perf_counter()
    g = torch.Generator().manual_seed(seed)
    stars = data.load("stars")
    training, held = data.train_held_out(stars, 0.2, generator=g)
    x, x_held = training.x, held.x
    # noise from below the width of the main sequence to well beyond the diagram
    model = build_model(x, schedule=VE(0.02, 10.0), generator=g)
    records = fit(
        model, x, steps=steps, batch_size=1024, standardize=True,
        held_out=x_held, generator=g,
    )  # fmt: skip
    history = train(records, steps, quiet=quiet)

    scored = x_held[:HELD_OUT_SCORED]
    with bar("held-out log-likelihood", quiet=quiet) as update:
        ours = log_likelihood(
            model, scored, n_steps=32, chunk_size=CHUNK, progress=update
        ).log_prob
    encode, log_det = model.coordinates.encode, model.coordinates.log_det(scored)
    theirs = {
        name: value + log_det
        for name, value in _baselines(encode(x), encode(scored), seed).items()
    }
    best = max(theirs, key=lambda name: float(theirs[name].mean()))
    samples = draw(model, GENERATED, sample_levels(model), generator=g, quiet=quiet)
    rows_likelihood = [
        likelihood_row("learned score", ours, "by the probability flow, exact divergence"),
        *(likelihood_row(name, value, "same split") for name, value in theirs.items()),
        difference_row(f"learned score minus {best}", ours, theirs[best], "same stars, paired"),
    ]
    comparison = compare(samples, x_held, x, baselines=False, generator=g)

    paths = annealed_paths(model, 6, generator=g)
    bounds = (-0.5, 2.2, -4.0, 13.0)
    names = ("colour B−V", "absolute magnitude")
    model.columns = stars.columns
    sections = [
        Section(
            "Samples beside the real stars",
            "Left, held-out stars; right, as many samples. The main sequence runs from hot and "
            "bright to cool and faint; above it lie the giants with their red clump.",
            (
                ("stars",
                 "Hertzsprung–Russell diagram: real held-out stars, samples, and marginals.",
                 partial(scatter_pair, x_held, samples, names=names, invert_y=True)),
            ),
            comparison.rows,
        ),
        Section(
            "Log-likelihood of held-out stars",
            "In nats per star, with the standard error over stars; higher is better. The last row "
            "is the paired difference to the best classical estimator on the same split.",
            rows=tuple(rows_likelihood),
        ),
        Section(
            "The learned score",
            "Arrows point where the density rises fastest. An annealed run starts as noise far "
            "outside and follows them as the noise level falls.",
            (
                ("field", "The learned score of the stars' law with noise of a half, a quarter and a "
                 "tenth of its spread.",
                 partial(fields, [(f"σ = {s}", blurred(model, s).score) for s in (0.5, 0.25, 0.1)],
                         bounds=bounds,
                         points=x_held, names=names, invert_y=True)),
                ("paths", "Annealed Langevin paths from noise to stars.",
                 partial(trajectories, paths, bounds=bounds, names=names, invert_y=True)),
            ),
        ),
        Section(
            "Walk it yourself",
            "The same score at every noise level. Move the noise level, drop walkers, and let "
            "them follow "
            "Langevin dynamics, the reverse SDE or the flow until they lie where the stars lie.",
            pages=(
                ("explorer", "Walkers under the learned score beside held-out stars.",
                 partial(explore, copy.deepcopy(model).double(), points=x_held, names=names,
                         invert_y=True, size=POINTS, n_levels=LEVELS, title="The score of the stars")),
            ),
        ),
        Section(
            "Learning",
            "Denoising loss ½‖ε̂ − ε‖² over all noise levels. Its floor, the loss of the perfect "
            "score, is not 0 and not known here; `gradlogp demo mixture` shows one that is.",
            (("loss", "Training loss and held-out loss of the averaged weights.", history.draw),),
        ),
    ]  # fmt: skip
    return finish(
        out, "Stars: a score learned from the sky", LEAD.format(n=len(stars.x)), sections,
        began, seed, comparison, model, steps, notes="; ".join(stars.notes),
        data=f"{stars.name}: {len(x):,} stars to learn from, {len(x_held):,} held out",
    )  # fmt: skip
