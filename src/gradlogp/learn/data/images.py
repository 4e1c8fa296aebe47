"""The reader of images: of one, with all its bits, and of a folder of them."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...core import some
from .layout import Raw, check_unpacked, reading

BITS, COMPRESSION, OFFSETS, PER_PIXEL, COUNTS, PREDICTOR = 258, 259, 273, 277, 279, 317
"""Tags of TIFF."""


def deep_pixels(path: Path, image: Any) -> np.ndarray | None:
    """Return pixels `(H, W, C)` as they are stored, uint16; None if Pillow has all their bits.

    Raises:
        ValueError: If it is stored in an unsupported way, or damaged.
    """
    if image.format == "PNG":
        return _png(path)
    if image.format == "TIFF":
        bits = image.tag_v2.get(BITS, (1,))
        if len(bits) > 1 and max(bits) > 8:
            return _tiff(path, image)
    return None


def _png(path: Path) -> np.ndarray | None:
    whole = path.read_bytes()
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", whole[16:29])
    channels = {2: 3, 4: 2, 6: 4}.get(kind)
    if depth != 16 or channels is None:
        return None
    if interlaced:
        raise ValueError(
            "16-bit images with several channels must not be interlaced; save it without interlacing"
        )
    packed, at = b"", 8
    while at + 8 <= len(whole):
        (size,) = struct.unpack(">I", whole[at : at + 4])
        if whole[at + 4 : at + 8] == b"IDAT":
            part = whole[at + 4 : at + 8 + size]
            if whole[at + 8 + size : at + 12 + size] != zlib.crc32(part).to_bytes(4, "big"):
                raise ValueError("a chunk of pixels is damaged")
            packed += part[4:]
        at += size + 12
    rows = _unpacked(path, packed, height * (1 + 2 * channels * width)).reshape(height, -1)
    lines = rows[:, 1:].reshape(height, width, 2 * channels)
    return unfiltered(lines, rows[:, 0]).view(">u2").astype(np.uint16)


def unfiltered(lines: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Undo the filters of PNG: bytes `(H, W, B)`, B per pixel, and the filter of each row.

    A byte is the sum of the stored one and a prediction from the bytes to the left, above, and
    both. All pixels of an antidiagonal are computed together.

    References:
        | Portable Network Graphics (PNG) Specification, section 9 (W3C, 2003)
        | https://www.w3.org/TR/PNG/#9Filters
    """
    if kinds.max(initial=0) > 4:
        raise ValueError(f"there is no filter {kinds.max()}")
    h, w, size = lines.shape
    out = np.zeros((h + 1, w + 1, size), np.int16)
    for d in range(h + w - 1):
        i = np.arange(max(0, d - w + 1), min(h, d + 1))
        j, kind = d - i, kinds[i, None]
        left, above, both = out[i + 1, j], out[i, j + 1], out[i, j]
        a, b, c = abs(above - both), abs(left - both), abs(left + above - 2 * both)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, both))
        found = np.select([kind == 1, kind == 2, kind == 3, kind == 4],
                          [left, above, (left + above) // 2, paeth], 0)  # fmt: skip
        out[i + 1, j + 1] = (lines[i, j] + found) & 255
    return out[1:, 1:].astype(np.uint8)


def _tiff(path: Path, image: Any) -> np.ndarray:
    tags = image.tag_v2
    width, height = tags[256], tags[257]  # those of the image have been turned
    channels, packing = tags.get(PER_PIXEL, 1), tags.get(COMPRESSION, 1)
    plain = set(tags[BITS]) == {16} and tags.get(284, 1) == 1 and OFFSETS in tags
    plain = plain and set(tags.get(339, (1,))) == {1} and tags.get(PREDICTOR, 1) in (1, 2)
    if not plain or packing not in (1, 8, 32946):
        raise ValueError(
            "16-bit images with several channels are read only from striped .tif, uncompressed or "
            "deflated; save it so, or as .png"
        )
    whole, parts, per_strip = path.read_bytes(), [], tags.get(278, height)
    for k, (at, size) in enumerate(zip(tags[OFFSETS], tags[COUNTS], strict=True)):
        rows = min(per_strip, height - k * per_strip)
        want = 2 * channels * width * rows
        part = whole[at : at + size]
        parts.append(
            np.frombuffer(part, np.uint8) if packing == 1 else _unpacked(path, part, want)
        )
        if parts[-1].size != want:
            raise ValueError("a strip does not have the bytes that its rows need")
    order = ">u2" if whole[:2] == b"MM" else "<u2"
    pixels = np.concatenate(parts).view(order).reshape(height, width, channels)
    if tags.get(PREDICTOR, 1) == 2:
        return np.add.accumulate(pixels, axis=1, dtype=np.uint16)
    return pixels.astype(np.uint16)


def _unpacked(path: Path, packed: bytes, size: int) -> np.ndarray:
    """Inflate to so many bytes, and no more."""
    check_unpacked(path, size)
    found = zlib.decompressobj().decompress(packed, size)
    if len(found) != size:
        raise ValueError(f"{len(found):,} bytes of pixels, and {size:,} are needed")
    return np.frombuffer(found, np.uint8)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image `(H, W, …)` the way up that EXIF says, 1 to 8; as it is for any other number."""
    if orientation in (5, 7):
        pixels, orientation = np.swapaxes(pixels, 0, 1), {5: 1, 7: 3}[orientation]
    if orientation in (2, 4):
        return np.flip(pixels, {2: 1, 4: 0}[orientation])
    return np.rot90(pixels, {3: 2, 6: -1, 8: 1}.get(orientation, 0))


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
