"""Twins: the run again from slightly or wholly other conditions, to know how much of an effect is chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hnf_offline.rerun.data import StepBatches
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training
from hnf_offline.retraining import Twins

#: Relative size of a butterfly's wing: far above float32 rounding, far below anything a run would notice.
PERTURBATION = 1e-6
#: Coordinates of the weights by which the distance of two runs is followed.
SAMPLE = 65_536
#: The distance counts as saturated from this share of its largest value on: growth ends there.
SATURATED = 0.2


@dataclass(slots=True)
class Trace:
    """One retraining followed by its losses and a fixed sample of its weights.

    Attributes:
        losses: one a step, still on the device.
        weights: the sampled coordinates after each step, on the CPU; empty where they are not followed.
    """

    losses: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def loss_values(self) -> list[float]:
        """Fetch the losses.

        Returns:
            One number a step.
        """
        return torch.stack([loss.float() for loss in self.losses]).tolist() if self.losses else []


def butterfly_twins(
    begin: Start,
    recipe: Recipe,
    stop: int,
    count: int,
    policies: Callable[[], Sequence[Policy]] = tuple,
) -> Twins:
    """Retrain with weights perturbed by 1e-6 of their size, everything else the same.

    The distance d(t) to the unperturbed run grows as exp(rate * t) while it is small; the rate is the slope of a
    straight line through log d(t) up to the step where d reaches a fifth of its maximum (a finite-time local
    Lyapunov exponent, Benettin et al. 1980). The losses of the twins span the band that chance alone gives.

    Args:
        begin: where to begin.
        recipe: the reading of the run.
        stop: last step.
        count: number of twins.
        policies: makes the policies of each training; none for the run as it was.

    Returns:
        Band and rate.
    """
    reference = _follow(begin, recipe, stop, None, policies)
    losses, rates = [reference.loss_values()], []
    for seed in range(count):
        twin = _follow(begin, recipe, stop, seed, policies)
        losses.append(twin.loss_values())
        distances = [
            float((a - b).double().norm()) for a, b in zip(twin.weights, reference.weights, strict=True)
        ]
        rate = growth_rate(distances)
        if rate is not None:
            rates.append(rate)
    low, high = _band(losses)
    middle = float(np.median(rates)) if rates else None
    return Twins(
        "butterfly",
        count,
        PERTURBATION,
        tuple(range(begin.checkpoint.step + 1, stop + 1)),
        low,
        high,
        middle,
        min(rates, default=None),
        max(rates, default=None),
        _read_rate(middle, count),
    )


def statistical_twins(begin: Start, recipe: Recipe, stop: int, count: int) -> Twins:
    """Retrain on rows drawn at random from the batch file, because the run's own steps cannot be replayed.

    What all twins do, the run probably did; the band says nothing about any single step of it.

    Args:
        begin: where to begin.
        recipe: the reading of the run.
        stop: last step.
        count: number of twins, seeded 0, 1, ...

    Returns:
        The band.
    """
    losses = []
    for seed in range(count):
        batches = RandomBatches(begin.batches, begin.batch_rows, seed)
        other = replace(begin, batches=batches)
        shifted = replace(recipe, batch_offset=0)
        twin = _follow(other, shifted, stop, None, tuple, weights=False, dropout_seed=seed)
        losses.append(twin.loss_values())
        batches.close()
    low, high = _band(losses)
    return Twins(
        "statistical",
        count,
        None,
        tuple(range(begin.checkpoint.step + 1, stop + 1)),
        low,
        high,
        text=f"{count} statistical twins from checkpoint {begin.checkpoint.step} on random rows of the batch file: "
        "a band of what such a run does, not this run",
    )


class RandomBatches(StepBatches):
    """Batches of the usual size, drawn without regard to the step, the same for the same seed."""

    def __init__(self, source: StepBatches, rows: int, seed: int) -> None:
        """Draw from the same file.

        Args:
            source: the run's batches.
            rows: rows a batch; 0 for what memory allows, at most 16.
            seed: of the draws.
        """
        super().__init__(source.source, source.device, source.together)
        size = rows or min(16, source.source.rows, source.together)
        generator = torch.Generator().manual_seed(seed)
        self._size, self._generator = size, generator
        self._drawn: dict[int, tuple[int, ...]] = {}

    def has(self, step: int) -> bool:
        """Tell whether there is a batch: there always is.

        Returns:
            True.
        """
        return True

    def rows_of(self, step: int) -> tuple[int, ...]:
        """Draw the rows of a step, once.

        Returns:
            Row numbers.
        """
        if step not in self._drawn:
            numbers = torch.randint(0, self.source.rows, (self._size,), generator=self._generator)
            self._drawn[step] = tuple(int(number) for number in numbers)
        return self._drawn[step]


def growth_rate(distances: Sequence[float]) -> float | None:
    """Fit the growth of a small distance.

    Args:
        distances: d(1), d(2), ...

    Returns:
        Slope of log d a step up to saturation; None with fewer than 4 usable points.
    """
    usable = [
        (step, math.log(distance)) for step, distance in enumerate(distances, 1) if 0 < distance < math.inf
    ]
    if len(usable) < 4:
        return None
    ceiling = max(value for _, value in usable) + math.log(SATURATED)
    first_above = next((place for place, (_, value) in enumerate(usable) if value > ceiling), len(usable))
    growing = usable[:first_above] if first_above >= 4 else usable
    steps, values = np.array(growing).T
    return float(np.polyfit(steps, values, 1)[0])


def _follow(
    begin: Start,
    recipe: Recipe,
    stop: int,
    seed: int | None,
    policies: Callable[[], Sequence[Policy]],
    weights: bool = True,
    dropout_seed: int = 0,
) -> Trace:
    training = begin.training(recipe, tuple(policies()), seed=dropout_seed)
    if seed is not None:
        _perturb(training, seed)
    sample = _Sample(training) if weights else None
    trace = Trace()
    while training.step < stop:
        taken = training.advance()
        if taken.loss is not None:
            trace.losses.append(taken.loss)
        else:
            trace.losses.append(torch.tensor(math.nan))
        if sample is not None:
            trace.weights.append(sample.take(training))
    training.end()
    return trace


def _perturb(training: Training, seed: int) -> None:
    """Add noise of 1e-6 of each tensor's root mean square."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in training.parameters:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(PERTURBATION * parameter.pow(2).mean().sqrt() * noise)


