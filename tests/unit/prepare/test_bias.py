"""Intensity inhomogeneity: a known field is found again."""

import nibabel as nib
import numpy as np

from bids_epvs.prepare import atlas, bias


def test_most_of_a_coils_field_goes(rng):
    template = atlas.head("T2w")
    data = np.asarray(template.dataobj, np.float32)
    data = (data / data.max() * 1000 + 5) * np.exp(rng.normal(0, 0.04, data.shape))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in data.shape), indexing="ij")
    field = np.exp(0.25 * x + 0.15 * y - 0.2 * y**2 + 0.1 * x * z)
    even, uneven = (nib.Nifti1Image((data * f).astype(np.float32), template.affine) for f in (1, field))
    (alone, _), (corrected, variation) = bias.correct(even), bias.correct(uneven)
    brain = np.asarray(atlas.brain().dataobj) > 0.9
    left = np.log(corrected.get_fdata()[brain] / alone.get_fdata()[brain]).std()  # of the field that was added
    assert left < 0.3 * np.log(field[brain]).std()
    assert variation > 1.3
