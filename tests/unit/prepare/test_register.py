"""Whether a pose is right can be told in any contrast, with noise, and where a part of the head is missing."""

import nibabel as nib
import numpy as np
import pytest

from bids_epvs.prepare import atlas, fields, register, session
from bids_epvs.prepare.resample import iso_grid, resample

CENTRE = np.array([0.0, -17.0, 4.0])


def head(kind: str, rng: np.random.Generator) -> nib.Nifti1Image:
    image = atlas.head("T2w")
    image = resample(image, iso_grid(image, 2.0))
    data = np.asarray(image.dataobj).copy()
    data = {"T2w": data, "T1w": np.where(data > 0.02, np.clip(1.1 - data, 0.02, 1), 0)}[kind.split()[0]]
    if "noisy" in kind:
        data = np.abs(data + rng.normal(0, 0.15, data.shape))
    if "cut" in kind:
        data[:, :, : data.shape[2] // 2] = 0
    return nib.Nifti1Image(data.astype(np.float32), image.affine)


def moved(degrees: float, mm: float) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = fields.rotation(0, np.deg2rad(degrees))
    out[:3, 3] = CENTRE - out[:3, :3] @ CENTRE + [0, mm, 0]
    return out


@pytest.mark.parametrize("kind", ["T2w", "T1w", "T2w noisy", "T1w noisy", "T2w cut", "T1w cut"])
def test_the_right_pose_fits_better_than_all_around_it_and_a_wrong_one_does_not(kind, rng):
    image = head(kind, rng)
    similarity, margin = register.pose_fit(image, np.eye(4))
    assert 0.3 < similarity <= 1
    assert margin > session.LOW_MARGIN
    for degrees, mm in ((20, 0), (-25, 0), (90, 0), (0, 20), (0, -20), (10, 15)):
        assert register.pose_fit(image, moved(degrees, mm))[1] < session.LOW_MARGIN


def test_the_fit_does_not_depend_on_the_sign_or_scale_of_the_contrast(rng):
    image = head("T2w noisy", rng)
    data = np.asarray(image.dataobj)
    other = nib.Nifti1Image(np.where(data > 0, 900 - 300 * data, 0).astype(np.float32), image.affine)
    assert register.pose_fit(other, np.eye(4)) == pytest.approx(register.pose_fit(image, np.eye(4)), abs=1e-3)


def test_nothing_is_said_to_fit_where_there_is_no_brain():
    away = np.eye(4)
    away[:3, 3] = 500
    assert register.pose_fit(atlas.head("T2w"), away) == (0.0, 0.0)


@pytest.mark.parametrize(("margin", "warned"), [(1.05, True), (1.6, False)])
def test_a_doubtful_pose_is_reported_with_its_number(margin, warned):
    alignment = register.Alignment(None, np.eye(4), stripped=False, similarity=0.5, margin=margin)
    labels = np.zeros((10, 10, 10), np.int16)
    anatomy = session.brain.Anatomy(labels, labels > 0)
    notes = session.quality_notes(alignment, 1.0, anatomy, labels, (1.0, 1.0, 1.0), {})
    assert any("alignment is doubtful (fits 1.05 times" in n for n in notes) == warned
