"""The commands that restore what is damaged: an image, given a learned score of others, or a table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .common import (
    Misuse,
    claim_output,
    generator_of,
    is_checkpoint,
    positive,
    print_json,
    refuse,
    say,
    set_threads,
)
from .tables import ending, holds_table, whole_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...core import NoisyScore, Transition
    from ...inverse import LinearOperator, Observation

Task = Literal["denoise", "inpaint", "deblur", "enlarge"]
Guidance = Literal["moment", "pigdm", "dps"]
CG_STEPS = 5  # of conjugate gradients; more follow the network's own asymmetries


def restore(
    checkpoint: Path,
    *,
    task: Task,
    image: Path,
    out: Path,
    noise: float | None = None,
    box: tuple[int, int, int, int] | None = None,
    mask: Path | None = None,
    blur: float | None = None,
    factor: int | None = None,
    simulate: bool = False,
    method: Guidance = "pigdm",
    n: int = 8,
    steps: int = 100,
    klass: Annotated[str | None, Parameter(name="--class")] = None,
    values: tuple[float, float] | None = None,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Restore a damaged image, with a learned score of images as the prior.

    Writes a picture of the observation with missing pixels marked, N draws from the posterior,
    their mean and their standard deviation; and the draws as .npy beside it.

    Args:
        checkpoint: Checkpoint folder of a model of images.
        task: denoise, inpaint (fill in the pixels of --box or --mask), deblur (Gaussian blur of
            --blur pixels), or enlarge (the image holds means over blocks of --factor pixels).
        image: The damaged image, a picture or .npy; with --simulate an undamaged one.
        out: A .png file.
        noise: Standard deviation of the noise in the image, in units of the data; by default 5 %
            of the standard deviation of the model's data.
        box: Rows and columns that are missing: TOP BOTTOM LEFT RIGHT, excluding BOTTOM and RIGHT.
        mask: An image that is 0 where pixels are missing.
        blur: With --task deblur, standard deviation of the blur, in pixels; it wraps around at the
            edges. 1 by default.
        factor: With --task enlarge, side of the blocks; 2 by default.
        simulate: Damage the image first, and compare with it.
        method: ΠGDM, moment matching (more precise if the network is good, but it can diverge if
            the Jacobian of the network is not that of a score), or DPS.
        n: Number of draws.
        steps: Number of noise levels.
        klass: The class, for a class-conditional model; by default it is drawn for each draw, at
            its frequency in the data.
        values: Values of black and white in the data, 0 and 255 by default; 0 and 16 for the
            digits.
        force: Replace existing files.
        seed: Seed of the noise.
        threads: PyTorch threads.
        json: Print the result as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--n", n)
    if steps < 2:
        raise Misuse(f"--steps must be at least 2, got {steps}")
    if out.suffix != ".png":
        raise Misuse(f"--out must be a .png file, got {out}")
    claim_output(out, out.with_suffix(".npy"), force=force)
    of_tasks: dict[Task, dict[str, object]] = {
        "inpaint": {"--box": box, "--mask": mask}, "deblur": {"--blur": blur},
        "enlarge": {"--factor": factor},
    }  # fmt: skip
    for other, options in of_tasks.items():
        if other != task:
            refuse(options, f"belongs to --task {other}, not to {task}")
    if image.suffix.lower() == ".npy":
        refuse({"--values": values}, "is for pictures; a .npy file already holds the values")
    factor = 2 if factor is None else factor
    from ...inverse import Inpainting, Observation, observe
    from ..pipeline import draw
    from .given import class_labels
    from .loading import load_estimator

    estimator = load_estimator(checkpoint)
    model = estimator.model_
    shape = model.event_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise Misuse(
            f"{checkpoint} is a model of events {tuple(shape)}, not of images (1 or 3, H, W)"
        )
    operator = _operator(task, shape, box, mask, 1.0 if blur is None else blur, factor)
    sd = float((model.coordinates.scale * model.z_std.cpu()).square().mean().sqrt())
    noise = 0.05 * sd if noise is None else noise
    if not 0 < noise < float("inf"):
        raise Misuse(f"--noise must be positive and finite, got {noise}")
    g = generator_of(seed)
    labels = class_labels(estimator, klass, n, g)
    given = _read(image, values or (0.0, 255.0)).to(model.like.dtype)[None]
    truth = given if simulate else None
    wanted = tuple(shape)
    if task == "enlarge" and not simulate:
        wanted = (shape[0], shape[1] // factor, shape[2] // factor)
    if tuple(given.shape[1:]) != wanted:
        raise Misuse(f"{image} has shape {tuple(given.shape[1:])}, but {wanted} is needed")
    if simulate:
        seen = observe(given, operator, noise, generator=g)
    else:  # what a mask hides is not looked at
        y = operator.apply(given) if isinstance(operator, Inpainting) else given
        seen = Observation(y, operator, noise)
    transition, guided = _guided(method, model if labels is None else model.given(labels), seen)
    draws = draw(
        guided, n, steps, transition=transition, generator=g, title="restoring", quiet=quiet
    )
    mean, spread = draws.mean(0, keepdim=True), draws.std(0, keepdim=True, correction=int(n > 1))
    residual = float(seen.residual(draws).square().mean().sqrt() / noise)
    result: dict[str, Any] = {"out": out, "residual_over_noise": residual, "noise": noise, "n": n}
    if truth is not None:
        result["rms_error_of_the_mean"] = float((mean - truth).square().mean().sqrt())
        result["rms_error_of_a_draw"] = float((draws - truth).square().mean().sqrt())
    _write(out, _shown(operator, seen.y, shape), truth, draws, mean, spread)
    say(f"{out} and {out.with_suffix('.npy').name}: {n} draws", quiet=quiet)
    if json:
        print_json(result)
    else:
        for key, value in result.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"{key.replace('_', ' ')}: {shown}")
    return 0


def _operator(
    task: Task,
    shape: torch.Size,
    box: tuple[int, int, int, int] | None,
    mask: Path | None,
    blur: float,
    factor: int,
) -> LinearOperator:
    """Return what the damage does to an image."""
    import torch

    from ...inverse import Blur, Identity, Inpainting, Subsampling

    if task == "denoise":
        return Identity()
    if task == "enlarge":
        if factor < 2 or shape[1] % factor or shape[2] % factor:
            raise Misuse(
                f"--factor {factor} must divide {shape[1]} and {shape[2]}, and be greater than 1"
            )
        return Subsampling((1, factor, factor))
    if task == "deblur":
        try:
            return Blur.gaussian(blur, shape)
        except ValueError as error:
            raise Misuse(f"--blur: {error}") from None
    if (box is None) == (mask is None):
        raise Misuse("inpaint needs what is missing: either --box or --mask")
    seen = torch.ones(shape, dtype=torch.bool)
    if box is not None:
        top, bottom, left, right = box
        if not (0 <= top < bottom <= shape[1] and 0 <= left < right <= shape[2]):
            raise Misuse(
                f"--box {box} does not lie within the {shape[1]} rows and {shape[2]} columns"
            )
        seen[:, top:bottom, left:right] = False
    elif mask is not None:
        read = _read(mask, (0.0, 1.0))[:1] > 0
        if read.shape[1:] != shape[1:]:
            raise Misuse(
                f"{mask} has {tuple(read.shape[1:])} pixels, but the model has {tuple(shape[1:])}"
            )
        seen &= read
    if not bool(seen.any()):
        raise Misuse("no pixel of the image is observed: leave some visible")
    return Inpainting(seen)


def _read(path: Path, values: tuple[float, float]) -> Tensor:
    """Read an image as (C, H, W); what a picture shows from black to white as `values`."""
    import numpy as np
    import torch

    from ...learn.data.images import read_image
    from ...learn.data.layout import reading

    if not path.is_file():
        raise Misuse(f"there is no image {path}")
    if path.suffix.lower() == ".npy":
        with reading(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim not in (2, 3) or array.dtype.kind not in "fiu":
            raise Misuse(f"{path} must hold numbers (H, W) or (C, H, W), got {array.shape}")
        array = array[None] if array.ndim == 2 else array
        return torch.as_tensor(np.ascontiguousarray(array, dtype=np.float64))
    low, high = values
    pixels = read_image(path)
    colours = pixels[: len(pixels) - (len(pixels) % 2 == 0)].astype(np.float64)  # without alpha
    return torch.as_tensor(colours / 255.0 * (high - low) + low)


def _guided(
    method: Guidance, score: NoisyScore, seen: Observation
) -> tuple[Transition, NoisyScore]:
    """Return the step and the score that draw from the posterior."""
    from ...diffusion import Ancestral
    from ...inverse import DPSStep, MomentMatching, PiGDM

    if method == "moment":
        return Ancestral(), MomentMatching(score, seen, max_steps=CG_STEPS, indefinite="stop")
    if method == "pigdm":
        return Ancestral(), PiGDM(score, seen)
    return DPSStep(Ancestral(), seen), score


def _shown(operator: LinearOperator, y: Tensor, shape: torch.Size) -> Tensor:
    """Return what was seen as an image, what is missing as NaN."""
    from ...inverse import Inpainting, Subsampling

    if isinstance(operator, Subsampling):
        k = shape[1] // y.shape[2]
        return y.repeat_interleave(k, 2).repeat_interleave(k, 3)
    if isinstance(operator, Inpainting):
        there = operator.adjoint(y.new_ones(y.shape)) > 0
        return operator.adjoint(y).masked_fill(~there, math.nan)
    return y


def _write(
    out: Path, seen: Tensor, truth: Tensor | None, draws: Tensor, mean: Tensor, spread: Tensor
) -> None:
    import numpy as np

    from ...core.files import write_files
    from ...show.plots import image_grid, png

    original = [] if truth is None else [("original", truth)]
    hidden = bool(seen.isnan().any())
    low, high = float(draws.min()), float(draws.max())
    scaled = low + (high - low) * spread / max(float(spread.max()), 1e-12)
    rows = [
        *original, ("observed; missing pixels are orange" if hidden else "seen", seen),
        ("draws", draws), ("mean of the draws", mean),
        (f"standard deviation, up to {float(spread.max()):.3g}", scaled),
    ]  # fmt: skip
    write_files({
        out: png(image_grid(rows, limits=(low, high))),
        out.with_suffix(".npy"): lambda file: np.save(file, draws.numpy()),
    })  # fmt: skip


def impute(
    checkpoint: Path,
    data: Path,
    *,
    out: Path,
    n_draws: int = 1,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    quiet: bool = False,
) -> int:
    """Fill in the missing values of a table with draws given the present values.

    Args:
        checkpoint: Checkpoint folder of a table (`TableEstimator.save`).
        data: A file with the columns of the training data, and missing values in any rows.
        out: The file to write: .csv, .tsv, these with .gz, or .parquet.
        n_draws: Number of draws for each missing value. With more than one, the filled tables
            follow one another in the output, and a first column, draw, numbers them.
        force: Replace an existing file.
        seed: Seed of the draws.
        threads: PyTorch threads.
        quiet: No messages.
    """
    set_threads(threads)
    positive("--n-draws", n_draws)
    suffix, formats = ending(out, table=True)
    if suffix not in formats:
        raise Misuse(f"cannot write {out}: use one of {', '.join(formats)}")
    if not data.is_file():
        raise Misuse(f"there is no file {data}")
    if not is_checkpoint(checkpoint):
        raise Misuse(f"there is no checkpoint at {checkpoint}")
    if not holds_table(checkpoint):
        raise Misuse(
            f"{checkpoint} was trained on plain numbers, but only a table model can fill in missing "
            "values: train one with `gradlogp fit FILE --out m`, without --no-table, --label and "
            "--condition"
        )
    claim_output(out, force=force)
    generator_of(seed)  # refuses what is no seed
    from ...core.files import write_atomically
    from ..tables import TableEstimator
    from ..tables.forms import stacked, written

    model = TableEstimator.load(checkpoint)
    model._kind = "pandas"
    frame = whole_rows(str(data), model, None, quiet=quiet)
    filled = model.impute(frame, n_draws, random_state=seed % 2**32)
    whole = filled if n_draws == 1 else stacked(filled)
    whole.attrs["form"] = frame.attrs["form"]
    write_atomically(out, written(whole, suffix))
    names = [c.name for c in model.columns_]
    n = int(frame[names].isna().to_numpy().sum())
    say(f"{out}: {n} missing values filled in" + f", {n_draws} times" * (n_draws > 1), quiet=quiet)
    return 0
