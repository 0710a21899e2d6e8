"""Event-based scoring: did an alarm come before the spike, and would as many random alarms have done so?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hnf_offline.relate.series import AFTERSHOCK, Steps


@dataclass(frozen=True, slots=True)
class Score:
    """How a sequence of alarm episodes stands to the spikes.

    Attributes:
        n_alarms: episodes scored (outside aftershocks and the censored tail).
        n_spikes: spike clusters scored; spikes less than the refractory apart are one cluster.
        recall: share of clusters with an episode in the window before them, None without clusters.
        precision: share of episodes followed by a cluster within the window, None without episodes.
        chance_recall: expected recall of as many episodes placed at random, None without clusters.
        chance_precision: expected precision of the same, None without episodes.
        leads: onset - first episode in its window, one a cluster that was hit, in order of onset.
        false_alarms_per_1000: episodes followed by nothing, per 1000 steps of the scored range.
        time_in_warning: share of the scored range within a window that follows a scored episode.
        resolution: grid on which the alarms can be known; a lead below it is "< resolution".
    """

    n_alarms: int
    n_spikes: int
    recall: float | None
    precision: float | None
    chance_recall: float | None
    chance_precision: float | None
    leads: tuple[int, ...]
    false_alarms_per_1000: float
    time_in_warning: float
    resolution: int


def clusters(onsets: Sequence[int], first: int, last: int, refractory: int = AFTERSHOCK) -> Steps:
    """Merge onsets that fall into the aftershock of the cluster's first one.

    Returns:
        First onset of each cluster inside (first, last], ascending.
    """
    kept: list[int] = []
    for onset in sorted(set(onsets)):
        if not kept or onset - kept[-1] > refractory:
            kept.append(int(onset))
    return np.array([onset for onset in kept if first < onset <= last], np.int64)


def announces(
    steps: Steps, starts: Steps, window: int, minimum_lead: int, refractory: int = AFTERSHOCK
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Say which cluster each step would announce, if an alarm were raised there.

    An alarm counts for one cluster only: the next one.

    Args:
        steps: candidate alarm steps.
        starts: cluster onsets, ascending.
        window: longest lead that counts.
        minimum_lead: shortest lead that counts.
        refractory: steps from an onset on in which nothing is scored.

    Returns:
        Cluster number or -1, and whether the step lies in an aftershock (the onset step included).
    """
    if starts.size == 0:
        return np.full(steps.shape, -1, np.int64), np.zeros(steps.shape, bool)
    following = np.searchsorted(starts, steps, side="right")
    lead = np.where(following < starts.size, starts[np.minimum(following, starts.size - 1)] - steps, -1)
    hit = (lead >= minimum_lead) & (lead <= window)
    previous = following - 1
    since = np.where(previous >= 0, steps - starts[np.maximum(previous, 0)], refractory + 1)
    return np.where(hit, following, -1), since <= refractory


