"""Methods for inverse problems against posteriors in closed form, with the exact score as the prior.

For each problem and method: how far mean and covariance of the samples are from the posterior's, with
standard errors, the sliced Wasserstein distance, the weights of modes, and what it cost in calls of
the model and products with its derivative. The first rows of a problem are draws from the posterior
(what any number here is if nothing is wrong) and the exact score of p(x_t | y) with the same sampler
(what its steps cost in accuracy). JSON beside this file; --docs puts the tables on the page.

    python benchmarks/inverse.py [--samples 16000] [--docs]
"""

import argparse
import json
import platform
import re
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.check.metrics import sliced_wasserstein
from gradlogp.inverse import (
    DPS,
    AnnealedLikelihood,
    DPSStep,
    Inpainting,
    Matrix,
    MomentMatching,
    Observation,
    PiGDM,
    PosteriorTarget,
    RePaint,
    posterior,
)
from gradlogp.noise.score_base import ScoreWrapper
from gradlogp.noise.terminal import terminal

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "inverse.md"
VP = glp.schedules.VP()
LADDER = glp.schedules.Levels(torch.logspace(1, -2.5, 60, dtype=torch.float64))
SKETCH = Matrix(torch.tensor([[1.0, 0.5]], dtype=torch.float64))
FIRST = Inpainting(torch.tensor([True, False]))


def problems():
    """Name, prior, observation; y is the observation of a draw that is not used otherwise."""
    g = torch.Generator().manual_seed(0)
    plane = glp.Gaussian([0.7, -1.2], [[1.5, 0.6], [0.6, 0.5]])
    root = torch.randn(8, 8, generator=g) / 8**0.5
    eight = glp.Gaussian(torch.randn(8, generator=g), root @ root.mT + 0.05 * torch.eye(8))
    A = Matrix(torch.randn(3, 8, generator=g))
    y = A.apply(eight.sample(1, generator=g)) + 0.3 * torch.randn(1, 3, generator=g)
    mixture = glp.GaussianMixture([0.3, 0.5, 0.2], [[-1.5, 0.0], [1.0, 0.5], [0.0, 2.0]], 0.2)
    number = torch.tensor([[0.4]])
    return (
        ("Gaussian, d = 2, one number, σ_y = 0.3", plane, Observation(number, SKETCH, 0.3)),
        ("Gaussian, d = 8, three numbers, σ_y = 0.3", eight, Observation(y, A, 0.3)),
        ("Mixture, d = 2, one number, σ_y = 0.3", mixture, Observation(number, SKETCH, 0.3)),
        ("Mixture, d = 2, first entry, no noise", mixture, Observation(number, FIRST, 0)),
    )


class Counted(ScoreWrapper):
    """A noisy score that counts its calls and the products with its derivative."""

    def __init__(self, score):
        self.score, self.calls, self.products = score, 0, 0

    def _score(self, z, t):
        self.calls += 1
        value = self.score(z, t)
        if value.requires_grad:
            value.register_hook(self._count)
        return value

    def _count(self, gradient):
        self.products += 1


def start(law, schedule, n, g):
    return terminal(glp.ExactScore(law, schedule)).sample(n, generator=g)


def flow(wrap, law, seen, n, g, steps=50):
    """Heun's method on the probability flow of a guided score."""
    model = Counted(glp.ExactScore(law, VP))
    times, x = glp.time_grid(VP, steps), start(law, VP, n, g)
    x = glp.evolve(glp.diffusion.ProbabilityFlow(), wrap(model, seen), x, times)
    return x, model.calls, model.products


def stepped(wrap, law, seen, n, g, steps=100):
    """DDPM's step with a correction of its own."""
    model = Counted(glp.ExactScore(law, VP))
    times, x = glp.time_grid(VP, steps), start(law, VP, n, g)
    x = glp.evolve(wrap(glp.diffusion.Ancestral(), seen), model, x, times, generator=g)
    return x, model.calls, model.products


def annealed(law, seen, n, g, n_steps=5):
    model = Counted(glp.ExactScore(law, LADDER))
    guided = AnnealedLikelihood(model, seen)
    x = start(law, LADDER, n, g)
    x = glp.evolve(
        glp.diffusion.AnnealedLangevin(n_steps, 0.3),
        guided,
        x,
        generator=g,
    )
    return x, model.calls, model.products


def corrected(law, seen, n, g, n_steps=200):
    """Moment matching, and Langevin steps on the posterior itself."""
    x, calls, products = flow(MomentMatching, law, seen, n, g, 20)
    target = PosteriorTarget(law, seen)
    chain = glp.run(glp.langevin.MALA(0.03), target, x, n_steps, burn_in=n_steps - 1, generator=g)
    return chain.draws[:, -1], calls + n_steps, products


