import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs.errors import DataError
from bids_epvs.prepare.regions import REGIONS, from_labels
from bids_epvs.synth import anatomy, contrast, dataset, tubes

AFFINE = np.diag([0.5, 0.6, 2.0, 1.0])


def straight(start, end, radius):
    points = np.linspace(start, end, 40)
    return tubes.Tube(1, points, np.full(40, radius))


def test_occupancy_is_the_volume_of_the_cylinder():
    tube = straight((6, 7, 10), (9, 11, 22), 0.9)
    fraction, index = tubes.occupancy([tube], (40, 36, 18), AFFINE, sub_mm=0.1)
    expected = np.pi * 0.9**2 * tube.length_mm + 4 / 3 * np.pi * 0.9**3
    assert fraction.sum() * 0.6 == pytest.approx(expected, rel=0.03)
    centre = (fraction[..., None] * np.stack(np.indices(fraction.shape), -1)).sum((0, 1, 2)) / fraction.sum()
    np.testing.assert_allclose(centre * np.diag(AFFINE)[:3], (7.5, 9, 16), atol=0.05)
    assert set(np.unique(index)) == {0, 1}
    assert 0 < fraction.max() <= 1


def test_partial_volume_conserves_the_signal():
    tube = straight((6, 7, 10), (9, 11, 22), 0.35)
    fine, _ = tubes.occupancy([tube], (80, 72, 90), np.diag([0.25, 0.3, 0.4, 1]), sub_mm=0.1)
    coarse, _ = tubes.occupancy([tube], (40, 36, 18), AFFINE, sub_mm=0.1)
    assert coarse.sum() * 0.6 == pytest.approx(fine.sum() * 0.03, rel=0.02)
    assert coarse.max() < fine.max()


@pytest.fixture(scope="module")
def head():
    return anatomy.deformed(anatomy.average(), np.random.default_rng(4), spacing=1.5)


@pytest.fixture(scope="module")
def regions(head):
    return from_labels(head.labels, head.spacing, head.to_template @ head.affine)


def test_a_deformed_head_keeps_its_structures_and_sides(head, regions):
    assert set(anatomy.NEEDED) <= set(np.unique(head.labels))
    for index, region in REGIONS.items():
        voxels = np.argwhere(regions == index)
        assert len(voxels) > 50, region.full_name
    centre = {r.side: np.argwhere(regions == i).mean(0)[0] for i, r in REGIONS.items() if r.name == "BasalGanglia"}
    assert centre["Left"] < centre["Right"]
    point = head.to_template @ head.affine @ [*np.argwhere(np.isin(head.labels, (4, 43))).mean(0), 1]
    assert abs(point[0]) < 5


def test_tubes_stay_in_their_tissue_and_apart(head, regions):
    wanted = {"CentrumSemiovale": 40, "BasalGanglia": 15, "Midbrain": 2}
    found = tubes.sample(np.random.default_rng(1), head, regions, wanted)
    assert 40 <= len(found) <= 57
    courses = tubes.Courses(head, regions)
    for tube in found:
        assert courses.inside(tube.points[1:-1], tube.region).all()
        assert 1.5 <= tube.length_mm <= 20.6
        assert 0.25 <= tube.diameter_mm <= 3.3
    points = np.concatenate([t.points for t in found])
    owner = np.repeat(np.arange(len(found)), [len(t.points) for t in found])
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distance[owner[:, None] != owner[None]].min() > 0.8


def test_white_matter_tubes_run_from_ventricle_to_cortex(head, regions):
    found = tubes.sample(np.random.default_rng(1), head, regions, {"CentrumSemiovale": 40})
    field = tubes.potential(head.labels)
    inverse = np.linalg.inv(head.affine)
    steps = []
    for tube in found:
        ends = np.rint(tube.points[[0, -1]] @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        steps.append(field[tuple(ends[1])] - field[tuple(ends[0])])
    assert np.mean(np.array(steps) > 0) > 0.8


def test_counts_follow_the_burden(rng):
    low = [tubes.sample_counts(rng, "low")["CentrumSemiovale"] for _ in range(200)]
    high = [tubes.sample_counts(rng, "high")["CentrumSemiovale"] for _ in range(200)]
    assert np.median(low) < 30 < 150 < np.median(high)
    assert 0.02 < np.mean(np.array(high) <= 2) < 0.25


def test_noise_is_rician(rng):
    quiet = contrast.rician(np.zeros((60, 60, 20), np.float32), 10, rng)
    assert quiet.mean() == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.02)
    assert contrast.rician(np.full((60, 60, 20), 500, np.float32), 10, rng).std() == pytest.approx(10, rel=0.03)


