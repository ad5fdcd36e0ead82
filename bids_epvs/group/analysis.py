"""All statistics of a cohort, and their tables on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bids_epvs.derivatives import columns, write
from bids_epvs.errors import UsageError
from bids_epvs.group import association, human, maps, quality, stats
from bids_epvs.records import Analysis, Cohort

TABLES = ("descriptives", "agreement", "williams", "repeatability", "associations")
"""Tables of an `Analysis`, in its order; the file of each is ``group_<name>.tsv``."""


def analyse(
    cohort: Cohort,
    *,
    source: Path,
    root: Path,
    formulas: Sequence[str] = (),
    by: Sequence[str] = (),
    with_maps: bool = True,
    nprocs: int = 1,
) -> Analysis:
    """Descriptives, agreement, repeatability, associations, quality control, frequency maps.

    Parameters
    ----------
    cohort : Cohort
    source, root : Path
        The raw dataset (``phenotype``) and the output of the participant level (masks).
    formulas : sequence of str
        Empty: `association.default_formulas`.
    by : sequence of str
        Columns of participants.tsv by which descriptives and maps are split. Empty: descriptives by site, scanner, sex
        and the like, maps not.
    with_maps : bool
    nprocs : int

    Raises
    ------
    UsageError
        A column or formula that cannot be used.
    """
    unknown = [c for c in by if c not in cohort.covariates]
    if unknown:
        raise UsageError(
            f"no column {', '.join(unknown)}.",
            where="--group-by",
            remedy=f"participants.tsv and sessions.tsv have: {', '.join(cohort.covariates) or 'none'}.",
        )
    if cohort.long.empty:
        a, b, c, d, e = (pd.DataFrame(columns=list(getattr(columns, n.upper()))) for n in TABLES)
        return Analysis((), (), a, b, c, d, e, quality.quality(cohort))
    split = stats.splits(cohort, by)
    used = tuple(formulas) or association.default_formulas(cohort)
    notes = [] if used else ["no associations: participants.tsv has neither age nor sex that vary; see --formula"]
    ratings = human.read(source)
    with_raters, williams = stats.with_raters(cohort, ratings)
    agreement = [t for t in (stats.between_methods(cohort), with_raters) if len(t)]
    made, left_out = maps.frequency(cohort, root, by=by, nprocs=nprocs) if with_maps else ([], [])
    if left_out:
        notes.append(f"not in the frequency map, for want of a transform or masks: {', '.join(left_out[:20])}")
    return Analysis(
        split,
        used,
        stats.descriptives(cohort, split),
        pd.concat(agreement, ignore_index=True) if agreement else with_raters,
        williams,
        stats.repeatability(cohort),
        association.associations(cohort, used),
        quality.quality(cohort),
        tuple(made),
        tuple(notes),
    )


def save(analysis: Analysis, root: Path) -> None:
    """Write the tables with their data dictionaries, and the maps."""
    for name in TABLES:
        table: pd.DataFrame = getattr(analysis, name)
        meaning = getattr(columns, name.upper())
        write.table(root / f"group_{name}.tsv", table, meta={str(c): meaning[str(c)] for c in table})
    found = analysis.quality
    write.table(root / "group_qc.tsv", found, meta={str(c): columns.QC[str(c)] for c in found})
    maps.save(analysis.maps, root)
