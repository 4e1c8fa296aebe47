"""Draw mixture.png, the picture of the README: a learned score field beside the exact one.

Usage: python docs/img/mixture.py
"""

from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.show.plots import fields, png

generator = torch.Generator().manual_seed(0)
law = glp.GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0)
schedule = glp.schedules.VE(0.05, 10.0)
model = glp.ScoreModel(glp.MLP(2, 96, generator=generator), schedule, predicts="v")
x = law.sample(50_000, generator=generator)
settings = glp.TrainingSettings(steps=1000, batch_size=1024, learning_rate=3e-3)
for record in glp.fit(model, x, settings=settings, generator=generator):
    if record.step % 100 == 0:
        print(record.step, f"{record.loss:.4f}")

t = torch.zeros(())  # the smallest noise level
exact = glp.ExactScore(law, schedule)
with torch.no_grad():
    held_out = law.sample(10_000, generator=generator)
    print(glp.metrics.fisher_divergence(lambda p: model(p, t), lambda p: exact(p, t), held_out))
    figure = fields(
        [("learned score", lambda p: model(p, t)), ("exact score", lambda p: exact(p, t))],
        bounds=(-5.0, 5.0, -4.0, 4.0),
        density=law.log_prob,
    )
Path(__file__).with_suffix(".png").write_bytes(png(figure))
