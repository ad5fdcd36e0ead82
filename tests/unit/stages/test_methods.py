"""Masks and instances as they are written: what counts, where."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_epvs.records import Prediction
from bids_epvs.settings import Settings
from bids_epvs.stages import methods

CENTRUM, GANGLIA = "CentrumSemiovale", "BasalGanglia"


@pytest.fixture
def session():
    regions = np.zeros((20, 12, 4), np.uint8)
    regions[2:8], regions[8:14] = 1, 3  # basal ganglia and centrum semiovale of the left hemisphere
    native = nib.Nifti1Image(np.zeros(regions.shape, np.uint8), np.eye(4))
    return SimpleNamespace(regions=regions, native=native, voxel_mm3=1.0)


@pytest.fixture
def mask():
    out = np.zeros((20, 12, 4), bool)
    out[3:6, 2, 1] = True  # in the basal ganglia
    out[11:17, 5, 1] = True  # from the centrum semiovale to where no region is
    out[16:19, 9, 2] = True  # in no region
    return out


def written(tmp_path, session, prediction, *names):
    files = {kind: tmp_path / f"{kind}.nii.gz" for kind in ("mask", "instances")}
    settings = Settings(output_dir=tmp_path, regions=names, min_volume_mm3=1.0)
    methods._write_instances(files, prediction, session, settings, {"Model": "unet"})
    mask, labels = (np.asarray(nib.load(path).dataobj) for path in files.values())
    assert np.array_equal(mask > 0, labels > 0)
    return labels.astype(int)


def test_an_epvs_may_run_on_where_no_region_is(tmp_path, session, mask):
    made = Prediction("unet", mask=mask)
    every = written(tmp_path, session, made)
    assert every[3:6, 2, 1].tolist() == [1, 1, 1]
    assert every[11:17, 5, 1].tolist() == [2] * 6
    assert (every > 0).sum() == 9, "the one in no region does not count"
    assert np.unique(written(tmp_path, session, made, GANGLIA)).tolist() == [0, 1]
    centrum = written(tmp_path, session, made, CENTRUM)
    assert np.argwhere(centrum)[:, 0].tolist() == list(range(11, 17))


def test_what_is_not_asked_for_is_no_way_out(tmp_path, session, mask):
    mask[5:17, 5, 1] = True  # from the basal ganglia through the centrum semiovale
    labels = written(tmp_path, session, Prediction("unet", mask=mask), GANGLIA)
    assert sorted(np.argwhere(labels)[:, 0].tolist()) == [3, 4, 5, 5, 6, 7]


def test_instances_that_a_method_tells_apart_stay_in_the_regions(tmp_path, session, mask):
    own = np.where(mask, 7, 0).astype(np.int32)
    own[16:19, 9, 2] = 3
    own[3:6, 2, 1] = 9
    labels = written(tmp_path, session, Prediction("gpunet", instances=own))
    assert labels[11:17, 5, 1].tolist() == [1, 1, 1, 0, 0, 0]
    assert np.unique(labels[3:6, 2, 1]).tolist() == [2]
    assert not labels[16:19, 9, 2].any()
