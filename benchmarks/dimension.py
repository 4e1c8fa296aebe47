"""Intrinsic dimension from scores, exact and learned, beside estimators from distances of points.

Spheres, tori and subspaces of known dimension k, turned in a larger space: from the exact score at
σ = 0.05, from a small network trained on 3000 points, and from scikit-dimension on the same points
where it is installed. The learned score is read at the middle of the range that `recommend_sigma`
finds; what it is off from the exact one there, E‖ŝ − s‖²/E‖s‖², stands beside it. Handwritten digits
have no known k; their network is class-conditional, and each class has about 180 images only.

    python benchmarks/dimension.py [--steps 3000]
"""

import argparse
import json
import math
import platform
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

import gradlogp as glp
from gradlogp import geometry as manifold
from gradlogp.core import mean_and_error
from gradlogp.distributions import AffineSubspace, UniformSphere, VonMisesCircle
from gradlogp.distributions.analytic.products import Embedded, Product
from gradlogp.learn.data import load
from gradlogp.noise.blurred import blurred
from gradlogp.noise.grids import noise_range

HERE = Path(__file__).parent
ESTIMATORS = ("normal_rank", "norm", "divergence", "flipd")
POINTS, N = 40, 3000


def turned(law, D):
    A = torch.randn(D, law.event_shape[0], generator=torch.Generator().manual_seed(0))
    return Embedded(law, torch.linalg.qr(A.double())[0])


def known():
    basis = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)).double() / 30**0.5
    circle = VonMisesCircle(torch.ones((), dtype=torch.float64), 1.0)
    sphere = lambda d: UniformSphere(d, torch.ones((), dtype=torch.float64))
    return {
        "circle with a density in R¹⁰": (turned(circle, 10), 1, True),
        "sphere S² in R¹⁰": (turned(sphere(3), 10), 2, True),
        "sphere S⁹ in R³⁰": (turned(sphere(10), 30), 9, True),
        "torus T³ in R¹⁰": (turned(Product([circle] * 3), 10), 3, True),
        "torus T¹⁰ in R⁵⁰": (turned(Product([circle] * 10), 50), 10, False),
        "Gaussian on a subspace of dimension 8 in R³⁰": (AffineSubspace(basis), 8, True),
        "sphere S²⁰ in R¹⁰⁰": (turned(sphere(21), 100), 20, False),
    }


def score_at(score):
    low, high = noise_range(score.schedule)
    return lambda sigma: blurred(score, min(max(sigma, low), high)).score, low, high


def estimates(score, x, sigma, generator):
    found = {}
    for estimator in ESTIMATORS:
        result = manifold.intrinsic_dimension(
            score, x, sigma, estimator=estimator, generator=generator
        )
        found[estimator] = list(mean_and_error(result.value))
    return found


def learned(x, steps, labels=None):
    began = time.perf_counter()
    estimator = glp.ScoreEstimator(max_iter=steps, width=128, standardize=False, random_state=0,
                                   condition=None if labels is None else "classes")  # fmt: skip
    estimator.fit(x, labels)
    return estimator.model_.double().requires_grad_(False), time.perf_counter() - began


def middle(at, low, high, z):
    """The middle of the steady range of σ, or the level 3 times the lowest where there is none."""
    sigmas = torch.logspace(math.log10(low), math.log10(high), 15).double()
    try:
        found = manifold.recommend_sigma(at, z, sigmas, tolerance=0.5)
    except ValueError:
        return 3 * low, False
    return math.sqrt(found.low * found.high), True


def by_distances(x):
    """Global estimates of scikit-dimension, and its version; nothing where it is not installed."""
    try:
        import skdim
    except ImportError:
        return {}
    makers = {"MLE": skdim.id.MLE, "TwoNN": skdim.id.TwoNN, "lPCA": skdim.id.lPCA,
              "CorrInt": skdim.id.CorrInt}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: float(make().fit(np.asarray(x)).dimension_) for name, make in makers.items()}


def row_of(name, law, k, train, steps):
    g = torch.Generator().manual_seed(0)
    x = law.sample(N, generator=g)
    z = x[:POINTS].double()
    row = {"data": name, "k": k, "D": x.shape[1],
           "exact": estimates(law.noised(1.0, 0.05).score, z, 0.05, g)}  # fmt: skip
    if train:
        model, seconds = learned(x.float().numpy(), steps)
        at, low, high = score_at(model)
        sigma, steady = middle(at, low, high, z)
        y = law.noised(1.0, sigma).sample(1000, generator=g).double()
        s = law.noised(1.0, sigma).score(y)
        error = float((at(sigma)(y) - s).square().sum() / s.square().sum())
        row |= {"learned": estimates(at(sigma), z, sigma, g), "sigma": sigma, "steady": steady,
                "score_error": error, "seconds": seconds}  # fmt: skip
    began = time.perf_counter()
    row["distances"] = by_distances(x)
    print(f"{name}: {row.get('seconds', 0):.0f} s of training, "
          f"{time.perf_counter() - began:.0f} s of scikit-dimension", flush=True)  # fmt: skip
    return row


def digits(steps):
    data = load("digits")
    x, g = data.x.flatten(1).float(), torch.Generator().manual_seed(0)
    x = x[:, x.std(0) > 0]  # three corners are blank in every image
    model, seconds = learned(x.numpy(), steps, data.labels.numpy())
    print(f"digits: {seconds:.0f} s of training", flush=True)
    for digit in range(10):
        mine = x[data.labels == digit].double()
        z = mine[:20]
        at, low, high = score_at(model.given(digit))
        sigma, steady = middle(at, low, high, z)
        yield {"data": f"digit {digit}, {len(mine)} images", "k": None, "D": x.shape[1], "sigma": sigma,
               "steady": steady, "learned": estimates(at(sigma), z, sigma, g),
               "distances": by_distances(mine)}  # fmt: skip


def table(rows):
    names = [*(f"exact {e}" for e in ESTIMATORS), *(f"learned {e}" for e in ESTIMATORS)]
    others = list(next((r["distances"] for r in rows if r["distances"]), {}))
    head = ["data", "k", "D", *names, "learned at σ", "score error", *others]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = [r["data"], "?" if r["k"] is None else str(r["k"]), str(r["D"])]
        for kind in ("exact", "learned"):
            for e in ESTIMATORS:
                cells.append("{:.2f} ± {:.2f}".format(*r[kind][e]) if kind in r else "")
        shown = (
            "" if "sigma" not in r else f"{r['sigma']:.2g}{'' if r['steady'] else ', not steady'}"
        )
        cells += [shown, f"{r['score_error']:.3f}" if "score_error" in r else ""]
        cells += [f"{r['distances'][o]:.2f}" if o in r["distances"] else "" for o in others]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def write(rows, steps):
    """Write what there is so far, as JSON and as a table."""
    facts = {"python": platform.python_version(), "torch": version("torch"), "threads": 1,
             "points": N, "steps": steps}  # fmt: skip
    try:
        facts["scikit-dimension"] = version("scikit-dimension")
    except PackageNotFoundError:
        facts["scikit-dimension"] = None
    text = json.dumps({"facts": facts, "rows": rows}, indent=1, ensure_ascii=False)
    (HERE / "dimension.json").write_text(text + "\n")
    (HERE / "dimension.md").write_text(table(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="of training, each network")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    rows = []
    for name, what in known().items():
        rows.append(row_of(name, *what, steps))
        write(rows, steps)
    for row in digits(steps):
        rows.append(row)
        write(rows, steps)
    print(table(rows))


if __name__ == "__main__":
    main()
