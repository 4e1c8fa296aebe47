"""Reading an image, and a folder of images."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ...core import some
from .deep import deep_pixels, turned
from .records import Raw, reading

ORIENTATION = 0x0112
"""The tag of EXIF that says which way up an image is shown."""

CHANNELS = {1: "grey pixels", 2: "grey pixels and alpha", 3: "colours", 4: "colours and alpha"}

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
"""The suffixes of images that are read."""


def read_image(path: Path) -> np.ndarray:
    """Read an image as numbers from 0 (black) to 255 (white), `(C, H, W)`, with EXIF orientation.

    Pixels of 16 bits become fractions, v/257 to the last digit of float32. Channels are grey or
    colours, and alpha if there is any.

    Raises:
        ValueError: If it cannot be read, has several frames, pixels of 32 bits, or unsupported
            colours.
    """
    from PIL import Image

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not path.is_file():  # opening a pipe would wait for somebody to write to it
            raise ValueError("it is not a file")
        with Image.open(path) as image:
            # a .png of 16 bits, which some versions of Pillow call 32
            grey = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")
            palette = "RGBA" if image.has_transparency_data else "RGB"
            mode = {"P": palette, "1": "L"}.get(image.mode, image.mode)
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError("one frame is needed, but this has several")
            if not grey and mode not in ("L", "LA", "RGB", "RGBA"):
                raise ValueError(
                    f"its pixels are {image.mode}; save it with 8 or 16 bits, grey or RGB, or as .npy"
                )
            deep = deep_pixels(path, image)
            pixels = np.asarray(image if grey else image.convert(mode)) if deep is None else deep
            # asked afterwards: Pillow turns a .tif while it reads it, and then says so
            way = image.getexif().get(ORIENTATION, 1)
    upright = np.atleast_3d(turned(pixels, way))
    if grey or deep is not None:
        upright = upright.astype(np.float32) / np.float32(257)
    return np.moveaxis(upright, 2, 0)


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image `(C, H, W)` resized to a different size, after a centre crop of its proportions.

    Each new pixel is a mean over those that it covers (bicubic), which avoids aliasing.
    """
    from PIL import Image

    if pixels.shape[1:] == size:
        return pixels
    h, w = pixels.shape[1:]
    scale = min(h / size[0], w / size[1])
    high, wide = size[0] * scale, size[1] * scale
    box = ((w - wide) / 2, (h - high) / 2, (w + wide) / 2, (h + high) / 2)
    flat = [Image.fromarray(np.ascontiguousarray(c, np.float32)) for c in pixels]
    new = [c.resize(size[::-1], Image.Resampling.BICUBIC, box) for c in flat]
    return np.stack([np.asarray(c) for c in new]).clip(0, 255)


def read_images(folder: Path, size: tuple[int, int] | None = None) -> Raw:
    """Read all images of a folder `(N, C, H, W)`; sub-folders, if any, are the labels.

    Arguments:
        folder: The folder.
        size: Height and width to which images are resized; by default all must have the same size.
    """
    inside = [p.relative_to(folder) for p in (*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*"))]
    found = sorted(p for p in inside if len(p.parts) == 2 or not (folder / p).is_dir())
    files = [p for p in found if p.suffix.lower() in IMAGES]
    others = [str(p) for p in found if p not in set(files)]
    depths = {len(p.parts) for p in files}
    if depths not in ({1}, {2}):
        kinds = ", ".join(IMAGES)
        raise ValueError(f"{folder}: needs images ({kinds}), all in it or all in its sub-folders")
    pixels: list[np.ndarray] = []
    other = 0
    for file in files:
        image = read_image(folder / file)
        if size is not None:
            other += image.shape[1:] != size
            image = resized(image, size)
        pixels.append(image)
        if image.shape[0] != pixels[0].shape[0]:  # each mode has its own number of channels
            raise ValueError(
                f"{folder / file}: has {CHANNELS[image.shape[0]]}, and {files[0]} "
                f"{CHANNELS[pixels[0].shape[0]]}; all images must have the same"
            )
        if image.shape != pixels[0].shape:
            (h, w), (other_h, other_w) = image.shape[1:], pixels[0].shape[1:]
            raise ValueError(
                f"{folder / file}: is {h}×{w} pixels, and {files[0]} {other_h}×{other_w}; all images "
                f"must have the same size: set it with size=({other_h}, {other_w}), on the command "
                f"line --size {other_h}x{other_w}"
            )
    notes = [f"read only the images, not: {some(others)}"] if others else []
    if size is not None and other:
        notes.append(f"resized {other} of {len(files)} images to {size[0]}×{size[1]}")
    labels = np.array([p.parts[0] for p in files]) if depths == {2} else None
    return Raw(np.stack(pixels), labels, (), tuple(notes))
