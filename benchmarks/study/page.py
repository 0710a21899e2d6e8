"""The study's page: Markdown tables, a sheet of thumbnails a family, and what was scored as Parquet."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.study import (
    dear,
    decided,
    hovering,
    initial_page,
    intervention_page,
    localisation_page,
    sparse,
)
from benchmarks.study.analysis import CURVATURE, Analysed
from benchmarks.study.archive import Archive
from benchmarks.study.combination import added_by_curvature
from benchmarks.study.dear import DEAR
from benchmarks.study.families import FAMILIES
from benchmarks.study.imminence import NAME
from benchmarks.study.plateau import with_plateau
from benchmarks.study.scoring import HORIZONS, WINDOW, WINDOWS, Area, Pooled, area, pooled
from benchmarks.study.tables import decimal, figure, leads, rate, shares, table
from benchmarks.study.thumbnails import sheet
from hnf_offline.relate.relations import PRIMARY

TITLE = "# Does curvature announce loss spikes?"
#: Rules that are shown for each set of seeds apart, and the sets in the order in which they were looked at.
SPLIT_RULES = (PRIMARY, NAME)
SPLITS = ("tune", "test", "fresh")
_PACKAGES = ("hnf_offline", "torch", "numpy", "polars", "scipy", "scikit-learn")


def write(archive: Archive, out: Path) -> Path:
    """Write the page, its pictures and its tables.

    Args:
        archive: what it is written from; it is saved beside the page.
        out: folder.

    Returns:
        The page's path.
    """
    out.mkdir(parents=True, exist_ok=True)
    archive.save(out)
    runs = archive.runs
    spikes, episodes = events(runs)
    spikes.write_parquet(out / "spikes.parquet")
    episodes.write_parquet(out / "episodes.parquet")
    for letter, members in by_family(runs).items():
        sheet(members, out / f"family-{letter}.png")
    paragraphs = list(_text(runs)) if runs else [TITLE]
    if archive.interventions:
        paragraphs += intervention_page.section(archive.interventions)
    if archive.named:
        paragraphs += localisation_page.section(archive.named)
    if archive.begun:
        paragraphs += initial_page.section(archive.begun)
    paragraphs += _made(archive.made)
    text = "\n\n".join(paragraphs) + "\n"
    page = out / "README.md"
    page.write_text(text, encoding="utf-8")
    return page


def made_now(command: str, seconds: float) -> dict[str, Any]:
    """Say how a part of the study is made.

    Args:
        command: arguments that make it again.
        seconds: what it took.

    Returns:
        Command, seconds, time, machine, versions.
    """
    return {
        "command": f"python -m benchmarks.study {command}".strip(),
        "seconds": round(seconds),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def _made(made: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield "## How it was made"
    yield (
        "What took long is kept between commands, so a time is that of what was still missing. What every run was, "
        "is in `study.json`; what is scored, in `readings/`, one row a run and gap; spikes and alarm episodes also in "
        "`spikes.parquet` and `episodes.parquet`."
    )
    rows = [
        [
            f"`{one['command']}`",
            f"{one['seconds'] / 60:.0f} min",
            one["machine"],
            one["time"][:10],
            ", ".join(f"{name} {number}" for name, number in one["versions"].items()),
        ]
        for one in made
    ]
    yield table(["command", "time", "machine", "day", "versions"], rows)


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


def by_family(runs: Sequence[Analysed]) -> dict[str, list[Analysed]]:
    """Sort runs by family.

    Returns:
        By letter, in the order in which families are declared; only those that have runs.
    """
    members = {letter: [run for run in runs if run.case.family == letter] for letter in FAMILIES}
    return {letter: found for letter, found in members.items() if found}


def unseen(runs: Sequence[Analysed]) -> list[Analysed]:
    """Leave out the runs on which thresholds were chosen.

    Returns:
        Runs of test and fresh seeds; all, where there are no others than tuning seeds.
    """
    return [run for run in runs if run.case.split != "tune"] or list(runs)


def _text(runs: Sequence[Analysed]) -> Iterable[str]:
    runs = [replace(run, scores=with_plateau(run.scores)) for run in runs]
    every = unseen(runs)
    families = by_family(every)
    yield TITLE
    yield headline(families)
    splits = sorted({run.case.split for run in every})
    tuned = len(runs) - len(every)
    yield (
        f"{len(every)} runs ({' and '.join(splits)} seeds), {sum(len(run.onsets) for run in every)} onsets, "
        f"{sum(run.failed for run in every)} runs that failed for good. "
        + (f"The {tuned} runs on which thresholds were chosen are not among them. " if tuned else "")
        + "A lead counts from 1 step to the window; the 40 steps after an onset are not scored, nor is what follows "
        "the onset of a failure for good; chance places as many episodes at random in each run. Brackets hold 95 % "
        "bootstrap intervals over runs, left out below three runs."
    )
    yield from decided.section(runs)
    yield "## Experiment 1: alarms"
    yield f"### By set of seeds, leads of up to {WINDOW} steps"
    yield _by_split(runs)
    yield from hovering.section(runs, SPLITS)
    for letter, members in families.items():
        yield f"### {letter}. {FAMILIES[letter].title}"
        yield f"Expected beforehand: {FAMILIES[letter].expected}."
        yield _runs(members)
        yield from (_alarms(members, window) for window in WINDOWS)
        yield f"![runs of family {letter}](family-{letter}.png)"
    yield "### All families"
    yield from (_alarms(every, window) for window in WINDOWS)
    yield from sparse.section(every)
    yield "## Experiment 2: scores"
    for letter, members in families.items():
        ranked = _areas(members)
        if ranked:
            yield f"### {letter}. {FAMILIES[letter].title}"
            yield ranked
    yield from dear.section(families)
    combined = _combined(families)
    if combined:
        yield "### What curvature adds"
        yield (
            "A logistic regression of all scores but the step index, fitted on the other families, ranks the "
            f"checkpoints of the one left out ({', '.join(CURVATURE)} are curvature):"
        )
        yield combined


def headline(families: dict[str, list[Analysed]]) -> str:
    """Say in one paragraph where the stability alarm announces spikes and where not, failures as plainly.

    An alarm is said to announce where the lower ends of its recall's and its precision's intervals lie above chance.

    Returns:
        Sentences.
    """
    holds, fails, mute, silent = [], [], [], []
    for letter, members in families.items():
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


def _by_split(runs: Sequence[Analysed]) -> str:
    rows = [
        [
            f"{letter}. {FAMILIES[letter].title}",
            split,
            str(found.runs),
            str(found.spikes),
            rule,
            str(found.alarms),
            *shares(found),
            leads(found),
            rate(found.false_alarms_per_1000),
        ]
        for letter, members in by_family(runs).items()
        for rule in SPLIT_RULES
        for split in SPLITS
        for found in [pooled([run for run in members if run.case.split == split], rule, WINDOW)]
        if found is not None
    ]
    head = [
        "family",
        "seeds",
        "runs",
        "spikes",
        "rule",
        "alarms",
        "recall",
        "chance",
        "precision",
        "chance",
        "lead",
        "false per 1000",
    ]
    return table(head, rows)


def _areas(members: Sequence[Analysed]) -> str:
    names = list(
        dict.fromkeys(name for run in members for name in run.scores.columns if name not in {"step", *DEAR})
    )
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


def _combined(families: dict[str, list[Analysed]]) -> str:
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
        for one in added_by_curvature(families, horizon)
    ]
    head = ["family left out", "horizon", "checkpoints", "without curvature", "with", "difference"]
    return table(head, rows) if rows else ""
