"""Everything that differs between identical runs: log lines, timings, the manifest and crash files, in ``OUT/logs``."""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from bids_epvs import __version__, process
from bids_epvs.derivatives import write
from bids_epvs.records import Outcome
from bids_epvs.settings import Settings, as_toml

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
_PACKAGES = ("antspyx", "nibabel", "numpy", "pandas", "pybids", "scikit-image", "scipy", "nilearn", "tensorflow-cpu")


@dataclass(frozen=True)
class Run:
    """One call of the program.

    Attributes
    ----------
    folder : Path
        ``OUT/logs/<run id>``.
    started : float
        Seconds since the epoch.
    """

    folder: Path
    started: float


class Watch:
    """Told about the progress of a run; this one says nothing."""

    def begin(self, sessions: int) -> None:
        """So many sessions will be tried."""

    def stage(self, label: str, name: str) -> None:
        """A stage of a session begins (only told where sessions run in this process)."""

    def done(self, outcome: Outcome) -> None:
        """A session ended."""


class LogWatch(Watch):
    """Plain lines, for log files of clusters."""

    def done(self, outcome: Outcome) -> None:
        """One line a session; why one failed has been said where it did."""
        logger.info("%s %s", outcome.label, f"failed: {outcome.error}" if outcome.error else "done")


class BarWatch(Watch):
    """A rich progress bar of sessions, with the stage at work."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("reading the dataset", total=None)

    def begin(self, sessions: int) -> None:
        """Set the length of the bar."""
        self.bar.update(self.task, total=sessions, description="sessions")

    def stage(self, label: str, name: str) -> None:
        """Show the stage."""
        self.bar.update(self.task, description=f"{label}: {name}")

    def done(self, outcome: Outcome) -> None:
        """Advance."""
        text = f"{outcome.label} {'failed' if outcome.error else 'done'}"
        self.bar.update(self.task, advance=1, description=text)


@dataclass
class Clock:
    """Times the stages of one session."""

    label: str = ""
    watch: Watch = field(default_factory=lambda: Watch())
    entries: list[tuple[str, float, float, bool]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict]:
        """Time a block; the block may set ``reused`` in the dictionary it is given."""
        note: dict = {"reused": False}
        self.watch.stage(self.label, name)
        start = time.perf_counter()
        try:
            yield note
        finally:
            self.entries.append((name, round(time.perf_counter() - start, 3), peak_mib(), bool(note["reused"])))

    def rows(self) -> tuple[tuple[str, float, float, bool], ...]:
        """What was timed so far."""
        return tuple(self.entries)


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1024 if sys.platform != "darwin" else 1024**2), 1)


def configure(verbose: int) -> None:
    """Log lines of this process to standard error.

    Without a terminal the stages are told as they begin, unless ``-q`` was given: there they take the place of the bar.
    """
    level = LEVELS[max(-1, min(2, verbose))]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    own = logging.INFO if verbose == 0 and not sys.stderr.isatty() else level
    for handler in logging.getLogger().handlers:
        handler.setLevel(own)
    logging.getLogger("bids_epvs").setLevel(own)
    for noisy in ("matplotlib", "PIL", "bids", "bidsschematools", "templateflow", "fontTools"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)


def configure_worker(settings: Settings, run: Run) -> None:
    """Logging, thread counts and device of the process that runs a subject; the log file is shared by all subjects.

    All of it is read when a library loads, which happens later and only where it is needed.
    """
    for name in THREADS:
        os.environ.setdefault(name, str(settings.omp_nthreads))
    process.keep_memory()
    if settings.device != "auto":
        os.environ["CUDA_VISIBLE_DEVICES"] = {"cpu": "-1", "cuda": "0"}.get(settings.device, settings.device[5:])
    if not logging.getLogger().handlers:
        configure(settings.verbose)
    root = logging.getLogger("bids_epvs")
    target = str(run.folder / "run.log")
    if not any(isinstance(h, logging.FileHandler) and h.baseFilename == target for h in root.handlers):
        close()
        handler = logging.FileHandler(target, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(logging.INFO)
        root.addHandler(handler)
    root.setLevel(min(logging.INFO, root.getEffectiveLevel()))  # for the file


def close() -> None:
    """Write no more to the log file of a run from this process: what is said later is of something else."""
    root = logging.getLogger("bids_epvs")
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def start(settings: Settings) -> Run:
    """Make the folder of this run and record the resolved settings."""
    now = datetime.now(UTC)
    folder = settings.output_dir.resolve() / "logs" / f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
    write.text(folder / "settings.toml", tomli_w.dumps(as_toml(settings)))
    return Run(folder, time.time())


def crash(run: Run, label: str, trace: str) -> str:
    """Save a traceback; returns its name relative to the output."""
    path = write.text(run.folder / f"crash-{label}.txt", trace)
    return str(path.relative_to(run.folder.parents[1]))


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    out = {"bids_epvs": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def finish(run: Run, outcomes: list[Outcome], without_t2w: Iterable[str]) -> Path:
    """Write the manifest of the run."""
    sessions = [
        {
            "label": o.label,
            "error": o.error or None,
            "crash_file": o.crash_file or None,
            "inputs_sha256": dict(o.hashes),
            "stages": [dict(zip(("name", "seconds", "peak_mib", "reused"), s, strict=True)) for s in o.stages],
        }
        for o in outcomes
    ]
    content = {
        "versions": versions(),
        "platform": platform.platform(),
        "command": sys.argv,
        "started": datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - run.started, 1),
        "sessions": sessions,
        "skipped_without_t2w": list(without_t2w),
    }
    return write.as_json(run.folder / "manifest.json", content)


@contextmanager
def progress(settings: Settings) -> Iterator[Watch]:
    """A progress bar on a terminal, log lines otherwise."""
    if not sys.stderr.isatty() or settings.verbose < 0:
        yield LogWatch()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield BarWatch(bar)
