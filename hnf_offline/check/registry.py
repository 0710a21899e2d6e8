"""What a check is, and all of them in order: a new one is a file of its own and one word in `CHECKS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnf_offline.check.series import Series
    from hnf_offline.findings import Fault

#: Cost classes. cheap: names, headers, JSON and the log; first: reads the first checkpoint and runs it on a few rows;
#: weights: reads every tensor, one checkpoint at a time; replay: runs the model on saved batches, a few checkpoints.
COSTS = ("cheap", "first", "weights", "replay")

#: Modules of this package, in the order in which their faults are told; each has a `CHECK`.
CHECKS = (
    "damaged",
    "mixed_runs",
    "other_shapes",
    "other_dtype",
    "identical_weights",
    "discontinuity",
    "nonfinite_weights",
    "tied_weights",
    "untrained_weights",
    "save_precision",
    "step_count",
    "optimizer_state",
    "learning_rate",
    "replayed_loss",
    "log",
    "spacing",
    "initialisation",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found.

    Attributes:
        faults: what is wrong.
        looked_at: what it looked at ("30 checkpoints"), "" where it could look at nothing.
        skipped_because: what it could not look at and why, "" where it looked at everything.
        covered: the steps that a fault is about, where it is about more than its own.
    """

    faults: tuple[Fault, ...] = ()
    looked_at: str = ""
    skipped_because: str = ""
    covered: Mapping[Fault, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that can be wrong with a run as a series of files.

    Attributes:
        name: also the `kind` of its faults.
        cost: one of `COSTS`; a cheap check may look closer where the tensors were read anyway.
        looks_for: what it looks for, one clause.
        matters: why that matters, one sentence.
        remedy: what to do about it, one sentence.
        look: the check itself.
    """

    name: str
    cost: str
    looks_for: str
    matters: str
    remedy: str
    look: Callable[[Series], Outcome]


def checks() -> tuple[Check, ...]:
    """Collect all checks.

    Returns:
        In the order in which their faults are told.
    """
    return tuple(import_module(f"hnf_offline.check.{module}").CHECK for module in CHECKS)
