"""Sample a density known up to a constant, by Langevin dynamics with and without correction.

The density is exp(−8 (|x| − 2)²), a ring in the plane, for which E(|x| − 2)² = 1/16.

Usage: python examples/sample_a_density.py
"""

import torch

import gradlogp as glp
from gradlogp.core import Estimate, mean_and_error


def thickness(kernel: glp.langevin.ULA | glp.langevin.MALA) -> Estimate:
    """Return E(|x| − 2)², with an error over chains."""
    ring = glp.as_target(energy=lambda x: 8 * (x.norm(dim=1) - 2).square())
    g = torch.Generator().manual_seed(0)
    start = torch.randn(500, 2, generator=g)
    chain = glp.run(kernel, ring, start, n_steps=400, burn_in=100, generator=g)
    return mean_and_error((chain.draws.norm(dim=-1) - 2).square().mean(1))


def main() -> None:
    exact = 1 / 16
    print(f"exactly {exact}")
    for step_size in (0.06, 0.03):
        corrected, plain = (
            thickness(glp.langevin.MALA(step_size)),
            thickness(glp.langevin.ULA(step_size)),
        )
        print(f"step {step_size}: MALA {corrected}, ULA {plain}")
        assert abs(corrected.value - exact) < 4 * corrected.standard_error
        assert abs(plain.value - exact) > 10 * plain.standard_error  # ULA has another law


if __name__ == "__main__":
    main()
