"""Other ways to learn patches of pictures, all with one signature.

    draw = methods()["diffusers"](x, seconds)    # x from 0 to 255, (N, 3, 32, 32)
    new = draw(500)

Each network trains for so many seconds of the clock, in batches of 16 at a rate of 1e-3, in
PyTorch's default layout; they are U-Nets of three levels with the channels of ours, 16, 32 and 64
(smalldiffusion needs multiples of 32: 32, 32 and 64), as each library offers them. Pixels are
divided to −1 … 1, as in the examples of these libraries, in which the rate is constant and
weights are not averaged; ours are, by default. GMM and KDE end when they are done. What
is not installed is left out.
"""

import time

import numpy as np
import torch
from time_to_quality import installed
from torch import nn

CHANNELS, BATCH, RATE = (16, 32, 64), 16, 1e-3


def batches(x, seconds):
    """Random batches until the seconds are over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield x[torch.randint(len(x), (BATCH,))]


def scaled(x):
    return x.float() / 127.5 - 1


def pixels(z):
    return 127.5 * (z + 1)


def gmm(x, seconds):
    """scikit-learn, 1 to 32 components of diagonal covariance, by BIC."""
    from sklearn.mixture import GaussianMixture

    flat = x.flatten(1).double().numpy()
    fits = [
        GaussianMixture(k, covariance_type="diag", random_state=0).fit(flat)
        for k in (1, 2, 4, 8, 16, 32)
    ]
    best = min(fits, key=lambda found: found.bic(flat))
    return lambda n: torch.as_tensor(best.sample(n)[0]).reshape(n, *x.shape[1:])


def kde(x, seconds):
    """A Gaussian about each patch, its width by the likelihood of a tenth of them."""
    from sklearn.neighbors import KernelDensity

    flat = x.flatten(1).double().numpy()
    part = len(flat) // 10
    fits = {h: KernelDensity(bandwidth=h).fit(flat[part:]).score(flat[:part])
            for h in np.geomspace(2, 60, 10)}  # fmt: skip
    best = KernelDensity(bandwidth=max(fits, key=fits.get)).fit(flat)
    return lambda n: torch.as_tensor(best.sample(n, random_state=0)).reshape(n, *x.shape[1:])


def diffusers(x, seconds):
    """`UNet2DModel` and `DDPMScheduler` of its tutorial, drawn from by `DDIMScheduler` in 50 steps."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    network = UNet2DModel(
        sample_size=x.shape[2], in_channels=3, out_channels=3, layers_per_block=1,
        block_out_channels=CHANNELS, norm_num_groups=8, attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    for batch in batches(scaled(x), seconds):
        t, noise = torch.randint(1000, (len(batch),)), torch.randn_like(batch)
        found = network(scheduler.add_noise(batch, noise, t), t).sample
        loss = nn.functional.mse_loss(found, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)

    def draw(n):
        steps = DDIMScheduler.from_config(scheduler.config)
        steps.set_timesteps(50)
        z = torch.randn(n, *x.shape[1:])
        for t in steps.timesteps:
            z = torch.cat(
                [steps.step(network(c, t).sample, t, c).prev_sample for c in z.split(50)]
            )
        return pixels(z)

    return draw


def smalldiffusion(x, seconds):
    """Its `Unet`, scaled, and DDPM schedule, as in its example of FashionMNIST; 20 steps."""
    import smalldiffusion as small

    model = small.Scaled(small.Unet)(
        x.shape[2], 3, 3, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(8,)
    )
    schedule = small.ScheduleDDPM(beta_start=0.0001, beta_end=0.02, N=1000)
    loader = batches(scaled(x), seconds)
    for _ in small.training_loop(loader, model, schedule, epochs=1, lr=RATE):
        pass

    def draw(n):
        sigmas, done = schedule.sample_sigmas(20), []
        with torch.no_grad():
            for first in range(0, n, 50):
                *_, z = small.samples(model, sigmas, gam=1.6, batchsize=min(50, n - first))
                done.append(z)
        return pixels(torch.cat(done))

    return draw


def azula(x, seconds):
    """`KarrasDenoiser` of its `UNet` under `VPSchedule`, drawn from by `DDIMSampler` in 64 steps."""
    from azula.denoise import KarrasDenoiser
    from azula.nn.unet import UNet
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64))
            self.network = UNet(
                3, 3, hid_channels=CHANNELS, hid_blocks=(2, 2, 2), norm="group", groups=8,
                mod_features=64,
            )  # fmt: skip

        def forward(self, z, log_ratio):
            return self.network(z, self.embed(log_ratio.reshape(-1, 1).expand(len(z), 1)))

    denoiser = KarrasDenoiser(backbone=Timed(), schedule=VPSchedule())
    optimizer = torch.optim.AdamW(denoiser.parameters(), RATE)
    for batch in batches(scaled(x), seconds):
        loss = denoiser.loss(batch, torch.rand(len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampler = DDIMSampler(denoiser.eval(), steps=64, silent=True)

    def draw(n):
        with torch.no_grad():
            parts = [min(50, n - first) for first in range(0, n, 50)]
            return pixels(
                torch.cat([sampler(sampler.init((k, *x.shape[1:]))).detach() for k in parts])
            )

    return draw


def methods():
    """Those whose library is installed."""
    found = set(installed())
    peers = {"diffusers": diffusers, "smalldiffusion": smalldiffusion, "azula": azula}
    return {"GMM": gmm, "KDE": kde} | {k: f for k, f in peers.items() if k in found}
