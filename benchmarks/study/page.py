"""The study's page: Markdown tables, a sheet of thumbnails a family, and what was scored as Parquet."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.study import intervention_page, localisation_page
from benchmarks.study.analysis import CURVATURE, Analysed
from benchmarks.study.combination import added_by_curvature
from benchmarks.study.families import FAMILIES
from benchmarks.study.imminence import NAME
from benchmarks.study.intervention import Outcome
from benchmarks.study.localisation import Named
from benchmarks.study.scoring import HORIZONS, WINDOWS, Area, Pooled, area, pooled
from benchmarks.study.tables import decimal, figure, leads, rate, table
from benchmarks.study.thumbnails import sheet
from hnf_offline.relate.relations import PRIMARY

TITLE = "# Does curvature announce loss spikes?"
WINDOW = 80
_PACKAGES = ("hnf_offline", "torch", "numpy", "polars", "scipy", "scikit-learn")


def write(
    runs: Sequence[Analysed],
    out: Path,
    *,
    command: str,
    seconds: float,
    interventions: Sequence[Outcome] = (),
    named: Sequence[Named] = (),
) -> Path:
    """Write the page, its pictures and its tables.

    Args:
        runs: what was analysed.
        out: folder.
        command: arguments that make it again.
        seconds: what it took.
        interventions: outcomes of experiment 3, where it was made.
        named: answers of experiment 4, where it was made.

    Returns:
        The page's path.
    """
    out.mkdir(parents=True, exist_ok=True)
    spikes, episodes = events(runs)
    spikes.write_parquet(out / "spikes.parquet")
    episodes.write_parquet(out / "episodes.parquet")
    described = [{**asdict(run.case), "split": run.case.split, "onsets": list(run.onsets)} for run in runs]
    made = {
        "command": f"python -m benchmarks.study {command}".strip(),
        "seconds": round(seconds),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    (out / "study.json").write_text(json.dumps({"made": made, "runs": described}, indent=1), encoding="utf-8")
    by_family = {
        letter: [run for run in runs if run.case.family == letter]
        for letter in FAMILIES
        if any(run.case.family == letter for run in runs)
    }
    for letter, members in by_family.items():
        sheet(members, out / f"family-{letter}.png")
    paragraphs = list(_text(by_family, made)) if runs else [TITLE]
    if interventions:
        intervention_page.outcome_table(interventions).write_parquet(out / "interventions.parquet")
        paragraphs += intervention_page.section(interventions)
    if named:
        localisation_page.named_table(named).write_parquet(out / "localisation.parquet")
        paragraphs += localisation_page.section(named)
    text = "\n\n".join(paragraphs) + "\n"
    page = out / "README.md"
    page.write_text(text, encoding="utf-8")
    return page


def events(runs: Sequence[Analysed]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tell every spike and every alarm episode, for whoever wants to score them again.

    Returns:
        (run, family, split, first, last, onset), and (run, rule, baseline, step).
    """
    spikes = [
        (run.case.name, run.case.family, run.case.split, run.first, run.last, onset)
        for run in runs
        for onset in (run.onsets or (None,))
    ]
    episodes = [
        (run.case.name, rule, run.baseline[rule], step)
        for run in runs
        for rule, steps in run.alarms.items()
        for step in steps
    ]
    return (
        pl.DataFrame(
            spikes,
            schema={
                "run": pl.String,
                "family": pl.String,
                "split": pl.String,
                "first": pl.Int64,
                "last": pl.Int64,
                "onset": pl.Int64,
            },
            orient="row",
        ),
        pl.DataFrame(
            episodes,
            schema={"run": pl.String, "rule": pl.String, "baseline": pl.Boolean, "step": pl.Int64},
            orient="row",
        ),
    )


