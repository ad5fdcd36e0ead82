"""Frozen records that the stages exchange; no behaviour beyond small derived values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from nibabel.nifti1 import Nifti1Image


SEVERITY = "Severity"
"""Rating scale of two values: 0 none or mild, 1 moderate to severe."""
POTTER = "Potter"
"""Rating scale of Potter et al.: 0 to 4."""
GRADES = 5
"""Of that scale."""
REFERENCES = ("T2w", "T1w", "FLAIR")
"""Sequences whose grid results may lie on; the first one that a session has."""


class Limit(NamedTuple):
    """Up to which largest voxel size a sequence is looked at beside the T2w.

    Attributes
    ----------
    times : float
        That of the T2w.
    mm : float
    """

    times: float
    mm: float = float("inf")


SHOWING: Mapping[str, Limit] = {"T1w": Limit(2.0), "FLAIR": Limit(1.5, 1.5)}
"""Sequences in which brain and regions may be looked for beside the T2w; the first one that fits is.

Measured on simulated heads that moved between the two. T1w (heads 12 and 17, a script that is not in the project), T2w
of 1 mm: white matter is 0.92 alone, 0.94, 0.93 and 0.91 with a T1w of 1, 3 and 5 mm, the hippocampus 0.89 and 0.89,
0.87, 0.87; with a T2w of 5 mm all three help white matter (0.89 to 0.91, 0.90, 0.90). What lies between 1 and 3 times
was not measured. FLAIR (heads 05 and 20, two scenes each: that of ``benchmarks/sequences.py --further FLAIR:1 FLAIR:3
FLAIR:5``, then without a limit of 1.5 mm, and one of a script that is not in the project; `slices` of before), T2w of
1 mm: white matter 0.89 alone, 0.91 with a FLAIR of 1 mm, hippocampus 0.84 and 0.87; T2w of 5 mm, alone and with a FLAIR
of 1, 3 and 5 mm: white matter 0.87, 0.88, 0.87, 0.87, putamen 0.85, 0.89, 0.86, 0.86, but ventricles 0.893, 0.896,
0.880, 0.878, and where a slice of them is missed at their top the centrum semiovale 0.87, 0.87, 0.83, 0.82. A FLAIR of
5 mm beside a T2w of 1 mm took white matter from 0.85 to 0.81 (head 05, earlier networks)."""


def reference_of(names: Iterable[str]) -> str:
    """The sequence whose grid results lie on.

    >>> reference_of(["FLAIR", "T1w"])
    'T1w'
    """
    present = set(names)
    return next(name for name in REFERENCES if name in present)


def shown_in(sizes: Mapping[str, float], limits: Mapping[str, Limit] = SHOWING) -> list[str]:
    """The sequences in which brain and regions are looked for, that of the grid first.

    Parameters
    ----------
    sizes : mapping
        Largest voxel size (mm) of each sequence of a session.
    limits : mapping
        As `SHOWING`.

    Examples
    --------
    >>> shown_in({"FLAIR": 1.0, "T1w": 1.0, "T2w": 5.0}), shown_in({"FLAIR": 1.0, "T1w": 5.0, "T2w": 1.0})
    (['T2w', 'T1w'], ['T2w', 'FLAIR'])
    >>> shown_in({"FLAIR": 5.0, "T2w": 5.0}), shown_in({"T1w": 1.0, "FLAIR": 1.0})
    (['T2w'], ['T1w'])
    """
    first = reference_of(sizes)
    if first != "T2w":
        return [first]
    most = {n: min(limit.times * sizes[first], limit.mm) * (1 + 1e-3) for n, limit in limits.items() if n in sizes}
    fit = [n for n in most if sizes[n] <= most[n]]
    return [first, *fit[:1]]


@dataclass(frozen=True)
class Scan:
    """The images of one subject and session that the filters chose.

    Attributes
    ----------
    subject, session : str
        Labels without ``sub-`` and ``ses-``; `session` is None in datasets without sessions.
    files : mapping
        At least one of `REFERENCES`, and where found the others and ``SWI``: the file chosen for each.
    notes : tuple of str
        What was found and not used, in words, for log and report.
    """

    subject: str
    session: str | None
    files: Mapping[str, Path]
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """The sequence whose grid results lie on: the T2w where there is one."""
        return reference_of(self.files)

    @property
    def label(self) -> str:
        """``sub-01`` or ``sub-01_ses-1``."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")


