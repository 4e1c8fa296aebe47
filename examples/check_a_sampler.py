"""Check diffusion samplers without training: exact score, known law, order of convergence.

Data and samples are Gaussian, so the error of a sampler is that of the mean and the variance.
Deterministic maps are affine here: two starting points determine the variance without noise.

Usage: python examples/check_a_sampler.py
"""

import math

import torch

import gradlogp as glp


def deviation(transition: glp.diffusion.ProbabilityFlow, steps: int) -> float:
    """Return the standard deviation of samples of N(1, ½²); the map is x -> b + c x."""
    schedule = glp.schedules.VE(0.01, 10.0)
    law = glp.Gaussian([1.0], 0.25)
    spread = math.sqrt(0.25 + 100.0)  # of the law at t = 1
    ends = torch.tensor([[1.0], [1.0 + spread]], dtype=torch.float64)
    times = glp.time_grid(schedule, steps, t_min=0.0)
    score = glp.ExactScore(law, schedule)
    low, high = glp.evolve(transition, score, ends, times, denoise=False).flatten()
    return float(high - low)


def main() -> None:
    exact = math.sqrt(0.25 + 0.01**2)
    for order in (1, 2):
        transition = glp.diffusion.ProbabilityFlow(order)
        errors = [abs(deviation(transition, 1 + n) / exact - 1) for n in (64, 128)]
        observed = math.log2(errors[0] / errors[1])
        print(
            f"order {order}: relative errors {errors[0]:.1e}, {errors[1]:.1e}, order {observed:.2f}"
        )
        assert abs(observed - order) < 0.2

    law = glp.GaussianMixture([0.2, 0.8], torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), 1.0)
    schedule = glp.schedules.Levels(torch.logspace(1.3, -1.5, 40))
    exact_score = glp.ExactScore(law, schedule)
    g = torch.Generator().manual_seed(0)
    annealed = glp.diffusion.AnnealedLangevin(n_steps=30, relative_step=0.3)
    x = glp.evolve(annealed, exact_score, 4000, generator=g)
    found = float((x[:, 0] > 0).float().mean())
    print(f"weight of the right mode by annealed Langevin {found:.3f}, exactly 0.8")
    assert abs(found - 0.8) < 0.03


if __name__ == "__main__":
    main()
