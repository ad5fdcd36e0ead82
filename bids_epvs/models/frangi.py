"""Classical segmentation: Frangi's vesselness, in 3-D for near-isotropic voxels and in 2-D for thick slices.

References
----------
Frangi et al. 1998, doi:10.1007/BFb0056195; Ballerini et al. 2018, doi:10.1038/s41598-018-19781-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from bids_epvs.models.spec import ModelSpec
from bids_epvs.prepare.intensity import Levels, levels
from bids_epvs.prepare.regions import NAMES, WHITE_MATTER, indices
from bids_epvs.records import Prediction, Prepared

PARAMETERS: dict[str, Any] = {
    "thick_ratio": 2.0,
    "scales_3d_mm": (0.4, 0.6, 0.8),
    "scales_2d_mm": (0.215, 0.43, 0.645),
    "alpha": 0.5,
    "beta": 0.5,
    "c": 0.66,
    "threshold_3d": 0.003,
    "threshold_2d": 0.005,
    "min_contrast": 0.1,
    "area_mm2_basal_ganglia": (1.5, 18.0),
    "area_mm2_other": (1.0, 12.0),
    "max_elongation_basal_ganglia": 5.0,
    "border_mm": 0.8,
}


def eigenvalues_2d(hxx: np.ndarray, hyy: np.ndarray, hxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of symmetric 2 x 2 matrices, ordered by magnitude (small, large)."""
    mean, half = (hxx + hyy) / 2, np.hypot((hxx - hyy) / 2, hxy)
    a, b = mean + half, mean - half
    swap = np.abs(a) > np.abs(b)
    return np.where(swap, b, a), np.where(swap, a, b)


