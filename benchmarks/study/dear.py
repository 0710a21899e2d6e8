"""Scores that the stability tier does not have: the plain Hessian's largest eigenvalue, and near-unit mass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from benchmarks.study.analysis import Analysed, analysed
from benchmarks.study.case import Case
from benchmarks.study.families import FAMILIES
from benchmarks.study.scoring import area
from benchmarks.study.tables import decimal, figure, table
from benchmarks.study.training import trained
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run import open_run

LAMBDA_MAX, NEAR_UNIT_MASS = "plain lambda_max", "near-unit mass"
DEAR = (LAMBDA_MAX, NEAR_UNIT_MASS)
#: One small layer stands for the layers: it is the whole model's eigenvalue that is wanted. Every second checkpoint.
SETTINGS = ProfileSettings(
    tier="curvature", layers="transformer.wpe", accuracy="screen", koopman=True, every=2, device="cpu"
)
#: What they are held against, on the same checkpoints.
BESIDE = ("S", "log gradient norm", "gradient norm z", "log loss")


def measured_dearly(case: Case, cache: Path) -> Analysed:
    """Read one run, with the scores that cost more.

    Returns:
        The run, with the columns `DEAR` at every second checkpoint.
    """
    began = time.monotonic()
    run = analysed(case, cache)
    out = cache / "dear" / case.folder
    out.mkdir(parents=True, exist_ok=True)
    found = profile_run(open_run(trained(case, cache)), SETTINGS, out).table
    return replace(run, scores=with_dear(run.scores, found), seconds=time.monotonic() - began)


def with_dear(scores: pl.DataFrame, profile: pl.DataFrame) -> pl.DataFrame:
    """Add the columns `DEAR` to a run's scores: of a block's masses the mean over blocks.

    Returns:
        The scores, null where a profile has no finite value.
    """
    finite = profile.filter(pl.col("value").is_finite())
    whole = finite.filter((pl.col("quantity") == "hessian.lambda_max") & (pl.col("layer") == ""))
    masses = finite.filter(pl.col("quantity") == "koopman.near_unit_mass")
    for name, rows in ((LAMBDA_MAX, whole), (NEAR_UNIT_MASS, masses)):
        by_step = rows.group_by("step").agg(pl.col("value").mean().alias(name))
        scores = scores.join(by_step, on="step", how="left", maintain_order="left")
    return scores


def section(families: dict[str, list[Analysed]], horizon: int = 16) -> Iterator[str]:
    """Rank by the dear scores and by the cheap ones, on the checkpoints that have all of them.

    Args:
        families: runs of each family.
        horizon: a checkpoint counts as before a spike where one starts within so many steps.

    Yields:
        Paragraphs; nothing where no run has the dear scores.
    """
    rows = []
    for letter, members in families.items():
        runs = known(members)
        names = (*DEAR, *BESIDE)
        areas = [area(runs, name, horizon) for name in names]
        if runs and any(areas):
            base = next(one.base_rate for one in areas if one is not None)
            rows.append([
                f"{letter}. {FAMILIES[letter].title}",
                str(len(runs)),
                decimal(base),
                *("-" if one is None else figure(one.auroc) for one in areas),
            ])
    if not rows:
        return
    yield "### The plain Hessian's largest eigenvalue, and near-unit mass"
    yield (
        f"AUROC({horizon}) on the checkpoints that have them (every second of the test runs of some families), beside "
        "scores of the tables above on the same checkpoints. The plain eigenvalue knows neither the learning rate "
        "nor Adam's preconditioner; near-unit mass is the mean over blocks."
    )
    yield table(["family", "runs", "share before a spike", *DEAR, *BESIDE], rows)


def known(runs: Sequence[Analysed]) -> list[Analysed]:
    """Keep the checkpoints that have both dear scores.

    Returns:
        Runs with at least one such checkpoint.
    """
    kept = [
        replace(run, scores=run.scores.filter(pl.all_horizontal(pl.col(DEAR).is_not_null())))
        for run in runs
        if set(DEAR) <= set(run.scores.columns)
    ]
    return [run for run in kept if run.scores.height]
