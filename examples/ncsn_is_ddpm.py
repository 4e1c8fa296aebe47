"""NCSN and DDPM are one model: train both, find the same weights, draw the same samples.

DDPM sees a x_0 + b ε with a = √ᾱ, b = √(1 − ᾱ) and learns ½‖ε − ε̂‖². NCSN sees x_0 + σ ε and learns
σ² ½‖s + ε/σ‖². At σ = b/a these are the same numbers, and s_NCSN(x/a; b/a) = a s_DDPM(x; a, b).

Usage: python examples/ncsn_is_ddpm.py
"""

import torch

import gradlogp as glp

STEPS, BATCH = 100, 256


def train(schedule: glp.core.Schedule, x: torch.Tensor) -> tuple[glp.ScoreModel, list[float]]:
    """Train the same network, in the same order, with the same noise."""
    network = glp.MLP(2, 32, 2, generator=torch.Generator().manual_seed(0)).double()
    model = glp.ScoreModel(network, schedule, predicts="epsilon")
    records = glp.fit(
        model, x, steps=STEPS, batch_size=BATCH, learning_rate=3e-3, ema=0.98, warm_up=10,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return model, [record.loss for record in records]


def main() -> None:
    betas = torch.linspace(1e-3, 0.2, 40, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    sigmas = ((1 - abar) / abar).sqrt().flip(0)  # not √(1 − ᾱ): DDPM's levels, as NCSN has them
    g = torch.Generator().manual_seed(2)
    x = glp.data.toy("moons", 4000, g).x.double()

    ddpm, losses = train(glp.schedules.DDPM(betas), x)
    ncsn, others = train(glp.schedules.Levels(sigmas), x)
    gap = max(abs(a - b) for a, b in zip(losses, others, strict=True))
    print(
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps; largest difference {gap:.1e}"
    )
    assert losses[-1] < 0.8 * losses[0]
    assert gap < 1e-8
    pairs = zip(ddpm.network.parameters(), ncsn.network.parameters(), strict=True)
    weights = max(float((a - b).detach().abs().max()) for a, b in pairs)
    print(f"largest difference of weights {weights:.1e}")
    assert weights < 1e-6

    # NCSN's network read as DDPM's: the same score, so DDIM from the same noise ends the same
    read = glp.RescheduledScore(ncsn, ddpm.schedule)
    start = torch.randn(1000, 2, generator=g, dtype=torch.float64)
    ends = [glp.evolve(glp.diffusion.DDIM(), score, start) for score in (ddpm, read)]
    apart = float((ends[0] - ends[1]).abs().max())
    distance = glp.metrics.sliced_wasserstein(ends[0], x[:1000], generator=g)
    print(f"largest difference of samples {apart:.1e}; {distance} from the data")
    assert apart < 1e-5
    raw = glp.evolve(glp.diffusion.DDIM(), ncsn, start)  # without the rescaling
    assert float((raw - ends[0]).abs().max()) > 0.1


if __name__ == "__main__":
    main()
