"""What a live monitor would have said, line by line, in the order in which it could have been known."""

from __future__ import annotations

from collections.abc import Iterator

from hnf_offline.findings import Alarm, Findings, Spike
from hnf_offline.report.text import clean, loss

GRAVITY = {"danger": 0, "warning": 1}


def monitor_lines(findings: Findings) -> Iterator[str]:
    """Tell spikes and alarms in causal order.

    Warnings and dangers are told in full, each with its action; what is only worth knowing is one line a
    step. At the same step the spike comes first: the loss of a step is computed before its update, a
    checkpoint of that step is written after it.

    Yields:
        "[WARNING] Step 944: ...", "[ACTION] Recommended: ...", "[INFO] Step 948: ...; ...",
        "[SPIKE] Step 956: loss 0.05 -> 1.3".
    """
    told: dict[int, list[Alarm]] = {}
    for alarm in findings.alarms:
        told.setdefault(alarm.known_at, []).append(alarm)
    spikes: dict[int, list[Spike]] = {}
    for spike in findings.spikes:
        spikes.setdefault(spike.onset, []).append(spike)
    for step in sorted(told.keys() | spikes.keys()):
        for spike in spikes.get(step, ()):
            yield _spike(spike)
        alarms = told.get(step, ())
        for alarm in sorted(
            (one for one in alarms if one.severity != "info"), key=lambda one: GRAVITY.get(one.severity, 1)
        ):
            yield f"[{clean(alarm.severity).upper()}] Step {step}: {_full_stop(clean(alarm.text))}"
            if alarm.action:
                yield f"[ACTION] Recommended: {_full_stop(_continued(clean(alarm.action)))}"
        notes = dict.fromkeys(_note(alarm) for alarm in alarms if alarm.severity == "info")
        if notes:
            yield f"[INFO] Step {step}: {'; '.join(notes)}"


def _spike(spike: Spike) -> str:
    rise = f"loss {loss(spike.loss_before)} -> {loss(spike.loss_peak)}"
    at = "" if spike.peak == spike.onset else f" at step {spike.peak}"
    resume = ", just after a resume" if spike.at_resume else ""
    return f"[SPIKE] Step {spike.onset}: {rise}{at}{resume}"


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
