"""The report of one subject: records to one self-contained HTML page and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from bids_epvs.measure import ratings
from bids_epvs.measure.ratings import APART, SEVERITY
from bids_epvs.models import load, rating2d
from bids_epvs.models.spec import ModelSpec
from bids_epvs.prepare.regions import NAMES, REGIONS, indices
from bids_epvs.records import Prepared, Scan
from bids_epvs.report import consensus, figures, plots

DECIDED = ("BasalGanglia", "CentrumSemiovale", "Hippocampus", "Midbrain")
"""Regions whose fullest slice is shown."""


@dataclass(frozen=True)
class View:
    """What the report shows of one session.

    Attributes
    ----------
    scan : Scan
    error : str
        Empty, or the message that ended the session.
    prepared : Prepared, optional
        None where preparation failed.
    masks : mapping
        Instances of each model, canonical frame.
    summary : DataFrame, optional
        The table by region and hemisphere.
    sources : mapping
        Sequence -> file name relative to the dataset.
    maps : mapping
        Saliency map of each model that has one, canonical frame.
    details : mapping
        What models that give numbers recorded beside them.
    remarks : mapping
        Warnings of each model that gave any.
    """

    scan: Scan
    error: str = ""
    prepared: Prepared | None = None
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    summary: pd.DataFrame | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict)


def environment() -> Environment:
    """The template engine: escaping on, unknown names are errors."""
    found = Environment(
        loader=PackageLoader("bids_epvs.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    found.filters.update(number=number, counted=counted, answer=answer, rated=rated)
    return found


def number(value: Any, digits: int = 0) -> str:
    """A number for people; n/a where it is missing.

    >>> number(12.345, 1), number(float("nan"))
    ('12.3', 'n/a')
    """
    if value is None or pd.isna(value):
        return "n/a"
    return f"{float(value):,.{digits}f}"


def counted(value: Any) -> str:
    """A count: whole, or with one decimal where a regression gives it.

    >>> counted(12.0), counted(12.34), counted(None)
    ('12', '12.3', 'n/a')
    """
    return number(value, 0 if pd.isna(value) or float(value).is_integer() else 1)


def answer(found: Mapping[str, Any]) -> str:
    """What a method says of a region: count and grade, or severity.

    >>> answer({"count": 12.0, "rating": 2.0, "rating_scale": "Potter"}), answer({})
    ('12 (grade 2)', '')
    """
    if not found:
        return ""
    grade = found["rating"]
    if found["rating_scale"] == SEVERITY:
        return ("moderate to severe" if grade else "none or mild") if pd.notna(grade) else "n/a"
    words = "" if pd.isna(found["count"]) else counted(found["count"])
    if pd.notna(grade):
        words += f" (grade {number(grade)})" if words else f"grade {number(grade)}"
    return words or "n/a"


def rated(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a method rated any region of any side."""
    return any(pd.notna(row[side]["rating"]) for row in rows for side in ("left", "right", "both"))


def render(
    views: Sequence[View], *, methods: str, versions: Mapping[str, str], key: str, helper: Executor | None = None
) -> tuple[str, dict[str, bytes]]:
    """HTML page and its pictures by file name.

    Parameters
    ----------
    views : sequence of View
        The sessions of one subject.
    methods : str
        Methods paragraph.
    versions : mapping
        Package versions.
    key : str
        Recorded in the page, to know whether it is current.
    helper : Executor, optional
        Another process, which draws plots meanwhile.
    """
    pictures: dict[str, bytes] = {}
    sessions = [_session(view, pictures, helper) for view in views]
    names = list(dict.fromkeys(name for view in views for name in models_of(view)))
    html = (
        environment()
        .get_template("subject.html")
        .render(
            subject=views[0].scan.subject,
            sessions=sessions,
            models=[load(n) for n in names],
            methods=methods,
            versions=versions,
            key=key,
            regions=[r for r in REGIONS.values() if r.side == "Left"],
            epvs_color=figures.EPVS_COLOR,
            brain_color=figures.BRAIN_COLOR,
            apart=APART,
            color_bar=figures.data_uri(figures.png(figures.color_bar()), "png"),
        )
    )
    return html, pictures


