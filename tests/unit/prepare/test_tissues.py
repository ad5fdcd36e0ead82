import numpy as np

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
        found = tissues.expectation_maximisation(values[:, None], priors, border=border)
        assert found.shape == priors.shape
        np.testing.assert_allclose(found.sum(axis=1), 1)
        wrong[border] = ((found.argmax(axis=1) != truth) & (truth > 0)).mean()
    assert wrong[tissues.BORDER] < 0.8 * wrong[0.0], wrong


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
