"""How well each rule announced the spikes of this run, beside chance and beside the rivals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from hnf_offline.findings import Alarm, Relation, Spike
from hnf_offline.relate.events import announces, clusters, score
from hnf_offline.relate.null import Signal, shift_test
from hnf_offline.relate.rules import Rule, rules, scored_range
from hnf_offline.relate.series import AFTERSHOCK, Steps, Values, column

if TYPE_CHECKING:
    import polars as pl

#: The rule the verdict is about, fixed in advance.
PRIMARY = "stability alarm"

#: Longest lead that counts, in steps (study, section 1).
WINDOW = 80
#: A lead that leaves time to act (success criterion of the condition-number profiler, a source document).
EARLY = 10

#: Horizons of the AUROC, in steps.
HORIZONS = (16, 40)


def scored_onsets(spikes: Sequence[Spike]) -> list[int]:
    """Give the onsets that rules are scored on: a spike at a resume is a fault of the resume and left out.

    Returns:
        Onsets, ascending.
    """
    return sorted(spike.onset for spike in spikes if not spike.at_resume)


def relations(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    alarms: Sequence[Alarm],
    gap: int | None,
    window: int = WINDOW,
) -> tuple[Relation, ...]:
    """Score every rule against the spikes, over the same range of steps.

    p-values come from one circular-shift test of all rules that raised an alarm, rivals included, so each is
    adjusted for having looked at all of them. Only the stability alarm, the one rule that was fixed before
    any run was looked at and the one the verdict is about, is tested by itself; its `n_tests` says 1. Layer
    rules that never spoke are left out of the list.

    Args:
        profile: the long table; may be empty.
        log: the log's rows, None where there is none.
        spikes: the loss spikes.
        alarms: what the detectors said.
        gap: checkpoint gap, None without checkpoints.
        window: longest lead that counts.

    Returns:
        One relation a rule, ours before the rivals; empty where nothing was read.
    """
    first, last = scored_range(profile, log, gap)
    if last <= first:
        return ()
    onsets = scored_onsets(spikes)
    applied = [
        rule
        for rule in rules(profile, log, spikes, alarms, gap, window)
        if rule.layer == "" or ((rule.alarms >= first) & (rule.alarms <= last)).any()
    ]
    testable = [rule for rule in applied if rule.testable]
    signals = [
        Signal(rule.alarms, rule.at if rule.values.size else rule.at[:0], rule.values, rule.turn)
        for rule in testable
    ]
    shifted = partial(
        shift_test,
        onsets=onsets,
        first=first,
        last=last,
        resolution=max((rule.resolution for rule in testable), default=1),
        window=window,
    )
    test = shifted(signals)
    outcome = {id(rule): (p, test.n_tests) for rule, p in zip(testable, test.p_values, strict=True)}
    for rule, signal in zip(testable, signals, strict=True):
        if rule.name == PRIMARY:
            outcome[id(rule)] = (shifted([signal]).p_values[0], 1)
    result = []
    for rule in sorted(applied, key=lambda rule: rule.baseline):
        scored = partial(
            score,
            rule.alarms.tolist(),
            onsets,
            window=window,
            resolution=rule.resolution,
            first=first,
            last=last,
            at=rule.at if rule.at.size and rule.testable else None,
        )
        found, early = scored(), scored(minimum_lead=EARLY)
        quartiles = np.quantile(found.leads, [0.25, 0.5, 0.75]).tolist() if found.leads else [None] * 3
        p_value, n_tests = outcome.get(id(rule), (None, 0))
        result.append(
            Relation(
                quantity=rule.quantity,
                layer=rule.layer,
                rule=rule.name,
                n_alarms=found.n_alarms,
                n_spikes=found.n_spikes,
                recall=found.recall,
                precision=found.precision,
                chance_recall=found.chance_recall,
                chance_precision=found.chance_precision,
                lead_median=quartiles[1],
                lead_low=quartiles[0],
                lead_high=quartiles[2],
                resolution=rule.resolution,
                false_alarms_per_1000=found.false_alarms_per_1000,
                time_in_warning=found.time_in_warning,
                p_value=p_value,
                n_tests=n_tests if p_value is not None else 0,
                n_shifts=test.n_shifts if p_value is not None else 0,
                baseline=rule.baseline,
                early_recall=early.recall,
                early_chance=early.chance_recall,
            )
        )
    return tuple(result)


def auroc(values: Values, positive: np.ndarray[Any, np.dtype[np.bool_]]) -> float | None:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half.

    Returns:
        The area, None where one of the two classes is empty.
    """
    known = ~np.isnan(values)
    values, positive = values[known], positive[known]
    n_positive = int(positive.sum())
    n_negative = int(positive.size) - n_positive
    if not n_positive or not n_negative:
        return None
    above = float(rankdata(values)[positive].sum()) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * n_negative)


