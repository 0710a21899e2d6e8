"""Alarms: what a live monitor would have said, and at which step. Nothing here looks ahead."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from hnf_offline.detect.gradients import gradient_alarms
from hnf_offline.detect.headroom import headroom_alarms
from hnf_offline.detect.monitors import (
    band_alarms,
    increase_alarms,
    nonfinite_alarms,
    overflow_alarms,
)
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.detect.stability import stability_alarms
from hnf_offline.findings import Alarm, Spike

__all__ = [
    "Rules",
    "all_alarms",
    "band_alarms",
    "gradient_alarms",
    "headroom_alarms",
    "increase_alarms",
    "nonfinite_alarms",
    "overflow_alarms",
    "stability_alarms",
]


def all_alarms(
    profile: pl.DataFrame, log: pl.DataFrame, spikes: Sequence[Spike], rules: Rules = STUDIED
) -> tuple[Alarm, ...]:
    """All alarms of a run in the order in which they could have been said.

    Cutting profile and log after any step, and finding the spikes again in what is left, leaves the
    alarms up to that step as they are.

    Args:
        profile: the long table.
        log: columns `step`, `loss`, and `learning_rate`, `grad_norm` where logged.
        spikes: the spikes of the log.
        rules: the thresholds.

    Returns:
        The alarms, sorted by `known_at`, the gravest first within a step.
    """
    gravity = {"danger": 0, "warning": 1, "info": 2}
    found = (
        *stability_alarms(profile, log, spikes, rules),
        *headroom_alarms(profile, log, rules),
        *gradient_alarms(profile, log, rules),
        *band_alarms(profile, rules),
        *increase_alarms(profile, rules),
        *overflow_alarms(profile, rules),
        *nonfinite_alarms(profile, log),
    )
    return tuple(
        sorted(
            found,
            key=lambda alarm: (
                alarm.known_at,
                gravity[alarm.severity],
                alarm.rule,
                alarm.quantity,
                alarm.layer,
            ),
        )
    )
