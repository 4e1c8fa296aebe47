"""How time and memory grow with the number of points, dimensions, components, chains and pixels.

    python benchmarks/scaling.py [--only mmd] [--out benchmarks/scaling.json]

Each function is run at five sizes, each twice the one before, on one thread. An exponent is the slope
of the logarithm over the last three sizes, where what does not grow no longer hides what does: CPU
seconds (the least of three runs), and the memory that a forked process needs beyond what it began with.
`bound` is what the documentation says; an exponent above it by more than 0.25 ends in exit code 1.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import gradlogp as glp
from gradlogp.check import metrics
from gradlogp.noise.ladder import noise_span

ROOM = 0.25  # caches end somewhere
PAGE = """# How time and memory grow

`python benchmarks/scaling.py`: exponents over the last three of five sizes, each twice the one
before; `scaling.json` has the seconds. Memory that is less than 8 MB more at the largest size than at
the smallest says nothing of how it grows, and is left out.

| function | grows with | sizes | time | memory | documented |
|---|---|---|---|---|---|
"""


def seeded():
    return torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=seeded())


def doubled(first):
    return [first * 2**i for i in range(5)]


def mixture(k, d, cov=0.5):
    return glp.GaussianMixture(torch.full((k,), 1 / k), 3 * normal(k, d), cov)


def model(d):
    return glp.ScoreModel(glp.MLP(d, 64, generator=seeded()), glp.schedules.VE(0.01, 10.0), "v")


def empirical(n):
    score = glp.EmpiricalScore(normal(n, 8), glp.schedules.VP())
    return lambda: score(normal(256, 8), torch.tensor(0.5))


def components(k):
    law = mixture(k, 8)
    return lambda: law.score(normal(2000, 8))


def covariances(d):
    law = mixture(10, d, torch.eye(d).expand(10, d, d))
    return lambda: law.score(normal(1000, d))


def gaussian(d):
    return lambda: glp.Gaussian(torch.zeros(d), torch.eye(d)).score(normal(500, d))


def drawn(n):
    score, ddim = glp.ExactScore(mixture(3, 2), glp.schedules.VP()), glp.diffusion.DDIM()
    times = glp.time_grid(score.schedule, 10)
    return lambda: glp.evolve(ddim, score, n, times, generator=seeded(), chunk_size=4096)


def likely(n, d=4):
    return lambda: glp.log_likelihood(model(d), normal(n, d), n_steps=4, chunk_size=1024)


def chains(n, d=2, n_draws=40):
    law = glp.Gaussian(torch.zeros(d), torch.eye(d))
    return lambda: glp.run(glp.langevin.MALA(0.5), law, normal(n, d), n_draws, generator=seeded())


def moved(kernel, n, d=2, n_steps=40):
    law = glp.Gaussian(torch.zeros(d), torch.eye(d))
    return lambda: glp.run(kernel, law, normal(n, d), n_steps, generator=seeded(), engine="torch")


def sampled(n_chains):
    law = mixture(3, 4)
    more = {"n_warmup": 100, "start": normal(n_chains, 4), "generator": seeded()}
    return lambda: glp.sample(law, 100, n_chains, **more)


def normaliser(n_particles):
    law = mixture(3, 2)
    draws, more = law.sample(500, generator=seeded()), {"levels": [0.0, 0.3, 0.6, 1.0]}
    return lambda: glp.langevin.evidence(
        law, draws, n_particles=n_particles, generator=seeded(), **more
    )


def bounded(n):
    score = glp.ExactScore(mixture(3, 2), glp.schedules.VP())
    return lambda: glp.variational_bound(score, normal(n, 2), generator=seeded(), chunk_size=512)


def dimensions(n, d=10):
    law = glp.Gaussian(torch.zeros(d), torch.eye(d))
    return lambda: glp.geometry.intrinsic_dimension(
        lambda x: law.score(x), normal(n, d), 0.1, generator=seeded()
    )


def climbed(n):
    law = mixture(3, 2)
    return lambda: glp.geometry.find_modes(law, 3 * normal(n, 2))


def restored(n):
    score = glp.ExactScore(mixture(3, 2), glp.schedules.VP())
    seen = glp.inverse.Observation(torch.zeros(1, 2), glp.inverse.Identity(), 0.3)
    step = glp.inverse.DPSStep(glp.diffusion.DDIM(), seen)
    times = glp.time_grid(score.schedule, 10)
    return lambda: glp.evolve(step, score, n, times, generator=seeded(), chunk_size=4096)


def calibrated(n):
    draw = lambda y, m, g: y / 2 + torch.randn(m, 1, generator=g) / 2**0.5
    return lambda: glp.check.sbc(
        lambda m, g: torch.randn(m, 1, generator=g),
        lambda theta, g: theta + torch.randn(1, generator=g), draw,
        n_simulations=n, generator=seeded(),
    )  # fmt: skip


def tabled(n):
    frame = pd.DataFrame(normal(n, 4).numpy(), columns=list("abcd"))
    frame["kind"] = np.where(frame.a > 0, "high", "low")
    estimator = glp.ScoreEstimator(max_iter=5, random_state=0)
    return lambda: glp.TableEstimator(estimator).fit(frame)


def verdict(n):
    chain = chains(n, n_draws=100)()
    return lambda: dataclasses.replace(chain).verdict


def trained(batch, d=8):
    records = glp.fit(model(d), normal(4096, d), steps=10**6, batch_size=batch, generator=seeded())
    return lambda: [next(records) for _ in range(10)]


def mapped(n):
    """A whole fit of five steps, with all that is looked at before, of rows on disk."""
    file = Path(tempfile.gettempdir()) / f"gradlogp-scaling-{n}.npy"
    x = np.lib.format.open_memmap(file, "w+", np.float32, (n, 4))
    x[:] = np.random.default_rng(0).standard_normal((n, 4), dtype=np.float32)
    x = np.load(file, mmap_mode="r")
    file.unlink()  # what is mapped stays until nobody has it
    return lambda: glp.ScoreEstimator(max_iter=5, base="gaussian", random_state=0).fit(x)


def network(pixels):
    side = math.isqrt(pixels)
    net, x = glp.UNet((3, side, side), (16, 32), generator=seeded()), normal(4, 3, side, side)
    return lambda: net(x, torch.zeros(4)).sum().backward()


def of_samples(f, n, d=8, sets=1):
    x = normal(sets * n, d).split(n)
    return lambda: f(*x)


METRICS = {
    "noise_span": (lambda x: noise_span(x, seeded()), 1, doubled(8000), (1, 1)),
    "metrics.mean_score": (lambda x: metrics.mean_score(torch.neg, x), 1, doubled(128_000), (1, 1)),
    "metrics.sliced_wasserstein": (
        lambda x, y: metrics.sliced_wasserstein(x, y, generator=seeded()), 2, doubled(8000), (1.1, 1),
    ),
    "metrics.mmd": (lambda x, y: metrics.mmd(x, y, generator=seeded()), 2, doubled(250), (2, 2)),
    "metrics.ksd": (lambda x: metrics.ksd(torch.neg, x, generator=seeded()), 1, doubled(250), (2, 1)),
    "metrics.c2st": (lambda x, y: metrics.c2st(x, y, generator=seeded()), 2, doubled(1000), (1, 1)),
    "metrics.copies": (metrics.copies, 3, doubled(1000), (2, 1)),
    "metrics.nearest_neighbours": (metrics.nearest_neighbours, 3, doubled(1000), (2, 1)),
    "check.compare": (
        lambda x, y, z: glp.check.compare(x, y, z, baselines=False, generator=seeded()), 3,
        doubled(2000), (1.1, 1),
    ),
}  # fmt: skip

# name, what grows, sizes, from a size to the work, exponents of time and memory that are documented
CASES = [
    ("EmpiricalScore", "N", doubled(4000), empirical, (1, 1)),
    ("GaussianMixture.score", "K", doubled(256), components, (1, 1)),
    ("GaussianMixture.score, full", "d", doubled(8), covariances, (2, 2)),
    ("Gaussian", "d", doubled(64), gaussian, (3, 2)),
    ("evolve, DDIM", "samples", doubled(8000), drawn, (1, 1)),
    ("log_likelihood, exact", "points", doubled(500), likely, (1, 1)),
    ("log_likelihood, exact", "d", doubled(4), lambda d: likely(200, d), (2, 1)),
    ("run, MALA", "chains", doubled(2000), chains, (1, 1)),
    ("run, MALA", "d", doubled(32), lambda d: chains(500, d), (2, 2)),
    ("run, NUTS", "chains", doubled(64), lambda n: moved(glp.langevin.NUTS(0.5), n), (1, 1)),
    (
        "run, ParallelTempering",
        "chains",
        doubled(2000),
        lambda n: moved(glp.langevin.ParallelTempering(0.3, (1.0, 2.0, 4.0)), n),
        (1, 1),
    ),
    (
        "run, SVGD",
        "particles",
        doubled(125),
        lambda n: moved(glp.langevin.SVGD(0.3), n, n_steps=3),
        (2, 2),
    ),
    ("sample", "chains", doubled(64), sampled, (1, 1)),
    ("langevin.evidence", "particles", doubled(4000), normaliser, (1, 1)),
    ("variational_bound", "points", doubled(250), bounded, (1, 1)),
    ("evolve, DPSStep", "samples", doubled(4000), restored, (1, 1)),
    ("geometry.intrinsic_dimension", "points", doubled(250), dimensions, (1, 1)),
    ("geometry.intrinsic_dimension", "D", doubled(4), lambda d: dimensions(100, d), (3, 2)),
    ("geometry.find_modes", "starts", doubled(250), climbed, (1, 1)),
    ("check.sbc", "simulations", doubled(250), calibrated, (1, 1)),
    ("TableEstimator.fit", "rows", doubled(2000), tabled, (1, 1)),
    ("Chain.verdict", "chains", doubled(500), verdict, (1, 1)),
    ("fit, ten steps", "batch", doubled(256), trained, (1, 1)),
    ("fit, ten steps", "d", doubled(64), lambda d: trained(512, d), (1, 1)),
    ("ScoreEstimator.fit, on disk", "rows", doubled(2**20), mapped, (1, 1)),
    (
        "UNet, forward and backward",
        "pixels",
        [n * n for n in (16, 24, 32, 48, 64)],
        network,
        (1, 1),
    ),
    *(
        (name, "n", sizes, partial(of_samples, f, sets=sets), bounds)
        for name, (f, sets, sizes, bounds) in METRICS.items()
    ),
]


def memory(work):
    """Megabytes that the work needs beyond what there was, in a process of its own."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code = 1
        try:
            work()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(write, str((after - before) / 1024).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as found:
        text = found.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the forked process failed")
    return float(text)


def seconds(work):
    work()
    times = []
    for _ in range(3):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def slope(sizes, values):
    """Least squares on logarithms over the last three."""
    x, y = (
        torch.tensor(v[-3:], dtype=torch.float64).clamp(min=1e-9).log() for v in (sizes, values)
    )
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, lines, over = [], [], []
    for name, grows, sizes, make, bounds in CASES:
        if args.only not in name:
            continue
        used = [memory(make(size)) for size in sizes]
        times = [seconds(make(size)) for size in sizes]
        found = slope(sizes, times), slope(sizes, used) if used[-1] > used[0] + 8 else None
        for what, exponent, bound in zip(("time", "memory"), found, bounds, strict=True):
            if exponent is not None and exponent > bound + ROOM:
                over.append(f"{name}: {what} grows as {grows}^{exponent:.2f}, said to be {bound}")
        rows.append({
            "function": name, "grows": grows, "sizes": sizes, "seconds": times, "megabytes": used,
            "time": found[0], "memory": found[1], "bound": bounds,
        })  # fmt: skip
        shown = "" if found[1] is None else f"{found[1]:.2f}"
        lines.append(
            f"| {name} | {grows} | {sizes[0]:,} to {sizes[-1]:,} | {found[0]:.2f} | {shown} | "
            f"{bounds[0]:g}, {bounds[1]:g} |"
        )
        print(lines[-1], [f"{t:.3f}" for t in times], [f"{m:.0f}" for m in used], flush=True)
    print(*over, sep="\n")
    if not args.only:
        facts = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
        args.out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(PAGE + "\n".join(lines) + "\n")
    sys.exit(bool(over))


if __name__ == "__main__":
    main()
