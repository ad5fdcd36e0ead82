"""Rows of all sessions to the tables of an evaluation: means with standard errors, agreement of counts and volumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from scipy import stats

from bids_epvs.measure import agreement

MEANS = (
    *("sensitivity", "precision", "magnitude_accuracy", "f1", "dice", "volumetric_similarity", "auc", "hausdorff_mm"),
    *("surface_1mm", "mahalanobis", "ece", "interval_coverage", "valdo_dice", "valdo_volume_mm3", "valdo_count"),
)
WRONG_PER_IMAGE = (0.5, 1.0, 1.5, 2.0, 5.0, 10.0)
"""Wrong marks a region of an image at which hits are counted."""
COMPARED = {"count": ("count_truth", "count_found"), "volume": ("volume_truth_mm3", "volume_found_mm3")}
SPLITS = ("resolution", "mimics", "contrast")
DESCRIPTIONS = {
    "sensitivity": "share of EPVS whose marker (voxel nearest to the centre of mass) has a voxel found within 1.5 mm",
    "precision": "share of lesions found whose marker has an EPVS within 1.5 mm",
    "magnitude_accuracy": "sqrt(sensitivity^2 + precision^2), at most 1.414",
    "f1": "2 TP / (2 TP + FP + FN) over lesions",
    "dice": "Dice of voxels",
    "volumetric_similarity": "1 - |difference of volumes| / sum of volumes",
    "auc": "area under the ROC curve over the voxels of the region",
    "hausdorff_mm": "largest distance of a voxel of one mask to the other",
    "surface_1mm": "share of both surfaces within 1 mm of the other",
    "mahalanobis": "distance of the mean positions in units of the pooled covariance",
    "ece": "expected calibration error of the probability of voxels (ten bins)",
    "interval_coverage": "share of sessions whose true count lies in the 90 % interval",
    "valdo_dice": "mean Dice of the EPVS that are touched",
    "valdo_volume_mm3": "absolute difference of volumes",
    "valdo_count": "absolute difference of counts",
    "icc_count": "ICC(2,1) of counts over sessions",
    "icc_volume": "ICC(2,1) of volumes over sessions",
    "ccc_count": "Lin's concordance of counts",
    "ccc_volume": "Lin's concordance of volumes",
    "pearson_count": "correlation of counts",
    "pearson_volume": "correlation of volumes",
    "bias_count": "mean of found - truth",
    "bias_volume": "mean of found - truth, mm3",
}


REGIONAL = {
    "truth": "what counts are compared with: all EPVS, or those that can be seen (they fill 30 % of some voxel)",
    "measure": "volumes: mask, that of the mask; expected, the sum of the shares that the method expects of each voxel",
    "mean_truth": "mean of what the EPVS fill (simulated truth: shares of voxels; else the mask), mm3",
    "mean_found": "mean of what was found, mm3",
    "pearson": "correlation with the truth",
    "mae": "mean absolute error",
    "icc": "ICC(2,1) with the truth",
    "ccc": "Lin's concordance with the truth",
    "bias": "mean of found - truth",
    "limit_low": "lower limit of agreement",
    "limit_high": "upper limit of agreement",
    "coverage": "share of sessions whose true count lies in the 90 % interval",
    "t": "Williams' t",
    "p": "two-sided p, n - 3 degrees of freedom",
    "r_a": "correlation of the first method with the truth",
    "r_b": "correlation of the second method with the truth",
    "accuracy": "share of sessions with the true grade or class (exact interval)",
    "p_no_information": "one-sided p against always saying the most frequent answer",
    "kappa": "Cohen's kappa with quadratic weights",
    "ac2": "Gwet's AC2 with ordinal weights",
    "spearman": "rank correlation of grades",
    "rps": "ranked probability score of grades, 0 is perfect",
    "auc": "area under the ROC curve (interval of DeLong)",
    "sensitivity": "share of the severe that are called so",
    "specificity": "share of the mild that are called so",
    "ppv": "share of those called severe that are",
    "npv": "share of those called mild that are",
    "f1": "2 TP / (2 TP + FP + FN)",
    "brier": "mean squared error of the probability",
    "ece": "expected calibration error (five bins): of the probability of severe, or of that of the grade said",
    "predicted": "mean probability of moderate to severe EPVS",
    "observed": "share of sessions in which they are",
    "epvs": "EPVS that show, in all images",
    **{f"hit_at_{k:g}": f"share of EPVS hit at {k:g} wrong marks a region of an image" for k in WRONG_PER_IMAGE},
}
"""Columns of the tables of counts, volumes, grades, severity and marks."""


def described(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Data dictionary of a table of `REGIONAL` columns."""
    return {n: {"Description": REGIONAL[n]} for n in names if n in REGIONAL}


def parts(sessions: pd.DataFrame, splits: Iterable[str] = SPLITS) -> Iterator[tuple[str, pd.DataFrame]]:
    """All sessions (``all``), then those with each value of the columns in which they differ (``column: value``)."""
    yield "all", sessions
    for column in splits:
        values = sorted(set(sessions[column]))
        if len(values) > 1:
            for value in values:
                yield f"{column}: {value}", sessions[sessions[column] == value]


def summary(sessions: pd.DataFrame) -> pd.DataFrame:
    """A row for each method, region and part of the sessions: mean and standard error of each measure, agreement.

    Parameters
    ----------
    sessions : DataFrame
        Rows of `cases.measure`.

    Returns
    -------
    DataFrame
        ``part`` is ``all``, or a value of `SPLITS` where the sessions differ in it.
    """
    out = []
    for part, own in parts(sessions):
        for (model, region), rows in own.groupby(["model", "region"], sort=False):
            out.append({"part": part, "model": model, "region": region, "n": len(rows), **_figures(rows)})
    return pd.DataFrame(out)


def reliability(bins: pd.DataFrame) -> pd.DataFrame:
    """Mean probability and share of EPVS in each bin over all sessions: model, bin, n, predicted, observed."""
    total = bins.groupby(["model", "bin"], sort=False)[["n", "predicted", "observed"]].sum().reset_index()
    total = total[total["n"] > 0].copy()
    for column in ("predicted", "observed"):
        total[column] = (total[column] / total["n"]).round(5)
    return total


def _figures(rows: pd.DataFrame) -> dict[str, float]:
    """Means, standard errors and agreement over sessions."""
    out: dict[str, float] = {}
    for name in MEANS:
        values = rows[name].dropna().to_numpy(float)
        out[name] = float(values.mean()) if values.size else float("nan")
        out[f"{name}_se"] = float(stats.sem(values)) if values.size > 1 else float("nan")
    for name, (truth, found) in COMPARED.items():
        x, y = rows[found].to_numpy(float), rows[truth].to_numpy(float)
        absolute = agreement.icc(np.column_stack([x, y]))
        out |= {f"icc_{name}": absolute.value, f"icc_{name}_low": absolute.low, f"icc_{name}_high": absolute.high}
        out[f"ccc_{name}"] = agreement.ccc(x, y).value
        out[f"pearson_{name}"] = agreement.pearson(x, y)
        limits = agreement.bland_altman(x, y)
        out |= {f"bias_{name}": limits.bias.value, f"limit_low_{name}": limits.low, f"limit_high_{name}": limits.high}
    return out