def eigenvalues_3d(h: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues of symmetric 3 x 3 matrices ordered by magnitude, by the trigonometric closed form.

    Parameters
    ----------
    h : mapping
        ``xx, yy, zz, xy, xz, yz``: arrays of one shape.
    """
    mean = (h["xx"] + h["yy"] + h["zz"]) / 3
    dx, dy, dz = h["xx"] - mean, h["yy"] - mean, h["zz"] - mean
    p = np.sqrt((dx**2 + dy**2 + dz**2 + 2 * (h["xy"] ** 2 + h["xz"] ** 2 + h["yz"] ** 2)) / 6)
    safe = np.maximum(p, 1e-20)
    determinant = (
        dx * (dy * dz - h["yz"] ** 2)
        - h["xy"] * (h["xy"] * dz - h["yz"] * h["xz"])
        + h["xz"] * (h["xy"] * h["yz"] - dy * h["xz"])
    )
    angle = np.arccos(np.clip(determinant / (2 * safe**3), -1, 1)) / 3
    values = np.stack([mean + 2 * p * np.cos(angle + 2 * np.pi * k / 3) for k in range(3)])
    order = np.argsort(np.abs(values), axis=0, kind="stable")
    small, middle, large = np.take_along_axis(values, order, axis=0)
    return small, middle, large


def _second(smooth: np.ndarray, a: int, b: int, spacing: tuple[float, ...]) -> np.ndarray:
    """Second derivative by central differences, per mm2."""
    if a == b:
        return ndimage.correlate1d(smooth, np.array([1.0, -2.0, 1.0]) / spacing[a] ** 2, axis=a, mode="nearest")
    first = ndimage.correlate1d(smooth, np.array([-0.5, 0.0, 0.5]) / spacing[a], axis=a, mode="nearest")
    return ndimage.correlate1d(first, np.array([-0.5, 0.0, 0.5]) / spacing[b], axis=b, mode="nearest")


def vesselness_2d(
    image: np.ndarray,
    inside: np.ndarray,
    spacing: tuple[float, ...],
    *,
    scales: tuple[float, ...],
    beta: float,
    c: float,
) -> np.ndarray:
    """Frangi's 2-D measure of bright lines in each slice (along the third axis), maximum over scales.

    Parameters
    ----------
    image : ndarray
        (X, Y, Z), contrast normalised: 0 white matter, 1 fluid.
    inside : ndarray of bool
        Where to compute.
    spacing : tuple of float
        Voxel sizes in mm.
    scales : tuple of float
        Sigma in mm.
    beta, c : float
        Frangi's blobness and structureness constants.

    Returns
    -------
    ndarray of float32
        0-1, 0 outside.
    """
    best = np.zeros(int(inside.sum()), np.float32)
    for sigma in scales:
        smooth = ndimage.gaussian_filter(image, (sigma / spacing[0], sigma / spacing[1], 0))
        h = [_second(smooth, a, b, spacing)[inside] * sigma**2 for a, b in ((0, 0), (1, 1), (0, 1))]
        small, large = eigenvalues_2d(*h)
        blob = small / np.where(large == 0, -1e-12, large)
        strength = small**2 + large**2
        value = np.exp(-(blob**2) / (2 * beta**2)) * -np.expm1(-strength / (2 * c**2))
        best = np.maximum(best, np.where(large < 0, value, 0).astype(np.float32))
    out = np.zeros(image.shape, np.float32)
    out[inside] = best
    return out


def vesselness_3d(
    image: np.ndarray,
    inside: np.ndarray,
    spacing: tuple[float, ...],
    *,
    scales: tuple[float, ...],
    alpha: float,
    beta: float,
    c: float,
) -> np.ndarray:
    """Frangi's 3-D measure of bright tubes, maximum over scales; arguments as `vesselness_2d`, and plate constant."""
    best = np.zeros(int(inside.sum()), np.float32)
    pairs = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}
    for sigma in scales:
        smooth = ndimage.gaussian_filter(image, [sigma / s for s in spacing])
        h = {k: _second(smooth, a, b, spacing)[inside] * sigma**2 for k, (a, b) in pairs.items()}
        small, middle, large = eigenvalues_3d(h)
        plate = np.abs(middle) / np.maximum(np.abs(large), 1e-12)
        blob = np.abs(small) / np.maximum(np.sqrt(np.abs(middle * large)), 1e-12)
        strength = small**2 + middle**2 + large**2
        value = -np.expm1(-(plate**2) / (2 * alpha**2)) * np.exp(-(blob**2) / (2 * beta**2))
        value *= -np.expm1(-strength / (2 * c**2))
        best = np.maximum(best, np.where((middle < 0) & (large < 0), value, 0).astype(np.float32))
    out = np.zeros(image.shape, np.float32)
    out[inside] = best
    return out


def is_thick(spacing: tuple[float, float, float], ratio: float) -> bool:
    """Whether the slices are too thick for 3-D filters (slice over in-plane voxel size at least `ratio`)."""
    return spacing[2] >= ratio * max(spacing[0], spacing[1])


def search_space(prepared: Prepared, border_mm: float) -> np.ndarray:
    """Voxels of the regions that are no large fluid and not within `border_mm` of it in the plane of the slices."""
    inside = (prepared.regions > 0) & ~prepared.csf
    reach = max(1, round(border_mm / min(prepared.spacing[:2])))
    near = ndimage.binary_dilation(prepared.csf, _disk(reach)[:, :, None])
    return inside & ~near


def _disk(radius: int) -> np.ndarray:
    x = np.arange(-radius, radius + 1)
    return x[:, None] ** 2 + x[None, :] ** 2 <= radius**2


def normalised(image: np.ndarray, found: Levels) -> np.ndarray:
    """Contrast scale on which white matter is 0 and fluid 1, cut at -0.5 and 1.2."""
    return np.clip((image - found.white) / (found.fluid - found.white), -0.5, 1.2).astype(np.float32)


