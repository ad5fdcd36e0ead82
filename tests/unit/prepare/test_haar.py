"""Haar enhancement: contrast of thin structures rises, noise stays noise."""

import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.prepare import haar


def lines(rng, amplitude, noise=20.0):
    """Tissue of 400 with thin bright lines and dots, blurred a little, and where they are."""
    clean = np.zeros((112, 86))
    for x, y in ((20, 20), (50, 30), (80, 50), (30, 60)):
        clean[x : x + 10, y] = 1
    for x, y in ((15, 40), (60, 60), (95, 20), (70, 15)):
        clean[x : x + 2, y : y + 2] = 1
    clean = ndimage.gaussian_filter(clean, 0.6)
    return 400 + amplitude * clean + rng.normal(0, noise, clean.shape), clean


def contrast(image, clean):
    near = clean > 0.4
    far = ndimage.binary_dilation(clean > 0.01, iterations=2)
    return (image[near].mean() - image[~far].mean()) / image[~far].std()


def test_transforms_are_orthonormal():
    for n in (1, 2, 4, 8):
        assert np.allclose(haar.haar_matrix(n) @ haar.haar_matrix(n).T, np.eye(n))


def coefficients(image):
    along, within = haar.transforms()
    stacks = image.astype(np.float32).ravel()[haar.groups(image)]
    return np.einsum("gk,nkp,bp->ngb", along, stacks, within, optimize=True)


def correlated(rng, shape, share=0.6):
    """Noise of deviation 1 of a scan that is interpolated: the outer part of k-space is empty."""
    spectrum = np.fft.fftshift(np.fft.fft2(rng.normal(0, 1, shape)))
    for axis, n in enumerate(shape):
        empty = np.abs(np.arange(n) - n // 2) > share * n / 2
        spectrum[(slice(None),) * axis + (empty,)] = 0
    noise = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    return noise / noise.std()


def test_noise_levels(rng):
    image = 500 + np.add.outer(np.linspace(0, 50, 112), np.linspace(0, 80, 86))
    assert haar.noise_levels(coefficients(image + rng.normal(0, 15, image.shape)))[1, 1:] == pytest.approx(15, rel=0.15)
    levels = haar.noise_levels(coefficients(image + 15 * correlated(rng, image.shape)))
    blocks = np.lib.stride_tricks.sliding_window_view(15 * correlated(rng, image.shape), (4, 4)).reshape(-1, 16)
    true = (blocks @ haar.transforms()[1].T).std(axis=0)
    assert levels[1, 1:] == pytest.approx(true[1:], rel=0.35)
    assert true[4] > 3 * true[15], "coarse coefficients hold more"
    assert levels[0, 4] > 1.6 * levels[1, 4], "and the mean of blocks that overlap"


@pytest.mark.parametrize("amplitude", [80, 120, 250])
def test_contrast_to_noise_of_thin_structures_rises(rng, amplitude):
    image, clean = lines(rng, amplitude)
    made = haar.enhanced(image)
    assert made.shape == image.shape and made.dtype == np.float32
    assert contrast(made, clean) > 1.3 * contrast(image, clean)
    assert np.median(made) == pytest.approx(np.median(image), rel=0.01)


@pytest.mark.parametrize("white", [True, False])
def test_nothing_is_invented_in_noise(rng, white):
    image = 400 + 20 * (rng.normal(0, 1, (112, 86)) if white else correlated(rng, (112, 86), 0.75))
    made = haar.enhanced(image)
    assert made.std() < 0.75 * image.std()
    assert (np.abs(made - 400) > 3 * 20).mean() < 0.002, "of noise 0.0027 lies there"
    if white:
        assert np.abs(made - 400).max() < 4.5 * 20, "the largest of as many noise values is about 4"


def test_strong_edges_stay(rng):
    image = np.full((64, 64), 400.0)
    image[:, 32:] = 1100
    made = haar.enhanced(image + rng.normal(0, 15, image.shape))
    assert made[:, :30].mean() == pytest.approx(400, abs=8)
    assert made[:, 34:].mean() == pytest.approx(1100, abs=8)
    assert (made[:, 33] - made[:, 30]).mean() > 500


def test_without_noise_nothing_changes():
    image = np.full((20, 24), 7.0)
    assert np.array_equal(haar.enhanced(image), image)


def test_groups_hold_the_block_itself_and_the_most_similar(rng):
    image = rng.normal(0, 1, (20, 22)).astype(np.float32)
    image[3:7, 3:7] = image[5:9, 6:10]  # the same block twice, in reach
    where = haar.groups(image)
    assert where.min() >= 0 and where.max() < image.size
    columns = 22 - haar.BLOCK + 1
    stack = where[5 * columns + 6]
    first = {(int(s[0]) // 22, int(s[0]) % 22) for s in stack[:1]}
    assert first == {(5, 6)}
