"""One checkpoint that has been read: into the module, measured, and held against the log."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hnf_offline.errors import UserError
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.calibrated import settle_products
from hnf_offline.profile.directions import logged_change_rows
from hnf_offline.profile.effort import counted, spend
from hnf_offline.profile.exhaustion import halving, is_out_of_memory, let_go
from hnf_offline.profile.finished import Finished
from hnf_offline.profile.measure import measure_in_memory
from hnf_offline.profile.peak import Peak
from hnf_offline.profile.reading import Loaded, read_ahead
from hnf_offline.profile.session import Session, full_precision, optimizer_of
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.shards import shard_path, write_shard
from hnf_offline.quantities.registry import computable
from hnf_offline.run.batches import load_rows
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import Row

#: Relative difference up to which a replayed loss counts as the logged one.
LOSS_AGREES = 1e-3
_HOST = torch.device("cpu")


def measure_each(
    run: Run,
    session: Session | None,
    settings: ProfileSettings,
    folder: Path,
    waiting: Sequence[tuple[Checkpoint, str]],
) -> Generator[Finished]:
    """Measure one checkpoint after another and write the shard of each; the next one is read meanwhile.

    Args:
        run: the run, for its log and optimizer.
        session: what stays the same over all of them; None to look at the weights alone.
        settings: what to measure.
        folder: where the shards go.
        waiting: the checkpoints and the keys of their shards.

    Yields:
        Every checkpoint; one that cannot be read or measured without rows, and why.
    """
    keys = {checkpoint.step: key for checkpoint, key in waiting}
    device = _HOST if session is None else session.device
    with full_precision():
        if session is not None and waiting:
            settle_products(run, session, settings, folder)
        for checkpoint, loaded in read_ahead([point for point, _ in waiting], device):
            skipped: list[tuple[Path, str, str]] = []
            peak = Peak(session)
            try:
                if isinstance(loaded, UserError):
                    raise loaded
                with counted() as effort:
                    rows = measure_checkpoint(run, session, settings, checkpoint, loaded, skipped)
            except UserError as error:
                skipped.append((checkpoint.path, error.reason, error.remedy or ""))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                let_go(error)
                skipped.append((checkpoint.path, "does not fit into memory", "use --device cpu"))
            else:
                forwards = effort.forwards(0 if session is None else len(session.batch.tokens))
                frame = write_shard(shard_path(folder, checkpoint), rows, keys[checkpoint.step])
                yield Finished(checkpoint, frame, tuple(skipped), forwards, peak.bytes)
                continue
            yield Finished(checkpoint, None, tuple(skipped))


def measure_checkpoint(
    run: Run,
    session: Session | None,
    settings: ProfileSettings,
    checkpoint: Checkpoint,
    loaded: Loaded,
    skipped: list[tuple[Path, str, str]],
) -> list[Row]:
    """Measure a checkpoint that has been read.

    Args:
        run: the run, for its log and optimizer.
        session: the module that the weights go into; None to look at the weights alone.
        settings: what to measure.
        checkpoint: which one it is.
        loaded: what is in it.
        skipped: (file, reason, remedy) of what is left out is added here.

    Returns:
        Rows of the long table, unsorted.

    Raises:
        InputError: if the weights are not those of the model, or one row does not fit into memory.
    """
    if loaded.damage is not None:
        where, reason = loaded.damage.path or checkpoint.path, loaded.damage.reason
        skipped.append((where, f"its optimizer state {reason}", "S is left out at this checkpoint"))
    if session is None:
        return weights_only_rows(checkpoint.step, loaded.weights)

    def restore() -> None:
        load_weights_into(session.module, loaded.weights)

    restore()
    state, reason = optimizer_of(session, run, checkpoint, loaded.optimizer)
    if reason:
        skipped.append((checkpoint.path, reason, "S is left out at this checkpoint"))
    rows, together = measure_in_memory(session, settings, checkpoint.step, state, checkpoint.path, restore)
    replayed, _ = halving(
        lambda memory: training_loss_rows(run, session, checkpoint.step, memory.forward_rows),
        dataclasses.replace(session.memory, rows=together),
        checkpoint.path,
    )
    if any(row.quantity == "update.measured_change" for row in rows):
        rows += logged_change_rows(logged_losses(run), checkpoint.step)
    return rows + replayed


def weights_only_rows(step: int, weights: dict[str, Tensor]) -> list[Row]:
    """Look at the weights alone, where there is no model or nothing to replay.

    Returns:
        The share of non-finite values, of all tensors and of each that has some.
    """
    entry = computable(frozenset({"weight"}), "forward")[0]
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    shares = {name: float(entry.function(tensor.flatten())) for name, tensor in floating.items()}
    total = sum(tensor.numel() for tensor in floating.values())
    whole = sum(shares[name] * tensor.numel() for name, tensor in floating.items()) / max(1, total)
    rows = [Row(step, "", "model", -1, entry.name, whole)]
    return rows + [
        Row(step, name, "other", depth, entry.name, share)
        for depth, (name, share) in enumerate(shares.items())
        if share > 0
    ]


def training_loss_rows(run: Run, session: Session, step: int, together: int | None = None) -> list[Row]:
    """Replay the training batch of the next step: it must give the loss that was logged.

    Where it does not, the batches before and after are tried, so that a step count that is off by one is found.

    Args:
        run: the run, for its log.
        session: the module with the checkpoint's weights in it, and the batches.
        step: the checkpoint's step.
        together: rows that go through the model at once, None for what the memory plan says.

    Returns:
        `replay.loss` rows with batch "step N"; empty where the batches' steps are unknown.
    """
    logged = logged_losses(run)
    rows: list[Row] = []
    entry = computable(frozenset({"loss"}), "forward")[0]
    for batch_step in steps_to_check(step):
        numbers = session.source.rows_of_step(batch_step)
        if not len(numbers) or batch_step not in logged:
            if batch_step == step + 1:
                break  # the last checkpoint: no logged step follows that could agree
            continue
        tokens, labels = load_rows(session.source, tuple(numbers))
        batch = ReplayBatch.of(tokens, labels, f"step {batch_step}")
        micro_batches = batch.cut(together or session.memory.forward_rows, session.device)
        if not micro_batches:
            continue  # every position of the batch is ignored
        with torch.no_grad():
            spend("forward", len(batch.tokens))
            losses = [
                entry.function(evaluate(session.module, micro.tokens, micro.labels).loss)
                for micro in micro_batches
            ]
        shares = torch.tensor([micro.weight for micro in micro_batches], dtype=torch.float64)
        value = (shares @ torch.stack(losses).cpu().double()).item()  # one transfer
        rows.append(Row(step, "", "model", -1, entry.name, value, batch=batch.name))
        if batch_step == step + 1 and _agree(value, logged[batch_step]):
            break
    return rows


def _agree(replayed: float, logged: float) -> bool:
    if math.isnan(replayed) or math.isnan(logged):
        return math.isnan(replayed) and math.isnan(logged)  # a dead run replays as dead
    return replayed == logged or abs(replayed - logged) <= LOSS_AGREES * max(1.0, abs(replayed))


def steps_to_check(step: int) -> tuple[int, int, int]:
    """Give the steps whose batches may have the loss of a checkpoint: the next one, and where counts are off.

    Returns:
        Three steps, the likeliest first.
    """
    return step + 1, step, step + 2


def logged_losses(run: Run) -> dict[int, float]:
    """Give the losses in the run's log.

    Returns:
        Step -> loss, empty where there is no log.
    """
    if run.log is None:
        return {}
    known = run.log.rows.select("step", "loss").drop_nulls()
    return dict(zip(known["step"].to_list(), known["loss"].to_list(), strict=True))
