"""Arguments to Settings; the only place that exits. Nothing heavy is imported before the arguments are parsed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from bids_epvs import __version__, process
from bids_epvs.arguments import Parser, status
from bids_epvs.errors import AnalysisLevelError, UsageError
from bids_epvs.settings import Settings, read_toml

REGION_NAMES = ("BasalGanglia", "CentrumSemiovale", "Hippocampus", "Midbrain", "Thalamus", "OtherWhiteMatter")


def parser() -> Parser:
    """The command line of ``bids_epvs``."""
    p = Parser(
        prog="bids_epvs",
        description="Measure enlarged perivascular spaces on brain MRI (BIDS-App). For research use.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    p.add_argument("bids_dir", type=Path, help="BIDS dataset")
    p.add_argument("output_dir", type=Path, help="where derivatives go")
    p.add_argument("analysis_level", help="participant or group")
    which = p.add_argument_group("what to process")
    _add(which, "--participant-label", nargs="+", metavar="L", help="with or without sub-")
    _add(which, "--exclude-participant-label", nargs="+", metavar="L", help="subjects to leave out")
    _add(which, "--session-label", "--session-id", nargs="+", metavar="L", help="with or without ses-")
    _add(which, "--bids-filter-file", type=Path, metavar="JSON", help="pybids queries for T2w, T1w, FLAIR, swi")
    _add(which, "--bids-database-dir", type=Path, metavar="DIR", help="keep or reuse an index of the dataset")
    _add(which, "--skip-bids-validation", action="store_true", help="do not run bids-validator")
    _add(which, "-d", "--derivatives", nargs="+", metavar="NAME=PATH", help="segmentations that replace the atlas")
    how = p.add_argument_group("what to compute")
    _add(how, "--models", nargs="+", metavar="NAME", help="methods (default: all that have weights)")
    _add(how, "--regions", nargs="+", metavar="NAME", help=f"of {', '.join(REGION_NAMES)}")
    _add(how, "--regions-from", metavar="SOURCE", help="network (default) or atlas (slower, needs no TensorFlow)")
    _add(how, "--weights", nargs="+", metavar="NAME=FILE", help="other weights than the shipped ones")
    _add(how, "--weights-dir", type=Path, metavar="DIR", help="directory with weights")
    _add(
        how, "--output-spaces", nargs="+", metavar="SPACE", help="T2w, MNI152NLin2009aSym or a TemplateFlow identifier"
    )
    _add(how, "--random-seed", type=int, metavar="N", help="seed of everything random (default 0)")
    cohort = p.add_argument_group("group level")
    _add(
        cohort,
        "--formula",
        nargs="+",
        metavar="F",
        help="regressions, e.g. 'count ~ age + sex + C(site)'; left side: count, rating, severity or a volume",
    )
    _add(cohort, "--group-by", nargs="+", metavar="COLUMN", help="split descriptives and frequency maps by these")
    _add(cohort, "--maps", action=argparse.BooleanOptionalAction, help="make EPVS frequency maps (default)")
    where = p.add_argument_group("resources")
    _add(where, "--nprocs", type=int, metavar="N", help="subjects at a time (default 1)")
    _add(where, "--omp-nthreads", type=int, metavar="N", help="threads in each (default 1)")
    _add(where, "--mem-gb", type=float, metavar="G", help="memory limit, checked before work starts")
    _add(where, "--dask-scheduler", metavar="ADDRESS", help="run the subjects on a Dask cluster, e.g. tcp://node1:8786")
    _add(where, "--device", metavar="D", help="auto, cpu or cuda[:n]")
    _add(where, "-w", "--work-dir", type=Path, metavar="DIR", help="scratch directory")
    _add(where, "--clean-workdir", action="store_true", help="remove scratch files of finished sessions")
    flow = p.add_argument_group("flow")
    _add(flow, "--resume", action=argparse.BooleanOptionalAction, help="reuse finished stages (default)")
    _add(flow, "--stop-on-first-crash", action="store_true", help="stop at the first failed subject")
    _add(flow, "--dry-run", action="store_true", help="print what would be used")
    _add(flow, "--reports-only", action="store_true", help="make reports again from existing results")
    _add(flow, "--boilerplate-only", action="store_true", help="print the methods text")
    _add(flow, "--config-file", type=Path, metavar="TOML", help="settings; the command line wins")
    flow.add_argument("--version", action="version", version=f"bids_epvs {__version__}")
    flow.add_argument("-v", "--verbose", action="count", help="more log lines (-vv: still more)")
    flow.add_argument("-q", "--quiet", action="store_true", help="errors only")
    return p


def _add(group: Any, *names: str, **options: Any) -> None:
    """Add an option whose value is named after its first long spelling."""
    first = next(n for n in names if n.startswith("--"))
    group.add_argument(*names, dest=first[2:].replace("-", "_"), **options)


def settings_from(argv: Sequence[str]) -> Settings:
    """Parse the command line (and the TOML file it names).

    Raises
    ------
    UsageError, AnalysisLevelError
    """
    given = vars(parser().parse_args(argv))
    config = given.pop("config_file", None)
    values: dict[str, Any] = read_toml(config) if config else {}
    if given.pop("quiet", False):
        given["verbose"] = -1
    for name in ("derivatives", "weights"):
        if name in given:
            given[name] = _pairs(given[name], name)
    for name, value in given.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    if values["analysis_level"] not in ("participant", "group"):
        raise AnalysisLevelError(f"expected participant or group, received {values['analysis_level']!r}.")
    return replace(Settings(), **values)


def _pairs(items: Sequence[str], name: str) -> dict[str, Path]:
    """``NAME=PATH`` items; the path must exist."""
    out = {}
    for item in items:
        key, equals, path = item.partition("=")
        if not equals or not key or not path:
            raise UsageError(f"expected NAME=PATH, received {item!r}.", where=f"--{name}")
        if not Path(path).exists():
            raise UsageError(f"{path} does not exist.", where=f"--{name}")
        out[key] = Path(path)
    return out


def run(settings: Settings) -> int:
    """Do what the settings say; the exit code."""
    from bids_epvs import logs, pipeline
    from bids_epvs.report import boilerplate

    logs.configure(settings.verbose)
    if settings.boilerplate_only:
        print(boilerplate.methods(settings))
        return 0
    if settings.analysis_level == "group":
        print(f"group report: {pipeline.group(settings)}")
        return 0
    if settings.dry_run:
        print("\n".join(pipeline.plan(settings)))
        return 0
    with logs.progress(settings) as watch:
        outcomes = pipeline.participant(settings, watch=watch)
    failed = [o for o in outcomes if o.error]
    if outcomes:
        print(f"{len(outcomes) - len(failed)} session(s) done, {len(failed)} failed; results in {settings.output_dir}")
    for outcome in failed:
        print(f"failed: {outcome.label}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point: every error becomes one line and its exit code."""
    given = sys.argv[1:] if argv is None else argv
    sys.exit(status("bids_epvs", lambda: run(settings_from(given))))


def program() -> NoReturn:
    """`main` in a process of its own."""
    say = process.end_quickly()
    process.heed_termination()
    try:
        main()
    except SystemExit as end:
        say(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException:
        say(1)
        raise
