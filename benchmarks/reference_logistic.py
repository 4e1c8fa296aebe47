r"""The reference posterior of `LogisticRegression.breast_cancer`: a long run of MALA.

MALA moves in coordinates in which the Laplace approximation at the mode is N(0, I), from starts drawn
from it. Means, covariances and their Monte Carlo standard errors come from the spread of many
independent chains, each long against its autocorrelation time: no model of the autocorrelation is
needed.

    python benchmarks/reference_logistic.py [--chains 64] [--steps 60000]
"""

import argparse
import json
import time
from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.distributions.targets import LogisticRegression

PATH = Path(glp.__file__).parent / "densities" / "breast_cancer.json"


def posterior():
    """The posterior; a reference that is there already is not looked at."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return LogisticRegression(torch.cat([torch.ones_like(x[:, :1]), x], 1), y, 1.0)


def laplace(p):
    """Return the mode and the covariance of the Laplace approximation there."""
    x = torch.zeros(1, p.features.shape[1], dtype=torch.float64)
    for _ in range(50):
        chance = torch.sigmoid(x @ p.features.mT)[0]
        weight = (chance * (1 - chance)).unsqueeze(1)
        precision = p.features.mT @ (weight * p.features)
        precision += torch.eye(len(precision), dtype=torch.float64) / p.prior_scale**2
        x = x + torch.linalg.solve(precision, p.score(x)[0])
    assert float(p.score(x).abs().max()) < 1e-10
    return x[0], torch.linalg.inv(precision)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--step-size", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    p = posterior()
    mode, cov = laplace(p)
    root = torch.linalg.cholesky(cov)

    def place(z):
        return mode + z @ root.mT

    whitened = glp.as_target(
        score=lambda z: p.score(place(z)) @ root, log_prob=lambda z: p.log_prob(place(z))
    )
    generator = torch.Generator().manual_seed(options.seed)
    z = torch.randn(options.chains, len(mode), dtype=torch.float64, generator=generator)
    kernel, began = glp.langevin.MALA(options.step_size), time.perf_counter()
    state = glp.run(kernel, whitened, z, 1000, 999, generator=generator).state
    first, second, acceptance, half = 0.0, 0.0, 0.0, None
    for step in range(1, options.steps + 1):
        state, info = kernel.step(state, whitened, generator=generator)
        first = first + state.x
        second = second + state.x.unsqueeze(2) * state.x.unsqueeze(1)
        acceptance += float(info.acceptance.mean())
        if step == options.steps // 2:
            half = first / step
    first, second = first / options.steps, second / options.steps
    centre = first.mean(0)  # moments about one point, in the units of the data
    chain_means = place(first)
    central = second - first.unsqueeze(2) * centre - centre.unsqueeze(1) * first.unsqueeze(1)
    chain_covs = root @ (central + torch.outer(centre, centre)) @ root.mT
    # the chains are independent, so that their spread is the error of their mean
    scale = options.chains**-0.5
    mean, mean_error = chain_means.mean(0), chain_means.std(0) * scale
    cov, cov_error = chain_covs.mean(0), chain_covs.std(0) * scale
    marginal = cov.diagonal().sqrt()
    ess = (marginal / mean_error).square()
    drift = ((2 * half - 2 * first).mean(0) / (2 * first.std(0) * scale)).abs().max()
    values = {"mean": mean, "mean_error": mean_error, "cov": cov, "cov_error": cov_error}
    record = {
        "made_by": "benchmarks/reference_logistic.py",
        "chains": options.chains,
        "steps": options.steps,
        "step_size": options.step_size,
        "seed": options.seed,
        "acceptance": round(acceptance / options.steps, 4),
        "least_effective_draws": int(ess.min()),
    }
    for name, value in values.items():
        record[name] = [[float(f"{v:.8g}") for v in r] for r in value] if value.ndim > 1 else [
            float(f"{v:.8g}") for v in value
        ]  # fmt: skip
    PATH.write_text(json.dumps(record) + "\n", encoding="utf-8")
    summary = {k: v for k, v in record.items() if k not in values}
    print(json.dumps(summary, indent=1))
    worst = float((mean_error / marginal).max())
    worst_variance = float((cov_error.diagonal() / cov.diagonal()).max())
    print(f"{time.perf_counter() - began:.0f} s")
    print(f"largest error of a mean, in posterior standard deviations: {worst:.4f}")
    print(f"largest error of a variance, relative: {worst_variance:.4f}")
    print(f"largest difference of the two halves, in its error: {float(drift):.1f}")


if __name__ == "__main__":
    main()
