"""What `hnf diff` found: two runs through the same table, as frozen records (schema 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hnf_offline.findings import SCHEMA, Alarm, Spike
from hnf_offline.strict_json import plain


@dataclass(frozen=True, slots=True)
class Difference:
    """One hyper-parameter that differs; None where a run does not state it."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Separation:
    """Where a quantity of the two runs parts and stays apart.

    Attributes:
        quantity: name in the catalogue, or "loss", "grad_norm", "learning_rate".
        layer: module path, "" for the whole model or a log column.
        step: first step of durable separation, None where they never part durably.
        a: value of run A there.
        b: value of run B there.
        threshold: |log ratio| that counts as apart (from the runs' own step-to-step noise).
        certified: whether both values are certified.
        until: last step of that stretch, None where it lasts to the end of the common steps.
        scale: what the threshold is measured in: "log ratio", or "difference" where a value is not positive.
    """

    quantity: str
    layer: str
    step: int | None
    a: float
    b: float
    threshold: float
    certified: bool
    until: int | None = None
    scale: str = "log ratio"


@dataclass(frozen=True, slots=True)
class WeightDistance:
    """||W_A - W_B|| of one layer at a common checkpoint, and relative to ||W_A||."""

    step: int
    layer: str
    distance: float
    relative: float


@dataclass(frozen=True, slots=True)
class LinearBarrier:
    """The highest rise of the replayed loss over the chord, on the straight line from A's weights to B's.

    Attributes:
        step: of both checkpoints.
        value: the rise, in nats; infinite where the loss is not finite on the way.
        low: lower end of its rounding.
        high: upper end of its rounding.
        place: where on the line it is, 0 at A and 1 at B.
        loss_a: loss of A's weights on the replayed rows.
        loss_b: loss of B's weights on the same rows.
        certified: False where running statistics of norms lie on the way as well.
        batch: the rows, and whose they are.
    """

    step: int
    value: float
    low: float
    high: float
    place: float
    loss_a: float
    loss_b: float
    certified: bool
    batch: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that differs between two runs.

    Attributes:
        a: facts of run A, as in `Findings.run`.
        b: facts of run B.
        verdict: {"word": "Same"|"Differ"|"Cannot say", "sentence": ..., "caveat": ...}.
        facts: the four facts of the first screen: {"label": ..., "value": ...}.
        aligned: what the common axis is, in words, and the common steps.
        configuration: the keys that differ.
        shared_configuration: the keys that agree.
        separations: sorted by step, the loss among them.
        weight_distances: by step, then depth.
        spikes_a, spikes_b, alarms_a, alarms_b: from both findings.
        incomparable: sentences on what could not be compared, and why.
        loss_test: paired t test of the losses over the second half of the common steps: "first", "last", "rows",
            "effective_rows", "difference", "low", "high", "t", "p"; None where there are too few rows.
        barriers: on the way from A to B at a few common steps, by step; empty where they were not asked for, or
            where `incomparable` says why there are none.
    """

    a: Mapping[str, Any]
    b: Mapping[str, Any]
    verdict: Mapping[str, str]
    facts: tuple[Mapping[str, str], ...]
    aligned: Mapping[str, Any]
    configuration: tuple[Difference, ...]
    shared_configuration: Mapping[str, Any]
    separations: tuple[Separation, ...]
    weight_distances: tuple[WeightDistance, ...]
    spikes_a: tuple[Spike, ...]
    spikes_b: tuple[Spike, ...]
    alarms_a: tuple[Alarm, ...]
    alarms_b: tuple[Alarm, ...]
    incomparable: tuple[str, ...]
    made: Mapping[str, Any]
    loss_test: Mapping[str, Any] | None = None
    barriers: tuple[LinearBarrier, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the comparison as one JSON value.

        Returns:
            Plain dicts and lists, as `Findings.to_json`.
        """
        result = plain({"schema": SCHEMA, **asdict(self)})
        assert isinstance(result, dict)
        return result
