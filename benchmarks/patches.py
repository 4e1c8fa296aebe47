"""Patches of real pictures: results of some minutes of training, in standard errors.

    python benchmarks/patches.py [--minutes 5 | --steps 1600] [--n 500] [--seed 0] [--out FILE] [file …]
    PYTHONPATH=peers python benchmarks/patches.py --others [--threads 2]

2,400 patches of 32×32 pixels at random places of the two pictures of scikit-learn (china, flower),
or of other pictures, are learned by `ScoreEstimator` at its defaults, and new ones are drawn. Means
over patches of channel means, second and third moments, and of the power of the grey picture in rings
of frequencies are compared with those of the real ones. The floor is the same between two halves of
these. Patches overlap, so the standard errors of the real ones, and of the floor, are slightly too
small. On a machine that does other things too, results are comparable for the same `--steps`.

`--others` also runs those of `peers_patches.py`, the networks for as long as ours needed with all that
follows, and writes `patches.json`: how many of the 19 numbers are beyond two standard errors, the
largest, and the seconds. `time_to_quality.py` says how to install peers. "fresh" are other patches of
the same pictures: what perfect draws would do.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

import gradlogp as glp

RINGS = ((0.5, 1.5), (1.5, 3.0), (3.0, 6.0), (6.0, 10.0), (10.0, 16.0))
SIDE = 32


def patches(n=2400, seed=0, files=()):
    """Patches (n, 3, 32, 32) from 0 to 255, as many of each picture."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, found = np.random.default_rng(seed), []
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    images = images or load_sample_images().images
    for image in images:
        for _ in range(n // len(images)):
            i, j = (rng.integers(0, k - SIDE) for k in image.shape[:2])
            found.append(image[i : i + SIDE, j : j + SIDE])
    return torch.as_tensor(np.moveaxis(np.stack(found), 3, 1)).float()


def looks(y, centre):
    """Numbers of each patch, by name."""
    found = {}
    for c, name in enumerate(("red", "green", "blue")):
        v = y[:, c].flatten(1)
        found[f"mean {name}"] = v.mean(1)
        found[f"second moment {name}"] = (v - centre[c]).square().mean(1)
        found[f"third moment {name}"] = ((v - centre[c]) ** 3).mean(1)
    grey = y.mean(1)
    power = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square() / SIDE**2
    k = torch.fft.fftfreq(SIDE, 1 / SIDE)
    radius = (k[:, None] ** 2 + k**2).sqrt()
    for low, high in RINGS:
        ring = power[:, (radius >= low) & (radius < high)].mean(1)
        found[f"power {low:g} to {high:g}"] = ring
        found[f"log power {low:g} to {high:g}"] = (ring + 0.01).log10()
    return found


def deviations(a, b, centre):
    """Differences of means in standard errors."""
    p, q = looks(a, centre), looks(b, centre)
    return {
        name: float((v.mean() - q[name].mean()) / (v.var() / len(a) + q[name].var() / len(b)).sqrt())
        for name, v in p.items()
    }  # fmt: skip


def summary(new, real, centre):
    """How many numbers are beyond two standard errors, and the largest in absolute value."""
    found = deviations(new, real, centre)
    name = max(found, key=lambda name: abs(found[name]))
    return {"beyond": sum(abs(v) > 2 for v in found.values()), "worst": found[name], "of": name}


def timed(call, *arguments):
    began = time.monotonic()
    return call(*arguments), time.monotonic() - began


def others(x, n, seconds, seed, centre, files):
    """The same numbers of each other method, and of fresh patches."""
    from peers_patches import methods

    real = x.double()
    found = {"fresh": summary(patches(n, 1000 + seed, files).double(), real, centre)}
    for name, method in methods().items():
        torch.manual_seed(seed)
        draw, learning = timed(method, x, seconds)
        new, drawing = timed(draw, n)
        found[name] = summary(new.double(), real, centre)
        found[name] |= {"seconds": learning, "seconds_of_draws": drawing}
        print(name, found[name], flush=True)
    return found


def picture(new, real, path):
    from gradlogp.show.plots import image_grid, png

    rows = [("drawn", new[:16]), ("real", real[:16])]
    Path(path).write_bytes(png(image_grid(rows)))


def main():
    parser = argparse.ArgumentParser()
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=5.0)
    length.add_argument("--steps", type=int, default=None)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the patches and the training")
    parser.add_argument("--out", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--others", action="store_true", help="also run other methods")
    parser.add_argument("pictures", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = patches(seed=arguments.seed, files=arguments.pictures)
    steps = arguments.steps
    length = {"minutes": arguments.minutes} if steps is None else {"steps": steps}
    settings = glp.TrainingSettings(**length)
    estimator = glp.ScoreEstimator(settings=settings, random_state=arguments.seed, verbose=True)
    _, seconds = timed(estimator.fit, x)
    new, drawing = timed(estimator.sample, arguments.n)
    new, real = new.double(), x.double()
    centre = real.mean((0, 2, 3))
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    first, second = real[order[: len(real) // 2]], real[order[len(real) // 2 :]]
    ours, floor = deviations(new, real, centre), deviations(first, second, centre)
    print(f"{estimator.n_iter_} steps, held-out loss {estimator.held_out_loss_}")
    print("| look | drawn against real | two halves of the real |\n|---|---|---|")
    for name, value in ours.items():
        print(f"| {name} | {value:+.1f} | {floor[name]:+.1f} |")
    print(f"{seconds:.0f} seconds, and {drawing:.0f} for the draws")
    if arguments.others:
        own = summary(new, real, centre) | {"seconds": seconds, "seconds_of_draws": drawing}
        asked = x, arguments.n, seconds, arguments.seed, centre, arguments.pictures
        found = {"gradlogp": own} | others(*asked)
        made = {
            "torch": torch.__version__, "machine": platform.processor(), "n": arguments.n,
            "threads": arguments.threads, "seed": arguments.seed, "steps": estimator.n_iter_,
        }  # fmt: skip
        record = json.dumps({"environment": made, "methods": found}, indent=1)
        Path(__file__).with_suffix(".json").write_text(record)
    if arguments.out:
        picture(new.clamp(0, 255), real[order], arguments.out)


if __name__ == "__main__":
    main()
