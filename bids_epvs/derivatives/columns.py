"""What the columns of the tables mean: the data dictionaries beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def column(text: str, units: str | None = None, levels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """An entry of a data dictionary (the JSON beside a TSV)."""
    out: dict[str, Any] = {"Description": text}
    if units:
        out["Units"] = units
    if levels:
        out["Levels"] = dict(levels)
    return out


LESIONS: dict[str, Any] = {
    "model": column("method"),
    "index": column("value of this EPVS in the instances image"),
    "region": column("region that holds most of its voxels; ties go to the lowest index"),
    "hemisphere": column("left or right"),
    **{f"{a}_mm": column(f"centroid, scanner {a} (RAS)", "mm") for a in "xyz"},
    **{a: column("centroid, voxel index in the file of the T2w (or what stands for it), from 0") for a in "ijk"},
    "volume_mm3": column("volume", "mm3"),
    "length_mm": column("longest path along the skeleton", "mm"),
    "width_mean_mm": column("diameter of the cylinder of the same volume and length", "mm"),
    "width_max_mm": column("diameter of the largest inscribed ball", "mm"),
    "linearity": column("(l1 - l2) / l1 of the principal spreads, 0-1"),
    **{f"orientation_{a}": column(f"unit vector of the long axis, scanner {a} (RAS)") for a in "xyz"},
    "probability": column("mean response of the method inside (a probability where the method is calibrated)"),
}
SUMMARY: dict[str, Any] = {
    "model": column("method"),
    "region": column("region"),
    "hemisphere": column("left, right or both"),
    "count": column("number of EPVS"),
    "count_low": column("lower end of the 90 % interval of the count"),
    "count_high": column("upper end; errors of regions are in it for networks of the package without -d"),
    "volume_mm3": column("volume of EPVS", "mm3"),
    "volume_fraction": column("volume of EPVS over volume of the region"),
    "volume_expected_mm3": column(
        "sum of the calibrated shares that EPVS fill of each voxel, in mm3: partial volume is in it, unlike in masks",
        "mm3",
    ),
    "rating": column("visual grade; for both hemispheres the higher one"),
    "rating_scale": column("scale of the rating"),
    **{f"p_{k}": column(f"probability of grade {k}") for k in range(5)},
    "slice": column(
        "axial slice with the most EPVS, from 0 at the bottom; where slices are thick and coronal or sagittal, the "
        "middle of the axial slab of 4 mm with the most"
    ),
    "slice_count": column("EPVS in that slice or slab; the rating of basal ganglia and centrum semiovale follows"),
    "adams_count": column("EPVS in the slice, or structure, that Adams' protocol names"),
    "region_volume_mm3": column("volume of the region", "mm3"),
}

IDENTIFIERS: dict[str, Any] = {"participant_id": column("subject"), "session_id": column("session")}
_SESSIONS = column("sessions that count")
_PARTICIPANTS = column("subjects that count")

_QUARTILES = {"median": "median", "q1": "first quartile", "q3": "third quartile"}


def interval(name: str, text: str) -> dict[str, Any]:
    """Entries of an estimate and the ends of its 95 % interval."""
    return {
        name: column(text),
        f"{name}_low": column(f"lower end of the 95 % interval of {name}"),
        f"{name}_high": column(f"upper end of the 95 % interval of {name}"),
    }


DESCRIPTIVES: dict[str, Any] = {
    "by": column("column of the dataset by which sessions are grouped; all: not grouped"),
    "level": column("value of that column"),
    **{k: SUMMARY[k] for k in ("model", "region", "hemisphere")},
    "sessions": _SESSIONS,
    "participants": _PARTICIPANTS,
    **{f"count_{k}": column(f"{t} of the number of EPVS") for k, t in _QUARTILES.items()},
    "count_min": column("smallest number of EPVS"),
    "count_max": column("largest number of EPVS"),
    **{f"volume_mm3_{k}": column(f"{t} of the volume of EPVS", "mm3") for k, t in _QUARTILES.items()},
    **{f"volume_fraction_{k}": column(f"{t} of volume of EPVS over volume of region") for k, t in _QUARTILES.items()},
    **{f"grade_{k}": column(f"sessions with grade {k}") for k in range(5)},
    **{f"asymmetry_{k}": column(f"{t} of (left - right) / (left + right) counts") for k, t in _QUARTILES.items()},
    "asymmetry_p": column("Wilcoxon signed-rank test of left against right counts, two-sided"),
}
AGREEMENT: dict[str, Any] = {
    "kind": column("methods: two methods; human: a method and a rater; raters: two raters"),
    "region": SUMMARY["region"],
    "value": column(
        "what is compared: count, volume_mm3, rating (Potter, 0-4) or severity (0 mild, 1 moderate to severe)"
    ),
    "a": column("first method or rater"),
    "b": column("second method or rater"),
    "n": _PARTICIPANTS,
    **interval("icc", "intraclass correlation ICC(2,1), absolute agreement (Shrout & Fleiss 1979)"),
    **interval("ccc", "Lin's concordance correlation"),
    "pearson": column("Pearson correlation"),
    "mae": column("mean absolute difference"),
    **interval("bias", "mean of a - b (Bland & Altman 1986)"),
    "limit_low": column("lower limit of agreement"),
    "limit_high": column("upper limit of agreement"),
    **interval("slope", "slope of a - b on their mean; not 0 where the difference grows with the size"),
    "slope_p": column("p of that slope"),
    "exact": column("share of equal grades"),
    **interval("kappa", "Cohen's kappa, quadratic weights"),
    **interval("ac2", "Gwet's AC2, ordinal weights"),
}
WILLIAMS: dict[str, Any] = {
    "region": SUMMARY["region"],
    "value": AGREEMENT["value"],
    "rater": column("the rater with whom both methods are correlated"),
    "a": column("first method"),
    "b": column("second method"),
    "n": _PARTICIPANTS,
    "r_a": column("Pearson correlation of the first method with the rater"),
    "r_b": column("Pearson correlation of the second method with the rater"),
    "r_ab": column("Pearson correlation of the two methods"),
    "t": column("Williams' t (Steiger 1980)"),
    "p": column("two-sided p, n - 3 degrees of freedom"),
}
REPEATABILITY: dict[str, Any] = {
    **{k: SUMMARY[k] for k in ("model", "region")},
    "value": AGREEMENT["value"],
    "n": column("subjects with at least two sessions; the first two count"),
    **interval("icc", "intraclass correlation ICC(1,1) of the sessions of a subject"),
    "within_sd": column("standard deviation within subjects"),
    "smallest_detectable_change": column("1.96 sqrt(2) within_sd: a larger change exceeds measurement error"),
    **interval("change", "mean of second - first session"),
}
ASSOCIATIONS: dict[str, Any] = {
    "formula": column("what was asked"),
    **{k: SUMMARY[k] for k in ("model", "region")},
    "regression": column("kind of regression"),
    "term": column("covariate; C(sex)[T.M] is M against the reference level"),
    "effect": column("what value says: rate ratio, odds ratio or slope, per unit of the covariate"),
    **interval("value", "the effect"),
    "p": column("two-sided p of no effect"),
    "q": column("p corrected over regions for the false discovery rate (Benjamini & Hochberg 1995)"),
    "n": column("rows that count (no missing value)"),
    "participants": _PARTICIPANTS,
    "check": column("residual check"),
    "check_p": column("its p; small values cast doubt on the regression"),
    "dispersion": column(
        "Pearson chi-square over degrees of freedom (near 1 where the regression describes the spread)"
    ),
    "note": column("why there is no result, or what to heed"),
}
QC: dict[str, Any] = {
    **IDENTIFIERS,
    "verdict": column("ok, check, or failed"),
    "largest_z": column("largest absolute robust z of log(count + 1) and region volumes (Iglewicz & Hoaglin 1993)"),
    "outliers": column("region and method whose count, or region whose volume, has an absolute robust z above 3.5"),
    "disagreements": column("regions where grades of two methods differ by two or more"),
    "missing_regions": column("regions without a value"),
    "warnings": column("quality warnings of the participant level"),
    "reason": column("why there are no results"),
}
