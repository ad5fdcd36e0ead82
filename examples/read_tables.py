"""Read the tables of a finished run with pandas: counts by region, and the largest EPVS."""

import sys
from pathlib import Path

import pandas as pd

if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/out")
    group = pd.read_csv(out / "group_epvs.tsv", sep="\t", na_values="n/a")
    columns = [c for c in group if c.endswith("_count") and "left" not in c and "right" not in c]
    print(group[["participant_id", *columns]].to_string(index=False))
    tables = sorted(out.glob("sub-*/**/*_desc-lesions_epvs.tsv"))
    lesions = pd.concat(pd.read_csv(t, sep="\t").assign(file=t.name.split("_desc-")[0]) for t in tables)
    print(lesions.nlargest(5, "volume_mm3")[["file", "region", "hemisphere", "volume_mm3", "length_mm"]])
