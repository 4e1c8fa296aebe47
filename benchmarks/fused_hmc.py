"""HMC with jittered lengths: PyTorch beside the fused loops, CPU microseconds a step and chain.

    python benchmarks/fused_hmc.py

One thread, float32, five leapfrog steps in the mean; the least of three runs after one that compiles.
"""

import time
import warnings

import torch

import gradlogp as glp
from gradlogp.distributions import targets
from gradlogp.langevin import HMC

STEPS = {4: 400, 1000: 100, 10_000: 20}
"""Chains -> steps of a run; a tenth in many dimensions."""


def laws():
    """Return what is sampled: two cheap densities in the plane, one that costs a matrix product."""
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(1000, generator=g) < 0.5).float()
    mixture = glp.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.5, 1.0]], [[1.0, 0.5], [0.6, 1.2]])
    return {
        "mixture, d = 2": mixture,
        "banana, d = 2": targets.Banana(),
        "logistic regression, d = 24": targets.LogisticRegression(
            torch.randn(1000, 24, generator=g), y
        ),
    }


def microseconds(law, n, engine):
    """Return CPU microseconds a step and chain."""
    (d,) = law.event_shape
    g = torch.Generator().manual_seed(1)
    x0 = 0.1 * torch.randn(n, d, generator=g)
    kernel, steps = HMC(0.2 if d == 2 else 0.02, 5), STEPS[n] if d == 2 else STEPS[n] // 10
    glp.run(kernel, law, x0, 3, engine=engine, generator=g)
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        glp.run(kernel, law, x0, steps, engine=engine, generator=g)
        seconds.append(time.thread_time() - began)
    return 1e6 * min(seconds) / steps / n


def main():
    """Print a row for each law and number of chains."""
    torch.set_num_threads(1)
    warnings.filterwarnings(
        "ignore", "", RuntimeWarning
    )  # of steps that diverge, and take as long
    print("| density | chains | PyTorch, µs | fused, µs | ratio |\n|---|---|---|---|---|")
    for name, law in laws().items():
        for n in STEPS:
            plain, fused = (microseconds(law, n, engine) for engine in ("torch", "fused"))
            print(f"| {name} | {n:,} | {plain:.3g} | {fused:.3g} | {plain / fused:.3g} |")


if __name__ == "__main__":
    main()
