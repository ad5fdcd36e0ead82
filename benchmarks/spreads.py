"""How far counts of the whole app lie from the truth of simulated sessions: writes ``spreads.json`` for intervals.

The packaged file comes from twenty thick sessions of the packaged head and five of heads 12 and 17::

    bids_epvs-simulate A --subjects 20 --seed 11 --protocol clinical
    bids_epvs A OUT_A participant --models unet gpunet cnn
    bids_epvs-simulate B --labelmaps HELD_OUT_HEADS --subjects 6 --protocol mixed --contrasts T2w --seed 31
    bids_epvs B OUT_B participant --models unet gpunet cnn --participant-label 01 02 03 04 06
    python benchmarks/spreads.py bids_epvs/data/weights/spreads.json \\
        --sessions A/derivatives/truth OUT_A --sessions B/derivatives/truth OUT_B

and for coronal and sagittal slices from twelve sessions of the packaged head and four of heads 12 and 17::

    bids_epvs-simulate C --subjects 6 --seed 12 --protocol coronal --contrasts T2w
    bids_epvs-simulate S --subjects 6 --seed 13 --protocol sagittal --contrasts T2w
    bids_epvs-simulate D --labelmaps HELD_OUT_HEADS --subjects 2 --seed 32 --protocol coronal --contrasts T2w
    bids_epvs-simulate E --labelmaps HELD_OUT_HEADS --subjects 2 --seed 33 --protocol sagittal --contrasts T2w

All runs were made with a ``spreads.json`` that held ``{}``. Kinds of slices that the sessions given do not have stay in
the file as they are.

Coverage is only honest where the app did not know the spreads of the weights it ran with: otherwise the intervals
that are left out have been widened with them already. Empty the packaged file before the runs.
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
from bids_epvs.models.weights import identities
from bids_epvs.prepare import planes

FEWEST = 10
"""Sessions of one kind of slices below which axial sessions, thick and thin, are taken together."""


def counts(case: cases.Case) -> pd.DataFrame:
    """Counts of a session by method, region and hemisphere beside the true ones."""
    found, truth = (cases.summary(folder, case.label) for folder in (case.results, case.truth))
    if found is None or truth is None:
        return pd.DataFrame()
    keys = ["region", "hemisphere"]
    joined = found.merge(truth[[*keys, "count"]].rename(columns={"count": "truth"}), on=keys)
    known = cases.read_truth(case)
    return joined.assign(label=case.label, slices=planes.kind(known.spacing)).dropna(subset=["count", "truth"])


def covered(own: pd.DataFrame) -> dict[str, float]:
    """Share of sessions whose true count (both hemispheres) lies in the interval that the other sessions give."""
    out = []
    for label, left in own.groupby("label"):
        known = spread.measured(own[own["label"] != label])
        made = spread.widened(left, known)
        made["held"] = (made["count_low"] <= made["truth"]) & (made["truth"] <= made["count_high"])
        out.append(made[made["hemisphere"] == "both"])
    shares = pd.concat(out).groupby("region", sort=False)["held"].mean()
    return {str(region): round(float(share), 2) for region, share in shares.items()}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--sessions", type=Path, nargs=2, action="append", required=True, metavar=("TRUTH", "RESULTS"))
    args = parser.parse_args()
    table = pd.concat(
        [counts(case).assign(set=k) for k, pair in enumerate(args.sessions) for case in cases.find(*pair)]
    )
    table["label"] = table["set"].astype(str) + "/" + table["label"]
    out: dict[str, dict] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for model, every in table.groupby("model", sort=False):
        weights = load(str(model)).weights if model in MODELS else None
        if weights is None or every["label"].nunique() < FEWEST:
            continue
        axial = every[every["slices"] != "turned"]
        several = {str(k): own["label"].nunique() >= FEWEST for k, own in every.groupby("slices")}
        kinds = {k: every[every["slices"] == k] if s else axial for k, s in several.items() if s or k != "turned"}
        found = {k: spread.measured(own) for k, own in kinds.items()}
        held = {k: covered(own) for k, own in kinds.items()}
        before = out.get(str(model), {})
        out[str(model)] = {
            **before,
            "WeightsSHA256": sorted(set(identities(weights).values())),
            **found,
            "CoverageLeaveOneOut": {**before.get("CoverageLeaveOneOut", {}), **held},
        }
    write.text(args.out, json.dumps(out, indent=2) + "\n")
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
