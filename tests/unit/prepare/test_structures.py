import nibabel as nib
import numpy as np

from bids_epvs.prepare import structures
from bids_epvs.prepare.labels import ATLAS_LABELS


def test_where_there_is_a_finer_grid_it_counts():
    labels, affine = (2, 12), np.diag([2.0, 2.0, 2.0, 1.0])
    coarse = np.zeros((12, 12, 12, 2), np.float32)
    coarse[..., 0] = 0.9
    small = np.diag([1.0, 1.0, 1.0, 1.0])
    small[:3, 3] = 7.5  # eight voxels of 1 mm that fill coarse voxels 4 to 7
    fine = np.zeros((8, 8, 8, 2), np.float32)
    fine[:4, ..., 0], fine[4:, ..., 1] = 1.0, 0.8
    scan = nib.Nifti1Image(np.zeros((24, 24, 24), np.float32), np.eye(4))
    columns = [list(ATLAS_LABELS).index(i) for i in labels]
    parcels = structures.Parcels(nib.Nifti1Image(coarse, affine), labels)
    prior, inside = structures.placed(parcels, np.eye(4), scan)
    prior = prior[..., columns]
    assert np.allclose(prior[1:22, 1:22, 1:22], (0.9, 0), atol=1e-6) and np.allclose(inside[8:16, 8:16, 8:16], 0.9)
    both = structures.Parcels(parcels.probability, labels, fine=nib.Nifti1Image(fine, small))
    with_it, whole = structures.placed(both, np.eye(4), scan)
    with_it = with_it[..., columns]
    part = (slice(8, 15),) * 3
    assert np.allclose(with_it[8:11, 8:15, 8:15], (1, 0), atol=1e-6)
    assert np.allclose(with_it[11, 8:15, 8:15], (0.5, 0.4), atol=1e-6), "half of each of two voxels"
    assert np.allclose(with_it[12:15, 8:15, 8:15], (0, 0.8), atol=1e-6)
    assert np.allclose(whole[part], with_it[part].sum(axis=-1))
    rest = np.ones(scan.shape, bool)
    rest[part] = False
    assert np.array_equal(with_it[rest], prior[rest]) and np.array_equal(whole[rest], inside[rest])


def test_a_sequence_that_ends_before_the_other_does_not_sharpen_and_one_without_fluid_does():
    prior = np.zeros((10, 10, 10, len(ATLAS_LABELS)), np.float32)
    labels = list(ATLAS_LABELS)
    prior[1:9, 1:9, 1:9, labels.index(2)] = 1
    prior[4:6, 4:6, 4:6] = 0
    prior[4:6, 4:6, 4:6, labels.index(4)] = 1
    t2w, cut, dark = np.ones((3, 10, 10, 10), np.float32)
    cut[:, :, 6:] = 0
    dark[4:6, 4:6, 4:6] = 0
    images = [nib.Nifti1Image(a, np.eye(4)) for a in (t2w, cut, dark)]
    assert structures.covering(images, prior) == [images[0], images[2]]
    assert structures.covering(images[1:2], prior) == images[1:2]
    assert structures.covering([images[1], images[0]], prior) == [images[1], images[0]]
    assert len(structures.covering(images, prior * 0)) == 3


def test_tissues_are_sums_of_labels_and_brainstem_is_none():
    shown = (2, 41, 3, 4, 11, 51, 16, 17)  # white matter, cortex, ventricle, nuclei, brainstem, hippocampus
    probability = np.eye(len(shown), dtype=np.float32).reshape(2, 2, 2, -1)
    found = (
        structures.tissues(structures.Parcels(nib.Nifti1Image(probability, np.eye(4)), shown))
        .get_fdata()
        .reshape(8, -1)
    )
    fluid, white, cortex, nuclei = np.eye(4)
    nothing = np.zeros(4)
    np.testing.assert_array_equal(found, [white, white, cortex, fluid, nuclei, nuclei, nothing, nothing])
