"""The map of layers over steps at the terminal, in the form of the source document: ■ ▓ █ !!!."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.errors import UsageError
from hnf_offline.findings import Findings
from hnf_offline.report.chart import Array
from hnf_offline.report.layer_map import PREFERRED, PROXIES, PROXY_BANDS, raw_grid
from hnf_offline.report.series import symbol, usual_gap
from hnf_offline.report.text import ascii_only, block, common_prefix, shorten

if TYPE_CHECKING:
    import polars as pl

S_BANDS = (0.3, 0.8, 1.0)
RATIO_BANDS = (2.0, 5.0, 20.0)
#: What measures a map's rows when nothing else was asked for.
DEFAULTS = ("hessian.stability_ratio", *PROXIES, *PREFERRED)
MARKS = ("■", "▓", "█", "!!!")
ASCII = (".", "o", "#", "!!!")
_COLOURS = ("\x1b[34m", "\x1b[36m", "\x1b[33m", "\x1b[1;31m")


def heat_map(
    profile: pl.DataFrame,
    *,
    quantity: str | None = None,
    width: int = 80,
    unicode: bool = True,
    color: bool = False,
    most_rows: int = 14,
    findings: Findings | None = None,
) -> str:
    """Draw layers over steps with four marks.

    Args:
        profile: the long table.
        quantity: what to show; None for S per layer, else the proxies, else the first that was measured.
        width: columns of the terminal.
        unicode: False for marks that any encoding has.
        color: colour the marks.
        most_rows: rows at most; more layers are pooled to blocks by their highest value.
        findings: marks the columns of its spikes, where given.

    Returns:
        The map with its legend; one sentence where nothing was measured per layer.

    Raises:
        UsageError: if the quantity was not measured per layer.
    """
    chosen = _choose(profile, quantity)
    grid = raw_grid(profile, chosen) if chosen else None
    if grid is None:
        if quantity is not None:
            raise UsageError(
                f"{quantity} was not measured per layer", remedy="see the names with: hnf quantities"
            )
        return "no map: no quantity was measured per layer"
    layers, _, steps, values, _ = grid
    values, bands, legend = _banded(values, chosen)
    layers, values, note = _pool_rows(layers, values, most_rows)
    names = _names(layers, max(12, min(30, width // 3)))
    label = max(len(name) for name in (*names, "loss spikes"))
    cell = max(len(f"{int(steps[-1])}"), 3) + 2
    starts = _column_starts(len(steps), max(1, (width - label - 3) // cell))
    values = np.stack([_highest(part) for part in np.split(values, starts[1:], axis=1)], axis=1)
    heads = [f"{int(steps[start])}" for start in starts]
    marks = MARKS if unicode else ASCII
    lines = [f"{'Step':<{label}} | " + "".join(f"{head:<{cell}}" for head in heads).rstrip()]
    lines.append("-" * (label + 1) + "|" + "-" * min(cell * len(heads) + 1, width - label - 2))
    if findings is not None and findings.spikes:
        lines.append(_spike_row(findings, steps, starts, label, cell))
    for name, row in zip(names, values, strict=True):
        cells = "".join(_cell(value, bands, marks, cell, color) for value in row)
        lines.append(f"{name:<{label}} | {cells}".rstrip())
    spelled = ", ".join(f"{mark} {words}" for mark, words in zip(marks, legend, strict=True))
    title = " + ".join(symbol(name) for name in chosen) if len(chosen) == 1 else "proxy estimates"
    lines.append(f"{title}: {spelled}")
    if len(lines[-1]) > width:
        lines[-1:] = textwrap.wrap(f"{title}: {spelled}", width, subsequent_indent="  ")
    if note:
        lines.append(note[:width])
    plain = "\n".join(lines)
    return plain if unicode else ascii_only(plain)


def _choose(profile: pl.DataFrame, quantity: str | None) -> tuple[str, ...]:
    import polars as pl

    if quantity in PROXIES or quantity == "proxy":
        return PROXIES if quantity == "proxy" else (quantity,)
    present = set(profile.filter(pl.col("layer") != "")["quantity"].unique().to_list())
    if quantity is not None:
        return (quantity,) if quantity in present else ()
    first = next((name for name in DEFAULTS if name in present), None)
    if first is None:
        return ()
    return PROXIES if first in PROXIES else (first,)


def _banded(values: Array, quantities: tuple[str, ...]) -> tuple[Array, tuple[float, ...], tuple[str, ...]]:
    # Choose bands: those of the documents for proxies, those of S for S, else ratios to the early level.
    if quantities[0] in PROXIES:
        return values, PROXY_BANDS, ("low (<1e3)", "medium (<1e6)", "high (<1e9)", "danger (>1e9)")
    if quantities[0] == "hessian.stability_ratio":
        return values, S_BANDS, ("<.3", "<.8", "<1", ">=1 (edge)")
    early = np.array([_early(row) for row in values])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = values / early[:, None]
    return ratios, RATIO_BANDS, ("<×2", "<×5", "<×20", ">=×20 its early level")


def _early(row: Array) -> float:
    good = row[np.isfinite(row) & (row > 0)]
    return float(np.median(good[:5])) if good.size else float("nan")


def _highest(values: Array) -> Array:
    # Pool columns by their highest value; NaN only where nothing was measured.
    filled = np.where(np.isnan(values), -np.inf, values).max(axis=1)
    return np.where(np.isnan(values).all(axis=1), np.nan, filled)


def _pool_rows(layers: list[str], values: Array, most: int) -> tuple[list[str], Array, str]:
    if len(layers) <= most:
        return layers, values, ""
    groups: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        groups.setdefault(block(layer), []).append(place)
    names, members = list(groups), list(groups.values())
    if len(names) > most:
        starts = _column_starts(len(names), most)
        parts = [list(part) for part in np.split(np.arange(len(names)), starts[1:])]
        members = [[place for group in part for place in members[group]] for part in parts]
        names = [
            names[part[0]] if len(part) == 1 else f"{names[part[0]]}-{_last(names[part[-1]])}"
            for part in parts
        ]
    pooled_values = np.stack([_highest(values[places].T) for places in members])
    return names, pooled_values, f"{len(layers)} layers pooled to {len(names)} rows by their highest value"


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _names(layers: list[str], width: int) -> list[str]:
    prefix = common_prefix(layers)
    return [shorten(layer.removeprefix(prefix), width) for layer in layers]


def _column_starts(count: int, most: int) -> list[int]:
    shown = min(count, most)
    return [round(column * count / shown) for column in range(shown)]


def _spike_row(findings: Findings, steps: Array, starts: list[int], label: int, cell: int) -> str:
    # Mark the column in which each spike begins: the last one that starts before the onset.
    row = [" " * cell] * len(starts)
    gap = usual_gap(steps) or 0.0
    for spike in findings.spikes:
        if not steps[0] <= spike.onset <= steps[-1] + gap:
            continue
        place = int(np.searchsorted(steps[starts], spike.onset, side="right")) - 1
        row[max(place, 0)] = f"{'^' + str(spike.id):<{cell}}"
    return f"{'loss spikes':<{label}} | {''.join(row)}".rstrip()


def _cell(value: float, bands: tuple[float, ...], marks: tuple[str, ...], cell: int, color: bool) -> str:
    if np.isnan(value):
        return f"{'':<{cell}}"
    band = int(np.digitize(value, bands))
    padded = f"{marks[band]:<{cell}}"
    return f"{_COLOURS[band]}{padded}\x1b[0m" if color else padded