@dataclass(frozen=True)
class Loaded:
    """An image that passed the checks.

    Attributes
    ----------
    image : Nifti1Image
        3-D float32, finite, affine trusted.
    notes : tuple of str
        Repairs that were made, in words.
    """

    image: Nifti1Image
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """One session ready for the models, in the canonical frame of its reference (the T2w where there is one).

    The canonical frame has the reference's voxels with axes turned to R, A, S, an affine that is diagonal (spacing) and
    centred: it does not depend on how the file stores its axes, so neither do the results.

    Attributes
    ----------
    images : mapping
        The reference (bias-corrected) and the other sequences resampled onto it; canonical frame, float32.
    brain : ndarray of bool
        Brain mask.
    regions : ndarray of uint8
        Regions with hemispheres, indices of `prepare.regions.REGIONS`.
    csf : ndarray of bool
        Ventricles and sulci, never an EPVS.
    spacing : tuple of float
        Voxel sizes (mm) along R, A, S.
    native : Nifti1Image
        Grid of the reference as it was read; results go back there.
    slices : mapping
        Index (canonical, along S) of the slices that ratings need: ``anterior_commissure``, ``adams_cso``,
        ``ventricle_top``; absent where the scan does not cover them.
    hemisphere : ndarray of uint8
        1 left, 2 right of the midsagittal plane.
    confidence : mapping
        Expected Dice of each region, by its full name; empty where no network found them.
    notes : tuple of str
        Quality warnings.
    turned : bool
        Slices are coronal or sagittal and lie along the third axis (`planes.in_slices`), which is then not S.
    """

    images: Mapping[str, np.ndarray]
    brain: np.ndarray
    regions: np.ndarray
    csf: np.ndarray
    spacing: tuple[float, float, float]
    native: Nifti1Image
    slices: Mapping[str, int]
    hemisphere: np.ndarray
    confidence: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    turned: bool = False

    @property
    def reference(self) -> str:
        """The sequence whose grid this is."""
        return reference_of(self.images)

    @property
    def base(self) -> np.ndarray:
        """The image of the reference."""
        return self.images[self.reference]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel in mm3."""
        return float(self.spacing[0] * self.spacing[1] * self.spacing[2])


@dataclass(frozen=True)
class Finding:
    """A number that a method gives for a region as a whole.

    Attributes
    ----------
    region : str
        Name of `prepare.regions.NAMES`.
    hemisphere : {'left', 'right', 'both'}
    count : float, optional
        EPVS (a regression need not give a whole number).
    low, high : float, optional
        Interval that holds the true count with 90 % probability.
    rating : int, optional
        Grade, or 0 and 1 for mild and severe.
    scale : str, optional
        Of the rating.
    chances : tuple of float
        Probability of each grade.
    slice : int, optional
        Canonical index of the axial slice that decided.
    """

    region: str
    hemisphere: str
    count: float | None = None
    low: float | None = None
    high: float | None = None
    rating: int | None = None
    scale: str | None = None
    chances: tuple[float, ...] = ()
    slice: int | None = None


@dataclass(frozen=True)
class Prediction:
    """What one model says about one session, in the canonical frame; what a method does not give is None or empty.

    Attributes
    ----------
    model : str
        Key of MODELS.
    probability : ndarray of float32, optional
        Probability (or normalised response) of EPVS in each voxel, 0-1.
    mask : ndarray of bool, optional
        Binary EPVS; what lies in no region counts where an EPVS runs on that begins in one.
    parameters : mapping
        What the prediction depended on, for the sidecar.
    notes : tuple of str
        Warnings.
    instances : ndarray of int32, optional
        One index an EPVS, where the method tells them apart itself.
    saliency : ndarray of float32, optional
        Attention or Grad-CAM map.
    findings : tuple of Finding
    """

    model: str
    probability: np.ndarray | None = None
    mask: np.ndarray | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    instances: np.ndarray | None = None
    saliency: np.ndarray | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Measures:
    """Numbers of one model in one session.

    Attributes
    ----------
    lesions : DataFrame
        A row per EPVS.
    summary : DataFrame
        A row per region and hemisphere.
    instances : ndarray of int32
        Index of the EPVS in each voxel, 0 background; canonical frame.
    """

    lesions: pd.DataFrame
    summary: pd.DataFrame
    instances: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """How one session ended.

    Attributes
    ----------
    label : str
        ``sub-01_ses-1``.
    error : str
        Empty, or the one-line message.
    crash_file : str
        Name of the crash file, relative to the output.
    stages : tuple
        (stage, seconds, peak memory in MiB of the process so far, reused) in order.
    hashes : mapping
        SHA-256 of each input file.
    """

    label: str
    error: str = ""
    crash_file: str = ""
    stages: tuple[tuple[str, float, float, bool], ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A session that has no results.

    Attributes
    ----------
    label : str
        ``sub-01_ses-1``.
    reason : str
        One line, with the remedy where there is one.
    """

    label: str
    reason: str


