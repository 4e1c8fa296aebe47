"""What training and sampling cost above the bare network, and one U-Net beside two others.

Three questions, each answered by ratios within one run of interleaved rounds (the median of the
ratios of each round, which a busy machine disturbs least; on one thread of a CPU the seconds are those
of the process, not of the clock):

1. a step of `fit` against a loop written by hand, which draws batch, times and noise, clips and
   averages weights, and against forward, backward and optimiser alone, of the same network;
2. a step of `evolve` against as many bare calls of the same network;
3. a training step of `UNet` on 28×28×1 images against the U-Nets of denoising_diffusion_pytorch and
   of diffusers with about as many parameters.

    python benchmarks/training.py [--repeats 9] [--threads 1] [--device cpu] [--quick] [--no-peers]

The peers are looked for, and left out where they are not installed; give them an environment of
their own. Packages that denoising_diffusion_pytorch imports for its trainer alone are replaced by
empty ones where they are missing: its U-Net needs none of them.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import gradlogp as glp

STEPS = 5  # of each measurement with images
TIMES = 40  # with vectors, the default of `evolve`
SIDE = (1, 28, 28)
PAGE = """# Training and sampling above the bare network

`python benchmarks/training.py`: milliseconds of CPU a step, and medians of the ratios within each of
the interleaved rounds; `training.json` has all ratios. The loop by hand draws a batch, times and noise,
adds them up, and clips and averages weights, without noise schedule and frame; the bare one is forward,
backward and AdamW. Sampling takes one call of the network a step, in runs of 40 times (U-Nets 6); a
bare call is given a noise level for each sample, as training gives it. The U-Nets have about as many
parameters; that of denoising_diffusion_pytorch has linear attention at every level, as it comes."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def clock():
    """Seconds: of the process where it alone computes, in one thread."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_initialized()
    return time.process_time() if alone else time.perf_counter()


def rounds(functions, repeats):
    """Seconds of each function in each of the interleaved rounds, after one to warm up."""
    for function in functions.values():
        function()
    found = {name: [] for name in functions}
    for i in range(repeats):
        order = list(functions.items())
        for name, function in order if i % 2 else order[::-1]:
            began = clock()
            function()
            found[name].append(clock() - began)
    return found


def compare(what, functions, repeats, steps, **facts):
    """One row: milliseconds a step of the first function, and its ratio to the second."""
    seconds = rounds(functions, repeats)
    ours, floor = seconds.values()
    ratios = [a / b for a, b in zip(ours, floor, strict=True)]
    row = {
        "what": what,
        "milliseconds": 1e3 * statistics.median(ours) / steps,
        "floor_milliseconds": 1e3 * statistics.median(floor) / steps,
        "ratio": statistics.median(ratios),
        "ratio_of_best": min(ours) / min(floor),
        "ratios": ratios,
    } | facts
    print(
        f"{what:<46}{row['milliseconds']:>10.2f}{row['floor_milliseconds']:>10.2f}"
        f"{row['ratio']:>8.3f}{row['ratio_of_best']:>8.3f}",
        flush=True,
    )
    return row


def networks(quick):
    """(name, network, data, batch) of every case."""
    plane = torch.randn(4096, 2, generator=seeded(1))
    images = torch.randn(512, *SIDE, generator=seeded(1))
    cases = [
        (f"MLP {width}, batch {batch}", lambda w=width: glp.MLP(2, w, generator=seeded()), plane, batch)
        for width, batch in ((64, 128), (128, 128), (128, 512), (256, 2048))
    ]  # fmt: skip
    cases += [
        (f"UNet 28x28, patch 2, batch {batch}",
         lambda: glp.UNet(SIDE, (32, 64), patch=2, generator=seeded()), images, batch)
        for batch in (32, 128)
    ]  # fmt: skip
    return cases[::3] if quick else cases


def training(repeats, device, quick):
    """A step of fit against forward, backward and optimiser of the same network."""
    rows = []
    for name, make, data, batch in networks(quick):
        model = glp.ScoreModel(make(), glp.schedules.VE(0.01, 40.0), "v").to(device)
        bare = make().to(device)
        optimizer = torch.optim.AdamW(bare.parameters(), fused=True)
        x, c = data[:batch].to(device), torch.zeros(batch, device=device)
        n_steps = TIMES if data.ndim == 2 and batch < 1000 else STEPS
        records = glp.fit(model, data, steps=10**6, batch_size=batch, generator=seeded())

        def ours(records=records, n_steps=n_steps):
            for _ in range(n_steps):
                assert next(records).loss < 1e6

        def floor(bare=bare, optimizer=optimizer, x=x, c=c, n_steps=n_steps):
            for _ in range(n_steps):
                optimizer.zero_grad(set_to_none=True)
                loss = (bare(x, c) - x).square().mean()
                loss.backward()
                optimizer.step()
                assert float(loss.detach()) < 1e6  # who watches the loss waits for it

        weights = [p.detach() for p in bare.parameters()]
        averages = [w.clone() for w in weights]
        rows_of = data.to(device)

        def by_hand(
            bare=bare, optimizer=optimizer, data=rows_of, n=batch, n_steps=n_steps,
            pair=(averages, weights),
        ):  # fmt: skip
            for _ in range(n_steps):
                optimizer.zero_grad(set_to_none=True)
                z = data[torch.randint(len(data), (n,), device=device)]
                t, noise = torch.rand(n, device=device), torch.randn_like(z)
                noisy = z + t.reshape(-1, *[1] * (z.ndim - 1)) * noise
                loss = (bare(noisy, t) - noise).square().mean()
                loss.backward()
                nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
                optimizer.step()
                torch._foreach_lerp_(*pair, 0.01)
                assert float(loss.detach()) < 1e6

        for other, against in (("by hand", by_hand), ("bare", floor)):
            both = {"fit": ours, other: against}
            rows.append(
                compare(f"fit, {name}", both, repeats, n_steps, part="training", beside=other)
            )
        records.close()
    return rows


def sampling(repeats, device, quick):
    """Transitions of one call a step, against bare calls of the network."""
    rows = []
    for name, make, data, batch in networks(quick):
        small = data.ndim == 2
        model = glp.ScoreModel(make(), glp.schedules.VP(), "v").to(device).eval()
        x, c = data[:batch].to(device), torch.zeros(batch, device=device)
        times = glp.time_grid(model.schedule, TIMES if small else STEPS + 1)
        transitions = [glp.diffusion.DDIM()]
        if small and batch == 128:
            transitions += [glp.diffusion.UniPC(), glp.diffusion.Ancestral()]
        for transition in transitions:
            calls = []
            hook = model.network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            glp.evolve(transition, model, x, times)
            hook.remove()

            def ours(model=model, x=x, times=times, transition=transition):
                y = glp.evolve(transition, model, x, times)
                assert bool(y.isfinite().all())

            n_calls = len(calls)

            @torch.no_grad()
            def floor(network=model.network, x=x, c=c, n=n_calls):
                for _ in range(n):
                    y = network(x, c)
                assert bool(y.isfinite().all())

            what = f"evolve, {type(transition).__name__}, {name}"
            both = {"evolve": ours, "bare": floor}
            rows.append(
                compare(what, both, repeats, n_calls, part="sampling", beside="bare calls")
            )
    return rows


class Named(nn.Module):
    """A peer's network called as ours: network(x, c)."""

    def __init__(self, network, answer):
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x, c):
        """Return what the network answers."""
        return self.answer(self.network, x, c)


