"""Names of derivative files, built and parsed in one place."""

from __future__ import annotations

import re
from pathlib import Path

from bids_epvs.records import Scan

ENTITY_ORDER = ("sub", "ses", "from", "to", "mode", "space", "seg", "label", "desc")
"""Order of the entities in a file name (that of the BIDS schema)."""

SUFFIX = {"T2w": "T2w", "T1w": "T1w", "FLAIR": "FLAIR", "SWI": "swi"}
"""Sequence -> suffix of its files."""

IGNORED = (
    "*_epvs.tsv",
    "*_epvs.json",
    "*_saliency.nii.gz",
    "*_saliency.json",
    "*_xfm.h5",
    "*_xfm.json",
    "*.html",
    "*instances_dseg.nii.gz",
    "*instances_dseg.json",
    "sub-*/figures",
    "CITATION.bib",
    "logs/",
    "group_*",
)
"""Lines of ``.bidsignore``: what BIDS does not define."""


def name(*, suffix: str, extension: str, **entities: str | None) -> str:
    """File name from entities (``from_`` and ``to`` may carry a trailing underscore).

    >>> name(sub="01", ses="1", label="EPVS", desc="frangi", suffix="mask", extension=".nii.gz")
    'sub-01_ses-1_label-EPVS_desc-frangi_mask.nii.gz'
    """
    given = {key.rstrip("_"): value for key, value in entities.items() if value is not None}
    unknown = set(given) - set(ENTITY_ORDER)
    if unknown:
        raise ValueError(f"expected entities of {ENTITY_ORDER}, received {sorted(unknown)}")
    for key, value in given.items():
        if not re.fullmatch(r"[A-Za-z0-9+]+", value):
            raise ValueError(f"entity {key}: expected letters and digits, received {value!r}")
    parts = [f"{key}-{given[key]}" for key in ENTITY_ORDER if key in given]
    return "_".join([*parts, suffix]) + extension


def parse(path: Path | str) -> dict[str, str]:
    """Entities, ``suffix`` and ``extension`` of a file name.

    >>> parse("sub-01_desc-summary_epvs.tsv")
    {'sub': '01', 'desc': 'summary', 'suffix': 'epvs', 'extension': '.tsv'}
    """
    stem, dot, extension = Path(path).name.partition(".")
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return {**entities, "suffix": suffix, "extension": dot + extension}


def session_dir(root: Path, scan: Scan) -> Path:
    """``OUT/sub-01[/ses-1]/anat``."""
    folder = root / f"sub-{scan.subject}"
    return (folder / f"ses-{scan.session}" if scan.session else folder) / "anat"


def derivative(root: Path, scan: Scan, *, suffix: str, extension: str = ".nii.gz", **entities: str | None) -> Path:
    """Path of a derivative of one session."""
    file = name(sub=scan.subject, ses=scan.session, suffix=suffix, extension=extension, **entities)
    return session_dir(root, scan) / file


def sidecar(path: Path) -> Path:
    """The JSON beside a file."""
    return path.with_name(path.name.partition(".")[0] + ".json")


def report(root: Path, subject: str) -> Path:
    """``OUT/sub-01.html``."""
    return root / f"sub-{subject}.html"


def figures(root: Path, subject: str) -> Path:
    """``OUT/sub-01/figures``."""
    return root / f"sub-{subject}" / "figures"


def group_map(root: Path, desc: str, *, space: str, by: str, level: str) -> Path:
    """``OUT/group_[sex-F_]space-<space>_desc-<desc>_frequency.nii.gz``; what BIDS labels cannot hold is left out.

    >>> group_map(Path(), "unet", space="MNI", by="site", level="St. Mary").name
    'group_site-StMary_space-MNI_desc-unet_frequency.nii.gz'
    """
    own = "" if by == "all" else f"{label(by)}-{label(level)}_"
    return root / f"group_{own}space-{space}_desc-{desc}_frequency.nii.gz"


def label(text: str) -> str:
    """Letters and digits of a text."""
    return re.sub("[^A-Za-z0-9]", "", text)


def bids_uri(path: Path, dataset: Path, link: str) -> str:
    """``bids:raw:sub-01/anat/...`` of a file inside `dataset`; ``bids::...`` for an empty link."""
    return f"bids:{link}:{path.relative_to(dataset).as_posix()}"
