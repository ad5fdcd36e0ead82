"""What a run does, as numbered stages: `participant` and `group`.

Participant level, for each subject and session:

1. inputs: choose and check the images (``inputs``);
2. preparation: bias, registration, brain, regions (``prepare``), written as derivatives;
3. models: each method predicts EPVS, written as masks and response maps (``models``);
4. measures: instances, shape, counts, ratings (``measure``), written as tables;
5. output spaces: masks copied to standard spaces where asked for;
6. report: one HTML file per subject (``report``).

A stage is skipped when its outputs exist and record the same key: a hash of its inputs, its parameters and the
version. What a stage hands on is always read back from its derivatives, so a resumed run and an uninterrupted one
cannot differ.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from bids_epvs import __version__, cluster, logs, process
from bids_epvs.derivatives import paths, write
from bids_epvs.errors import EpvsError, NothingToDoError, TemporaryError, UsageError
from bids_epvs.inputs import query
from bids_epvs.models import default, load, nuclei, parcellation, slices
from bids_epvs.prepare.regions import NAMES
from bids_epvs.prepare.template import space_grid
from bids_epvs.records import REFERENCES, Outcome, Prepared, Scan
from bids_epvs.report import boilerplate
from bids_epvs.settings import Settings
from bids_epvs.stages import disk, methods, preparation, results

logger = logging.getLogger(__name__)

GB_PER_SUBJECT, GB_OF_HELPER = 6.5, 2.0
"""Memory that a process needs after many subjects (measured peak in benchmarks/, rounded up), and its second one."""


def check(settings: Settings) -> None:
    """Refuse settings that cannot work, before anything is computed.

    Raises
    ------
    UsageError
        Unknown models, regions, weights, parameters or spaces; output equal to input; work directory in the dataset.
    """
    for name in settings.models:
        spec = load(name)
        if spec.weights and not spec.weights.sha256 and settings.weights_of(name) is None:
            raise UsageError(
                f"{name} has no packaged weights.",
                where="--models",
                remedy=f"Train it with bids_epvs-train {name}, then give --weights {name}=FILE.",
            )
    for name in settings.regions:
        if name not in NAMES:
            raise UsageError(f"no region {name!r}.", where="--regions", remedy=f"Choose from: {', '.join(NAMES)}.")
    for name in settings.weights:
        if name not in (parcellation.NAME, nuclei.NAME, slices.NAME) and load(name).weights is None:
            raise UsageError(f"model {name} uses no weights.", where="--weights")
    for name, given in settings.parameters.items():
        known = load(name).parameters
        for key in given:
            if key not in known:
                raise UsageError(
                    f"{name} has no parameter {key!r}.", where="parameters", remedy=f"Known: {', '.join(known)}."
                )
    for space in settings.output_spaces:
        if space != "T2w":
            space_grid(space)
    source, out = settings.bids_dir.resolve(), settings.output_dir.resolve()
    if source == out or source.is_relative_to(out):
        raise UsageError(
            "the output directory must not be the dataset or a directory above it.",
            where=out,
            remedy=f"Use for example {source / 'derivatives' / 'epvs'}.",
        )
    inside_derivatives = out.is_relative_to(source / "derivatives")
    if out.is_relative_to(source) and not inside_derivatives:
        raise UsageError(
            "the output directory lies inside the dataset, outside its derivatives folder.",
            where=out,
            remedy=f"Use for example {source / 'derivatives' / 'epvs'}.",
        )
    work = settings.work_dir.resolve() if settings.work_dir else None
    if work and work.is_relative_to(source):
        raise UsageError("the work directory lies inside the dataset.", where=work, remedy="Choose another with -w.")
    _check_memory(settings)


def _check_memory(settings: Settings) -> None:
    """Compare the limit with what the processes may need."""
    each = GB_PER_SUBJECT + (GB_OF_HELPER if settings.omp_nthreads > 1 else 0)
    need = each * settings.nprocs
    if settings.mem_gb is not None and need > settings.mem_gb:
        raise UsageError(
            f"{settings.nprocs} process(es) may need {need:g} GB, more than the limit of {settings.mem_gb:g} GB.",
            where="--mem-gb",
            remedy=f"Lower --nprocs to {max(1, int(settings.mem_gb // each))}.",
        )


def select(settings: Settings) -> query.Selection:
    """Stage 1a: which files are used."""
    return query.find_scans(
        settings.bids_dir,
        participant_label=settings.participant_label,
        exclude_participant_label=settings.exclude_participant_label,
        session_label=settings.session_label,
        filter_file=settings.bids_filter_file,
        database=settings.bids_database_dir,
        needed=("T2w",) if all(load(n).needs_t2w for n in settings.models or default()) else REFERENCES,
    )


def plan(settings: Settings) -> list[str]:
    """What a run would do, a line a session, without doing it (``--dry-run``)."""
    check(settings)
    selection = select(settings)
    models = ", ".join(settings.models or default())
    lines = []
    for scan in selection.scans:
        used = ", ".join(f"{k}: {v.relative_to(settings.bids_dir)}" for k, v in scan.files.items())
        lines.append(f"{scan.label}: {used}; models: {models}")
    return [*lines, *(f"{label}: no sequence that could be used, skipped" for label in selection.without_t2w)]


def participant(settings: Settings, *, watch: logs.Watch | None = None) -> list[Outcome]:
    """Run the stages for every chosen subject; failures are recorded, never raised, one session at a time.

    Parameters
    ----------
    settings : Settings
    watch : Watch, optional
        Told about the progress.

    Returns
    -------
    list of Outcome
        In the order of the dataset.
    """
    check(settings)
    selection = select(settings)
    by_subject = [list(group) for _, group in groupby(selection.scans, key=lambda s: s.subject)]
    if not settings.skip_bids_validation:
        query.validate(settings.bids_dir, [scans[0].subject for scans in by_subject])
    write.dataset(
        settings.output_dir, source=settings.bids_dir, version=__version__, citations=boilerplate.bibliography()
    )
    run = logs.start(settings)
    watch = watch or logs.Watch()
    watch.begin(len(selection.scans))
    try:
        outcomes = list(_all_subjects(by_subject, settings, run, watch))
    finally:
        logs.close()
    logs.finish(run, outcomes, selection.without_t2w)
    return outcomes


def _all_subjects(
    by_subject: list[list[Scan]], settings: Settings, run: logs.Run, watch: logs.Watch
) -> Iterable[Outcome]:
    """Outcomes of all subjects, in processes of their own where more than one may run, or on other machines."""
    finished: Iterable[list[Outcome]]
    if settings.dask_scheduler:
        finished = _on_cluster(by_subject, settings, run)
    elif settings.nprocs > 1:
        finished = _in_processes(by_subject, settings, run)
    else:
        finished = (run_subject(scans, settings, run, watch) for scans in by_subject)
    for outcomes in finished:
        for outcome in outcomes:
            watch.done(outcome)
            yield outcome
        if settings.stop_on_first_crash and any(o.error for o in outcomes):
            logger.error("stopping at the first failure, as asked")
            return


def _in_processes(by_subject: list[list[Scan]], settings: Settings, run: logs.Run) -> Iterable[list[Outcome]]:
    """Subjects over processes; a process that dies takes down only its subject."""
    with process.pool(settings.nprocs) as pool:
        futures = [pool.submit(run_subject, scans, settings, run) for scans in by_subject]
        for scans, future in zip(by_subject, futures, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                yield _alone(scans, settings, run)


def _on_cluster(by_subject: list[list[Scan]], settings: Settings, run: logs.Run) -> Iterable[list[Outcome]]:
    """Subjects over the workers of a Dask cluster; one that kills its workers fails alone."""
    tasks, names = [(scans, settings, run) for scans in by_subject], [f"sub-{scans[0].subject}" for scans in by_subject]
    found = cluster.results(settings.dask_scheduler or "", run_subject, tasks, names)
    for scans, result in zip(by_subject, found, strict=True):
        if isinstance(result, EpvsError):
            yield [Outcome(s.label, error=result.message) for s in scans]
        else:
            yield result


def _alone(scans: list[Scan], settings: Settings, run: logs.Run) -> list[Outcome]:
    """Once more in a process of its own, after the pool broke (out of memory, for one)."""
    with process.pool(1) as pool:
        try:
            return pool.submit(run_subject, scans, settings, run).result()
        except BrokenProcessPool:
            error = TemporaryError(
                "the process was killed, most likely for lack of memory.", remedy="Lower --nprocs or give more memory."
            )
            return [Outcome(s.label, error=error.message) for s in scans]


def run_subject(scans: list[Scan], settings: Settings, run: logs.Run, watch: logs.Watch | None = None) -> list[Outcome]:
    """Stages 1-5 for each session of one subject, then its report (stage 6). The only place that catches everything."""
    logs.configure_worker(settings, run)
    with preparation.helper(settings, run) as helper:
        outcomes = _sessions(scans, settings, run, watch or logs.Watch(), helper)
        failed = any(o.error for o in outcomes)  # the helper may have died of it
        return _report(scans, outcomes, settings, run, None if failed else helper)


def _sessions(
    scans: list[Scan], settings: Settings, run: logs.Run, watch: logs.Watch, helper: Executor | None
) -> list[Outcome]:
    """Stages 1-5 for each session of one subject."""
    outcomes = []
    for scan in scans:
        clock = logs.Clock(scan.label, watch)
        try:
            if not settings.reports_only:
                run_session(scan, settings, clock, helper)
            outcomes.append(Outcome(scan.label, stages=clock.rows(), hashes=clock.hashes))
        except Exception as error:
            message = error.message if isinstance(error, EpvsError) else f"{type(error).__name__}: {error}"
            crash = logs.crash(run, scan.label, traceback.format_exc())
            logger.error("%s failed: %s (%s)", scan.label, message, crash)
            outcomes.append(Outcome(scan.label, message, crash, clock.rows(), clock.hashes))
            if settings.stop_on_first_crash:
                break
    return outcomes


def run_session(scan: Scan, settings: Settings, clock: logs.Clock, helper: Executor | None = None) -> None:
    """Stages 1-5 of one session."""
    write.sweep(paths.session_dir(settings.output_dir, scan))
    with clock.stage("inputs"):
        keys = disk.input_keys(scan, settings)
        clock.hashes.update(keys)
    with clock.stage("preparation") as note:
        prepared_key = preparation.compute(scan, settings, keys, note, helper)
    prepared = partial(disk.kept, scan, settings, prepared_key)
    model_keys = run_models(scan, settings, prepared_key, clock, prepared, helper)
    with clock.stage("measures") as note:
        results.measures(scan, settings, model_keys, prepared_key, note, prepared)
    with clock.stage("output spaces") as note:
        results.spaces(scan, settings, model_keys, note)
    if settings.clean_workdir:
        disk.clean(scan, settings)


def run_models(
    scan: Scan,
    settings: Settings,
    prepared_key: str,
    clock: logs.Clock,
    prepared: Callable[[], Prepared],
    helper: Executor | None,
) -> dict[str, str]:
    """Stage 3 of each method: the first ones here, the last ones in the helper, until all are done; their keys."""
    names = usable(scan, settings.models or default())
    waiting, keys = deque(names), {}

    def each(take: Callable[[], str]) -> Iterator[str]:
        with suppress(IndexError):  # the other process has taken the last
            while True:
                yield take()

    def apart(second: Executor) -> None:
        for name in each(waiting.pop):
            keys[name], row = second.submit(methods.compute_apart, scan, settings, name, prepared_key).result()
            clock.entries.append(row)

    with ThreadPoolExecutor(1) as beside:
        there = beside.submit(apart, helper) if helper and len(names) > 1 else None
        try:
            for name in each(waiting.popleft):
                with clock.stage(f"model {name}") as note:
                    keys[name] = methods.compute(scan, settings, name, prepared_key, note, prepared)
        finally:
            waiting.clear()
        if there:
            there.result()
    return {name: keys[name] for name in names}


def usable(scan: Scan, names: Iterable[str]) -> list[str]:
    """The methods that can work on the sequences of a session (`select` leaves out sessions that none can)."""
    return [n for n in names if "T2w" in scan.files or not load(n).needs_t2w]


def _report(
    scans: list[Scan], outcomes: list[Outcome], settings: Settings, run: logs.Run, helper: Executor | None
) -> list[Outcome]:
    """Stage 6; a report that cannot be made is a failure of the subject's last session."""
    try:
        errors = {o.label: o.error for o in outcomes}
        results.report(scans, errors, settings, helper)
    except Exception as error:
        crash = logs.crash(run, f"sub-{scans[0].subject}_report", traceback.format_exc())
        logger.error("report of sub-%s failed: %s (%s)", scans[0].subject, error, crash)
        last = outcomes[-1]
        message = last.error or f"report: {error}"
        outcomes[-1] = replace(last, error=message, crash_file=crash)
    return outcomes