def models_of(view: View) -> list[str]:
    """The methods with results in a session, in the order of its summary."""
    return [] if view.summary is None else list(dict.fromkeys(view.summary["model"]))


def _session(view: View, pictures: dict[str, bytes], helper: Executor | None = None) -> dict:
    """Everything the template needs of one session; fills `pictures`."""
    out: dict[str, Any] = {
        "label": view.scan.label,
        "reference": view.scan.reference,
        "error": view.error,
        "sources": view.sources,
        "skipped": view.scan.notes,
        "notes": view.prepared.notes if view.prepared else (),
        "confidence": view.prepared.confidence if view.prepared else {},
        "tables": [],
        "remarks": view.remarks,
        "mosaic": None,
        "decisions": [],
        "maps": [],
        "rated": [],
        "consensus": None,
        "attention": next((load(m).saliency for m in view.masks if m in view.maps), ""),
        "spacing": None,
    }
    if view.prepared is None:
        return out
    specs = [load(m) for m in models_of(view)]
    alone = [s for s in specs if s.name in view.maps and s.name not in view.masks and view.maps[s.name].any()]
    counts = [view.details.get(s.name, {}).get("Histogram", ()) for s in alone]
    histograms = (helper.map if helper else map)(plots.histogram, counts)
    out["spacing"] = " x ".join(f"{s:.2f}" for s in view.prepared.spacing)
    out["mosaic"] = _mosaic(view, pictures)
    pictures[f"{view.scan.label}_thumbnail.jpg"] = _thumbnail(view)
    if view.summary is not None:
        out["tables"] = [(s, table_rows(view.summary, s.name)) for s in specs]
        out["decisions"] = [d for m in view.masks for d in _decisions(view, m, pictures)]
        out["rated"] = _rated(view, pictures)
        maps = [_map(view, s, pictures) for s in alone]
        out["maps"] = [{**m, "histogram": h} for m, h in zip(maps, histograms, strict=True)]
        out["consensus"] = consensus.lines(view.summary) if len(specs) > 1 else None
    return out


def table_rows(summary: pd.DataFrame, model: str) -> list[dict]:
    """A row per region: hemispheres side by side."""
    rows = []
    for name in NAMES:
        part = summary[(summary["model"] == model) & (summary["region"] == name)].set_index("hemisphere")
        if part.empty:
            continue
        rows.append({"region": name, **{side: part.loc[side].to_dict() for side in ("left", "right", "both")}})
    return rows


def _mosaic(view: View, pictures: dict[str, bytes]) -> dict:
    """Grey mosaic, anatomy layer and one EPVS layer a model."""
    prepared = view.prepared
    assert prepared is not None  # the caller checked
    every = [{"brain": prepared.brain, "regions": prepared.regions}, *({"epvs": m} for m in view.masks.values())]
    base, (anatomy, *found) = figures.mosaic(prepared.base, every, prepared.brain, prepared.spacing)
    layers = [("anatomy", "brain and regions", _keep(pictures, f"{view.scan.label}_anatomy.png", figures.png(anatomy)))]
    for name, drawn in zip(view.masks, found, strict=True):
        uri = _keep(pictures, f"{view.scan.label}_{name}.png", figures.png(drawn))
        layers.append((name, f"EPVS by {name}", uri))
    return {"base": _keep(pictures, f"{view.scan.label}_base.jpg", figures.jpeg(base)), "layers": layers}


def _thumbnail(view: View) -> bytes:
    """One axial slice with regions and EPVS drawn in, for the contact sheet of the group report (JPEG)."""
    prepared = view.prepared
    assert prepared is not None  # the caller checked
    index = _middle(prepared)
    if view.summary is not None:
        rows = view.summary[(view.summary["region"] == "BasalGanglia") & (view.summary["hemisphere"] == "both")]
        found = rows["slice"].dropna()
        index = int(found.iloc[0]) if len(found) else index
    epvs = next(iter(view.masks.values())) > 0 if view.masks else np.zeros(prepared.brain.shape, bool)
    base, overlay = figures.tile(
        prepared.base,
        {"brain": prepared.brain, "epvs": epvs},
        axis=2,
        index=index,
        spacing=prepared.spacing,
        limits=figures.window(prepared.base, prepared.brain),
        width=220,
    )
    return figures.jpeg(figures.blended(base, overlay))


