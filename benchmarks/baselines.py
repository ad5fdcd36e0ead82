"""What a user could take instead of a network, tuned on training brains: Frangi, Jerman, Haar-like features + forest.

Used by ``segmentation.py --tune EXAMPLES``; each function gives a response for each voxel of the regions, on whose
threshold lesions depend. Thresholds maximise the mean F1 of lesions over training brains, for thin and thick slices
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from bids_epvs.evaluate import metrics
from bids_epvs.measure.lesions import instances
from bids_epvs.models import frangi
from bids_epvs.prepare.intensity import levels
from bids_epvs.prepare.regions import WHITE_MATTER
from bids_epvs.prepare.resample import thickness
from bids_epvs.records import Prepared

Response = Callable[[Prepared], np.ndarray]
FRACTIONS = np.geomspace(1e-3, 0.9, 18)
TAU = 0.5
HAAR_MM = (0.6, 1.0, 1.6, 2.6)


def flat(session: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """T2w with white matter 0 and fluid 1, and where EPVS are looked for."""
    image = session.images["T2w"]
    white = np.isin(session.regions, WHITE_MATTER) & ~session.csf
    inside = frangi.search_space(session, frangi.PARAMETERS["border_mm"])
    return frangi.normalised(image, levels(image, white, session.csf)), inside


def vesselness(session: Prepared) -> np.ndarray:
    """Frangi's response, 3-D or in slices, as the app has it, without its thresholds."""
    image, inside = flat(session)
    p = frangi.PARAMETERS
    common = {"beta": p["beta"], "c": p["c"]}
    if frangi.is_thick(session.spacing, p["thick_ratio"]):
        return frangi.vesselness_2d(image, inside, session.spacing, scales=p["scales_2d_mm"], **common)
    return frangi.vesselness_3d(image, inside, session.spacing, scales=p["scales_3d_mm"], alpha=p["alpha"], **common)


def jerman(session: Prepared) -> np.ndarray:
    """Jerman's response (2016, doi:10.1109/TMI.2016.2550102), tau 0.5, in 3-D or in slices, maximum over scales."""
    image, inside = flat(session)
    thick = frangi.is_thick(session.spacing, frangi.PARAMETERS["thick_ratio"])
    best = np.zeros(int(inside.sum()), np.float32)
    for sigma in frangi.PARAMETERS["scales_2d_mm" if thick else "scales_3d_mm"]:
        width = [sigma / s for s in session.spacing]
        if thick:
            width[2] = 0
        smooth = ndimage.gaussian_filter(image, width)

        def second(a: int, b: int, smooth: np.ndarray = smooth, sigma: float = sigma) -> np.ndarray:
            return frangi._second(smooth, a, b, session.spacing)[inside] * sigma**2

        if thick:
            _, large = frangi.eigenvalues_2d(second(0, 0), second(1, 1), second(0, 1))
            middle, large = -large, -large
        else:
            pairs = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}
            _, middle, large = frangi.eigenvalues_3d({k: second(*v) for k, v in pairs.items()})
            middle, large = -middle, -large
        bound = TAU * float(large.max(initial=0))
        rho = np.where((large > 0) & (large <= bound), bound, np.maximum(large, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = middle**2 * (rho - middle) * (3 / (middle + rho)) ** 3
        value = np.where((middle >= rho / 2) & (rho > 0), 1.0, value)
        value = np.where((middle <= 0) | (rho <= 0), 0.0, value)
        # strength keeps faint noise apart, as Jerman's measure is the same for every contrast
        best = np.maximum(best, np.nan_to_num(value * np.minimum(1, np.maximum(middle, 0) / 0.1)).astype(np.float32))
    out = np.zeros(image.shape, np.float32)
    out[inside] = np.clip(best, 0, 1)
    return out


def haar(session: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Haar-like features (Park et al. 2016, doi:10.1016/j.neuroimage.2016.03.076) of the voxels looked at, (n, k).

    Differences of means over neighbouring boxes of four sizes: centre minus surround, and both sides of the voxel along
    each axis; the intensity itself, and the mean of its surround.
    """
    image, inside = flat(session)
    thick = frangi.is_thick(session.spacing, frangi.PARAMETERS["thick_ratio"])
    columns = [image[inside]]
    for mm in HAAR_MM:
        size = [max(1, round(mm / s) | 1) for s in session.spacing]
        if thick:
            size[2] = 1
        box = ndimage.uniform_filter(image, size)
        wide = ndimage.uniform_filter(image, [3 * n if n > 1 or not thick or a < 2 else 1 for a, n in enumerate(size)])
        columns += [(box - wide)[inside], wide[inside]]
        for axis in range(3):
            step = max(1, (size[axis] + 1) // 2)
            before, behind = np.roll(box, step, axis), np.roll(box, -step, axis)
            columns += [(box - (before + behind) / 2)[inside], np.abs(before - behind)[inside]]
    return np.stack(columns, axis=1).astype(np.float32), inside


@dataclass
class Forest:
    """Random forests on Haar-like features, one for thin and one for thick slices."""

    forests: dict[str, RandomForestClassifier] = field(default_factory=dict)

    def fit(self, brains: Sequence[tuple[Prepared, metrics.Truth]], *, seed: int = 1) -> Forest:
        """Train on all EPVS voxels and ten times as many others of each brain."""
        rng = np.random.default_rng(seed)
        for kind in ("thin", "thick"):
            rows, targets = [], []
            for session, known in (b for b in brains if thickness(b[0].spacing) == kind):
                features, inside = haar(session)
                epvs = known.mask[inside]
                other = np.flatnonzero(~epvs)
                chosen = np.r_[np.flatnonzero(epvs), rng.choice(other, min(len(other), 10 * int(epvs.sum()) + 500))]
                rows.append(features[chosen])
                targets.append(epvs[chosen])
            forest = RandomForestClassifier(60, max_depth=14, min_samples_leaf=4, n_jobs=-1, random_state=seed)
            self.forests[kind] = forest.fit(np.concatenate(rows), np.concatenate(targets))
        return self

    def __call__(self, session: Prepared) -> np.ndarray:
        """Share of the trees that say EPVS."""
        features, inside = haar(session)
        out = np.zeros(inside.shape, np.float32)
        out[inside] = self.forests[thickness(session.spacing)].predict_proba(features)[:, 1]
        return out


def lesions(response: np.ndarray, threshold: float, session: Prepared, limits: dict[str, float]) -> np.ndarray:
    """Instances of a thresholded response."""
    return instances((response >= threshold) & (session.regions > 0), session.voxel_mm3, **limits)


def tuned(
    response: Response, brains: Sequence[tuple[Prepared, metrics.Truth]], limits: dict[str, float]
) -> dict[str, float]:
    """Threshold with the best mean F1 of lesions, for thin and thick slices."""
    out = {}
    for kind in ("thin", "thick"):
        scores = []
        for session, known in (b for b in brains if thickness(b[0].spacing) == kind):
            made = response(session)
            where = session.regions > 0
            scores.append(
                [
                    metrics.detection(known, lesions(made, t, session, limits), session.spacing).inside(where).f1
                    for t in FRACTIONS
                ]
            )
        out[kind] = float(FRACTIONS[int(np.argmax(np.mean(scores, axis=0)))])
    return out
