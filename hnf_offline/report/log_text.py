"""What was found in a log, at the terminal: the log itself, its spikes, and what else it shows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hnf_offline.findings import LogEvent, LogFindings, Spike
from hnf_offline.report.curve_text import curve_lines, precision_lines
from hnf_offline.report.stories import severity
from hnf_offline.report.terminal import spikes_table
from hnf_offline.report.text import ascii_only, clean, loss, number, plural

#: Spikes and events told one by one; the JSON document tells all.
MOST_SPIKES, MOST_EVENTS, MOST_NOTES = 100, 40, 8
#: More spikes than this of two rows at most are worth a remark.
MANY_SHORT = 5
_WORST_FIRST = {"danger": 0, "warning": 1, "info": 2}


def log_summary(findings: LogFindings, *, width: int = 100, color: bool = False, unicode: bool = True) -> str:
    """Sum up what was found in a log.

    Returns:
        The log in a line or two, a table of spikes, a table of events, and what was odd in the file.
    """
    width = max(width, 40)
    lines = _wrap(_log_line(findings.log), width)
    lines += _spikes(findings, width, color)
    lines += _events(findings.events, width)
    said = [*curve_lines(findings.curve), *precision_lines(findings.precision)]
    lines += ["", *(line for one in said for line in _wrap(one, width))] if said else []
    lines += [line for note in _oddities(findings) for line in _wrap(note, width)]
    text = "\n".join(lines)
    return text if unicode else ascii_only(text)


def _log_line(log: Mapping[str, Any]) -> str:
    files = [clean(file) for file in log.get("files", ())]
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    formats = ", ".join(clean(name) for name in log.get("formats", ()))
    steps = list(log.get("steps", ()))
    rows, losses = int(log.get("rows", 0)), int(log.get("losses", 0))
    said = f"{named}: {plural(rows, 'row')}" + (f" ({losses:,} with a loss)" if losses < rows else "")
    if len(steps) == 2:
        said += f" of steps {steps[0]:,} to {steps[1]:,}"
    if formats:
        said += f" ({formats})"
    columns = log.get("columns", {})
    told = [
        clean(ours) if ours == name else f"{clean(ours)} = {clean(name)}" for ours, name in columns.items()
    ]
    return f"{said}; {', '.join(told)}" if told else said


def _spikes(findings: LogFindings, width: int, color: bool) -> list[str]:
    spikes: Sequence[Spike] = findings.spikes
    if len(spikes) > MOST_SPIKES:
        kept = {spike.id for spike in sorted(spikes, key=severity, reverse=True)[:MOST_SPIKES]}
        spikes = [spike for spike in spikes if spike.id in kept]
    lines = spikes_table(spikes, width=width, color=color).split("\n")
    if len(findings.spikes) > len(spikes):
        lines.append(f"and {len(findings.spikes) - len(spikes):,} milder ones; --json lists all")
    two_rows = 2 * _row_distance(findings.log)
    short = sum(
        spike.kind == "spike" and spike.recovery_steps is not None and spike.recovery_steps <= two_rows
        for spike in findings.spikes
    )
    if short > MANY_SHORT:
        lines.append(
            f"{short:,} of them last two rows at most: single odd batches, or noise with heavy tails"
        )
    highest = findings.highest
    if not findings.spikes and highest is not None:
        lines += _wrap(
            f"highest row: {loss(highest['loss'])} at step {highest['step']:,} (before it {loss(highest['before'])}, "
            f"z {number(highest['z'], 2)}), no spike by the rule {clean(findings.rule)}",
            width,
        )
    return lines


def _row_distance(log: Mapping[str, Any]) -> float:
    # Steps from one row to the next, on average.
    steps, rows = list(log.get("steps", ())), int(log.get("losses", 0))
    return (steps[1] - steps[0]) / (rows - 1) if len(steps) == 2 and rows > 1 else 1.0


def _events(events: Sequence[LogEvent], width: int) -> list[str]:
    if not events:
        return []
    ranked = sorted(events, key=lambda event: _WORST_FIRST.get(event.severity, 3))
    kept = sorted(ranked[:MOST_EVENTS], key=lambda event: (event.first, event.last, event.kind))
    rows = [(clean(event.severity), clean(event.kind), _span(event)) for event in kept]
    sizes = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [""]
    for row, event in zip(rows, kept, strict=True):
        head = "  ".join(f"{cell:<{size}}" for cell, size in zip(row, sizes, strict=True))
        told = clean(event.evidence)
        if width - len(head) - 2 >= 30:
            room = textwrap.wrap(told, width - len(head) - 2)
            lines += [f"{head}  {room[0]}", *(" " * (len(head) + 2) + line for line in room[1:])]
        else:
            lines += [
                head.rstrip(),
                *textwrap.wrap(told, width, initial_indent="    ", subsequent_indent="    "),
            ]
    if len(events) > len(kept):
        lines.append(f"and {len(events) - len(kept):,} more; --json lists all")
    return lines


def _span(event: LogEvent) -> str:
    return f"{event.first}" if event.first == event.last else f"{event.first}-{event.last}"


def _oddities(findings: LogFindings) -> list[str]:
    log = findings.log
    said = []
    if log.get("skipped_lines"):
        said.append(
            f"{plural(int(log['skipped_lines']), 'line')} of the log could not be read and were left out"
        )
    notes = [clean(note) for note in log.get("notes", ())]
    said += notes[:MOST_NOTES]
    if len(notes) > MOST_NOTES:
        said.append(f"and {len(notes) - MOST_NOTES} more notes; --json lists all")
    for one in findings.skipped[:3]:
        remedy = f"; {clean(one['remedy'])}" if one.get("remedy") else ""
        said.append(f"skipped {clean(one['path'])}: {clean(one['reason'])}{remedy}")
    if len(findings.skipped) > 3:
        said.append(f"skipped {len(findings.skipped) - 3} more; --json lists all")
    return said


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ") or [""]
