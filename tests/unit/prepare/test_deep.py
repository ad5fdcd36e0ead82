"""Borders of the deep grey matter by intensities, on blocks whose truth is known."""

import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.prepare import deep
from bids_epvs.prepare.labels import ATLAS_LABELS

SHAPE, SPACING = (60, 40, 24), (1.0, 1.0, 1.0)
MEANS = {2: 400, 12: 440, 13: 330, 11: 435, 10: 430, 4: 1100}
MEANS |= {41: 400, 51: 440, 52: 330, 50: 435, 49: 430, 43: 1100}


def truth() -> np.ndarray:
    """Boxes of nuclei in white matter, mirrored; the ventricles between them."""
    out = np.full(SHAPE, 2, np.int16)
    out[8:14, 10:30, 6:18] = 12
    out[14:19, 13:27, 6:18] = 13
    out[22:27, 6:16, 6:18] = 11
    out[22:28, 20:34, 6:18] = 10
    out[28:30, 8:30, 6:18] = 4
    right = {2: 41, 12: 51, 13: 52, 11: 50, 10: 49, 4: 43}
    out[30:] = np.vectorize(right.get)(out[:30][::-1])
    return out


def believed(labels: np.ndarray, shift: float) -> np.ndarray:
    """Probabilities of a network: blurred, and off by `shift` voxels towards the left."""
    out = np.stack([ndimage.gaussian_filter((labels == i).astype(np.float32), 1.5) for i in ATLAS_LABELS], -1)
    moved = ndimage.shift(out, (shift, 0, 0, 0), order=1, mode="nearest")
    return moved / moved.sum(axis=-1, keepdims=True)


def seen(labels: np.ndarray, rng: np.random.Generator, noise: float = 25.0) -> np.ndarray:
    image = np.vectorize(MEANS.get)(labels) + rng.normal(0, noise, SHAPE)
    return image.astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture
def case():
    """Truth, probabilities, and the labels they would give."""
    labels = truth()
    prior = believed(labels, 1.2)
    first = np.array(list(ATLAS_LABELS), np.int16)[np.argmax(prior, axis=-1)]
    return labels, prior, first


@pytest.mark.parametrize("coil", [0.0, 0.25])
def test_borders_follow_the_intensities(case, rng, coil):
    labels, prior, first = case
    image = seen(labels, rng) * (1 + coil * np.linspace(-1, 1, SHAPE[0], dtype=np.float32))[:, None, None]
    found = deep.sharpened(first, prior, [image], SPACING)
    for index, least in ((12, 0.83), (51, 0.87), (13, 0.93), (52, 0.9)):
        before, after = (dice(x == index, labels == index) for x in (first, found))
        assert before < least - 0.05 and after > least, (index, before, after)


def test_a_thin_nucleus_beside_fluid_keeps_its_other_border(rng):
    """Much of a thin caudate is partly ventricle, which must not tell how bright caudate is."""
    labels = truth()
    labels[22:24, 6:16, 6:18], labels[36:38, 6:16, 6:18] = 2, 41
    labels[27:28, 6:16, 6:18], labels[32:33, 6:16, 6:18] = 11, 50
    caudate = np.isin(labels, (11, 50))
    image = ndimage.gaussian_filter(seen(labels, rng, noise=0), (1.3, 1.3, 0))
    image += rng.normal(0, 15, SHAPE).astype(np.float32)
    assert np.percentile(image[caudate], 90) > 600
    found = deep.sharpened(labels, believed(labels, 0.0), [image], SPACING)
    assert dice(np.isin(found, (11, 50)), caudate) > 0.85


def test_two_sequences_say_more_than_one(case, rng):
    labels, prior, first = case
    images = [seen(labels, rng, noise=60) for _ in range(2)]
    nuclei = np.isin(labels, deep.NUCLEI)
    one, two = (deep.sharpened(first, prior, images[:n], SPACING) for n in (1, 2))
    wrong = [int((x != labels)[nuclei].sum()) for x in (first, one, two)]
    assert wrong[0] > wrong[1] > wrong[2]


def test_without_contrast_the_probabilities_decide(case, rng):
    _, prior, first = case
    flat = rng.normal(400, 25, SHAPE).astype(np.float32)
    found = deep.sharpened(first, prior, [flat], SPACING)
    assert (found != first).mean() < 0.003
    assert (deep.sharpened(first, prior, [np.full(SHAPE, 400, np.float32)], SPACING) != first).mean() < 0.003


def test_bright_epvs_and_missing_voxels_change_nothing(case, rng):
    labels, prior, first = case
    image = seen(labels, rng)
    clean = deep.sharpened(first, prior, [image], SPACING)
    spoilt = image.copy()
    spoilt[10:12, 18:20, :] = 1000
    spoilt[16, 20, :] = 0
    found = deep.sharpened(first, prior, [spoilt], SPACING)
    assert (found[10:12, 18:20, 7:17] == 12).all() and (found[16, 20, 7:17] == 13).all()
    assert (found != clean).mean() < 0.005


def test_sides_and_all_other_labels_stay(case, rng):
    labels, prior, first = case
    first[40:43, 20:25, :] = 60
    found = deep.sharpened(first, prior, [seen(labels, rng)], SPACING)
    left, right = ([kind[side] for kind in deep.KINDS] for side in range(2))
    assert np.array_equal(np.isin(first, left), np.isin(found, left))
    assert np.array_equal(np.isin(first, right), np.isin(found, right))
    other = ~np.isin(first, np.ravel(deep.KINDS))
    assert np.array_equal(first[other], found[other]) and (found[40:43, 20:25] == 60).all()


def test_a_scan_without_nuclei_is_left_alone(rng):
    labels = np.full(SHAPE, 2, np.int16)
    assert np.array_equal(deep.sharpened(labels, believed(labels, 0), [seen(labels, rng)], SPACING), labels)
