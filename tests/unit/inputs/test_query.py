import json

import pytest

from bids_epvs.errors import InvalidDatasetError, NoFileSelectedError, NothingToDoError, UsageError
from bids_epvs.inputs import query
from bids_epvs.records import REFERENCES, Scan


def names(scan):
    return {k: v.name for k, v in scan.files.items()}


def filters(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_sequences_sessions_and_swi(skeleton):
    for name in ("T2w", "T1w", "FLAIR", "swi"):
        skeleton.add(f"sub-01_ses-1_{name}.nii.gz")
    skeleton.add("sub-01_ses-2_T2w.nii.gz")
    skeleton.add("sub-02_ses-1_T1w.nii.gz")
    found = query.find_scans(skeleton.root)
    assert [s.label for s in found.scans] == ["sub-01_ses-1", "sub-01_ses-2"]
    assert set(found.scans[0].files) == {"T2w", "T1w", "FLAIR", "SWI"}
    assert "no T1w found" in found.scans[1].notes
    assert found.without_t2w == ("sub-02_ses-1",)


def test_dataset_without_sessions(skeleton):
    skeleton.add("sub-01_T2w.nii.gz")
    (scan,) = query.find_scans(skeleton.root, participant_label=["sub-01"]).scans
    assert (scan.session, scan.label) == (None, "sub-01")


def test_the_rule_among_several(skeleton):
    skeleton.add("sub-01_acq-slab_T2w.nii.gz", shape=(48, 60, 10), zooms=(4, 4, 2))
    skeleton.add("sub-01_acq-coarse_T2w.nii.gz", zooms=(4, 4, 5))
    skeleton.add("sub-01_acq-fine_run-1_T2w.nii.gz")
    skeleton.add("sub-01_acq-fine_run-2_T2w.nii.gz")
    skeleton.add("sub-01_acq-fine_run-3_part-phase_T2w.nii.gz", zooms=(2, 4, 4))
    (scan,) = query.find_scans(skeleton.root).scans
    assert names(scan) == {"T2w": "sub-01_acq-fine_run-2_T2w.nii.gz"}
    assert sum("not used" in n for n in scan.notes) == 3


def test_an_unreadable_file_is_the_last_choice(skeleton):
    skeleton.add("sub-01_acq-a_T2w.nii.gz").write_bytes(b"no image")
    skeleton.add("sub-01_acq-b_T2w.nii.gz", zooms=(4, 4, 5))
    (scan,) = query.find_scans(skeleton.root).scans
    assert names(scan) == {"T2w": "sub-01_acq-b_T2w.nii.gz"}


def test_filter_file(skeleton, tmp_path):
    skeleton.add("sub-01_T2w.nii.gz")
    skeleton.add("sub-01_acq-tse_T2w.nii.gz", zooms=(4, 4, 5))
    chosen = filters(tmp_path / "f.json", {"T2w": {"acquisition": "tse"}, "bold": {}})
    assert names(query.find_scans(skeleton.root, filter_file=chosen).scans[0])["T2w"] == "sub-01_acq-tse_T2w.nii.gz"
    absent = filters(tmp_path / "g.json", {"T2w": {"acquisition": None}})
    assert names(query.find_scans(skeleton.root, filter_file=absent).scans[0])["T2w"] == "sub-01_T2w.nii.gz"
    any_ = filters(tmp_path / "h.json", {"T2w": {"acquisition": "*"}})
    assert names(query.find_scans(skeleton.root, filter_file=any_).scans[0])["T2w"] == "sub-01_acq-tse_T2w.nii.gz"
    nothing = filters(tmp_path / "i.json", {"T2w": {"acquisition": "none"}})
    with pytest.raises(NoFileSelectedError, match=r"select no T2w\. Present: sub-01_T2w"):
        query.find_scans(skeleton.root, filter_file=nothing)


@pytest.mark.parametrize("content", ["{", "[1]", '{"T2w": 3}'])
def test_bad_filter_files(tmp_path, content):
    with pytest.raises(UsageError):
        query.read_filters(filters(tmp_path / "f.json", content))


def test_only_the_chosen_subjects_are_indexed(skeleton):
    for subject in ("01", "02", "011"):
        skeleton.add(f"sub-{subject}_T2w.nii.gz")
    layout = query.index(skeleton.root, ["01"])
    assert layout.get_subjects() == ["01"]


def test_an_index_can_be_saved_and_reused(skeleton, tmp_path):
    skeleton.add("sub-01_T2w.nii.gz")
    skeleton.add("sub-02_T2w.nii.gz")
    first = query.find_scans(skeleton.root, participant_label=["01"], database=tmp_path / "db")
    again = query.find_scans(skeleton.root, participant_label=["02"], database=tmp_path / "db")
    assert [s.label for s in first.scans + again.scans] == ["sub-01", "sub-02"]


def test_wrong_labels_list_what_there_is(skeleton):
    skeleton.add("sub-01_ses-a_T2w.nii.gz")
    with pytest.raises(NoFileSelectedError, match=r"no such subject: 7\. Present: 01"):
        query.find_scans(skeleton.root, participant_label=["sub-7"])
    with pytest.raises(NoFileSelectedError, match="no subject is selected"):
        query.find_scans(skeleton.root, exclude_participant_label=["01"])
    with pytest.raises(NoFileSelectedError, match=r"no session b\. Present: a"):
        query.find_scans(skeleton.root, session_label=["ses-b"])


def test_nothing_usable(skeleton):
    skeleton.add("sub-01_T1w.nii.gz")
    with pytest.raises(NothingToDoError, match=r"no T2w .* sub-01_T1w"):
        query.find_scans(skeleton.root)


def test_without_a_t2w_another_sequence_may_stand_for_it(skeleton):
    skeleton.add("sub-01_T1w.nii.gz")
    skeleton.add("sub-01_FLAIR.nii.gz")
    skeleton.add("sub-02_swi.nii.gz")
    found = query.find_scans(skeleton.root, needed=REFERENCES)
    assert [(s.label, s.reference) for s in found.scans] == [("sub-01", "T1w")]
    assert found.without_t2w == ("sub-02",)
    assert "no T2w found" in found.scans[0].notes


def test_no_dataset(skeleton, tmp_path):
    with pytest.raises(InvalidDatasetError, match="no such directory"):
        query.check_dataset(tmp_path / "none")
    skeleton.describe({"Name": "x"})
    with pytest.raises(InvalidDatasetError, match="missing: BIDSVersion"):
        query.check_dataset(skeleton.root)
    description = skeleton.root / "dataset_description.json"
    description.write_text("{")
    with pytest.raises(InvalidDatasetError, match="JSON"):
        query.check_dataset(skeleton.root)
    description.unlink()
    with pytest.raises(InvalidDatasetError, match=r"must contain dataset_description"):
        query.check_dataset(skeleton.root)


def test_the_validator_sees_only_the_chosen_subjects(skeleton):
    skeleton.add("sub-01_T2w.nii.gz")
    skeleton.add("sub-02_T2w.nii.gz")
    (skeleton.root / "sub-02" / "anat" / "sub-02_wrong.txt").write_text("x")
    query.validate(skeleton.root, ["01"])
    with pytest.raises(InvalidDatasetError, match="sub-02_wrong"):
        query.validate(skeleton.root, ["02"])


def test_the_validator_lets_swi_pass(skeleton):
    skeleton.add("sub-01_T2w.nii.gz")
    skeleton.add("sub-01_swi.nii.gz")
    skeleton.add("sub-02_ses-1_T2w.nii.gz")
    skeleton.add("sub-02_ses-1_swi.nii.gz")
    (skeleton.root / ".bidsignore").write_text("extra/")
    query.validate(skeleton.root, ["01", "02"])


def test_segmentations_of_others(tmp_path):
    scan = Scan("01", "1", {})
    assert query.find_segmentation(scan, {"x": tmp_path}) is None
    freesurfer = tmp_path / "sub-01" / "mri" / "aseg.mgz"
    freesurfer.parent.mkdir(parents=True)
    freesurfer.touch()
    assert query.find_segmentation(scan, {"x": tmp_path}) == freesurfer
    bids = tmp_path / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_space-T2w_dseg.nii.gz"
    bids.parent.mkdir(parents=True)
    bids.touch()
    bids.with_name("sub-01_ses-1_dseg.nii.gz").touch()
    assert query.find_segmentation(scan, {"x": tmp_path}) == bids
