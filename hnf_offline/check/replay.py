"""Replay a few checkpoints on the batches around their steps: does the log say the same loss, and of which step?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.check.series import Replays
from hnf_offline.errors import UserError
from hnf_offline.profile.settings import Progress
from hnf_offline.run.batches import describe
from hnf_offline.run.records import Batches, Checkpoint, Run

if TYPE_CHECKING:
    from hnf_offline.profile.session import Session

#: Why nothing is replayed.
WEIGHTS_ALONE = "only what weights show was asked for"
#: Checkpoints that are replayed, spread over the run.
MOST = 6
#: Operations that all forward passes together may take: some minutes of a processor, some of a GPU.
_OPERATIONS = {"cpu": 1e13}
_OPERATIONS_ELSEWHERE = 1e15
#: Tokens that go through the model at once: logits of a large vocabulary fill memory before anything else does.
_TOKENS_TOGETHER = 4096
#: Losses this close (relative to the larger of 1 and the loss) are the same.
AGREES = 1e-3
#: Losses this close need no second look. A step hardly changes the loss where the rate is low, so that a loss may
#: agree with its neighbour's row as well, and only the loss on its own batch tells which of the two it is.
_SURELY = 1e-5
#: A shift is told where its losses are this much closer than those of any other.
_CLEARLY = 0.25


def replay(
    run: Run, model: str | None, device: str, on_progress: Callable[[Progress], None] | None = None
) -> Replays:
    """Replay a few checkpoints on the batch of the next step, and where that is not as logged on its neighbours.

    Args:
        run: the run.
        model: `package.module:function` that builds the model, None where the run says.
        device: where to replay.
        on_progress: called after every checkpoint.

    Returns:
        Losses by checkpoint and step of the batch, or why there are none.
    """
    chosen, because = replayable(run, model)
    if run.batches is None or not chosen:
        return Replays(skipped_because=because)
    from hnf_offline.profile.session import open_session
    from hnf_offline.profile.settings import ProfileSettings

    try:
        session = open_session(run, ProfileSettings(tier="forward", rows=1, device=device), model)
    except UserError as error:
        return Replays(skipped_because=str(error))
    if session is None:
        return Replays(skipped_because="the run has no model or no batches")
    affordable = _affordable(session, run.batches)
    if affordable < min(2, len(chosen)):
        return Replays(
            skipped_because=f"its model and batches are too large to be replayed on {session.device.type} as a check"
        )
    return replayed_losses(run, session, _spread(list(chosen), affordable), on_progress)


def replayable(run: Run, model: str | None) -> tuple[tuple[Checkpoint, ...], str]:
    """Choose the checkpoints that can be replayed against the log, as far as names and headers tell.

    Args:
        run: the run.
        model: `package.module:function` that builds the model, None where the run says.

    Returns:
        A few checkpoints, spread over the run, and why there are none.
    """
    if run.batches is None:
        return (), "the run has no batches"
    if run.model is None and model is None:
        return (), "the run does not say how to build its model"
    if run.log is None:
        return (), "the run has no log"
    adapters = _on_its_base(run, model)
    if all(checkpoint.adapter for checkpoint in run.checkpoints) and not adapters:
        return (), "its checkpoints are adapters, which cannot be run alone"
    chosen = _chosen(run, adapters=adapters)
    return tuple(chosen), "" if chosen else "which rows were the batch of a step is not known"


def with_rows(run: Run, file: Path) -> Run:
    """Put other batches in the place of a run's own.

    Which step a row was trained at is read as of the run's own: what the file says, or as many rows for every step.

    Args:
        run: the run.
        file: token rows, .safetensors or .npz.

    Returns:
        The run with them.

    Raises:
        InputError: if the file holds no rows.
    """
    logged = [] if run.log is None else run.log.rows["step"].to_list()
    batches = describe(
        file,
        last_steps=[*logged[-1:], *(checkpoint.step for checkpoint in run.checkpoints[-1:])],
        first_logged_step=logged[0] if logged else None,
    )
    return replace(
        run, batches=batches, missing=tuple(one for one in run.missing if one.what != "no batches")
    )


def replayed_losses(
    run: Run,
    session: Session,
    checkpoints: Sequence[Checkpoint],
    on_progress: Callable[[Progress], None] | None = None,
) -> Replays:
    """Replay some checkpoints on the batches of the steps around the next one.

    Args:
        run: the run, for its log.
        session: the module and the batches.
        checkpoints: which.
        on_progress: called after every checkpoint.

    Returns:
        Losses by checkpoint and step of the batch: first of the next step, and of its neighbours where that one is
        not to five digits as logged.
    """
    from hnf_offline.profile.session import full_precision
    from hnf_offline.run.formats import load_weights
    from hnf_offline.run.model.build import load_weights_into

    losses: dict[tuple[int, int], float] = {}
    errors: dict[int, str] = {}
    logged = logged_losses(run)
    with full_precision():
        for done, checkpoint in enumerate(checkpoints, start=1):
            began = time.monotonic()
            try:
                load_weights_into(session.module, load_weights(checkpoint))
                for batch in (checkpoint.step + 1, checkpoint.step, checkpoint.step + 2):
                    loss = _loss(session, batch)
                    if loss is None:
                        continue
                    losses[checkpoint.step, batch] = loss
                    if batch == checkpoint.step + 1 and agree(loss, logged.get(batch), _SURELY):
                        break
            except UserError as error:
                errors[checkpoint.step] = error.reason
            except Exception as error:  # a user's model can fail in any way
                errors[checkpoint.step] = (
                    f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
                )
            if on_progress is not None:
                seconds = time.monotonic() - began
                on_progress(Progress(checkpoint.step, done, len(checkpoints), 0, seconds, work="replay"))
    because = "" if losses else "none of the checkpoints could be replayed"
    if errors and not losses:
        because = next(iter(errors.values()))
    return Replays(losses, because, errors)


def log_shift(losses: Mapping[tuple[int, int], float], logged: Mapping[int, float]) -> int | None:
    """Find by how much a log's steps have to be moved so that they count optimizer updates.

    The loss of row s is that of the weights after s - 1 updates, on the batch of update s. A trainer that counts
    from 0 writes it at s - 1: its log has to be moved by 1. The batches may be counted either way.

    Args:
        losses: (checkpoint, step of the batch) -> replayed loss, as `replayed_losses` gives them.
        logged: step -> loss, as the log counts.

    Returns:
        0, 1 or -1 where at least two checkpoints and three of four agree with the log moved by that much, and clearly
        better than with any other shift; None where it cannot be told: the loss of full batches may hardly change
        from step to step.
    """
    errors = {shift: _errors(losses, logged, shift) for shift in (0, 1, -1)}
    known = {shift: sorted(one)[len(one) // 2] for shift, one in errors.items() if len(one) > 1}
    if not known:
        return None
    best = min(known, key=lambda shift: (known[shift], shift != 0))
    agreeing = sum(error <= AGREES for error in errors[best])
    rivals = [known[shift] for shift in known if shift != best]
    if agreeing < 2 or 4 * agreeing < 3 * len(errors[best]):
        return None
    clear = not rivals or (known[best] < min(rivals) and known[best] <= _CLEARLY * min(rivals))
    return best if clear else None


def logged_losses(run: Run) -> dict[int, float]:
    """Take the logged losses.

    Returns:
        Step -> loss; NaN and infinity are losses too.
    """
    if run.log is None:
        return {}
    known = run.log.rows.select("step", "loss").drop_nulls()
    return dict(zip(known["step"].to_list(), known["loss"].to_list(), strict=True))


def agree(replayed: float, logged: float | None, within: float = AGREES) -> bool:
    """Tell whether a replayed loss is the logged one.

    Returns:
        True where they are as close as `within`, relative to the larger of 1 and the loss; NaN agrees with NaN.
    """
    return logged is not None and _error(replayed, logged) <= within


def _errors(losses: Mapping[tuple[int, int], float], logged: Mapping[int, float], shift: int) -> list[float]:
    # How far each checkpoint is from the log moved by that much. The batch is that of the same row of the log, or
    # that of the next update whatever the log says.
    errors = []
    for step in sorted({checkpoint for checkpoint, _ in losses}):
        row = step + 1 - shift
        replays = [losses[step, batch] for batch in {row, step + 1} if (step, batch) in losses]
        if row in logged and replays:
            errors.append(min(_error(loss, logged[row]) for loss in replays))
    return errors


def _error(replayed: float, logged: float) -> float:
    if math.isnan(replayed) and math.isnan(logged):
        return 0.0
    if replayed == logged:
        return 0.0
    error = abs(replayed - logged) / max(1.0, abs(replayed))
    return math.inf if math.isnan(error) else error


def _on_its_base(run: Run, model: str | None) -> bool:
    # Whether adapters are put on the model that they were trained on.
    return model is None and run.model is not None and run.model.kind == "adapter"


def _chosen(run: Run, *, adapters: bool) -> list[Checkpoint]:
    # A few checkpoints, spread evenly, of those whose next step's rows and loss are there.
    assert run.batches is not None
    batches, logged = run.batches, logged_losses(run)
    able = [
        one
        for one in run.checkpoints
        if one.adapter == adapters
        and any(len(batches.rows_of_step(step)) for step in (one.step, one.step + 1))
        and any(step in logged for step in (one.step, one.step + 1))
    ]
    return _spread(able, MOST)


def _spread(checkpoints: list[Checkpoint], most: int) -> list[Checkpoint]:
    if len(checkpoints) <= most:
        return checkpoints
    return [checkpoints[round(k * (len(checkpoints) - 1) / (most - 1))] for k in range(most)]


def _affordable(session: Session, batches: Batches) -> int:
    # How many checkpoints can be replayed, three batches each: two operations a parameter and token.
    from hnf_offline.run.model.frozen import frozen_weights

    module = session.module
    parameters = sum(value.numel() for value in chain(module.parameters(), frozen_weights(module)))
    rows = max(batches.rows_per_step or 1, 1)
    each = 3 * 2 * parameters * rows * _positions(session)
    allowed = _OPERATIONS.get(session.device.type, _OPERATIONS_ELSEWHERE)
    return int(min(MOST, allowed // max(1, each)))


def _positions(session: Session) -> int:
    from hnf_offline.run.model.positions import positions

    return positions(session.batch.tokens[:1], session.module)


def _loss(session: Session, step: int) -> float | None:
    # The loss on the batch of a step under the weights in the module, in as many parts as memory asks for.
    import torch

    from hnf_offline.profile.batch import ReplayBatch
    from hnf_offline.run.batches import load_rows
    from hnf_offline.run.model.loss import evaluate

    numbers = tuple(session.source.rows_of_step(step))
    if not numbers:
        return None
    tokens, labels = load_rows(session.source, numbers)
    batch = ReplayBatch.of(tokens, labels, f"step {step}")
    rows = max(1, min(len(numbers), _TOKENS_TOGETHER // max(1, _positions(session))))
    with torch.no_grad():
        parts = [
            micro.weight * float(evaluate(session.module, micro.tokens, micro.labels).loss)
            for micro in batch.cut(rows, session.device)
        ]
    return sum(parts) if parts else None
