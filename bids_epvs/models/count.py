"""EPVS counts of a region by regression with a plain 3-D network (`cnn`), and what `gpunet` shares with it.

Both networks estimate a density of EPVS; its sum inside the region is the count. Only counts are needed to train them.

References
----------
Dubost et al. 2019, doi:10.1016/j.neuroimage.2018.10.026; on clinical scans: Dubost, Dünnwald et al., Automated
quantification of enlarged perivascular spaces in clinical brain MRI across sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_epvs.prepare import crops
from bids_epvs.prepare.crops import Crop
from bids_epvs.prepare.regions import REGIONS

if TYPE_CHECKING:
    import keras

COUNTED = ("BasalGanglia", "CentrumSemiovale", "Hippocampus", "Midbrain")
"""Regions that are counted."""
WIDTHS = (8, 16)
"""Filters before and after the pooling (the paper: 32 and 64)."""
MULTIPLE = 2
"""Sides of a block must be divisible by this."""
DENSITY = 0.01
"""Scale of the density: EPVS a voxel where the last layer gives 1."""


def marks(region: str, slice_mm: float) -> np.ndarray:
    """Constants that the network is told: which region, and the distance of slices; (len(COUNTED) + 1,) float32."""
    return np.array([*(float(region == name) for name in COUNTED), np.log(slice_mm / 0.8)], np.float32)


def blocks(widths: Sequence[int]) -> tuple[Any, Any, Any, Any]:
    """Inputs of both networks (image, mask, marks) and the image after the first convolution, told the marks."""
    import keras
    from keras import layers

    image, mask = keras.Input((None, None, None, 1)), keras.Input((None, None, None, 1))
    told = keras.Input((len(COUNTED) + 1,))
    x = layers.Conv3D(widths[0], 3, padding="same")(image)
    shift = layers.Reshape((1, 1, 1, widths[0]))(layers.Dense(widths[0])(told))
    return image, mask, told, layers.ReLU()(layers.BatchNormalization(momentum=0.98)(layers.Add()([x, shift])))


def convolve(x: Any, filters: int) -> Any:
    """3-D convolution, batch normalisation, ReLU."""
    from keras import layers

    x = layers.Conv3D(filters, 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.98)(x))


def density(x: Any, mask: Any, size: int) -> Any:
    """Positive density inside the mask; `size`: voxels of the image along each side of a voxel of `x`."""
    import keras
    from keras import layers

    x = layers.Conv3D(1, 1, bias_initializer=keras.initializers.Constant(-4.0), activation="softplus")(x)
    inside = layers.AveragePooling3D(size)(mask) if size > 1 else mask
    return layers.Rescaling(DENSITY * size**3)(layers.Multiply()([x, inside]))


def build(widths: tuple[int, ...] = WIDTHS) -> keras.Model:
    """`cnn`: two convolutions, max pooling, two convolutions, density at half the resolution.

    Inputs are image times soft mask (batch, X, Y, Z, 1), mask (the same shape) and `marks`; X, Y and Z must be even.
    """
    import keras
    from keras import layers

    image, mask, told, x = blocks(widths)
    x = layers.MaxPooling3D(2)(convolve(x, widths[0]))
    x = convolve(convolve(x, widths[1]), widths[1])
    return keras.Model([image, mask, told], density(x, mask, 2), name="cnn")


def inputs(
    seen: np.ndarray, mask: np.ndarray, region: str, slice_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a network sees of a whole region (X, Y, Z), a batch of one; sides padded to be divisible by `MULTIPLE`."""
    pad = [(0, -n % MULTIPLE) for n in seen.shape]
    image, inside = (np.pad(a.astype(np.float32), pad)[None, ..., None] for a in (seen, mask))
    return image, inside, marks(region, slice_mm)[None]


def sides(regions: np.ndarray, image: np.ndarray, spacing: tuple[float, float, float]) -> dict[int, Crop]:
    """Crops of every counted region and hemisphere that a scan shows, by index of `REGIONS`."""
    out = {}
    for index, region in REGIONS.items():
        if region.name in COUNTED:
            made = crops.crop(image, regions == index, spacing, mirrored=region.side == "Right")
            if made is not None:
                out[index] = made
    return out
