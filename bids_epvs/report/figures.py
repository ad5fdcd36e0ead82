"""Arrays to pictures: grey slices and transparent overlays as PNG bytes, all in the canonical frame.

Pictures are shown as radiologists do: the patient's left on the right of the picture, front at the top.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

from bids_epvs.prepare.regions import REGIONS
from bids_epvs.prepare.resample import bounding_box

EPVS_COLOR = "#ff2d55"
BRAIN_COLOR = "#ffe14d"


def window(image: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    """Grey window: percentiles 0.5 and 99.7 of the brain (whole image without one)."""
    inside = image[brain] if brain.any() else image.ravel()
    low, high = np.percentile(inside, [0.5, 99.7])
    return float(low), float(max(high, low + 1e-6))


def plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as rows from top to bottom: axial (axis 2) and coronal (1) with left on the right, sagittal (0)
    with the front on the left.
    """
    part = np.take(volume, index, axis=axis)
    return np.flip(part.T, axis=(0, 1))


def _pixels(axis: int, spacing: Sequence[float]) -> tuple[float, float]:
    """Millimetres of a row and of a column of `plane`."""
    return {2: (spacing[1], spacing[0]), 1: (spacing[2], spacing[0]), 0: (spacing[2], spacing[1])}[axis]


def scaled(picture: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """Resize to (height, width)."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), method))


def grey(part: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """uint8 grey levels."""
    low, high = limits
    return np.clip((part - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def outline(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label of each outline pixel after nearest-neighbour resizing, one pixel wide, inside the structure."""
    big = scaled(labels.astype(np.uint8), size, smooth=False)
    inner = ndimage.minimum_filter(big, 3) == ndimage.maximum_filter(big, 3)
    return np.where(inner, 0, big)


def paint(target: np.ndarray, labels: np.ndarray, colors: Mapping[int, str], alpha: int = 255) -> None:
    """Color the pixels of an RGBA picture by label, in place."""
    for value, color in colors.items():
        target[labels == value] = (*ImageColor.getrgb(color), alpha)


def png(picture: np.ndarray) -> bytes:
    """PNG bytes."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def jpeg(picture: np.ndarray) -> bytes:
    """JPEG bytes of a grey or RGB picture."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="JPEG", quality=88)
    return stream.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """A picture (``png``, ``jpeg``) as the source of an ``<img>``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def blended(base: np.ndarray, overlay: np.ndarray) -> np.ndarray:
    """RGB picture of a grey base under an RGBA overlay."""
    below = Image.fromarray(base).convert("RGBA")
    return np.asarray(Image.alpha_composite(below, Image.fromarray(overlay)).convert("RGB"))


def write_text(picture: np.ndarray, text: str, position: tuple[int, int], color: str = "white") -> np.ndarray:
    """A copy with text at (x, y)."""
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text(position, text, fill=color)
    return np.asarray(image)


def tile(
    image: np.ndarray,
    layers: Mapping[str, np.ndarray],
    *,
    axis: int,
    index: int,
    spacing: Sequence[float],
    limits: tuple[float, float],
    width: int,
    box: tuple[slice, slice] | None = None,
    caption: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """One slice: `base` and `overlay`, of the same size; their parameters."""
    common: dict[str, Any] = {"axis": axis, "index": index, "spacing": spacing, "width": width, "box": box}
    return base(image, limits=limits, caption=caption, **common), overlay(layers, **common)


def base(
    image: np.ndarray,
    *,
    axis: int,
    index: int,
    spacing: Sequence[float],
    limits: tuple[float, float],
    width: int,
    box: tuple[slice, slice] | None = None,
    caption: str = "",
) -> np.ndarray:
    """One slice as a grey picture (uint8).

    Parameters
    ----------
    image : ndarray
        (X, Y, Z) canonical.
    axis, index, spacing, width, box
        As in `overlay`.
    limits : tuple of float
        Grey window.
    caption : str
        Top left.
    """
    part = plane(image, axis, index)[box or (slice(None), slice(None))]
    size = _size(part, axis, spacing, width)
    out = scaled(grey(part, limits), size, smooth=True)
    if caption:
        out = write_text(out, caption, (4, 2), "white")
    if axis != 0:
        out = write_text(out, "R", (4, size[0] - 14), "white")
        out = write_text(out, "L", (width - 12, size[0] - 14), "white")
    return out


def _size(part: np.ndarray, axis: int, spacing: Sequence[float], width: int) -> tuple[int, int]:
    """Height and width of the picture of a part of a slice."""
    row, column = _pixels(axis, spacing)
    return max(1, round(width * part.shape[0] * row / (part.shape[1] * column))), width


def overlay(
    layers: Mapping[str, np.ndarray],
    *,
    axis: int,
    index: int,
    spacing: Sequence[float],
    width: int,
    box: tuple[slice, slice] | None = None,
) -> np.ndarray:
    """What is drawn over one slice (RGBA).

    Parameters
    ----------
    layers : mapping
        At least one of ``brain`` (bool), ``regions`` (indices), ``epvs`` (bool or instances): outlines; ``map`` (0-1):
        colours.
    axis, index : int
        Which slice.
    spacing : sequence of float
        Voxel sizes, to keep proportions.
    width : int
        Of the picture, in pixels.
    box : tuple of slice, optional
        Rows and columns of `plane` to show.
    """
    cut = box or (slice(None), slice(None))
    parts = {name: plane(volume, axis, index)[cut] for name, volume in layers.items()}
    size = _size(next(iter(parts.values())), axis, spacing, width)
    out = np.zeros((*size, 4), np.uint8)
    if "regions" in parts:
        paint(out, outline(parts["regions"], size), {i: r.color for i, r in REGIONS.items()})
    if "brain" in parts:
        paint(out, outline(parts["brain"], size), {1: BRAIN_COLOR})
    if "epvs" in parts:
        big = scaled((parts["epvs"] > 0).astype(np.uint8), size, smooth=False)
        paint(out, ndimage.binary_dilation(big > 0).astype(np.uint8) - (big > 0), {1: EPVS_COLOR})
    if "map" in parts:
        level = scaled(parts["map"].astype(np.float32), size, smooth=True)
        out = np.maximum(out, colored(np.clip(level, 0, 1)))
    return out


MAP_SHOWN = 0.08
"""Values of a map below this are transparent."""


def colored(level: np.ndarray) -> np.ndarray:
    """Values 0-1 in the colours of ``inferno`` (RGBA), transparent where they are small."""
    from matplotlib import colormaps

    out = colormaps["inferno"](0.25 + 0.75 * level, bytes=True)
    out[..., 3] = np.clip((level - MAP_SHOWN) * 900, 0, 190)
    out[out[..., 3] == 0] = 0
    return np.ascontiguousarray(out)


def color_bar(width: int = 200, height: int = 12) -> np.ndarray:
    """The colours of `colored` from small to large, on black (RGB)."""
    level = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
    return blended(np.zeros((height, width), np.uint8), colored(level))


def grid(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Tiles of one width (and padded height) side by side."""
    height = max(t.shape[0] for t in tiles)
    padded = [np.pad(t, [(0, height - t.shape[0])] + [(0, 0)] * (t.ndim - 1)) for t in tiles]
    while len(padded) % columns:
        padded.append(np.zeros_like(padded[0]))
    rows = [np.concatenate(padded[i : i + columns], axis=1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows, axis=0)


def mosaic(
    image: np.ndarray,
    layers: Sequence[Mapping[str, np.ndarray]],
    brain: np.ndarray,
    spacing: Sequence[float],
    *,
    tiles: int = 24,
    columns: int = 6,
    width: int = 200,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Axial slices through the brain, three coronal and three sagittal: grey picture, and an overlay of each layers."""
    limits = window(image, brain)
    spots = []
    for axis, count in ((2, tiles - 6), (1, 3), (0, 3)):
        found = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
        if found.size == 0:
            found = np.arange(image.shape[axis])
        inner = (
            np.linspace(found[0], found[-1], count + 2)[1:-1] if axis != 2 else np.linspace(found[0], found[-1], count)
        )
        spots += [(axis, round(float(v))) for v in inner]
    box = bounding_box(brain, 12)
    made: list[list[np.ndarray]] = []
    for axis, index in spots:
        common: dict[str, Any] = {"axis": axis, "index": index, "spacing": spacing, "width": width}
        common["box"] = _view(box, axis, brain.shape)
        below = base(image, limits=limits, caption=f"{'xyz'[axis]} {index}", **common)
        made.append([below, *(overlay(layer, **common) for layer in layers)])
    below, *over = (grid(pictures, columns) for pictures in zip(*made, strict=True))
    return below, over


def _view(box: tuple[slice, slice, slice], axis: int, shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of `plane` that show `box` (both directions are flipped there)."""
    column, row = [a for a in range(3) if a != axis]
    flip = [slice(shape[a] - box[a].stop, shape[a] - box[a].start) for a in (row, column)]
    return flip[0], flip[1]


def region_view(
    mask: np.ndarray, spacing: Sequence[float], index: int | None = None, margin: int = 20
) -> tuple[slice, slice]:
    """Rows and columns of the axial `plane` that show a region in one slice (in all: None, or where it is absent).

    `margin` is in voxels of the shorter side in that plane.
    """
    part = mask if index is None else mask[:, :, [index]]
    around = [math.ceil(margin * min(spacing[:2]) / s) for s in spacing]
    return _view(bounding_box(part if part.any() else mask, around), 2, mask.shape)


def heat(
    base: np.ndarray, share: np.ndarray, *, top: float, slices: Sequence[int], width: int = 150, columns: int = 6
) -> np.ndarray:
    """Axial slices of a brain with a map in the colours of ``inferno`` over it (RGB).

    Parameters
    ----------
    base, share : ndarray
        (X, Y, Z), isotropic; `share` is transparent below `MAP_SHOWN` of `top`.
    top : float
        Value of the brightest colour.
    slices : sequence of int
    """
    box = _view(bounding_box(base > base.max() * 0.1, 3), 2, base.shape)
    limits = window(base, base > base.max() * 0.1)
    made = []
    for index in slices:
        below, part = plane(base, 2, index)[box], plane(share, 2, index)[box]
        size = (round(width * below.shape[0] / below.shape[1]), width)
        level = scaled(np.clip(part / top, 0, 1).astype(np.float32), size, smooth=False)
        made.append(blended(scaled(grey(below, limits), size, smooth=True), colored(level)))
    return grid(made, columns)
