"""Time of each stage and peak memory of one session, in a process of its own.

``python benchmarks/preparation.py BIDS_DIR [--participant-label L] [--session-label L]`` runs the participant level
twice into a new directory and prints a table; the second run shows what resuming costs. Without BIDS_DIR a subject
with T2w, T1w and FLAIR is simulated first.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path


def run(command: list[str]) -> None:
    """Run a command of the environment of this Python, and stop with its exit code if it fails."""
    program = str(Path(sys.executable).parent / command[0])
    subprocess.run([program, *command[1:]], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bids_dir", nargs="?", type=Path)
    parser.add_argument("--participant-label")
    parser.add_argument("--session-label")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.bids_dir
        if data is None:
            data = Path(folder) / "bids"
            run(["bids_epvs-simulate", str(data), "--subjects", "1", "--contrasts", "T2w", "T1w", "FLAIR"])
        out = Path(folder) / "out"
        chosen = ["--skip-bids-validation", "-q"]
        for name in ("participant_label", "session_label"):
            if getattr(args, name):
                chosen += ["--" + name.replace("_", "-"), getattr(args, name)]
        for _ in range(2):
            run(["bids_epvs", str(data), str(out), "participant", *chosen])
        print(f"{platform.processor() or platform.machine()}, python {platform.python_version()}")
        for kind, manifest in zip(("first", "again"), sorted(out.glob("logs/*/manifest.json")), strict=True):
            content = json.loads(manifest.read_text())
            for session in content["sessions"]:
                print(f"\n{kind}: {session['label']}")
                for stage in session["stages"]:
                    reused = " (reused)" if stage["reused"] else ""
                    print(f"  {stage['name']:16s} {stage['seconds']:8.1f} s  peak {stage['peak_mib']:7.0f} MiB{reused}")
            print(f"  {'whole run':16s} {content['seconds']:8.1f} s")


if __name__ == "__main__":
    main()