def lucidrains():
    """Its U-Net; what only its trainer imports is replaced by empty modules while it is imported."""
    names = {
        "torchvision": ("transforms", "utils"), "accelerate": ("Accelerator",),
        "ema_pytorch": ("EMA",), "pytorch_fid": (),
        "pytorch_fid.fid_score": ("calculate_frechet_distance",),
        "pytorch_fid.inception": ("InceptionV3",),
    }  # fmt: skip
    missing = [name for name in names if importlib.util.find_spec(name.split(".")[0]) is None]
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
        for attribute in names[name]:
            setattr(sys.modules[name], attribute, types.ModuleType(attribute))
    try:
        from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet
    finally:
        for name in missing:
            del sys.modules[name]
    network = Unet(
        dim=22, dim_mults=(1, 2), channels=1, full_attn=(False, False), flash_attn=False
    )
    return Named(network, lambda net, x, c: net(x, c))


def diffusers():
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(32, 48), norm_num_groups=8, add_attention=False,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return Named(network, lambda net, x, c: net(x, c).sample)


def peers(repeats, device, quick):
    """A training step of each U-Net on the same images, ours without patches as the measure."""
    make = {
        "UNet, gradlogp": lambda: glp.UNet(SIDE, (32, 64), generator=seeded()),
        "UNet, gradlogp, patch 2": lambda: glp.UNet(SIDE, (32, 64), patch=2, generator=seeded()),
        "Unet, denoising_diffusion_pytorch": lucidrains,
        "UNet2DModel, diffusers": diffusers,
    }
    rows = []
    for batch in (16,) if quick else (16, 64):
        steps, counts = {}, {}
        x, c = (
            torch.randn(batch, *SIDE, generator=seeded(1)).to(device),
            torch.rand(batch).to(device),
        )
        for name, build in make.items():
            try:
                network = build().to(device).train()
            except ImportError as problem:
                print(f"left out: {name} ({problem})")
                continue
            counts[name] = sum(p.numel() for p in network.parameters())
            optimizer = torch.optim.AdamW(network.parameters(), fused=True)

            def step(network=network, optimizer=optimizer, x=x, c=c):
                optimizer.zero_grad(set_to_none=True)
                loss = (network(x, c) - x).square().mean()
                loss.backward()
                optimizer.step()
                assert float(loss.detach()) < 1e6

            steps[name] = step
        seconds = rounds(steps, repeats)
        ours = seconds["UNet, gradlogp"]
        for name, found in seconds.items():
            row = {
                "what": f"{name}, batch {batch}", "part": "peers", "parameters": counts[name],
                "milliseconds": 1e3 * statistics.median(found),
                "ratio": statistics.median(a / b for a, b in zip(found, ours, strict=True)),
                "ratio_of_best": min(found) / min(ours),
                "microseconds_per_parameter": 1e9 * statistics.median(found) / counts[name] / 1e3,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{row['what']:<46}{row['milliseconds']:>10.1f}{counts[name]:>10,}"
                f"{row['ratio']:>8.2f}{row['ratio_of_best']:>8.2f}",
                flush=True,
            )
    return rows


