"""What methods say of a region as a whole (counts, grades, severity) against the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bids_epvs.evaluate.cases import Case, Known, summary
from bids_epvs.evaluate.tables import parts
from bids_epvs.measure import agreement, classification, lesions, ratings
from bids_epvs.measure.ratings import GRADES, SEVERITY
from bids_epvs.prepare.regions import NAMES, REGIONS, indices

CHANCES = [f"p_{k}" for k in range(GRADES)]
COLUMNS = [
    *("label", "resolution", "model", "region", "count_truth", "count_visible", "count", "count_low", "count_high"),
    *("grade_truth", "severe_truth", "rating", "rating_scale", *CHANCES),
    *("volume_truth_mm3", "volume_mm3", "volume_expected_mm3"),
]
"""Of the rows of `rows`."""
TRUTHS = {"all": "count_truth", "visible": "count_visible"}
"""What counts are compared with: every EPVS, and, where the truth was simulated, those that can be seen."""
VOLUMES = {"mask": "volume_mm3", "expected": "volume_expected_mm3"}
"""What is compared with the volume that EPVS fill: that of the mask, and the sum of calibrated shares."""
NOTHING = float("nan")


def of_truth(case: Case, known: Known) -> pd.DataFrame:
    """Counts and grades of the truth, both hemispheres together: its own summary table, or from its lesions."""
    table = summary(case.truth, case.label)
    if table is None:
        found = lesions.describe(
            known.truth.lesions, known.regions, known.spacing, to_world=known.frame.affine, to_native_voxel=np.eye(4)
        )
        table = ratings.summarise(
            found,
            known.truth.lesions,
            known.regions,
            voxel_mm3=float(np.prod(known.spacing)),
            slices={},
            names=NAMES,
            depth=ratings.slab(known.spacing),
        )
    return table[table["hemisphere"] == "both"].set_index("region")


def visible(known: Known) -> Counter[str] | None:
    """Number of EPVS that can be seen (`lesions.VISIBLE`) by region; None where nobody says where each one is."""
    if not known.region:
        return None
    return Counter(known.region[int(k)] for k in known.truth.expected if int(k) in known.region)


def filled(known: Known) -> dict[str, float]:
    """Volume (mm3) that the EPVS of the truth fill in each region: their shares, or the mask without them."""
    voxels = np.bincount(known.regions.ravel(), known.truth.filled.ravel(), max(REGIONS) + 1)
    voxel_mm3 = float(np.prod(known.spacing))
    return {name: float(voxels[list(indices(name))].sum()) * voxel_mm3 for name in NAMES}


def rows(case: Case, known: Known, resolution: str, models: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A row for each method and region that the summary table of the results holds, `COLUMNS`."""
    table = summary(case.results, case.label)
    if table is None:
        return
    truth, seen, volume = of_truth(case, known), visible(known), filled(known)
    table = table[(table["hemisphere"] == "both") & table["model"].isin(list(models))]
    for row in table.to_dict("records"):
        if row["region"] not in truth.index:
            continue
        actual = truth.loc[row["region"]]
        grade = actual["rating"]
        severe = float(grade >= ratings.SEVERE_GRADE) if pd.notna(grade) else NOTHING
        about = {"label": case.label, "resolution": resolution, "count_truth": actual["count"], "grade_truth": grade}
        about["count_visible"] = NOTHING if seen is None or pd.isna(actual["count"]) else seen[row["region"]]
        about["volume_truth_mm3"] = volume.get(str(row["region"]), NOTHING)
        known_of: dict[str, Any] = {**{str(k): v for k, v in row.items()}, **about, "severe_truth": severe}
        yield {c: known_of.get(c, NOTHING) for c in COLUMNS}


