"""Rehearse the statistics of a study before there are scans: tables with a known effect, then the group level.

``python examples/rehearse_a_cohort.py OUT [people]`` prints the rate ratio of age (true: 1.02) in each region; the page
is OUT/derivatives/group.html. The tables are simulated: they say how wide intervals will be, nothing about EPVS.
"""

import sys
from pathlib import Path

import pandas as pd

from bids_epvs.cli import run, settings_from
from bids_epvs.synth.cohort import Design, write_cohort

raw, out = Path(sys.argv[1]), Path(sys.argv[1]) / "derivatives"
write_cohort(raw, out, Design(people=int(sys.argv[2]) if len(sys.argv) > 2 else 80, rate=1.02, seed=1))
run(settings_from([str(raw), str(out), "group", "--no-maps", "--formula", "count ~ age + C(sex)"]))
found = pd.read_csv(out / "group_associations.tsv", sep="\t")
age = found[(found["term"] == "age") & (found["model"] == "unet")]
print(age[["region", "value", "value_low", "value_high", "q", "n"]].to_string(index=False))
