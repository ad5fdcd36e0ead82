import json

import pandas as pd
import pytest

from bids_epvs.derivatives import write
from bids_epvs.group import table
from bids_epvs.measure.ratings import SUMMARY_COLUMNS


def summary(counts, model="frangi"):
    rows = []
    for region, (left, right) in counts.items():
        for side, count in (("left", left), ("right", right), ("both", left + right)):
            rows.append(
                {
                    "model": model,
                    "region": region,
                    "hemisphere": side,
                    "count": count,
                    "volume_mm3": 2.0 * count,
                    "rating": 1,
                }
            )
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


@pytest.fixture
def results(tmp_path):
    """Two sessions of sub-01, one of sub-02, one cut off."""
    out, raw = tmp_path / "out", tmp_path / "raw"
    for subject, session, left in (("01", "1", 3), ("01", "2", 4), ("02", "1", 0)):
        folder = out / f"sub-{subject}" / f"ses-{session}" / "anat"
        path = folder / f"sub-{subject}_ses-{session}_desc-summary_epvs.tsv"
        meta = {"QualityNotes": ["dark"] if left == 4 else [], "BrainVolume_mm3": 1.4e6}
        write.table(path, summary({"BasalGanglia": (left, 1), "Midbrain": (0, 0)}), meta=meta)
    write.text(out / "sub-03" / "ses-1" / "anat" / "sub-03_ses-1_desc-brain_mask.json", "{}")
    write.text(
        raw / "participants.tsv",
        "participant_id\tage\tquality_warnings\nsub-01\t71\ta\nsub-09\t50\tb\nsub-02\tn/a\tc\n",
    )
    write.text(raw / "participants.json", json.dumps({"age": {"Description": "age", "Units": "years"}}))
    write.text(raw / "sub-01" / "sub-01_sessions.tsv", "session_id\tbp\nses-1\t130\nses-2\t150\n")
    return out, raw


def test_one_row_a_session_with_covariates(results):
    found = table.collect(*results)
    wide = found.wide.set_index(["participant_id", "session_id"])
    assert list(wide.index) == [("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "ses-1")]
    assert wide["frangi_BasalGanglia_count"].tolist() == [4, 5, 1]
    assert wide["frangi_BasalGanglia_left_count"].tolist() == [3, 4, 0]
    assert wide["frangi_count"].tolist() == [4, 5, 1]
    assert wide["age"].tolist()[:2] == [71, 71]
    assert wide["bp"].tolist()[:2] == [130, 150]
    assert wide["quality_warnings"].tolist() == [0, 1, 0]
    assert found.covariates == ("age", "participants_quality_warnings", "bp")
    assert len(found.long) == 18


def test_what_is_cut_off_is_listed(results):
    (failure,) = table.collect(*results).failures
    assert failure.label == "sub-03_ses-1"
    assert "cut off" in failure.reason


def test_the_last_try_decides(results):
    out, raw = results
    for run, error in (("1", "broken"), ("2", None)):
        write.as_json(out / "logs" / run / "manifest.json", {"sessions": [{"label": "sub-01_ses-1", "error": error}]})
    last = {"sessions": [{"label": "sub-02_ses-1", "error": "truncated"}], "skipped_without_t2w": ["sub-04"]}
    write.as_json(out / "logs" / "3" / "manifest.json", last)
    found = table.collect(out, raw)
    reasons = {f.label: f.reason for f in found.failures}
    assert reasons["sub-02_ses-1"] == "truncated"
    assert reasons["sub-04"].startswith("no T2w")
    assert "sub-01_ses-1" not in reasons
    assert len(found.wide) == 2


def test_every_column_is_explained(results):
    out, raw = results
    path = table.write_tables(table.collect(out, raw), out)
    columns = path.read_text().split("\n")[0].split("\t")
    meaning = json.loads((out / "group_epvs.json").read_text())
    assert list(meaning) == columns
    assert all(entry["Description"] for entry in meaning.values())
    assert meaning["age"]["Units"] == "years"
    assert meaning["frangi_BasalGanglia_left_count"]["Description"] == "number of EPVS, left BasalGanglia, by frangi"


def test_without_participants_tsv(results, tmp_path):
    out, _ = results
    found = table.collect(out, tmp_path / "nothing")
    assert found.covariates == ()
    assert len(found.wide) == 3


def test_nothing_finished(tmp_path):
    found = table.collect(tmp_path, tmp_path)
    assert found.wide.empty
    assert found.failures == ()
