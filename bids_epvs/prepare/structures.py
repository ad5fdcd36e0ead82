"""What a network says about the structures of a head, and where that lies in a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from bids_epvs.prepare import atlas
from bids_epvs.prepare.labels import ATLAS_LABELS, INDICES
from bids_epvs.prepare.resample import affine_sample, gathered
from bids_epvs.prepare.tidy import SOLID
from bids_epvs.records import Transform

AIR_MM = 6.0
"""Margin around the head's structures; what lies beyond is not looked at."""
OUTSIDE = 0.4
"""Least probability of brain or fluid in the deformed atlas."""
SURE = 0.7
"""Probability of white matter and nuclei by the network that intensities cannot overrule; chosen on sub-03 of
``make demo``, where EPVS voxels inside regions rose from 0.60 to 0.69 (``benchmarks/coverage.py``)."""
AGREED = 0.6
"""Least mean Dice of the structures of a sequence with those of the first (`Parcels.agreement`): below, their
alignment failed, or the network cannot read the sequence."""
COVERED = 0.98
"""Least share of the white matter and nuclei of the first sequence that another one must show to be looked at with it
on the grid of the scan."""


@dataclass(frozen=True)
class Parcels:
    """What a network says about the structures of a head that was brought into the pose of the template.

    Attributes
    ----------
    probability : Nifti1Image
        (X, Y, Z, labels), float32, template millimetres; what is missing to 1 is background.
    labels : tuple of int
        FreeSurfer index of each volume.
    fine : Nifti1Image, optional
        The same with smaller voxels, of a part of the head; there it is what counts.
    to_template : ndarray
        4 x 4, millimetres of the images to template millimetres: the pose it was brought into.
    agreement : tuple of float
        Of each image: mean Dice of its structures with those found in the first; below `AGREED` it was not used.
    """

    probability: Nifti1Image
    labels: tuple[int, ...]
    fine: Nifti1Image | None = None
    to_template: np.ndarray = field(default_factory=lambda: np.eye(4))
    agreement: tuple[float, ...] = ()

    def expected_dice(self) -> dict[int, float]:
        """Dice of each structure with a truth drawn from the probabilities: a quality score, 1 where all is certain.

        For the voxels M where structure k is the most probable, with probabilities p: 2 sum_M p / (size of M + sum p).
        """
        data = np.asarray(self.probability.dataobj)
        best = np.where(2 * data.max(axis=-1) > data.sum(axis=-1), np.argmax(data, axis=-1), -1)
        out = {}
        for k, label in enumerate(self.labels):
            own = best == k
            total = float(own.sum() + data[..., k].sum())
            out[label] = 2 * float(data[..., k][own].sum()) / total if total > 1 else 0.0
        return out


def tissues(parcels: Parcels) -> Nifti1Image:
    """Probability of each of `atlas.TISSUES`, template space, float32 (X, Y, Z, tissues)."""
    sums = atlas.tissue_sums(np.asarray(parcels.probability.dataobj), parcels.labels)
    return nib.Nifti1Image(sums, parcels.probability.affine)


def look(parcels: Parcels) -> Nifti1Image:
    """Structures of a scan, drawn with the intensities of ``structures`` in `atlas.CONTRASTS`, in template pose."""
    data = np.asarray(parcels.probability.dataobj)
    out = np.zeros(data.shape[:3], np.float32)
    for k, index in enumerate(parcels.labels):
        out += data[..., k] * np.float32(atlas.CONTRASTS["structures"][ATLAS_LABELS[index].tissue])
    return nib.Nifti1Image(out, parcels.probability.affine)


def skull(warp: Transform, frame: Nifti1Image) -> Nifti1Image:
    """How far a place counts as head: 0 where the deformed atlas has no brain (orbits, neck), 1 from `OUTSIDE` on.

    Parameters
    ----------
    warp : Transform
        From `register.structures_onto_atlas`.
    frame : Nifti1Image
        Grid in template pose.
    """
    from bids_epvs.prepare import ants

    inside = np.asarray(ants.apply(atlas.brain(), frame, warp).dataobj)
    return nib.Nifti1Image(np.clip(inside / np.float32(OUTSIDE), 0, 1), frame.affine)


def placed(parcels: Parcels, to_template: np.ndarray, grid: Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of structures on a grid of the scan, interpolated all together (trilinear).

    Parameters
    ----------
    parcels : Parcels
    to_template : ndarray
        4 x 4, millimetres of the scan to those of `parcels`.
    grid : Nifti1Image

    Returns
    -------
    prior : ndarray of float32
        (X, Y, Z, ATLAS_LABELS).
    inside : ndarray of float32
        Probability of any structure, (X, Y, Z).
    """
    prior = np.zeros((*grid.shape[:3], len(ATLAS_LABELS)), np.float32)
    first = np.linalg.inv(parcels.probability.affine) @ to_template @ grid.affine
    total = np.asarray(parcels.probability.dataobj).sum(axis=-1)
    inside = affine_sample(total, first, grid.shape[:3], order=1)
    wanted = np.argwhere(inside > 0.01)
    columns = [list(ATLAS_LABELS).index(index) for index in parcels.labels]
    for part in filter(None, (parcels.probability, parcels.fine)):
        data = np.asarray(part.dataobj)
        matrix = np.linalg.inv(part.affine) @ to_template @ grid.affine
        points = wanted @ matrix[:3, :3].T + matrix[:3, 3]
        held = ((points >= 0) & (points <= np.array(data.shape[:3]) - 1)).all(axis=1)
        i, j, k = wanted[held].T
        found = gathered(data, points[held])
        prior[i[:, None], j[:, None], k[:, None], columns] = found
        inside[i, j, k] = found.sum(axis=1)
    return prior, inside


def covering(images: Sequence[Nifti1Image], prior: np.ndarray) -> list[Nifti1Image]:
    """The first image, and those of the others that reach as far: what is 0 beyond their border would mislead.

    Parameters
    ----------
    images : sequence of Nifti1Image
        On one grid.
    prior : ndarray
        (X, Y, Z, ATLAS_LABELS) on it. Solid tissue counts; fluid can be 0 in a whole T1w.
    """
    if len(images) == 1:
        return [*images]
    inside = prior[..., np.isin(INDICES, SOLID)].sum(axis=-1) > SURE
    inside &= np.asarray(images[0].dataobj) > 0
    least = COVERED * np.count_nonzero(inside)
    return [images[0], *(i for i in images[1:] if np.count_nonzero(np.asarray(i.dataobj)[inside] > 0) >= least)]


def around(parcels: Parcels, to_template: np.ndarray, image: Nifti1Image) -> tuple[slice, ...]:
    """The part of a scan that holds the head's structures, and `AIR_MM` more; all of it where there are none."""
    somewhere = np.argwhere(np.asarray(parcels.probability.dataobj).sum(axis=-1) > 0.01)
    matrix = np.linalg.inv(to_template @ image.affine) @ parcels.probability.affine
    points = somewhere @ matrix[:3, :3].T + matrix[:3, 3]
    sizes = np.array(image.shape[:3])
    if not ((points > -1) & (points < sizes)).all(axis=1).any():
        return tuple(slice(0, n) for n in sizes)
    margin = AIR_MM / np.linalg.norm(image.affine[:3, :3], axis=0)
    low = np.clip(np.floor(points.min(axis=0) - margin), 0, sizes - 1).astype(int)
    high = np.clip(np.ceil(points.max(axis=0) + margin) + 1, low + 1, sizes).astype(int)
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
