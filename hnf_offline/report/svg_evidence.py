"""The raster of leads and the plane of recall over precision as SVG."""

from __future__ import annotations

from markupsafe import Markup

from hnf_offline.report.axis import Axis
from hnf_offline.report.evidence import Predictors, Raster, share
from hnf_offline.report.key_picture import marker
from hnf_offline.report.svg import WIDTH, element, figure, glyph, text

LEFT = 150
PLANE = 340


def raster(panel: Raster) -> Markup:
    """Draw the alarms before each onset.

    Returns:
        One SVG element.
    """
    steps = Axis(panel.window, 0.0, LEFT, WIDTH - 30)
    tall = 20 if len(panel.rows) <= 16 else 12
    top = 24
    bottom = top + tall * len(panel.rows)
    body: list[str] = []
    if panel.resolution is not None:
        x = steps.pixel(min(panel.resolution, panel.window))
        for first, last in panel.unresolved():
            body.append(
                element(
                    "rect",
                    x=x,
                    y=float(top + tall * first),
                    width=steps.stop - x,
                    height=float(tall * (last - first)),
                    class_="window gap",
                )
            )
        body.append(
            text(
                steps.stop,
                14,
                "checkpoint gap: a lead in here has no number",
                text_anchor="end",
                class_="small",
            )
        )
    for place, row in enumerate(panel.rows):
        y = top + tall * (place + 0.5)
        body.append(element("path", d=f"M{LEFT} {y:.1f}H{WIDTH - 30}", class_="rule"))
        if tall >= 14 or place % 2 == 0:
            body.append(text(LEFT - 8, y + 4, row.label, text_anchor="end", class_="small"))
        for rule in panel.rules:
            marks = "".join(
                glyph(marker(rule), steps.pixel(lead), y) for name, lead in row.alarms if name == rule
            )
            body += [element("path", d=marks, class_="fill alarm")] if marks else []
        if not row.alarms:
            body.append(text((LEFT + WIDTH) / 2, y + 4, "no alarm", text_anchor="middle", class_="small"))
    onset = steps.pixel(0.0)
    body.append(element("path", d=f"M{onset:.1f} {top}V{bottom}", class_="mark spike solid"))
    body.append(element("path", d=f"M{LEFT} {bottom}H{WIDTH - 30}", class_="axis"))
    for tick in Axis(0.0, panel.window, 0, 1).ticks(6):
        body.append(text(steps.pixel(tick), bottom + 16, f"{tick:g}", text_anchor="middle", class_="small"))
    body.append(text(LEFT - 8, bottom + 16, "steps before onset", text_anchor="end", class_="small"))
    x, y = float(LEFT), bottom + 40.0
    for rule in panel.rules:
        body.append(element("path", d=glyph(marker(rule), x + 5, y - 4), class_="fill alarm"))
        body.append(text(x + 16, y, rule, class_="small"))
        x += 34 + 7 * len(rule)
    for chance in panel.chance:
        y += 18
        body += _chance_bar(chance.rule, chance.recall, chance.chance, y)
    return figure(y + 12, panel.title, body, class_="raster")


def _chance_bar(rule: str, recall: float, chance: float | None, y: float) -> list[str]:
    # Draw recall as a bar and chance as a grey band beneath it.
    room = 260.0
    start = LEFT + 330.0
    body = [text(start - 8, y, f"{rule}: recall", text_anchor="end", class_="small")]
    if chance is not None:
        body.append(element("rect", x=start, y=y - 10, width=room * chance, height=12.0, class_="window gap"))
    body.append(
        element("rect", x=start, y=y - 7, width=max(room * recall, 1.0), height=6.0, class_="fill alarm")
    )
    words = share(recall) if chance is None else f"{share(recall)}, at random {share(chance)}"
    body.append(text(start + room + 8, y, words, class_="small"))
    return body


def predictors(panel: Predictors) -> Markup:
    """Draw recall over precision, our rules filled, baselines hollow, chance as a cross tied to each.

    Returns:
        One SVG element.
    """
    left, top, width = 76, 14, 360
    across, up = Axis(0.0, 1.0, left, left + width), Axis(0.0, 1.0, top + PLANE - 60, top)
    body: list[str] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = up.pixel(tick), across.pixel(tick)
        body.append(element("path", d=f"M{left} {y:.1f}H{left + width}", class_="grid"))
        body.append(text(left - 8, y + 4, f"{tick:g}", text_anchor="end", class_="small"))
        body.append(text(x, up.start + 18, f"{tick:g}", text_anchor="middle", class_="small"))
    body.append(element("path", d=f"M{left} {top}V{up.start:.1f}H{left + width}", class_="axis hollow"))
    body.append(text(left + width / 2, up.start + 36, "precision", text_anchor="middle", class_="small"))
    body.append(text(6, top + 10, "recall", class_="small"))
    listed = panel.dots
    for dot in listed:
        x, y = across.pixel(dot.precision), up.pixel(dot.recall)
        if dot.chance_precision is not None and dot.chance_recall is not None:
            cx, cy = across.pixel(dot.chance_precision), up.pixel(dot.chance_recall)
            body.append(element("path", d=f"M{cx:.1f} {cy:.1f}L{x:.1f} {y:.1f}", class_="tie"))
            body.append(element("path", d=f"M{cx - 3:.1f} {cy - 3:.1f}l6 6m0-6l-6 6", class_="tick"))
        style, shape = ("hollow rest", "square") if dot.baseline else ("fill alarm", "circle")
        body.append(element("path", d=glyph(shape, x, y), class_=style))
    body += _numbers([(across.pixel(dot.precision), up.pixel(dot.recall)) for dot in listed])
    for place, dot in enumerate(listed, start=1):
        y = top + 12 + 18 * (place - 1)
        style, shape = ("hollow rest", "square") if dot.baseline else ("fill alarm", "circle")
        body.append(element("path", d=glyph(shape, left + width + 100, y - 4), class_=style))
        words = f"{place}  {dot.label}" + ("  (baseline)" if dot.baseline else "")
        body.append(text(left + width + 112, y, words, class_="small"))
    y = top + 18 + 18 * len(listed)
    body.append(element("path", d=f"M{left + width + 97} {y - 7}l6 6m0-6l-6 6", class_="tick"))
    body.append(text(left + width + 112, y, "as many alarms placed at random", class_="small"))
    return figure(max(float(top + PLANE - 10), y + 14), panel.title, body, class_="plane")


def _numbers(points: list[tuple[float, float]]) -> list[str]:
    # Number the dots; dots that coincide share one label.
    at: dict[tuple[int, int], list[int]] = {}
    for place, (x, y) in enumerate(points, start=1):
        at.setdefault((round(x / 10), round(y / 10)), []).append(place)
    body = []
    for places in at.values():
        x, y = points[places[0] - 1]
        body.append(text(x + 8, y - 6, ", ".join(map(str, places)), class_="small halo"))
    return body
