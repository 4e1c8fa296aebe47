"""Pixels of 16 bits in several channels, which Pillow would round to 8: PNG, and plain TIFF."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .records import check_unpacked

BITS, COMPRESSION, OFFSETS, PER_PIXEL, COUNTS, PREDICTOR = 258, 259, 273, 277, 279, 317
"""Tags of TIFF."""


def deep_pixels(path: Path, image: Any) -> np.ndarray | None:
    """Return pixels `(H, W, C)` as they are stored, uint16; None if Pillow has all their bits.

    Arguments:
        path: The file.
        image: The image that Pillow has opened there.

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