def test_slices_are_averaged(head):
    ramp = np.broadcast_to(np.arange(head.labels.shape[2], dtype=np.float32), head.labels.shape)
    shape, affine = contrast.grid_of(head, (1.5, 1.5, 6.0))
    out = contrast.acquire(head, ramp, shape, affine)
    middle = out[20, 20, 2:-2]
    np.testing.assert_allclose(np.diff(middle), 4, atol=1e-3)
    np.testing.assert_allclose(middle[0], 4 * 2 + 1.5, atol=1e-2)


def test_dataset_truth_matches_the_images(simulated):
    truth = simulated / "derivatives" / "truth" / "sub-01" / "anat"
    fraction = nib.load(truth / "sub-01_label-EPVS_probseg.nii.gz")
    table = pd.read_csv(truth / "sub-01_desc-truth_epvs.tsv", sep="\t")
    voxel = np.prod(fraction.header.get_zooms())
    assert fraction.get_fdata().sum() * voxel == pytest.approx(table["volume_mm3"].sum(), rel=0.02)
    image = nib.load(simulated / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    np.testing.assert_allclose(image.affine, fraction.affine)
    regions = np.asarray(nib.load(truth / "sub-01_seg-epvs_dseg.nii.gz").dataobj)
    filled = fraction.get_fdata() > 0.3
    white = (regions == 3) | (regions == 4)
    assert image.get_fdata()[filled & white].mean() > 1.3 * np.median(image.get_fdata()[white])
    meta = json.loads((simulated / "sub-01" / "anat" / "sub-01_T2w.json").read_text())
    assert meta["Simulated"] is True


def test_same_seed_same_files_whatever_the_number_of_processes(simulated, tmp_path, monkeypatch):
    coarse = (contrast.Protocol((0.9, 1.0, 5.0), snr=30, bias=0.08),)
    monkeypatch.setattr(dataset, "PROTOCOLS", {"clinical": coarse})
    dataset.one_subject(dataset.Plan(tmp_path, 9, 3, burden="high", head_mm=1.3), 1)
    for old in sorted((simulated / "sub-02").rglob("*.*")):
        assert old.read_bytes() == (tmp_path / old.relative_to(simulated)).read_bytes()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((5, 5), np.int16), "3-D"),
        (np.full((5, 5, 5), 0.5, np.float32), "whole numbers"),
        (np.full((5, 5, 5), 2, np.int16), "missing: Right-Cerebral-White-Matter"),
    ],
)
def test_bad_label_maps(tmp_path, data, match):
    path = tmp_path / "x_dseg.nii.gz"
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    with pytest.raises(DataError, match=match):
        anatomy.from_labelmap(path)


def test_command_line_errors(tmp_path, capsys):
    (tmp_path / "x").write_text("x")
    assert dataset.main([str(tmp_path)]) == 64
    assert dataset.main([str(tmp_path / "new"), "--subjects", "0"]) == 64
    assert dataset.main([str(tmp_path / "new"), "--labelmaps", str(tmp_path)]) == 65
    assert "not empty" in capsys.readouterr().err


@pytest.mark.realdata
@pytest.mark.slow
def test_label_maps_of_real_heads(real_data):
    head = anatomy.from_labelmap(real_data / "labelmaps" / "sub-05_dseg.nii.gz")
    target, own = (
        anatomy.centroids(anatomy.average().labels, anatomy.average().affine),
        anatomy.centroids(head.labels, head.affine),
    )
    residual = [np.linalg.norm((head.to_template @ [*own[i], 1])[:3] - target[i]) for i in own]
    assert np.median(residual) < 4
