"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

NONE = "n/a"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    names = [str(c) for c in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def text(value: Any, digits: int = 2) -> str:
    """A number of a table: ``digits`` decimals, none for whole numbers above 99, n/a where missing.

    >>> text(0.123), text(float("nan")), text(1234.4)
    ('0.12', 'n/a', '1234')
    """
    if value is None or pd.isna(value):
        return NONE
    value = round(float(value), 0 if abs(value) >= 100 else digits) + 0.0  # no -0.0
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}f}"


def ranged(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    """An estimate and its interval: ``0.88 (0.61 to 0.97)``; n/a where there is none."""
    if pd.isna(row[name]):
        return NONE
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if pd.isna(low):
        return text(row[name], digits)
    return f"{text(row[name], digits)} ({text(low, digits)} to {text(high, digits)})"


def chance(p: Any) -> str:
    """A p value: three decimals, or ``< 0.001``.

    >>> chance(0.04), chance(0.00001)
    ('0.040', '< 0.001')
    """
    if pd.isna(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def quartiles(row: Mapping[str, Any], name: str, factor: float = 1.0) -> str:
    """Median and quartiles of a value, times a factor: ``19 (13 to 28)``."""
    digits = 2 if factor != 1 else 0
    median, low, high = (row[f"{name}_{k}"] * factor for k in ("median", "q1", "q3"))
    return NONE if pd.isna(median) else f"{text(median, digits)} ({text(low, digits)} to {text(high, digits)})"


def signed_quartiles(row: Mapping[str, Any], name: str) -> str:
    """Median and quartiles of a value between -1 and 1."""
    if pd.isna(row[f"{name}_median"]):
        return NONE
    return f"{row[f'{name}_median']:+.2f} ({row[f'{name}_q1']:+.2f} to {row[f'{name}_q3']:+.2f})"
