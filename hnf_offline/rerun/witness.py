"""Compare a replay with what is left of the run: logged losses, gradient norms, and later checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.series import Series
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Taken, Training
from hnf_offline.retraining import WeightCheck
from hnf_offline.run.formats import load_weights
from hnf_offline.run.model.build import in_names_of
from hnf_offline.run.records import Checkpoint

#: A loss is the logged one within this relative difference (or within the last digit that was logged).
EXACT_LOSS, CLOSE_LOSS = 1e-4, 2e-2
#: Below it the logits' own rounding in float32 is more than 1e-4 of the loss; differences count relative to this.
SMALL_LOSS = 1e-2
#: Weights are the checkpoint's within this share of the way they travelled since the start.
EXACT_WEIGHTS, CLOSE_WEIGHTS = 1e-3, 0.1


@dataclass(slots=True)
class Witness:
    """Everything a replay can be held against; fed step by step.

    Attributes:
        start: where the replay began.
        recipe: how the log is read.
        last: last step that matters.
        anchored: whether every checkpoint on the way is taken up anew.
        series: the numbers of the steps taken.
        differences: step -> relative difference of the loss to the log's.
        norm_differences: the same for the gradient norm.
        weights: comparisons with later checkpoints.
        weights_tell: whether one of them could have shown another run: weights that are all NaN cannot.
    """

    start: Start
    recipe: Recipe
    last: int
    anchored: bool = False
    series: Series = field(default_factory=Series)
    differences: dict[int, float] = field(default_factory=dict)
    norm_differences: dict[int, float] = field(default_factory=dict)
    weights: list[WeightCheck] = field(default_factory=list)
    weights_tell: bool = False
    _checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    _logged: dict[str, dict[int, float]] = field(default_factory=dict)
    _digit: float = 0.0
    _origin: Checkpoint | None = None

    def __post_init__(self) -> None:
        log = self.start.run.log
        first = self.start.checkpoint.step
        for column in ("loss", "grad_norm"):
            rows = [] if log is None else log.rows.select("step", column).drop_nulls().rows()
            inside = {int(step): float(value) for step, value in rows if first - 2 <= step <= self.last + 2}
            self._logged[column] = inside
        self._checkpoints = {point.step: point for point in self.start.run.checkpoints}
        self._digit = 0.0 if log is None else _last_digit(log.rows["loss"].drop_nulls().to_list())

    def see(self, taken: Taken, training: Training) -> None:
        """Note a step. Its numbers are compared later, so that the device need not stop; weights are now."""
        self.series.add(taken)
        if taken.step in self._checkpoints and taken.step <= self.last:
            self._weigh(training, self._checkpoints[taken.step])

    def settle(self) -> None:
        """Compare all steps seen so far with the log."""
        self.series.settle()
        for place, step in enumerate(self.series.steps):
            at = step + self.recipe.loss_offset
            loss, norm = self._mean_loss(place), self.series.grad_norms[place]
            if at in self._logged["loss"] and loss is not None:
                self.differences[step] = _relative(loss, self._logged["loss"][at], self._digit)
            if at in self._logged["grad_norm"] and norm is not None:
                self.norm_differences[step] = _relative(norm, self._logged["grad_norm"][at], 0.0)

    def _mean_loss(self, place: int) -> float | None:
        span = self.recipe.loss_span
        recent = [
            loss for loss in self.series.losses[max(0, place + 1 - span) : place + 1] if loss is not None
        ]
        return sum(recent) / span if len(recent) == span else None

    def _weigh(self, training: Training, checkpoint: Checkpoint) -> None:
        own = training.module.state_dict()
        names = {name for name, _ in training.module.named_parameters()}
        then = in_names_of(training.module, load_weights(checkpoint))
        before = in_names_of(training.module, load_weights(self._origin or self.start.checkpoint))
        difference, travelled, finite = _Distance(), _Distance(), True
        for name in sorted(names & then.keys()):
            there = then[name].to(own[name])
            same = (own[name] == there) | (own[name].isnan() & there.isnan())
            difference.add(torch.where(same, 0.0, own[name] - there))
            finite = finite and bool(there.isfinite().all())
            if name in before:
                # A NaN has gone no way that a difference elsewhere could be held against.
                moved = there - before[name].to(own[name])
                travelled.add(torch.where(moved.isfinite(), moved, 0.0))
        share = 0.0 if difference.square == 0 else difference.length / max(travelled.length, 1e-300)
        if self.anchored and checkpoint.optimizer_files:
            self._origin = checkpoint
        self.weights_tell = self.weights_tell or finite or travelled.square > 0
        self.weights.append(WeightCheck(checkpoint.step, difference.largest, travelled.largest, share))

    @property
    def loss_difference(self) -> float | None:
        """Largest relative difference of a loss."""
        return max(self.differences.values(), default=None, key=_order)

    @property
    def first_mismatch(self) -> int | None:
        """First step whose loss is not the logged one."""
        return next((step for step, one in self.differences.items() if not one <= EXACT_LOSS), None)

    @property
    def first_weight_mismatch(self) -> int | None:
        """First checkpoint whose weights are not the replayed ones."""
        return next((one.step for one in self.weights if not one.share <= EXACT_WEIGHTS), None)

    @property
    def exact(self) -> bool:
        """Whether everything that could be compared is equal, and something could."""
        return (
            bool(self.differences or self.weights)
            and self.first_mismatch is None
            and self.first_weight_mismatch is None
        )

    @property
    def close(self) -> bool:
        """Whether everything that could be compared is near."""
        return (
            bool(self.differences or self.weights)
            and all(one <= CLOSE_LOSS for one in self.differences.values())
            and all(one.share <= CLOSE_WEIGHTS for one in self.weights)
        )

    def score(self) -> float:
        """Grade a reading of the run against others over the same steps: mean difference, 0 for equal.

        Returns:
            The mean over all comparisons, each at most 1; 1 where nothing could be compared.
        """
        compared = [*self.differences.values(), *(one.share for one in self.weights)]
        return sum(min(1.0, _order(one)) for one in compared) / len(compared) if compared else 1.0


@dataclass(slots=True)
class _Distance:
    """Length and largest component of a difference, gathered tensor by tensor.

    What is NaN on one side only is a difference without bound.
    """

    square: float = 0.0
    largest: float = 0.0

    def add(self, difference: torch.Tensor) -> None:
        """Count one tensor in."""
        if difference.numel():
            square, largest = float(difference.double().pow(2).sum()), float(difference.abs().max())
            self.square += math.inf if math.isnan(square) else square
            self.largest = max(self.largest, math.inf if math.isnan(largest) else largest)

    @property
    def length(self) -> float:
        """Euclidean length of everything counted in."""
        return math.sqrt(self.square)


def _relative(value: float, logged: float, digit: float) -> float:
    if math.isnan(value) or math.isnan(logged):
        return 0.0 if math.isnan(value) and math.isnan(logged) else math.inf
    if value == logged:
        return 0.0
    if math.isinf(value) or math.isinf(logged):
        return math.inf
    difference = abs(value - logged)
    return 0.0 if difference <= digit else difference / max(abs(logged), SMALL_LOSS)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _last_digit(values: list[float]) -> float:
    """Half a unit of the last decimal that the log keeps; 0 where it keeps more than six.

    Returns:
        The rounding error of a logged value.
    """
    finite = [value for value in values if math.isfinite(value)]
    for decimals in range(1, 7):
        if finite and all(abs(round(value, decimals) - value) < 1e-12 for value in finite):
            return 0.5000001 * 10.0**-decimals
    return 0.0
