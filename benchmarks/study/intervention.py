"""Experiment 3: does acting on the alarm help? The same runs under fixed policies, beside the run as it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.case import Case
from benchmarks.study.families import FAMILIES
from benchmarks.study.scoring import COVERAGE, DRAWS, Interval, bootstrapped
from benchmarks.study.training import trained
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.relate.events import clusters
from hnf_offline.rerun.arms import AS_WAS
from hnf_offline.rerun.whatif import whatif
from hnf_offline.retraining import Arm
from hnf_offline.run import open_run

#: Families whose every step can be taken again from what is saved: the full batch.
INTERVENED = "ABD"
#: Seeds of these runs; nothing else of the study uses them, and none is chosen by how its run went.
SEEDS = tuple(range(200, 208))
#: Fixed before any of these runs was made. "{steps}" is the number of steps of the run.
ARMS: Mapping[str, str] = {
    "halve at the alarm, restore after 100 steps": "lr-restore=0.5,100,8",
    "S ratchet": "lr-ratchet=0.7,60,0.2,8",
    "S controller": "lr-controller=0.8,0.25,8",
    "blind decay": "lr-decay=0.7,60,0.2",
    "cosine to 0": "lr-cosine={steps}",
    "clip at 1": "clip=1.0",
    "a quarter of the rate": "lr-scale=0.25",
    "beta2 = 0.9": "beta2=0.9",
}
#: Arms that only Adam knows.
ADAM_ONLY = frozenset({"beta2 = 0.9"})
#: What a lasting loss is taken from, and what counts as stalled beside the best loss so far.
LAST_STEPS, STALLED = 100, 1.5
#: Checkpoints at which the retraining is held against the run.
EVERY = 50
SETTINGS = ProfileSettings(tier="stability", accuracy="screen", device="cpu")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run went under one policy.

    Attributes:
        run: name of the run.
        family: its letter.
        seed: its seed.
        arm: the policy, "as was" for the run itself.
        onsets: spikes that start in the retraining, aftershocks counted with their spike.
        failed: whether the loss diverged or stopped being finite.
        final_loss: geometric mean of the last 100 losses; infinite where the run failed.
        stalled: share of steps whose loss is above 1.5 times the best so far.
        reductions: steps at which the policy lowered the learning rate below all before.
        reproduction: how well the retraining of the run as it was agrees with the log.
    """

    run: str
    family: str
    seed: int
    arm: str
    onsets: int
    failed: bool
    final_loss: float
    stalled: float
    reductions: int
    reproduction: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What a policy did to some runs.

    Attributes:
        arm: the policy.
        runs: runs that were tried under it.
        onsets: onsets in all.
        fewer: onsets over those of the runs as they were.
        failed: runs that failed for good.
        failed_as_was: of the same runs as they were.
        loss: final loss over that of the run as it was, geometric mean of the runs that neither arm lost.
        compared: how many runs that are.
        stalled: mean share of stalled steps.
        reductions: mean number of reductions.
    """

    arm: str
    runs: int
    onsets: int
    fewer: Interval
    failed: int
    failed_as_was: int
    loss: Interval
    compared: int
    stalled: float
    reductions: float


def cases(seeds: Sequence[int] = SEEDS, families: str = INTERVENED) -> list[Case]:
    """List the runs: the settings of each family take turns over the seeds.

    Returns:
        One run a seed and family.
    """
    return [
        replace(settings[place % len(settings)], every=EVERY)
        for letter in sorted(families)
        for place, seed in enumerate(seeds)
        for settings in (FAMILIES[letter].cases(seed),)
    ]


def arms_of(case: Case) -> dict[str, str]:
    """List the arms that a run can be tried under.

    Returns:
        Policies by what they are called.
    """
    return {
        name: spelling.format(steps=case.steps - case.first)
        for name, spelling in ARMS.items()
        if case.update.kind == "Adam" or name not in ADAM_ONLY
    }


def tried(case: Case, cache: Path, arms: Mapping[str, str] | None = None) -> list[Outcome]:
    """Train a run and retrain it under every policy from its first checkpoint; what was done before is kept.

    Args:
        case: the run.
        cache: folder of runs and results.
        arms: policies by name; all that the run can be tried under.

    Returns:
        The run as it was, then one outcome a policy.
    """
    arms = arms_of(case) if arms is None else dict(arms)
    digest = hashlib.sha256(json.dumps(arms, sort_keys=True).encode()).hexdigest()[:8]
    kept = cache / "interventions" / f"{case.folder}-{digest}.json"
    if not kept.exists():
        run = open_run(trained(case, cache))
        done = whatif(
            run,
            start=case.first,
            steps=case.steps - case.first,
            policies=list(arms.values()),
            settings=SETTINGS,
            every=0,
        )
        names = {AS_WAS: AS_WAS, **{spelling: name for name, spelling in arms.items()}}
        found = [_outcome(case, names[arm.policy], arm, done.reproduction.word) for arm in done.arms]
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".unfinished")
        unfinished.write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
        unfinished.rename(kept)
    return [Outcome(**one) for one in json.loads(kept.read_text(encoding="utf-8"))]


def _outcome(case: Case, name: str, arm: Arm, reproduction: str) -> Outcome:
    losses = np.array([math.nan if one is None else one for one in arm.loss], float)
    failed = not bool(np.isfinite(losses).all()) or any(
        spike.kind in {"divergence", "nonfinite"} for spike in arm.spikes
    )
    rates = np.array([math.nan if one is None else one for one in arm.learning_rate], float)
    first, last = case.first, arm.steps[-1]
    return Outcome(
        run=case.name,
        family=case.family,
        seed=case.seed,
        arm=name,
        onsets=int(clusters([spike.onset for spike in arm.spikes], first, last).size),
        failed=failed,
        final_loss=math.inf if failed else float(np.exp(np.log(losses[-LAST_STEPS:]).mean())),
        stalled=float((~(losses <= STALLED * np.minimum.accumulate(losses))).mean()),
        reductions=reductions(rates),
        reproduction=reproduction,
    )


def reductions(rates: NDArray[np.float64]) -> int:
    """Count the steps at which a rate is lower than at any step before.

    Args:
        rates: one a step.

    Returns:
        How many; a schedule that falls all the time counts at every step.
    """
    known = rates[np.isfinite(rates)]
    if known.size < 2:
        return 0
    return int((known[1:] < np.minimum.accumulate(known)[:-1] * (1 - 1e-9)).sum())


def effects(outcomes: Sequence[Outcome]) -> list[Effect]:
    """Compare every policy with the same runs as they were; intervals are over runs, which stay paired.

    Returns:
        One entry an arm, the runs as they were first.
    """
    by_arm: dict[str, dict[str, Outcome]] = {}
    for one in outcomes:
        by_arm.setdefault(one.arm, {})[one.run] = one
    found = []
    for arm, runs in by_arm.items():
        before = [by_arm[AS_WAS][name] for name in runs]
        after = list(runs.values())
        both = [
            (one.final_loss, was.final_loss)
            for one, was in zip(after, before, strict=True)
            if math.isfinite(one.final_loss) and math.isfinite(was.final_loss)
        ]
        found.append(
            Effect(
                arm=arm,
                runs=len(after),
                onsets=sum(one.onsets for one in after),
                fewer=bootstrapped(
                    np.array([one.onsets for one in after], float),
                    np.array([one.onsets for one in before], float),
                ),
                failed=sum(one.failed for one in after),
                failed_as_was=sum(one.failed for one in before),
                loss=geometric_mean([one / was for one, was in both]),
                compared=len(both),
                stalled=float(np.mean([one.stalled for one in after])),
                reductions=float(np.mean([one.reductions for one in after])),
            )
        )
    return found


def geometric_mean(ratios: Sequence[float]) -> Interval:
    """Take the geometric mean of ratios, and draw them anew for its interval.

    Returns:
        The mean; without an interval below three ratios.
    """
    if not ratios:
        return Interval(None)
    logs = np.log(np.array(ratios, float))
    if logs.size < 3:
        return Interval(float(np.exp(logs.mean())))
    drawn = np.random.default_rng(0).integers(logs.size, size=(DRAWS, logs.size))
    low, high = np.exp(np.quantile(logs[drawn].mean(axis=1), COVERAGE)).tolist()
    return Interval(float(np.exp(logs.mean())), low, high)
