"""The mask of EPVS in a map of probabilities: where they are is settled at one threshold, how wide they are at another.

At a threshold at which faint EPVS are found clear ones come out too wide, most so on thick slices; at one at which they
are as wide as they should be faint ones are missed.
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage

_AROUND = tuple(o for o in itertools.product((-1, 0, 1), repeat=3) if any(o))
"""Offsets of the 26 neighbours of a voxel."""
_TOUCH = tuple(
    sum(1 << k for k, b in enumerate(_AROUND) if a != b and max(abs(p - q) for p, q in zip(a, b, strict=True)) <= 1)
    for a in _AROUND
)
"""For each neighbour a bit field of the neighbours that touch it."""
_BITS = 1 << np.arange(len(_AROUND))
_SLICE = np.ones((3, 3, 1), bool)


def marked(probability: np.ndarray, threshold: float, extent: float) -> np.ndarray:
    """Pieces at a threshold, thinned to what reaches `extent`: none is lost, and none falls apart.

    Voxels below the extent are taken away, the least likely first, unless the piece would fall apart (26-neighbours) or
    the voxel is a peak of its slice: neighbours that have run together stay one piece, but each keeps its place.

    Parameters
    ----------
    probability : ndarray
        (X, Y, Z), slices along the third axis.
    threshold, extent : float
        An extent that is not above the threshold takes nothing away.

    Returns
    -------
    ndarray of bool
        As many pieces as at the threshold.
    """
    likely = np.pad(probability, 1)
    found = likely >= threshold
    spare = found & (likely < extent)
    if spare.any():
        spare &= likely < ndimage.maximum_filter(likely, footprint=_SLICE)
    kept, values = found.ravel(), likely.ravel()
    near = np.ravel_multi_index(np.add(_AROUND, 1).T, found.shape) - np.ravel_multi_index((1, 1, 1), found.shape)
    left = np.flatnonzero(spare)
    left = left[np.argsort(values[left], kind="stable")]
    before = -1
    while before != len(left):  # what held a piece together may be its end once more is gone
        before = len(left)
        for voxel in left:
            kept[voxel] = not _joined(int(_BITS[kept[voxel + near]].sum()))
        left = left[kept[left]]
    return found[1:-1, 1:-1, 1:-1].copy()


def followed(mask: np.ndarray, further: np.ndarray) -> np.ndarray:
    """A mask with those voxels of another one that it is joined with (26 neighbours, one by one)."""
    found, n = ndimage.label(mask | further, np.ones((3, 3, 3)))
    kept = np.zeros(n + 1, bool)
    kept[found[mask]] = True
    return kept[found]


def _joined(field: int) -> bool:
    """Whether the neighbours in a bit field are one piece; False without any."""
    reached = new = field & -field
    while new:
        nearby = _TOUCH[new.bit_length() - 1] & field & ~reached
        new = (new ^ (1 << (new.bit_length() - 1))) | nearby
        reached |= nearby
    return bool(field) and reached == field