class _Sample:
    """A fixed, seeded choice of weight coordinates."""

    def __init__(self, training: Training) -> None:
        total = sum(parameter.numel() for parameter in training.parameters)
        generator = torch.Generator().manual_seed(0)
        share = min(1.0, SAMPLE / total)
        self._chosen = [
            None
            if share == 1.0
            else torch.randint(
                0, parameter.numel(), (max(1, round(share * parameter.numel())),), generator=generator
            ).to(parameter.device)
            for parameter in training.parameters
        ]

    def take(self, training: Training) -> Tensor:
        """Copy the chosen coordinates to the CPU.

        Returns:
            [coordinates].
        """
        pieces = [
            parameter.detach().flatten() if chosen is None else parameter.detach().flatten()[chosen]
            for parameter, chosen in zip(training.parameters, self._chosen, strict=True)
        ]
        return torch.cat(pieces).float().cpu()


def _band(losses: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not losses:
        return (), ()
    columns = list(zip(*losses, strict=True))

    def known(column: tuple[float, ...]) -> list[float]:
        return [value for value in column if not math.isnan(value)]

    low = tuple(min(known(column), default=math.nan) for column in columns)
    # A twin that is not finite makes the band unbounded above.
    high = tuple(
        math.inf if any(math.isnan(value) for value in column) and known(column) else max(column)
        for column in columns
    )
    return low, high


def _read_rate(rate: float | None, count: int) -> str:
    if rate is None:
        return f"{count} twins with weights perturbed by {PERTURBATION:g}: too few steps for a growth rate"
    if rate > 0:
        how = f"a difference doubles every {math.log(2) / rate:.2g} steps"
    else:
        how = "a difference shrinks, so the run forgets small disturbances"
    return (
        f"{count} twins with weights perturbed by {PERTURBATION:g}: {how} (Lyapunov rate {rate:.2g} a step)"
    )
