"""What a live monitor would have said, line by line, in the order in which it could have been known."""

from __future__ import annotations

from collections.abc import Iterator

from hnf_offline.findings import Findings
from hnf_offline.report.text import clean, loss


def monitor_lines(findings: Findings) -> Iterator[str]:
    """Tell alarms and spikes in causal order; at the same step alarms come before the spike they announce.

    Yields:
        "[WARNING] Step 944: ...", "[ACTION] ...", "[SPIKE] Step 956: loss 0.05 -> 1.3".
    """
    told: list[tuple[int, int, str, str]] = [
        (
            alarm.known_at,
            0 if alarm.spike is not None else 1,
            f"[{clean(alarm.severity).upper()}] Step {alarm.known_at}: {clean(alarm.text)}",
            f"[ACTION] {clean(alarm.action)}" if alarm.action else "",
        )
        for alarm in findings.alarms
    ]
    for spike in findings.spikes:
        rise = f"loss {loss(spike.loss_before)} -> {loss(spike.loss_peak)}"
        at = "" if spike.peak == spike.onset else f" at step {spike.peak}"
        resume = ", just after a resume" if spike.at_resume else ""
        told.append((spike.onset, 2, f"[SPIKE] Step {spike.onset}: {rise}{at}{resume}", ""))
    for _, _, line, action in sorted(told, key=lambda one: one[:2]):
        yield line
        if action:
            yield action
