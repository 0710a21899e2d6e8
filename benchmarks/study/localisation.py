"""Experiment 4: a fault sits in one module; which quantities name it, how often and how soon?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.study.injection import AFTER, AT, EVERY, Injected, trained_with_fault
from benchmarks.study.scoring import Interval, bootstrapped
from hnf_offline.pipeline import analyse
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run import open_run

#: Everything a layer has: curvature with what is cheaper, and what the weights alone show.
CURVATURE = ProfileSettings(tier="curvature", accuracy="screen", device="cpu")
WEIGHTS = ProfileSettings(tier="weights", device="cpu")
#: Quantities that are asked which layer it is, and how: by their value, or by how far it moved from the median of all
#: earlier checkpoints, as a difference or as a ratio either way.
ASKED = (
    ("share of the unstable direction", "hessian.unstable_mass", "value"),
    ("change of that share", "hessian.unstable_mass", "difference"),
    ("layer S", "hessian.stability_ratio", "value"),
    ("layer S, against before", "hessian.stability_ratio", "ratio"),
    ("layer lambda_max, against before", "hessian.lambda_max", "ratio"),
    ("gradient norm *", "gradient.norm", "value"),
    ("gradient norm, against before *", "gradient.norm", "ratio"),
    ("next update over weights *", "gradient.next_update_ratio", "value"),
    ("next update over weights, against before *", "gradient.next_update_ratio", "ratio"),
    ("RMS_t *", "adam.lag_rms", "value"),
    ("update over weights *", "weight.update_ratio", "value"),
    ("update over weights, against before *", "weight.update_ratio", "ratio"),
    ("spectral norm, against before *", "weight.sigma_max", "ratio"),
    ("condition number, against before *", "weight.condition", "ratio"),
    ("weights that are not finite *", "weight.nonfinite", "value"),
)
#: Steps after the fault began by which a layer is named, in stretches.
STRETCHES = ((0, 20), (20, 40), (40, AFTER + 1))
#: Fewest earlier checkpoints of a baseline.
MINIMUM = 3


@dataclass(frozen=True, slots=True)
class Named:
    """What one quantity said at one checkpoint.

    Attributes:
        run: the run's name.
        kind: of fault.
        setting: the architecture.
        quantity: what was asked, as the page calls it.
        since: steps since the fault began.
        right: whether the layer it singles out belongs to the module.
        chance: share of the layers that do.
    """

    run: str
    kind: str
    setting: str
    quantity: str
    since: int
    right: bool
    chance: float


@dataclass(frozen=True, slots=True)
class Finding:
    """How well a quantity finds faults of one kind.

    Attributes:
        quantity: as the page calls it.
        runs: runs that have it.
        shares: of the checkpoints of each stretch at which it is right; None where there are none.
        chance: of a layer named at random.
        found: runs in which it is right at two checkpoints in a row, or at the only one.
        soonest: steps from the fault to the first of those, one a run that was found, ascending.
    """

    quantity: str
    runs: int
    shares: tuple[Interval | None, ...]
    chance: float
    found: int
    soonest: tuple[int, ...]


def asked(injected: Injected, cache: Path) -> list[Named]:
    """Train a run with a fault, profile it through the public pipeline, and ask every quantity.

    Returns:
        One entry a quantity and checkpoint from the fault on.
    """
    folder = trained_with_fault(injected, cache)
    profiles = []
    for name, settings in (("curvature", CURVATURE), ("weights", WEIGHTS)):
        out = cache / "injected-profiles" / injected.folder / name
        out.mkdir(parents=True, exist_ok=True)
        profiles.append(analyse(open_run(folder), settings, out, rule="robust").profile)
    seen = pl.concat(profiles).unique(["step", "layer", "quantity"], keep="first", maintain_order=True)
    return [
        Named(injected.name, injected.kind, injected.case.setting, called, step - AT, right, chance)
        for called, quantity, how in ASKED
        for step, right, chance in answers(seen, injected.module, quantity, how)
    ]


def answers(profile: pl.DataFrame, module: str, quantity: str, how: str) -> list[tuple[int, bool, float]]:
    """Ask one quantity which layer it is, at every checkpoint from the fault on.

    Args:
        profile: the long table.
        module: the module that is at fault.
        quantity: name in the catalogue.
        how: "value", "difference" or "ratio".

    Returns:
        (step, whether a layer of the module stands out, share of the layers that are of the module); nothing where
        the module has no such quantity, or only one layer has it.
    """
    rows = profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") != ""))
    layers = sorted(rows["layer"].unique().to_list())
    of_module = np.array([layer == module or layer.startswith(f"{module}.") for layer in layers], bool)
    if quantity == "weight.nonfinite":  # told of layers that have some; all others have none
        others = profile.filter((pl.col("quantity") == "gradient.norm") & (pl.col("layer") != ""))["layer"]
        every = set(layers) | set(others.to_list())
        chance = sum(layer == module or layer.startswith(f"{module}.") for layer in every) / max(
            1, len(every)
        )
        return [
            (step, bool(of_module[np.argmax(values)]), chance)
            for step, values in zip(*matrix(rows, layers), strict=True)
            if step >= AT and np.nanmax(values) > 0
        ]
    if len(layers) < 2 or not of_module.any():
        return []
    steps, values = matrix(rows, layers)
    scores = values if how == "value" else moved(values, how)
    return [
        (step, bool(of_module[int(np.nanargmax(score))]), float(of_module.mean()))
        for step, score in zip(steps, scores, strict=True)
        if step >= AT and np.isfinite(score).any()
    ]


def matrix(rows: pl.DataFrame, layers: Sequence[str]) -> tuple[list[int], NDArray[np.float64]]:
    """Spread one quantity out.

    Returns:
        Steps, and values [steps, layers], NaN where there is none.
    """
    wide = rows.pivot(on="layer", index="step", values="value", aggregate_function="median").sort("step")
    return wide["step"].to_list(), wide.select(layers).cast(pl.Float64).fill_null(np.nan).to_numpy()


def moved(values: NDArray[np.float64], how: str) -> NDArray[np.float64]:
    """Say how far each layer is from the median of its earlier checkpoints.

    Args:
        values: [steps, layers].
        how: "difference", or "ratio" for the size of its logarithm.

    Returns:
        The same shape, NaN until three earlier values are known.
    """
    found = np.full(values.shape, np.nan)
    for row in range(1, len(values)):
        past = values[:row]
        enough = np.isfinite(past).sum(axis=0) >= MINIMUM
        if not enough.any():
            continue
        median = np.nanmedian(past[:, enough], axis=0)
        if how == "difference":
            found[row, enough] = values[row, enough] - median
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                found[row, enough] = np.abs(np.log(values[row, enough] / median))
    return found


def findings(named: Sequence[Named]) -> list[Finding]:
    """Judge every quantity over some runs; intervals are over runs.

    Returns:
        One entry a quantity that at least one run has.
    """
    found = []
    for quantity in dict.fromkeys(one.quantity for one in named):
        by_run: dict[str, list[Named]] = {}
        for one in named:
            if one.quantity == quantity:
                by_run.setdefault(one.run, []).append(one)
        soonest = [first for first in (_soonest(run) for run in by_run.values()) if first is not None]
        found.append(
            Finding(
                quantity=quantity,
                runs=len(by_run),
                shares=tuple(_share(list(by_run.values()), *stretch) for stretch in STRETCHES),
                chance=float(np.mean([run[0].chance for run in by_run.values()])),
                found=len(soonest),
                soonest=tuple(sorted(soonest)),
            )
        )
    return found


def _share(runs: Sequence[Sequence[Named]], begin: int, end: int) -> Interval | None:
    inside = [[one.right for one in run if begin <= one.since < end] for run in runs]
    if not any(inside):
        return None
    return bootstrapped(
        np.array([sum(one) for one in inside], float), np.array([len(one) for one in inside], float)
    )


def _soonest(run: Sequence[Named]) -> int | None:
    ordered = sorted(run, key=lambda one: one.since)
    for place, one in enumerate(ordered):
        following = ordered[place + 1 : place + 2]
        confirmed = all(other.right and other.since - one.since <= EVERY for other in following)
        if one.right and confirmed and (following or len(ordered) == 1):
            return one.since
    return None
