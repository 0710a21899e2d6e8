"""A chart as inline SVG: a few hundred bytes a line, no script needed, no network."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
from markupsafe import Markup, escape

from hnf_offline.report.axis import Axis, segments, value_axis
from hnf_offline.report.chart import Array, Chart, Line, Mark, Strip, Window
from hnf_offline.report.text import axis_number, clean, number

WIDTH = 960
LEFT = 96
RIGHT = 26
HEAD = 18
_LETTER = 6.3  # pixels a letter of 12 px text takes, about
#: Letters of a label that stands beside its axis; a longer one stands below.
_SHORT_LABEL = 10
#: From one line of a legend to the next.
_LEGEND_LINE = 18


def attribute(value: object) -> str:
    """Spell an attribute: numbers with one decimal, text cleaned and escaped.

    Returns:
        What goes between the quotes.
    """
    if isinstance(value, float | np.floating):
        return f"{value:.1f}".removesuffix(".0") if np.isfinite(value) else "0"
    # Paths and row lists are as long as they are: only words are ever cut.
    return str(escape(clean(value, longest=sys.maxsize)))


def element(name: str, *inside: str, **attributes: object) -> str:
    """Spell an element; attribute names have "_" for "-", and a trailing "_" is dropped.

    Returns:
        Markup; `inside` must already be markup.
    """
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{spelled}>{''.join(inside)}</{name}>" if inside else f"<{name}{spelled}/>"


def text(x: float, y: float, words: object, **attributes: object) -> str:
    """Write words.

    Returns:
        A text element, its words cleaned and escaped.
    """
    return element("text", str(escape(clean(words))), x=float(x), y=float(y), **attributes)


def path(pieces: Iterable[tuple[Array, Array]]) -> str:
    """Spell polylines in pixels with one decimal, relative after the first point.

    Returns:
        The `d` of a path.
    """
    spelled = []
    for xs, ys in pieces:
        x, y = np.round(xs * 10).astype(int), np.round(ys * 10).astype(int)
        points = [f"M{_tenth(x[0])} {_tenth(y[0])}"]
        if len(x) == 1:
            points.append("h0")
        elif len(x) > 1:
            moves = zip(np.diff(x), np.diff(y), strict=True)
            points.append("l" + " ".join(f"{_tenth(dx)} {_tenth(dy)}" for dx, dy in moves))
        spelled.append("".join(points))
    return "".join(spelled)


def _tenth(tenths: int) -> str:
    whole, part = divmod(abs(int(tenths)), 10)
    sign = "-" if tenths < 0 else ""
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def figure(height: float, title: str, body: list[str], *, width: int = WIDTH, **attributes: object) -> Markup:
    """Wrap a drawing: role, size, and a title that states the finding.

    Returns:
        The whole SVG element.
    """
    words = f"<title>{escape(clean(title))}</title>"
    box = f"0 0 {width} {height:.0f}"
    # The words come from `clean` and `escape`, everything else from this package.
    return Markup(element("svg", words, *body, viewBox=box, role="img", aria_label=title, **attributes))


def chart(panel: Chart) -> Markup:
    """Draw a chart.

    Returns:
        One SVG element; marks that a script reads lie in its data attributes.
    """
    steps = Axis(panel.first, max(panel.last, panel.first + 1), LEFT, WIDTH - RIGHT)
    labels, top = _mark_labels(panel.marks, steps)
    body: list[str] = []
    tops: list[float] = []
    y = float(top)
    rows_at = y
    for place, strip in enumerate(panel.strips):
        tops.append(y)
        y += strip.height + 12
        if place == 0 and panel.events:
            rows_at = y
            y += 15 * len(panel.events) + 6
    bottom = y - 8
    for window in panel.windows:
        body += _window(window, steps, top, bottom)
    for strip, at in zip(panel.strips, tops, strict=True):
        body += _strip(strip, steps, at)
    for row, events in enumerate(panel.events):
        at = rows_at + 15 * row + 6
        body.append(text(LEFT - 6, at + 4, events.label, text_anchor="end", class_="small"))
        body.append(element("path", d=f"M{LEFT} {at:.1f}H{WIDTH - RIGHT}", class_="rule"))
        marks = "".join(glyph(events.marker, steps.pixel(step), at) for step in events.steps)
        body.append(element("path", d=marks, class_=f"fill {events.role}"))
    body += [_mark(mark, steps, top, bottom) for mark in panel.marks]
    body += labels
    if panel.checkpoints:
        ticks = "".join(f"M{steps.pixel(step):.1f} {bottom:.1f}v5" for step in panel.checkpoints)
        body.append(element("path", d=ticks, class_="tick"))
    body += step_axis(steps, bottom, panel.axis)
    below = bottom + (8 if len(panel.axis) > _SHORT_LABEL else 0)
    legend, lines = _legend(panel, below + 44)
    body += legend
    spots = " ".join(
        f"{at + HEAD:.0f},{strip.height - HEAD}" for strip, at in zip(panel.strips, tops, strict=True)
    )
    return figure(
        below + 52 + _LEGEND_LINE * (lines - 1),
        panel.title,
        body,
        class_="chart",
        tabindex="0",
        data_steps=f"{steps.low:g} {steps.high:g} {steps.start:g} {steps.stop:g}",
        data_strips=spots,
    )


def step_axis(steps: Axis, y: float, label: str) -> list[str]:
    """Draw the step axis with its ticks and label.

    Returns:
        Elements.
    """
    body = [element("path", d=f"M{steps.start:.1f} {y:.1f}H{steps.stop:.1f}", class_="axis")]
    ticks = [tick for tick in steps.ticks(9) if tick == int(tick)]
    for tick in ticks:
        body.append(text(steps.pixel(tick), y + 18, f"{int(tick):,}", text_anchor="middle", class_="small"))
    if len(label) <= _SHORT_LABEL:
        # The number of a tick at the very left reaches into the room of the label.
        first = min((steps.pixel(tick) - 3.5 * len(f"{int(tick):,}") for tick in ticks), default=steps.start)
        at = min(steps.start, first) - 6
        body.append(text(at, y + 18, label, text_anchor="end", class_="small"))
    else:
        body.append(text((steps.start + steps.stop) / 2, y + 31, label, text_anchor="middle", class_="small"))
    return body


def _strip(strip: Strip, steps: Axis, top: float) -> list[str]:
    bottom = top + strip.height
    # The first 18 pixels belong to the name of the strip and to labels of windows.
    values = value_axis(strip, top + HEAD, bottom, steps.low, steps.high)
    body = [text(4, top + 11, strip_name(strip), class_="strip")]
    for tick in values.ticks(max(2, strip.height // 40)):
        y = values.pixel(tick)
        body.append(element("path", d=f"M{steps.start:.1f} {y:.1f}H{steps.stop:.1f}", class_="grid"))
        body.append(text(steps.start - 6, y + 4, axis_number(tick), text_anchor="end", class_="small"))
    for window in strip.windows:
        body += _window(window, steps, top, bottom)
    for level in strip.levels:
        y = values.pixel(level.value)
        body.append(element("path", d=f"M{steps.start:.1f} {y:.1f}H{steps.stop:.1f}", class_="level"))
    for line in strip.lines:
        body += _line(line, strip, steps, values)
    for level in strip.levels:  # after the lines, which would run through the words
        y = values.pixel(level.value)
        beside = y - 4 if y - top > 24 else y + 13
        body.append(text(steps.stop - 4, beside, level.label, text_anchor="end", class_="small halo"))
    return [element("g", *body, data_axis=f"{values.low:.6g} {values.high:.6g} {values.scale}")]


def strip_name(strip: Strip) -> str:
    """Name a strip, and its axis where that is not linear.

    Returns:
        "loss", "logged gradient norm (log scale)".
    """
    return f"{strip.label} (log scale)" if strip.scale == "log" else strip.label


def _line(line: Line, strip: Strip, steps: Axis, values: Axis) -> list[str]:
    cut = line.values
    if strip.cap is not None:
        cut = np.where(np.isfinite(cut), np.minimum(cut, values.high), cut)
    if values.scale == "log":
        cut = np.where(np.isfinite(cut), np.maximum(cut, values.low), cut)
    columns = int(steps.stop - steps.start)
    label = line.label if len(strip.lines) > 1 else None
    pieces = segments(line.steps, cut, line.reach, steps.low, steps.high, columns)
    drawn = [(np.clip(steps.pixels(x), steps.start, steps.stop), values.pixels(y)) for x, y in pieces]
    body = [element("path", d=path(drawn), class_=f"line {line.role} {line.dash}", data_label=label)]
    shown = (line.steps >= steps.low) & (line.steps <= steps.high) & np.isfinite(cut)
    inside = shown & line.may_be_marked()
    if line.low is not None and line.high is not None:
        body += _error_bars(line, inside, steps, values)
    if line.marker and inside.sum() <= 200:
        hollow = line.hollow if line.hollow is not None else np.zeros(len(cut), dtype=np.bool_)
        for chosen, style in ((inside & ~hollow, "fill"), (inside & hollow, "hollow")):
            marks = "".join(
                glyph(line.marker, x, y)
                for x, y in zip(steps.pixels(line.steps[chosen]), values.pixels(cut[chosen]), strict=True)
            )
            body += [element("path", d=marks, class_=f"{style} {line.role}")] if marks else []
    if strip.cap is not None:
        body += _arrows(line, shown, strip.cap, steps, values)
    return body


def _error_bars(line: Line, inside: np.ndarray, steps: Axis, values: Axis) -> list[str]:
    if line.low is None or line.high is None:
        return []
    shown = inside & np.isfinite(line.low) & np.isfinite(line.high) & (line.high > line.low)
    if not shown.any():
        return []
    low = np.maximum(line.low[shown], values.low)
    x, y0, y1 = steps.pixels(line.steps[shown]), values.pixels(low), values.pixels(line.high[shown])
    bars = "".join(f"M{a:.1f} {b:.1f}V{c:.1f}" for a, b, c in zip(x, y0, y1, strict=True))
    return [element("path", d=bars, class_=f"bar {line.role}")]


def _arrows(line: Line, inside: np.ndarray, cap: float, steps: Axis, values: Axis) -> list[str]:
    body = []
    over = np.flatnonzero(inside & (line.values > cap))
    free = -np.inf
    for place in sorted(over, key=lambda index: -line.values[index])[:5]:
        x, y = steps.pixel(line.steps[place]), values.stop
        body.append(element("path", d=f"M{x:.1f} {y:.1f}l-4 7h8z", class_=f"fill {line.role}"))
        if abs(x - free) > 60:
            body.append(text(x + 7, y + 9, f"↑ {number(float(line.values[place]))}", class_="small halo"))
            free = x
    return body


def _window(window: Window, steps: Axis, top: float, bottom: float) -> list[str]:
    start = max(steps.pixel(window.first), steps.start)
    stop = min(steps.pixel(window.last), steps.stop)
    if stop < steps.start or start > steps.stop:
        return []
    width = max(stop - start, 3.0)
    body = [element("rect", x=start, y=top, width=width, height=bottom - top, class_=f"window {window.role}")]
    room = len(window.label) * _LETTER
    if window.role == "not-finite" or width > room + 6:
        anchor = "end" if start + room > steps.stop else "start"
        at = stop - 3 if anchor == "end" else start + 3
        body.append(text(at, top + 11, window.label, text_anchor=anchor, class_="small halo"))
    return body


def _mark(mark: Mark, steps: Axis, top: float, bottom: float) -> str:
    x = steps.pixel(mark.step)
    return element("path", d=f"M{x:.1f} {top - 4:.1f}V{bottom:.1f}", class_=f"mark {mark.role} {mark.dash}")


def _mark_labels(marks: tuple[Mark, ...], steps: Axis) -> tuple[list[str], int]:
    # Place mark labels in up to three rows above the strips; what does not fit is left out.
    rows_end = [-1e9, -1e9, -1e9]
    placed: list[tuple[float, int, str]] = []
    for mark in sorted(marks, key=lambda mark: mark.step):
        x, room = steps.pixel(mark.step), len(mark.label) * _LETTER
        left = x + 4 if x + 4 + room < steps.stop else x - 4 - room
        row = next((row for row, end in enumerate(rows_end) if left > end + 8), None)
        if mark.label and row is not None:
            rows_end[row] = left + room
            placed.append((left, row, mark.label))
    rows = 1 + max((row for _, row, _ in placed), default=-1)
    return [text(left, 12 + 14 * row, label, class_="small") for left, row, label in placed], 8 + 14 * rows


def glyph(marker: str, x: float, y: float) -> str:
    """Spell a marker's outline.

    Returns:
        Path commands; a triangle, diamond, square, cross or circle about (x, y).
    """
    shapes = {
        "triangle": "m0-5l5 9h-10z",
        "down": "m0 5l5-9h-10z",
        "diamond": "m0-5l5 5l-5 5l-5-5z",
        "square": "m-4-4h8v8h-8z",
        "cross": "m-4-5l4 4l4-4l1.5 1.5l-4 4l4 4l-1.5 1.5l-4-4l-4 4l-1.5-1.5l4-4l-4-4z",
        "circle": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    }
    return f"M{x:.1f} {y:.1f}{shapes[marker]}"


def _legend(panel: Chart, y: float) -> tuple[list[str], int]:
    # Explain line styles and marks, left to right, in as many lines as it takes; a single line is named by its axis.
    entries: list[tuple[str, str]] = []
    for strip in panel.strips:
        if len(strip.lines) > 1:
            entries += [
                (element("path", d=f"M0 {y - 4:.1f}h22", class_=f"line {line.role} {line.dash}"), line.label)
                for line in strip.lines
            ]
    # A and B are the same lines in every strip.
    entries = list({words: (drawing, words) for drawing, words in entries}.values())
    names = {
        ("spike", "solid"): "spike, announced",
        ("spike", "dashed"): "spike, not announced",
        ("resume", "dotted"): "resume",
        ("parting", "solid"): "the losses part",
        ("parting", "dashed"): "another quantity parts first",
    }
    for style in dict.fromkeys((mark.role, mark.dash) for mark in panel.marks):
        line = element("path", d=f"M11 {y - 11:.1f}v14", class_=f"mark {style[0]} {style[1]}")
        entries.append((line, names.get(style, style[0])))
    kinds = {window.role for window in panel.windows}
    kinds |= {window.role for strip in panel.strips for window in strip.windows}
    for role, words in (("lead", "lead: first alarm to onset"), ("not-finite", "not finite")):
        if role in kinds:
            box = element("rect", x=0.0, y=y - 11, width=22.0, height=12.0, class_=f"window {role}")
            entries.append((box, words))
    if panel.checkpoints:
        entries.append((element("path", d=f"M11 {y - 7:.1f}v6", class_="tick"), "checkpoint"))
    if any(line.hollow is not None and line.hollow.any() for strip in panel.strips for line in strip.lines):
        entries.append((
            element("path", d=glyph("circle", 11, y - 4), class_="hollow alarm"),
            "not certified",
        ))
    body, x, lines = [], float(LEFT), 1
    for drawing, words in entries:
        width = 27 + len(words) * _LETTER
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, lines = float(LEFT), lines + 1
        down = _LEGEND_LINE * (lines - 1)
        body.append(element("g", drawing, transform=f"translate({x:.0f} {down})"))
        body.append(text(x + 27, y + down, words, class_="small"))
        x += width + 18
    return body, lines
