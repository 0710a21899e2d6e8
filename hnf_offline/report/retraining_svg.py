"""The arms of a retraining as inline SVG: named at their ends, twins shaded, not-finite stretches as ribbons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from markupsafe import Markup

from hnf_offline.report.axis import Axis, segments, value_axis
from hnf_offline.report.chart import Line, Mark, Strip, Window
from hnf_offline.report.retraining_panels import ArmsStrip, Band, Picture
from hnf_offline.report.svg import (
    HEAD,
    LEFT,
    WIDTH,
    element,
    figure,
    glyph,
    path,
    step_axis,
    strip_name,
    text,
)
from hnf_offline.report.text import axis_number, clean

#: Room at the right for the names of the arms.
NAMES = 190
_LETTER = 6.3
_NAME_HEIGHT = 14
_RIBBON = 13


def picture(panel: Picture) -> Markup:
    """Draw a picture.

    Returns:
        One SVG element; marks that a script reads lie in its data attributes.
    """
    steps = Axis(panel.first, panel.last, LEFT, WIDTH - NAMES)
    labels, top = _mark_labels(panel.marks, steps)
    tops: list[float] = []
    y = top
    for one in panel.strips:
        tops.append(y)
        y += one.strip.height + 12 + _ribbons_height(one)
    bottom = y - 8
    body: list[str] = []
    for one, at in zip(panel.strips, tops, strict=True):
        body += _strip(one, steps, at)
    for mark in panel.marks:
        x = steps.pixel(mark.step)
        style = f"mark {mark.role} {mark.dash}"
        body.append(element("path", d=f"M{x:.1f} {top - 4:.1f}V{bottom:.1f}", class_=style))
    body += labels
    ticks = "".join(f"M{steps.pixel(step):.1f} {bottom:.1f}v5" for step in panel.checkpoints)
    body += [element("path", d=ticks, class_="tick")] if ticks else []
    body += step_axis(steps, bottom, "step")
    body += _key(panel, bottom + 44)
    spots = " ".join(
        f"{at + HEAD + _ribbons_height(one):.0f},{one.strip.height - HEAD}"
        for one, at in zip(panel.strips, tops, strict=True)
    )
    return figure(
        bottom + 52,
        panel.title,
        body,
        class_="chart",
        tabindex="0",
        data_steps=f"{steps.low:g} {steps.high:g} {steps.start:g} {steps.stop:g}",
        data_strips=spots,
    )


def _ribbons_height(one: ArmsStrip) -> int:
    return _RIBBON * (1 + max((ribbon.row for ribbon in one.ribbons), default=-1))


def framed(one: ArmsStrip) -> Strip:
    """Give the strip whose axis also holds the bands and the peaks.

    Returns:
        A strip to make an axis of; its further lines are never drawn.
    """
    hidden = [Line("", "", band.steps, values) for band in one.bands for values in (band.low, band.high)]
    hidden += [Line("", "", np.array([peak.step]), np.array([peak.value])) for peak in one.peaks]
    return replace(one.strip, lines=(*one.strip.lines, *hidden))


def _strip(one: ArmsStrip, steps: Axis, top: float) -> list[str]:
    strip, ribbons = one.strip, _ribbons_height(one)
    start, bottom = top + HEAD + ribbons, top + strip.height + ribbons
    values = value_axis(framed(one), start, bottom, steps.low, steps.high)
    body = [text(4, top + 11, strip_name(strip), class_="strip")]
    for tick in values.ticks(max(2, strip.height // 40)):
        y = values.pixel(tick)
        body.append(element("path", d=f"M{steps.start:.1f} {y:.1f}H{steps.stop:.1f}", class_="grid"))
        body.append(text(steps.start - 6, y + 4, axis_number(tick), text_anchor="end", class_="small"))
    # The broad line of the log would hide a narrow band.
    logged = [line for line in strip.lines if line.role == "logged"]
    body += [part for line in logged for part in _line(line, strip, steps, values)]
    body += [_band(band, strip, steps, values) for band in one.bands]
    for ribbon in one.ribbons:
        body += _ribbon(ribbon.window, steps, top + HEAD + _RIBBON * ribbon.row - 2)
    for level in strip.levels:
        y = values.pixel(level.value)
        body.append(element("path", d=f"M{steps.start:.1f} {y:.1f}H{steps.stop:.1f}", class_="level"))
        body.append(text(steps.stop + 6, y + 4, level.label, class_="small"))
    others = [line for line in strip.lines if line.role != "logged"]
    body += [part for line in others for part in _line(line, strip, steps, values)]
    for peak in one.peaks:
        y = max(values.pixel(max(peak.value, values.low)) - 9, start - 4)
        body.append(
            element("path", d=glyph("down", steps.pixel(peak.step), y), class_=f"fill peak {peak.role}")
        )
    if one.named:
        body += _names(strip, steps, values, start, bottom)
    return [element("g", *body, data_axis=f"{values.low:.6g} {values.high:.6g} {values.scale}")]


def _line(line: Line, strip: Strip, steps: Axis, values: Axis) -> list[str]:
    shown = np.where(np.isfinite(line.values), np.maximum(line.values, values.low), line.values)
    columns = int(steps.stop - steps.start)
    pieces = segments(line.steps, shown, line.reach, steps.low, steps.high, columns)
    drawn = [(np.clip(steps.pixels(x), steps.start, steps.stop), values.pixels(y)) for x, y in pieces]
    style = f"line {line.role} {line.dash}"
    label = line.label if len(strip.lines) > 1 else None
    body = [element("path", d=path(drawn), class_=style, data_label=label)] if drawn else []
    inside = (line.steps >= steps.low) & (line.steps <= steps.high) & np.isfinite(shown)
    if line.marker and inside.sum() <= 60 and len(strip.lines) <= 4:
        at = zip(steps.pixels(line.steps[inside]), values.pixels(shown[inside]), strict=True)
        marks = "".join(glyph(line.marker, x, y) for x, y in at)
        body += [element("path", d=marks, class_=f"fill {line.role}")] if marks else []
    return body


def _band(band: Band, strip: Strip, steps: Axis, values: Axis) -> str:
    low, high = band.low, np.where(np.isposinf(band.high), values.high, band.high)
    known = np.isfinite(low) & np.isfinite(high) & (band.steps >= steps.low) & (band.steps <= steps.high)
    pieces = []
    for piece in np.split(np.arange(len(known)), np.flatnonzero(np.diff(known.astype(np.int8))) + 1):
        if len(piece) and known[piece[0]]:
            x = steps.pixels(band.steps[piece])
            up, down = values.pixels(high[piece]), values.pixels(np.maximum(low[piece], values.low))
            # At least two pixels high, so that a band narrower than the line is seen.
            middle = (up + down) / 2
            up, down = np.minimum(up, middle - 1), np.maximum(down, middle + 1)
            pieces.append((np.concatenate([x, x[::-1]]), np.concatenate([up, down[::-1]])))
    return element("path", d=path(pieces), class_="band") if pieces else ""


def _ribbon(window: Window, steps: Axis, y: float) -> list[str]:
    start, stop = max(steps.pixel(window.first), steps.start), min(steps.pixel(window.last), steps.stop)
    if stop <= start:
        return []
    width = max(stop - start, 3.0)
    box = element("rect", x=start, y=y, width=width, height=_RIBBON - 3.0, class_="window not-finite")
    room = len(window.label) * _LETTER
    beside = start - 4 - room > steps.start
    at, anchor = (start - 4, "end") if beside else (stop + 4, "start")
    return [box, text(at, y + 9, window.label, text_anchor=anchor, class_="small halo")]


def _names(strip: Strip, steps: Axis, values: Axis, top: float, bottom: float) -> list[str]:
    # Name each line at its right end, pushed apart so that no two names overlap.
    ends = []
    for line in strip.lines:
        known = np.flatnonzero(
            np.isfinite(line.values) & (line.steps <= steps.high) & (line.steps >= steps.low)
        )
        if known.size:
            last = known[-1]
            value = max(float(line.values[last]), values.low)
            ends.append((values.pixel(value), steps.pixel(float(line.steps[last])), line))
    ends.sort(key=lambda end: (end[0], end[2].label))
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + _NAME_HEIGHT if places else top + 4))
    for place in range(len(places) - 1, -1, -1):
        limit = bottom + 4 if place == len(places) - 1 else places[place + 1] - _NAME_HEIGHT
        places[place] = min(places[place], limit)
    body = []
    x0, x1 = steps.stop + 20, steps.stop + 42
    most = int((NAMES - 48) / _LETTER)
    for at, (y, x, line) in zip(places, ends, strict=True):
        if x > steps.stop - 2:
            # A line that ends earlier is named too, but a leader would cross the others.
            leader = f"M{x + 2:.1f} {y:.1f}L{x0:.1f} {at:.1f}"
            body.append(element("path", d=leader, class_=f"leader {line.role}"))
        body.append(element("path", d=f"M{x0:.1f} {at:.1f}H{x1:.1f}", class_=f"end {line.role} {line.dash}"))
        label = clean(line.label)
        label = label if len(label) <= most else label[: most - 1] + "…"
        body.append(text(x1 + 5, at + 4, label, class_="small strong" if line.role == "was" else "small"))
    return body


def _mark_labels(marks: tuple[Mark, ...], steps: Axis) -> tuple[list[str], float]:
    # Up to three rows above the strips; what does not fit there is told in the table.
    rows_end = [-1e9, -1e9, -1e9]
    placed: list[tuple[float, int, str]] = []
    for mark in sorted(marks, key=lambda mark: mark.step):
        x, room = steps.pixel(mark.step), len(mark.label) * _LETTER
        row = next((row for row, end in enumerate(rows_end) if x + 4 > end + 8), None)
        if mark.label and row is not None:
            rows_end[row] = x + 4 + room
            placed.append((x + 4, row, mark.label))
    rows = 1 + max((row for _, row, _ in placed), default=-1)
    return [text(left, 12 + 14 * row, label, class_="small") for left, row, label in placed], 8.0 + 14 * rows


def _key(panel: Picture, y: float) -> list[str]:
    entries: list[tuple[str, str]] = []
    for band in dict.fromkeys(band.label for one in panel.strips for band in one.bands):
        entries.append((element("rect", x=0.0, y=y - 11, width=22.0, height=12.0, class_="band"), band))
    if any(one.peaks for one in panel.strips):
        entries.append((
            element("path", d=glyph("down", 11, y - 5), class_="fill peak was"),
            "peak of a spike",
        ))
    if any(one.ribbons for one in panel.strips):
        box = element("rect", x=0.0, y=y - 11, width=22.0, height=12.0, class_="window not-finite")
        entries.append((box, "not finite"))
    if panel.checkpoints:
        entries.append((element("path", d=f"M11 {y - 7:.1f}v6", class_="tick"), "checkpoint"))
    body, x = [], float(LEFT)
    for drawing, said in entries:
        body.append(element("g", drawing, transform=f"translate({x:.0f} 0)"))
        body.append(text(x + 27, y, said, class_="small"))
        x += 27 + len(said) * _LETTER + 18
    return body


def chip(role: str, dash: str) -> Markup:
    """Draw the line of an arm, for its row in a table.

    Returns:
        A small SVG element.
    """
    drawn = element("path", d="M1 5h26", class_=f"end {role} {dash}")
    return Markup(element("svg", drawn, viewBox="0 0 28 10", class_="chip", aria_hidden="true"))
