"""On a GPU, in at most eight minutes: are the laws right, does the host wait, what does a step cost?

    python benchmarks/gpu.py [--device cuda] [--seconds 480] [--out gpu.json] [--small]

1. Laws, each within five of its standard errors: the stationary variance of ULA, MALA and HMC, the
   moments that solvers draw from an exact mixture, a likelihood beside the density.
2. Waits of the host for the device in a step of `run`, `evolve` and `fit`, counted by
   `torch.cuda.set_sync_debug_mode`: those of twice the steps minus those of the steps.
3. Ratios within the run: chains to their noise and bare score, `evolve` and `fit` to the bare
   network, in float32 and bfloat16.

Ratios that would come after --seconds are left out, and said to be. `--small` runs all of it on a CPU.
"""

import argparse
import json
import math
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.diffusion import DDIM, Ancestral, UniPC
from gradlogp.langevin import HMC, MALA, ULA

VARIANCES = torch.tensor([1.0, 4.0])


class Clock:
    """Seconds on the device, and how many are left."""

    def __init__(self, device, seconds):
        self.device, self.end = device, time.monotonic() + seconds

    @property
    def over(self):
        return time.monotonic() > self.end

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def best(self, work, repeats=3):
        """The least of some runs, after one that warms up; fewer once the time is over."""
        times = []
        for _ in range(repeats + 1):
            if self.over and len(times) > 1:
                break
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began)
        return min(times[1:])


def seeded(device):
    return torch.Generator(device).manual_seed(0)


def mixture(device):
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]], device=device)
    return glp.GaussianMixture(torch.tensor([0.3, 0.7], device=device), means, 0.5)


def laws(clock, n):
    """Rows: what, found, right, standard error."""
    device, rows = clock.device, []
    v = VARIANCES.to(device)
    target = glp.Gaussian(torch.zeros(2, device=device), torch.diag(v))
    x0 = v.sqrt() * torch.randn(n, 2, device=device, generator=seeded(device))
    h = 0.2
    for kernel, right in ((ULA(h), v / (1 - h / (2 * v))), (MALA(0.5), v), (HMC(0.5, 4), v)):
        x = glp.run(kernel, target, x0, 200, 199, generator=seeded(device)).draws[:, 0]
        for i in range(2):
            error = float(right[i]) * math.sqrt(2 / n)
            rows.append(
                (
                    f"variance {i} under {type(kernel).__name__}",
                    float(x[:, i].var()),
                    float(right[i]),
                    error,
                )
            )
    law = mixture(device)
    score = glp.ExactScore(law, glp.schedules.VE(0.01, 30.0))
    mean = law.weights @ law.means
    for solver, levels in ((UniPC(), 60), (DDIM(), 500), (Ancestral(), 500)):
        times = glp.time_grid(score.schedule, levels)
        x = glp.evolve(solver, score, n, times, generator=seeded(device))
        error = float(x[:, 0].std()) / math.sqrt(n)
        rows.append(
            (f"mean under {type(solver).__name__}", float(x[:, 0].mean()), float(mean[0]), error)
        )
    x = law.sample(1000, generator=seeded(device))
    found = glp.log_likelihood(score, x, n_steps=60)
    right = score.law(torch.tensor(found.t_min, device=device)).log_prob(x)
    rows.append(("log-likelihood", float((found.log_prob - right).abs().max()), 0.0, 1e-3))
    return rows


def waits(work, n):
    """Waits of the host in one step: of 2n steps minus those of n, over n."""

    def count(steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work(steps)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in caught)

    return (count(2 * n) - count(n)) / n


def host_waits(clock):
    """Rows: what, waits a step."""
    device = clock.device
    if device.type != "cuda":
        return [("not counted on a CPU", None)]
    target = glp.Gaussian(torch.zeros(2, device=device), torch.eye(2, device=device))
    x0 = torch.randn(1000, 2, device=device)
    score = glp.ExactScore(mixture(device), glp.schedules.VP())
    data = torch.randn(4096, 2, device=device)

    def train(steps):
        list(glp.fit(model(device), data, steps=steps, check_every=10**6, batch_size=256))

    def solve(steps):
        glp.evolve(UniPC(), score, 1000, glp.time_grid(score.schedule, steps))

    def walk(steps, kernel):
        glp.run(kernel, target, x0, steps)

    return [
        *(
            (f"run, {type(k).__name__}", waits(partial(walk, kernel=k), 50))
            for k in (ULA(0.1), MALA(0.5))
        ),
        ("evolve, UniPC", waits(solve, 20)),
        ("fit", waits(train, 50)),
    ]  # fmt: skip


