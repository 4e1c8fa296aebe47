"""The cost of each objective: time and peak memory of a training step, against dimension and batch.

Two networks, both an MLP of two hidden layers of 128: a score network (d -> d) for the floor of one
forward and backward pass, and an energy (d -> 1) for torchebm's losses on the very same weights.
Interleaved rounds, best of them, float32, one thread; JSON and a log-log picture. Every loss is
checked against the exact one on the same points, so that speed is not bought with error.

    python benchmarks/objectives.py [--repeats 7] [--dims 2 16 64 256 1024]

torchebm is used if it is installed; use a separate environment for it.
"""

import argparse
import json
import os
import platform
import resource
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

import gradlogp as glp
from gradlogp import objectives

SIGMA = 0.1
HERE = Path(__file__).parent


def mlp(d, out):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Linear(d, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, out)
    )
    for p in net.parameters():
        bound = p.shape[-1] ** -0.5
        nn.init.uniform_(p, -bound, bound, generator=generator)
    return net


def ours(score, x):
    """The losses per sample of every objective on one score, as functions without arguments."""
    return {
        "denoising": lambda: objectives.denoising(score, x, SIGMA),
        "sliced": lambda: objectives.sliced(score, x),
        "sliced_vr": lambda: objectives.sliced_vr(score, x),
        "finite_difference": lambda: objectives.finite_difference(score, x),
        "implicit": lambda: objectives.implicit(score, x),
    }


def peers(energy, x):
    """The losses of torchebm on the same energy, or nothing where it is not installed."""
    try:
        from torchebm.core import BaseModel
        from torchebm.losses import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
    except ImportError:
        return {}

    class Energy(BaseModel):
        def __init__(self):
            super().__init__()
            self.net = energy

        def forward(self, x):
            return self.net(x).squeeze(-1)

    model = Energy()
    return {
        "denoising": partial(DenoisingScoreMatching(model, noise_scale=SIGMA), x),
        "sliced": partial(SlicedScoreMatching(model, n_projections=1), x),
        "implicit": partial(ScoreMatching(model, hessian_method="exact"), x),
    }


def steps(d, batch):
    """Forward and backward passes by name: (which network, which objective) -> function."""
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(1))
    net, energy = mlp(d, d), mlp(d, 1)
    potential = lambda y: energy(y).squeeze(-1)
    found = {
        ("score", "floor"): lambda: net(x).square().sum(1),
        ("energy", "floor"): lambda: energy(x).square().sum(1),
    }
    found |= {("score", k): f for k, f in ours(net, x).items()}
    found |= {("energy", k): f for k, f in ours(glp.as_score(potential, "energy"), x).items()}
    found |= {("torchebm", k): f for k, f in peers(energy, x).items()}

    def step(loss, parameters):
        def run():
            for p in parameters:
                p.grad = None
            loss().mean().backward()

        return run

    return {
        key: step(f, list((net if key[0] == "score" else energy).parameters()))
        for key, f in found.items()
    }


def check(d, batch):
    """The estimates agree with the exact loss, within 5 of their standard errors."""
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(1))
    energy = mlp(d, 1)
    score = glp.as_score(lambda y: energy(y).squeeze(-1), "energy")
    truth = float(objectives.implicit(score, x).detach().mean())
    for name, f in ours(score, x).items():
        if name in ("denoising", "implicit"):
            continue
        values = torch.stack([f().detach().mean() for _ in range(30)])
        error = float(values.std()) / 30**0.5
        assert abs(float(values.mean()) - truth) < 5 * error + 1e-3 * abs(truth), (name, d)
    for name, f in peers(energy, x).items():
        if name == "implicit":
            assert abs(float(f()) - truth) < 1e-3 * max(1.0, abs(truth)), (float(f()), truth)


def best_of(functions, repeats, budget=4.0):
    """Seconds of each function, best of interleaved rounds; slow ones sit out when time is spent."""
    best, spent = {}, dict.fromkeys(functions, 0.0)
    for f in functions.values():  # warm up
        f()
    for _ in range(8 * repeats):
        for key, f in functions.items():
            if key in best and spent[key] > budget:
                continue
            inner = max(1, min(10, int(0.01 / best.get(key, 1.0))))
            began = time.perf_counter()
            for _ in range(inner):
                f()
            seconds = time.perf_counter() - began
            spent[key] += seconds
            best[key] = min(best.get(key, seconds), seconds / inner)
    return best


