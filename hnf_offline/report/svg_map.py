"""A layer map as SVG: loss strip, indexed picture, row labels where they fit, peak bars, colour key."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hnf_offline.report.axis import Axis
from hnf_offline.report.chart import Array
from hnf_offline.report.colours import (
    ABSENT,
    BROKEN,
    COLOURS,
    FIRST_COLOUR,
    band_palette,
    palette,
)
from hnf_offline.report.layer_map import BAND_NAMES, PROXY_BANDS, LayerMap
from hnf_offline.report.picture import data_address
from hnf_offline.report.pooling import column_slots, slot_values
from hnf_offline.report.svg import WIDTH, _mark, _mark_labels, _strip, element, figure, step_axis, text
from hnf_offline.report.text import number, times

LEFT = 192
RIGHT = 74
TALLEST = 460
SHORTEST_ROW = 1.2
MOST_ROWS = int(TALLEST / SHORTEST_ROW)
_DOTS = 3000


def indices(grid: LayerMap, values: Array, broken: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Turn displayed values into palette entries.

    Returns:
        Rows x columns of bytes.
    """
    if grid.form == "bands":
        cells = FIRST_COLOUR + np.digitize(np.nan_to_num(values), PROXY_BANDS)
    else:
        share = np.clip(np.nan_to_num(values, posinf=1e300, neginf=-1e300) / grid.limit, -1, 1)
        cells = FIRST_COLOUR + np.round((share + 1) / 2 * (COLOURS - 1)).astype(int)
    cells = np.where(np.isnan(values), ABSENT, cells)
    return np.where(broken, BROKEN, cells).astype(np.uint8)


def colours_of(grid: LayerMap) -> NDArray[np.uint8]:
    """Give the palette of a map.

    Returns:
        n x 3 bytes.
    """
    return band_palette() if grid.form == "bands" else palette("RdBu_r")


def layer_map(grid: LayerMap, *, row_height: float | None = None) -> Markup:
    """Draw a map.

    Returns:
        One SVG element.
    """
    count = len(grid.rows)
    tall = row_height if row_height is not None else min(16.0, TALLEST / count)
    steps = Axis(grid.strip.first, max(grid.strip.last, grid.strip.first + 1), LEFT, WIDTH - RIGHT)
    labels, top = _mark_labels(grid.strip.marks, steps)
    body: list[str] = [*labels]
    y = float(top)
    for strip in grid.strip.strips:
        body += _strip(strip, steps, y)
        y += strip.height + 8
    bottom = y + count * tall
    slots, start, stop = column_slots(grid, steps.low, steps.high)
    values = slot_values(grid, slots, start, stop)
    broken = np.where(slots >= 0, grid.broken[:, np.maximum(slots, 0)], False)
    address = data_address(indices(grid, values, broken), colours_of(grid))
    body.append(
        element("rect", x=LEFT, y=y, width=WIDTH - RIGHT - LEFT, height=count * tall, class_="window absent")
    )
    x0, x1 = steps.pixel(start), steps.pixel(stop)
    body.append(
        f'<image x="{x0:.2f}" y="{y:.1f}" width="{x1 - x0:.2f}" height="{count * tall:.1f}" '
        f'preserveAspectRatio="none" class="cells" href="{address}"/>'
    )
    body += _open_cells(grid, slots, steps, start, stop, y, tall)
    body += _rows(grid, y, tall)
    body += [_mark(mark, steps, top, bottom) for mark in grid.strip.marks]
    body += step_axis(steps, bottom, "step")
    body += _key(grid, bottom + 42)
    names = "\n".join(row.label for row in grid.rows)
    return figure(
        bottom + 56,
        grid.title,
        body,
        class_="map",
        tabindex="0",
        data_steps=f"{steps.low:g} {steps.high:g} {steps.start:g} {steps.stop:g}",
        data_map=f"{y:.1f} {tall:.3f} {grid.limit:.6g} {grid.form}",
        data_rows=names.replace("\n", "|"),
    )


