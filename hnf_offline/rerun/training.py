"""The training loop of a replay: one optimizer step after another, as the recipe says and policies change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.errors import InputError
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.rerun.data import Rates, StepBatches
from hnf_offline.rerun.optimizer import RATIO
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.records import Log

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Taken:
    """One step.

    Attributes:
        step: the step.
        loss: the loss before the update, without penalties: a scalar on the device; None where no batch was taken.
        grad_norm: norm of the gradient before any clipping, a scalar on the device; None without a batch.
        learning_rate: the rate of the first parameter group; None without a batch.
    """

    step: int
    loss: Tensor | None
    grad_norm: Tensor | None
    learning_rate: float | None


@dataclass(frozen=True, slots=True)
class Stability:
    """What a policy may know of the curvature at the present weights.

    Attributes:
        ratio: S of the whole model at the rate of the next update.
        learning_rate: that rate.
        mass: layer path -> its share of the least stable direction.
        layers: measures S of every layer's own block, at the weights of that moment: layer path -> S; None where
            nobody can. Dear: call it only when the layers are needed.
        low: lower end of the ratio's error bar, None where it is exact.
        high: upper end.
        certified: False where the eigenvalue has not settled.
    """

    ratio: float
    learning_rate: float
    mass: Mapping[str, float]
    layers: Callable[[], Mapping[str, float]] | None = None
    low: float | None = None
    high: float | None = None
    certified: bool = True


class Training:
    """A replay under way: module, optimizer and what each step needs.

    Attributes:
        module: the model, its weights those after `step` updates.
        optimizer: torch's own, rebuilt.
        recipe: how the run is taken to have been trained.
        batches: the batch of every step.
        rates: the learning rate of every step.
        policies: what is done otherwise, in order; empty for the run as it was.
        step: the last step taken; at first the checkpoint's.
        precision: "float32", "bfloat16" or "float16"; a policy may change it.
        scaler: gradient scaler, None for none; a policy may set one.
        clip: bound on the gradient norm; a policy may change it.
        log: the run's log, None where there is none: what a policy may know of the steps before.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        batches: StepBatches,
        rates: Rates,
        step: int,
        *,
        policies: Sequence[Policy] = (),
        random_state_of: Callable[[int], Mapping[str, Tensor] | None] | None = None,
        measure_stability: Callable[[Training], Stability | None] | None = None,
        log: Log | None = None,
    ) -> None:
        """Begin a replay at a checkpoint.

        Args:
            module: with the checkpoint's weights in it.
            optimizer: rebuilt from the checkpoint's state.
            recipe: how the run is taken to have been trained.
            batches: the batch of every step.
            rates: the learning rate of every step.
            step: the checkpoint's step.
            policies: what is done otherwise.
            random_state_of: the recorded generator states just before the forward pass of a step.
            measure_stability: measures S at the present weights, for policies that ask.
            log: the run's log.
        """
        self.module = module
        self.optimizer = optimizer
        self.recipe = recipe
        self.batches = batches
        self.rates = rates
        self.policies = tuple(policies)
        self.step = step
        self.precision = recipe.precision
        self.scaler: torch.amp.GradScaler | None = None
        self.clip = recipe.clip
        self.log = log
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        self.names = {parameter: name for name, parameter in module.named_parameters()}
        self._random_state_of = random_state_of
        self._measure = measure_stability
        self._measured: tuple[int, Stability | None] | None = None
        module.train(recipe.dropout)
        for policy in self.policies:
            policy.begin(self)

    def advance(self) -> Taken:
        """Take the next step.

        Returns:
            What it was; its tensors are still on the device, so that nothing waits for it.

        Raises:
            InputError: if the file of batches does not hold that step's.
        """
        step = self.step + 1
        for policy in self.policies:
            policy.before(self, step)
        source: int | None = step
        for policy in self.policies:
            source = None if source is None else policy.batch_of(self, source)
        micro: tuple[MicroBatch, ...] = ()
        if source is not None:
            micro = self.batches.of(source + self.recipe.batch_offset, self.recipe.accumulation)
            if not micro:
                raise InputError(
                    f"does not hold the batch of step {source + self.recipe.batch_offset}",
                    path=self.batches.source.path,
                    remedy="end the retraining before that step",
                )
        self._restore_random_state(step)
        taken = self._update(step, micro) if micro else Taken(step, None, None, None)
        self.step = step
        for policy in self.policies:
            policy.updated(self, step)
        return taken

    def learning_rate_of(self, step: int) -> float:
        """Give the rate of a step, as the run had it and policies change it.

        Returns:
            The rate of the first parameter group.
        """
        rate = self.rates.of(step, source=self.recipe.rates, offset=self.recipe.rate_offset)
        for policy in self.policies:
            rate = policy.learning_rate(self, step, rate)
        return rate

    def set_learning_rate(self, step: int) -> float:
        """Put the rate of a step into all parameter groups, each at its ratio to the first.

        Returns:
            The rate of the first group.
        """
        rate = self.learning_rate_of(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(RATIO, 1.0)
        return rate

    def scale_parameters(self, scales: Mapping[str, float]) -> None:
        """Give some parameters a learning rate of their own, as a multiple of their group's.

        A second call starts again from the run's own ratios.

        Args:
            scales: parameter name -> factor; parameters without an entry keep theirs.
        """
        split: list[dict[str, Any]] = []
        for group in self.optimizer.param_groups:
            own = group.get("own_ratio", group.get(RATIO, 1.0))
            for parameter in group["params"]:
                factor = scales.get(self.names[parameter], 1.0)
                split.append({**group, "params": [parameter], "own_ratio": own, RATIO: own * factor})
        self.optimizer.param_groups[:] = split
        self.forget_stability()

    @property
    def measures_stability(self) -> bool:
        """Whether S can be asked for at all."""
        return self._measure is not None

    def forget_stability(self) -> None:
        """Let the next question measure S again, because something it depends on was changed within a step."""
        self._measured = None

    def stability(self) -> Stability | None:
        """Measure S at the present weights with the rate of the next step, once a step.

        Returns:
            S and every layer's share; None where it cannot be measured.
        """
        if self._measure is None:
            return None
        if self._measured is None or self._measured[0] != self.step:
            self._measured = (self.step, self._measure(self))
        return self._measured[1]

    def end(self) -> None:
        """Let policies undo what they did to the module."""
        for policy in self.policies:
            policy.end(self)
        self.module.eval()

    def _update(self, step: int, micro: Sequence[MicroBatch]) -> Taken:
        rate = self.set_learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for batch in micro:
            with self._kernel(), self._autocast():
                with ExitStack() as watched:
                    for policy in self.policies:
                        watched.enter_context(policy.forward(self, batch))
                    outcome = evaluate(self.module, batch.tokens, batch.labels)
                own = outcome.loss * self.recipe.loss_scale
                target = own
                for policy in self.policies:
                    extra = policy.penalty(self, step, outcome, batch)
                    target = target if extra is None else target + extra
            losses.append(own.detach() * batch.weight)
            weighted = target * batch.weight if len(micro) > 1 else target
            (weighted if self.scaler is None else self.scaler.scale(weighted)).backward()  # type: ignore[no-untyped-call]
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self.gradient_norm()
        for policy in self.policies:
            policy.gradients(self, step, norm)
        if self.clip is not None:
            bounded = norm if not self.policies else self.gradient_norm()
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, bounded)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return Taken(step, torch.stack(losses).sum() if len(losses) > 1 else losses[0], norm, rate)

    def gradient_norm(self) -> Tensor:
        """Give the total norm of the present gradients.

        Returns:
            A scalar on the device.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _kernel(self) -> AbstractContextManager[Any]:
        twice = any(policy.second_derivatives for policy in self.policies)
        return sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _DTYPES[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _restore_random_state(self, step: int) -> None:
        if self._random_state_of is None or not self.recipe.dropout:
            return
        states = self._random_state_of(step)
        if states is None:
            return
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for a measurement, and back as it was; the generators stay as they were.

    Yields:
        Nothing.
    """
    training = module.training
    states = torch.get_rng_state()
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        torch.set_rng_state(states)
