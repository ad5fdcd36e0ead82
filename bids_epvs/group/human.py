"""Visual ratings and counts of people: ``phenotype/*.tsv`` of the dataset.

A column is named like those of ``group_epvs.tsv``, with the rater in place of the method:
``<rater>_<region>_<value>``, for example ``anna_BasalGanglia_rating`` or ``ben_CentrumSemiovale_count``; without a
rater (``BasalGanglia_rating``) the name of the file stands for one. Values are ``count``, ``volume_mm3``, ``rating``
(Potter, 0-4) and ``severity`` (0 or 1).
"""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from bids_epvs.prepare.regions import NAMES

logger = logging.getLogger(__name__)

VALUES = ("count", "volume_mm3", "rating", "severity")
COLUMNS = ("participant_id", "session_id", "rater", "region", "value", "score")


def read(source: Path) -> pd.DataFrame:
    """All scores of all raters.

    Parameters
    ----------
    source : Path
        The raw dataset.

    Returns
    -------
    DataFrame
        ``participant_id``, ``session_id`` (where a table has sessions), ``rater``, ``region``, ``value``, ``score``;
        empty where nothing fits.
    """
    parts = [scores(path) for path in sorted((source / "phenotype").glob("*.tsv"))]
    parts = [p for p in parts if len(p)]
    if not parts:
        return pd.DataFrame(columns=[c for c in COLUMNS if c != "session_id"])
    if any("session_id" not in p for p in parts):  # one table without sessions: they are not told apart
        parts = [p.drop(columns="session_id", errors="ignore") for p in parts]
    return pd.concat(parts, ignore_index=True)


def scores(path: Path) -> pd.DataFrame:
    """The scores of one table."""
    try:
        table = pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False, dtype={"participant_id": str})
    except (ValueError, OSError) as error:
        logger.warning("%s cannot be read (%s): its ratings are not used", path, error)
        return pd.DataFrame()
    if "participant_id" not in table:
        return pd.DataFrame()
    keys = [c for c in ("participant_id", "session_id") if c in table]
    parts = []
    for column in table.columns:
        rater, region, value = named(column, path.stem)
        score = pd.to_numeric(table[column], errors="coerce") if value else pd.Series(dtype=float)
        if value and score.notna().any():
            parts.append(
                table[keys].assign(rater=rater, region=region, value=value, score=score).dropna(subset="score")
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def named(column: str, rater: str) -> tuple[str, str, str]:
    """Rater, region and value that the name of a column says; empty strings where it is something else.

    >>> named("anna_BasalGanglia_rating", "epvs"), named("BasalGanglia_count", "epvs")
    (('anna', 'BasalGanglia', 'rating'), ('epvs', 'BasalGanglia', 'count'))
    >>> named("anna_BasalGanglia_left_count", "epvs")
    ('', '', '')
    """
    for region in NAMES:
        for value in VALUES:
            if column == f"{region}_{value}":
                return rater, region, value
            if column.endswith(f"_{region}_{value}"):
                return column.removesuffix(f"_{region}_{value}"), region, value
    return "", "", ""
