"""Examples from visual scores of a dataset of one's own."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs.errors import NothingToDoError, UsageError
from bids_epvs.train import count as count_training
from bids_epvs.train import data, grades, scores

SHAPE, SPACING = (200, 160, 14), (0.6, 0.6, 5.0)


@pytest.fixture
def results(tmp_path, rng):
    """Two prepared subjects; each side of the basal ganglia has a bright spot."""
    affine = np.diag([*SPACING, 1.0])
    for name in ("01", "02"):
        folder = tmp_path / "out" / f"sub-{name}" / "anat"
        folder.mkdir(parents=True)
        regions = np.zeros(SHAPE, np.uint8)
        regions[50:80, 60:110, 3:10], regions[120:150, 60:110, 3:10] = 1, 2
        image = rng.normal(100, 3, SHAPE).astype(np.float32)
        image[60:62, 80:82, 5] = image[135:137, 80:82, 5] = 400
        images = {
            "desc-preproc_T2w": image,
            "desc-brain_mask": np.ones(SHAPE, np.uint8),
            "label-CSF_desc-large_mask": np.zeros(SHAPE, np.uint8),
            "seg-epvs_dseg": regions,
        }
        for what, values in images.items():
            nib.save(nib.Nifti1Image(values, affine), folder / f"sub-{name}_{what}.nii.gz")
        about = {"RatingSlices": {"anterior_commissure": 5}}
        (folder / f"sub-{name}_seg-epvs_dseg.json").write_text(json.dumps(about))
    return tmp_path / "out"


@pytest.fixture
def table(tmp_path):
    rows = {
        "participant_id": ["sub-01", "sub-02", "sub-03"],
        "BasalGanglia_count": [4, 9, 2],
        "anna_BasalGanglia_rating": [1, 3, 0],
        "ben_BasalGanglia_rating": [1, 2, 0],
    }
    path = tmp_path / "epvs.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path


def test_sessions_with_scores_are_found(results, table):
    found = scores.find(results, table, "gpunet", "BasalGanglia")
    assert [(s.scan.subject, s.score) for s in found] == [("01", 4.0), ("02", 9.0)], "sub-03 was not prepared"
    found = scores.find(results, table, "resnet152", "BasalGanglia", "anna")
    assert [s.score for s in found] == [0.0, 1.0]


def test_wrong_requests_say_what_there_is(results, table):
    with pytest.raises(UsageError, match="anna, ben"):
        scores.find(results, table, "rating2d", "BasalGanglia")
    with pytest.raises(UsageError, match="no rater"):
        scores.find(results, table, "rating2d", "BasalGanglia", "carl")
    with pytest.raises(UsageError, match="CentrumSemiovale_count"):
        scores.find(results, table, "cnn", "CentrumSemiovale")
    with pytest.raises(UsageError, match="knows no region"):
        scores.maker("rating2d", "Midbrain")
    with pytest.raises(NothingToDoError, match="participant level"):
        scores.find(results / "elsewhere", table, "cnn", "BasalGanglia")


def test_both_hemispheres_share_one_count(results, table, tmp_path):
    found = scores.find(results, table, "gpunet", "BasalGanglia")
    files = data.write(found, tmp_path / "all", scores.maker("gpunet", "BasalGanglia"))
    (region,) = count_training.read(files["02"][0]).values()
    assert (region.total, region.name, region.slice_mm) == (9.0, "BasalGanglia", 5.0)
    half = region.mask.shape[0] // 2
    assert region.mask[:half].sum() == pytest.approx(region.mask[half:].sum(), rel=0.03)
    volume = region.mask.sum() * 0.5 * 0.5 * 0.8
    assert volume == pytest.approx(2 * 30 * 50 * 7 * 1.8, rel=0.05)


def test_every_image_has_the_grade_of_its_subject(results, table, tmp_path):
    found = scores.find(results, table, "rating2d", "BasalGanglia", "anna")
    files = data.write(found, tmp_path / "all", scores.maker("rating2d", "BasalGanglia"))
    stack, known = grades.images(files["02"][0])
    assert stack.shape == (6, 112, 86, 2) and known.tolist() == [3] * 6


def test_a_box_has_the_severity_of_its_subject(results, table, tmp_path):
    found = scores.find(results, table, "resnet152", "BasalGanglia", "anna")
    files = data.write(found, tmp_path / "all", scores.maker("resnet152", "BasalGanglia"))
    image, severe = grades.box(files["02"][0])
    assert image.shape == (160, 128, 16) and severe == 1
    assert grades.box(files["01"][0])[1] == 0


@pytest.mark.parametrize("model", ["gpunet", "rating2d", "resnet152"])
def test_a_scan_without_the_region_is_left_out(results, table, tmp_path, model, caplog):
    path = results / "sub-01" / "anat" / "sub-01_seg-epvs_dseg.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), nib.load(path).affine), path)
    found = scores.find(results, table, model, "BasalGanglia", None if model == "gpunet" else "anna")
    files = data.write(found, tmp_path / "all", scores.maker(model, "BasalGanglia"))
    assert list(files) == ["02"] and "sub-01: left out" in caplog.text
    with pytest.raises(NothingToDoError, match="does not show"):
        scores.maker(model, "BasalGanglia")(found[0])
    with pytest.raises(NothingToDoError, match="no session"):
        data.write(found[:1], tmp_path / "none", scores.maker(model, "BasalGanglia"))


def test_training_on_scores_from_the_command_line(results, table, tmp_path):
    from bids_epvs import training

    common = ["--scores", str(table), "--held-out", "02", "--steps", "2", "--epoch", "1", "--batch", "1"]
    out = tmp_path / "run"
    assert training.main(["gpunet", str(results), str(out), *common, "--widths", "2", "2"]) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["HeldOutSubjects"] == ["sub-02"] and card["TrainedOn"].startswith("1 subjects of")
    command = ["rating2d", str(results), str(tmp_path / "cv"), *common[:2], "--rater", "ben", "--cv", "2"]
    assert training.main([*command, *common[4:], "--widths", "2", "2", "2", "2", "2"]) == 0
    assert len(pd.read_csv(tmp_path / "cv" / "folds.tsv", sep="\t")) == 2
    assert training.main(["gpunet", str(results), str(out), *common[:2]]) == 64
