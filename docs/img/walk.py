"""Draw walk.gif, the picture of the README that moves: plain against annealed Langevin.

Usage: python docs/img/walk.py
"""

from pathlib import Path

import torch

import gradlogp as glp

law = glp.GaussianMixture([0.2, 0.8], torch.tensor([[-4.0, 0.0], [4.0, 0.0]]), 1.0)
score = glp.ExactScore(law, glp.schedules.VE(0.2, 10.0))
generator = torch.Generator().manual_seed(1)
start = glp.terminal(score).sample(200, generator=generator)

times = torch.linspace(1, 0, 40)
annealed: list[torch.Tensor] = []
dynamics = glp.diffusion.AnnealedLangevin(n_steps=10, relative_step=0.3)
end = glp.evolve(
    dynamics, score, start, times, generator=generator, callback=lambda z, t: annealed.append(z)
)
plain = glp.run(glp.langevin.ULA(0.03), law, start, 400, thin=10, generator=generator).draws
plain = torch.cat([start[None], plain.transpose(0, 1)])
weights = [float((x[:, 0] > 0).double().mean()) for x in (plain[-1], end)]

sigmas = [float(score.schedule(t)[1]) for t in times]
glp.show.animate(
    {"plain Langevin": plain, "annealed Langevin": torch.stack([*annealed, end])},
    Path(__file__).with_suffix(".gif"),
    density=law.log_prob,
    captions=[f"noise σ = {sigma:.2f}" for sigma in sigmas]
    + ["weight of the right mode: {:.2f} and {:.2f}, exact 0.80".format(*weights)],
    bounds=(-9.0, 9.0, -6.0, 6.0),
    trail=0,
    hold=3.0,
)
print(weights)
