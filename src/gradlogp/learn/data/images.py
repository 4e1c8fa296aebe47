"""The reader of a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .records import Raw, some, unreadable

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


def read_images(folder: Path) -> Raw:
    """Read all images of a folder `(N, C, H, W)`; sub-folders, if any, are the labels."""
    from PIL import Image

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
        try:
            with Image.open(folder / file) as image:
                palette = "RGBA" if image.has_transparency_data else "RGB"
                mode = {"P": palette, "1": "L"}.get(image.mode, image.mode)
                if mode not in ("L", "LA", "RGB", "RGBA") or getattr(image, "n_frames", 1) > 1:
                    raise ValueError(f"one 8-bit frame is needed, this is {image.mode}")
                pixels.append(np.moveaxis(np.atleast_3d(np.asarray(image.convert(mode))), 2, 0))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise unreadable(folder / file, error) from error
        if pixels[-1].shape != pixels[0].shape:  # each mode has its own number of channels
            raise ValueError(
                f"{folder / file}: (C, H, W) is {pixels[-1].shape}, but {pixels[0].shape} in "
                f"{files[0]}; all images must have one size and mode"
            )
    notes = (f"took only images, not: {some(others)}",) if others else ()
    labels = np.array([p.parts[0] for p in files]) if depths == {2} else None
    return Raw(np.stack(pixels), labels, (), notes)
