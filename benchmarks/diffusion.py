r"""Solver error against the number of evaluations of an exact score, beside other libraries.

Two mixtures whose score is exact: two modes in the plane, and 50 modes in 64 dimensions. All
solvers start from the same x at σ = 20 and end in the posterior mean at σ = 0.005; the error is the
root mean square over samples of the distance to the true end of the flow (a Runge–Kutta path at
rtol = 1e-10 down to σ = 1e-4), each solver on the better of two grids, its own choice and one uniform
in log σ. Also the median over samples: in 64 dimensions the root mean square is dominated by the few
samples that end in a different mode.

    python benchmarks/diffusion.py [--quick]

azula, k-diffusion and diffusers are used if they are installed; use a separate environment for them.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.diffusion.transitions.multistep import FINE
from gradlogp.noise.schedules import VE

sys.path.insert(0, str(Path(__file__).parent))
from peers_diffusion import Counted, karras, log, solvers

HERE = Path(__file__).parent
HIGH, LOW = 20.0, 0.005
BUDGETS = (5, 8, 10, 15, 20, 30, 50, 100, 200)
SCHEDULE = VE(LOW, HIGH)


def problems():
    """The two laws, by name."""
    g = torch.Generator().manual_seed(0)
    plane = glp.GaussianMixture(
        [0.3, 0.7],
        torch.tensor([[-1.0, 0.5], [0.8, -0.6]]),
        [[[0.05, 0.02], [0.02, 0.03]], [[0.04, -0.01], [-0.01, 0.06]]],
    )
    means = torch.randn(50, 64, generator=g)
    many = glp.GaussianMixture(torch.full((50,), 0.02), means, torch.full((50,), 0.05))
    return {"two modes, d = 2": plane, "50 modes, d = 64": many}


def ours():
    """Our transitions by name, with the scores of a step, and how many more first steps may take."""
    return {
        "DDIM": (glp.diffusion.DDIM(), 1, 0),
        "Heun": (glp.diffusion.ProbabilityFlow(2), 2, 0),
        "Runge-Kutta 4": (glp.diffusion.ProbabilityFlow(4), 4, 0),
        "DPM-Solver++ 2M": (glp.diffusion.DPMSolver(2), 1, 0),
        "DPM-Solver++ 3M": (glp.diffusion.DPMSolver(3), 1, 2),
        "exponential AB 3, epsilon": (glp.diffusion.ExponentialAB(3), 1, 2),
        "exponential AB 4, epsilon, extrapolated": (
            glp.diffusion.ExponentialAB(4, extrapolate=True),
            1,
            4,
        ),
        "exponential AB 4, x0, extrapolated": (
            glp.diffusion.ExponentialAB(4, "x0", extrapolate=True),
            1,
            4,
        ),
    }


def run_ours(transition, stages, more, grid, denoise, x, nfe):
    """Move x to the noise-free end with at most nfe evaluations of the denoiser."""
    score = glp.as_score(lambda y, t: denoise(y, SCHEDULE(t)[1]), "x0", SCHEDULE)
    ladder = lambda n: grid(torch.linspace(1, 0, n + 1), HIGH, LOW)
    n_steps = (nfe - 1) // stages
    if n_steps < 1:
        return None
    levels = ladder(n_steps)
    if more and (levels[0] / levels[1]).log() < FINE:  # where first steps take more
        levels = ladder(n_steps - more)
    times = (levels / LOW).log() / torch.tensor(HIGH / LOW).log()
    times[0], times[-1] = 1.0, 0.0
    return glp.evolve(transition, score, x, times)


def truth(law, x):
    """The end of the flow of a law from x at σ = HIGH."""
    schedule = VE(1e-4, HIGH)
    flow = glp.diffusion.AdaptiveFlow(1e-10, 1e-10)
    return glp.evolve(flow, glp.ExactScore(law, schedule), x, torch.tensor([1.0, 0.0]))


def errors(out, expected):
    """Root mean square and median over samples of the distance to where the flow ends."""
    distance = (out - expected).norm(dim=1)
    return float(distance.square().mean().sqrt()), float(distance.median())


def measure(law, budgets, n):
    """Rows of one problem: solver, budget, evaluations used, errors, grid."""
    g = torch.Generator().manual_seed(1)
    x = law.sample(n, generator=g)
    x = x + HIGH * torch.randn(x.shape, generator=g)
    expected = truth(law, x)
    laws = {}

    def denoise(y, sigma):
        key = float(sigma)
        if key not in laws:
            laws[key] = law.noised(1.0, key)
        return y + key**2 * laws[key].score(y)

    rows = []
    for budget in budgets:
        for name, (transition, *price) in ours().items():
            for grid in (karras, log):
                counted = Counted(denoise)
                out = run_ours(transition, *price, grid, counted, x, budget)
                if out is not None:
                    rows.append((f"gradlogp {name}", grid.__name__, budget, counted.calls,
                                 *errors(out, expected)))  # fmt: skip
        for name, solve in solvers().items():
            counted = Counted(denoise)
            try:
                out = solve(counted, x, HIGH, LOW, budget)
            except (ValueError, IndexError, ZeroDivisionError, RuntimeError):
                continue  # too few evaluations for that solver
            title, _, grid = name.rpartition(", ")
            rows.append((title, grid, budget, counted.calls, *errors(out, expected)))
        laws.clear()
    keys = ("solver", "grid", "budget", "evaluations", "rms", "median")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def best(rows, budget, *, mine, key="rms"):
    """The best row of a budget, ours or of the others; None where there is none."""
    found = [
        r for r in rows if r["budget"] == budget and r["solver"].startswith("gradlogp") == mine
    ]
    return min(found, key=lambda r: r[key], default=None)


def table(rows, key):
    """The table of the docs: our best and the others' best at every budget."""
    lines = [
        "| evaluations | gradlogp | solver | others | solver | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for budget in sorted({r["budget"] for r in rows}):
        a, b = (best(rows, budget, mine=mine, key=key) for mine in (True, False))
        cells = [f"{budget}", f"{a[key]:.2g}", a["solver"].removeprefix("gradlogp ")]
        cells += ["", "", ""] if b is None else [
            f"{b[key]:.2g}", b["solver"], f"{a[key] / b[key]:.2f}"
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(results):
    """Error against evaluations, the better grid of each solver: ours in colour, others grey."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(11, 8.4), layout="constrained")
    for column, (name, rows) in zip(axes.T, results.items(), strict=True):
        for panel, key in zip(column, ("rms", "median"), strict=True):
            names = list(dict.fromkeys(r["solver"] for r in rows))
            mine = [n for n in names if n.startswith("gradlogp")]
            colours = dict(
                zip(mine, ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "k"), strict=False)
            )
            for solver in sorted(names, key=lambda n: n in mine):
                points = {}
                for r in rows:
                    if r["solver"] == solver:
                        old = points.get(r["budget"], float("inf"))
                        points[r["budget"]] = min(old, r[key])
                style = (
                    {
                        "marker": "o",
                        "ms": 3.5,
                        "lw": 1.8,
                        "color": colours[solver],
                        "label": solver.removeprefix("gradlogp "),
                    }
                    if solver in mine
                    else {"color": "0.72", "lw": 0.9}
                )
                panel.plot(*zip(*sorted(points.items()), strict=True), **style)
            panel.plot([], [], color="0.72", label="other libraries")
            what = {"rms": "root mean square", "median": "median"}[key]
            panel.set(xscale="log", yscale="log", title=f"{name}: {what} error",
                      xlabel="evaluations of the score", ylabel="distance to the true end")  # fmt: skip
            panel.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
            panel.minorticks_off()
            panel.set_ylim(top=10)
            panel.grid(alpha=0.25)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    path = HERE.parent / "docs" / "img" / "solvers.png"
    figure.savefig(path, dpi=110)
    return path


def libraries():
    """The versions of what was compared."""
    found = {"gradlogp": glp.__version__, "torch": torch.__version__}
    for name in ("azula", "k-diffusion", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main():
    """Measure, print, and write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples and budgets, no files")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    start, results = time.perf_counter(), {}
    for name, law in problems().items():
        n, budgets = (32, (10, 30)) if quick else (256, BUDGETS)
        results[name] = measure(law, budgets, n)
        print(f"\n{name}, n = {n}")
        for key in ("rms", "median"):
            print(f"\n{key}\n{table(results[name], key)}")
    if quick:
        return
    document = {
        "environment": {
            "python": platform.python_version(), "machine": platform.machine(),
            "cores": os.cpu_count(), "threads": 1, "dtype": "float64", **libraries(),
        },
        "seconds": time.perf_counter() - start,
        "results": results,
    }  # fmt: skip
    (HERE / "diffusion.json").write_text(json.dumps(document, indent=1))
    print(picture(results))


if __name__ == "__main__":
    main()
