"""Effective samples a second and bias of every kernel on every target whose moments are known.

Each kernel runs many chains from exact draws where there are any (else from a wide normal), so that
what is measured is its own bias and mixing and not a burn-in. Metropolis kernels are tuned by
`run(..., adapt=True)`; the others take the step whose bias is 5 % on a Gaussian of the curvature at
the start. Effective samples are the least bulk ESS of a coordinate, over the time of the kept draws.
The bias is that of mean and variance, in standard errors and relative to the exact spread, the worst
coordinate of each. Where R-hat is above 1.05 the chains have not mixed: the effective samples are
then put in brackets, and neither they nor the errors mean much. JSON and a table beside this file.

    python benchmarks/samplers.py [--seconds 0.5]
"""

import argparse
import json
import math
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from arviz_stats.base import array_stats

import gradlogp as glp
from gradlogp.distributions import targets as d
from gradlogp.langevin.kernels.overdamped import ExponentialEuler
from gradlogp.langevin.tuning import Adaptation

HERE = Path(__file__).parent
CHAINS, WARM = 16, 200

TARGETS = {
    "log-cosh": lambda: d.LogCosh(4),
    "gumbel": lambda: d.SkewedGumbel(4),
    "banana": d.Banana,
    "funnel": lambda: d.Funnel(4, 1.0),
    "ring": d.Ring,
    "double well": lambda: d.DoubleWell(2),
    "many well": lambda: d.ManyWell(8),
    "logistic": d.LogisticRegression.breast_cancer,
}


def bias_step(law, x0, generator, scale=1.0):
    """The step with a bias of 5 % where the curvature of x/scale is largest."""
    whitened = glp.as_target(score=lambda y: scale * law.score(scale * y))
    return glp.langevin.step_for_bias(
        glp.langevin.estimate_curvature(whitened, x0 / scale, generator=generator).L, 0.05
    )


def kernels(h, whitened_h, cov, scatter):
    """Every kernel at the step h of an overdamped one; times are √(2h)."""
    time_step = math.sqrt(2 * h)
    found = {
        "ULA": (glp.langevin.ULA(h), False),
        "LeimkuhlerMatthews": (glp.langevin.LeimkuhlerMatthews(h), False),
        "TamedULA": (glp.langevin.TamedULA(h), False),
        "PreconditionedULA": (glp.langevin.PreconditionedULA(whitened_h, cov), False),
        "ExponentialEuler": (ExponentialEuler(h, cov), False),
        "BAOAB": (glp.langevin.BAOAB(time_step), False),
        "OBABO": (glp.langevin.OBABO(time_step), False),
        "BAOA": (glp.langevin.BAOA(time_step), False),
        "MALA": (glp.langevin.MALA(h), True),
        "MALA, diagonal": (glp.langevin.MALA(h), Adaptation(preconditioner="diagonal")),
        "HMC": (glp.langevin.HMC(time_step, 8), True),
        "HMC, diagonal": (glp.langevin.HMC(time_step, 8), Adaptation(preconditioner="diagonal")),
        "GHMC": (glp.langevin.GHMC(time_step), True),
        "ParallelTempering": (glp.langevin.ParallelTempering(h, (1.0, 2.0, 4.0)), False),
    }
    if scatter is not None:
        batch = {"batch_size": 32}
        found |= {
            "SGLD": (glp.langevin.SGLD(h / 4, **batch), False),
            "SGLD, SVRG": (glp.langevin.SGLD(h, **batch, estimator=glp.langevin.SVRG(50)), False),
            "SGHMC": (glp.langevin.SGHMC(time_step / 4, **batch), False),
            "PSGLD": (glp.langevin.PSGLD(h * scatter, **batch, correction="omitted"), False),
        }
    return found


def posterior(law):
    return glp.distributions.Observed(law.log_prior, law.log_likelihood, law.data)


def starts(law, generator):
    if hasattr(law, "sample"):
        return law.sample(CHAINS, generator=generator)
    root = torch.linalg.cholesky(law.cov)
    return (
        law.mean + torch.randn(CHAINS, len(root), generator=generator, dtype=root.dtype) @ root.mT
    )


