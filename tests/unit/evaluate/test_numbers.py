"""Grades of the truth: from masks of one's own, and of simulated scans."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_epvs.evaluate import numbers
from bids_epvs.evaluate.cases import Case, Known
from bids_epvs.evaluate.metrics import Truth
from bids_epvs.prepare.regions import REGIONS, indices
from bids_epvs.synth.dataset import truth_summary

SPACING = (0.5, 4.0, 0.5)


@pytest.fixture
def coronal():
    """Twelve EPVS within 4 mm of height, at most two of them in one axial plane, and the region around them."""
    labels = np.zeros((60, 8, 40), np.int32)
    for k in range(12):
        labels[4 * k + 2, 3, 10 + k % 8] = k + 1
    return labels, np.full(labels.shape, indices("BasalGanglia")[0], np.uint8)


def test_masks_of_coronal_slices_are_graded_by_slabs(coronal, tmp_path):
    labels, regions = coronal
    frame = nib.Nifti1Image(np.zeros(labels.shape, np.uint8), np.diag([*SPACING, 1.0]))
    truth = Truth(labels > 0, labels, np.arange(1, 13))
    table = numbers.of_truth(Case("sub-01", tmp_path, tmp_path, ("unet",)), Known(frame, truth, regions, {}, {}, None))
    assert table.loc["BasalGanglia", ["slice_count", "rating"]].tolist() == [12, 2]


def test_simulated_coronal_slices_are_graded_by_slabs(coronal):
    labels, regions = coronal
    side = REGIONS[indices("BasalGanglia")[0]].side.lower()
    rows = [{"index": k + 1, "region": "BasalGanglia", "hemisphere": side, "volume_mm3": 1.0} for k in range(12)]
    filled = (labels > 0).astype(np.float32)
    table = truth_summary(pd.DataFrame(rows), labels, filled, regions, SPACING, {})
    both = table[table["hemisphere"] == "both"].set_index("region")
    assert both.loc["BasalGanglia", ["slice_count", "rating"]].tolist() == [12, 2]
