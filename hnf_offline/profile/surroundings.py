"""The replayed loss in the surroundings of a module's weights, by forward passes; the module stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t
from torch import Tensor, nn

from hnf_offline.profile.along import Replay, loss_with, plain_kernels
from hnf_offline.profile.batch import MicroBatch, rows_of
from hnf_offline.profile.directions import ROUNDING
from hnf_offline.profile.effort import spend
from hnf_offline.quantities.landscape import BOX, CORNERS, PAIRS, RADIUS, RISE, STRETCHES, LargestNoise
from hnf_offline.run.model.build import load_weights_into

#: Relative noise that the search begins with, and the range that it stays in.
BEGIN, SMALLEST, LARGEST = 0.03, 1e-5, 1.0
#: Pairs of noise that the first, rough search takes, and how close to the wanted rise it gets, as a share.
FEW_PAIRS, ROUGH = 2, 0.5
#: A mean rise this close to the wanted one, as a share, is brought there by the power law that it grows with.
CLOSE = 0.1
#: Powers of the noise that rises are believed to grow with.
POWERS = 1.0, 8.0
#: Factor between two guesses while nothing tells a better one, and mean rises that are measured at most.
FACTOR, MOST = 8.0, 14
#: Mean rises that both searches take as a rule: 2 to 3 each on decoders of 600 to 60,000 parameters.
USUAL_ROUGH, USUAL = 2.5, 2.5
#: Forward passes of a checkpoint beside its gradient: the loss itself, one step uphill, the corners of a box (all but
#: the last with a gradient, which is worth three), noise, and the straight line with its other end.
LANDSCAPE_FORWARDS = 1 + 1 + 4 * CORNERS - 3 + 2 * (FEW_PAIRS * USUAL_ROUGH + PAIRS * USUAL) + STRETCHES


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A module on its rows.

    Attributes:
        replay: the module with the weights w in it.
        batches: micro-batches whose weights sum to 1.
        centre: the loss at w.
    """

    replay: Replay
    batches: Sequence[MicroBatch]
    centre: float

    @classmethod
    def of(cls, module: nn.Module, batches: Sequence[MicroBatch]) -> Surroundings:
        """Replay the loss where the module is.

        Returns:
            The surroundings.
        """
        replay = Replay(module)
        with plain_kernels():
            return cls(replay, batches, loss_with(replay, {}, batches))

    @property
    def rounding(self) -> float:
        """What rounding may add to a difference of two losses."""
        dtype = next(self.replay.parameters()).dtype
        return ROUNDING * torch.finfo(dtype).eps * abs(self.centre)

    def loss(self, parameters: Mapping[str, Tensor]) -> float:
        """Replay the loss elsewhere.

        Returns:
            The weighted loss.
        """
        with plain_kernels():
            return loss_with(self.replay, parameters, self.batches)

    def uphill(self, gradients: Mapping[str, Tensor]) -> float | None:
        """Replay the loss one step of length `RADIUS` up its gradient.

        Returns:
            The loss; None where the gradient is zero or not finite.
        """
        norm = float(torch.stack([torch.linalg.vector_norm(one) for one in gradients.values()]).norm())
        if not 0 < norm < math.inf:
            return None
        step = RADIUS / norm
        return self.loss({
            name: value.detach() + step * gradients[name]
            for name, value in self.replay.module.named_parameters()
            if name in gradients
        })

    def highest_corner(self, gradients: Mapping[str, Tensor]) -> float | None:
        """Replay the loss at corners of the box |z_i| <= BOX (|w_i| + 1), each by the gradient at the one before.

        Where the loss is convex each corner is at least as high as the one before. It ends at one that is its own best.

        Args:
            gradients: of the replayed rows, by parameter name.

        Returns:
            The highest loss, that of the weights included, infinite where one is not finite; None where no weight has a
            finite gradient that is not 0.
        """
        own = {
            name: value.detach() for name, value in self.replay.module.named_parameters() if name in gradients
        }
        signs = {name: gradients[name].sign() for name in own}
        if not all(bool(one.isfinite().all()) for one in gradients.values()):
            return None
        if not any(bool(one.any()) for one in signs.values()):
            return None
        highest = self.centre
        for tried in range(1, CORNERS + 1):
            corner = {name: value + BOX * (value.abs() + 1) * signs[name] for name, value in own.items()}
            loss = self.loss(corner)
            if not math.isfinite(loss):
                return math.inf
            highest = max(highest, loss)
            if tried == CORNERS:
                break
            # An entry without a gradient there stays where it is.
            better = {name: one.sign() for name, one in self._gradients(corner).items()}
            better = {name: torch.where(one == 0, signs[name], one) for name, one in better.items()}
            if all(torch.equal(better[name], signs[name]) for name in signs):
                break
            signs = {name: one.nan_to_num(0.0) for name, one in better.items()}
        return highest

    def _gradients(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Differentiate the loss elsewhere, by parameter name."""
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for batch in self.batches:
            with plain_kernels(), torch.enable_grad():
                loss = batch.weight * self.replay.with_parameters(leaves, batch).loss
                found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            for name, gradient in zip(leaves, found, strict=True):
                sums[name] += gradient
        spend("gradient", rows_of(self.batches))
        return sums

    def largest_noise(self, seed: int) -> LargestNoise:
        """Search the relative noise at which the mean loss has risen by `RISE`.

        Args:
            seed: of the noise, the same at every checkpoint.

        Returns:
            The noise.
        """
        return smallest_crossing(lambda size, pairs: self._rises(size, pairs, seed))

    def _rises(self, size: float, pairs: int, seed: int) -> NDArray[np.float64]:
        """Rise of the loss under noise, the mean of each pair w + n, w - n: slopes cancel in it."""
        rises: list[float] = []
        for pair in range(pairs):
            generator = torch.Generator().manual_seed((seed << 8) + pair)
            noise = {
                name: size
                * value.detach().abs()
                * torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
                for name, value in self.replay.module.named_parameters()
            }
            ends = [
                self.loss({
                    name: value.detach() + sign * noise[name]
                    for name, value in self.replay.module.named_parameters()
                })
                for sign in (1.0, -1.0)
            ]
            rises.append((ends[0] + ends[1]) / 2 - self.centre)
        return np.array(rises)

    def path(self, start: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Replay the loss on the straight line from other weights to those of the module.

        Args:
            start: parameters, and buffers that are not the module's own, by name.

        Returns:
            [STRETCHES + 1], the last one at the module's weights.
        """
        own = {name: tensor.detach() for name, tensor in _state(self.replay.module).items()}
        begin = {name: tensor.to(own[name].device) for name, tensor in start.items()}
        losses = [self.loss(begin)]
        for place in range(1, STRETCHES):
            share = place / STRETCHES
            between = {name: torch.lerp(tensor, own[name], share) for name, tensor in begin.items()}
            losses.append(self.loss(between))
        return np.array([*losses, self.centre])


def smallest_crossing(rises_at: Callable[[float, int], NDArray[np.float64]]) -> LargestNoise:
    """Find the noise at which a mean rise reaches `RISE`, coming from small noise: roughly on a few pairs, then on all.

    Args:
        rises_at: independent rises at some noise, of so many pairs, whose mean is wanted.

    Returns:
        The noise, with the 95 % band of the mean rise there (Student's t).
    """
    rough = _search(lambda size: rises_at(size, FEW_PAIRS), BEGIN, ROUGH)
    if not rough.certified:
        return rough
    found = _search(lambda size: rises_at(size, PAIRS), rough.value, CLOSE)
    return replace(found, evaluations=rough.evaluations + found.evaluations)


def _search(rises_at: Callable[[float], NDArray[np.float64]], size: float, close: float) -> LargestNoise:
    """Search from one guess on.

    Rises grow about as the square of the noise, or as the last two say, so each measurement gives the next guess; a
    rise that is not finite counts as too large.

    Returns:
        The noise; a bound, not certified, where the rise is not met.
    """
    below, above, power = 0.0, math.inf, 2.0
    last: tuple[float, float] | None = None
    for evaluation in range(1, MOST + 1):
        rises = rises_at(size)
        mean = float(rises.mean())
        usable = math.isfinite(mean) and mean > 0
        if usable and last is not None:
            seen = math.log(mean / last[1]) / math.log(size / last[0])
            power = min(max(seen, POWERS[0]), POWERS[1])
        if abs(mean - RISE) <= close * RISE:
            return _brought(size, rises, power, evaluation)
        if mean < RISE:
            below = size
        else:
            above = size
        if below >= LARGEST:
            return LargestNoise(below, below, math.inf, False, evaluation)
        if above <= SMALLEST:
            return LargestNoise(above, 0.0, above, False, evaluation)
        last = (size, mean) if usable else last
        size = _next(size, size * (RISE / mean) ** (1 / power) if usable else math.nan, below, above)
    return LargestNoise(size, below, above, False, MOST)


def _next(size: float, guess: float, below: float, above: float) -> float:
    """Choose where to look next: at the guess, if that lies well within what is known, or in the middle of it."""
    if below > 0 and above < math.inf:
        edge = (above / below) ** 0.1
        inside = below * edge <= guess <= above / edge
        return guess if inside else math.sqrt(below * above)
    upwards = below > 0
    if not math.isfinite(guess) or (guess > size) != upwards:
        guess = size * FACTOR if upwards else size / FACTOR
    guess = min(guess, size * FACTOR) if upwards else max(guess, size / FACTOR)
    return min(max(guess, SMALLEST), LARGEST)


def _brought(size: float, rises: NDArray[np.float64], power: float, evaluations: int) -> LargestNoise:
    """Bring a noise to the wanted rise by the power law that rises grow with, and the band of the mean rise with it."""
    mean = float(rises.mean())
    error = float(t.ppf(0.975, rises.size - 1)) * float(rises.std(ddof=1)) / math.sqrt(rises.size)

    def at(rise: float) -> float:
        return size * (RISE / rise) ** (1 / power) if rise > 0 else math.inf

    return LargestNoise(at(mean), at(mean + error), at(mean - error), True, evaluations)


def other_end(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of another checkpoint in the names of a module, which has its own ones again afterwards.

    Args:
        module: has the shapes of both, and the weights of one.
        weights: the other checkpoint's.

    Returns:
        Copies of all parameters, and of the floating buffers in which the two differ.

    Raises:
        InputError: where the weights do not fit.
    """
    held = {name: (tensor, tensor.detach().clone()) for name, tensor in _state(module).items()}
    try:
        load_weights_into(module, weights)
        found = {
            name: tensor.detach().clone() for name, (tensor, _) in held.items() if tensor.is_floating_point()
        }
    finally:
        with torch.no_grad():
            for tensor, own in held.values():
                tensor.copy_(own)
    parameters = {name for name, _ in module.named_parameters()}
    return {
        name: tensor
        for name, tensor in found.items()
        if name in parameters or not torch.equal(tensor, held[name][1])
    }


def has_buffers(module: nn.Module, start: Mapping[str, Tensor]) -> bool:
    """Say whether buffers, such as running statistics, are among what lies on a path.

    Returns:
        True where they are.
    """
    return bool({name for name, _ in module.named_buffers()} & set(start))


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once, as the module holds them."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
