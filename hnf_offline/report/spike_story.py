"""The story of one spike at the terminal: everything its panel on the page says, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hnf_offline.errors import UsageError
from hnf_offline.findings import Findings, Spike, Story
from hnf_offline.report.stories import CAUSES, recovery
from hnf_offline.report.text import ascii_only, clean, loss, number, plural

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
#: Columns that the steps of a timeline take.
_STEP = 12


def explained(
    findings: Findings, spike: int, *, width: int = 80, color: bool = False, unicode: bool = True
) -> str:
    """Tell one spike: what happened, what came before it in order of time, and what to do.

    Args:
        findings: what was found.
        spike: its id.
        width: columns, at least 40 are taken.
        color: whether the head may be bold.
        unicode: whether marks beyond ASCII can be shown.

    Returns:
        Lines of at most `width` columns.

    Raises:
        UsageError: if there is no such spike; it says which there are.
    """
    found = next((one for one in findings.spikes if one.id == spike), None)
    if found is None:
        there = f"there are 1 to {len(findings.spikes)}" if len(findings.spikes) > 1 else "there is only 1"
        raise UsageError(
            f"--explain {spike}: no such spike",
            remedy=there if findings.spikes else "no loss spike was found in this run",
        )
    width = max(width, 40)
    story = next((one for one in findings.stories if one.spike == spike), None)
    head = f"{clean(findings.run.get('name', 'run'))}   spike {spike}, onset {found.onset:,}"
    lines = [f"{_BOLD}{head[:width]}{_PLAIN}" if color else head[:width]]
    lines += _wrapped("" if story is None else story.sentence, width)
    for label, value in _facts(found, story):
        lines += _wrapped(f"  {label}: {value}", width, indent="    ")
    if story is not None:
        for step, sentence in story.timeline:
            at = f"  step {step:,}"
            lines += _wrapped(f"{at:<{_STEP}}  {clean(sentence)}", width, indent=" " * (_STEP + 2))
    for advice in findings.advice:
        if advice.spike in {None, spike}:
            lines += _wrapped(f"do: {clean(advice.action)}", width, indent="    ")
            lines += _wrapped(f"    because {clean(advice.because)}" if advice.because else "", width, "    ")
            lines += _wrapped(f"    {clean(advice.tested)}" if advice.tested else "", width, "    ")
    text = "\n".join(lines)
    return text if unicode else ascii_only(text)


def _facts(spike: Spike, story: Story | None) -> Iterator[tuple[str, str]]:
    yield "loss", f"{loss(spike.loss_before)} before, {loss(spike.loss_peak)} at step {spike.peak:,}"
    yield "robust z", number(spike.z, 2)
    yield "recovered", recovery(spike)
    if spike.at_resume:
        yield "at a resume", "yes"
    if story is None:
        return
    yield "cause", CAUSES.get(story.cause, clean(story.cause))
    if story.first_quantity:
        where = clean(story.first_layer) or "the whole model"
        at = "" if story.first_step is None else f" at step {story.first_step:,}"
        yield "moved first", f"{clean(story.first_quantity)} in {where}{at}"
    else:
        yield "moved first", "nothing that was measured"
    yield "lead", clean(story.lead_text)
    if story.resolution > 1:
        yield "known to", plural(story.resolution, "step")


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, drop_whitespace=True) if text else []
