"""The layer table of the paper."""

import keras
import numpy as np
import pytest
from scipy import ndimage

from bids_epvs.models import resnet152


def convolutions(model):
    """Convolutions of the layer table: those that only match shapes are left out."""
    return [x for x in model.layers if isinstance(x, keras.layers.Conv3D) and not x.name.endswith("_match")]


@pytest.mark.parametrize(("depth", "units"), [(50, 16), (101, 33), (152, 50)])
def test_depth_is_the_number_of_layers_with_weights(depth, units):
    model = resnet152.build(depth, width=2)
    assert sum(isinstance(x, keras.layers.Add) for x in model.layers) == units
    assert len(convolutions(model)) == 3 * units + 1
    assert len(convolutions(model)) + 1 == depth  # with the dense layer
    with pytest.raises(ValueError, match="depth"):
        resnet152.build(34)


def test_the_layers_of_the_paper_at_its_width():
    model = resnet152.build()
    first, *rest = convolutions(model)
    assert (first.kernel_size, first.strides, first.filters) == ((7, 7, 7), (2, 2, 2), 64)
    assert [c.kernel_size[0] for c in rest] == [3, 3, 1] * 50
    filters = [rest[3 * k].filters for k in range(50)]
    assert filters == [64] * 3 + [128] * 8 + [256] * 36 + [512] * 3
    strided = [k for k in range(50) if rest[3 * k].strides == (2, 2, 2)]
    assert strided == [0, 3, 11, 47]  # the first unit, and where filters increase
    pooling = next(x for x in model.layers if isinstance(x, keras.layers.MaxPooling3D))
    assert (pooling.pool_size, pooling.strides) == ((3, 3, 3), (2, 2, 2))
    normalised = sum(isinstance(x, keras.layers.BatchNormalization) for x in model.layers)
    assert normalised == len(convolutions(model))
    assert next(x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)) == 0.4
    expected, before = 7**3 * 64 + 4 * 64, 64
    for units, width in zip((3, 8, 36, 3), (64, 128, 256, 512), strict=True):
        for unit in range(units):
            own = width if unit else before
            expected += 27 * own * width + 27 * width**2 + width**2 + 3 * 4 * width  # convolutions, normalisation
            expected += 0 if unit else own * width  # the input is brought to the new shape
        before = width
    assert model.count_params() == expected + 512 + 1 == 176_597_441


def test_slices_can_be_kept_apart():
    model = resnet152.build(50, width=2, stride_z=1)
    last = keras.Model(model.inputs, model.get_layer("stage4_unit3").output)
    assert last.compute_output_shape((1, 128, 64, 16, 1)) == (1, 2, 1, 16, 16)
    made = np.asarray(model.predict_on_batch(np.zeros((2, 64, 64, 4, 1), np.float32)))
    assert made.shape == (2, 1)
    assert ((made > 0) & (made < 1)).all()


def test_only_the_neighbourhood_of_the_basal_ganglia_is_seen(rng):
    spacing = (0.6, 0.6, 3.0)
    regions = np.zeros((180, 180, 18), np.uint8)
    regions[50:70, 70:110, 6:12], regions[110:130, 70:110, 6:12] = 1, 2
    image = rng.uniform(80, 120, regions.shape).astype(np.float32)
    image[60, 90, 8] = 400
    seen, where = resnet152.volume(image, np.ones(regions.shape, bool), regions, spacing)
    assert seen.shape == resnet152.SHAPE and seen.dtype == np.float32 and seen.min() == 0 and seen.max() == 1
    basal = where.cut(regions > 0) >= 0.5
    away = ndimage.distance_transform_edt(~basal, sampling=spacing)
    assert (seen[away > resnet152.MARGIN_MM] == 0).all()
    assert (seen[(away > 0) & (away <= 2.5)] > 0).mean() > 0.9, "and a margin"
    assert seen[where.cut((image > 300).astype(np.float32)) > 0.5].min() == 1
    assert resnet152.volume(image, np.ones(regions.shape, bool), np.zeros_like(regions), spacing) is None


def test_what_is_seen_depends_on_neither_scale_nor_the_size_of_the_ventricles(rng):
    spacing = (0.6, 0.6, 3.0)
    regions = np.zeros((180, 180, 18), np.uint8)
    regions[50:70, 70:110, 6:12], regions[110:130, 70:110, 6:12] = 1, 2
    image, brain = rng.uniform(80, 120, regions.shape).astype(np.float32), np.ones(regions.shape, bool)
    seen, where = resnet152.volume(image, brain, regions, spacing)
    inside = where.cut(regions > 0) > 0.99
    assert np.median(seen[inside]) == pytest.approx(resnet152.LEVEL, abs=0.02)
    atrophied = image.copy()
    atrophied[78:102] = 300
    np.testing.assert_allclose(resnet152.volume(3 * atrophied, brain, regions, spacing)[0], seen, atol=1e-5)
