"""Posteriors from simulations alone: `ScoreEstimator(condition="values")` beside the NPSE of `sbi`.

Two problems of the SBI benchmark whose posterior can be drawn from exactly: two moons, and ten linear
Gaussian numbers. Both learn from the same simulations, and a classifier (`glp.metrics.c2st`) tells
1000 draws from exact ones, for five observations: 0.5 is perfect, 1 is useless. Each at its defaults;
ours runs without `sbi`.

    python benchmarks/sbi.py [--simulations 1000 10000]
"""

import argparse
import json
import math
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import gradlogp as glp

HERE = Path(__file__).resolve().parent
OBSERVATIONS, DRAWS = 5, 1000


class TwoMoons:
    """θ uniform in a square, of which y sees a half circle: two thin moons."""

    dim = 2

    def prior(self, n, g):
        return 2 * torch.rand(n, 2, generator=g) - 1

    def crescent(self, n, g):
        angle = math.pi * (torch.rand(n, generator=g) - 0.5)
        r = 0.1 + 0.01 * torch.randn(n, generator=g)
        return torch.stack([r * angle.cos() + 0.25, r * angle.sin()], 1)

    def simulate(self, theta, g):
        a, b = theta.T
        away = torch.stack([-(a + b).abs(), b - a], 1) / math.sqrt(2)
        return self.crescent(len(theta), g) + away

    def posterior(self, y, n, g):
        """Every crescent point that could have been drawn gives θ up to the sign of a + b."""
        found = torch.empty(0, 2)
        while len(found) < n:
            u, v = (math.sqrt(2) * (y - self.crescent(4 * n, g))).T  # −|a + b|, b − a
            sign = torch.where(torch.rand(len(u), generator=g) < 0.5, 1.0, -1.0)
            theta = torch.stack([(-sign * u - v) / 2, (-sign * u + v) / 2], 1)
            inside = (u <= 0) & (theta.abs() < 1).all(1)
            found = torch.cat([found, theta[inside]])
        return found[:n]


class Linear:
    """θ ~ N(0, 0.1 I) in ten dimensions, y ~ N(θ, 0.1 I)."""

    dim = 10

    def prior(self, n, g):
        return 0.1**0.5 * torch.randn(n, 10, generator=g)

    def simulate(self, theta, g):
        return theta + 0.1**0.5 * torch.randn(theta.shape, generator=g)

    def posterior(self, y, n, g):
        return y / 2 + 0.05**0.5 * torch.randn(n, 10, generator=g)


def ours(task, theta, y):
    found = glp.ScoreEstimator(condition="values", random_state=0).fit(theta, y)
    return lambda y, n: torch.as_tensor(found.sample(n, y=y))


def npse(task, theta, y):
    sys.path[:] = [
        p for p in sys.path if Path(p).resolve() != HERE
    ]  # where this file is called sbi
    from sbi.inference import NPSE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    d = task.dim
    prior = (
        BoxUniform(-torch.ones(2), torch.ones(2))
        if d == 2
        else torch.distributions.MultivariateNormal(torch.zeros(d), 0.1 * torch.eye(d))
    )
    inference = NPSE(prior=prior)
    inference.append_simulations(theta, y).train()
    posterior = inference.build_posterior()
    return lambda y, n: posterior.sample((n,), x=y, show_progress_bars=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, nargs="+", default=[1000, 10_000])
    budgets = parser.parse_args().simulations
    ways = {"gradlogp": ours}
    try:
        ways[f"sbi {version('sbi')}, NPSE"] = npse
    except PackageNotFoundError:
        print("sbi is not installed: nothing stands beside ours")
    rows = []
    for task in (TwoMoons(), Linear()):
        for n in budgets:
            g = torch.Generator().manual_seed(n)
            theta = task.prior(n, g)
            y = task.simulate(theta, g)
            seen = task.simulate(task.prior(OBSERVATIONS, g), g)
            for name, way in ways.items():
                began = time.perf_counter()
                draw = way(task, theta, y)
                trained = time.perf_counter() - began
                found = []
                for one in seen:
                    x, exact = draw(one[None], DRAWS), task.posterior(one, DRAWS, g)
                    found.append(glp.metrics.c2st(x.double(), exact.double(), generator=g).value)
                spent = (time.perf_counter() - began - trained) / OBSERVATIONS
                row = {
                    "task": type(task).__name__, "simulations": n, "method": name,
                    "c2st": sum(found) / len(found), "each": found, "seconds to train": trained,
                    "seconds for 1000 draws": spent,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{row['task']:10} {n:6} {name:18} C2ST {row['c2st']:.3f}  training "
                    f"{trained:.0f} s, {DRAWS} draws and the test {spent:.1f} s", flush=True,
                )  # fmt: skip
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(),
               "machine": platform.machine()}  # fmt: skip
    (HERE / "sbi.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
