"""Pairs of truth and results on disk, and what is measured on each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from bids_epvs.derivatives import paths, write
from bids_epvs.errors import DataError, NothingToDoError
from bids_epvs.evaluate import metrics
from bids_epvs.evaluate.metrics import Detection, Truth
from bids_epvs.measure import agreement
from bids_epvs.measure.lesions import VISIBLE, instances
from bids_epvs.prepare.regions import NAMES, indices
from bids_epvs.prepare.resample import THICK_MM, bounding_box, slice_axis

logger = logging.getLogger(__name__)

DIAMETERS = ((0.0, 0.8), (0.8, 1.0), (1.0, 1.5), (1.5, np.inf))
"""Classes of mean diameter (mm)."""
LESION_COLUMNS = ["label", "model", "slice_mm", "kind", "index", "found", "diameter_mm", "on_mimic"]
"""Of the rows of single lesions."""
RELIABILITY_COLUMNS = ["label", "model", "bin", "n", "predicted", "observed"]
"""Of the rows of bins of probability."""
CONTRASTS = ((5.0, "contrast-to-noise below 5"), (10.0, "5 to 10"), (np.inf, "10 and more"))
"""Upper ends and names of the classes of contrast-to-noise."""


@dataclass(frozen=True)
class Case:
    """One session with truth and results.

    Attributes
    ----------
    label : str
        ``sub-01_ses-1``.
    truth, results : Path
        Folders that hold its files.
    models : tuple of str
        Methods with masks.
    numbers : tuple of str
        Methods that only count or rate.
    """

    label: str
    truth: Path
    results: Path
    models: tuple[str, ...]
    numbers: tuple[str, ...] = ()


def find(truth: Path, results: Path) -> list[Case]:
    """Sessions that have an EPVS mask in the truth, and masks or a summary table in the results.

    Parameters
    ----------
    truth : Path
        BIDS derivatives with ``sub-*[/ses-*]/anat/*_label-EPVS_mask.nii.gz`` (one mask a session).
    results : Path
        Output of ``bids_epvs``, or of any method that writes ``*_label-EPVS_desc-<method>_mask.nii.gz``.

    Raises
    ------
    NothingToDoError
        There is no such session.
    """
    out = []
    for mask in sorted(truth.glob("sub-*/**/*_label-EPVS_mask.nii.gz")):
        label = mask.name.partition("_label-")[0]
        folder = results / mask.parent.relative_to(truth)
        made = sorted(folder.glob(f"{label}_label-EPVS_desc-*_mask.nii.gz"))
        masks = tuple(paths.parse(p)["desc"] for p in made)
        answers = summary(folder, label)
        told = {} if answers is None else dict.fromkeys(answers["model"])
        if masks or told:
            out.append(Case(label, mask.parent, folder, masks, tuple(m for m in told if m not in masks)))
        else:
            logger.warning("%s: truth without results", label)
    if not out:
        raise NothingToDoError(
            "no session has both an EPVS mask in the truth and results.",
            where=truth,
            remedy="Expected names like sub-01/anat/sub-01_label-EPVS_mask.nii.gz; run the participant level first.",
        )
    return out


def _load(path: Path, like: Nifti1Image | None = None) -> Nifti1Image:
    """An image with axes turned to R, A, S; on the grid of `like`."""
    if not path.is_file():
        raise DataError("missing.", where=path, remedy="Run the participant level again.")
    image = nib.as_closest_canonical(nib.load(path))
    if like is not None and (image.shape != like.shape or not np.allclose(image.affine, like.affine, atol=1e-3)):
        raise DataError(
            f"lies on another grid than the truth: shape {image.shape} against {like.shape}.",
            where=path,
            remedy="Truth and results must be on the grid of the same T2w.",
        )
    return image


def _lesions(mask: np.ndarray) -> np.ndarray:
    """Touching voxels as lesions of any size."""
    return instances(mask, 1.0, minimum=0, maximum=np.inf)


@dataclass(frozen=True)
class Known:
    """The truth of one session, and what it may be split by.

    Attributes
    ----------
    frame : Nifti1Image
        Grid.
    truth : Truth
    regions : ndarray of uint8
        Indices of `REGIONS`.
    diameter : mapping of int to float
        Mean diameter (mm) of each EPVS; empty where it is not known.
    region : mapping of int to str
        Region of each EPVS; empty where it is not known.
    mimics : ndarray of bool, optional
        Lesions and vessels that may be taken for EPVS.
    """

    frame: Nifti1Image
    truth: Truth
    regions: np.ndarray
    diameter: dict[int, float]
    region: dict[int, str]
    mimics: np.ndarray | None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes, mm."""
        x, y, z = (float(v) for v in voxel_sizes(self.frame.affine))
        return x, y, z


def read_truth(case: Case) -> Known:
    """The truth of a session: simulated (shares, instances, diameters, mimics) or a manual mask alone."""
    stem = case.truth / case.label
    frame = _load(Path(f"{stem}_label-EPVS_mask.nii.gz"))
    mask = np.asarray(frame.dataobj) > 0
    numbered, share = (Path(f"{stem}_label-EPVS_{n}.nii.gz") for n in ("desc-instances_dseg", "probseg"))
    lesions = np.asarray(_load(numbered, frame).dataobj).astype(np.int32) if numbered.is_file() else _lesions(mask)
    expected = np.unique(lesions[lesions > 0])
    filled = np.asarray(_load(share, frame).dataobj, np.float32) if share.is_file() else None
    if numbered.is_file() and filled is not None:
        peak = ndimage.maximum(filled, lesions, expected) if expected.size else []
        expected = expected[np.asarray(peak) >= VISIBLE]
    table, mimics = Path(f"{stem}_desc-truth_epvs.tsv"), Path(f"{stem}_desc-mimics_dseg.nii.gz")
    diameter, region = {}, {}
    if table.is_file():
        rows = write.read_table(table)
        number = rows["index"].astype(int)
        diameter = dict(zip(number, rows["width_mean_mm"].astype(float), strict=True))
        if "region" in rows:
            region = dict(zip(number, rows["region"].astype(str), strict=True))
    own = Path(f"{stem}_seg-epvs_dseg.nii.gz")
    regions = own if own.is_file() else case.results / f"{case.label}_seg-epvs_dseg.nii.gz"
    return Known(
        frame,
        Truth(mask, lesions, expected, filled),
        np.asarray(_load(regions, frame).dataobj).astype(np.uint8),
        diameter,
        region,
        np.asarray(_load(mimics, frame).dataobj) > 0 if mimics.is_file() else None,
    )


def read_result(case: Case, model: str, frame: Nifti1Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Lesions (int32) and probability (None where there is none) of one method."""
    stem = case.results / f"{case.label}_label-EPVS_desc-{model}"
    numbered, score = Path(f"{stem}instances_dseg.nii.gz"), Path(f"{stem}_probseg.nii.gz")
    if numbered.is_file():
        found = np.asarray(_load(numbered, frame).dataobj).astype(np.int32)
    else:
        found = _lesions(np.asarray(_load(Path(f"{stem}_mask.nii.gz"), frame).dataobj) > 0)
    return found, np.asarray(_load(score, frame).dataobj, np.float32) if score.is_file() else None


def contrast_to_noise(case: Case, known: Known) -> float:
    """(EPVS - its surroundings) / noise in the T2w the results were made from; nan without it.

    Medians over the truth and over the shell 1-3 mm around it in the same regions; noise as 1.4826 times the median
    absolute deviation of the shell.
    """
    path = case.results / f"{case.label}_desc-preproc_T2w.nii.gz"
    if not path.is_file() or not known.truth.mask.any():
        return float("nan")
    image = np.asarray(_load(path, known.frame).dataobj, np.float32)
    every = known.truth.lesions > 0
    box = bounding_box(every, 4)
    away = ndimage.distance_transform_edt(~every[box], sampling=known.spacing)
    around = image[box][(away > 1) & (away <= 3) & (known.regions[box] > 0)]
    if around.size == 0:
        return float("nan")
    middle = float(np.median(around))
    noise = 1.4826 * float(np.median(np.abs(around - middle)))
    return (float(np.median(image[known.truth.mask])) - middle) / noise if noise > 0 else float("nan")


def claims_probability(case: Case, model: str) -> bool:
    """Whether the scores of a method are meant as probabilities (its sidecar may deny it)."""
    about = write.read_json(case.results / f"{case.label}_label-EPVS_desc-{model}_probseg.json")
    return bool(about.get("Calibrated", True))


def summary(folder: Path, label: str) -> pd.DataFrame | None:
    """Summary table of a session in a folder; None without."""
    path = folder / f"{label}_desc-summary_epvs.tsv"
    return write.read_table(path) if path.is_file() else None


def intervals(case: Case) -> dict[tuple[str, str], tuple[float, float]]:
    """Interval of the count by method and region, from the summary table of the results; empty without."""
    table = summary(case.results, case.label)
    if table is None:
        return {}
    both = table[(table["hemisphere"] == "both") & table["count_low"].notna()]
    ends = zip(both["count_low"].astype(float), both["count_high"].astype(float), strict=True)
    return dict(zip(zip(both["model"], both["region"], strict=True), ends, strict=True))


def about_regions(case: Case, model: str) -> set[str] | None:
    """Regions that a method speaks about, by its summary table; None (all, and all together) without one, or if all."""
    table = summary(case.results, case.label)
    if table is None:
        return None
    found = {str(r) for r in table.loc[table["model"] == model, "region"]}
    return None if not found or found >= set(NAMES) else found


@dataclass(frozen=True)
class Measured:
    """What was measured on one session, as rows of tables.

    Attributes
    ----------
    rows : list of dict
        Measures of each method in each region; the first region is ``all``.
    lesions : list of dict
        Each expected EPVS and each wrong lesion.
    reliability : list of dict
        Bins of probability, for methods that claim one.
    """

    rows: list[dict[str, object]]
    lesions: list[dict[str, object]]
    reliability: list[dict[str, object]]


def resolution(known: Known) -> str:
    """``thick`` slices or ``isotropic``."""
    return "thick" if max(known.spacing) > THICK_MM else "isotropic"


def measure(case: Case, known: Known) -> Measured:
    """Measure the masks of one session."""
    inside = {"all": known.regions > 0}
    for name in NAMES:
        where = np.isin(known.regions, indices(name))
        if where.any():
            inside[name] = where
    contrast = contrast_to_noise(case, known)
    about = {
        "label": case.label,
        "slice_mm": round(known.spacing[slice_axis(known.spacing)], 3),
        "resolution": resolution(known),
        "mimics": "unknown" if known.mimics is None else "with" if known.mimics.any() else "without",
        "contrast": next((name for end, name in CONTRASTS if contrast < end), "unknown"),
        "contrast_to_noise": contrast,
    }
    out = Measured([], [], [])
    bounds = intervals(case)
    for model in case.models:
        found, score = read_result(case, model, known.frame)
        seen = metrics.detection(known.truth, found, known.spacing)
        sure = score is not None and claims_probability(case, model)
        spoken = about_regions(case, model)
        for name, where in inside.items():
            if spoken is not None and name not in spoken:
                continue
            figures = metrics.measures(known.truth, found, score, known.spacing, where, seen=seen, calibrated=sure)
            low, high = bounds.get((model, name), (np.nan, np.nan))
            covered = float(low <= figures["count_truth"] <= high) if low == low else np.nan
            out.rows.append({**about, "model": model, "region": name, **figures, "interval_coverage": covered})
        own = {"label": case.label, "model": model, "slice_mm": about["slice_mm"]}
        out.lesions.extend({**own, **row} for row in _lesion_rows(known, seen.inside(inside["all"])))
        if score is not None and sure:
            table = agreement.reliability(known.truth.filled[inside["all"]].astype(float), score[inside["all"]])
            for k, (n, predicted, observed) in enumerate(table):
                row = {"bin": k, "n": int(n), "predicted": predicted, "observed": observed}
                out.reliability.append({"label": case.label, "model": model, **row})
    return out


def _lesion_rows(known: Known, seen: Detection) -> Iterator[dict[str, object]]:
    """A row for each expected EPVS (found or not) and each wrong lesion."""
    for index, hit in seen.hit.items():
        yield {"kind": "EPVS", "index": index, "found": hit, "diameter_mm": known.diameter.get(index)}
    wrong = [index for index, right in seen.right.items() if not right]
    if known.mimics is None:
        yield from ({"kind": "wrong", "index": index} for index in wrong)
        return
    points = np.array([seen.at_found[index] for index in wrong]).reshape(-1, 3)
    near = metrics.apart(points, known.mimics, known.spacing) <= metrics.TOLERANCE_MM
    for index, on_mimic in zip(wrong, near, strict=True):
        yield {"kind": "wrong", "index": index, "on_mimic": bool(on_mimic)}


def diameters(lesions: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity by class of diameter (`DIAMETERS`) and method: n, found, sensitivity."""
    epvs = lesions[(lesions["kind"] == "EPVS") & lesions["diameter_mm"].notna()]
    out = []
    for model in dict.fromkeys(lesions["model"]):
        for low, high in DIAMETERS:
            own = epvs[(epvs["model"] == model) & (epvs["diameter_mm"] >= low) & (epvs["diameter_mm"] < high)]
            share = float(own["found"].mean()) if len(own) else float("nan")
            name = f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g} and more"
            out.append(
                {
                    "model": model,
                    "diameter_mm": name,
                    "n": len(own),
                    "found": int(own["found"].sum()),
                    "sensitivity": share,
                }
            )
    return pd.DataFrame(out, columns=["model", "diameter_mm", "n", "found", "sensitivity"])
