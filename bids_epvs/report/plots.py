"""Statistical figures as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bids_epvs",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

MOST_DOTS = 300
"""Dots of one panel: a page with every value of a large cohort would not open."""


def distributions(values: Mapping[str, np.ndarray], label: str) -> str:
    """A panel for each name: values as dots (`MOST_DOTS` at most, evenly chosen by rank), quartiles as a box.

    Parameters
    ----------
    values : mapping
        Name -> values, none missing.
    label : str
        Of the axis, with its unit.

    Returns
    -------
    str
        An ``<svg>`` element, the same for the same values.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 0.5 + 0.62 * max(len(values), 1)), layout="constrained")
        axes = figure.subplots(max(len(values), 1), 1, squeeze=False)[:, 0]
        for ax, (name, found) in zip(axes, values.items(), strict=False):
            _strip(ax, found)
            ax.set_ylabel(name, rotation=0, ha="right", va="center")
        axes[-1].set_xlabel(label)
        return svg(figure)


def thinned(values: np.ndarray) -> np.ndarray:
    """At most `MOST_DOTS` of the values: the extremes and evenly spaced ranks between them."""
    if len(values) <= MOST_DOTS:
        return values
    return np.sort(values)[np.linspace(0, len(values) - 1, MOST_DOTS).round().astype(int)]


def comparison(truth: np.ndarray, found: np.ndarray, unit: str, *, names: tuple[str, str] = ("truth", "found")) -> str:
    """Found against true values with the line of identity, and their differences against their means (Bland-Altman).

    Parameters
    ----------
    truth, found : ndarray
        (n,), none missing. Of more than `MOST_DOTS` every k-th is drawn; lines rest on all.
    unit : str
        For the axes, ``EPVS`` or ``mm³``.
    names : tuple of str
        Of the two, for the axes.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        top = max(float(np.max([truth, found], initial=0)), 1.0) * 1.05
        left.plot([0, top], [0, top], color="#8a94a3", linewidth=1)
        few = slice(None, None, 1 + len(truth) // MOST_DOTS)
        left.plot(truth[few], found[few], "o", markersize=4, color="#0b5cad", alpha=0.7, markeredgewidth=0)
        left.set(xlabel=f"{names[0]} ({unit})", ylabel=f"{names[1]} ({unit})", xlim=(0, top), ylim=(0, top))
        difference, mean = found - truth, (found + truth) / 2
        right.plot(mean[few], difference[few], "o", markersize=4, color="#0b5cad", alpha=0.7, markeredgewidth=0)
        bias = float(difference.mean()) if difference.size else 0.0
        spread = 1.96 * float(difference.std(ddof=1)) if difference.size > 1 else 0.0
        for value, style in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
            right.axhline(value, color="#1c2430", linestyle=style, linewidth=1)
        right.set(xlabel=f"mean ({unit})", ylabel=f"{names[1]} - {names[0]} ({unit})")
        return svg(figure)


def reliability(predicted: np.ndarray, observed: np.ndarray) -> str:
    """Observed share against mean probability of each bin, with the line of identity; an ``<svg>`` element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 3.2), layout="constrained")
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color="#8a94a3", linewidth=1)
        ax.plot(predicted, observed, "o-", markersize=4, color="#0b5cad", linewidth=1)
        ax.set(xlabel="mean probability", ylabel="share of EPVS", xlim=(0, 1), ylim=(0, 1))
        return svg(figure)


def histogram(counts: Sequence[int]) -> str:
    """Voxels in ten equal bins of the display scale of a saliency map, log scale (SVG); empty without counts."""
    if not counts or not sum(counts):
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 1.8), layout="constrained")
        ax = figure.subplots()
        low = 0.4  # where the axis begins: nothing is cut, so the element refers to nothing
        height = np.maximum(counts, 0.5) - low
        ax.bar(np.arange(len(counts)) + 0.5, height, bottom=low, width=0.9, color="#5b6675", clip_on=False)
        ax.axvline(7, color="#c0262d", linewidth=1, clip_on=False)
        ax.set_yscale("log")
        ax.set_ylim(bottom=low)
        ax.set_xlabel("display value (10: largest of this image)")
        ax.set_ylabel("voxels")
        return svg(figure)


def forest(rows: Sequence[tuple[str, float, float, float]], label: str, *, ratio: bool) -> str:
    """Effects with their intervals, a line each, and the line of no effect; an ``<svg>`` element.

    Parameters
    ----------
    rows : sequence of tuple
        Name, value, low, high.
    label : str
        Of the axis.
    ratio : bool
        Logarithmic axis around 1; else linear around 0.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 0.9 + 0.24 * len(rows)), layout="constrained")
        ax = figure.subplots()
        at = np.arange(len(rows))[::-1]
        value, low, high = (np.array([r[k] for r in rows], float) for k in (1, 2, 3))
        ax.axvline(1.0 if ratio else 0.0, color="#8a94a3", linewidth=1)
        ax.hlines(at, low, high, color="#0b5cad", linewidth=1.5)
        ax.plot(value, at, "s", markersize=4.5, color="#0b5cad")
        ax.set_yticks(at, [r[0] for r in rows])
        ax.set_ylim(-0.7, len(rows) - 0.3)
        if ratio:
            ax.set_xscale("log")
            _plain_ticks(ax, float(low.min()), float(high.max()))
        ax.set_xlabel(label)
        return svg(figure)


def _plain_ticks(ax: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as people write ratios."""
    from matplotlib.ticker import FixedLocator, NullLocator

    steps = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 5, 10, 20, 50, 100])
    inside = steps[(steps >= min(low, 1) * 0.98) & (steps <= max(high, 1) * 1.02)]
    inside = inside[:: 1 + len(inside) // 9]
    ax.xaxis.set_major_locator(FixedLocator(list(inside)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{v:g}" for v in inside])


def _strip(ax: Any, values: np.ndarray) -> None:
    """Dots with a fixed jitter over a box plot."""
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if len(values) == 0:
        ax.text(0.5, 0.5, "no value", transform=ax.transAxes, ha="center", va="center")
        return
    grey: Any = {"color": "#8a94a3"}
    lines: Any = {"showfliers": False, "boxprops": grey, "whiskerprops": grey, "capprops": grey}
    ax.boxplot(values, positions=[0.0], orientation="horizontal", widths=0.8, **lines, medianprops={"color": "#1c2430"})
    shown = thinned(values)
    jitter = ((np.arange(len(shown)) * 0.618034) % 1 - 0.5) * 0.6
    ax.plot(shown, jitter, "o", markersize=4, color="#0b5cad", alpha=0.6, markeredgewidth=0)
    ax.set_yticks([])


def svg(figure: Any) -> str:
    """The ``<svg>`` element of a figure, without date and with a width that follows the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r'\1 width="100%"',
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )
