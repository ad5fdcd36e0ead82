"""EPVS counts of a region with a map of where they are (`gpunet`): a small 3-D U-Net trained on counts alone.

References
----------
Dubost et al. 2020, Weakly supervised object detection with 2D and 3D regression neural networks, Medical Image Analysis
65:101767, doi:10.1016/j.media.2020.101767.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bids_epvs.models import count

if TYPE_CHECKING:
    import keras

WIDTHS = count.WIDTHS


def build(widths: tuple[int, ...] = WIDTHS) -> keras.Model:
    """Two convolutions, pooling, two convolutions, upsampling, skip, two convolutions, density at full resolution.

    Inputs as those of `count.build`; the attention map is the linear combination of the last layer's features whose
    sum inside the mask is the count.
    """
    import keras
    from keras import layers

    image, mask, told, x = count.blocks(widths)
    skip = count.convolve(x, widths[0])
    x = count.convolve(count.convolve(layers.MaxPooling3D(2)(skip), widths[1]), widths[1])
    x = layers.Concatenate()([layers.UpSampling3D(2)(x), skip])
    x = count.convolve(count.convolve(x, widths[0]), widths[0])
    return keras.Model([image, mask, told], count.density(x, mask, 1), name="gpunet")