def aurocs(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    alarms: Sequence[Alarm],
    gap: int | None,
) -> list[dict[str, Any]]:
    """AUROC of each rule's score for "a spike starts within H steps", beside what costs nothing to know.

    Steps in an aftershock and in the last H steps without a spike are left out. The three trivial scores are
    taken at the same steps as the rule's: step index, log loss and steps since the last spike, each as it
    is, so that .2 says as much as .8 (low loss = risky).

    Returns:
        One dict a rule and horizon: rule, quantity, layer, baseline, horizon, auroc, step_index, log_loss,
        time_since_spike, n_steps, n_positive, spikes.
    """
    first, last = scored_range(profile, log, gap)
    onsets = scored_onsets(spikes)
    if last <= first or not onsets:
        return []
    starts = clusters(onsets, -(2**62), last)
    logged, loss = column(log, "loss")
    seen: set[tuple[str, str, str]] = set()
    result: list[dict[str, Any]] = []
    for rule in rules(profile, log, spikes, alarms, gap):
        name = _score_name(rule)
        if (
            not rule.values.size
            or rule.layer
            or not rule.testable
            or (name, rule.quantity, rule.layer) in seen
        ):
            continue
        seen.add((name, rule.quantity, rule.layer))
        for horizon in HORIZONS:
            number, aftershock = announces(rule.at, starts, horizon, 1, AFTERSHOCK)
            keep = ~aftershock & (rule.at >= first) & (rule.at <= last)
            keep &= ((number >= 0) | (rule.at <= last - horizon)) & ~np.isnan(rule.values)
            at, positive = rule.at[keep], number[keep] >= 0
            area = auroc(rule.values[keep], positive)
            if area is None:
                continue
            result.append({
                "rule": name,
                "quantity": rule.quantity,
                "layer": rule.layer,
                "baseline": rule.baseline,
                "horizon": horizon,
                "auroc": area,
                "step_index": auroc(at.astype(float), positive),
                "log_loss": auroc(_held(logged, loss, at), positive),
                "time_since_spike": auroc(_since(starts, at, first), positive),
                "n_steps": int(at.size),
                "n_positive": int(positive.sum()),
                "spikes": int(np.unique(number[keep & (number >= 0)]).size),
            })
    return result


def _score_name(rule: Rule) -> str:
    """Name of a rule's score: rules on the same series share one.

    Returns:
        The rule's name without its threshold.
    """
    if rule.name in {"stability alarm", "edge", "forecast"}:
        return "S"
    return rule.name.split(" > ")[0]


def _held(steps: Steps, values: Values, at: Steps) -> Values:
    """Last value at or before each step.

    Returns:
        One value a step, NaN before the first.
    """
    if not steps.size:
        return np.full(at.shape, np.nan)
    place = np.searchsorted(steps, at, side="right") - 1
    return np.where(place >= 0, values[np.maximum(place, 0)], np.nan)


def _since(starts: Steps, at: Steps, first: int) -> Values:
    """Steps since the last onset, or since the start of the range.

    Returns:
        One number a step.
    """
    place = np.searchsorted(starts, at, side="right") - 1
    return (at - np.where(place >= 0, starts[np.maximum(place, 0)], first)).astype(np.float64)
