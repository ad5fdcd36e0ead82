"""Grades of the basal ganglia on simulated scans of heads that no method was made from: `rating2d` and `resnet152`.

``python benchmarks/grades.py LABELMAPS OUT`` draws scans of the heads given with ``--subjects`` (kept in OUT/examples)
and writes

- ``rating2d.tsv``: accuracy of images and subjects (highest and majority), quadratic kappa, AC2, Spearman, ranked
  probability score, by resolution; with ``--plain FILE`` (weights of ``bids_epvs-train rating2d --no-haar``) and
  ``--squared FILE`` (``--squared``) also of those, and with ``--tune EXAMPLES`` of two baselines grown on that folder
  of training examples: a random forest on Haar-like features of each pixel, whose EPVS are counted (Park et al. 2016,
  the baseline of the paper), and one on statistics of Haar-like features of the whole image;
- ``resnet152.tsv``: accuracy, AUC, sensitivity and the others of `classification.binary`, by resolution;
- ``gradcam.tsv``: of each severe scan the share of the map inside the basal ganglia and on EPVS, the same for 99 random
  shifts of the map (p), how much stronger it is on EPVS than on average in the basal ganglia (``epvs_enrichment``), and
  the correlation with the map of a network with random weights;
- ``clever.tsv``: CLEVER scores of the first scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from scipy import ndimage, stats
from sklearn.ensemble import RandomForestClassifier

from bids_epvs.explain import clever, gradcam
from bids_epvs.measure import agreement, classification
from bids_epvs.models import rating2d, resnet152, weights
from bids_epvs.synth import grades
from bids_epvs.train import grades as training

Rated = list[tuple[np.ndarray, np.ndarray]]


def levelled(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image (*SIZE, 2) with median 0 and spread 1 inside the region, and that region (mask)."""
    image, inside = seen[..., 0], seen[..., 1] > 0.5
    level, spread = np.median(image[inside]), max(float(np.ptp(np.percentile(image[inside], [10, 90]))), 1e-3)
    return (image - level) / spread, inside


def haar_features(seen: np.ndarray) -> np.ndarray:
    """Haar-like responses of an image (*SIZE, 2) inside the region: quantiles and numbers of peaks by scale."""
    if (seen[..., 1] > 0.5).sum() < 20:
        return np.zeros(5 * 4 * 6)
    image, inside = levelled(seen)
    out: list[float] = []
    for size in (2, 3, 4, 6, 8):
        mean, wide = ndimage.uniform_filter(image, size), ndimage.uniform_filter(image, 3 * size)
        row, column = (ndimage.uniform_filter1d(mean, 3 * size, axis=a) for a in (0, 1))
        edge = ndimage.sobel(mean)
        for response in (mean - wide, mean - row, mean - column, edge):
            values = response[inside]
            top = (response == ndimage.maximum_filter(response, 3)) & inside
            out += [*np.percentile(values, [50, 90, 99]), values.std()]
            out += [float((top & (response > t)).sum()) for t in (0.5, 1.0)]
    return np.array(out)


def forest(examples: Path, files: list[Path], *, seed: int = 1) -> Rated:
    """Haar-like features and a random forest: probabilities of the grades of each image."""
    x, y = [], []
    for path in sorted(examples.glob("example-*.npz")):
        stack, known = training.images(path, enhanced=False)
        x += [haar_features(s.astype(np.float32) / 255) for s in stack]
        y += known.tolist()
    grown = RandomForestClassifier(300, min_samples_leaf=2, class_weight="balanced", n_jobs=-1, random_state=seed)
    grown.fit(np.array(x), np.array(y))
    out: Rated = []
    for path in files:
        stack, known = training.images(path, enhanced=False)
        found = grown.predict_proba(np.array([haar_features(s.astype(np.float32) / 255) for s in stack]))
        chances = np.zeros((len(stack), rating2d.GRADES))
        chances[:, grown.classes_] = found
        out.append((known, chances))
    return out