@dataclass(frozen=True)
class Cohort:
    """All finished sessions of an output directory.

    Attributes
    ----------
    wide : DataFrame
        A row per session: ``participant_id``, ``session_id`` (in datasets with sessions), columns of participants.tsv
        and sessions.tsv, then those of the results.
    long : DataFrame
        The summary tables below each other, with ``participant_id``, ``session_id`` and ``label``.
    columns : mapping
        Description of each column of `wide`, for the sidecar.
    covariates : tuple of str
        Columns of `wide` that come from the dataset.
    failures : tuple of Failure
    notes : mapping
        Quality warnings by session label.
    """

    wide: pd.DataFrame
    long: pd.DataFrame
    columns: Mapping[str, Mapping[str, object]]
    covariates: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class FrequencyMap:
    """How often EPVS lie in each voxel of the template.

    Attributes
    ----------
    model, by, level : str
        Method; column and value of the persons' group (``all`` and ``all`` for everyone).
    participants : int
    raw, smooth : ndarray of float32
        Share of persons, 0-1, on the 1 mm grid of ICBM152.
    masks : tuple of Path
        What it was made from.
    """

    model: str
    by: str
    level: str
    participants: int
    raw: np.ndarray
    smooth: np.ndarray
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Statistics of a cohort; the tables' columns are described in `derivatives.columns`.

    Attributes
    ----------
    by, formulas : tuple of str
        Columns that split the descriptives; regressions that were made.
    descriptives, agreement, williams, repeatability, associations, quality : DataFrame
    maps : tuple of FrequencyMap
    notes : tuple of str
        What could not be done, in words.
    """

    by: tuple[str, ...]
    formulas: tuple[str, ...]
    descriptives: pd.DataFrame
    agreement: pd.DataFrame
    williams: pd.DataFrame
    repeatability: pd.DataFrame
    associations: pd.DataFrame
    quality: pd.DataFrame
    maps: tuple[FrequencyMap, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Transform:
    """A spatial transform that maps points of the fixed space to points of the moving space, made by `prepare.ants`.

    Attributes
    ----------
    forward : tuple of Path
        ITK files that bring a moving image onto the fixed grid, in the order ANTs applies them.
    inverse : tuple of Path
        ITK files that bring a fixed image onto the moving grid.
    invert : tuple of bool
        For each file of `inverse`, whether ANTs must invert it.
    """

    forward: tuple[Path, ...]
    inverse: tuple[Path, ...]
    invert: tuple[bool, ...]
