"""The reader of images: of one, and of a folder of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from ...core import some
from .records import Raw, reading

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """Read an image as numbers from 0 (black) to 255 (white), `(C, H, W)`, the way up it is shown.

    Pixels of 16 bits become fractions. Channels are grey or colours, and alpha where there is some.

    Raises:
        ValueError: If it cannot be read, has several frames, pixels of 32 bits, or other colours.
    """
    from PIL import Image, ImageOps

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not path.is_file():  # opening a pipe would wait for somebody to write to it
            raise ValueError("it is no file")
        with Image.open(path) as image:
            # a .png of 16 bits, which some versions of Pillow call 32
            deep = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")
            palette = "RGBA" if image.has_transparency_data else "RGB"
            mode = {"P": palette, "1": "L"}.get(image.mode, image.mode)
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError("one frame is needed, this has several")
            if not deep and mode not in ("L", "LA", "RGB", "RGBA"):
                raise ValueError(
                    f"its pixels are {image.mode}; save it with 8 or 16 bits, grey or RGB, or as .npy"
                )
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright if deep else upright.convert(mode))
            white = 65535 if deep else 255
    scaled = pixels if white == 255 else pixels.astype(np.float32) * np.float32(255 / white)
    return np.moveaxis(np.atleast_3d(scaled), 2, 0)


def read_images(folder: Path) -> Raw:
    """Read all images of a folder `(N, C, H, W)`; sub-folders, if any, are the labels."""
    inside = [p.relative_to(folder) for p in (*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*"))]
    found = sorted(p for p in inside if len(p.parts) == 2 or not (folder / p).is_dir())
    files = [p for p in found if p.suffix.lower() in IMAGES]
    others = [str(p) for p in found if p not in set(files)]
    depths = {len(p.parts) for p in files}
    if depths not in ({1}, {2}):
        kinds = ", ".join(IMAGES)
        raise ValueError(f"{folder}: needs images ({kinds}), all in it or all in its sub-folders")
    pixels: list[np.ndarray] = []
    for file in files:
        pixels.append(read_image(folder / file))
        if pixels[-1].shape != pixels[0].shape:  # each mode has its own number of channels
            raise ValueError(
                f"{folder / file}: (C, H, W) is {pixels[-1].shape}, but {pixels[0].shape} in "
                f"{files[0]}; all images must have one size and mode"
            )
    notes = (f"took only images, not: {some(others)}",) if others else ()
    labels = np.array([p.parts[0] for p in files]) if depths == {2} else None
    return Raw(np.stack(pixels), labels, (), notes)
