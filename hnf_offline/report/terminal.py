"""The first screen at the terminal: the verdict first, at most eleven lines, then the page's path."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hnf_offline.findings import Findings, Spike, Story
from hnf_offline.report import words
from hnf_offline.report.comparison_text import comparison_summary
from hnf_offline.report.faults import fault_line, faults_counted
from hnf_offline.report.heat import heat_map
from hnf_offline.report.monitor import monitor_lines
from hnf_offline.report.stories import CAUSES, recovery, severity
from hnf_offline.report.text import ascii_only, clean, loss, number, plural, shorten

__all__ = ["comparison_summary", "heat_map", "monitor_lines", "spikes_table", "summary"]

MOST_LINES = 11
#: The verdict ends with what to do, so it is told whole; beyond so many lines spikes and the caveat make room for it.
VERDICT_LINES, USUAL_LINES = 6, 4
#: Tested pieces of advice that are told; the page tells all.
MOST_TESTED = 2
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


def summary(findings: Findings, *, width: int = 80, color: bool = False, unicode: bool = True) -> str:
    """Sum the findings up: verdict, spikes with what came first, the facts, what is missing.

    Returns:
        At most eleven lines of at most `width` columns; one more for a long verdict, and a few where advice was tested
        or a stretch zoomed.
    """
    width = max(width, 40)
    run = findings.run
    word = findings.verdict.get("word", "Cannot say")
    mark = words.MARKS.get(word, "?") if unicode else words.ASCII_MARKS.get(word, "?")
    lines = [_cut(f"{clean(run.get('name', 'run'))}   {words.subtitle(run)}", width)]
    verdict = _wrap(f"{mark} {word}: {clean(findings.verdict.get('sentence', ''))}", width, VERDICT_LINES)
    lines += [f"{_BOLD}{line}{_PLAIN}" if color else line for line in verdict]
    retrained = _tested(findings, width)
    lines += retrained
    tail = _facts(findings, width)
    zoomed = words.zoomed(findings.zooms)
    if zoomed:
        told = _wrap(f"zoomed: {zoomed[0]}", width, 2)
        if len(zoomed) > 1:
            # The first sentence is about the first zoom, or about all exact ones together.
            others = findings.zooms[-(len(zoomed) - 1) :]
            if len(zoomed) < len(findings.zooms):
                others = tuple(zoom for zoom in findings.zooms if zoom.get("word") != "exact")
            told.append(_cut(f"zoomed: {'; '.join(_short(zoom) for zoom in others)}", width))
        retrained += told
        tail += told
    most = MOST_LINES + len(retrained)
    gone = words.missing(run)
    if gone:
        tail += _wrap(f"missing: {'; '.join(gone)}", width, 1)
    passed_over = words.skipped(run)
    if passed_over:
        tail += _wrap(f"skipped: {'; '.join(passed_over)}", width, 1)
    wrong = [one for one in findings.faults if one.severity != "info"]
    if wrong:
        series = _wrap(f"series not sound: {faults_counted(wrong)}; {fault_line(wrong[0])}", width, 2)
        most += len(series)
        tail += series
    caveat = findings.verdict.get("caveat", "")
    if caveat and len(verdict) <= USUAL_LINES:
        tail += _wrap(clean(caveat), width, 1)
    # However long the verdict, how many spikes there are has its line.
    most = max(most, min(len(lines) + len(tail) + 1, most + 1))
    lines += _spikes(findings, width, most - len(lines) - len(tail))
    lines += tail
    text = "\n".join(lines[:most])
    return text if unicode else ascii_only(text)


def spikes_table(
    spikes: Sequence[Spike], *, width: int = 100, color: bool = False, unicode: bool = True
) -> str:
    """List spikes, one a line under a head.

    Returns:
        A table of aligned columns; one sentence where there is no spike.
    """
    del width, color  # columns are short, and nothing here is worth a colour
    if not spikes:
        return "no loss spike found"
    head = ("spike", "onset", "peak", "loss before", "loss at peak", "z", "kind", "recovered", "resume")
    rows = [head] + [
        (
            str(spike.id),
            str(spike.onset),
            str(spike.peak),
            loss(spike.loss_before),
            loss(spike.loss_peak),
            number(spike.z, 2),
            clean(spike.kind),
            recovery(spike),
            "yes" if spike.at_resume else "no",
        )
        for spike in spikes
    ]
    sizes = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = "\n".join(
        "  ".join(f"{cell:<{size}}" for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows
    )
    return text if unicode else ascii_only(text)


def _short(zoom: Mapping[str, Any]) -> str:
    word = clean(zoom.get("word", "")).replace("_", " ")
    return f"steps {number(zoom.get('start'))}–{number(zoom.get('stop'))} {word}"


def _tested(findings: Findings, width: int) -> list[str]:
    # The verdict ends with the advice for the worst spike; what testing it gave stands right below. Advice that
    # is not in the verdict is named first.
    tested = [one for one in findings.advice if one.tested]
    said = findings.verdict.get("sentence", "").lower()
    lines: list[str] = []
    for one in tested[:MOST_TESTED]:
        action = clean(one.action).partition(";")[0]
        if action.lower() not in said:
            lines.append(_cut(f"  {action}", width))
        lines += _wrap(f"  {clean(one.tested)}", width, 2)
    if len(tested) > MOST_TESTED:
        lines.append(f"  {len(tested) - MOST_TESTED} more tested; see the report")
    return lines


def _spikes(findings: Findings, width: int, room: int) -> list[str]:
    # Tell as many spikes as there is room for, in order of onset: one line each, two for the worst.
    spikes = findings.spikes
    if room <= 0 or not spikes:
        return []
    told = {story.spike: story for story in findings.stories}
    ranked = [spike.id for spike in sorted(spikes, key=severity, reverse=True)]
    named = set(ranked if len(ranked) <= room else ranked[: room - 1])
    spare = room - len(named) - (len(named) < len(ranked))
    explained = {spike for spike in ranked if spike in named and spike in told}
    explained = set([spike for spike in ranked if spike in explained][: max(spare, 0)])
    lines: list[str] = []
    for spike in spikes:
        if spike.id in named:
            lines.append(_cut(_spike(spike), width))
        if spike.id in explained:
            lines.append(_cut(_story(told[spike.id]), width))
    if len(named) < len(ranked):
        lines.append(f"  and {plural(len(ranked) - len(named), 'milder spike')}; all in the report")
    return lines


def _spike(spike: Spike) -> str:
    back = f"recovered {recovery(spike)}" if spike.recovered else f"not recovered{recovery(spike)[5:]}"
    peak = f"peak {loss(spike.loss_peak)}" + (f" (z {number(spike.z, 2)})" if math.isfinite(spike.z) else "")
    return f"  spike {spike.id}  onset {spike.onset:,}  {peak}  {back}"


def _story(story: Story) -> str:
    cause = CAUSES.get(story.cause, clean(story.cause))
    if not story.first_quantity:
        return f"    nothing measured moved first   lead {clean(story.lead_text)}   {cause}"
    at = "" if story.first_step is None else f" at {story.first_step:,}"
    return f"    first: {shorten(story.first_layer, 32)}{at}   lead {clean(story.lead_text)}   {cause}"


def _facts(findings: Findings, width: int) -> list[str]:
    # Set the four facts in as few lines as they need.
    lines: list[str] = []
    for fact in findings.facts[:4]:
        said = f"{clean(fact.get('label', ''))}: {clean(fact.get('value', ''))}"
        if lines and len(lines[-1]) + 3 + len(said) <= width:
            lines[-1] += f"   {said}"
        else:
            lines.append(_cut(said, width))
    return lines[:3]


def _wrap(text: str, width: int, most: int) -> list[str]:
    lines = textwrap.wrap(text, width, subsequent_indent="  ")
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], _cut(" ".join([lines[most - 1], lines[most].strip()]), width)]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
