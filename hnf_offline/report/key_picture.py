"""The picture that proves the verdict: loss and the strongest quantity on one step axis."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.findings import Findings
from hnf_offline.report.chart import (
    Chart,
    Events,
    Level,
    Line,
    Mark,
    Strip,
    Window,
    fitting_cap,
    fitting_scale,
    not_finite_windows,
)
from hnf_offline.report.series import (
    EDGE_AT_ONE,
    logged,
    measured_line,
    strongest_quantity,
    symbol,
)
from hnf_offline.report.text import clean, number, plural
from hnf_offline.table import of_checkpoints

if TYPE_CHECKING:
    import polars as pl

#: Marker of each rule, wherever alarms are drawn.
MARKERS = {
    "edge": "triangle",
    "forecast": "diamond",
    "headroom": "down",
    "rapid-increase": "square",
    "band": "square",
    "nonfinite": "cross",
}


def marker(rule: str) -> str:
    """Choose the marker of a rule.

    Returns:
        The same one on every picture.
    """
    return MARKERS.get(rule, "circle")


def series_strip(line: Line, label: str, *, height: int = 120, levels: tuple[Level, ...] = ()) -> Strip:
    """Make a strip of one line: log axis where needed, not-finite stretches shown.

    Returns:
        The strip.
    """
    return Strip(
        label=label,
        lines=(line,),
        levels=levels,
        windows=not_finite_windows(line.steps, line.values),
        scale=fitting_scale(line.values),
        cap=fitting_cap(line.values),
        height=height,
    )


def loss_strip(run_log: pl.DataFrame | None, *, height: int = 170) -> Strip | None:
    """Make the loss strip: every logged step, no smoothing.

    Returns:
        The strip, None where no loss was logged.
    """
    steps, values = logged(run_log, "loss")
    if steps.size == 0:
        return None
    return series_strip(Line("loss", "loss", steps, values), "loss", height=height)


def quantity_strip(profile: pl.DataFrame, quantity: str, findings: Findings, *, height: int) -> Strip | None:
    """Make the strip of a whole-model quantity with its threshold.

    Returns:
        The strip, None where it was not measured.
    """
    line = measured_line(profile, quantity, "", symbol(quantity), "alarm")
    if line is None:
        return None
    levels: tuple[Level, ...] = ()
    if quantity in EDGE_AT_ONE:
        levels = (Level(1.0, "1 = edge of stability"),)
    else:
        crossed = {a.threshold for a in findings.alarms if a.quantity == quantity and not a.layer}
        if len(crossed) == 1 and np.isfinite(threshold := crossed.pop()):
            levels = (Level(threshold, f"alarm at {number(threshold)}"),)
    strip = series_strip(line, symbol(quantity), height=height, levels=levels)
    foreseen = forecast_line(findings, quantity)
    return strip if foreseen is None else replace(strip, lines=(*strip.lines, foreseen))


def forecast_line(findings: Findings, quantity: str) -> Line | None:
    """Draw what each forecast said when it was made: from the last value then known to the crossing it projected.

    Returns:
        One dotted line with a break after every forecast, None where nothing was forecast.
    """
    made = sorted(
        (alarm.known_at, alarm.value, alarm.projected_step, alarm.threshold)
        for alarm in findings.alarms
        if alarm.quantity == quantity and not alarm.layer and alarm.projected_step is not None
    )
    if not made:
        return None
    steps = np.array(
        [step for known, _, projected, _ in made for step in (known, projected, projected)], float
    )
    values = np.array([each for _, value, _, threshold in made for each in (value, threshold, np.nan)], float)
    return Line("forecast when it was made", "rest", steps, values, dash="dotted")


def spike_marks(findings: Findings) -> tuple[Mark, ...]:
    """Make the vertical marks: onsets, solid where an alarm came before, and resumes.

    Returns:
        One mark a spike and one a resume.
    """
    announced = {story.spike for story in findings.stories if story.known_at is not None}
    marks = [
        Mark(
            spike.onset,
            f"spike {spike.id} at {spike.onset:,}" + ("" if spike.id in announced else ", no alarm before"),
            "solid" if spike.id in announced else "dashed",
        )
        for spike in findings.spikes
    ]
    resumes = findings.run.get("resume_steps") or findings.run.get("restarts") or ()
    return tuple(marks) + tuple(Mark(step, f"resume at {step:,}", "dotted", "resume") for step in resumes)


def lead_windows(findings: Findings) -> tuple[Window, ...]:
    """Shade the time between the first alarm and the onset of every announced spike.

    Returns:
        One window an announced spike.
    """
    onset = {spike.id: spike.onset for spike in findings.spikes}
    return tuple(
        Window(story.known_at, onset[story.spike], f"lead {clean(story.lead_text)}", "lead")
        for story in findings.stories
        if story.known_at is not None and story.spike in onset
    )


def alarm_rows(findings: Findings, first: float, last: float, *, most: int = 4) -> tuple[Events, ...]:
    """Collect alarms into one row of markers a rule, at the step they could have been known.

    Returns:
        The rules with most alarms, at most `most`.
    """
    rules: dict[str, list[float]] = {}
    for alarm in findings.alarms:
        if alarm.severity != "info" and first <= alarm.known_at <= last:
            rules.setdefault(alarm.rule, []).append(alarm.known_at)
    kept = sorted(rules, key=lambda rule: -len(rules[rule]))[:most]
    return tuple(Events(rule, tuple(sorted(set(rules[rule]))), marker(rule)) for rule in sorted(kept))


def checkpoint_steps(findings: Findings, profile: pl.DataFrame) -> tuple[float, ...]:
    """List the steps of the checkpoints, from the findings where they say, else from the profile.

    Returns:
        Steps, ascending.
    """
    listed = findings.run.get("checkpoint_steps")
    steps = listed if isinstance(listed, list | tuple) else of_checkpoints(profile)["step"].unique().to_list()
    return tuple(sorted(float(step) for step in steps))


def step_range(
    findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame
) -> tuple[float, float]:
    """Find the first and last step of anything there is.

    Returns:
        First and last, at least one step apart.
    """
    steps, _ = logged(run_log, "loss")
    every = (
        [*steps[[0, -1]], *checkpoint_steps(findings, profile)]
        if steps.size
        else [
            *checkpoint_steps(findings, profile),
            *(float(spike.onset) for spike in findings.spikes),
        ]
    )
    first, last = min(every, default=0.0), max(every, default=1.0)
    return first, max(last, first + 1)


def key_picture(findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame) -> Chart | None:
    """Build the picture of the first screen.

    Returns:
        Loss over the strongest quantity, None where there is neither.
    """
    first, last = step_range(findings, run_log, profile)
    strips = []
    loss = loss_strip(run_log)
    if loss is not None:
        strips.append(loss)
    quantity = strongest_quantity(profile)
    if quantity is not None:
        strip = quantity_strip(profile, quantity, findings, height=110)
        if strip is not None:
            strips.append(strip)
    else:
        steps, values = logged(run_log, "grad_norm")
        if steps.size:
            line = Line("gradient norm", "gradient", steps, values, dash="solid")
            strips.append(series_strip(line, "logged gradient norm", height=110))
    if not strips:
        return None
    return Chart(
        name="key_picture",
        title=_title(findings, loss is not None, quantity),
        first=first,
        last=last,
        strips=tuple(strips),
        events=alarm_rows(findings, first, last),
        marks=spike_marks(findings),
        windows=lead_windows(findings),
        checkpoints=checkpoint_steps(findings, profile),
    )


def _title(findings: Findings, has_loss: bool, quantity: str | None) -> str:
    announced = sum(story.known_at is not None for story in findings.stories)
    shown = [name for name in ("loss" if has_loss else "", symbol(quantity) if quantity else "") if name]
    if not findings.spikes:
        return f"No loss spike was found ({' and '.join(shown)})"
    count = plural(len(findings.spikes), "loss spike")
    onsets = ", ".join(f"{spike.onset:,}" for spike in findings.spikes[:4])
    more = ", …" if len(findings.spikes) > 4 else ""
    return f"{count} (onset {onsets}{more}); an alarm came before {announced} of {len(findings.spikes)}"
