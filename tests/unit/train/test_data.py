"""Training on a dataset of one's own: prepared sequences and masks become examples."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs import training
from bids_epvs.errors import DataError, NothingToDoError, UsageError
from bids_epvs.models import unet
from bids_epvs.train import data


def test_examples_hold_what_the_network_will_see(finished, simulated):
    sessions = data.find(finished, simulated / "derivatives" / "truth")
    assert [s.scan.label for s in sessions] == ["sub-01", "sub-02"]
    made = data.example(sessions[0])
    shape = made["regions"].shape
    assert made["images"].shape == (*shape, len(unet.SEQUENCES))
    assert list(made["names"]) == ["T2w"]
    mask = nib.load(sessions[0].mask).get_fdata() > 0
    assert (made["fraction"] > 0).sum() == pytest.approx(mask.sum(), rel=0.02)
    assert made["index"].max() > 5
    epvs = (made["fraction"] > 0) & (made["regions"] > 0)
    tissue = (made["fraction"] == 0) & np.isin(made["regions"], (3, 4)) & ~made["csf"]
    assert np.median(made["images"][epvs, 0]) > np.median(made["images"][tissue, 0]) + 10


def test_coronal_slices_are_learnt_from_as_axial_ones_are(finished, simulated, tmp_path):
    session = data.find(finished, simulated / "derivatives" / "truth")[0]
    results = tmp_path / "out"
    shutil.copytree(finished / "sub-01", results / "sub-01")
    mask = shutil.copy(session.mask, tmp_path / "mask.nii.gz")
    for path in [*results.rglob("*.nii.gz"), mask]:
        image = nib.as_closest_canonical(nib.load(path))
        across = np.diag([*nib.affines.voxel_sizes(image.affine)[[0, 2, 1]], 1.0])
        nib.save(nib.Nifti1Image(np.swapaxes(np.asarray(image.dataobj), 1, 2), across), path)
    made = data.example(replace(session, results=results, mask=mask))
    assert made["spacing"][2] == max(made["spacing"]) > 1.5
    axial = data.example(session)
    assert made.pop("turned") and not axial.pop("turned"), "calibrated apart"
    for name, expected in axial.items():
        assert np.array_equal(made[name], expected), name


def test_masks_on_another_grid_and_missing_results_are_refused(finished, simulated, tmp_path):
    truth = tmp_path / "truth" / "sub-01" / "anat"
    truth.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), truth / "sub-01_label-EPVS_mask.nii.gz")
    (session,) = data.find(finished, tmp_path / "truth")
    with pytest.raises(DataError, match="expected the grid of the T2w"):
        data.example(session)
    with pytest.raises(NothingToDoError, match="Run the participant level first"):
        data.find(tmp_path, tmp_path / "truth")


def test_folds_hold_each_subject_out_once():
    subjects = [f"{k:02d}" for k in range(11)]
    folds = data.folds(subjects, 4, seed=3)
    assert sorted(s for f in folds for s in f) == subjects
    assert {len(f) for f in folds} == {2, 3}
    assert folds == data.folds(subjects[::-1], 4, seed=3)
    for wrong in (1, 12):
        with pytest.raises(UsageError, match="folds"):
            data.folds(subjects, wrong)


def test_a_subject_is_on_one_side_only(tmp_path):
    files = {}
    for subject in ("01", "02"):
        for session in "ab":
            path = tmp_path / "all" / f"example-sub-{subject}_ses-{session}.npz"
            path.parent.mkdir(exist_ok=True)
            path.write_text(subject)
            files.setdefault(subject, []).append(path)
    data.split(files, ("02",), tmp_path / "run")
    for folder, subject in (("examples", "01"), ("held-out", "02")):
        assert [p.read_text() for p in sorted((tmp_path / "run" / folder).iterdir())] == [subject] * 2
    with pytest.raises(UsageError, match="no example of 07"):
        data.split(files, ("07",), tmp_path)
    with pytest.raises(NothingToDoError, match="left to train on"):
        data.split(files, ("01", "02"), tmp_path)


@pytest.mark.slow
def test_cross_validation_from_masks_to_weights(finished, simulated, tmp_path):
    truth = simulated / "derivatives" / "truth"
    small = ["--steps", "2", "--epoch", "1", "--batch", "2", "--widths", "2", "2", "2", "--cv", "2"]
    assert training.main(["unet", str(finished), str(tmp_path), "--truth", str(truth), *small]) == 0
    folds = pd.read_csv(tmp_path / "folds.tsv", sep="\t")
    assert sorted(folds["held_out"]) == ["sub-01", "sub-02"]
    card = json.loads((tmp_path / "fold-1" / "card.json").read_text())
    assert set(card["Calibration"]["thick"]) == {"T2w"}, "there is no other sequence"
    model, stored = unet.network(tmp_path / "fold-1" / "weights.npz")
    assert model.count_params() < 5000
    assert 0 < unet.calibrated(stored, ("T2w",), "turned")["threshold"] < 1


def test_wrong_folds_are_refused(finished, simulated, tmp_path, capsys):
    truth = str(simulated / "derivatives" / "truth")
    assert training.main(["unet", str(finished), str(tmp_path), "--truth", truth, "--cv", "many"]) == 64
    assert "expected 2 to 2 folds" in capsys.readouterr().err
    assert training.main(["unet", str(finished), str(tmp_path)]) == 64
    assert "--held-out" in capsys.readouterr().err