def group(settings: Settings) -> Path:
    """Tables, statistics and report over all finished subjects of the output directory.

    1. collect the tables of the participant level, join them with participants.tsv (``group.table``);
    2. statistics: descriptives, agreement, repeatability, associations, quality, frequency maps (``group.analysis``);
    3. tables, maps and report.

    Returns
    -------
    Path
        ``group.html``.

    Raises
    ------
    NothingToDoError
        No subject has been processed.
    UsageError
        ``--formula`` or ``--group-by`` names what is not there.
    """
    from bids_epvs.group import analysis, table
    from bids_epvs.report import group as group_report

    check(settings)
    query.check_dataset(settings.bids_dir)
    collected = table.collect(settings.output_dir, settings.bids_dir)
    if collected.wide.empty and not collected.failures:
        raise NothingToDoError(
            "no finished participant in the output directory.",
            where=settings.output_dir,
            remedy="Run the participant level first.",
        )
    logger.info("group: %d session(s) collected", len(collected.wide))
    found = analysis.analyse(
        collected,
        source=settings.bids_dir,
        root=settings.output_dir,
        formulas=settings.formula,
        by=settings.group_by,
        with_maps=settings.maps,
        nprocs=settings.nprocs,
    )
    table.write_tables(collected, settings.output_dir)
    analysis.save(found, settings.output_dir)
    html = group_report.render(
        collected,
        found,
        thumbnails=table.thumbnails(settings.output_dir, collected.notes),
        methods=f"{boilerplate.methods(settings)} {boilerplate.statistics(found)}",
        references=boilerplate.references(settings),
        versions=logs.versions(),
    )
    return write.text(settings.output_dir / "group.html", html)