def _middle(prepared: Prepared) -> int:
    """The axial slice with the most basal ganglia, or the middle one."""
    area = np.isin(prepared.regions, indices("BasalGanglia")).sum(axis=(0, 1))
    return int(np.argmax(area)) if area.any() else prepared.brain.shape[2] // 2


def _keep(pictures: dict[str, bytes], name: str, content: bytes) -> str:
    """Remember a picture and return it as a data URI."""
    pictures[name] = content
    kind = "jpeg" if name.endswith(".jpg") else "png"
    return figures.data_uri(content, kind)


def _decisions(view: View, model: str, pictures: dict[str, bytes]) -> list[dict]:
    """The fullest slice of each rated region: whole slice, and the region at full resolution with and without EPVS.

    Of a slab (`ratings.slab`): the mean of its planes, and whatever any of them shows.
    """
    prepared, out = view.prepared, []
    assert prepared is not None and view.summary is not None  # the caller checked
    limits = figures.window(prepared.base, prepared.brain)
    depth = ratings.slab(prepared.spacing)
    for name in DECIDED:
        rows = view.summary
        row = rows[(rows["model"] == model) & (rows["region"] == name) & (rows["hemisphere"] == "both")]
        if row.empty or pd.isna(row["slice"].iloc[0]):
            continue
        index = int(row["slice"].iloc[0])
        inside = np.isin(prepared.regions, indices(name))
        one: dict[str, Any] = {"axis": 2, "spacing": prepared.spacing, "width": 620}
        one["box"] = figures.region_view(inside, prepared.spacing, index)
        planes = ratings.within(index, depth, inside.shape[2])  # the rest is not shown
        seen = prepared.base[:, :, planes].mean(axis=2, keepdims=True)
        base = figures.base(seen, index=0, limits=limits, **one)
        near = inside[:, :, [index]]
        drawn = {
            ("region", "region"): {"regions": np.where(near, prepared.regions[:, :, [index]], 0)},
            ("epvs", "EPVS"): {"epvs": view.masks[model][:, :, planes].max(axis=2, keepdims=True)},
        }
        if model in view.maps:
            top = max(float(view.maps[model][inside].max()), 1e-9)
            strong = view.maps[model][:, :, planes].max(axis=2, keepdims=True)
            drawn["map", "attention"] = {"map": np.where(near, strong / top, 0)}
        layers = [(*names, figures.overlay(what, index=0, **one)) for names, what in drawn.items()]
        stem = f"{view.scan.label}_{model}_{name}"
        out.append(
            {
                "model": model,
                "region": name,
                "slice": _named(planes, prepared.spacing[2]),
                "count": int(row["slice_count"].iloc[0]),
                "rating": row["rating"].iloc[0],
                "base": _keep(pictures, f"{stem}.jpg", figures.jpeg(base)),
                "layers": [(n, t, _keep(pictures, f"{stem}_{n}.png", figures.png(p))) for n, t, p in layers],
            }
        )
    return out


def _named(planes: slice, spacing_mm: float) -> str:
    """The axial slice, or the planes of a slab.

    >>> _named(slice(7, 8), 4.0), _named(slice(96, 104), 0.5)
    ('axial slice 7', 'axial planes 96 to 103 (4 mm together)')
    """
    first, last = planes.start, planes.stop - 1
    if first == last:
        return f"axial slice {first}"
    return f"axial planes {first} to {last} ({(last - first + 1) * spacing_mm:.2g} mm together)"


SHOWN_SLICES = 4
"""Slices of a saliency map in the report."""