def timed(kernel, law, x0, seconds, adapt, generator):
    """The kept draws of a run after a burn-in, the seconds of the kept part, and whether it warned."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        began = time.perf_counter()
        warm = glp.run(kernel, law, x0, WARM + 1, WARM, generator=generator, adapt=adapt)
        n_steps = int(seconds / (time.perf_counter() - began) * WARM)
        began = time.perf_counter()
        n_steps = max(200, min(10_000, n_steps))
        chain = glp.run(warm.kernel, law, resume=warm, n_steps=n_steps)
    return chain, time.perf_counter() - began, bool(told)


def errors(chain, law):
    """The worst coordinate of mean and variance: in standard errors and relative."""
    deviations = (chain.draws.double() - law.mean) / law.cov.diagonal().sqrt()
    worst = {}
    for name, values, exact in (("mean", deviations, 0.0), ("variance", deviations.square(), 1.0)):
        off = values.mean((0, 1)).sub(exact).abs()
        error = array_stats.mcse(values.numpy(), method="mean", chain_axis=0, draw_axis=1)
        worst[f"{name}_standard_errors"] = float((off / torch.as_tensor(error)).max())
        worst[f"{name}_relative"] = float(off.max())
    return worst


def rows_of(name, seconds):
    generator = torch.Generator().manual_seed(0)
    law = TARGETS[name]()
    x0 = starts(law, generator)
    cov, scatter = law.cov.diagonal().clone(), None
    h = bias_step(law, x0, generator)
    whitened_h = bias_step(law, x0, generator, cov.sqrt())
    if hasattr(law, "data"):  # 1/G of pSGLD: the root mean square of a batch's score over N
        index = torch.randint(len(law.data), (CHAINS, 32), generator=generator)
        scatter = float(posterior(law).minibatch_score(x0, index).square().mean().sqrt())
        scatter /= len(law.data)
    for kernel_name, (kernel, adapt) in kernels(h, whitened_h, cov, scatter).items():
        minibatch = hasattr(kernel, "batch_size")
        target = posterior(law) if minibatch else law
        chain, took, diverged = timed(kernel, target, x0, seconds, adapt, generator)
        summary = chain.summary()
        ess = min(row.ess_bulk for row in summary.rows)
        yield {
            "target": name, "dim": len(law.mean), "kernel": kernel_name,
            "step_size": chain.step_size, "steps": chain.draws.shape[1], "chains": CHAINS,
            "acceptance": summary.acceptance, "ess": ess, "ess_per_second": ess / took,
            "r_hat": max(row.r_hat for row in summary.rows), **errors(chain, law),
            "diverged": diverged,
        }  # fmt: skip


HEAD = (
    "| target | kernel | step | ESS/s | R-hat | mean: errors | relative | variance: errors "
    "| relative |\n|---|---|---|---|---|---|---|---|---|"
)


def line(row):
    step = "" if row["step_size"] is None else f"{row['step_size']:.3g}"
    ess = (
        f"{row['ess_per_second']:.0f}" if row["r_hat"] < 1.05 else f"({row['ess_per_second']:.0f})"
    )
    return (
        f"| {row['target']} ({row['dim']}) | {row['kernel']} | {step} | {ess} "
        f"| {row['r_hat']:.3f} | {row['mean_standard_errors']:.1f} | {row['mean_relative']:.3f} "
        f"| {row['variance_standard_errors']:.1f} | {row['variance_relative']:.3f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each kernel on each target")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--out", type=Path, default=HERE / "samplers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    environment = {
        "torch": torch.__version__, "arviz-stats": version("arviz-stats"),
        "python": platform.python_version(), "machine": platform.machine(), "threads": 1,
    }  # fmt: skip
    print(HEAD)
    rows = []
    for name in options.targets:
        for row in rows_of(name, options.seconds):
            rows.append(row)
            print(line(row), flush=True)
    options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    options.out.with_suffix(".md").write_text("\n".join([HEAD, *map(line, rows)]) + "\n")
    print(f"written to {options.out.name} and {options.out.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
