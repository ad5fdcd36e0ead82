"""Scans whose slices are sagittal or coronal, turned so that these lie along the third axis, as axial ones do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from bids_epvs.prepare.resample import slice_axis, thickness
from bids_epvs.records import Prediction, Prepared

Figures = TypeVar("Figures")
AXIAL = 2
"""The axis across axial slices."""
NAMES = ("sagittal", "coronal", "axial")
"""Slices across each axis."""
NEAREST = {
    "thin": ("thin", "thick", "turned"),
    "thick": ("thick", "turned", "thin"),
    "turned": ("turned", "thick", "thin"),
}
"""Each kind of slices (`kind`), and those whose figures take the place of its own where these are missing."""


def sliced(array: np.ndarray, axis: int) -> np.ndarray:
    """A volume (R, A, S) with the axis across its slices last; the other two keep their order. A view."""
    return np.moveaxis(array, axis, AXIAL)


def unsliced(array: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `sliced`."""
    return np.moveaxis(array, AXIAL, axis)


def turned_spacing(spacing: Sequence[float], axis: int) -> tuple[float, float, float]:
    """Voxel sizes in the order that `sliced` gives them."""
    x, y, z = (float(spacing[a]) for a in order(axis))
    return x, y, z


def order(axis: int) -> list[int]:
    """Axes of a volume in the order that `sliced` gives them.

    >>> order(0), order(1), order(2)
    ([1, 2, 0], [0, 2, 1], [0, 1, 2])
    """
    return [*(a for a in range(3) if a != axis), axis]


def along_slices(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Decorator of ``function(*volumes, spacing, *more)`` that looks at slices along the third axis.

    The decorated one takes volumes (R, A, S) whatever plane their slices lie in, and gives a volume like them.
    """

    @wraps(function)
    def turned(*given: Any) -> np.ndarray:
        at = next(k for k, value in enumerate(given) if np.ndim(value) != 3)
        axis = slice_axis(given[at])
        if axis == AXIAL:
            return function(*given)
        volumes = [sliced(volume, axis) for volume in given[:at]]
        return unsliced(function(*volumes, turned_spacing(given[at], axis), *given[at + 1 :]), axis)

    return turned


def kind(spacing: Sequence[float], *, turned: bool = False) -> str:
    """``thin``, ``thick`` (axial) or ``turned`` (thick and coronal or sagittal) slices.

    Parameters
    ----------
    spacing : sequence of float
        mm along R, A, S; with `turned` as `turned_spacing` gives them.
    turned : bool
        `Prepared.turned`.

    >>> kind((0.5, 0.5, 4.0)), kind((1.0, 1.0, 1.0)), kind((4.0, 0.6, 0.6)), kind((0.6, 0.6, 4.0), turned=True)
    ('thick', 'thin', 'turned', 'turned')
    """
    return "turned" if turned or slice_axis(spacing) != AXIAL else thickness(spacing)


def kind_of(prepared: Prepared) -> str:
    """`kind` of the slices of a session, as it is or `in_slices`."""
    return kind(prepared.spacing, turned=prepared.turned)


def of_kind(stored: Mapping[str, Figures], wanted: str) -> Figures | None:
    """What is stored for a kind of slices, or for the `NEAREST` that there is; None where there is nothing."""
    return next((stored[name] for name in NEAREST[wanted] if name in stored), None)


def in_slices(prepared: Prepared) -> Prepared:
    """A session with its slices along the third axis; without rating slices where these are not axial."""
    axis = slice_axis(prepared.spacing)
    if axis == AXIAL:
        return prepared

    def turn(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(sliced(array, axis)) if array.size else array

    return replace(
        prepared,
        images={name: turn(data) for name, data in prepared.images.items()},
        brain=turn(prepared.brain),
        regions=turn(prepared.regions),
        csf=turn(prepared.csf),
        hemisphere=turn(prepared.hemisphere),
        spacing=turned_spacing(prepared.spacing, axis),
        slices={},
        turned=True,
    )


def by_slices(prepared: Prepared, run: Callable[[Prepared], Prediction]) -> Prediction:
    """What a method that looks at slices says of a session, whatever plane its slices lie in.

    Parameters
    ----------
    prepared : Prepared
    run : callable
        Given the session `in_slices`.

    Returns
    -------
    Prediction
        In the canonical frame.
    """
    axis = slice_axis(prepared.spacing)
    made = run(in_slices(prepared))
    if axis == AXIAL:
        return made

    def back(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.ascontiguousarray(unsliced(array, axis))

    return replace(
        made,
        probability=back(made.probability),
        mask=back(made.mask),
        instances=back(made.instances),
        saliency=back(made.saliency),
    )