def pixel_features(seen: np.ndarray) -> np.ndarray:
    """Haar-like features of each pixel of an image (*SIZE, 2) inside the region, (n, k), after Park et al. 2016.

    Differences of means over boxes of four sizes: centre minus surround, and the least and the greatest difference to
    boxes on both sides along four directions, so that the direction of an EPVS does not matter.
    """
    image, inside = levelled(seen)
    columns = [image]
    for size in (1, 2, 3, 5):
        box = ndimage.uniform_filter(image, size)
        columns += [box - ndimage.uniform_filter(image, 3 * size), box - ndimage.uniform_filter(image, 7 * size)]
        ridges, steps = [], []
        for step in ((size + 1, 0), (0, size + 1), (size, size), (size, -size)):
            before, behind = np.roll(box, step, (0, 1)), np.roll(box, (-step[0], -step[1]), (0, 1))
            ridges.append(box - np.maximum(before, behind))
            steps.append(np.abs(before - behind))
        columns += [np.min(ridges, axis=0), np.max(ridges, axis=0), np.min(steps, axis=0), np.max(steps, axis=0)]
    return np.stack([c[inside] for c in columns], axis=1).astype(np.float32)


def pixel_forest(files: list[Path], *, seed: int = 1) -> RandomForestClassifier:
    """A forest grown on all EPVS pixels of the images and five times as many others."""
    rng = np.random.default_rng(seed)
    rows, targets = [], []
    for path in files:
        stack, _ = training.images(path, enhanced=False)
        with np.load(path) as stored:
            marks = stored["marks"]
        for seen, mark in zip(stack.astype(np.float32) / 255, marks, strict=True):
            inside = seen[..., 1] > 0.5
            if inside.sum() < 20:
                continue
            epvs = mark[inside] >= 64
            others = np.flatnonzero(~epvs)
            chosen = np.r_[np.flatnonzero(epvs), rng.choice(others, min(len(others), 5 * int(epvs.sum()) + 50))]
            rows.append(pixel_features(seen)[chosen])
            targets.append(epvs[chosen])
    forest = RandomForestClassifier(60, max_depth=14, min_samples_leaf=4, n_jobs=-1, random_state=seed)
    return forest.fit(np.concatenate(rows), np.concatenate(targets))


THRESHOLDS, AREAS = (*np.arange(0.3, 0.9, 0.05), 0.9, 0.93, 0.95, 0.97, 0.98, 0.99), (1, 2, 3, 5)
FACTORS = (0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5)


def pixel_counts(forest: RandomForestClassifier, path: Path) -> np.ndarray:
    """Pieces in each image of a scan at each of `THRESHOLDS` with at least each of `AREAS` pixels, (n, t, a)."""
    stack, _ = training.images(path, enhanced=False)
    out = np.zeros((len(stack), len(THRESHOLDS), len(AREAS)))
    for k, seen in enumerate(stack.astype(np.float32) / 255):
        inside = seen[..., 1] > 0.5
        if inside.sum() < 20:
            continue
        chance = np.zeros(inside.shape)
        chance[inside] = forest.predict_proba(pixel_features(seen))[:, 1]
        for t, threshold in enumerate(THRESHOLDS):
            pieces, _ = ndimage.label(chance >= threshold, np.ones((3, 3)))
            sizes = np.bincount(pieces.ravel())[1:]
            out[k, t] = [(sizes >= area).sum() for area in AREAS]
    return out