def table(rows):
    """The rows as Markdown."""
    lines = ["| what | ms per step | compared with | ms | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        if row["part"] != "peers":
            lines.append(
                f"| {row['what']} | {row['milliseconds']:.2f} | {row['beside']} "
                f"| {row['floor_milliseconds']:.2f} | {row['ratio']:.3f} |"
            )
    lines += ["", "| a training step | parameters | ms | ratio to ours |", "|---|---|---|---|"]
    for row in rows:
        if row["part"] == "peers":
            lines.append(
                f"| {row['what']} | {row['parameters']:,} | {row['milliseconds']:.0f} "
                f"| {row['ratio']:.2f} |"
            )
    return "\n".join(lines)


def installed(name):
    try:
        return version(name)
    except ImportError:
        return "not installed"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--no-peers", action="store_true", help="keep the peers' recorded rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = Path(__file__).with_name("training.json")
    device = options.device
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    environment = {
        "torch": torch.__version__,
        "diffusers": installed("diffusers"),
        "denoising_diffusion_pytorch": installed("denoising_diffusion_pytorch"),
        "python": platform.python_version(),
        "threads": options.threads,
        "device": f"{device} {name}",
        "repeats": options.repeats,
    }
    print("  ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"{'':<46}{'ms':>10}{'bare':>10}{'ratio':>8}{'best':>8}")
    parts = (training, sampling) if options.no_peers else (training, sampling, peers)
    rows = [row for part in parts for row in part(options.repeats, device, options.quick)]
    if options.no_peers:
        rows += [row for row in json.loads(out.read_text())["rows"] if row["part"] == "peers"]
    if options.quick:
        print(table(rows))
        return
    out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    out.with_suffix(".md").write_text(f"{PAGE}\n\n{table(rows)}\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\nwritten to {out.name} and training.md")


if __name__ == "__main__":
    main()
