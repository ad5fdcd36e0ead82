"""EPVS counts of a region with a map of where they are (`gpunet`): a small 3-D U-Net trained on counts alone.

References
----------
Dubost et al. 2020, Weakly supervised object detection with 2D and 3D regression neural networks, Medical Image Analysis
65:101767, doi:10.1016/j.media.2020.101767.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bids_epvs.models import count, weights
from bids_epvs.models.spec import ModelSpec, Weights
from bids_epvs.prepare import crops

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


WEIGHTS = Weights(
    file="gpunet.npz",
    sha256="19fee9c2d486645a64c2ed3a49650a605ac32c18c5abe0061f574176d4093422",
    licence="Apache-2.0",
    trained_on="simulated T2w of twelve label maps (see gpunet.json beside the weights)",
)
network = weights.network_of("gpunet", build, WEIGHTS)


SPEC = ModelSpec(
    name="gpunet",
    title="Counts by regression with attention maps (GP-UNet)",
    doi="10.1016/j.media.2020.101767",
    citation=(
        "Dubost F, Adams H, Yilmaz P, et al. Weakly supervised object detection with 2D and 3D regression neural "
        "networks. Med Image Anal 2020;65:101767."
    ),
    task="count",
    suffixes=("T2w",),
    regions=count.COUNTED,
    predict=count.predictor("gpunet", network),
    spacing=crops.SPACING_MM,
    normalise="white matter becomes 0, fluid 1",
    build=build,
    network=network,
    weights=WEIGHTS,
    outputs=("mask", "instances", "saliency", "findings"),
    explain="attention",
    saliency="attention: EPVS per mm3; its sum times the volume of a voxel is the count",
    deviations=(
        *count.COMMON,
        "The attention map is the density itself, the softplus of the linear combination of the last features.",
        "EPVS marked are the highest peaks of the map, as many as are counted in each region and hemisphere.",
    ),
)
