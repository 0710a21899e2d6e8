"""Everything that is measured at one checkpoint, tier by tier, as rows of the long table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hnf_offline.profile.batch import rows_of
from hnf_offline.profile.derivatives import derivative_rows
from hnf_offline.profile.effort import spend
from hnf_offline.profile.exhaustion import halving
from hnf_offline.profile.forward import forward_rows
from hnf_offline.profile.gradients import check_rows
from hnf_offline.profile.maps import map_rows, precision_rows
from hnf_offline.profile.maps.measure import few
from hnf_offline.profile.memory import MemoryPlan, copies_together
from hnf_offline.profile.residual_modes import mode_rows
from hnf_offline.profile.session import Session, memory_now
from hnf_offline.profile.settings import TIERS, ProfileSettings
from hnf_offline.profile.snapshot import snapshot_of_parameters
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.traces import layer_trace_rows
from hnf_offline.profile.weight_ranks import rank_rows
from hnf_offline.profile.weight_rows import alone_rows, nonfinite_rows
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.table import Row


def measure(subject: Subject, settings: ProfileSettings) -> list[Row]:
    """Measure a checkpoint.

    Non-finite weights end it after `weight.nonfinite`: everything else would be NaN.

    Returns:
        Rows of the long table, unsorted.
    """
    rows = weights_rows(subject)
    if any(row.value > 0 for row in rows):
        return rows
    tier = TIERS.index(settings.tier)
    if tier < TIERS.index("forward"):
        return rows + alone_rows(
            snapshot_of_parameters(subject.step, subject.layers, dict(subject.module.named_parameters()))
        )
    if tier < TIERS.index("full"):  # which has all that the weights show
        rows += rank_rows(subject.step, subject.layers, dict(subject.module.named_parameters()))
    rows += forward_rows(subject)
    if settings.koopman or tier >= TIERS.index("full"):
        rows += mode_rows(subject, settings.seed)
    if tier >= TIERS.index("gradient"):
        rows += derivative_rows(
            subject,
            settings,
            stability=tier >= TIERS.index("stability"),
            curvature=tier >= TIERS.index("curvature"),
        )
        if settings.gradient_check:
            rows += check_rows(subject, settings.seed)
    if tier >= TIERS.index("curvature") and settings.traces:
        rows += layer_trace_rows(subject, settings)
    if tier >= TIERS.index("full"):
        short, _ = few(subject.batches[0].tokens, None)
        whole = sum(batch.tokens.numel() for batch in subject.batches)
        spend("map", rows_of(subject.batches), share=short.numel() / whole)
        rows += map_rows(subject, settings) + precision_rows(subject)
    return rows


def measure_in_memory(
    session: Session,
    settings: ProfileSettings,
    step: int,
    state: OptimizerState | None,
    path: Path,
    restore: Callable[[], None] | None = None,
) -> tuple[list[Row], int]:
    """Measure the weights in a session's module on its rows; where memory runs out, on fewer rows at a time.

    Args:
        session: module with the weights in it, layers and rows.
        settings: what to measure.
        step: optimizer updates applied to these weights.
        state: the optimizer's state, None where there is none.
        path: the checkpoint, for error messages.
        restore: puts the weights back as they were, should a try that failed have left others; None where
            nothing can.

    Returns:
        Rows of the long table, and how many replayed rows went through the model at once.

    Raises:
        InputError: if not even one row fits into the memory of the device.
    """

    def work(memory: MemoryPlan) -> list[Row]:
        return measure(subject_of(session, step, state, memory), settings)

    rows, memory = halving(work, memory_now(session), path, restore)
    return rows, memory.rows


def subject_of(session: Session, step: int, state: OptimizerState | None, memory: MemoryPlan) -> Subject:
    """Put together what is measured: the weights in a session's module, on its rows.

    Returns:
        The subject, its rows cut as the memory allows.
    """
    half = -(-len(session.batch.tokens) // 2)
    several = session.training_batches if len(session.training_batches) > 1 else ()
    return Subject(
        step,
        session.module,
        session.layers,
        state,
        session.batch.cut(min(half, memory.forward_rows), session.device),
        session.batch.cut(memory.rows, session.device),
        session.batch.name,
        tuple(batch.cut(memory.rows, session.device) for batch in several),
        session.training_batches[0].name,
        memory.keep_graphs,
        memory.lot_bytes,
        copies_together(session.row_bytes, memory.rows, len(session.training_batches[0].tokens)),
        session.products,
    )


def weights_rows(subject: Subject) -> list[Row]:
    """Count non-finite parameters, of the whole model and of every layer that has some.

    Returns:
        One row for the whole model, and one for each layer concerned.
    """
    return nonfinite_rows(subject.step, subject.layers, dict(subject.module.named_parameters()))
