"""Learn the score of two Gaussians, sample with it, and compare both with the exact results.

Usage: python examples/learn_a_mixture.py
"""

import torch

import gradlogp as glp


def main() -> None:
    g = torch.Generator().manual_seed(0)
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    law = glp.GaussianMixture([0.3, 0.7], means, 0.5)
    schedule = glp.schedules.VE(0.05, 10.0)
    exact = glp.ExactScore(law, schedule)

    model = glp.ScoreModel(glp.MLP(2, 48, generator=g), schedule, predicts="v")
    settings = glp.TrainingSettings(steps=300, batch_size=512, learning_rate=3e-3)
    x = law.sample(20_000, generator=g)
    records = glp.fit(model, x, settings=settings, exact=exact, check_every=100, generator=g)
    for record in records:
        if record.excess is not None:
            print(f"step {record.step}: loss {record.loss:.3f}, above its floor {record.excess}")
    assert record.excess is not None
    assert record.excess.value < 0.02  # the loss of the exact score has an excess of 0

    samples = glp.evolve(glp.diffusion.ProbabilityFlow(), model, 4000, generator=g)
    held_out, other = law.sample(4000, generator=g), law.sample(4000, generator=g)
    distance = glp.metrics.sliced_wasserstein(samples, held_out, generator=g)
    floor = glp.metrics.sliced_wasserstein(other, held_out, generator=g)
    weight = float((samples[:, 0] > 0).float().mean())
    print(f"sliced Wasserstein distance {distance}, between exact samples {floor}")
    print(f"weight of the right mode {weight:.3f}, exactly 0.7")
    assert distance.value < 0.2
    assert abs(weight - 0.7) < 0.05


if __name__ == "__main__":
    main()
