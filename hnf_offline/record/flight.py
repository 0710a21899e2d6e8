"""The black box: keeps the last steps of a training loop in memory and writes them down when something goes wrong."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hnf_offline.errors import InputError, UsageError
from hnf_offline.record import frozen
from hnf_offline.record.ring import FullState, Memory, Ring, StepRecord, keep_batch, random_state, to_host
from hnf_offline.record.stability import StabilityEstimate
from hnf_offline.record.triggers import LossSpike, NotFinite, StabilityAbove, Trigger

#: What can go wrong while writing or measuring; the training goes on without the box then.
_TROUBLE = (OSError, RuntimeError, SafetensorError, InputError)


class TakenStep:
    """One step under way, as `FlightRecorder.step` and `begin` give it.

    Attributes:
        step: its number.
    """

    def __init__(self, box: FlightRecorder, record: StepRecord) -> None:
        self.step = record.step
        self._box = box
        self._record = record

    def batch(
        self, tokens: Tensor, labels: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> None:
        """Keep one micro-batch; call it before its forward pass.

        Args:
            tokens: [rows, length], whole numbers.
            labels: [rows, length] or [rows], as the model is given them; None where they are the tokens.
            attention_mask: [rows, length]; None where nothing is hidden.
        """
        self._record.batches.append(keep_batch(tokens, labels, attention_mask))

    def done(
        self, loss: Tensor | float | None, grad_norm: Tensor | float | None = None, **others: Tensor | float
    ) -> None:
        """Say that the step is taken: after the optimizer's and the scheduler's step.

        Device tensors are read one step later, so that nothing waits for them.

        Args:
            loss: of the whole step, before its update; None where it is not known.
            grad_norm: norm of the gradient before clipping.
            **others: further numbers for the log.
        """
        numbers = {"loss": loss, "grad_norm": grad_norm} | others
        self._box._finish(self._record, {key: value for key, value in numbers.items() if value is not None})


class FlightRecorder:
    """Keeps the last steps of a training run in memory; freezes them to disk when something goes wrong.

        box = FlightRecorder("boxes/mine", module, optimizer, model={"model_type": "gpt", ...})
        for tokens, labels in loader:
            with box.step(tokens, labels) as taken:
                ...                               # forward, backward, clip, optimizer.step(), scheduler.step()
                taken.done(loss=loss, grad_norm=norm)

    Kept: of the last `keep` steps the batches, the generator states before the forward pass, rates, loss and
    gradient norm; and weights with optimizer state every `state_every` steps as far back as those batches reach.
    That is at most `keep // state_every + 1` copies of the training state in the CPU's memory.

    A trigger lets it record `after` more steps, then `<directory>/frozen-<step>/` is written: a run directory with
    everything an exact retraining needs. The training waits while it is written. An exception inside a step
    freezes at once.

    It changes nothing: no gradient, weight or generator. It records one process; of a model whose parameters are
    spread over several it refuses to keep a part.

    Attributes:
        directory: where frozen boxes are written.
        steps_done: updates applied so far.
        frozen: the folders written.
    """

    def __init__(
        self,
        directory: Path | str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        keep: int = 128,
        state_every: int = 64,
        after: int = 16,
        steps_done: int = 0,
        triggers: Sequence[Trigger] | None = None,
        stability: StabilityEstimate | None = None,
        limit: int = 4,
        pause: int | None = None,
        log_steps: int = 20_000,
        model: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Switch the box on.

        Args:
            directory: a new or empty directory, or one that holds only frozen boxes.
            module: the model; everything the optimizer updates is in it.
            optimizer: its optimizer.
            keep: steps whose batches are kept.
            state_every: steps between full states.
            after: steps still recorded after a trigger, so that the spike itself is inside.
            steps_done: updates applied before now, of a run that is resumed.
            triggers: what freezes it; None for `LossSpike`, `NotFinite` and `StabilityAbove`.
            stability: estimates S every so many steps; None for never.
            limit: freezes by triggers at most.
            pause: steps after a freeze in which only urgent triggers (non-finite numbers) count; None for `keep`.
            log_steps: rows of the log to keep.
            model: the model's configuration, for config.json.
            training: what else a retraining has to know: `max_grad_norm`, `precision`, `seed` and so on.

        Raises:
            UsageError: if no full state from before a spike could still be in the box when it freezes.
            InputError: if the directory holds other files, or the parameters are spread over processes.
        """
        if min(keep, state_every, log_steps) < 1 or after < 0 or keep <= after + state_every:
            raise UsageError(
                f"keep={keep} steps cannot hold a full state from before a trigger with state_every={state_every} "
                f"and after={after}",
                remedy=f"keep at least {max(after, 0) + max(state_every, 1) + 1} steps",
            )
        if any(type(parameter).__name__ == "DTensor" for parameter in module.parameters()):
            raise InputError(
                "the model's parameters are spread over several processes; the recorder keeps none"
            )
        self.directory = Path(directory)
        frozen.claim(self.directory)
        self.steps_done = steps_done
        self.frozen: list[Path] = []
        self._module = module
        self._optimizer = optimizer
        self._after = after
        self._triggers: tuple[Trigger, ...] = (
            (LossSpike(), NotFinite(), StabilityAbove()) if triggers is None else tuple(triggers)
        )
        self._stability = stability
        self._left = limit
        self._pause = keep if pause is None else pause
        self._quiet_until = steps_done
        self._armed: tuple[str, int] | None = None
        self._rows: deque[dict[str, float]] = deque(maxlen=log_steps)
        self._waiting: list[StepRecord] = []
        self._open: StepRecord | None = None
        self._rate: Tensor | float | None = None
        self._crashed: Exception | None = None
        self._dropout = False
        self._first = steps_done + 1
        self._model = dict(model or {})
        self._training = dict(training or {})
        self._device = next(module.parameters()).device
        self._ring = Ring(keep, state_every, steps_done)
        self._ring.states.append(FullState.take(steps_done, module, optimizer))
        # The rate is read at the update itself: neither a scheduler before nor one after it can shift it.
        self._hook: RemovableHandle | None = optimizer.register_step_pre_hook(self._note_rate)

    @contextmanager
    def step(
        self, tokens: Tensor | None = None, labels: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Iterator[TakenStep]:
        """Record the next step, from before its forward pass to after its update.

        With gradient accumulation give no tokens here, but each micro-batch to `.batch(...)` before its forward
        pass. Draw the data before: between here and the forward pass nothing may use torch's generators.

        Args:
            tokens: [rows, length], whole numbers; None to give micro-batches later.
            labels: [rows, length] or [rows], as the model is given them; None where they are the tokens.
            attention_mask: [rows, length]; None where nothing is hidden.

        Yields:
            The step; `.done(loss=..., grad_norm=...)` has to be called on it once.

        Raises:
            UsageError: if it was left without `.done`.
        """
        taken = self.begin()
        try:
            if tokens is not None:
                taken.batch(tokens, labels, attention_mask)
            yield taken
        except Exception as error:
            self._crash(error)
            raise
        finally:
            unfinished, self._open = self._open is not None, None
        if unfinished:
            raise UsageError(
                f"step {taken.step} ended without done()", remedy="call done(loss=...) on it after the update"
            )

    def begin(self) -> TakenStep:
        """Begin the next step without a `with` block, for trainers that call back.

        Returns:
            The step.

        Raises:
            UsageError: if the one before is not done, or the box is closed.
        """
        if self._hook is None:
            raise UsageError("the recorder is closed", remedy="make a new one to go on recording")
        if self._open is not None:
            raise UsageError(f"step {self._open.step} is not done", remedy="call done(loss=...) on it first")
        # Between two steps, when the row of the last is whole, numbers that a trainer tells late included.
        self._write_if_armed(at_once=False)
        self._rate = None
        self._open = StepRecord(self.steps_done + 1, *random_state(self._device))
        return TakenStep(self, self._open)

    def add_to_last(self, **numbers: Tensor | float) -> None:
        """Add numbers to the row of the step just done, for trainers that tell them late."""
        if self._waiting:
            known = {name: self._on_its_way(value) for name, value in numbers.items()}
            self._waiting[-1].numbers = known | self._waiting[-1].numbers

    def freeze(self, why: str) -> Path:
        """Write down now what the box holds.

        Args:
            why: a reason, for config.json.

        Returns:
            The folder.
        """
        self._settle(0)
        return self._write(why, self.steps_done)

    def memory(self) -> Memory:
        """Count the bytes the box holds now.

        Returns:
            Bytes by what they are for.
        """
        return self._ring.memory()

    def close(self) -> None:
        """Switch the box off; what a trigger has announced is written, however few steps came after."""
        if self._hook is None:
            return
        self._settle(0)
        self._write_if_armed(at_once=True)
        self._hook.remove()
        self._hook = None

    def __enter__(self) -> FlightRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            self._crash(error)
        self.close()

    def _finish(self, record: StepRecord, numbers: Mapping[str, Tensor | float]) -> None:
        if record is not self._open:
            raise UsageError(f"step {record.step} was done already", remedy="call done() once a step")
        if not record.batches:
            raise UsageError(
                f"step {record.step} has no batch",
                remedy="give step() the tokens, or batch() each micro-batch",
            )
        self._open = None
        self.steps_done = record.step
        record.numbers = {name: self._on_its_way(value) for name, value in numbers.items()}
        record.numbers["learning_rate"] = self._on_its_way(
            self._optimizer.param_groups[0]["lr"] if self._rate is None else self._rate
        )
        if self._rate is None:
            record.numbers["skipped"] = 1.0  # a gradient scaler took no update
        self._ring.add(record)
        if self._ring.due(record.step) or record.step == self._first:
            self._dropout = self._module.training and self._drew_numbers(record)
        if self._ring.due(record.step):
            self._ring.states.append(FullState.take(record.step, self._module, self._optimizer))
        self._estimate(record)
        if self._device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            record.arrived = event.synchronize
        self._waiting.append(record)
        self._settle(1)

    def _settle(self, leave: int) -> None:
        # All but the last steps' numbers have come from the device by now.
        while len(self._waiting) > leave:
            row = self._waiting.pop(0).settle()
            self._rows.append(row)
            step = int(row["step"])
            for trigger in self._triggers:
                why = trigger.see(row)
                awake = step > self._quiet_until or trigger.urgent
                if why is not None and awake and self._left > 0:
                    self._arm(why, step)

    def _arm(self, why: str, step: int) -> None:
        if self._armed is None:
            self._armed = (f"step {step}: {why}", step)
        else:
            before, first = self._armed
            self._armed = (f"{before}; step {step}: {why}", first)

    def _write_if_armed(self, *, at_once: bool) -> None:
        if self._armed is None or not (at_once or self.steps_done >= self._armed[1] + self._after):
            return
        self._settle(0)
        why, triggered = self._armed
        self._armed = None
        self._left -= 1
        self._quiet_until = self.steps_done + self._pause
        try:
            self._write(why, triggered)
        except _TROUBLE as error:
            warnings.warn(f"the recorder could not write its box ({error}); training goes on", stacklevel=4)

    def _write(self, why: str, triggered: int) -> Path:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        folder = frozen.write(
            self.directory,
            self._ring,
            self._rows,
            why=why,
            at=self.steps_done,
            model=self._model,
            optimizer={},
            training={"dropout": self._dropout, **self._training},
            about={"triggered": triggered, "time": datetime.now(UTC).isoformat(timespec="seconds")},
        )
        self.frozen.append(folder)
        return folder

    def _crash(self, error: Exception) -> None:
        # The batch of the step that failed is kept too: it may be why. Once an error, however far it travels.
        if error is self._crashed:
            return
        self._crashed = error
        if self._open is not None and self._open.batches:
            self._ring.add(self._open)
        try:
            self._settle(0)
            self._armed = None
            self._write(f"{type(error).__name__}: {error}", self.steps_done + 1)
        except _TROUBLE as trouble:
            warnings.warn(f"the recorder could not write its box ({trouble})", stacklevel=4)

    def _estimate(self, record: StepRecord) -> None:
        if self._stability is None or record.step % self._stability.every:
            return
        try:
            ratio = self._stability.measure(self._module, self._optimizer, record.batches[0])
            record.numbers["stability_ratio"] = ratio
        except _TROUBLE as error:
            self._stability = None
            warnings.warn(f"the stability ratio is not estimated any more ({error})", stacklevel=5)

    def _drew_numbers(self, record: StepRecord) -> bool:
        before = record.cpu_state if record.cuda_state is None else record.cuda_state
        cpu, cuda = random_state(self._device)
        return not torch.equal(before, cpu if cuda is None else cuda)

    def _note_rate(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._rate = self._on_its_way(optimizer.param_groups[0]["lr"])

    @staticmethod
    def _on_its_way(value: Tensor | float) -> Tensor | float:
        return to_host(value) if isinstance(value, Tensor) else value
