"""One panel a spike: facts, four aligned strips around it, and the story in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.findings import Findings, Spike, Story
from hnf_offline.report.chart import Chart, Line, Strip
from hnf_offline.report.key_picture import (
    alarm_rows,
    checkpoint_steps,
    lead_windows,
    loss_strip,
    quantity_strip,
    series_strip,
    spike_marks,
    step_range,
)
from hnf_offline.report.series import logged, strongest_quantity
from hnf_offline.report.text import loss, number, plural, shorten, signed

if TYPE_CHECKING:
    import polars as pl

CAUSES = {
    "learning-rate": "learning rate",
    "edge": "edge of stability",
    "bad-batch": "fits a bad batch",
    "resume": "resume of the run",
    "unknown": "unknown",
}


@dataclass(frozen=True, slots=True)
class StoryPanel:
    """A spike told in order.

    Attributes:
        spike: the spike.
        sentence: the story in one or two sentences.
        facts: label and value, one row.
        chart: strips around the spike, None without log and profile.
        timeline: step and sentence.
        worst: whether it is the one shown open.
    """

    spike: Spike
    sentence: str
    facts: tuple[tuple[str, str], ...]
    chart: Chart | None
    timeline: tuple[tuple[int, str], ...]
    worst: bool


def recovery(spike: Spike) -> str:
    """Say whether the loss came back, and how far.

    Returns:
        "after 9 steps, offset +0.14", "never, offset +0.14".
    """
    offset = "" if spike.offset is None else f", offset {signed(spike.offset)}"
    if not spike.recovered:
        return f"never{offset}"
    if spike.recovery_steps is None:
        return f"yes{offset}"
    return f"after {plural(spike.recovery_steps, 'step')}{offset}"


def severity(spike: Spike) -> tuple[bool, bool, float]:
    """Order spikes by how bad they are: recovery matters more than height.

    Returns:
        A key; greater is worse.
    """
    height = spike.height if math.isfinite(spike.height) else math.inf
    return (spike.kind == "nonfinite", not spike.recovered, height)


def story_panels(
    findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame
) -> tuple[StoryPanel, ...]:
    """Build one panel a spike, in order of onset.

    Returns:
        The panels; exactly one of them is the worst.
    """
    if not findings.spikes:
        return ()
    told = {story.spike: story for story in findings.stories}
    worst = max(findings.spikes, key=severity).id
    return tuple(
        _panel(spike, told.get(spike.id), findings, run_log, profile, worst=spike.id == worst)
        for spike in findings.spikes
    )


def _panel(
    spike: Spike,
    story: Story | None,
    findings: Findings,
    run_log: pl.DataFrame | None,
    profile: pl.DataFrame,
    *,
    worst: bool,
) -> StoryPanel:
    facts = [
        ("onset", f"{spike.onset:,}"),
        ("peak", f"{loss(spike.loss_peak)} at {spike.peak:,}"),
        ("before", loss(spike.loss_before)),
        ("robust z", number(spike.z, 2)),
        ("recovered", recovery(spike)),
        ("at a resume", "yes" if spike.at_resume else "no"),
    ]
    if story is not None:
        first = shorten(story.first_layer, 40) if story.first_quantity else "nothing measured"
        facts += [
            ("moved first", first),
            ("lead", story.lead_text),
            ("cause", CAUSES.get(story.cause, story.cause)),
        ]
    return StoryPanel(
        spike=spike,
        sentence=story.sentence if story is not None else "No story could be told from what is on disk.",
        facts=tuple(facts),
        chart=_chart(spike, story, findings, run_log, profile),
        timeline=story.timeline if story is not None else (),
        worst=worst,
    )


def _chart(
    spike: Spike,
    story: Story | None,
    findings: Findings,
    run_log: pl.DataFrame | None,
    profile: pl.DataFrame,
) -> Chart | None:
    start, stop = _clip(spike, story, findings, run_log, profile)
    strips: list[Strip | None] = [_clipped(loss_strip(run_log, height=120), start, stop)]
    quantity = strongest_quantity(profile)
    if quantity is not None and quantity != "gradient.norm":
        strips.append(_clipped(quantity_strip(profile, quantity, findings, height=100), start, stop))
    steps, values = logged(run_log, "grad_norm")
    if steps.size:
        strips.append(
            _clipped(
                series_strip(Line("", "gradient", steps, values), "gradient norm", height=80), start, stop
            )
        )
    elif quantity is not None:
        strips.append(_clipped(quantity_strip(profile, "gradient.norm", findings, height=80), start, stop))
    steps, values = logged(run_log, "learning_rate")
    if steps.size:
        line = Line("", "rate", steps, values)
        strips.append(_clipped(series_strip(line, "learning rate", height=70), start, stop))
    shown = tuple(strip for strip in strips if strip is not None)
    if not shown:
        return None
    lead = "no alarm before it" if story is None or story.known_at is None else f"lead {story.lead_text}"
    return Chart(
        name=f"spike_{spike.id}",
        title=f"Spike {spike.id}: loss {loss(spike.loss_before)} to {loss(spike.loss_peak)} "
        f"at {spike.peak:,}; {lead}; recovered: {recovery(spike)}",
        first=start,
        last=stop,
        strips=shown,
        events=alarm_rows(findings, start, stop, most=3),
        marks=tuple(mark for mark in spike_marks(findings) if start <= mark.step <= stop),
        windows=tuple(window for window in lead_windows(findings) if window.last == spike.onset),
        checkpoints=tuple(s for s in checkpoint_steps(findings, profile) if start <= s <= stop),
    )


def _clip(
    spike: Spike,
    story: Story | None,
    findings: Findings,
    run_log: pl.DataFrame | None,
    profile: pl.DataFrame,
) -> tuple[float, float]:
    # Three leads before the onset to one lead after the recovery, and never less than two checkpoint gaps.
    first, last = step_range(findings, run_log, profile)
    gap = findings.run.get("gap") or 0
    lead = story.lead if story is not None and story.lead is not None else 0
    before = max(3 * lead, 2.5 * gap, 20)
    end = spike.end if spike.end is not None else spike.peak + max(before, 3 * (spike.peak - spike.onset))
    after = max(before / 3, (end - spike.onset) * 0.3, 10)
    return max(first, spike.onset - before), min(last, end + after)


def _clipped(strip: Strip | None, start: float, stop: float) -> Strip | None:
    # Drop a strip with nothing between start and stop; choose its axis by what is seen there.
    if strip is None:
        return None
    line = strip.lines[0]
    inside = (line.steps >= start) & (line.steps <= stop)
    if not inside.any():
        return None
    marked = inside & line.may_be_marked()
    return series_strip(
        Line(
            label=line.label,
            role=line.role,
            steps=line.steps[inside],
            values=line.values[inside],
            dash=line.dash,
            marker="circle" if marked.sum() <= 60 and line.role == "alarm" else line.marker,
            low=None if line.low is None else line.low[inside],
            high=None if line.high is None else line.high[inside],
            hollow=None if line.hollow is None else line.hollow[inside],
            reach=line.reach,
            marked=None if line.marked is None else line.marked[inside],
        ),
        strip.label,
        height=strip.height,
        levels=strip.levels,
    )