def _rows(grid: LayerMap, top: float, tall: float) -> list[str]:
    # Label rows where labels fit: all of them, else the eight highest peaks and the block numbers.
    body = []
    places = range(len(grid.rows))
    ranked = sorted(places, key=lambda place: -_rank(grid, grid.rows[place].departure))
    top_rows = ranked[:8]
    bold = [place for place in ranked[:3] if _rank(grid, grid.rows[place].departure) > 0 and len(ranked) > 3]
    wanted = list(places) if tall >= 10 else [*top_rows, *places]
    taken: list[float] = []
    for place in wanted:
        y = top + (place + 0.5) * tall
        row = grid.rows[place]
        starts_block = place == 0 or grid.rows[place - 1].block != row.block
        if tall < 10 and place not in top_rows and not starts_block:
            continue
        if all(abs(y - other) >= min(11, max(tall, 10)) for other in taken):
            taken.append(y)
            name = row.label if tall >= 10 or place in top_rows else row.block.rsplit(".", 1)[-1]
            strong = " strong" if place in bold else ""
            body.append(text(LEFT - 6, y + 4, name, text_anchor="end", class_=f"small{strong}"))
    blocks = [place for place in places if place and grid.rows[place].block != grid.rows[place - 1].block]
    if blocks and len(blocks) < len(grid.rows) - 1 and tall * len(grid.rows) / len(blocks) > 4:
        rules = "".join(f"M{LEFT} {top + place * tall:.1f}H{WIDTH - RIGHT}" for place in blocks)
        body.append(element("path", d=rules, class_="rule block"))
    highest = max(
        (_rank(grid, row.departure) for row in grid.rows if math.isfinite(row.departure)), default=0.0
    )
    if highest > 0:
        bars = []
        for place, row in enumerate(grid.rows):
            length = min(max(_rank(grid, row.departure), 0.0) / highest, 1.0) * (RIGHT - 26)
            y, height = top + place * tall, max(tall - (2 if tall > 5 else 0), 0.4)
            bars.append(f"M{WIDTH - RIGHT + 6} {y:.1f}h{length:.1f}v{height:.1f}h-{length:.1f}z")
        body.append(element("path", d="".join(bars), class_="fill rest"))
        body.append(text(WIDTH - RIGHT + 6, top - 5, "row's peak", class_="small"))
    return body


def _rank(grid: LayerMap, departure: float) -> float:
    # Of two runs neither is the normal one: farther down counts as much as farther up.
    size = abs(departure) if grid.form == "log ratio of A to B" else departure
    return -math.inf if math.isnan(size) else size


def _open_cells(
    grid: LayerMap, slots: NDArray[np.int64], steps: Axis, start: float, stop: float, top: float, tall: float
) -> list[str]:
    # Mark cells that are not certified: a dot each, or a grey veil where there are thousands.
    where = ~grid.certified & ~np.isnan(grid.values)
    shown = [column for column in range(len(grid.steps)) if column in set(slots.tolist())]
    count = int(where.sum())
    if count == 0:
        return []
    if count <= _DOTS and tall >= 5:
        dots = "".join(
            f"M{steps.pixel(grid.steps[column]):.0f} {top + (row + 0.5) * tall:.0f}h0"
            for row, column in zip(*np.nonzero(where), strict=True)
            if column in shown
        )
        return [element("path", d=dots, class_="dots")]
    veil = np.where(slots >= 0, where[:, np.maximum(slots, 0)], False).astype(np.uint8)
    address = data_address(veil, np.array([[255, 255, 255], [128, 128, 128]], dtype=np.uint8))
    x0, x1 = steps.pixel(start), steps.pixel(stop)
    return [
        f'<image x="{x0:.2f}" y="{top:.1f}" width="{x1 - x0:.2f}" height="{tall * len(grid.rows):.1f}" '
        f'preserveAspectRatio="none" class="cells veil" href="{address}"/>'
    ]


def _key(grid: LayerMap, y: float) -> list[str]:
    # Draw the colour key and the two special colours.
    body: list[str] = []
    x = float(LEFT)
    colours = colours_of(grid)
    if grid.form == "bands":
        for band, name in enumerate(BAND_NAMES):
            red, green, blue = colours[FIRST_COLOUR + band]
            fill = f"#{red:02x}{green:02x}{blue:02x}"
            box = {"x": x, "y": y - 10, "width": 16.0, "height": 12.0, "data_rgb": f"{red},{green},{blue}"}
            body.append(element("rect", **box, fill=fill, class_="swatch"))
            body.append(text(x + 21, y, name, class_="small"))
            x += 38 + 7 * len(name)
    else:
        ramp = np.arange(FIRST_COLOUR, FIRST_COLOUR + COLOURS, dtype=np.uint8)[None, :]
        address = data_address(ramp, colours, transparent=None)
        low, middle, high = ends(grid)
        body.append(text(x, y, low, class_="small"))
        x += 7.2 * len(low) + 6
        body.append(
            f'<image x="{x:.1f}" y="{y - 10:.1f}" width="180" height="12" preserveAspectRatio="none" '
            f'class="ramp" href="{address}"/>'
        )
        body.append(text(x + 186, y, high, class_="small"))
        x += 186 + 7.2 * len(high) + 10
        body.append(text(x, y, middle, class_="small"))
        x += 6.6 * len(middle) + 18
    body.append(element("rect", x=x, y=y - 10, width=16.0, height=12.0, class_="window absent"))
    body.append(text(x + 21, y, "not measured", class_="small"))
    x += 118
    if grid.broken.any():
        body.append(element("rect", x=x, y=y - 10, width=16.0, height=12.0, fill="#000", class_="swatch"))
        body.append(text(x + 21, y, "not finite", class_="small"))
    return body


def ends(grid: LayerMap) -> tuple[str, str, str]:
    """Spell the ends and the middle of a map's colour key.

    Returns:
        Low end, middle, high end.
    """
    if grid.form == "difference":
        return number(-grid.limit, 2), "(white: its early share)", f"+{number(grid.limit, 2)}"
    middle = "(white: A = B)" if grid.form == "log ratio of A to B" else "(white: its early level)"
    return times(-grid.limit), middle, times(grid.limit)
