"""Grad-CAM on networks whose answer is known."""

import keras
import numpy as np
import pytest
from keras import layers

from bids_epvs.explain import gradcam


@pytest.fixture
def blobs(rng):
    """A small network trained to say whether a bright blob is in a noisy image, and images with and without."""
    keras.utils.set_random_seed(5)
    image = keras.Input((16, 20, 12, 1))
    x = layers.Conv3D(4, 3, padding="same", activation="relu")(image)
    x = layers.Conv3D(4, 3, padding="same", activation="relu", name="features")(layers.MaxPooling3D(2)(x))
    logit = layers.Dense(1, name="logit")(layers.GlobalMaxPooling3D()(x))
    model = keras.Model(image, layers.Activation("sigmoid")(logit))
    data = rng.normal(0, 0.3, (64, 16, 20, 12, 1)).astype(np.float32)
    places = np.stack([rng.integers(2, n - 5, 64) for n in (16, 20, 12)], axis=1)
    for k in range(32):
        x, y, z = places[k]
        data[k, x : x + 3, y : y + 3, z : z + 3] += 2
    model.compile(keras.optimizers.Adam(2e-2), "binary_crossentropy")
    model.fit(data, np.repeat([1.0, 0.0], 32), epochs=15, batch_size=16, verbose=0)
    return model, data, places


def test_the_map_peaks_on_the_blob(blobs):
    model, data, places = blobs
    assert (np.asarray(model.predict(data, verbose=0))[:, 0].round() == np.repeat([1, 0], 32)).mean() > 0.9
    away = []
    for k in range(10):
        made = gradcam.gradcam(model, data[k], "features")
        assert made.shape == (8, 10, 6)
        assert made.min() >= 0
        fine = gradcam.resized(made, (16, 20, 12))
        peak = np.unravel_index(int(np.argmax(fine)), fine.shape)
        away.append(np.abs(np.array(peak) - places[k] - 1).max())
    assert np.median(away) <= 2


def test_it_is_the_weighted_sum_of_the_feature_maps(blobs, rng):
    model, data, _ = blobs
    image = keras.Input((6, 6, 4, 2))
    pooled = layers.GlobalAveragePooling3D()(layers.Activation("linear", name="maps")(image))
    dense = layers.Dense(1, name="logit", use_bias=False)
    plain = keras.Model(image, layers.Activation("sigmoid")(dense(pooled)))
    dense.set_weights([np.array([[2.0], [-1.0]], np.float32)])
    given = rng.normal(size=(6, 6, 4, 2)).astype(np.float32)
    expected = np.maximum(2 * given[..., 0] - given[..., 1], 0) / given[..., 0].size
    assert np.allclose(gradcam.gradcam(plain, given, "maps"), expected, atol=1e-7)
    with pytest.raises(ValueError, match="No such layer"):
        gradcam.gradcam(model, data[0], "nothing")


def test_the_display_scale_and_its_distribution():
    raw = np.zeros((4, 4, 4), np.float32)
    raw[0, 0, 0], raw[1, 1, 1] = 0.5, 0.25
    shown = gradcam.displayed(raw)
    assert (shown.max(), shown[1, 1, 1]) == (10, 5)
    found = gradcam.spread(shown, np.ones(raw.shape, bool))
    assert found.high == 1 / 64
    assert found.counts == (62, 0, 0, 0, 0, 1, 0, 0, 0, 1)
    assert gradcam.spread(shown, np.zeros(raw.shape, bool)).counts == (0,) * 10
    assert (gradcam.displayed(raw * 0) == 0).all()
    assert np.isfinite(gradcam.spread(raw * 0, np.ones(raw.shape, bool)).skewness)


def test_a_resized_map_stays_in_place():
    small = np.zeros((4, 5, 3), np.float32)
    small[1, 3, 2] = 1
    fine = gradcam.resized(small, (8, 20, 12))
    assert fine.shape == (8, 20, 12)
    centre = np.array([(n + 0.5) * f - 0.5 for n, f in zip((1, 3, 2), (2, 4, 4), strict=True)])
    peak = np.argwhere(fine == fine.max()).mean(axis=0)
    assert np.abs(peak - centre).max() < 1.1


def test_gradients_with_respect_to_the_image():
    seen = keras.Input((None, None, None, 1))
    mean = keras.layers.GlobalAveragePooling3D()(seen)
    out = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="ones")(mean)
    values, slopes = gradcam.input_gradients(keras.Model(seen, out), np.full((2, 2, 3, 4, 1), 0.5, np.float32))
    p = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(values, [p, p], rtol=1e-5)
    np.testing.assert_allclose(slopes, np.full((2, 2, 3, 4, 1), p * (1 - p) / 24), rtol=1e-4)


def test_shares_of_a_map_by_region():
    regions = np.zeros((4, 4, 4), np.uint8)
    regions[0], regions[1] = 1, 9  # left basal ganglia, left thalamus
    saliency = np.zeros(regions.shape, np.float32)
    saliency[0, 0, 0], saliency[1, 1, 1], saliency[3, 3, 3] = 2, 1, 1
    shares = gradcam.by_region(saliency, regions)
    assert (shares["BasalGanglia"], shares["Thalamus"], shares["Midbrain"]) == (0.5, 0.25, 0)
    assert set(gradcam.by_region(np.zeros_like(saliency), regions).values()) == {0.0}
