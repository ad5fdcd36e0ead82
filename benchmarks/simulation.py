"""Statistics of simulated EPVS against the priors, and speed of whole scans and training crops.

``python benchmarks/simulation.py [--subjects 50] [--labelmaps DIR]`` draws anatomy and tubes (no images) for each
subject and prints medians beside the table of `bids_epvs.synth.tubes`, then times one subject with four contrasts at
1 mm and training crops.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from bids_epvs.prepare.regions import REGIONS, from_labels
from bids_epvs.synth import anatomy, contrast, scene, tubes

COARSE_MM = 1.0
"""Tubes do not depend on the voxel size of the head beyond its borders; this keeps 50 subjects to minutes."""


def draw(head: anatomy.Anatomy, number: int, burden: str) -> tuple[pd.DataFrame, dict[str, int], float]:
    """Tubes of one subject, the counts wanted, and the volume inside the skull in mm3."""
    rng = np.random.default_rng([99, number])
    moved = anatomy.deformed(head, rng, spacing=COARSE_MM)
    half = anatomy.every_second(moved)
    regions = from_labels(anatomy.plain(half.labels), half.spacing, half.to_template @ half.affine)
    wanted = tubes.sample_counts(rng, burden)
    drawn = tubes.sample(rng, moved, regions, wanted)
    rows = [(REGIONS[t.region].name, t.diameter_mm, t.length_mm, t.volume_mm3) for t in drawn]
    skull = np.isin(moved.labels, [i for i, e in anatomy.ATLAS_LABELS.items() if e.brain]).sum() * COARSE_MM**3
    return pd.DataFrame(rows, columns=["region", "diameter", "length", "volume"]), wanted, float(skull)


def statistics(heads: list[anatomy.Anatomy], subjects: int) -> None:
    """Print medians by region, counts reached, and volume fractions."""
    parts, wanted, reached = [], {n: 0 for n in tubes.PRIORS}, {n: 0 for n in tubes.PRIORS}
    for number in range(subjects):
        table, asked, _ = draw(heads[number % len(heads)], number, "any")
        parts.append(table)
        for name, n in asked.items():
            wanted[name] += n
            reached[name] += int((table["region"] == name).sum())
    every = pd.concat(parts)
    print(f"{subjects} subjects, burden any; medians against priors")
    for name, prior in tubes.PRIORS.items():
        own = every[every["region"] == name]
        print(
            f"  {name:18s} diameter {own['diameter'].median():.2f} ({prior.diameter_mm}) mm, "
            f"length {own['length'].median():.2f} ({prior.length_mm}) mm, volume {own['volume'].mean():.1f} mm3, "
            f"drawn {reached[name]} of {wanted[name]}"
        )
    old = [draw(heads[n % len(heads)], 1000 + n, "elderly") for n in range(max(4, subjects // 2))]
    counts = [int((t["region"] == "CentrumSemiovale").sum()) for t, _, _ in old]
    share = [100 * t.loc[t["region"] == "CentrumSemiovale", "volume"].sum() / skull for t, _, skull in old]
    low, high = np.percentile(counts, [25, 75])
    print(f"  elderly: CSO count median {np.median(counts):.0f} (410), IQR {high - low:.0f} (201)")
    print(f"  elderly: EPVS of the CSO fill {np.median(share):.2f} % of the volume inside the skull (0.22 at 73 years)")


def speed(path: Path | None) -> None:
    """Print seconds of one subject with four contrasts at 1 mm, and crops a second."""
    begin = time.perf_counter()
    rng = np.random.default_rng(7)
    head = anatomy.from_labelmap(path) if path else anatomy.packaged()
    made = scene.build(rng, head, burden="high", age=75)
    protocol = contrast.Protocol((1.0, 1.0, 1.0), thickness=1.0, matrix=0.9)
    for name in contrast.MEANS:
        made.scan(rng, scene.draw_look(rng, name, strength=0.8), protocol)
    made.fraction(protocol.spacing)
    print(f"four contrasts at 1 mm: {time.perf_counter() - begin:.0f} s (aim: below 60)")
    thick = contrast.Protocol((0.5, 0.5, 4.0), thickness=3.6)
    for shape, use in (((64, 64, 64), protocol), ((96, 96, 7), thick)):
        begin = time.perf_counter()
        for _ in range(40):
            made.crop(rng, [scene.draw_look(rng, "T2w", strength=0.8)], use, shape)
        print(f"crops {shape}: {40 / (time.perf_counter() - begin):.0f} a second (aim: 20)")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--subjects", type=int, default=50)
    parser.add_argument("--labelmaps", type=Path)
    args = parser.parse_args()
    paths = sorted(args.labelmaps.glob("*_dseg.nii.gz")) if args.labelmaps else []
    heads = [anatomy.refined(anatomy.read_labelmap(p), COARSE_MM) for p in paths] or [anatomy.packaged(COARSE_MM)]
    speed(paths[0] if paths else None)
    statistics(heads, args.subjects)


if __name__ == "__main__":
    main()