def _map(view: View, spec: ModelSpec, pictures: dict[str, bytes]) -> dict:
    """The axial slices through a method's regions where its map is strongest, with the regions' outlines."""
    prepared, values = view.prepared, view.maps[spec.name]
    assert prepared is not None  # the caller checked
    inside = np.isin(prepared.regions, indices(*spec.regions))
    strength = np.where(inside.any(axis=(0, 1)), values.sum(axis=(0, 1)), -1.0)
    chosen = sorted(np.argsort(-strength, kind="stable")[:SHOWN_SLICES].tolist())
    shown = values / max(float(values.max()), 1e-9)
    own = np.where(inside, prepared.regions, 0)
    box = figures.region_view(inside, prepared.spacing, margin=30)
    limits = figures.window(prepared.base, prepared.brain)
    tiles: list[tuple[np.ndarray, ...]] = []
    for index in chosen:
        common: dict[str, Any] = {"axis": 2, "index": index, "spacing": prepared.spacing, "width": 480, "box": box}
        base, edge = figures.tile(prepared.base, {"regions": own}, limits=limits, caption=f"z {index}", **common)
        tiles.append((base, edge, figures.overlay({"map": shown}, **common)))
    base, edge, warm = (figures.grid([t[k] for t in tiles], 2) for k in range(3))
    stem = f"{view.scan.label}_{spec.name}_map"
    layers = [("region", "region", edge), ("map", "map", warm)]
    return {
        "model": spec.name,
        "says": spec.saliency,
        "base": _keep(pictures, f"{stem}.jpg", figures.jpeg(base)),
        "layers": [(n, t, _keep(pictures, f"{stem}_{n}.png", figures.png(p))) for n, t, p in layers],
        "spread": spread(view.details.get(spec.name, {})),
    }


def spread(details: Mapping[str, Any]) -> str:
    """How a Grad-CAM map is distributed, in a sentence; empty where it is not known.

    >>> spread({"FractionAbove7": 0.02, "Skewness": 2.5, "ShareByRegion": {"BasalGanglia": 0.4, "Thalamus": 0}})
    '2.0 % of what it sees lie above 7 of 10, skewness 2.5; of the whole map lie in BasalGanglia 40 %.'
    """
    if "FractionAbove7" not in details:
        return ""
    shares = [f"{name} {100 * share:.0f} %" for name, share in details["ShareByRegion"].items() if share >= 0.005]
    where = f"; of the whole map lie in {', '.join(shares)}" if shares else ""
    high, skewness = 100 * details["FractionAbove7"], details["Skewness"]
    return f"{high:.1f} % of what it sees lie above 7 of 10, skewness {skewness:.1f}{where}."


def _rated(view: View, pictures: dict[str, bytes]) -> list[dict]:
    """The images that `rating2d` rated, before and after enhancement, with the grade it gives each."""
    prepared, found = view.prepared, view.details.get("rating2d", {}).get("images", ())
    if prepared is None or not found or "T2w" not in prepared.images:
        return []
    seen = rating2d.views(
        prepared.images["T2w"],
        prepared.brain,
        prepared.regions,
        prepared.spacing,
        prepared.slices.get("anterior_commissure"),
        with_haar=view.details["rating2d"].get("haar", True),
    )
    out = []
    for k, (own, told) in enumerate(zip(seen, found, strict=False)):
        top = float(np.percentile(own.plain[own.inside > 0.5], 99.8)) if (own.inside > 0.5).any() else 1.0
        both = [np.flipud(figures.grey(a, (0.0, 1.15 * top))) for a in (own.plain, own.sharp)]
        both = [figures.scaled(a, (224, 172), smooth=True) for a in both]
        name = f"{view.scan.label}_rating2d_{k}.jpg"
        grade = int(np.argmax(told["chances"]))
        chance = 100 * told["chances"][grade]
        text = f"slice {own.slice}, {REGIONS[own.side].side.lower()}: grade {grade} ({chance:.0f} %)"
        out.append({"text": text, "picture": _keep(pictures, name, figures.jpeg(np.concatenate(both, axis=1)))})
    return out
