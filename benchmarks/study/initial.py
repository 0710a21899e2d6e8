"""Experiment 5: can the first steps tell whether a run will fail? Koopman spectra against what knows the rate.

Kim et al. 2026 (arXiv 2602.22988) rank models by the near-unit mass at initialisation and report an AUROC of .995.
Their runs without norms fail and those with norms do not, so the label "no norm" ranks them nearly as well (.989). Here
the runs fail with every norm, and ranks are also taken within an architecture, where only rate and seed differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.study.case import Case, Recall, Update
from benchmarks.study.scoring import AREA_DRAWS, COVERAGE, Interval
from benchmarks.study.training import trained
from hnf_offline.pipeline import analyse
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPTConfig

#: Seeds of the runs that are ranked; seed 0 was used to choose task, widths and rates.
SEEDS = (401, 402, 403)
NORMS = ("none", "pre", "post")
DEPTHS = (2, 4, 8)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
TASK = Recall(8, 16)
STEPS, BATCH, WARM_UP = 300, 32, 50
#: Checkpoints that are looked at: the first step, and while the rate is a fifth of its peak.
LOOKS = (1, 10)
#: What the paper calls divergence, at any step.
BLOWN_LOSS, BLOWN_GRADIENT = 50.0, 500.0
#: Loss of guessing, and by how much the last 50 losses have to be better on average.
GUESSING, LAST_STEPS, BETTER = math.log(TASK.keys), 50, 0.1
SETTINGS = ProfileSettings(tier="stability", device="cpu", koopman=True, last_step=LOOKS[-1])

BLEW_UP, FAILED = "blew up", "failed"
LABELS = (BLEW_UP, FAILED)
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Begun:
    """One run: how it ended, and what its first steps showed.

    Attributes:
        run: name.
        norm: "none", "pre" or "post".
        depth: blocks.
        learning_rate: at its peak.
        seed: of weights and rows.
        blew_up: loss above 50 or gradient norm above 500 at some step, or not finite.
        failed: the same, or nothing learned by the end.
        near_unit_mass: mean over blocks, after the first step.
        growing_mass: likewise.
        spectral_radius: largest over blocks.
        eigenvector_condition: largest over blocks.
        gradient_norm: of the first step.
        later_gradient_norm: of the tenth.
        first_ratio: S after the first step, at the peak's rate.
        ratio: S after ten steps, at the peak's rate.
        critical: the peak's rate over the largest that lowers the loss along the update after ten steps.
    """

    run: str
    norm: str
    depth: int
    learning_rate: float
    seed: int
    blew_up: bool
    failed: bool
    near_unit_mass: float = _NAN
    growing_mass: float = _NAN
    spectral_radius: float = _NAN
    eigenvector_condition: float = _NAN
    gradient_norm: float = _NAN
    later_gradient_norm: float = _NAN
    first_ratio: float = _NAN
    ratio: float = _NAN
    critical: float = _NAN


#: What is ranked by, higher said to be riskier; * looks at no weights.
SCORES: dict[str, Callable[[Begun], float]] = {
    "near-unit mass": lambda one: one.near_unit_mass,
    "near-unit mass times log10 of the eigenvectors' condition": lambda one: (
        one.near_unit_mass * math.log10(max(1.0, one.eigenvector_condition))
    ),
    "growing mass": lambda one: one.growing_mass,
    "spectral radius": lambda one: one.spectral_radius,
    "eigenvectors' condition": lambda one: one.eigenvector_condition,
    "gradient norm, step 1": lambda one: one.gradient_norm,
    "gradient norm, step 10": lambda one: one.later_gradient_norm,
    "S after step 1, at the peak's rate": lambda one: one.first_ratio,
    "S after step 10, at the peak's rate": lambda one: one.ratio,
    "peak's rate over the critical one, step 10": lambda one: one.critical,
    "learning rate *": lambda one: one.learning_rate,
    "no norm *": lambda one: float(one.norm == "none"),
}


@dataclass(frozen=True, slots=True)
class Ranked:
    """How well a score ranks the runs that fail above the others.

    Attributes:
        score: its name.
        label: what counts as failing.
        runs: runs that have it.
        fail: how many of them fail.
        overall: area under the ROC curve over all runs.
        within_norm: share of the pairs of a failing and another run of one norm that are in order, ties half.
        within_architecture: likewise of one norm and depth.
    """

    score: str
    label: str
    runs: int
    fail: int
    overall: Interval
    within_norm: Interval
    within_architecture: Interval


def cases(seeds: Sequence[int] = SEEDS) -> list[Case]:
    """List the runs: every norm, depth and rate.

    Returns:
        36 a seed, the longest first.
    """
    return [
        Case(
            "R",
            f"{norm}-L{depth}-lr{rate:g}",
            seed,
            GPTConfig(
                2 * TASK.keys, 2 * TASK.pairs + 1, depth, 4, 32, norm=norm, tied=False, initial_std=0.15
            ),  # type: ignore[arg-type]
            TASK,
            Update("Adam", rate, warm_up=WARM_UP),
            steps=STEPS,
            batch=BATCH,
            first=LOOKS[0],
            every=LOOKS[1] - LOOKS[0],
        )
        for depth in sorted(DEPTHS, reverse=True)
        for norm in NORMS
        for rate in RATES
        for seed in seeds
    ]


def begun(case: Case, cache: Path) -> Begun:
    """Train a run, look at its first steps through the public pipeline, and at how it ended.

    Returns:
        The run; scores that were not measured are NaN.
    """
    kept = cache / "begun" / f"{case.folder}.json"
    if not kept.exists():
        folder = trained(case, cache)
        out = cache / "begun-profiles" / case.folder
        out.mkdir(parents=True, exist_ok=True)
        analysis = analyse(open_run(folder), SETTINGS, out, rule="robust")
        assert analysis.log is not None
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(_read(case, analysis.profile, analysis.log))), encoding="utf-8")
    return Begun(**json.loads(kept.read_text(encoding="utf-8")))


def _read(case: Case, profile: pl.DataFrame, log: pl.DataFrame) -> Begun:
    first, later = LOOKS
    peak = case.update.learning_rate

    def at(step: int, quantity: str) -> float:
        rows = profile.filter(
            (pl.col("step") == step) & (pl.col("layer") == "") & (pl.col("quantity") == quantity)
        )
        return float(rows["value"][0]) if rows.height else _NAN

    def norm(step: int) -> float:
        rows = log.filter(pl.col("step") == step)
        return float(rows["grad_norm"][0]) if rows.height else _NAN

    def raised(step: int) -> float:
        """Peak rate over that of the update that follows the checkpoint, which S is of."""
        return peak / case.update.rate(step + 1)

    losses, norms = log["loss"].to_numpy(), log["grad_norm"].to_numpy()
    blew_up = not (np.all(losses <= BLOWN_LOSS) and np.all(norms <= BLOWN_GRADIENT))
    learned = bool(np.mean(losses[-LAST_STEPS:]) < GUESSING - BETTER)
    multiple = at(later, "update.critical_multiple")
    return Begun(
        run=case.name,
        norm=case.model.norm,
        depth=case.model.n_layer,
        learning_rate=peak,
        seed=case.seed,
        blew_up=blew_up,
        failed=blew_up or not learned,
        near_unit_mass=at(first, "koopman.near_unit_mass"),
        growing_mass=at(first, "koopman.growing_mass"),
        spectral_radius=at(first, "koopman.spectral_radius"),
        eigenvector_condition=at(first, "koopman.eigenvector_condition"),
        gradient_norm=norm(first),
        later_gradient_norm=norm(later),
        first_ratio=at(first, "hessian.stability_ratio") * raised(first),
        ratio=at(later, "hessian.stability_ratio") * raised(later),
        critical=raised(later) / multiple if multiple > 0 else _NAN,
    )


def ranked(runs: Sequence[Begun], label: str) -> list[Ranked]:
    """Rank the runs by every score.

    Returns:
        One entry a score for which runs of both kinds are there, in the order of `SCORES`.
    """
    found = []
    for name, score in SCORES.items():
        having = [one for one in runs if math.isfinite(score(one))]
        fail = np.array([one.blew_up if label == BLEW_UP else one.failed for one in having], bool)
        if not fail.any() or fail.all():
            continue
        values = np.array([score(one) for one in having])
        strata = (
            np.zeros(len(having), np.int64),
            _numbers([one.norm for one in having]),
            _numbers([f"{one.norm} {one.depth}" for one in having]),
        )
        areas = [_with_interval(values, fail, stratum) for stratum in strata]
        found.append(Ranked(name, label, len(having), int(fail.sum()), *areas))
    return found


def in_order(values: NDArray[np.float64], fail: NDArray[np.bool_], stratum: NDArray[np.int64]) -> float:
    """Give the share of pairs of a failing and another run of one stratum that are in order, ties counted half.

    With one stratum it is the area under the ROC curve.

    Returns:
        The share; NaN where no stratum has runs of both kinds.
    """
    ordered = pairs = 0.0
    for one in np.unique(stratum):
        above, below = values[(stratum == one) & fail], values[(stratum == one) & ~fail]
        difference = above[:, None] - below[None, :]
        ordered += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
    return ordered / pairs if pairs else _NAN


def _with_interval(
    values: NDArray[np.float64], fail: NDArray[np.bool_], stratum: NDArray[np.int64]
) -> Interval:
    whole = in_order(values, fail, stratum)
    if not math.isfinite(whole):
        return Interval(None)
    generator = np.random.default_rng(0)
    draws = [generator.integers(values.size, size=values.size) for _ in range(AREA_DRAWS)]
    drawn = np.array([in_order(values[rows], fail[rows], stratum[rows]) for rows in draws])
    low, high = np.quantile(drawn[np.isfinite(drawn)], COVERAGE)
    return Interval(whole, float(low), float(high))


def _numbers(names: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1]
