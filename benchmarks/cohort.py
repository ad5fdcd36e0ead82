"""Time and memory of the group level on simulated tables.

``python benchmarks/cohort.py [--people 10000] [--keep DIR]`` writes the tables of that many participants (no images)
and runs ``bids_epvs RAW OUT group`` in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bids_epvs.synth.cohort import Design, write_cohort


def main() -> None:
    """Print seconds of writing, seconds and peak memory of the group level, and the size of the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--people", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="write there, and leave it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        begin = time.perf_counter()
        write_cohort(root / "raw", root / "out", Design(args.people, args.sessions))
        written = time.perf_counter() - begin
        command = [sys.executable, "-m", "bids_epvs", str(root / "raw"), str(root / "out"), "group", "--no-maps"]
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        took = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        size = (root / "out" / "group.html").stat().st_size / 2**20
        print(
            f"people\t{args.people}\nwritten_s\t{written:.0f}\ngroup_s\t{took:.1f}\npeak_gib\t{peak:.2f}\npage_mib\t{size:.1f}"
        )


if __name__ == "__main__":
    main()
