"""EPVS counts of a region by regression with a plain 3-D network (`cnn`), and what `gpunet` shares with it.

Both networks estimate a density of EPVS; its sum inside the region is the count. Only counts are needed to train them.

References
----------
Dubost et al. 2019, doi:10.1016/j.neuroimage.2018.10.026; on clinical scans: Dubost, Dünnwald et al., Automated
quantification of enlarged perivascular spaces in clinical brain MRI across sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_epvs.models import weights
from bids_epvs.models.spec import ModelSpec, Weights, recorded
from bids_epvs.prepare import crops, planes
from bids_epvs.prepare.crops import Crop
from bids_epvs.prepare.regions import REGIONS
from bids_epvs.records import Finding, Prediction, Prepared

if TYPE_CHECKING:
    import keras

COUNTED = ("BasalGanglia", "CentrumSemiovale", "Hippocampus", "Midbrain")
"""Regions that are counted."""
WIDTHS = (8, 16)
"""Filters before and after the pooling (the paper: 32 and 64)."""
MULTIPLE = 2
"""Sides of a block must be divisible by this."""
TOLD = len(COUNTED) + 2
"""Numbers that a network is told: `marks`."""
DENSITY = 0.03
"""Scale of the density: EPVS a voxel where the last layer gives 1."""


def marks(region: str, slice_mm: float, noise: float) -> np.ndarray:
    """Constants that the network is told: region, distance of slices, `crops.noise`; (TOLD,) float32."""
    which = (float(region == name) for name in COUNTED)
    return np.array([*which, np.log(slice_mm / 0.8), np.log(max(noise, 0.005) / 0.04)], np.float32)


def blocks(widths: Sequence[int]) -> tuple[Any, Any, Any, Any]:
    """Inputs of both networks (image, mask, marks) and the image after the first convolution, told the marks."""
    import keras
    from keras import layers

    image, mask = keras.Input((None, None, None, 1)), keras.Input((None, None, None, 1))
    told = keras.Input((TOLD,))
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

    x = layers.Conv3D(1, 1, bias_initializer=keras.initializers.Constant(-4.8), activation="softplus")(x)
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
    seen: np.ndarray, mask: np.ndarray, region: str, slice_mm: float, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a network sees of a whole region (X, Y, Z), a batch of one; sides padded to be divisible by `MULTIPLE`."""
    pad = [(0, -n % MULTIPLE) for n in seen.shape]
    image, inside = (np.pad(a.astype(np.float32), pad)[None, ..., None] for a in (seen, mask))
    return image, inside, marks(region, slice_mm, noise)[None]


def sides(
    regions: np.ndarray, image: np.ndarray, csf: np.ndarray, spacing: tuple[float, float, float]
) -> dict[int, Crop]:
    """Crops of every counted region and hemisphere that a scan shows, by index of `REGIONS`."""
    scale = crops.scan_scale(image, regions, csf)
    out = {}
    for index, region in REGIONS.items():
        if region.name in COUNTED:
            made = crops.crop(image, regions == index, spacing, scale=scale, mirrored=region.side == "Right")
            if made is not None:
                out[index] = made
    return out


def densities(
    model: keras.Model, prepared: Prepared, stored: Mapping[str, Any]
) -> dict[int, tuple[float, np.ndarray, Crop]]:
    """Count, density (EPVS a voxel of the crop, at the resolution of the network's output) and crop of each region.

    Keys are indices of `REGIONS`; counts are without bias on held-out simulated scans (`stored`: the calibration), and
    each density is scaled to add up to its count.
    """
    import keras

    known = settled(stored, prepared)
    out = {}
    shown = sides(prepared.regions, prepared.images["T2w"], prepared.csf, prepared.spacing)
    for index, own in shown.items():
        name = REGIONS[index].name
        given = inputs(own.seen, own.mask, name, prepared.spacing[2], crops.noise(own.image, own.mask))
        found = np.asarray(keras.ops.convert_to_numpy(model(list(given), training=False)))[0, ..., 0]
        total = float(found.sum(dtype=np.float64))
        number = float(calibrated(total, known.get(name, {})))
        out[index] = (number, found * np.float32(number / max(total, 1e-6)), own)
    return out


def root(count: Any) -> Any:
    """Square root of counts, whose error depends little on their size (Anscombe 1948, Biometrika 35:246)."""
    return np.sqrt(np.maximum(count, 0) + 0.375)


def calibrated(sums: Any, known: Mapping[str, float]) -> Any:
    """Counts from sums of a density: ``factor * ((shift + gain * root(sum))**2 - 3/8)``, never below 0.

    Networks say too much where there is little and too little where there is much; a straight line between square roots
    undoes it. `known` (from `train.count.calibrate`) may lack any of the three.
    """
    line = known.get("shift", 0.0) + known.get("gain", 1.0) * root(sums)
    return known.get("factor", 1.0) * np.maximum(np.square(np.maximum(line, 0)) - 0.375, 0)


