"""The local Lyapunov rate of a checkpoint, from S and the momentum that its optimizer state has."""

from __future__ import annotations

from hnf_offline.linalg.extremes import Extremes
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.lyapunov import Mode
from hnf_offline.quantities.registry import computable
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.table import Row


def momentum_of(state: OptimizerState) -> tuple[float, bool] | None:
    """Give the one momentum of all parameters that the optimizer moves.

    Returns:
        b (beta1 of Adam, SGD's momentum) and whether it is Nesterov's; None where parameters differ in it, or it is
        not known.
    """
    found: set[tuple[float, bool]] = set()
    for own in state.parameters.values():
        if state.kind in {"adam", "adamw"}:
            if own.beta1 is None:
                return None
            found.add((own.beta1, False))
        elif state.kind == "sgd":
            found.add((own.momentum or 0.0, own.nesterov))
    return found.pop() if len(found) == 1 else None


def local_rate_rows(subject: Subject, scaled: Extremes, spread: tuple[float, float] | None) -> list[Row]:
    """Measure the rate at which a change along the sharpest direction grows.

    Args:
        subject: the optimizer's state.
        scaled: extremes of A^1/2 H A^1/2.
        spread: smallest and largest S over single training batches, None where there are not two.

    Returns:
        One row of the whole model, its ends those of S; none where there is no one momentum.
    """
    known = None if subject.optimizer is None else momentum_of(subject.optimizer)
    if known is None:
        return []
    top, (momentum, nesterov) = scaled.largest, known
    low, high = top.value, top.value + top.residual
    if spread is not None:
        low, high = min(low, spread[0]), max(high, spread[1])
    # The rate falls up to one S and rises beyond it: it is least there, or at the end that is nearer to it.
    quietest = min(max(Mode(0.0, momentum, nesterov).quietest, low), high)
    rows: list[Row] = []
    for entry in computable(frozenset({"mode"}), "stability"):
        value, *ends = (
            float(entry.function(Mode(ratio, momentum, nesterov)))
            for ratio in (top.value, low, high, quietest)
        )
        rows.append(
            Row(
                subject.step,
                "",
                "model",
                -1,
                entry.name,
                value,
                min(value, *ends),
                max(value, *ends),
                top.certified,
                subject.name,
            )
        )
    return rows
