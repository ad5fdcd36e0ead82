"""Frequency maps: where EPVS lie in the template, a person counted once."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs.derivatives import write
from bids_epvs.group import maps
from bids_epvs.prepare.template import SPACE, space_grid
from bids_epvs.records import Cohort


@pytest.fixture
def aligned(tmp_path):
    """Masks in template space: sub-01 has an EPVS at one place in both sessions, at another in one; sub-02 has none."""
    grid = space_grid(SPACE)
    spots = {("01", "1"): [(90, 100, 80)], ("01", "2"): [(90, 100, 80), (60, 120, 90)], ("02", "1"): []}
    for (subject, session), voxels in spots.items():
        data = np.zeros(grid.shape, np.uint8)
        for v in voxels:
            data[v] = 1
        name = f"sub-{subject}_ses-{session}_space-{SPACE}_label-EPVS_desc-unet_mask.nii.gz"
        write.image(tmp_path / f"sub-{subject}" / f"ses-{session}" / "anat" / name, data, grid, meta={})
    wide = pd.DataFrame(
        [{"participant_id": f"sub-{s}", "session_id": f"ses-{k}", "sex": "FM"[s == "02"]} for s, k in spots]
    )
    return tmp_path, Cohort(wide, pd.DataFrame({"model": ["unet"]}), {}, ("sex",))


def test_a_person_counts_once(aligned):
    root, cohort = aligned
    (found,), left_out = maps.frequency(cohort, root)
    assert (found.model, found.by, found.participants, left_out) == ("unet", "all", 2, [])
    assert found.raw[90, 100, 80] == 0.5
    assert found.raw[60, 120, 90] == 0.25
    assert found.raw.sum() == pytest.approx(0.75)
    assert found.smooth.sum() == pytest.approx(0.75, rel=1e-3)  # smoothing moves, it does not add
    assert found.smooth[90, 100, 80] == found.smooth.max() < 0.05


def test_maps_by_group_are_written_with_the_geometry_of_the_template(aligned):
    root, cohort = aligned
    made, _ = maps.frequency(cohort, root, by=("sex",), nprocs=2)
    assert [(m.by, m.level, m.participants) for m in made] == [("all", "all", 2), ("sex", "F", 1), ("sex", "M", 1)]
    (root / f"group_sex-X_space-{SPACE}_desc-unet_frequency.nii.gz").touch()
    maps.save(made, root)
    files = sorted(p.name for p in root.glob("*.nii.gz"))
    assert len(files) == 6
    assert f"group_sex-F_space-{SPACE}_desc-unetsmooth_frequency.nii.gz" in files
    image = nib.load(root / f"group_sex-F_space-{SPACE}_desc-unet_frequency.nii.gz")
    assert np.allclose(image.affine, space_grid(SPACE).affine)
    assert image.get_fdata()[90, 100, 80] == 1
    assert image.get_fdata()[60, 120, 90] == 0.5


def test_a_session_without_masks_is_named(aligned):
    root, cohort = aligned
    wide = pd.concat(
        [cohort.wide, pd.DataFrame([{"participant_id": "sub-03", "session_id": "ses-1"}])], ignore_index=True
    )
    _, left_out = maps.frequency(Cohort(wide, cohort.long, {}), root)
    assert left_out == ["sub-03_ses-1"]
    assert maps.frequency(Cohort(pd.DataFrame(), pd.DataFrame(), {}), root) == ([], [])
