"""Intensity inhomogeneity: a known field is found again, and contrast of tissues is left alone."""

import nibabel as nib
import numpy as np
import pytest

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
    alone, corrected = (bias.even(i, atlas.tissues(), np.eye(4)) for i in (alone, corrected))
    left = np.log(corrected.get_fdata()[brain] / alone.get_fdata()[brain]).std()
    assert left < 0.1 * np.log(field[brain]).std()
    assert variation > 1.3


INTENSITIES = (1000.0, 400.0, 600.0, 500.0)
"""Of `atlas.TISSUES`, as on a T2w."""


@pytest.fixture
def drawn(rng):
    """A head drawn from the atlas's tissues by chance, mirrored and moved, the affine to template, and its tissues."""
    shares = np.asarray(atlas.tissues().dataobj)
    cumulated = np.cumsum(shares, axis=-1)
    tissue = (rng.random(shares.shape[:3])[..., None] > cumulated).sum(axis=-1)
    data = np.append(INTENSITIES, 0.0)[tissue] * np.exp(rng.normal(0, 0.04, tissue.shape))
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[:3, 3] = 20, -5, 8
    return nib.Nifti1Image(data.astype(np.float32), turned @ atlas.tissues().affine), np.linalg.inv(turned), tissue


def _field(shape):
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return np.exp(0.1 * x - 0.15 * y + 0.15 * z + 0.1 * z**2 - 0.1 * x * y)


def test_what_is_even_stays_and_what_is_not_becomes_even(drawn):
    image, to_template, tissue = drawn
    data, field = image.get_fdata(), _field(image.shape)
    solid = (tissue > 0) & (tissue < 4)
    stays = bias.even(image, atlas.tissues(), to_template).get_fdata()[solid] / data[solid]
    assert stays.std() < 0.01
    uneven = nib.Nifti1Image((data * field).astype(np.float32), image.affine)
    corrected = bias.even(uneven, atlas.tissues(), to_template)
    left = corrected.get_fdata()[solid] / data[solid]
    assert np.log(left).std() < 0.1 * np.log(field[solid]).std()
    assert corrected.get_fdata()[solid].mean() == pytest.approx(uneven.get_fdata()[solid].mean(), rel=0.1)


def test_a_nucleus_of_another_intensity_is_not_evened_away(drawn):
    image, to_template, _ = drawn
    own = [list(atlas.ATLAS_LABELS).index(i) for i in (13, 52)]  # pallidum
    there = np.asarray(atlas.probabilities().dataobj)[::2, ::2, ::2, own].sum(axis=-1) > 0.5 * 255
    data = image.get_fdata()
    data[there] *= 0.6
    darker = nib.Nifti1Image(data.astype(np.float32), image.affine)
    ratio = bias.even(darker, atlas.tissues(), to_template).get_fdata()[data > 0] / data[data > 0]
    assert ratio.std() < 0.01


def test_labels_that_are_wrong_at_the_vertex_do_not_bend_the_field(drawn):
    """A quarter of the vertex is fluid where the atlas has solid tissue."""
    image, to_template, tissue = drawn
    data = image.get_fdata()
    z = np.arange(data.shape[2]) > np.flatnonzero((tissue < 4).any(axis=(0, 1)))[-1] - 8
    wrong = (np.arange(data.size).reshape(data.shape) % 4 == 0) & z & (tissue > 0) & (tissue < 4)
    data[wrong] = INTENSITIES[0]
    solid = (tissue > 0) & (tissue < 4) & ~wrong
    shown = nib.Nifti1Image(data.astype(np.float32), image.affine)
    ratio = bias.even(shown, atlas.tissues(), to_template).get_fdata()[solid] / data[solid]
    assert ratio.std() < 0.02


def test_an_image_in_which_hardly_anything_is_known_stays(drawn):
    image, to_template, _ = drawn
    far = to_template.copy()
    far[2, 3] += 400
    assert bias.even(image, atlas.tissues(), far) is image
    nothing = nib.Nifti1Image(np.zeros_like(np.asarray(atlas.tissues().dataobj)), atlas.tissues().affine)
    assert bias.even(image, nothing, to_template) is image


@pytest.mark.parametrize("degree", [2, 3])
def test_beyond_the_voxels_that_are_known_the_field_goes_on_as_it_was(drawn, degree):
    """Nothing is sure in the upper third: the field that was fitted below neither grows nor falls there."""
    image, to_template, tissue = drawn
    shares = np.asarray(atlas.tissues().dataobj).copy()
    top = np.flatnonzero((tissue < 4).any(axis=(0, 1)))[-1] * 2 // 3
    shares[:, :, top:] = 0
    known = nib.Nifti1Image(shares, atlas.tissues().affine)
    data, field = image.get_fdata(), _field(image.shape)
    shown = nib.Nifti1Image((data * field).astype(np.float32), image.affine)
    corrected = bias.even(shown, known, to_template, degree).get_fdata()
    factor = np.divide(shown.get_fdata(), corrected, out=np.zeros_like(corrected), where=corrected > 0)
    middle = tuple(n // 2 for n in data.shape[:2])
    assert (tissue[middle][top + 2 : top + 6] < 4).all()
    column = factor[middle][top + 2 : top + 6]
    assert (column > 0).all() and np.ptp(column) < 1e-3
