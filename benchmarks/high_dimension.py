"""Annealed Langevin on Gaussian mixtures in 10 to 10,000 dimensions: are the weights of modes found?

Two modes of weights 0.3 and 0.7 with exact scores, so that all error is the sampler's. `trace class`:
component variances i⁻² and means ±m, m_i = 6 i⁻² over its norm, whose size in units of the components
is bounded as d grows. `isotropic`: unit variances and means ±√(d + 9)/2 · (1, …, 1)/√d, as far apart
as the components are wide. Levels fall geometrically from twice the distance of the means to a
twentieth of the largest standard deviation, two steps each; the last is denoised by Tweedie's formula.

Printed: the weight of the first mode with its binomial standard error, and the relative W₂ distance
of the coordinates' standard deviations within the larger mode from the truth, √(Σ(√v̂_i − √v_i)²/Σ v_i),
beside its floor for that many exact draws. NFE are evaluations of the score for each chain. Nothing is
claimed for other laws: the theorems on dimension-free convergence (arXiv 2602.01449, 2605.16473) are on
continuous time or this kind of integrator, in Kullback–Leibler divergence, under spectral conditions
such as those of `trace class`.

    python benchmarks/high_dimension.py [--most 10000]
"""

import argparse
import json
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.diffusion.transitions import AnnealedLangevin
from gradlogp.diffusion.transitions.annealed_kernels import ExponentialSteps, PreconditionedSteps

HERE = Path(__file__).parent
WEIGHT, STEPS = 0.3, 2
NFE = (8, 16, 32, 64, 128)


def law_of(kind, d):
    """The mixture, and the variances of a component."""
    i = torch.arange(1, d + 1, dtype=torch.float64)
    if kind == "trace class":
        variances, direction = i**-2, i**-2
        mean = 6 * direction / direction.norm()
    else:
        variances = torch.ones(d, dtype=torch.float64)
        mean = torch.full((d,), math.sqrt((d + 9) / 4 / d), dtype=torch.float64)
    v, m = variances.float(), mean.float()
    return glp.GaussianMixture([WEIGHT, 1 - WEIGHT], torch.stack([m, -m]), v.expand(2, -1)), m, v


def samplers(variances):
    return {
        "ULA, h = ησ², η = 0.5": AnnealedLangevin(STEPS, 0.5),
        "exponential, V = 0, η = 1": AnnealedLangevin(STEPS, 1.0, ExponentialSteps(0.0)),
        "preconditioned, V = S, η = 0.5": AnnealedLangevin(
            STEPS, 0.5, PreconditionedSteps(variances)
        ),
        "exponential, V = S, η = 1": AnnealedLangevin(STEPS, 1.0, ExponentialSteps(variances)),
    }


def spread_error(x, mean, variances):
    found = (x - mean).square().mean(0).sqrt()
    root = variances.sqrt()
    return float(((found - root).square().sum() / variances.sum()).sqrt())


def rows_of(kind, d, chains):
    law, m, v = law_of(kind, d)
    distance = 2 * float(m.norm())
    sigmas = (2 * distance, float(v.max().sqrt()) / 20)
    g = torch.Generator().manual_seed(1)
    n_larger = round((1 - WEIGHT) * chains)
    exact = -m + v.sqrt() * torch.randn(n_larger, d, generator=g)
    floor = spread_error(exact, -m, v)
    for name, transition in samplers(v).items():
        for nfe in NFE:
            n_levels = nfe // STEPS
            schedule = glp.schedules.Levels(
                torch.logspace(
                    *(math.log10(s) for s in sigmas), n_levels, dtype=torch.float64
                ).tolist()
            )
            g = torch.Generator().manual_seed(0)
            x = sigmas[0] * torch.randn(chains, d, generator=g)
            began = time.perf_counter()
            x = glp.evolve(transition, glp.ExactScore(law, schedule), x, generator=g)
            took = time.perf_counter() - began
            first = (x @ (m / v)) > 0.5 * math.log((1 - WEIGHT) / WEIGHT)
            weight = float(first.float().mean())
            yield {
                "law": kind, "dim": d, "sampler": name, "nfe": nfe + 1, "chains": chains,
                "weight": weight, "weight_error": math.sqrt(WEIGHT * (1 - WEIGHT) / chains),
                "spread": spread_error(x[~first], -m, v) if int((~first).sum()) > 1 else math.nan,
                "spread_floor": floor, "seconds": took,
            }  # fmt: skip


def table(rows):
    text = ["| law | d | sampler | " + " | ".join(f"NFE {n + 1}" for n in NFE) + " |",
            "|---|---|---|" + "---|" * len(NFE)]  # fmt: skip
    keys = dict.fromkeys((r["law"], r["dim"], r["sampler"]) for r in rows)
    for law, d, sampler in keys:
        found = [r for r in rows if (r["law"], r["dim"], r["sampler"]) == (law, d, sampler)]
        cells = (f"{r['weight']:.3f}, {r['spread']:.3f}" for r in found)
        text.append(f"| {law} | {d:,} | {sampler} | " + " | ".join(cells) + " |")
    text.append("")
    for d in dict.fromkeys(r["dim"] for r in rows):
        r = next(r for r in rows if r["dim"] == d)
        text.append(
            f"d = {d:,}: {r['chains']} chains, standard error of a weight ±{r['weight_error']:.3f}, "
            f"floor of the spread {r['spread_floor']:.3f}.  "
        )
    return "\n".join(text) + "\n"


def write(rows):
    """Write what there is so far, as JSON and as a table."""
    facts = {"python": platform.python_version(), "torch": version("torch"), "threads": 1}
    text = json.dumps({"facts": facts, "rows": rows}, indent=1)
    (HERE / "high_dimension.json").write_text(text + "\n")
    head = (
        f"Each cell: weight of the first mode (exact {WEIGHT}), and the relative error of the spread "
        "within the other.\n\n"
    )
    (HERE / "high_dimension.md").write_text(head + table(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=10_000, help="largest dimension")
    most = parser.parse_args().most
    torch.set_num_threads(1)
    rows = []
    for kind in ("trace class", "isotropic"):
        for d in (10, 100, 1000, 10_000):
            if d <= most:
                began = time.perf_counter()
                rows += rows_of(kind, d, 2048 if d <= 100 else 1024 if d == 1000 else 256)
                print(f"{kind}, d = {d}: {time.perf_counter() - began:.0f} s", flush=True)
                write(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
