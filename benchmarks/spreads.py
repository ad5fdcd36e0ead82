"""How far counts of the whole app lie from the truth of simulated sessions: writes ``spreads.json`` for intervals.

bids_epvs-simulate SIM --labelmaps HELD_OUT_HEADS --subjects 20 --protocol mixed --contrasts T2w --seed 31
bids_epvs SIM OUT participant
python benchmarks/spreads.py SIM/derivatives/truth OUT bids_epvs/data/weights/spreads.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from bids_epvs.derivatives import write
from bids_epvs.evaluate import cases
from bids_epvs.measure import spread
from bids_epvs.models import MODELS, load
from bids_epvs.prepare.resample import thickness


def counts(case: cases.Case) -> pd.DataFrame:
    """Counts of a session by method, region and hemisphere beside the true ones."""
    found, truth = (cases.summary(folder, case.label) for folder in (case.results, case.truth))
    if found is None or truth is None:
        return pd.DataFrame()
    keys = ["region", "hemisphere"]
    joined = found.merge(truth[[*keys, "count"]].rename(columns={"count": "truth"}), on=keys)
    known = cases.read_truth(case)
    return joined.assign(label=case.label, slices=thickness(known.spacing)).dropna(subset=["count", "truth"])


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sessions", type=Path, nargs=2, action="append", required=True, metavar=("TRUTH", "RESULTS"))
    args = parser.parse_args()
    table = pd.concat([counts(case) for pair in args.sessions for case in cases.find(*pair)])
    out: dict[str, dict] = {}
    for (model, slices), own in table.groupby(["model", "slices"], sort=False):
        weights = load(str(model)).weights if model in MODELS else None
        if weights:
            out.setdefault(str(model), {"WeightsSHA256": weights.sha256})[str(slices)] = spread.measured(own)
    write.text(args.out, json.dumps(out, indent=2) + "\n")
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