def interval(count: float, spread: float) -> tuple[float, float]:
    """Ends that hold the true count with 90 % probability, if `spread` is the standard error of its square root."""
    middle, away = float(root(count)), 1.645 * spread
    low, high = max(middle - away, 0.0) ** 2 - 0.375, (middle + away) ** 2 - 0.375
    return max(0.0, float(np.floor(low + 0.5))), float(np.ceil(max(high, 0.0)))


def settled(stored: Mapping[str, Any], prepared: Prepared) -> Mapping[str, Mapping[str, float]]:
    """The calibration of each region for the slices of a session (`planes.of_kind`)."""
    return planes.of_kind(stored, planes.kind_of(prepared)) or {}


def findings(counts: Mapping[int, float], known: Mapping[str, Mapping[str, float]]) -> tuple[Finding, ...]:
    """Counts with their intervals by region and hemisphere; a hemisphere that the scan does not show is left out.

    `known` has the spreads of each region, such as from `settled`.
    """
    out = []
    for name in COUNTED:
        own = {REGIONS[k].side.lower(): n for k, n in counts.items() if REGIONS[k].name == name}
        if not own:
            continue
        spread = known.get(name, {})
        ways = {**{side: (n, spread.get("spread")) for side, n in own.items()}}
        both = spread.get("spread_both") if len(own) == 2 else spread.get("spread")
        ways["both"] = (sum(own.values()), both)
        for side, (number, error) in ways.items():
            low, high = interval(number, error) if error is not None else (None, None)
            out.append(Finding(name, side, round(number, 1), low, high))
    return tuple(out)


def predictor(
    name: str, network: Callable[..., tuple[keras.Model, Mapping[str, Any]]]
) -> Callable[[Prepared, Mapping[str, Any]], Prediction]:
    """The `predict` of a counting network; its density is handed on as saliency where it has the scan's detail."""

    def predict(prepared: Prepared, parameters: Mapping[str, Any]) -> Prediction:
        """Counts of one session from its T2w."""
        model, stored = network(parameters.get("weights"), slices=planes.kind_of(prepared))
        found = densities(model, prepared, stored)
        record = recorded(parameters)
        known = record["calibration"] = settled(stored, prepared)
        said = findings({k: n for k, (n, _, _) in found.items()}, known)
        notes = () if found else ("no region is in the scan",)
        made = None
        if name == "gpunet":
            made = np.zeros(prepared.regions.shape, np.float32)
            for values, own in ((v, c) for _, v, c in found.values()):
                part = values[tuple(slice(0, n) for n in own.mask.shape)]
                made += crops.back(part, own, made.shape) / np.float32(np.prod(crops.SPACING_MM))
        return Prediction(name, parameters=record, notes=notes, saliency=made, findings=said)

    return predict


WEIGHTS = Weights(
    file="cnn.npz",
    sha256="11c49b8df1283335a42d3dfbb05d9ad0aff46f4541ec5465ed9bce09abd3035c",
    licence="Apache-2.0",
    trained_on="simulated T2w of twelve label maps (see cnn.json beside the weights)",
)
CITATION = (
    "Dubost F, Yilmaz P, Adams H, et al. Enlarged perivascular spaces in brain MRI: automated quantification in four "
    "regions. Neuroimage 2019;185:534-544."
)
COMMON = (
    "Trained on simulated images of real label maps, not on visual scores; not validated on scored scans.",
    "One network for all regions and both hemispheres (the right one mirrored), told which region it sees, the "
    "distance of slices and how noisy it is.",
    "The count is the sum of a positive density inside the region instead of a dense layer.",
    "Trained on blocks of 24 x 24 x 19 mm of a region, often cut by a random plane, and on the counts of their cells "
    "of 4 x 4 x 3 mm, which simulation knows; training on visual scores uses one count a region, as the paper does.",
    "Intensities around the region's median are stretched before they are multiplied with the soft mask.",
    "The loss compares square roots of counts.",
    "8 and 16 filters instead of 32 and 64, batch normalisation; intensities scaled from white matter to fluid of the "
    "scan and not between the extremes of the region.",
    "Trained on isotropic scans and thick axial slices; counts on coronal and sagittal ones are calibrated apart.",
    "The centrum semiovale is the white matter above the lateral ventricles, not the neighbourhood of one slice.",
)
network = weights.network_of("cnn", build, WEIGHTS)


SPEC = ModelSpec(
    name="cnn",
    title="Counts by regression with a plain 3-D network",
    doi="10.1016/j.neuroimage.2018.10.026",
    citation=CITATION,
    task="count",
    suffixes=("T2w",),
    regions=COUNTED,
    predict=predictor("cnn", network),
    spacing=crops.SPACING_MM,
    normalise="white matter becomes 0, fluid 1",
    build=build,
    network=network,
    weights=WEIGHTS,
    outputs=("findings",),
    deviations=COMMON,
)