def against(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Part of the sessions, key of `TRUTHS`, and the rows with a count and that truth (``true``)."""
    for part, own in parts(table[table["count"].notna()], ("resolution",)):
        for name, column in TRUTHS.items():
            known = own[own[column].notna()]
            if len(known):
                yield part, name, known.assign(true=known[column].astype(float))


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of counts with the truth by part, method and region (form of tables 2 and 3 of Dubost et al.).

    Against every EPVS (``truth`` is ``all``) and, where it is known, against those that can be seen (``visible``).
    """
    out = []
    for part, name, known in against(table):
        for (model, region), group in known.groupby(["model", "region"], sort=False):
            found, true = group["count"].to_numpy(float), group["true"].to_numpy(float)
            low, high = group["count_low"].to_numpy(float), group["count_high"].to_numpy(float)
            covered = (low <= true) & (true <= high)
            sure = np.isfinite(low)
            row = {"part": part, "truth": name, "model": model, "region": region, "n": len(group)}
            row |= agreeing(found, true)
            out.append({**row, "coverage": float(covered[sure].mean()) if sure.any() else NOTHING})
    return pd.DataFrame(out)


def agreeing(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Correlation, mean error, ICC and limits of agreement of what was found with the truth."""
    icc, limits = agreement.icc(np.column_stack([found, true])), agreement.bland_altman(found, true)
    return {
        "pearson": agreement.pearson(found, true),
        "mae": float(np.abs(found - true).mean()),
        **{"icc": icc.value, "icc_low": icc.low, "icc_high": icc.high},
        "ccc": agreement.ccc(found, true).value,
        **{"bias": limits.bias.value, "limit_low": limits.low, "limit_high": limits.high},
    }


def volumes(table: pd.DataFrame) -> pd.DataFrame:
    """Agreement of volumes (mm3) with what the EPVS fill, by part, method and region, for each of `VOLUMES`."""
    out = []
    for part, own in parts(table, ("resolution",)):
        for name, column in VOLUMES.items():
            there = own[own[column].notna() & own["volume_truth_mm3"].notna()]
            for (model, region), group in there.groupby(["model", "region"], sort=False):
                found, true = (group[c].to_numpy(float) for c in (column, "volume_truth_mm3"))
                row = {"part": part, "measure": name, "model": model, "region": region, "n": len(group)}
                out.append({**row, "mean_truth": true.mean(), "mean_found": found.mean(), **agreeing(found, true)})
    return pd.DataFrame(out)


def williams(table: pd.DataFrame) -> pd.DataFrame:
    """Whether counts of two methods correlate with the truth unlike, by part, truth and region (Williams' test)."""
    out = []
    for part, name, known in against(table):
        for region, group in known.groupby("region", sort=False):
            wide = group.pivot(index="label", columns="model", values="count")
            true = group.drop_duplicates("label").set_index("label")["true"].reindex(wide.index)
            for a, b in combinations(wide.columns, 2):
                both = wide[[a, b]].assign(truth=true).dropna().to_numpy(float)
                if len(both) < 4 or (np.ptp(both, axis=0) == 0).any():
                    continue
                r = np.corrcoef(both.T)
                t, p = agreement.williams(r[0, 2], r[1, 2], r[0, 1], len(both))
                row = {"part": part, "truth": name, "region": region, "a": a, "b": b, "n": len(both)}
                out.append({**row, "r_a": r[0, 2], "r_b": r[1, 2], "t": t, "p": p})
    columns = ["part", "truth", "region", "a", "b", "n", "r_a", "r_b", "t", "p"]
    return pd.DataFrame(out, columns=columns)


def grades(table: pd.DataFrame) -> pd.DataFrame:
    """Potter grades against the truth by part, method and region."""
    out = []
    rated = table[table["rating"].notna() & table["grade_truth"].notna() & (table["rating_scale"] != SEVERITY)]
    for part, own in parts(rated[rated["region"].isin(ratings.GRADED)], ("resolution",)):
        for (model, region), group in own.groupby(["model", "region"], sort=False):
            said, true = group["rating"].to_numpy(int), group["grade_truth"].to_numpy(int)
            right = classification.proportion(int((said == true).sum()), len(true))
            kappa = agreement.weighted_kappa(true, said, categories=GRADES)
            row = {"part": part, "model": model, "region": region, "n": len(group)}
            row |= {"accuracy": right.value, "accuracy_low": right.low, "accuracy_high": right.high}
            row["p_no_information"] = classification.better_than_guessing(int((said == true).sum()), true)
            row |= {"kappa": kappa.value, "kappa_low": kappa.low, "kappa_high": kappa.high}
            row["ac2"] = agreement.gwet_ac2(true, said, categories=GRADES).value
            varied = len(said) > 2 and np.ptp(said) > 0 and np.ptp(true) > 0
            row["spearman"] = float(stats.spearmanr(said, true).statistic) if varied else NOTHING
            chances = group[CHANCES].to_numpy(float)
            sure = np.isfinite(chances).all(axis=1)
            best, hit = chances[sure].max(axis=1), chances[sure].argmax(axis=1) == true[sure]
            row["ece"] = agreement.calibration_error(
                agreement.reliability(hit.astype(float), best, bins=classification.BINS)
            )
            row["rps"] = classification.ranked_probability_score(true[sure], chances[sure]) if sure.any() else NOTHING
            out.append(row)
    return pd.DataFrame(out)


def severe_chances(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that say mild or severe, with the probability of severe (``said``): from a severity, or from the grade."""
    severe = ratings.severe(table)
    chance = table["p_1"].where(table["rating_scale"] == SEVERITY, table[CHANCES[ratings.SEVERE_GRADE :]].sum(axis=1))
    chance = chance.where(table["p_0"].notna(), severe)
    return table.assign(said=chance)[severe.notna() & table["severe_truth"].notna()]


def severity(table: pd.DataFrame) -> pd.DataFrame:
    """Mild against severe by part, method and region: from a severity, or from whether the grade says so."""
    out = []
    for part, own in parts(severe_chances(table), ("resolution",)):
        for (model, region), group in own.groupby(["model", "region"], sort=False):
            figures = classification.binary(group["severe_truth"].to_numpy(int), group["said"].to_numpy(float))
            out.append({"part": part, "model": model, "region": region, **figures})
    return pd.DataFrame(out)


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """Predicted and observed share of severe sessions in bins of the probability (reliability), by method and region.

    Methods that give no probability are left out.
    """
    out = []
    known = severe_chances(table)
    for (model, region), own in known[known["p_0"].notna()].groupby(["model", "region"], sort=False):
        bins = agreement.reliability(
            own["severe_truth"].to_numpy(float), own["said"].to_numpy(float), bins=classification.BINS
        )
        for k, (n, predicted, observed) in enumerate(bins):
            if n:
                ends = f"{k / classification.BINS:g}-{(k + 1) / classification.BINS:g}"
                row = {"model": model, "region": region, "bin": ends, "n": int(n)}
                out.append({**row, "predicted": predicted / n, "observed": observed / n})
    return pd.DataFrame(out)
