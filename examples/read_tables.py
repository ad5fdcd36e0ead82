"""Read the tables of a finished run with pandas: counts by session, method and region, and the largest EPVS."""

import sys
from pathlib import Path

import pandas as pd

if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/out")
    rows = pd.read_csv(out / "group_epvs_long.tsv", sep="\t", na_values="n/a")
    counted = rows[(rows["hemisphere"] == "both") & rows["count"].notna()]
    sessions = [c for c in ("participant_id", "session_id") if c in counted]
    counts = counted.pivot(index=[*sessions, "model"], columns="region", values="count").reset_index()
    print(counts.to_string(index=False, na_rep="n/a"))
    tables = sorted(out.glob("sub-*/**/*_desc-lesions_epvs.tsv"))
    lesions = pd.concat(pd.read_csv(t, sep="\t").assign(file=t.name.split("_desc-")[0]) for t in tables)
    columns = ["file", "model", "region", "hemisphere", "volume_mm3", "length_mm"]
    print(lesions.nlargest(5, "volume_mm3")[columns].to_string(index=False))
