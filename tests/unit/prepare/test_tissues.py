import nibabel as nib
import numpy as np
import pytest

from bids_epvs.prepare import tissues
from bids_epvs.prepare.labels import ATLAS_LABELS


def test_expectation_maximisation_recovers_overlapping_classes(rng):
    truth = rng.integers(0, 3, 6000)
    values = np.array([[1.0, 5.0], [2.0, 4.0], [4.0, 1.0]])[truth] + rng.normal(0, 0.3, (6000, 2))
    priors = np.full((6000, 3), 0.2)
    priors[np.arange(6000), np.where(rng.random(6000) < 0.3, rng.integers(0, 3, 6000), truth)] = 0.6
    posterior = tissues.expectation_maximisation(values, priors)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert (posterior.argmax(axis=1) == truth).mean() > 0.98


def test_cortex_beside_dark_fluid_is_not_taken_for_white_matter(rng):
    """As on FLAIR: fluid is dark, cortex brighter than white matter, and what holds both looks like white matter."""
    truth = rng.integers(0, 3, 20_000)
    values = np.array([0.15, 0.86, 0.72])[truth] + rng.normal(0, 0.05, len(truth))
    mixed = (truth == 1) & (rng.random(len(truth)) < 0.3)
    values[mixed] -= rng.random(mixed.sum()) * 0.7
    priors = np.full((len(truth), 3), 0.2)
    priors[np.arange(len(truth)), np.where(rng.random(len(truth)) < 0.4, rng.integers(0, 3, len(truth)), truth)] = 0.6
    wrong = {}
    for border in (0.0, tissues.BORDER):
        found = tissues.expectation_maximisation(
            values[:, None], priors, mixtures=[tissues.Mixture(1, border, tissues._border)]
        )
        assert found.shape == priors.shape
        np.testing.assert_allclose(found.sum(axis=1), 1)
        wrong[border] = ((found.argmax(axis=1) != truth) & (truth > 0)).mean()
    assert wrong[tissues.BORDER] < 0.8 * wrong[0.0], wrong


CONTRASTS = {  # fluid, grey matter, white matter, lesions
    "T2w": (900, 500, 380, 610),
    "FLAIR": (60, 500, 420, 800),
    "T1w": (200, 500, 700, 500),
}


def lesions_in(contrast, fluid=4, size=24):
    """Posterior of white matter in its lesions, and of fluid beside them.

    The prior says half and half at both sides of the border between them, as it does near ventricles.
    """
    dark, grey, white, bright = map(float, CONTRASTS[contrast])
    known, shape = list(ATLAS_LABELS), (3 * size, size, size)
    truth = np.repeat([fluid, 2, 3], size)
    image = np.broadcast_to(np.repeat([dark, white, grey], size)[:, None, None], shape).copy()
    lesions = slice(size, size + 3)
    image[lesions] = bright
    image += np.random.default_rng(3).normal(0, 20, shape)
    prior = np.zeros((*shape, len(known)), np.float32)
    for k in (fluid, 2, 3):
        prior[truth == k, ..., known.index(k)] = 1
    unsure = slice(size - 3, size + 3)
    prior[unsure, ..., known.index(fluid)] = prior[unsure, ..., known.index(2)] = 0.5
    scan = nib.Nifti1Image(image.astype(np.float32), np.eye(4))
    found = tissues.posteriors([scan], np.ones(shape, bool), prior)
    return found["WM"][lesions].mean(), found["CSF"][size - 3 : size].mean()


@pytest.mark.parametrize("contrast", ["T2w", "FLAIR"])
def test_lesions_beside_ventricles_are_white_matter(contrast, monkeypatch):
    lesion, fluid = lesions_in(contrast)
    assert lesion > 0.9
    assert fluid > 0.9
    assert lesions_in(contrast, fluid=24)[0] <= lesion + 1e-3, "less surely so beside sulci"
    monkeypatch.setattr(tissues, "LESION", 0.0)
    monkeypatch.setattr(tissues, "LESION_NEAR", 0.0)
    assert lesions_in(contrast)[0] < 0.5


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_contrasts_that_show_lesions(contrast, rng):
    truth = rng.integers(0, 3, 900)
    values = np.stack([np.array(CONTRASTS[c], float)[truth] for c in (contrast, "T1w")], axis=1)
    shown = tissues._shows_lesions(values + rng.normal(0, 20, values.shape), np.eye(3)[truth])
    assert shown is (contrast != "T1w")


def test_lesions_lie_elsewhere_on_each_contrast():
    means = np.array([CONTRASTS[c][:3] for c in CONTRASTS]).T / 1000
    low, high = tissues._lesions(means)
    np.testing.assert_allclose(low, [0.38, 0.5, 0.7])
    np.testing.assert_allclose(high, [0.9, 1, 0.2])


def test_intensities_do_not_decide_about_mixed_labels():
    known = list(ATLAS_LABELS)
    prior = np.zeros((6, 6, 6, len(known)), np.float32)
    prior[..., known.index(16)], prior[..., known.index(10)] = 0.9, 0.1
    prior[3:, ..., known.index(16)], prior[3:, ..., known.index(2)] = 0, 0.9
    mask = np.ones((6, 6, 6), bool)
    posterior = {name: np.zeros(mask.shape, np.float32) for name in ("CSF", "GM", "WM", "DGM")}
    posterior["DGM"][:] = 1  # all looks like deep grey matter
    labels = tissues.label_map(prior, posterior, mask, (4.0, 4.0, 4.0))
    assert (labels[:3] == 16).all(), "the brainstem keeps its place"
    assert (labels[3:] == 10).all(), "white matter does not"


def test_intensities_do_not_decide_about_what_a_network_has_seen():
    known = list(ATLAS_LABELS)
    prior = np.zeros((6, 6, 6, len(known)), np.float32)
    prior[..., known.index(13)], prior[..., known.index(2)] = 0.7, 0.3
    mask = np.ones((6, 6, 6), bool)
    posterior = {name: np.zeros(mask.shape, np.float32) for name in ("CSF", "GM", "WM", "DGM")}
    posterior["WM"][:] = 1  # the pallidum is as dark as white matter on T2w
    labels = tissues.label_map(prior, posterior, mask, (4.0, 4.0, 4.0), kept=tissues.KEPT)
    assert (labels == 13).all()
    assert (tissues.label_map(prior, posterior, mask, (4.0, 4.0, 4.0)) == 2).all(), "an atlas has not seen them"
