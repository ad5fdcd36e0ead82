"""Run the app from Python on two simulated subjects, without the command line."""

import sys
from pathlib import Path

from bids_epvs import pipeline
from bids_epvs.settings import Settings
from bids_epvs.synth.dataset import Plan, simulate

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
    simulate(Plan(folder / "bids", subjects=2, seed=4))
    settings = Settings(bids_dir=folder / "bids", output_dir=folder / "out", models=("frangi",))
    for outcome in pipeline.participant(settings):
        print(outcome.label, outcome.error or "done", f"{sum(s[1] for s in outcome.stages):.0f} s")
    print("group report:", pipeline.group(settings))
