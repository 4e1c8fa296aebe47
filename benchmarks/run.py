"""What the library adds to the work that cannot be avoided, as ratios measured in one run.

Floors: calling the same network (sampling), one forward and backward pass with the optimiser
(training). Interleaved repeats, medians; JSON beside this file. `langevin.py` and `objectives.py`
time the rest, side by side with other libraries.

    python benchmarks/run.py [--repeats 5] [--device cpu]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import gradlogp as glp
from gradlogp.noise.terminal import terminal


def clock():
    """Return seconds: on one thread of a CPU those of the process, which others disturb less."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_initialized()
    return time.process_time() if alone else time.perf_counter()


def interleaved(functions, repeats):
    """Return the median seconds of each function, called in turn `repeats` times after one warm-up."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            began = clock()
            function()
            times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def sampling(repeats, device):
    """The probability flow against as many bare calls of the network."""
    rows = []
    for width in (64, 128, 256):
        network = glp.MLP(2, width, 3, generator=torch.Generator().manual_seed(0)).to(device)
        model = glp.ScoreModel(network, glp.schedules.VE(0.01, 10.0), "v").to(device)
        for n in (100, 1000, 10_000):
            times = glp.time_grid(model.schedule, 16)
            x = terminal(model).sample(n)
            c = torch.zeros(n, device=device)
            calls = 2 * (len(times) - 1) + 1

            def ours(x=x, times=times, model=model):
                y = glp.evolve(glp.diffusion.ProbabilityFlow(), model, x, times)
                assert bool(torch.isfinite(y).all())

            @torch.no_grad()
            def floor(network=network, x=x, c=c, calls=calls):
                for _ in range(calls):
                    network(x, c)

            seconds = interleaved({"ours": ours, "floor": floor}, repeats)
            rows.append(
                {
                    "what": f"flow, width {width}, {n} samples",
                    "us_per_step": 1e6 * seconds["ours"] / calls,
                    "floor_us": 1e6 * seconds["floor"] / calls,
                    "ratio": seconds["ours"] / seconds["floor"],
                }
            )
    return rows


def training(repeats, device, steps=20):
    """A training step against a bare forward and backward pass with the optimiser."""
    rows = []
    for width in (64, 128, 256):
        for batch in (128, 512, 2048):
            x = torch.randn(10_000, 2)
            make = lambda width=width: glp.MLP(2, width, 3).to(device)
            model = glp.ScoreModel(make(), glp.schedules.VE(0.01, 10.0), "v").to(device)
            bare = make()
            optimizer = torch.optim.AdamW(bare.parameters(), fused=True)
            y, c = x[:batch].to(device), torch.zeros(batch, device=device)

            def ours(model=model, x=x, batch=batch):
                losses = [r.loss for r in glp.fit(model, x, steps=steps, batch_size=batch)]
                assert len(losses) == steps

            def floor(bare=bare, optimizer=optimizer, y=y, c=c):
                for _ in range(steps):
                    optimizer.zero_grad()
                    (bare(y, c) - y).square().mean().backward()
                    optimizer.step()

            seconds = interleaved({"ours": ours, "floor": floor}, repeats)
            rows.append(
                {
                    "what": f"training, width {width}, batch {batch}",
                    "us_per_step": 1e6 * seconds["ours"] / steps,
                    "floor_us": 1e6 * seconds["floor"] / steps,
                    "ratio": seconds["ours"] / seconds["floor"],
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = options.device
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": f"{device} {name}".strip(),
        "repeats": options.repeats,
    }
    print("  ".join(f"{k} {v}" for k, v in environment.items()))
    rows = [row for bench in (sampling, training) for row in bench(options.repeats, device)]
    print(f"{'':<36}{'µs a step':>12}{'floor':>12}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['what']:<36}{row['us_per_step']:>12.1f}{row['floor_us']:>12.1f}{row['ratio']:>8.2f}"
        )
    out = Path(__file__).with_name("results.json")
    out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2))
    print(f"written to {out.name}")


if __name__ == "__main__":
    main()
