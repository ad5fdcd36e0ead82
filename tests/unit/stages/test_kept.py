"""One session is read once for its methods and its report."""

from pathlib import Path

import pytest

from bids_epvs.errors import EpvsError
from bids_epvs.records import Scan
from bids_epvs.settings import Settings
from bids_epvs.stages import disk, preparation


def test_a_session_is_read_once_and_never_taken_for_another(tmp_path, monkeypatch):
    read = []

    def reading(scan, settings):
        read.append(scan.label)
        return f"what {scan.label} has"

    monkeypatch.setattr(disk, "read_prepared", reading)
    monkeypatch.setattr(disk, "_LAST", {})
    settings = Settings(output_dir=tmp_path)
    first, second = (Scan(name, None, {"T2w": Path("a.nii.gz")}) for name in ("01", "02"))
    assert [disk.kept(first, settings, "k") for _ in range(3)] == ["what sub-01 has"] * 3
    assert disk.kept(second, settings, "k") == "what sub-02 has", "two sessions may have the same key"
    assert disk.kept(second, settings, "other") == "what sub-02 has"
    assert read == ["sub-01", "sub-02", "sub-02"]
    assert len(disk._LAST) == 1, "the files are large"
    with pytest.raises(EpvsError):  # there is no such image
        preparation.compute(first, settings, {}, {})
    assert not disk._LAST, "nor are they kept while the next session is prepared"
