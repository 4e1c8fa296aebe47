"""Posteriors from simulations alone: `ScoreEstimator(condition="values")` beside the NPSE of `sbi`.

Three problems of the SBI benchmark whose posterior can be drawn from exactly: two moons, ten linear
Gaussian numbers, and SLCP (a simple likelihood, a complex posterior). Both learn from the same
simulations, and a classifier (`glp.metrics.c2st`) tells 1000 draws from exact ones, for five
observations: 0.5 is perfect, 1 is useless. Each at its defaults; ours runs without `sbi`. That exact
draws are exact is checked by simulation, with `--check`; of SLCP the p-value is 0.004 with that seed,
and two other streams of 200 simulations and draws from the prior weighted by likelihood show no fault.

    python benchmarks/sbi.py [--simulations 1000 10000] [--tasks TwoMoons SLCP] [--check]

What is in `sbi.json` already is run again and replaced; the rest of it stays.
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

    dim, box = 2, 1.0

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

    dim, box = 10, None

    def prior(self, n, g):
        return 0.1**0.5 * torch.randn(n, 10, generator=g)

    def simulate(self, theta, g):
        return theta + 0.1**0.5 * torch.randn(theta.shape, generator=g)

    def posterior(self, y, n, g):
        return y / 2 + 0.05**0.5 * torch.randn(n, 10, generator=g)


class SLCP:
    """θ uniform in a box: mean, deviations and correlation of a normal law, of which y is four points.

    The deviations are squares of θ, so that the posterior has four modes with sharp edges.
    """

    dim, box = 5, 3.0

    def prior(self, n, g):
        return self.box * (2 * torch.rand(n, 5, generator=g) - 1)

    def root(self, theta):
        """Cholesky factor of the covariance, `(n, 2, 2)`."""
        s, t, r = theta[:, 2].square(), theta[:, 3].square(), theta[:, 4].tanh()
        zero = torch.zeros_like(s)
        return torch.stack([s, zero, r * t, (1 - r * r).sqrt() * t], 1).unflatten(1, (2, 2))

    def simulate(self, theta, g):
        eps = torch.randn(len(theta), 4, 2, generator=g)
        return (theta[:, None, :2] + eps @ self.root(theta).mT).flatten(1)

    def posterior(self, y, n, g):
        """By rejection: with the mean integrated out Σ is inverse Wishart, of 3 degrees of freedom.

        That is of the scatter, times √(s t (1 − ρ²)) of deviations s, t, which the box bounds by 9.
        """
        points = y.double().reshape(4, 2)
        centre = points.mean(0)
        C = torch.linalg.cholesky(torch.linalg.inv((points - centre).T @ (points - centre)))
        found = torch.empty(0, 5)
        while len(found) < n:
            half = C @ torch.randn(2**18, 2, 3, generator=g, dtype=torch.float64)
            Sigma = torch.linalg.inv(half @ half.mT)
            s, t = Sigma.diagonal(dim1=1, dim2=2).sqrt().T
            r = (Sigma[:, 0, 1] / (s * t)).atanh()
            u = torch.rand(len(s), generator=g, dtype=torch.float64)
            kept = ((s * t).sqrt() / r.cosh() > 9 * u) & (s < 9) & (t < 9) & (r.abs() < 3)
            s, t, r, Sigma = (v[kept] for v in (s, t, r, Sigma))
            eps = torch.randn(len(s), 2, 1, generator=g, dtype=torch.float64)
            mean = centre + (torch.linalg.cholesky(Sigma) @ eps)[:, :, 0] / 2
            signs = 1.0 - 2.0 * torch.randint(2, (len(s), 2), generator=g)
            theta = torch.cat([mean, signs * torch.stack([s, t], 1).sqrt(), r[:, None]], 1)
            found = torch.cat([found, theta[(mean.abs() < 3).all(1)].float()])
        return found[:n]


def check(task):
    """The rank of θ among exact draws given a y that came from it."""
    g = torch.Generator().manual_seed(5)
    one = lambda theta, g: task.simulate(theta[None], g)[0]
    return glp.check.sbc(
        task.prior, one, task.posterior, n_simulations=300, n_draws=99, generator=g
    )


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
        BoxUniform(-task.box * torch.ones(d), task.box * torch.ones(d))
        if task.box
        else torch.distributions.MultivariateNormal(torch.zeros(d), 0.1 * torch.eye(d))
    )
    inference = NPSE(prior=prior)
    inference.append_simulations(theta, y).train()
    posterior = inference.build_posterior()
    return lambda y, n: posterior.sample((n,), x=y, show_progress_bars=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, nargs="+", default=[1000, 10_000])
    tasks = {task.__name__: task() for task in (TwoMoons, Linear, SLCP)}
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=list(tasks))
    parser.add_argument("--check", action="store_true", help="check the exact draws, and end")
    options = parser.parse_args()
    if options.check:
        for name in options.tasks:
            print(f"{name}: {check(tasks[name])}")
        return
    ways = {"gradlogp": ours}
    try:
        ways[f"sbi {version('sbi')}, NPSE"] = npse
    except PackageNotFoundError:
        print("sbi is not installed: nothing stands beside ours")
    path = HERE / "sbi.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for task in (tasks[name] for name in options.tasks):
        for n in options.simulations:
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
                same = lambda r, row=row: all(
                    r[key] == row[key] for key in ("task", "simulations", "method")
                )
                rows = [r for r in rows if not same(r)] + [row]
                print(
                    f"{row['task']:10} {n:6} {name:18} C2ST {row['c2st']:.3f}  training "
                    f"{trained:.0f} s, {DRAWS} draws and the test {spent:.1f} s", flush=True,
                )  # fmt: skip
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(),
               "machine": platform.machine()}  # fmt: skip
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