def peak_memory(d, batch, key):
    """MiB that one step adds to the process, measured in a fork of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps(d, batch)[key]()
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return float(said) / 1024


def rows_of(d, batch, repeats, memory):
    check(d, batch)
    functions = steps(d, batch)
    seconds = best_of(functions, repeats)
    rows = []
    for (network, name), s in seconds.items():
        floor = seconds["energy" if network == "torchebm" else network, "floor"]
        peer = seconds.get(("torchebm", name)) if network == "energy" else None
        rows.append(
            {
                "network": network,
                "objective": name,
                "d": d,
                "batch": batch,
                "milliseconds": 1e3 * s,
                "over_floor": s / floor,
                "torchebm_over_ours": None if peer is None else peer / s,
                "peak_mib": memory[network, name],
            }
        )
    return rows


def picture(rows, out):
    """Milliseconds against dimension, both axes logarithmic."""
    from gradlogp.show.plots.style import (
        DARK,
        LIGHT,
        log_axis,
        new_figure,
        png,
    )

    for theme in (LIGHT, DARK):
        with new_figure(theme, 9.6, 4.2) as figure:
            panels = (("score", "a score network"), ("energy", "an energy, and torchebm"))
            for k, (network, title) in enumerate(panels):
                axes = figure.add_subplot(1, 2, k + 1, xlabel="dimension d", title=title)
                colours = theme.time_map
                wanted = {"floor": "floor", "denoising": "DSM", "sliced_vr": "SSM-VR"}
                wanted |= {"sliced": "SSM", "implicit": "exact trace"}
                for i, (name, label) in enumerate(wanted.items()):
                    colour = theme.muted if name == "floor" else colours(i / 5)
                    for who, style in ((network, "-"), ("torchebm", ":")):
                        if who == "torchebm" and network == "score":
                            continue
                        wanted_row = (who, name, 128)
                        line = [
                            (r["d"], r["milliseconds"])
                            for r in rows
                            if (r["network"], r["objective"], r["batch"]) == wanted_row
                        ]
                        if line:
                            note = label if who == network else None
                            axes.plot(*zip(*line, strict=True), style, color=colour, marker="o",
                                      ms=3, label=note)  # fmt: skip
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.grid(which="major")
                log_axis(axes.xaxis, 2, 1024)
                low, high = axes.get_ylim()
                log_axis(axes.yaxis, low, high)
                if k == 0:
                    axes.set_ylabel("milliseconds a step")
                    lines, names = axes.get_legend_handles_labels()
            figure.legend(lines, names, loc="outside upper right", ncols=5)
        (out / f"objectives-{theme.name}.png").write_bytes(png(figure))


def table(rows):
    """The rows at batch 128 as Markdown."""
    lines = [
        "| d | network | floor, ms | DSM | SSM | SSM-VR | finite differences | exact trace |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("denoising", "sliced", "sliced_vr", "finite_difference", "implicit")
    for d in sorted({r["d"] for r in rows if r["batch"] == 128}):
        for network in ("score", "energy", "torchebm"):
            here = {
                r["objective"]: r
                for r in rows
                if (r["d"], r["batch"], r["network"]) == (d, 128, network)
            }
            if not here:
                continue
            floor = here.get("floor")
            cells = [f"{floor['milliseconds']:.2f}" if floor else ""]
            for name in names:
                r = here.get(name)
                cells.append(f"{r['milliseconds']:.2f} ({r['over_floor']:.2f}×)" if r else "")
            who = network if network != "torchebm" else "torchebm, the same energy"
            lines.append(f"| {d} | {who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(rows):
    """Replace the table in the docs."""
    page = HERE.parent / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- objectives: begin -->", "<!-- objectives: end -->"
    head, tail = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{head}{begin}\n{table(rows)}\n{end}{tail}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 16, 64, 256, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 512])
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        from importlib.metadata import version

        peer = version("torchebm")
    except ImportError:
        peer = "not installed"
    environment = {
        "torch": torch.__version__,
        "torchebm": peer,
        "python": platform.python_version(),
        "threads": 1,
        "repeats": options.repeats,
        "machine": platform.machine(),
    }
    print("  ".join(f"{k} {v}" for k, v in environment.items()))
    cases = [(d, 128) for d in options.dims] + [(64, b) for b in options.batches]
    rows = []
    # before anything has run here: what is freed stays with the process, and a fork would reuse it
    memory = {case: {key: peak_memory(*case, key) for key in steps(*case)} for case in cases}
    print(f"{'network':<9}{'objective':<19}{'d':>5}{'batch':>6}{'ms':>10}", end="")
    print(f"{'× floor':>9}{'torchebm':>10}{'MiB':>8}")
    for d, batch in cases:
        for row in rows_of(d, batch, options.repeats, memory[d, batch]):
            rows.append(row)
            peer = row["torchebm_over_ours"]
            print(
                f"{row['network']:<9}{row['objective']:<19}{d:>5}{batch:>6}"
                f"{row['milliseconds']:>10.2f}{row['over_floor']:>9.2f}"
                f"{'' if peer is None else f'{peer:.2f}×':>10}{row['peak_mib']:>8.0f}",
                flush=True,
            )
    out = HERE / "objectives.json"
    out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    picture(rows, HERE.parent / "docs" / "img")
    write_table(rows)
    print(f"written to {out.name} and docs/img/objectives-*.png")


if __name__ == "__main__":
    main()