def slice_rules(mask: np.ndarray, prepared: Prepared, parameters: Mapping[str, Any]) -> np.ndarray:
    """Drop 2-D components whose area or elongation is not that of an EPVS (Ballerini's rules for thick slices)."""
    out = np.zeros_like(mask)
    pixel = prepared.spacing[0] * prepared.spacing[1]
    ganglia = indices("BasalGanglia")
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        found, _ = ndimage.label(mask[..., k], np.ones((3, 3)))
        for index, box in enumerate(ndimage.find_objects(found), start=1):
            one = found[box] == index
            deep = np.isin(prepared.regions[(*box, k)][one], ganglia).mean() > 0.5
            low, high = parameters["area_mm2_basal_ganglia" if deep else "area_mm2_other"]
            if not low <= one.sum() * pixel <= high:
                continue
            if deep and _elongation(one, prepared.spacing) > parameters["max_elongation_basal_ganglia"]:
                continue
            out[(*box, k)] |= one
    return out


def _elongation(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Ratio of the standard deviations along the principal axes of a 2-D mask (pixels have extent)."""
    xy = np.argwhere(mask) * np.asarray(spacing[:2])
    covariance = np.cov(xy.T, bias=True) if len(xy) > 1 else np.zeros((2, 2))
    values = np.linalg.eigvalsh(covariance + np.diag(np.square(spacing[:2])) / 12)
    return float(np.sqrt(values[1] / values[0]))


def predict(prepared: Prepared, parameters: Mapping[str, Any]) -> Prediction:
    """EPVS candidates of one session.

    Returns
    -------
    Prediction
        `probability` is V / (V + threshold), a response between 0 and 1 whose threshold is 0.5; not calibrated.
    """
    image = prepared.images["T2w"]
    white = np.isin(prepared.regions, WHITE_MATTER) & ~prepared.csf
    flat = normalised(image, levels(image, white, prepared.csf))
    inside = search_space(prepared, parameters["border_mm"])
    thick = is_thick(prepared.spacing, parameters["thick_ratio"])
    if thick:
        response = vesselness_2d(
            flat,
            inside,
            prepared.spacing,
            scales=parameters["scales_2d_mm"],
            beta=parameters["beta"],
            c=parameters["c"],
        )
    else:
        response = vesselness_3d(
            flat,
            inside,
            prepared.spacing,
            scales=parameters["scales_3d_mm"],
            alpha=parameters["alpha"],
            beta=parameters["beta"],
            c=parameters["c"],
        )
    threshold = parameters["threshold_2d" if thick else "threshold_3d"]
    local = flat - _background(flat, prepared)
    mask = (response >= threshold) & (local >= parameters["min_contrast"])
    if thick:
        mask = slice_rules(mask, prepared, parameters)
    probability = response / (response + np.float32(threshold))
    used = {**parameters, "dimensions": 2 if thick else 3}
    return Prediction("frangi", probability.astype(np.float32), mask, used)


def _background(flat: np.ndarray, prepared: Prepared) -> np.ndarray:
    """Local level of tissue: mean within about 5 mm in the plane of the slices, fluid left out."""
    weight = ((prepared.regions > 0) & ~prepared.csf).astype(np.float32)
    size = [max(3, round(7.0 / s) | 1) for s in prepared.spacing[:2]] + [1]
    total = ndimage.uniform_filter(flat * weight, size)
    return total / np.maximum(ndimage.uniform_filter(weight, size), 1e-3)


SPEC = ModelSpec(
    name="frangi",
    title="Vesselness filter (Frangi), classical baseline without training",
    doi="10.1038/s41598-018-19781-5",
    citation=(
        "Ballerini L, Lovreglio R, Valdes Hernandez MC, et al. Perivascular spaces segmentation in brain MRI using "
        "optimal 3D filtering. Scientific Reports 2018;8:2132."
    ),
    task="segmentation",
    suffixes=("T2w",),
    regions=NAMES,
    predict=predict,
    parameters=PARAMETERS,
    normalise="white matter 0, cerebrospinal fluid 1",
    deviations=(
        "Second derivatives are central differences of the smoothed image in mm, so voxels may be anisotropic.",
        "The structureness constant c is 0.66 on the scale white matter 0, fluid 1.",
        "Large fluid (ventricles, sulci) and its border are left out; a candidate must exceed its surroundings.",
        "Thresholds were tuned on simulated subjects.",
    ),
)