def model(device, side=None):
    if side is None:
        network = glp.MLP(2, 256, generator=torch.Generator().manual_seed(0))
    else:
        channels = (64, 128, 256) if side > 32 else (8, 16)
        network = glp.UNet((3, side, side), channels, blocks=2, attention=True)
    return glp.ScoreModel(network, glp.schedules.VE(0.01, 30.0), "v").to(device)


def ratios(clock, most, side, batch, rows):
    """Rows: what, microseconds a step, ratio to the floor."""
    device = clock.device
    target = glp.Gaussian(torch.zeros(2, device=device), torch.eye(2, device=device))
    for n in (10**k for k in range(3, round(math.log10(most)) + 1)):
        if clock.over:
            yield f"{n:,} chains and more: no time left", None, None
            break
        x, steps = torch.randn(n, 2, device=device), 50

        def floor(x=x, steps=steps):
            for _ in range(steps):
                torch.randn_like(x)
                target.score(x)

        for kernel in (ULA(0.1), MALA(0.5)):
            if clock.over:
                yield f"run, {type(kernel).__name__}, {n:,} chains: no time left", None, None
                continue
            ours = clock.best(lambda k=kernel, x=x, s=steps: glp.run(k, target, x, s, s - 1))
            yield (
                f"run, {type(kernel).__name__}, {n:,} chains",
                1e6 * ours / steps,
                ours / clock.best(floor),
            )
    for name, m, data in (
        ("MLP 256", model(device), torch.randn(rows, 2, device=device)),
        (
            f"UNet {side}×{side}",
            model(device, side),
            torch.randn(batch, 3, side, side, device=device),
        ),
    ):
        if clock.over:
            yield f"{name}: no time left", None, None
            break
        z, c, levels = data, torch.zeros(len(data), device=device), 6
        times = glp.time_grid(m.schedule, levels)

        @torch.no_grad()
        def bare(m=m, z=z, c=c, n=levels):
            for _ in range(n):
                m.network(z, c)

        for bfloat16 in (False, True):
            what = "bfloat16" if bfloat16 else "float32"
            if clock.over:
                yield f"evolve, {name}, {what}: no time left", None, None
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                ours = clock.best(lambda m=m, z=z, t=times: glp.evolve(DDIM(), m, z, t))
                theirs = clock.best(bare)
            yield f"evolve, {name}, {what}", 1e6 * ours / levels, ours / theirs
        for bfloat16 in (False, True):
            what = "bfloat16" if bfloat16 else "float32"
            if clock.over:
                yield f"fit, {name}, {what}: no time left", None, None
                continue
            records = glp.fit(
                m, data, steps=10**6, batch_size=min(batch * 8, len(data)), bfloat16=bfloat16,
                standardize=False,
            )  # fmt: skip
            optimizer = torch.optim.AdamW(m.parameters(), fused=device.type == "cuda")
            x = data[: min(batch * 8, len(data))]

            def step(m=m, x=x, o=optimizer, b=bfloat16):
                o.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=b):
                    out = m.network(x, torch.zeros(len(x), device=device))
                (out.float() - x).square().mean().backward()
                o.step()

            ours = clock.best(lambda r=records: [next(r) for _ in range(5)])
            theirs = clock.best(lambda s=step: [s() for _ in range(5)])
            records.close()
            yield f"fit, {name}, {what}", 1e6 * ours / 5, ours / theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    device = torch.device("cpu" if args.small else args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # more wait for one another on so little work
    clock = Clock(device, args.seconds)
    name = "a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"{name}, PyTorch {torch.__version__}")
    found, wrong = {"device": name, "torch": torch.__version__}, 0
    found["laws"] = laws(clock, 2000 if args.small else 200_000)
    for what, value, right, error in found["laws"]:
        off = abs(value - right) > 5 * error
        wrong += off
        print(f"{what:<58} {value:>10.4f} {right:>10.4f} ± {error:.2g} {'WRONG' if off else ''}")
    found["waits"] = host_waits(clock)
    for what, n in found["waits"]:
        print(f"waits of the host a step, {what:<40} {'' if n is None else f'{n:.2f}'}")
    found["ratios"] = []
    sizes = (10**3, 8, 2, 64) if args.small else (10**7, 64, 64, 65_536)
    for row in ratios(clock, *sizes):
        found["ratios"].append(row)
        what, microseconds, ratio = row
        shown = "" if ratio is None else f"{microseconds:>12.0f} µs {ratio:>8.2f}"
        print(f"{what:<58} {shown}", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
