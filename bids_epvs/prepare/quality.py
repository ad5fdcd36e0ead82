"""How sure preparation is of what it found, and the warnings for the report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bids_epvs.prepare import brain, crops, intensity, planes, regions, register, structures
from bids_epvs.prepare.labels import mirrored
from bids_epvs.prepare.resample import face_areas, slice_axis

LOW_MARGIN = 1.1
LITTLE_BRAIN = 0.4
"""`Alignment.covered` below which a slab may be placed wrong though the margin is good."""
LOW_CONFIDENCE = 0.6
STRUCTURES = {
    "BasalGanglia": (11, 12, 13),
    "CentrumSemiovale": (2,),
    "Hippocampus": (17,),
    "Midbrain": (16,),
    "Thalamus": (10,),
    "OtherWhiteMatter": (2,),
}
"""Left structures whose confidence a region has (the least certain one counts)."""
SIDES = {"left": (0, 0), "right": (0, -1), "back": (1, 0), "front": (1, -1), "bottom": (2, 0), "top": (2, -1)}
"""Place of each face of a volume of the canonical frame in `face_areas`."""
CUT_MM2, PART_MM2 = 2000.0, 20.0
"""Area in a face of the volume from which the brain, or a region, is cut there."""
STRONG_BIAS = 2.5
LOW_CONTRAST = 8.0
"""Standard deviations of white matter between it and fluid, below which a T2w is called noisy; 15 is usual."""

GRAINY = 0.065
"""`intensity.grain` of the basal ganglia in the units of `crops.scan_scale`, in which counting networks see a scan,
above which counts are wrong. In simulated thick slices it is 0.022-0.026 at a signal-to-noise ratio of 30 and
0.068-0.079 at 8, where `gpunet` counted 16 and 17 EPVS of the basal ganglia of which 2 and 6 can be seen, and `unet` 38
of 78; in four real scans it is 0.041-0.054 (`benchmarks/README.md`)."""


def confidence(parcels: structures.Parcels) -> dict[str, float]:
    """Least expected Dice of the structures of each region of each side (`STRUCTURES`), by full name."""
    each = parcels.expected_dice()
    out = {}
    for region in regions.REGIONS.values():
        left = STRUCTURES[region.name]
        out[region.full_name] = min(each[i if region.side == "Left" else mirrored(i)] for i in left)
    return out


def noise_note(level: intensity.Levels) -> tuple[str, ...]:
    """A warning where fluid hardly stands out from the noise of white matter, by motion for example; else nothing."""
    contrast = (level.fluid - level.white) / max(level.noise, 1e-6)
    if contrast >= LOW_CONTRAST:
        return ()
    text = f"noisy, or moved: fluid is brighter than white matter by {contrast:.1f} standard deviations only"
    return (f"{text} (15 is usual): small EPVS cannot be seen",)


def grain_note(image: np.ndarray, found: np.ndarray, csf: np.ndarray, spacing: tuple[float, ...]) -> tuple[str, ...]:
    """A warning where the basal ganglia of a T2w (in `found`) are so noisy that counts are wrong; else nothing.

    Coils that share the work leave most noise in the middle of the head, so that white matter does not tell.
    """
    inside = np.isin(found, regions.indices("BasalGanglia"))
    share = intensity.grain(image, inside, spacing) / crops.scan_scale(image, found, csf)[1]
    if share <= GRAINY:
        return ()
    text = f"grainy: the noise of the basal ganglia is {100 * share:.1f} % of the step from white matter to fluid"
    means = "EPVS are missed, and noise is counted as EPVS, by gpunet and cnn most; counts may be far off"
    return (f"{text} (2 to 5 % is usual): {means}",)


def plane_note(spacing: tuple[float, ...]) -> tuple[str, ...]:
    """A warning where slices are thick and not axial (`resample.slice_axis`); else nothing.

    Figures: seven simulated heads with slices of 4 mm in each plane (`benchmarks/README.md`).
    """
    axis = slice_axis(spacing)
    if axis == planes.AXIAL:
        return ()
    text = f"slices are {planes.NAMES[axis]} ({spacing[axis]:.1f} mm): fewer EPVS show than on axial ones"
    fewer = "on simulated slices of 4 mm methods count up to 30 % fewer"
    return (f"{text}; {fewer}; visual ratings are of slabs of 4 mm, not of slices",)


def quality_notes(
    alignment: register.Alignment,
    variation: float,
    anatomy: brain.Anatomy,
    found: np.ndarray,
    spacing: tuple[float, ...],
    sure: Mapping[str, float],
) -> tuple[str, ...]:
    """Warnings for the report, in words with numbers."""
    notes = []
    if alignment.stripped:
        notes.append("the scan looks skull-stripped already: brain that was cut off is not measured")
    if alignment.margin < LOW_MARGIN:
        text = (
            f"fits {alignment.margin:.2f} times as well as the best pose 15 mm or 20 degrees away; 1.2 to 2.7 is usual"
        )
        notes.append(f"template alignment is doubtful ({text}): check the regions")
    if alignment.covered < LITTLE_BRAIN:
        share = f"{100 * alignment.covered:.0f} % of the brain lies in the scan"
        notes.append(f"{share}: the regions of such slabs can be far off, check them")
    if variation > STRONG_BIAS:
        notes.append(f"strong intensity inhomogeneity (field ratio {variation:.1f})")
    volume = float(anatomy.brain.sum() * np.prod(spacing) / 1000)
    areas = face_areas(anatomy.brain, spacing)
    cut = [side for side, where in SIDES.items() if areas[where] > CUT_MM2]
    if volume > 2300 or (volume < 700 and not cut):
        notes.append(f"brain with fluid of {volume:.0f} mL is outside 700-2300 mL: check the brain mask")
    part = []
    for index, region in regions.REGIONS.items():
        own = found == index
        if not own.any():
            notes.append(f"{region.full_name} is not in the scan")
        elif sure.get(region.full_name, 1.0) < LOW_CONFIDENCE:
            notes.append(f"{region.full_name} is uncertain (expected Dice {sure[region.full_name]:.2f}): check it")
        if (face_areas(own, spacing) > PART_MM2).any():
            part.append(region.full_name)
    notes += [f"the scan cuts the brain at the {name}" for name in cut]
    if part:
        notes.append(f"the scan ends within a region, which is counted in part: {', '.join(part)}")
    return tuple(notes)