def _text(by_family: dict[str, list[Analysed]], made: dict[str, Any]) -> Iterable[str]:
    every = [run for members in by_family.values() for run in members]
    yield TITLE
    yield headline(by_family)
    splits = sorted({run.case.split for run in every})
    yield (
        f"{len(every)} runs ({', '.join(splits)} seeds), {sum(len(run.onsets) for run in every)} onsets, "
        f"{sum(run.failed for run in every)} runs that failed for good. `{made['command']}`, "
        f"{made['seconds'] / 60:.0f} min on {made['machine']}. A lead counts from 1 step to the window; the 40 steps "
        "after an onset are not scored, nor is what follows the onset of a failure for good; chance places as many "
        "episodes at random in each run. Brackets hold 95 % bootstrap intervals over runs, left out below three runs."
    )
    yield "## Experiment 1: alarms"
    for letter, members in by_family.items():
        yield f"### {letter}. {FAMILIES[letter].title}"
        yield f"Expected beforehand: {FAMILIES[letter].expected}."
        yield _runs(members)
        yield from (_alarms(members, window) for window in WINDOWS)
        yield f"![runs of family {letter}](family-{letter}.png)"
    yield "### All families"
    yield from (_alarms(every, window) for window in WINDOWS)
    yield "## With fewer checkpoints"
    yield (
        "All runs, read as if checkpoints had been saved less often, each gap from two places; the longest "
        "lead that counts is 80 steps, or two gaps."
    )
    yield _sparse(every)
    yield "## Experiment 2: scores"
    for letter, members in by_family.items():
        ranked = _areas(members)
        if ranked:
            yield f"### {letter}. {FAMILIES[letter].title}"
            yield ranked
    combined = _combined(by_family)
    if combined:
        yield "### What curvature adds"
        yield (
            "A logistic regression of all scores but the step index, fitted on the other families, ranks the "
            f"checkpoints of the one left out ({', '.join(CURVATURE)} are curvature):"
        )
        yield combined


def headline(by_family: dict[str, list[Analysed]]) -> str:
    """Say in one paragraph where the stability alarm announces spikes and where not, failures as plainly.

    An alarm is said to announce where the lower ends of its recall's and its precision's intervals lie above chance.

    Returns:
        Sentences.
    """
    holds, fails, mute, silent = [], [], [], []
    for letter, members in by_family.items():
        found = pooled(members, PRIMARY, WINDOW)
        name = FAMILIES[letter].title
        if found is None:
            continue
        if not found.spikes:
            silent.append(f"{name} ({rate(found.false_alarms_per_1000)} false alarms per 1000 steps)")
            continue
        if not found.alarms:
            mute.append(f"{name} ({found.spikes} spikes)")
            continue
        told = (
            f"{name} (recall {figure(found.recall)}, chance {decimal(found.chance_recall)}; precision "
            f"{figure(found.precision)}, chance {decimal(found.chance_precision)})"
        )
        (holds if announces_more_than_chance(found) else fails).append(told)
    sentences = []
    if holds:
        sentences.append(f"The stability alarm announces spikes better than chance in: {'; '.join(holds)}.")
    if fails:
        sentences.append(f"It does not, or not surely, in: {'; '.join(fails)}.")
    if mute:
        sentences.append(f"It never spoke in: {'; '.join(mute)}.")
    if silent:
        sentences.append(f"Without any spike, to see how often it cries wolf: {'; '.join(silent)}.")
    return " ".join(sentences)


def announces_more_than_chance(found: Pooled) -> bool:
    """Whether both shares are above chance by more than their intervals.

    Returns:
        False also where there is no interval.
    """
    pairs = ((found.recall, found.chance_recall), (found.precision, found.chance_precision))
    return all(one.low is not None and chance is not None and one.low > chance for one, chance in pairs)


def _runs(members: Sequence[Analysed]) -> str:
    onsets = [len(run.onsets) for run in members]
    return (
        f"Runs: {len(members)}, with {sum(onsets)} onsets ({min(onsets)} to {max(onsets)} a run), "
        f"{sum(run.failed for run in members)} failed for good; checkpoints every "
        f"{', '.join(str(gap) for gap in sorted({run.gap for run in members}))} steps. {_certified(members)}"
    )


