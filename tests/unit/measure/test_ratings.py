import numpy as np

from bids_epvs.measure.ratings import potter, slice_counts


def test_potter_limits():
    assert [potter(n, "CentrumSemiovale") for n in (0, 1, 10, 11, 20, 21, 40, 41)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [potter(n, "Midbrain") for n in (0, 1, 5)] == [0, 1, 1]
    assert potter(5, "Hippocampus") is None


def test_slices_count_instances_not_voxels():
    labels = np.zeros((5, 6, 4), np.int32)
    labels[1, 1, 1:3] = 1
    labels[3:5, 3, 2] = 2
    assert slice_counts(labels, np.array([1, 2])).tolist() == [0, 1, 2, 0]
    assert slice_counts(labels, np.array([2])).tolist() == [0, 0, 1, 0]
