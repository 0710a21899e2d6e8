"""Does it lead? Alarms before each onset, and every rule beside its baselines and beside chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hnf_offline.findings import Findings, Relation
from hnf_offline.report.series import symbol
from hnf_offline.report.text import number, plural, shorten

MOST_SPIKES = 40
LONGEST_WINDOW = 512
MOST_DOTS = 14


@dataclass(frozen=True, slots=True)
class RasterRow:
    """One spike: how many steps before its onset each alarm was known.

    Attributes:
        label: the spike.
        alarms: rule and lead.
        resolution: a lead below it has no number; None where leads are known to the step.
    """

    label: str
    alarms: tuple[tuple[str, float], ...]
    resolution: float | None = None


@dataclass(frozen=True, slots=True)
class RasterChance:
    """How often a rule announced a spike, beside as many alarms at random places."""

    rule: str
    recall: float
    chance: float | None


@dataclass(frozen=True, slots=True)
class Raster:
    """Alarms aligned on the onsets.

    Attributes:
        name: file name of the figure, without ending.
        title: one sentence that states the finding.
        window: steps before the onset that are shown.
        resolution: checkpoint gap, None where there is none, or where every row is known more finely.
        rows: one a spike.
        rules: rules that occur, in the order of the legend.
        chance: recall beside chance for the rules that were scored.
    """

    name: str
    title: str
    window: float
    resolution: float | None
    rows: tuple[RasterRow, ...]
    rules: tuple[str, ...]
    chance: tuple[RasterChance, ...]

    def unresolved(self) -> list[tuple[int, int]]:
        """Find the rows whose leads are known to a checkpoint gap only.

        Returns:
            First row and the one after the last, of each run of them.
        """
        runs: list[tuple[int, int]] = []
        for place, row in enumerate(self.rows):
            if row.resolution is None:
                continue
            if runs and runs[-1][1] == place:
                runs[-1] = (runs[-1][0], place + 1)
            else:
                runs.append((place, place + 1))
        return runs


@dataclass(frozen=True, slots=True)
class PredictorDot:
    """One rule in the plane of recall over precision, and where chance would put it."""

    label: str
    precision: float
    recall: float
    chance_precision: float | None
    chance_recall: float | None
    baseline: bool


@dataclass(frozen=True, slots=True)
class PredictorRow:
    """One row of the table of relations, spelled."""

    rule: str
    quantity: str
    n: str
    recall: str
    precision: str
    early: str
    lead: str
    false_alarms: str
    time_in_warning: str
    p_value: str
    baseline: bool


@dataclass(frozen=True, slots=True)
class Predictors:
    """Every rule beside its rivals.

    Attributes:
        name: file name of the figure, without ending.
        title: one sentence that states the finding.
        dots: rules with both recall and precision; of a rule that was tried on many layers, its best one.
        rows: the same rules with those that raised no alarm, our own first.
        more: the other layers of rules that were tried on many.
    """

    name: str
    title: str
    dots: tuple[PredictorDot, ...]
    rows: tuple[PredictorRow, ...]
    more: tuple[PredictorRow, ...]


def raster(findings: Findings) -> Raster | None:
    """Align the alarms on the onsets.

    Returns:
        The raster, None without spikes or without any alarm.
    """
    alarms = [alarm for alarm in findings.alarms if alarm.severity != "info"]
    if not findings.spikes or not alarms:
        return None
    gap = findings.run.get("gap")
    resolution = float(gap) if isinstance(gap, int | float) and gap > 0 else None
    leads = [story.lead for story in findings.stories if story.lead is not None]
    window = min(max(64.0, 4 * (resolution or 0), 1.2 * max(leads, default=0)), LONGEST_WINDOW)
    window = max(window, 1.2 * (resolution or 0))
    # Where the steps before the onset were retrained, every lead there is known to the step.
    stretches = [
        (int(zoom["start"]), int(zoom["stop"]))
        for zoom in findings.zooms
        if zoom.get("word") != "not_reproducible"
    ]
    rows = []
    for spike in findings.spikes[:MOST_SPIKES]:
        before = [
            (alarm.rule, float(spike.onset - alarm.known_at))
            for alarm in alarms
            if 0 <= spike.onset - alarm.known_at <= window
        ]
        zoomed = any(start <= spike.onset - 1 <= stop for start, stop in stretches)
        label = f"spike {spike.id} at {spike.onset:,}"
        rows.append(RasterRow(label, tuple(sorted(set(before))), None if zoomed else resolution))
    rules = tuple(sorted({rule for row in rows for rule, _ in row.alarms}))
    hit = sum(any(lead > 0 for _, lead in row.alarms) for row in rows)
    return Raster(
        name="lead",
        title=f"An alarm lies in the {int(window):,} steps before {hit} of {plural(len(rows), 'onset')}",
        window=window,
        resolution=max((row.resolution for row in rows if row.resolution is not None), default=None),
        rows=tuple(rows),
        rules=rules,
        chance=tuple(
            RasterChance(
                f"{relation.rule} · {symbol(relation.quantity)}", relation.recall, relation.chance_recall
            )
            for relation in findings.relations
            if relation.recall is not None and not relation.baseline and not relation.layer
        )[:6],
    )


def predictors(findings: Findings) -> Predictors | None:
    """Set every rule beside its baselines.

    Returns:
        Dots and table, None where nothing was scored.
    """
    if not findings.relations:
        return None
    ordered = sorted(
        findings.relations,
        key=lambda one: (
            one.baseline,
            -_excess(one),
            -(one.precision or 0.0),
            one.quantity,
            one.rule,
            one.layer,
        ),
    )
    first: list[Relation] = []
    more: list[Relation] = []
    seen: set[tuple[str, str]] = set()
    for one in ordered:
        (more if one.layer and (one.rule, one.quantity) in seen else first).append(one)
        seen.add((one.rule, one.quantity))
    dots = tuple(
        PredictorDot(
            label=f"{one.rule} · {symbol(one.quantity)}",
            precision=one.precision,
            recall=one.recall,
            chance_precision=one.chance_precision,
            chance_recall=one.chance_recall,
            baseline=one.baseline,
        )
        for one in first
        if one.recall is not None and one.precision is not None
    )
    return Predictors(
        name="predictors",
        title=_title(first),
        dots=_shown(dots),
        rows=tuple(_row(one) for one in first),
        more=tuple(_row(one) for one in more),
    )


def _excess(one: Relation) -> float:
    # By how much its recall exceeds that of as many random alarms; -1 where it was not scored.
    return -1.0 if one.recall is None else one.recall - (one.chance_recall or 0.0)


def _shown(dots: tuple[PredictorDot, ...]) -> tuple[PredictorDot, ...]:
    # Baselines are never the ones left out: a rule without its rivals proves nothing.
    rivals = [dot for dot in dots if dot.baseline][: MOST_DOTS // 2]
    ours = [dot for dot in dots if not dot.baseline][: MOST_DOTS - len(rivals)]
    return (*ours, *rivals)


def _title(relations: list[Relation]) -> str:
    ours = [one for one in relations if not one.baseline and one.recall is not None]
    rivals = [one for one in relations if one.baseline and one.recall is not None]
    if not ours:
        return "Only baselines could be scored: nothing measured on checkpoints raised an alarm that counts"
    # The one rule that was fixed before any run was looked at speaks for us; the best one only where it is absent.
    best = next((one for one in ours if one.rule == "stability alarm"), max(ours, key=_excess))
    if _excess(best) <= 0:
        return (
            f"The {best.rule} announced no more spikes than as many alarms at random: recall {_recall(best)}"
        )
    words = f"The {best.rule} on {symbol(best.quantity)}: recall {_recall(best)}"
    if rivals:
        rival = max(rivals, key=_excess)
        words += f"; best baseline, {rival.rule} on {symbol(rival.quantity)}: {_recall(rival)}"
    return words


def _recall(one: Relation) -> str:
    return beside(one.recall, one.chance_recall)


def share(value: float | None) -> str:
    """Spell a share with two decimals.

    Returns:
        "0.50", "-" for None.
    """
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def beside(value: float | None, chance: float | None) -> str:
    """Spell a share beside its chance value.

    Returns:
        "0.50 (chance 0.31)".
    """
    return share(value) if chance is None else f"{share(value)} (chance {share(chance)})"


def lead(relation: Relation) -> str:
    """Spell a lead with its quartiles; what the checkpoint gap cannot resolve is never a number.

    Returns:
        "23 [12-40] steps", "< 10 (gap)", "-".
    """
    if relation.lead_median is None:
        return "-"
    if relation.lead_median < relation.resolution:
        return f"< {relation.resolution:,} (gap)"
    low, high = (
        "< gap"
        if end is not None and end < relation.resolution
        else number(None if end is None else round(end))
        for end in (relation.lead_low, relation.lead_high)
    )
    return f"{number(round(relation.lead_median))} [{low}–{high}]"


def _row(one: Relation) -> PredictorRow:
    p = "not testable" if one.p_value is None else f"{number(one.p_value, 2)} ({plural(one.n_tests, 'test')})"
    where = symbol(one.quantity) + (f", {shorten(one.layer, 30)}" if one.layer else "")
    return PredictorRow(
        rule=one.rule,
        quantity=where,
        n=f"{plural(one.n_alarms, 'alarm')}, {plural(one.n_spikes, 'spike')}",
        recall=beside(one.recall, one.chance_recall),
        precision=beside(one.precision, one.chance_precision),
        early=beside(one.early_recall, one.early_chance),
        lead=lead(one),
        false_alarms=number(one.false_alarms_per_1000, 2),
        time_in_warning=share(one.time_in_warning),
        p_value=p,
        baseline=one.baseline,
    )
