"""What the stages of a session say of themselves."""

from pathlib import Path

import pytest

from bids_epvs import stages
from bids_epvs.records import Scan
from bids_epvs.settings import Settings


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("network", ("T2w", "T1w", "FLAIR", "SWI"), ["T2w", "T1w"]),
        ("network", ("FLAIR", "SWI"), ["FLAIR"]),
        ("atlas", ("T2w", "T1w", "FLAIR"), ["T2w", "T1w"]),
        ("segmentation", ("T2w", "T1w", "FLAIR"), ["T2w"]),
    ],
)
def test_sources_of_regions_are_what_they_were_looked_for_in(tmp_path, source, given, expected):
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_space-T2w_dseg.nii.gz").touch()
    settings = Settings(
        regions_from="atlas" if source == "atlas" else "network",
        derivatives={"own": tmp_path} if source == "segmentation" else {},
    )
    scan = Scan("01", None, {n: Path(f"sub-01_{n}.nii.gz") for n in given})
    assert stages._looked_at(scan, settings) == expected
