r"""Pretrained models of diffusers as noisy scores.

diffusers itself is imported only to read a folder; of a network and a scheduler in memory only
attributes are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Moments
from ..noise.predictions import Kind
from ..noise.schedules import DDPM
from .foreign import ForeignScore, Steps

PREDICTIONS: dict[str, Kind] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
LAST = 2.0**-40  # ᾱ_T/ᾱ_{T−1} in place of 0: α_T is below 1e-6, 0 to float32, and log α is finite


class DiffusersNetwork(nn.Module):
    """A UNet of diffusers as a plain network(x, step) or network(x, step, labels).

    If the network also predicts a variance, in additional channels, only the mean is used.

    Arguments:
        unet: The UNet.
    """

    def __init__(self, unet: Callable[..., Any]) -> None:
        super().__init__()
        self.unet = unet
        config = _config(unet, "unet")
        named = (config.get("num_class_embeds"), config.get("class_embed_type"))
        self.conditional = any(value is not None for value in named)

    def forward(self, x: Tensor, step: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction, shape of x.

        Raises:
            ValueError: If labels are missing or superfluous, or x does not have the dtype of the
                weights.
        """
        if self.conditional != (labels is not None):
            raise ValueError(
                "this network is class-conditional; pass labels with model.given(labels)"
                if self.conditional
                else "this network has no classes; drop the labels"
            )
        dtype = getattr(self.unet, "dtype", x.dtype)
        if dtype != x.dtype:
            raise ValueError(
                f"x is {x.dtype} and the network {dtype}; convert one of them, for example with "
                f"x.to({dtype})"
            )
        extra = {} if labels is None else {"class_labels": labels}
        out: Tensor = self.unet(x, step, return_dict=False, **extra)[0]
        if out.ndim == x.ndim and out.shape[1] == 2 * x.shape[1]:
            return out[:, : x.shape[1]]
        return out


def from_diffusers(
    unet: Any,
    scheduler: Any = None,
    *,
    event_shape: torch.Size | tuple[int, ...] | None = None,
) -> ForeignScore:
    r"""Return the noisy score of a UNet of diffusers, with its `DDPM` schedule.

    Step i of 1 … T is at t = i/T, and the network receives i − 1. Between steps log ᾱ is linear in
    t, and the network receives the fraction T t − 1, which sinusoidal embeddings accept; an
    embedding table raises an error. Times below 1/T, for which the network was never trained, are
    refused.

    Only the betas and the kind of prediction are read. All other settings of a scheduler are
    choices of the sampler and not part of the score: `clip_sample`, `thresholding`,
    `variance_type`, spacing. If ᾱ_T = 0 (`rescale_betas_zero_snr`), α_T is below 1e-6 here, 0 in
    float32; there ε carries no information about x_0 and is refused. At t = 1 these models are
    sampled from N(0, 1), whose moments are used as those of the data.

    Arguments:
        unet: A `UNet2DModel`, or the folder of one, or of a pipeline that has `unet` and
            `scheduler` in it.
        scheduler: A scheduler with betas, such as `DDPMScheduler`, whose `alphas_cumprod` and
            `prediction_type` are read; or its folder. Not needed for the folder of a pipeline.
        event_shape: The event shape; by default from the network's `in_channels` and
            `sample_size`.

    Raises:
        ValueError: For an unsupported model, a folder without a model, or a folder if diffusers is
            not installed.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512
        | Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2023)
        | https://arxiv.org/abs/2305.08891
    """
    if isinstance(unet, str | Path):
        folder = Path(unet)
        if scheduler is None:
            scheduler = folder / "scheduler"
        unet = _load(folder / "unet" if (folder / "unet").is_dir() else folder, "config.json")
    if isinstance(scheduler, str | Path):
        scheduler = _load(Path(scheduler), "scheduler_config.json")
    config, betas = _config(unet, "unet"), _betas(scheduler)
    kind = _config(scheduler, "scheduler").get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ValueError(
            f"the scheduler's prediction_type is {kind!r}, and must be one of "
            f"{', '.join(map(repr, PREDICTIONS))}; use gradlogp.scores.ForeignScore for others"
        )
    if kind == "epsilon" and float(betas[-1]) >= 1 - LAST:
        raise ValueError(
            "the schedule ends without signal, where epsilon carries no information about x_0; a "
            "model for it predicts 'v_prediction' or 'sample'"
        )
    if config.get("cross_attention_dim") is not None:
        raise ValueError(
            "this network needs a text or other embedding at every call; bind it in a function and "
            "pass that to gradlogp.scores.ForeignScore"
        )
    embedding = config.get("time_embedding_type", "positional")
    if embedding == "fourier":
        raise ValueError(
            "a network with Fourier time embedding takes the noise level, not a step; use "
            "gradlogp.scores.from_epsilon with noise_input='sigma'"
        )
    noise_input = Steps(len(betas), between=embedding != "learned")
    shape = _event_shape(config) if event_shape is None else event_shape
    return ForeignScore(
        DiffusersNetwork(unet),
        DDPM(betas),
        PREDICTIONS[kind],
        noise_input=noise_input,
        event_shape=shape,
        moments=Moments(torch.zeros(()), torch.ones(())),
    )


def _config(thing: Any, name: str) -> dict[str, Any]:
    config = getattr(thing, "config", None)
    if config is None or not callable(getattr(config, "get", None)):
        raise ValueError(
            f"{name} must be a diffusers model with a config, got {type(thing).__name__}"
        )
    return config


def _betas(scheduler: Any) -> Tensor:
    """Return β_1 … β_T of the scheduler's own ᾱ, float64."""
    abar = getattr(scheduler, "alphas_cumprod", None)
    if abar is None:
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod: pass one with betas, such as "
            "DDPMScheduler, or use gradlogp.scores for networks with other schedules"
        )
    values = torch.cat([torch.ones(1, dtype=torch.float64), torch.as_tensor(abar).double().cpu()])
    ratio = values[1:] / values[:-1]
    if ratio[-1] == 0:  # zero terminal SNR
        ratio[-1] = LAST
    return 1 - ratio


def _event_shape(config: dict[str, Any]) -> tuple[int, ...]:
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels is None or size is None:
        raise ValueError("the network's config names no sample_size; pass event_shape=")
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


def _load(folder: Path, config: str) -> Any:
    """Load what a folder's config names; from the disk alone."""
    if not (folder / config).is_file():
        raise ValueError(f"{folder} holds no {config}; pass the folder of a saved diffusers model")
    try:
        diffusers = import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            f"reading {folder} needs diffusers: pip install 'gradlogp[diffusers]'"
        ) from error
    name = json.loads((folder / config).read_text(encoding="utf-8")).get("_class_name", "")
    made = getattr(diffusers, name, None)
    if made is None:
        raise ValueError(
            f"{folder / config} names the class {name!r}, which diffusers does not have"
        )
    options = {"low_cpu_mem_usage": False} if config == "config.json" else {}
    return made.from_pretrained(folder, local_files_only=True, **options)