METHODS = {
    "draws from the posterior": lambda law, seen, n, g: (
        posterior(law, seen).sample(n, generator=g), 0, 0,
    ),
    "exact score of p(x_t given y), Heun": lambda law, seen, n, g: flow(
        lambda model, seen: glp.ExactScore(posterior(law, seen), VP),
        law, seen, n, g,
    ),
    "`MomentMatching`": partial(flow, MomentMatching),
    "`PiGDM`": lambda law, seen, n, g: flow(
        partial(PiGDM, data_var=float(law.cov.diagonal().mean())), law, seen, n, g
    ),
    "`DPS`": partial(flow, DPS),
    "`DPSStep`, ζ = 0.3": partial(stepped, partial(DPSStep, zeta=0.3)),
    "`DPSStep`, ζ = 1": partial(stepped, DPSStep),
    "`RePaint`, n = 1": partial(stepped, partial(RePaint, n_resamples=1)),
    "`RePaint`, n = 10": partial(stepped, RePaint),
    "`AnnealedLikelihood`, 5 steps": annealed,
    "`AnnealedLikelihood`, 25 steps": partial(annealed, n_steps=25),
    "`MomentMatching`, then `PosteriorTarget`": corrected,
}  # fmt: skip
NEEDS_NOISE = {"`DPS`", "`MomentMatching`, then `PosteriorTarget`"}


def measured(x, law, seen, g):
    """Errors of the samples, each with a standard error."""
    exact = posterior(law, seen)
    mean, cov = exact.mean, exact.cov
    centred = x - x.mean(0)
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    size = float(cov.diagonal().sum().sqrt())
    sw = sliced_wasserstein(x, exact.sample(len(x), generator=g), generator=g)
    row = {
        "mean": float((x.mean(0) - mean).norm()) / size,
        "mean_error": float((x.var(0).sum() / len(x)).sqrt()) / size,
        "cov": float((products.mean(0) - cov).norm() / cov.norm()),
        "cov_error": float((products.var(0).sum() / len(x)).sqrt() / cov.norm()),
        "sliced_w2": sw.value / size,
        "sliced_w2_error": sw.standard_error / size,
    }
    if isinstance(exact, glp.GaussianMixture):
        r = within(exact, x) if seen.operator is FIRST else exact.responsibilities(x)
        off = r.mean(0) - exact.weights
        row["weights"] = float(off.abs().sum()) / 2
        row["weights_error"] = float((r.var(0).sum() / len(x)).sqrt()) / 2
    return row


def within(exact, x):
    """Responsibilities on the line where the posterior lives that has seen the first entry."""
    inside = glp.GaussianMixture(exact.weights, exact.means[:, 1:], exact.covs[:, 1:, 1:])
    return inside.responsibilities(x[:, 1:])


def table(name, rows):
    modes = "weights" in rows[0]
    lines = [f"**{name}**", ""]
    lines.append(
        f"| method | mean | covariance | sliced W2 |{' weights |' if modes else ''} calls | products |"
    )
    lines.append("|---" * (6 + modes) + "|")
    for row in rows:
        cells = [row["method"]]
        for key in ("mean", "cov", "sliced_w2", "weights")[: 3 + modes]:
            told = f"{row[key]:.3f} ± {row[key + '_error']:.3f}"
            cells.append(told if row[key] < 100 else "diverges")
        cells += [str(row["calls"] or "–"), str(row["products"] or "–")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--docs", action="store_true", help="put the tables on docs/inverse.md")
    parser.add_argument("--out", type=Path, default=HERE / "inverse.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows, tables = [], []
    for name, law, seen in problems():
        exact_input = float(seen.R.std) == 0
        mine = []
        for method, sample in METHODS.items():
            if (exact_input and method in NEEDS_NOISE) or (
                "RePaint" in method and not exact_input
            ):
                continue
            g = torch.Generator().manual_seed(0)
            x, calls, products = sample(law, seen, options.samples, g)
            found = measured(x, law, seen, torch.Generator().manual_seed(1))
            mine.append(
                {"problem": name, "method": method, **found, "calls": calls, "products": products}
            )
        rows += mine
        tables.append(table(name, mine))
        print(tables[-1] + "\n", flush=True)
    environment = {
        "torch": version("torch"), "python": platform.python_version(),
        "samples": options.samples, "seed": 0,
    }  # fmt: skip
    options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    if options.docs:
        text, block = PAGE.read_text(encoding="utf-8"), "\n\n".join(tables)
        begin, end = "<!-- inverse: begin -->", "<!-- inverse: end -->"
        put = lambda _: f"{begin}\n{block}\n{end}"
        PAGE.write_text(re.sub(f"{begin}.*{end}", put, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
