"""The replayed loss on the straight line between two runs, at steps of which both have a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from hnf_offline.comparison import LinearBarrier
from hnf_offline.errors import UserError
from hnf_offline.profile.exhaustion import halving
from hnf_offline.profile.memory import MemoryPlan
from hnf_offline.profile.reading import Loaded, load
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, full_precision, memory_now, most_parameters, open_session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.surroundings import Surroundings, has_buffers, other_end
from hnf_offline.quantities.landscape import STRETCHES, barrier_of
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.records import Checkpoint, ModelSource, Run

#: Steps at which runs are held against each other: first, last and evenly spaced ones between.
MOST_STEPS = 5
#: Forward passes of all replayed rows at a step, and once to see that both models are the same function.
STEP_FORWARDS, MODEL_FORWARDS = STRETCHES + 1, 2
#: Relative difference of two losses that are of the same function.
SAME_LOSS = 1e-4
_HOST = torch.device("cpu")


def barriers_between(
    run_a: Run, run_b: Run, settings: ProfileSettings, *, model_factory: str | None = None
) -> tuple[tuple[LinearBarrier, ...], tuple[str, ...]]:
    """Walk from A's weights to B's at a few common steps.

    Args:
        run_a: run A.
        run_b: run B.
        settings: which steps, rows, device and precision.
        model_factory: `package.module:function` instead of the runs' own models.

    Returns:
        Barriers by step, and sentences on what has none and why.
    """
    by_step = {point.step: point for point in selected(run_b, settings)}
    pairs = [(point, by_step[point.step]) for point in selected(run_a, settings) if point.step in by_step]
    if not pairs:
        return (), ("No barrier between the runs: they have no checkpoint of one step.",)
    try:
        session, owner = _session(run_a, run_b, settings, model_factory)
        if session is None:
            return (), ("No barrier between the runs: neither has both a model and rows to replay.",)
        other = run_b if owner == "A" else run_a
        difference = _other_function(
            session, other, settings, model_factory, [pair[owner == "B"] for pair in pairs]
        )
    except UserError as error:
        return (), (f"No barrier between the runs: {error.reason}.",)
    if difference:
        return (), (f"No barrier between the runs: {difference}.",)
    found: list[LinearBarrier] = []
    sentences: list[str] = []
    for a, b in _spread(pairs):
        try:
            with full_precision():
                found.append(_between(session, a, b, owner))
        except UserError as error:
            sentences.append(f"No barrier at step {a.step}: {error.reason}.")
    return tuple(found), tuple(sentences)


def planned_forwards(run_a: Run, run_b: Run, settings: ProfileSettings) -> int:
    """Count the forward passes of all replayed rows that `barriers_between` takes.

    Returns:
        Forward passes; 0 where the runs have no checkpoint of one step.
    """
    steps = {point.step for point in selected(run_a, settings)}
    common = len(steps & {point.step for point in selected(run_b, settings)})
    return min(common, MOST_STEPS) * STEP_FORWARDS + MODEL_FORWARDS if common else 0


def _session(
    run_a: Run, run_b: Run, settings: ProfileSettings, model_factory: str | None
) -> tuple[Session | None, str]:
    """The module and the rows of A, or of B where A lacks one of them."""
    for owner, run in (("A", run_a), ("B", run_b)):
        session = open_session(run, settings, model_factory)
        if session is not None:
            return session, owner
    return None, ""


def _other_function(
    session: Session,
    other: Run,
    settings: ProfileSettings,
    model_factory: str | None,
    checkpoints: Sequence[Checkpoint],
) -> str:
    """Say in what the other run's model is another function of the same weights; "" where it is the same."""
    source = other.model
    if model_factory is not None:
        source = ModelSource("factory", {} if source is None else source.config, factory=model_factory)
    if source is None:
        return ""  # then its weights have to fit, and that is all that is known
    dtype = next(session.module.parameters()).dtype
    module = build_model(source, device=session.device, dtype=dtype, most_parameters=most_parameters(other))
    shapes = [
        {name: tuple(value.shape) for name, value in one.named_parameters()}
        for one in (session.module, module)
    ]
    if shapes[0] != shapes[1]:
        differing = sorted(
            name for name in set(shapes[0]) | set(shapes[1]) if shapes[0].get(name) != shapes[1].get(name)
        )
        return (
            f"the models have other parameters or shapes ({len(differing)} of them, such as {differing[0]})"
        )
    for checkpoint in reversed(checkpoints):
        weights = load(checkpoint, _HOST)
        if isinstance(weights, Loaded):
            losses: list[float] = []
            for one in (session.module, module):
                load_weights_into(one, weights.weights)
                with full_precision():
                    losses.append(_at(replace(session, module=one), checkpoint))
            if all(map(math.isfinite, losses)):
                near = abs(losses[0] - losses[1]) <= SAME_LOSS * max(1.0, abs(losses[0]))
                return (
                    ""
                    if near
                    else (
                        "the models differ in more than their weights (with the same weights their losses are "
                        f"{losses[0]:.4g} and {losses[1]:.4g})"
                    )
                )
    return ""


def _at(session: Session, checkpoint: Checkpoint) -> float:
    def work(memory: MemoryPlan) -> float:
        return Surroundings.of(session.module, session.batch.cut(memory.rows, session.device)).centre

    return halving(work, memory_now(session), checkpoint.path)[0]


def _between(session: Session, a: Checkpoint, b: Checkpoint, owner: str) -> LinearBarrier:
    loaded_a, loaded_b = load(a, _HOST), load(b, _HOST)
    for loaded in (loaded_a, loaded_b):
        if isinstance(loaded, UserError):
            raise loaded
    assert isinstance(loaded_a, Loaded) and isinstance(loaded_b, Loaded)
    weights_a, weights_b = loaded_a.weights, loaded_b.weights
    load_weights_into(session.module, weights_b)

    def work(memory: MemoryPlan) -> LinearBarrier:
        around = Surroundings.of(session.module, session.batch.cut(memory.rows, session.device))
        start = other_end(session.module, weights_a)
        losses = around.path(start)
        for label, loss in (("A", losses[0]), ("B", losses[-1])):
            if not math.isfinite(loss):
                raise UserError(f"the loss of {label} is not finite there")
        value, place = barrier_of(losses)
        blur = around.rounding
        return LinearBarrier(
            step=a.step,
            value=value,
            low=max(0.0, value - blur),
            high=value + blur,
            place=place,
            loss_a=float(losses[0]),
            loss_b=float(losses[-1]),
            certified=not has_buffers(session.module, start),
            batch=f"{session.batch.name} ({owner})",
        )

    def restore() -> None:
        load_weights_into(session.module, weights_b)

    return halving(work, memory_now(session), a.path, restore)[0]


def _spread(pairs: Sequence[tuple[Checkpoint, Checkpoint]]) -> Sequence[tuple[Checkpoint, Checkpoint]]:
    if len(pairs) <= MOST_STEPS:
        return pairs
    return [pairs[round(place * (len(pairs) - 1) / (MOST_STEPS - 1))] for place in range(MOST_STEPS)]