def counted(examples: Path, files: list[Path]) -> Rated:
    """Grades from the EPVS that a forest on pixels finds; threshold, size and factor chosen on training scans.

    Each half of the training scans is counted by a forest grown on the other half; then all grow the forest.
    """
    known = sorted(examples.glob("example-*.npz"))
    found, truth = [], []
    halves = known[: len(known) // 2], known[len(known) // 2 :]
    for own, other in (halves, halves[::-1]):
        forest = pixel_forest(other)
        for path in own:
            found.append(pixel_counts(forest, path).max(axis=0))
            truth.append(training.images(path)[1].max())
    settings = [(t, a, f) for t in range(len(THRESHOLDS)) for a in range(len(AREAS)) for f in FACTORS]

    def right(setting: tuple[int, int, float]) -> float:
        t, a, f = setting
        said = [training.grade(round(f * n[t, a])) for n in found]
        return float(np.mean(np.array(said) == truth)) - 0.01 * float(np.mean(np.abs(np.array(said) - truth)))

    t, a, f = max(settings, key=right)
    print(
        f"pixel forest: threshold {THRESHOLDS[t]:.2f}, {AREAS[a]} pixels, factor {f}: {right((t, a, f)):.2f}",
        flush=True,
    )
    forest = pixel_forest(known)
    out: Rated = []
    for path in files:
        said = [training.grade(round(f * n[t, a])) for n in pixel_counts(forest, path)]
        out.append((training.images(path)[1], np.eye(rating2d.GRADES)[said]))
    return out


def figures(name: str, found: Rated, thick: np.ndarray, alike: float | None = None) -> list[dict[str, Any]]:
    """Rows of ``rating2d.tsv``; without `alike` the highest grade is the highest of the most probable ones."""
    rows = []
    for part, chosen in (("all", np.ones(len(found), bool)), ("isotropic", ~thick), ("thick", thick)):
        own = [f for f, keep in zip(found, chosen, strict=True) if keep]
        truth = np.array([g.max() for g, _ in own])
        images = np.concatenate([g for g, _ in own]) == np.concatenate([p.argmax(axis=1) for _, p in own])
        row: dict[str, Any] = {"method": name, "part": part, "n": len(own), "accuracy_images": images.mean()}
        sure = [p if alike else np.eye(rating2d.GRADES)[p.argmax(axis=1)] for _, p in own]
        for rule in ("highest", "majority"):
            said = np.array([rating2d.subject_grade(p, rule, alike or 1.0) for p in sure])
            right = classification.proportion(int((said == truth).sum()), len(own))
            row |= {f"{rule}_accuracy": right.value, f"{rule}_low": right.low, f"{rule}_high": right.high}
            row[f"{rule}_kappa"] = agreement.weighted_kappa(truth, said, categories=rating2d.GRADES).value
            row[f"{rule}_ac2"] = agreement.gwet_ac2(truth, said, categories=rating2d.GRADES).value
            row[f"{rule}_spearman"] = float(stats.spearmanr(truth, said).statistic)
        chances = np.stack([rating2d.subject_chances(p, alike or 1.0) for _, p in own])
        rows.append({**row, "rps": classification.ranked_probability_score(truth, chances)})
    return rows


def network(build: Any, packaged: Any, file: Path | None) -> tuple[keras.Model, dict[str, Any]]:
    """A network and its calibration from a file or the package."""
    model, path = weights.restored(build, packaged, file, what="the network", instead="install one")
    return model, weights.calibration(path)


def rated(file: Path | None, files: list[Path], *, enhanced: bool) -> tuple[Rated, float]:
    """Calibrated probabilities of `rating2d`, and how much images are alike."""
    model, stored = network(rating2d.build, rating2d.WEIGHTS, file)
    found = training.rated(model, files, enhanced=enhanced)
    return [(g, rating2d.cooled(p, stored.get("temperature", 1.0))) for g, p in found], stored.get("alike", 1.0)


def looks(model: keras.Model, files: list[Path], layer: str, *, shifts: int = 99, seed: int = 1) -> pd.DataFrame:
    """Where Grad-CAM of severe scans lies, against random shifts of the same map, and against random weights."""
    rng = np.random.default_rng(seed)
    random = keras.models.clone_model(model)
    rows = []
    for path in files:
        with np.load(path) as stored:
            image, basal, epvs = stored["box"].astype(np.float32) / 255, stored["basal"], stored["epvs"]
        seen = image[..., None]
        small = gradcam.gradcam(model, seen, layer)
        if small.max() <= 0:
            continue
        looked = resnet152.near(basal)
        found = gradcam.resized(small, resnet152.SHAPE) * looked
        other = gradcam.resized(gradcam.gradcam(random, seen, layer), resnet152.SHAPE) * looked
        row: dict[str, Any] = {"example": path.stem}
        for name, where in (("basal", basal), ("epvs", epvs)):
            share = float(found[where].sum() / found.sum())
            chance = []
            for _ in range(shifts):
                turn = tuple(int(rng.integers(0, n)) for n in found.shape)
                moved = np.roll(found, turn, axis=(0, 1, 2))
                chance.append(float(moved[where].sum() / found.sum()))
            row |= {f"{name}_share": share, f"{name}_chance": float(np.mean(chance))}
            row[f"{name}_p"] = (1 + sum(c >= share for c in chance)) / (1 + shifts)
        within = float(found[basal].sum() / found.sum()) * float((epvs & basal).sum() / max(basal.sum(), 1))
        row["epvs_enrichment"] = float(found[epvs & basal].sum() / found.sum()) / within if within > 0 else np.nan
        same = other[looked].std() > 0 and found[looked].std() > 0
        row["random_r"] = float(stats.spearmanr(found[looked], other[looked]).statistic) if same else 0.0
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Write the tables, print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("labelmaps", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["05", "20"])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=777, help="of the scenes")
    parser.add_argument("--rating2d", type=Path, help="other weights than the packaged ones")
    parser.add_argument("--plain", type=Path, help="weights trained with --no-haar")
    parser.add_argument("--squared", type=Path, help="weights trained with --squared")
    parser.add_argument("--resnet152", type=Path, help="other weights than the packaged ones")
    parser.add_argument("--tune", type=Path, metavar="EXAMPLES", help="training examples for the random forest")
    parser.add_argument("--clever", type=int, default=6, metavar="N", help="scans with a CLEVER score")
    args = parser.parse_args()
    heads = tuple(args.labelmaps / f"sub-{s}_dseg.nii.gz" for s in args.subjects)
    grades.generate(heads, args.out / "examples", number=args.scenes, seed=args.seed)
    files = sorted((args.out / "examples").glob("example-*.npz"))
    thick = np.array([np.load(path)["spacing"][2] > 1.5 for path in files])
    pd.set_option("display.width", 220, "display.max_columns", 40)

    def of(name: str, file: Path | None, *, enhanced: bool = True) -> list[dict[str, Any]]:
        found, alike = rated(file, files, enhanced=enhanced)
        return figures(name, found, thick, alike)

    rows = of("rating2d", args.rating2d)
    if args.plain:
        rows += of("rating2d without Haar", args.plain, enhanced=False)
    if args.squared:
        rows += of("rating2d, squared error", args.squared)
    if args.tune:
        rows += figures("Haar-like features of pixels + forest, counted", counted(args.tune, files), thick)
        rows += figures("Haar-like features of images + forest", forest(args.tune, files), thick)
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "rating2d.tsv", sep="\t", index=False)
    print(table.round(3).to_string(index=False), flush=True)

    model, stored = network(resnet152.build, resnet152.WEIGHTS, args.resnet152)
    truth, raw = training.severities(model, files)
    chance = np.array([resnet152.calibrated(float(c), stored) for c in raw])
    parts = (("all", np.ones(len(files), bool)), ("isotropic", ~thick), ("thick", thick))
    table = pd.DataFrame([{"part": p, **classification.binary(truth[k], chance[k])} for p, k in parts])
    table.to_csv(args.out / "resnet152.tsv", sep="\t", index=False)
    print(table.round(3).T.to_string(), flush=True)

    layer = str(resnet152.SPEC.parameters["layer"])
    severe = [f for f, t, c in zip(files, truth, chance, strict=True) if t and c >= 0.5]
    table = looks(model, severe[:24], layer)
    table.to_csv(args.out / "gradcam.tsv", sep="\t", index=False)
    print(table.drop(columns="example").describe().round(3).to_string(), flush=True)

    scores = []
    for path in files[: args.clever]:
        image = training.box(path)[0].astype(np.float32)[..., None] / 255
        scores.append(clever.score(lambda x: gradcam.input_gradients(model, x), image))
    pd.DataFrame({"example": [f.stem for f in files[: args.clever]], "clever": scores}).to_csv(
        args.out / "clever.tsv", sep="\t", index=False
    )
    print("CLEVER:", np.round(scores, 3), "mean", np.mean(scores) if scores else None)


if __name__ == "__main__":
    main()
