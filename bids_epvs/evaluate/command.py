"""``bids_epvs-evaluate``: truth and results in, tables and a page out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bids_epvs import __version__, process
from bids_epvs.arguments import Parser, status
from bids_epvs.derivatives import write
from bids_epvs.errors import NothingToDoError, UsageError
from bids_epvs.evaluate import cases, hits, numbers, tables
from bids_epvs.report import evaluation

logger = logging.getLogger(__name__)

SIMULATED = (
    "The truth was simulated: these figures say nothing about real EPVS until labelled scans have been evaluated."
)


def parser() -> Parser:
    """The command line of ``bids_epvs-evaluate``."""
    p = Parser(
        prog="bids_epvs-evaluate",
        description="Compare segmentations of EPVS with the truth, for any method and any BIDS derivatives that hold "
        "*_label-EPVS_mask.nii.gz (truth) and *_label-EPVS_desc-<method>_mask.nii.gz (results).",
    )
    p.add_argument("truth", type=Path, help="folder with the truth, such as DATA/derivatives/truth")
    p.add_argument("results", type=Path, help="output of bids_epvs, or of another method")
    p.add_argument("out", type=Path, help="tables and evaluation.html go here")
    p.add_argument("--models", nargs="+", metavar="NAME", help="methods to compare (default: all there are)")
    p.add_argument("--participant-label", nargs="+", metavar="L", help="with or without sub-")
    p.add_argument("--nprocs", type=int, default=1, metavar="N", help="sessions at a time")
    return p


def chosen(args: argparse.Namespace) -> list[cases.Case]:
    """The sessions and methods asked for.

    Raises
    ------
    UsageError
        A method has no results.
    NothingToDoError
        No session is left.
    """
    found = cases.find(args.truth, args.results)
    if args.participant_label:
        wanted = {f"sub-{s.removeprefix('sub-')}" for s in args.participant_label}
        found = [c for c in found if c.label.split("_")[0] in wanted]
    if not found:
        raise NothingToDoError("no session of these participants has truth and results.", where=args.truth)
    if args.models:
        there = {m for c in found for m in (*c.models, *c.numbers)}
        unknown = [m for m in args.models if m not in there]
        if unknown:
            raise UsageError(
                f"no results of {', '.join(unknown)}.",
                where="--models",
                remedy=f"There are: {', '.join(sorted(there))}.",
            )
        found = [replace(c, models=_kept(c.models, args.models), numbers=_kept(c.numbers, args.models)) for c in found]
    return found


def _kept(there: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the methods asked for that are there."""
    return tuple(m for m in wanted if m in there)


def measured(case: cases.Case) -> tuple[cases.Measured, list[dict], list[dict]]:
    """Masks, numbers and marks of one session."""
    known = cases.read_truth(case)
    kind = cases.resolution(known)
    told = list(numbers.rows(case, known, kind, (*case.models, *case.numbers)))
    made = [row for m in (*case.models, *case.numbers) for row in hits.rows(case, known, m, kind)]
    return cases.measure(case, known), told, made


def evaluate(args: argparse.Namespace) -> Path:
    """Measure every session, write the tables and the page; the path of the page."""
    found = chosen(args)
    if args.nprocs > 1:
        with process.pool(args.nprocs) as pool:
            made = list(pool.map(measured, found))
    else:
        made = [measured(case) for case in found]
    sessions = pd.DataFrame([row for m, _, _ in made for row in m.rows])
    lesions = pd.DataFrame([row for m, _, _ in made for row in m.lesions], columns=cases.LESION_COLUMNS)
    bins = pd.DataFrame([row for m, _, _ in made for row in m.reliability], columns=cases.RELIABILITY_COLUMNS)
    told = pd.DataFrame([row for _, t, _ in made for row in t], columns=numbers.COLUMNS)
    marks = pd.DataFrame([row for _, _, k in made for row in k])
    bins = tables.reliability(bins)
    summary = tables.summary(sessions) if len(sessions) else pd.DataFrame()
    diameters = cases.diameters(lesions)
    regional = {
        "counts": numbers.counts(told),
        "volumes": numbers.volumes(told),
        "williams": numbers.williams(told),
        "grades": numbers.grades(told),
        "severity": numbers.severity(told),
        "calibration": numbers.calibration(told),
        "hits": hits.table(marks) if len(marks) else pd.DataFrame(),
    }
    about = {k: {"Description": v} for k, v in tables.DESCRIPTIONS.items()}
    write.table(args.out / "evaluation_sessions.tsv", sessions, meta=about)
    write.table(args.out / "evaluation_lesions.tsv", lesions)
    write.table(args.out / "evaluation_diameters.tsv", diameters)
    write.table(args.out / "evaluation_reliability.tsv", bins)
    write.table(args.out / "evaluation.tsv", summary, meta=about)
    write.table(args.out / "evaluation_numbers.tsv", told)
    for name, content in regional.items():
        if len(content):
            write.table(args.out / f"evaluation_{name}.tsv", content, meta=tables.described(content.columns))
    simulated = any((c.truth / f"{c.label}_label-EPVS_probseg.nii.gz").is_file() for c in found)
    remarks = [SIMULATED] if simulated else []
    wrong = lesions[(lesions["kind"] == "wrong") & lesions["on_mimic"].notna()]
    for model in dict.fromkeys(wrong["model"]):
        own = wrong.loc[wrong["model"] == model, "on_mimic"].astype(bool)
        remarks.append(f"{model}: {own.sum()} of {len(own)} wrong lesions lie on a simulated lesion or vessel.")
    page = evaluation.render(
        sessions,
        summary,
        diameters[diameters["n"] > 0],
        bins,
        regional,
        told,
        shown=tables.MEANS,
        descriptions={**tables.REGIONAL, **tables.DESCRIPTIONS},
        remarks=remarks,
        versions={"bids_epvs": __version__},
    )
    return write.text(args.out / "evaluation.html", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    return status("bids_epvs-evaluate", lambda: _run(argv), interrupted="run again")


def _run(argv: Sequence[str] | None) -> int:
    """Do what the command line says."""
    args = parser().parse_args(argv)
    if argv is None:
        process.heed_termination()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    print(f"evaluation: {evaluate(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