def score(
    alarm_steps: Sequence[int],
    onsets: Sequence[int],
    *,
    window: int = 80,
    minimum_lead: int = 1,
    resolution: int = 1,
    refractory: int = AFTERSHOCK,
    first: int,
    last: int,
    at: Sequence[int] | Steps | None = None,
) -> Score:
    """Score alarm episodes against spike onsets.

    A cluster is hit if an episode starts in [onset - window, onset - minimum_lead]. Episodes up to
    `refractory` steps after an onset are ignored (the spike is not over), and so are episodes less than
    `window` before the end that no onset follows (nobody knows what would have come). Chance is exact:
    n episodes drawn without replacement from the steps at which the rule could have spoken and would have
    been scored hit a cluster that m of these M steps announce with probability 1 - C(M-m, n) / C(M, n).

    Args:
        alarm_steps: start of each alarm episode, the step at which it was known.
        onsets: spike onsets.
        window: longest lead that counts, in steps.
        minimum_lead: shortest lead that counts.
        resolution: gap of the grid on which the rule can speak (checkpoint gap, or 1).
        refractory: steps after an onset that are ignored.
        first: first step of the scored range.
        last: last step of the scored range.
        at: steps at which the rule could have spoken; every `resolution` steps where not given.

    Returns:
        The score, with chance at the same number of episodes.

    Source: event-based evaluation of seizure and earthquake forecasts (Snyder et al. 2008; Zechar and
    Jordan 2008).
    """
    starts = clusters(onsets, first, last, refractory)
    # an onset before the range still has its aftershock inside it
    all_starts = clusters(onsets, -(2**62), last, refractory)
    earlier = all_starts.size - starts.size

    def judged(steps: Steps) -> tuple[Steps, NDArray[np.int64]]:
        inside = steps[(steps >= first) & (steps <= last)]
        number, aftershock = announces(inside, all_starts, window, minimum_lead, refractory)
        censored = (number < 0) & (inside > last - window)
        too_close = _too_close(inside, all_starts, minimum_lead)
        scored = ~aftershock & ~(censored & ~too_close)
        return inside[scored], np.where(number[scored] >= earlier, number[scored] - earlier, -1)

    alarms, number = judged(np.unique(np.asarray(list(alarm_steps), np.int64)))
    grid = np.arange(first, last + 1, max(1, resolution)) if at is None else np.asarray(at, np.int64)
    _, possible = judged(np.unique(grid))
    n_alarms, n_spikes = int(alarms.size), int(starts.size)
    leads = tuple(int(starts[k] - alarms[number == k].min()) for k in range(n_spikes) if (number == k).any())
    correct = int((number >= 0).sum())
    draws = min(n_alarms, int(possible.size))
    chance = [_hit_by_chance(int(possible.size), int((possible == k).sum()), draws) for k in range(n_spikes)]
    steps_scored = max(1, last - first + 1)
    return Score(
        n_alarms=n_alarms,
        n_spikes=n_spikes,
        recall=len(leads) / n_spikes if n_spikes else None,
        precision=correct / n_alarms if n_alarms else None,
        chance_recall=float(np.mean(chance)) if n_spikes else None,
        chance_precision=float((possible >= 0).mean()) if n_alarms and possible.size else None,
        leads=leads,
        false_alarms_per_1000=1000.0 * (n_alarms - correct) / steps_scored,
        time_in_warning=_covered(alarms, window, last) / steps_scored,
        resolution=resolution,
    )


def _too_close(steps: Steps, starts: Steps, minimum_lead: int) -> NDArray[np.bool_]:
    """Steps followed by an onset sooner than the minimum lead: too late, so false, not censored.

    Returns:
        True where the next onset comes in fewer than `minimum_lead` steps.
    """
    if starts.size == 0:
        return np.zeros(steps.shape, bool)
    following = np.searchsorted(starts, steps, side="right")
    lead = np.where(following < starts.size, starts[np.minimum(following, starts.size - 1)] - steps, 2**62)
    return np.asarray(lead < minimum_lead)


def _hit_by_chance(places: int, announcing: int, draws: int) -> float:
    """Probability that at least one of `draws` distinct places announces.

    Returns:
        1 - C(places - announcing, draws) / C(places, draws).
    """
    if draws == 0 or announcing == 0:
        return 0.0
    if draws > places - announcing:
        return 1.0
    misses = math.lgamma(places - announcing + 1) - math.lgamma(places - announcing - draws + 1)
    return 1.0 - math.exp(misses - math.lgamma(places + 1) + math.lgamma(places - draws + 1))


def _covered(alarms: Steps, window: int, last: int) -> int:
    """Count the steps within `window` after an alarm.

    Returns:
        Number of distinct steps covered, up to `last`.
    """
    covered, reach = 0, -(2**62)
    for alarm in alarms:
        start, end = max(int(alarm) + 1, reach + 1), min(int(alarm) + window, last)
        if end >= start:
            covered += end - start + 1
            reach = end
    return covered
