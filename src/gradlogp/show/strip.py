"""A page of images with noise at every level, and denoised by a score."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import NoisyScore, check_count, check_kind, check_points, randn_like
from ..core.files import write_atomically
from .planes import ratio_of_noise, time_of_ratio
from .report import fill_page

MOST = 2_000_000
"""Bytes of pixels on a page."""


def strip(
    score: NoisyScore,
    images: Tensor,
    out: Path | str,
    *,
    title: str = "Images, noised and denoised",
    n_levels: int = 10,
    generator: torch.Generator | None = None,
) -> Path:
    r"""Write a page that shows images at many noise levels, and their denoised means.

    .. math::
        x_σ = x_0 + σ ε, \qquad
        D(x_σ) = E[x_0 | x_σ] = x_σ + σ^2 \nabla \log p_σ(x_σ)

    with the same ε for all levels of an image, σ = σ_t/α_t in model coordinates. The page also
    shows the error of the denoised images, the root mean square of D − x_0 over images and pixels
    in data units: for the best score its square is the mean posterior variance.

    Arguments:
        score: A noisy score of images; if it is conditional, with one condition for each image.
        images: Images in data units, `(n, channels, height, width)`, channels 1 or 3.
        out: The file to write, .html.
        title: The title of the page.
        n_levels: Number of levels, geometric from 1/50 to 8 times the standard deviation of the
            images, within the range of the schedule.
        generator: Source of the noise.

    Returns:
        The path of the page.

    Raises:
        ValueError: For an object that is not a score, arrays that are not images, or too many
            pixels for one page.
        OSError: If the page cannot be written.

    Examples:
        >>> levels = glp.schedules.VE(0.01, 20.0)
        >>> normal = lambda z, t: -z / (1 + levels(t)[1] ** 2)  # pixels N(0, 1), each alone
        >>> score = glp.as_score(normal, "score", levels)
        >>> glp.show.strip(score, torch.randn(3, 1, 4, 4), "images.html").name
        'images.html'
    """
    check_kind(score, "score", ("schedule", "denoise", "coordinates"), "a noisy score")
    check_points(images, "images")
    check_count(n_levels, "n_levels", 3, most=40)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must have shape (n, 1 or 3, height, width), got {tuple(images.shape)}"
        )
    if 2 * n_levels * images.numel() > MOST:
        most = MOST // (2 * n_levels * images[0].numel())
        raise ValueError(
            f"{len(images)} images of {images[0].numel():,} values at {n_levels} levels are too many "
            f"for one page: pass at most {most}"
            if most
            else f"images of {images[0].numel():,} values are too large for a page"
        )
    decode = lambda z: score.coordinates.decode(z).double()
    z = score.coordinates.encode(images)
    spread = float(z.double().std(correction=0)) or 1.0
    low = max(ratio_of_noise(score.schedule, 0.0), spread / 50)
    high = min(ratio_of_noise(score.schedule, 1.0), 8 * spread)
    noise, clean = randn_like(z, generator), images.double()
    levels: list[dict[str, Any]] = []
    least, most_of = float(clean.min()), float(clean.max())
    for i in range(n_levels):
        t = torch.tensor(
            time_of_ratio(score.schedule, low * (high / low) ** (i / (n_levels - 1))),
            dtype=torch.float64,
        )
        alpha, sigma = (float(v) for v in score.schedule(t))
        with torch.no_grad():
            noised = alpha * z + sigma * noise
            denoised = decode(score.denoise(noised, t))
        if not bool(torch.isfinite(denoised).all()):
            raise ValueError(f"the denoised images are not finite at σ = {sigma / alpha:.3g}")
        error = float((denoised - clean).square().mean().sqrt())
        pixels = (_pixels(v, least, most_of) for v in (decode(noised / alpha), denoised))
        levels.append({"sigma": sigma / alpha, "error": error, "pixels": [*pixels]})
    data = {
        "levels": levels, "shape": list(images.shape), "clean": _pixels(clean, least, most_of),
        "deviation": float((clean - clean.mean(0)).square().mean().sqrt()),
    }  # fmt: skip
    page = fill_page(
        "strip", "explore.css", "explore_chart.js", "strip.js", title=title,
        data=json.dumps(data, allow_nan=False),
    )  # fmt: skip
    out = Path(out)
    write_atomically(out, page)
    return out


def _pixels(images: Tensor, low: float, high: float) -> str:
    """Return images as bytes, their range 0 to 255, the channels last."""
    scale = 255 / (high - low) if math.isfinite(high - low) and high > low else 1.0
    values = ((images - low) * scale).round().clamp(0, 255).to(torch.uint8)
    return b64encode(values.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).decode("ascii")
