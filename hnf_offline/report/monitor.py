"""What a live monitor would have said, line by line, in the order in which it could have been known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from hnf_offline.findings import Alarm, Findings, Spike
from hnf_offline.report.text import clean, loss
from hnf_offline.strict_json import plain

#: Order within a step: the loss of a step is computed before its update, its checkpoint is written after it.
_PLACES = {"restart": 0, "recovered": 1, "spike": 2, "danger": 3, "warning": 4, "info": 5}


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that a live monitor says.

    Attributes:
        step: the step at which it was known.
        tag: "restart", "recovered", "spike", "danger", "warning" or "info".
        text: what is said, without tag and step.
        about: what it is about, whatever is said of it: two remarks about one thing are never both said.
        action: what to do, "" where there is nothing to do.
        record: the same as data, with nothing in it that was not known at that step.
    """

    step: int
    tag: str
    text: str
    about: tuple[Any, ...]
    action: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give the remark as strict JSON.

        Returns:
            One document with a schema of its own.
        """
        head = {"schema": 1, "step": self.step, "tag": self.tag, "text": self.text, "action": self.action}
        return dict(plain({**head, **self.record}))


def monitor_lines(
    findings: Findings,
    *,
    losses: Mapping[int, float],
    ends: Mapping[int, int],
    restarts: Sequence[int] = (),
) -> Iterator[str]:
    """Tell spikes and alarms in causal order, as `spelled_remarks` does.

    Args:
        findings: alarms and spikes.
        losses: id of a spike -> loss at its onset.
        ends: id of a spike -> step at which its end was certain.
        restarts: steps at which the run was resumed.

    Returns:
        The lines.
    """
    return spelled_remarks(
        remarks(findings.alarms, findings.spikes, losses=losses, ends=ends, restarts=restarts)
    )


def remarks(
    alarms: Sequence[Alarm],
    spikes: Sequence[Spike],
    *,
    losses: Mapping[int, float],
    ends: Mapping[int, int],
    restarts: Sequence[int] = (),
) -> list[Remark]:
    """Put into words and in order what a live monitor says of a run.

    A spike is told twice: at its onset with the loss it began with, and with its peak once it was over.

    Args:
        alarms: the alarms.
        spikes: the spikes.
        losses: id of a spike -> loss at its onset.
        ends: id of a spike -> step at which its end was certain.
        restarts: steps at which the run was resumed.

    Returns:
        The remarks in the order in which they could have been made.
    """
    told = [_alarm(alarm) for alarm in alarms]
    told += [_onset(spike, losses[spike.id]) for spike in spikes]
    told += [_end(spike, ends[spike.id]) for spike in spikes if spike.id in ends]
    told += [Remark(step, "restart", "the run starts again here", ("restart", step)) for step in restarts]
    return sorted(told, key=lambda one: (one.step, _PLACES.get(one.tag, 4)))


def spelled_remarks(told: Iterable[Remark]) -> Iterator[str]:
    """Spell remarks as lines: warnings and dangers in full, what is only worth knowing in one line a step.

    Yields:
        "[WARNING] Step 944: ...", "[ACTION] Recommended: ...", "[INFO] Step 948: ...; ...",
        "[SPIKE] Step 956: loss 0.05 -> 0.4", "[RECOVERED] Step 972: ...".
    """
    for (step, tag), group in groupby(told, key=lambda one: (one.step, one.tag)):
        head = f"[{clean(tag).upper()}] Step {step}: "
        if tag == "info":
            yield head + "; ".join(dict.fromkeys(one.text for one in group))
            continue
        for one in group:
            yield head + one.text
            if one.action:
                yield f"[ACTION] Recommended: {one.action}"


def _alarm(alarm: Alarm) -> Remark:
    record = {name: value for name, value in asdict(alarm).items() if name not in {"spike", "text", "action"}}
    about = (alarm.known_at, alarm.rule, alarm.quantity, alarm.layer, alarm.severity)
    if alarm.severity == "info":
        return Remark(alarm.known_at, "info", _note(alarm), about, record={"alarm": record})
    action = _full_stop(_continued(clean(alarm.action))) if alarm.action else ""
    text = _full_stop(clean(alarm.text))
    return Remark(alarm.known_at, alarm.severity, text, about, action, {"alarm": record})


def _onset(spike: Spike, first: float) -> Remark:
    resume = ", just after a resume" if spike.at_resume else ""
    text = f"loss {loss(spike.loss_before)} -> {loss(first)}{resume}"
    record = {
        "onset": spike.onset,
        "loss_before": spike.loss_before,
        "loss": first,
        "at_resume": spike.at_resume,
    }
    return Remark(spike.onset, "spike", text, ("spike", spike.onset), record={"spike": record})


def _end(spike: Spike, known_at: int) -> Remark:
    text = f"the loss is back since step {spike.end}; the spike of step {spike.onset} peaked at "
    text += f"{loss(spike.loss_peak)}" + (f" at step {spike.peak}" if spike.peak != spike.onset else "")
    record = {name: getattr(spike, name) for name in ("onset", "peak", "end", "loss_before", "loss_peak")}
    return Remark(known_at, "recovered", text, ("recovered", spike.onset), record={"spike": record})


def _note(alarm: Alarm) -> str:
    # The line begins with the step: what the sentence repeats of it adds nothing.
    said = clean(alarm.text).rstrip(".")
    for repeated in (f" at checkpoint {alarm.known_at}", f" at step {alarm.known_at}"):
        said = said.replace(repeated, "", 1)
    return said


def _continued(sentence: str) -> str:
    # "Lower beta2" goes on as "lower beta2"; "S is ..." stays.
    return sentence[0].lower() + sentence[1:] if sentence[1:2].islower() else sentence


def _full_stop(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
