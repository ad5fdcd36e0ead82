"""From labels and tubes to an image: tissue intensities, slices, partial volume, bias field, noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_epvs.prepare.labels import ATLAS_LABELS
from bids_epvs.prepare.resample import resample
from bids_epvs.synth.anatomy import Anatomy, smooth_field

MEANS: Mapping[str, Mapping[str, float]] = {
    "T2w": {
        **{"WM": 395, "GM": 470, "DGM": 410, "Pallidum": 320, "CSF": 1152},
        **{"Eye": 1150, "Soft": 280, "Mucosa": 800, "Skin": 600, "Vessel": 180, "Bone": 50, "Marrow": 420},
    },
    "T1w": {
        **{"WM": 900, "GM": 600, "DGM": 720, "Pallidum": 810, "CSF": 230},
        **{"Eye": 250, "Soft": 520, "Mucosa": 620, "Skin": 900, "Vessel": 380, "Bone": 60, "Marrow": 950},
    },
    "FLAIR": {
        **{"WM": 420, "GM": 540, "DGM": 470, "Pallidum": 380, "CSF": 110},
        **{"Eye": 120, "Soft": 330, "Mucosa": 620, "Skin": 560, "Vessel": 150, "Bone": 50, "Marrow": 430},
    },
    "SWI": {
        **{"WM": 520, "GM": 580, "DGM": 500, "Pallidum": 360, "CSF": 620},
        **{"Eye": 640, "Soft": 420, "Mucosa": 320, "Skin": 520, "Vessel": 200, "Bone": 60, "Marrow": 300},
    },
}
"""Typical intensity of each tissue (arbitrary units; T2w after the published phantom of Bernal 2022)."""


@dataclass(frozen=True)
class Protocol:
    """How an image is acquired.

    Attributes
    ----------
    spacing : tuple of float
        Voxel sizes (mm) along R, A, S.
    snr : float
        White matter signal over noise.
    bias : float
        Standard deviation of the logarithm of the coil field.
    """

    spacing: tuple[float, float, float]
    snr: float
    bias: float


def grid_of(head: Anatomy, spacing: tuple[float, float, float]) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine (no rotation) of an acquisition that covers the head."""
    extent = np.array(head.labels.shape) * np.array(head.spacing)
    shape = tuple(int(v) for v in np.ceil(extent / spacing))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = head.affine[:3, 3] - np.array(head.spacing) / 2 + np.array(spacing) / 2
    return (shape[0], shape[1], shape[2]), affine


def tissue_image(head: Anatomy, means: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Intensity of each voxel of the head: mean of its tissue, varied by structure, with smooth texture (float32)."""
    table = np.zeros(int(head.labels.max()) + 1, np.float32)
    for index, entry in ATLAS_LABELS.items():
        if index < len(table):
            table[index] = means[entry.tissue] * (1 + rng.normal(0, 0.02))
    out = table[head.labels]
    texture = ndimage.gaussian_filter(rng.standard_normal(head.labels.shape, dtype=np.float32), 1.2)
    return out * (1 + 0.03 * texture / texture.std())


def acquire(head: Anatomy, intensities: np.ndarray, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Average the head over voxels: slices are sampled at 0.8 mm or finer and averaged (float32)."""
    spacing = np.diag(affine)[:3]
    parts = max(1, int(np.ceil(spacing[2] / 0.8)))
    fine = affine.copy()
    fine[2, 2] = spacing[2] / parts
    fine[2, 3] = affine[2, 3] - spacing[2] / 2 + fine[2, 2] / 2
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), (*shape[:2], shape[2] * parts)), fine)
    data = np.asarray(resample(nib.Nifti1Image(intensities, head.affine), grid).dataobj)
    return data.reshape(*shape, parts).mean(axis=-1, dtype=np.float32)


def add_tubes(image: np.ndarray, fraction: np.ndarray, means: Mapping[str, float], strength: float) -> np.ndarray:
    """Fill tubes with fluid: `strength` of the step from white matter to cerebrospinal fluid, by volume fraction."""
    return image + fraction * np.float32(strength * (means["CSF"] - means["WM"]))


def bias_field(shape: tuple[int, int, int], rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth positive field with mean near 1 (float32)."""
    knots = rng.normal(0, strength, (4, 4, 4))
    return np.exp(smooth_field(knots, shape))


def rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of the image with complex Gaussian noise of standard deviation `sigma` (float32)."""
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, sigma * rng.standard_normal(image.shape, dtype=np.float32))


def scan(
    rng: np.random.Generator,
    head: Anatomy,
    fraction: np.ndarray,
    affine: np.ndarray,
    *,
    contrast: str,
    protocol: Protocol,
    strength: float,
) -> np.ndarray:
    """One image of a head on a grid whose tube fractions are known.

    Parameters
    ----------
    rng : Generator
    head : Anatomy
    fraction : ndarray
        From `tubes.occupancy` on the grid.
    affine : ndarray
        Of the grid.
    contrast : str
        A key of `MEANS`.
    protocol : Protocol
    strength : float
        Of the signal inside a tube, 0-1 of fluid.

    Returns
    -------
    ndarray of float32
    """
    varied = {k: v * float(np.exp(rng.normal(0, 0.04))) for k, v in MEANS[contrast].items()}
    image = acquire(head, tissue_image(head, varied, rng), fraction.shape, affine)
    image = add_tubes(image, fraction, varied, strength)
    image *= bias_field(image.shape, rng, protocol.bias)
    return rician(image, varied["WM"] / protocol.snr, rng)