def _certified(members: Sequence[Analysed]) -> str:
    known = [run.certified for run in members if run.certified is not None]
    return (
        f"S is certified at {np.mean(known):.0%} of a run's checkpoints." if known else "S was not measured."
    )


def _alarms(members: Sequence[Analysed], window: int) -> str:
    names = list(dict.fromkeys(name for run in members for name in run.alarms))
    scored = [one for one in (pooled(members, name, window) for name in names) if one is not None]
    rows = [
        [
            f"{one.rule}{' *' if one.baseline else ''}",
            str(one.runs),
            str(one.alarms),
            figure(one.recall),
            decimal(one.chance_recall),
            figure(one.early_recall),
            figure(one.precision),
            decimal(one.chance_precision),
            leads(one),
            rate(one.false_alarms_per_1000),
            f"{one.time_in_warning:.2f}",
        ]
        for one in sorted(scored, key=lambda one: one.baseline)
        if one.alarms
    ]
    spikes = max((one.spikes for one in scored), default=0)
    quiet = [one.rule for one in scored if not one.alarms and " of " not in one.rule]
    said = f"Leads of 1 to {window} steps; spikes scored: {spikes}; * a rival of curvature:"
    after = f"\n\nNever spoke: {', '.join(quiet)}." if quiet else ""
    head = [
        "rule",
        "runs",
        "alarms",
        "recall",
        "chance",
        "10 steps before",
        "precision",
        "chance",
        "lead",
        "false per 1000",
        "in warning",
    ]
    return f"{said}\n\n{table(head, rows)}{after}"


def _sparse(members: Sequence[Analysed]) -> str:
    rows = []
    for gap in sorted({one.gap for run in members for one in (run, *run.sparser)}):
        readings = [one for run in members for one in (run, *run.sparser) if one.gap == gap]
        for rule in (PRIMARY, NAME, "S > 1", "forecast"):
            for window in sorted({WINDOW, max(WINDOW, 2 * gap)}):
                found = pooled(readings, rule, window)
                if found is not None and found.alarms:
                    rows.append([
                        str(gap),
                        rule,
                        str(window),
                        str(found.runs),
                        figure(found.recall),
                        decimal(found.chance_recall),
                        figure(found.precision),
                        decimal(found.chance_precision),
                        leads(found),
                    ])
    head = ["gap", "rule", "longest lead", "runs", "recall", "chance", "precision", "chance", "lead"]
    return table(head, rows)


def _areas(members: Sequence[Analysed]) -> str:
    names = list(dict.fromkeys(name for run in members for name in run.scores.columns if name != "step"))
    found: dict[str, dict[int, Area]] = {}
    for name in names:
        areas = {horizon: area(members, name, horizon) for horizon in HORIZONS}
        known = {horizon: one for horizon, one in areas.items() if one is not None}
        if known:
            found[name] = known
    if not found:
        return ""
    head = ["score"]
    for horizon in HORIZONS:
        base = next((one[horizon].base_rate for one in found.values() if horizon in one), None)
        head += [f"AUROC({horizon})", f"AUPRC({horizon}), chance {decimal(base)}"]
    rows = []
    for name, known in found.items():
        row = [name]
        for horizon in HORIZONS:
            one = known.get(horizon)
            row += ["", ""] if one is None else [figure(one.auroc), figure(one.auprc)]
        rows.append(row)
    return table(head, rows)


def _combined(by_family: dict[str, list[Analysed]]) -> str:
    rows = [
        [
            f"{one.family}. {FAMILIES[one.family].title}",
            str(horizon),
            str(one.checkpoints),
            figure(one.without),
            figure(one.with_curvature),
            figure(one.difference),
        ]
        for horizon in HORIZONS
        for one in added_by_curvature(by_family, horizon)
    ]
    head = ["family left out", "horizon", "checkpoints", "without curvature", "with", "difference"]
    return table(head, rows) if rows else ""
