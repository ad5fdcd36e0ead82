"""The packaged atlas and what is derived from it: contrast-matched heads to register to, label priors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.prepare.labels import ATLAS_LABELS

NAME = "tpl-MNI152NLin2009aSym_res-15_atlas-EPVS_probseg"

CONTRASTS: dict[str, dict[str, float]] = {
    "T2w": {
        **{"WM": 0.36, "GM": 0.46, "DGM": 0.37, "Pallidum": 0.28, "CSF": 1.0},
        **{"Eye": 1.0, "Soft": 0.25, "Mucosa": 0.7, "Skin": 0.55, "Vessel": 0.2, "Bone": 0.05, "Marrow": 0.35},
    },
    "structures": {"WM": 0.3, "GM": 0.55, "DGM": 0.8, "Pallidum": 0.9, "CSF": 1.0},
}
"""Typical intensity of each tissue relative to cerebrospinal fluid, to make a head that looks like the scan.

``structures`` is no scan: it tells the structures of a brain apart, to align two sets of them.
"""


@cache
def probabilities() -> Nifti1Image:
    """Label probabilities in ICBM152 space, float32 (X, Y, Z, labels in the order of ATLAS_LABELS), 1.5 mm."""
    with as_file(files("bids_epvs.data.atlas").joinpath(f"{NAME}.nii.gz")) as path:
        image = nib.load(path)
        data = np.asarray(image.dataobj)
    return nib.Nifti1Image(data, image.affine)


@cache
def head(contrast: str, *, brain_only: bool = False) -> Nifti1Image:
    """A whole head (or brain) in template space with the contrast of a sequence, float32 about 0-1, 1.5 mm."""
    atlas = probabilities()
    data = np.asarray(atlas.dataobj)
    out = np.zeros(data.shape[:3], np.float32)
    for k, entry in enumerate(ATLAS_LABELS.values()):
        if entry.brain or not brain_only:
            out += data[..., k] * np.float32(CONTRASTS[contrast][entry.tissue] / 255)
    return nib.Nifti1Image(out, atlas.affine)


def volumes(*names: str) -> list[int]:
    """Volume numbers of the labels whose name ends with one of `names`."""
    return [k for k, e in enumerate(ATLAS_LABELS.values()) if e.name.endswith(names)]


@cache
def brain() -> Nifti1Image:
    """Probability of being inside the skull (brain and its fluid), template space, float32."""
    atlas = probabilities()
    inside = [k for k, e in enumerate(ATLAS_LABELS.values()) if e.brain]
    total = np.asarray(atlas.dataobj)[..., inside].sum(axis=-1, dtype=np.float32) / 255
    return nib.Nifti1Image(np.minimum(total, 1), atlas.affine)


TISSUES = ((4, 43, 24, 14, 15), (2, 41), (3, 42), (10, 49, 11, 50, 12, 51))
"""Labels of fluid, white matter, cortex and nuclei: what has one intensity each where the coil's field is gone. Those
of the cerebrum alone, so that no field makes up for what brainstem and cerebellum are."""


@cache
def tissues() -> Nifti1Image:
    """Probability of each of `TISSUES`, template space, float32 (X, Y, Z, tissues), 3 mm."""
    atlas = probabilities()
    sums = tissue_sums(np.asarray(atlas.dataobj)[::2, ::2, ::2], tuple(ATLAS_LABELS))
    return nib.Nifti1Image(sums / 255, atlas.affine @ np.diag([2, 2, 2, 1]))


@cache
def tissue_points() -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 3), template millimetres, that are rather one of `TISSUES` than not, and the share of each there."""
    image = tissues()
    shares = np.asarray(image.dataobj)
    inside = shares.sum(axis=-1) > 0.5
    return np.argwhere(inside) @ image.affine[:3, :3].T + image.affine[:3, 3], shares[inside]


def tissue_sums(data: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Sum over the labels of each of `TISSUES`, float32 (..., tissues), of what each label has, (..., labels)."""
    columns = [[k for k, index in enumerate(labels) if index in own] for own in TISSUES]
    return np.stack([data[..., own].sum(axis=-1, dtype=np.float32) for own in columns], axis=-1)
