"""Whether a pose is right can be told in any contrast, with noise, and where a part of the head is missing."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.models.looks import apart
from bids_epvs.prepare import ants, atlas, brain, fields, quality, regions, register
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
    similarity, margin, covered = register.pose_fit(image, np.eye(4))
    assert 0.3 < similarity <= covered <= 1
    assert (covered < 0.7) == ("cut" in kind)
    assert margin > quality.LOW_MARGIN
    for degrees, mm in ((20, 0), (-25, 0), (90, 0), (0, 20), (0, -20), (10, 15)):
        assert register.pose_fit(image, moved(degrees, mm))[1] < quality.LOW_MARGIN


def test_the_fit_does_not_depend_on_the_sign_or_scale_of_the_contrast(rng):
    image = head("T2w noisy", rng)
    data = np.asarray(image.dataobj)
    other = nib.Nifti1Image(np.where(data > 0, 900 - 300 * data, 0).astype(np.float32), image.affine)
    assert register.pose_fit(other, np.eye(4)) == pytest.approx(register.pose_fit(image, np.eye(4)), abs=1e-3)


def test_nothing_is_said_to_fit_where_there_is_no_brain():
    away = np.eye(4)
    away[:3, 3] = 500
    assert register.pose_fit(atlas.head("T2w"), away) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("margin", "warned"), [(1.05, True), (1.6, False)])
def test_a_doubtful_pose_is_reported_with_its_number(margin, warned):
    alignment = register.Alignment(None, np.eye(4), stripped=False, similarity=0.5, margin=margin)
    labels = np.zeros((10, 10, 10), np.int16)
    anatomy = brain.Anatomy(labels, labels > 0)
    notes = quality.quality_notes(alignment, 1.0, anatomy, labels, (1.0, 1.0, 1.0), {})
    assert any("alignment is doubtful (fits 1.05 times" in n for n in notes) == warned


def part(low: float, high: float, *, axis: int = 2, brain_only: bool = False, size: float = 1.0) -> nib.Nifti1Image:
    """The template between two places along an axis (template mm), as large as wanted."""
    image = atlas.head("T2w", brain_only=brain_only)
    image = resample(image, iso_grid(image, 2.0))
    places = image.affine[axis, 3] + 2.0 * np.arange(image.shape[axis])
    box = [slice(None)] * 3
    box[axis] = slice(int(np.argmax(places >= low)), int(np.sum(places <= high)))
    image = image.slicer[tuple(box)]
    return nib.Nifti1Image(np.asarray(image.dataobj), np.diag([size, size, size, 1]) @ image.affine)


def test_a_head_and_a_brain_without_skull_are_registered_in_one_way():
    for brain_only, size in ((False, 1.0), (True, 0.95)):
        ((stripped, shift),) = register.starts(part(-200, 200, brain_only=brain_only, size=size))
        assert stripped == brain_only
        assert not shift.any()


@pytest.mark.parametrize(
    ("low", "high", "heights"), [(-200, -10, [-60, -30, 30, 60]), (0, 200, [-30, 30]), (-30, 30, [-60, -30, 30, 60])]
)
def test_a_part_of_a_head_is_no_brain_without_skull(low, high, heights):
    cut = part(low, high)
    assert register.foreground_ml(cut) < register.BRAIN_BELOW_ML
    first, *rest = register.starts(cut)
    assert not first[0]
    assert not first[1].any()
    assert sorted(tuple(shift) for stripped, shift in rest if not stripped) == [(0, 0, z) for z in heights]
    assert sum(stripped for stripped, _ in rest) == 1


def test_slices_that_end_in_a_head_cut_it():
    block = np.zeros((60, 80, 40), np.float32)
    block[10:50, 10:70, 10:] = 1
    image = nib.Nifti1Image(block, np.diag([2, 2, 3, 1]))
    assert register.cut_cm2(image) == pytest.approx([0, 0, 8 * 12], rel=0.1)
    assert register.cut_cm2(part(-200, 200, brain_only=True)).max() < register.CUT_CM2


def test_the_lower_half_of_a_head_is_found(tmp_path):
    turned = moved(12, 10)
    cut = part(-200, -5)
    cut = nib.Nifti1Image(cut.dataobj, turned @ cut.affine)
    alignment = register.template_to(cut, kind="affine", work_dir=tmp_path)
    assert apart(alignment.to_template, np.linalg.inv(turned)) < 3
    assert not alignment.stripped
    assert alignment.margin > quality.LOW_MARGIN


def test_a_slab_of_the_front_is_found_there(tmp_path):
    alignment = register.template_to(part(5, 65, axis=1), kind="affine", work_dir=tmp_path)
    assert apart(alignment.to_template, np.eye(4)) < 5
    assert 0.2 < alignment.covered < quality.LITTLE_BRAIN


def test_of_two_poses_of_a_slab_the_one_that_explains_more_of_it_is_kept(monkeypatch, tmp_path):
    fits = iter([(0.12, 1.2, 0.65), (0.11, 1.2, 0.25), (0.2, 0.9, 0.25)])
    monkeypatch.setattr(register, "pose_fit", lambda *_: next(fits))
    monkeypatch.setattr(register, "starts", lambda _: [(False, np.zeros(3))] * 3)
    alignment = register.template_to(part(5, 65, axis=1), kind="affine", work_dir=tmp_path)
    assert alignment.covered == 0.25
    assert alignment.margin == 1.2


@pytest.mark.parametrize(("covered", "warned"), [(0.33, True), (0.5, False)])
def test_a_slab_with_little_of_the_brain_is_reported(covered, warned):
    alignment = register.Alignment(None, np.eye(4), stripped=False, similarity=0.2, margin=2.0, covered=covered)
    labels = np.zeros((10, 10, 10), np.int16)
    anatomy = brain.Anatomy(labels, labels > 0)
    notes = quality.quality_notes(alignment, 1.0, anatomy, labels, (1.0, 1.0, 1.0), {})
    assert any(n.startswith("33 % of the brain") for n in notes) == warned


@pytest.mark.parametrize("side", ["left", "right", "back", "front", "bottom", "top", ""])
def test_where_the_brain_is_cut_is_said_and_its_volume_is_judged_where_it_is_not(side):
    labels = np.zeros((40, 50, 60), np.int16)
    labels[5:-5, 5:-5, 5:-5] = 2
    if side:
        axis, end = quality.SIDES[side]
        block = [slice(5, -5)] * 3
        block[axis] = slice(0, 5) if end == 0 else slice(-5, None)
        labels[tuple(block)] = 2
    alignment = register.Alignment(None, np.eye(4), stripped=False, similarity=0.5, margin=2.0)
    anatomy = brain.Anatomy(labels, labels > 0)
    notes = quality.quality_notes(alignment, 1.0, anatomy, labels, (2.0, 2.0, 2.0), {})
    assert [n for n in notes if "cuts the brain" in n] == ([f"the scan cuts the brain at the {side}"] if side else [])
    assert any("is outside 700-2300 mL" in n for n in notes) == (not side)


def test_regions_that_the_scan_cuts_are_named():
    found = np.zeros((40, 50, 60), np.int16)
    names = {region.full_name: index for index, region in regions.REGIONS.items()}
    found[10:20, 10:20, :30] = names["LeftBasalGanglia"]
    found[20:30, 10:20, 1:30] = names["RightBasalGanglia"]
    found[39, 30, 30:33] = names["RightThalamus"]
    alignment = register.Alignment(None, np.eye(4), stripped=False, similarity=0.5, margin=2.0)
    anatomy = brain.Anatomy(found, found > 0)
    notes = quality.quality_notes(alignment, 1.0, anatomy, found, (1.0, 1.0, 4.0), {})
    assert [n for n in notes if "in part" in n] == [
        "the scan ends within a region, which is counted in part: LeftBasalGanglia"
    ]


def test_a_sequence_is_aligned_by_the_brain_where_its_scalp_lies_elsewhere(tmp_path, rng):
    t2w, t1w = head("T2w", rng), head("T1w", rng)
    inside = np.asarray(register.inner_head(t2w).dataobj) > 0
    data = np.asarray(t1w.dataobj)
    scalp = ndimage.shift(data, (0, 0.8, 0), order=1)  # 1.6 mm further forward
    shifted = nib.Nifti1Image(np.where(inside, data, scalp), t1w.affine)
    _, transform = register.onto(t2w, shifted, work_dir=tmp_path)
    assert np.linalg.norm((ants.linear_matrix(transform) @ [*CENTRE, 1])[:3] - CENTRE) < 0.08  # whole heads: 0.17


def test_an_alignment_of_the_inside_that_goes_astray_is_not_used(tmp_path, rng, monkeypatch):
    image = head("T2w noisy", rng)
    _, near = register.onto(image, image, work_dir=tmp_path / "near")
    monkeypatch.setattr(register, "ASTRAY_MM", 0.0)
    _, kept = register.onto(image, image, work_dir=tmp_path / "kept")
    assert {p.parent.name for p in near.forward} == {"inside"}
    assert {p.parent.name for p in kept.forward} == {"head"}


def test_the_inside_of_the_head_begins_below_its_surface_and_not_at_a_cut():
    whole, lower = part(-200, 200), part(-200, 20)
    inside, mask = (np.asarray(f(whole).dataobj) > 0 for f in (register.inner_head, register.head_mask))
    within = (slice(12, -12),) * 3  # away from the neck, which the volume cuts
    deep = ndimage.distance_transform_edt(mask, sampling=2.0) > register.INSIDE_MM
    np.testing.assert_array_equal(inside[within], deep[within])
    assert 0.3 < deep.sum() / mask.sum() < 0.8
    area = np.count_nonzero(register.inner_head(lower).dataobj, axis=(0, 1))
    assert area[-1] == pytest.approx(area[-8], rel=0.1)
