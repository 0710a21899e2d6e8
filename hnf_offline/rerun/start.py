"""The place a replay starts from: a checkpoint with its optimizer state, put into a module again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from hnf_offline.errors import InputError, UsageError
from hnf_offline.profile.session import Session
from hnf_offline.rerun.data import Rates, StepBatches
from hnf_offline.rerun.optimizer import kinds_of, rebuild_optimizer
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.training import Stability, Training
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.optimizer import RawOptimizer
from hnf_offline.run.random_states import load_random_state
from hnf_offline.run.records import Checkpoint, Run


@dataclass(frozen=True)
class Start:
    """A checkpoint to retrain from.

    Attributes:
        run: the run.
        session: module, device, layers and the rows that S is measured on.
        checkpoint: where it begins.
        raw: its optimizer state; of another checkpoint where `borrowed`.
        borrowed: whether the checkpoint has no state of its own, so that only hyper-parameters are known.
        kinds: the optimizers it can be, the likeliest first.
        batches: the batch of every step.
        rates: the learning rate of every step.
    """

    run: Run
    session: Session
    checkpoint: Checkpoint
    raw: RawOptimizer
    borrowed: bool
    kinds: tuple[str, ...]
    batches: StepBatches
    rates: Rates

    def training(
        self,
        recipe: Recipe,
        policies: Sequence[Policy] = (),
        *,
        measure_stability: Callable[[Training], Stability | None] | None = None,
        seed: int = 0,
    ) -> Training:
        """Put the checkpoint back into the module and begin.

        Args:
            recipe: the reading of the run.
            policies: what is done otherwise.
            measure_stability: measures S, for policies that ask.
            seed: of dropout, where the run's random states are not known: two retrainings drop the same.

        Returns:
            A training at the checkpoint's step.
        """
        if recipe.dropout:
            torch.manual_seed(seed)
        load_weights_into(self.session.module, load_weights(self.checkpoint))
        optimizer = rebuild_optimizer(
            self.session.module,
            self.raw,
            recipe.kind,
            self.run.optimizer,
            self.checkpoint.path,
            fresh=recipe.fresh_state,
        )
        return Training(
            self.session.module,
            optimizer,
            recipe,
            self.batches,
            self.rates,
            self.checkpoint.step,
            policies=policies,
            random_state_of=self.random_state,
            measure_stability=measure_stability,
            log=self.run.log,
        )

    def on_the_way(self, stop: int) -> tuple[Checkpoint, ...]:
        """List the later checkpoints that could be started from as well.

        Returns:
            Those with optimizer state after this one and before `stop`.
        """
        first = self.checkpoint.step
        return tuple(
            point for point in self.run.checkpoints if first < point.step < stop and point.optimizer_files
        )

    def moved_to(self, checkpoint: Checkpoint) -> Start:
        """Start at another checkpoint of the run.

        Returns:
            A start with that checkpoint's state.

        Raises:
            InputError: if it has none.
        """
        raw = load_optimizer(checkpoint)
        if raw is None:
            raise InputError("has no optimizer state", path=checkpoint.path)
        return replace(self, checkpoint=checkpoint, raw=raw, borrowed=False)

    def random_state(self, step: int) -> Mapping[str, Tensor] | None:
        """Give the recorded generator states just before the forward pass of a step.

        Returns:
            Device kind -> state; None where they were not recorded.
        """
        states = self.run.random_states
        return None if states is None else load_random_state(states, step)

    @property
    def batch_rows(self) -> int:
        """Rows of the first step's batch; 0 where it is not known."""
        return len(self.batches.source.rows_of_step(self.checkpoint.step + 1))

    @property
    def log_gap(self) -> int:
        """Usual number of steps between two logged losses; 1 where there is no log."""
        if self.run.log is None:
            return 1
        steps = self.run.log.rows.select("step", "loss").drop_nulls()["step"].to_list()
        gaps = sorted(after - before for before, after in pairwise(steps))
        return gaps[len(gaps) // 2] if gaps else 1


def open_start(run: Run, session: Session, step: int) -> Start:
    """Find everything that retraining from a checkpoint needs.

    Args:
        run: the run.
        session: an open session on it.
        step: step of the checkpoint.

    Returns:
        The start.

    Raises:
        UsageError: if there is no checkpoint of that step.
        InputError: if no checkpoint has an optimizer state, or its optimizer cannot be rebuilt.
    """
    by_step = {checkpoint.step: checkpoint for checkpoint in run.checkpoints}
    if step not in by_step:
        near = sorted(by_step, key=lambda other: abs(other - step))[:3]
        raise UsageError(
            f"there is no checkpoint of step {step}",
            path=run.path,
            remedy=f"the nearest are {', '.join(map(str, sorted(near)))}",
        )
    checkpoint = by_step[step]
    raw = load_optimizer(checkpoint)
    borrowed = raw is None
    if raw is None and run.optimizer.kind == "sgd" and not run.optimizer.momentum:
        names = [name for name, _ in session.module.named_parameters()]
        rate = run.optimizer.learning_rate or 0.0
        raw, borrowed = RawOptimizer("SGD", ({"lr": rate, "params": names},), {}, names=True), False
    if raw is None:
        with_state = sorted(
            (other for other in run.checkpoints if other.optimizer_files),
            key=lambda other: abs(other.step - step),
        )
        raw = load_optimizer(with_state[0]) if with_state else None
    if raw is None:
        raise InputError(
            "no checkpoint has an optimizer state, so the updates cannot be computed again",
            path=checkpoint.path,
            remedy="save it with every checkpoint (hnf_offline.record does), or name plain SGD in run.toml",
        )
    kinds = rebuildable(run, checkpoint, raw)
    saved = run.optimizer.learning_rate
    if saved is None:
        saved = float(raw.groups[0].get("lr", 0.0)) if raw.groups else 0.0
    batches = StepBatches(session.source, session.device, session.memory.rows)
    return Start(run, session, checkpoint, raw, borrowed, kinds, batches, Rates(run.log, saved))


def rebuildable(run: Run, checkpoint: Checkpoint, raw: RawOptimizer) -> tuple[str, ...]:
    """Name the optimizers that a checkpoint's state can belong to, the likeliest first.

    Args:
        run: the run, for what run.toml says of its optimizer.
        checkpoint: the checkpoint, for the message.
        raw: its optimizer state.

    Returns:
        Kinds among "adam", "adamw", "sgd".

    Raises:
        InputError: if it is another optimizer's.
    """
    kinds = kinds_of(raw, run.optimizer)
    if not kinds:
        raise InputError(
            "holds the state of an optimizer that cannot be rebuilt",
            path=checkpoint.path,
            remedy="Adam, AdamW and SGD can; name it with [optimizer] kind in run.toml if it is one of them",
        )
    return kinds
