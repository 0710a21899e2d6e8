"""What the gradient tier shows beside the gradient itself: noise between sequences, depth, and a check on request."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hnf_offline.profile.batch import MicroBatch, rows_of
from hnf_offline.profile.effort import spend
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.update import full_update
from hnf_offline.quantities.gradient_noise import GradientNoise
from hnf_offline.quantities.registry import computable
from hnf_offline.run.model.layers import Layer, blocks_of
from hnf_offline.run.model.loss import count_predicted, evaluate
from hnf_offline.run.model.placing import placed
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.table import Row

#: Groups whose gradients are compared, and the share of all rows that they have together: half a gradient more.
GROUPS, GROUPED_SHARE = 4, 0.5
#: Fewer rows leave no noise to see.
FEWEST_ROWS = 4
#: Entries of two gradients that are compared at once: what a processor's cache holds.
_STRETCH = 1 << 18
_HALF = (torch.bfloat16, torch.float16)
#: Random directions of a gradient check, and the step along them as a share of the weights' length.
DIRECTIONS, CHECK_STEP = 8, 1e-6


def moments_of(state: OptimizerState | None, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the saved first moments, or momentum buffers.

    Args:
        state: the optimizer's state.
        like: tensors by parameter name, of the shape and on the device that is wanted.

    Returns:
        By parameter name; without parameters that have none.
    """
    found: dict[str, Tensor] = {}
    for name, own in ({} if state is None or not state.saved else state.parameters).items():
        moment = own.exp_avg if own.exp_avg is not None else own.momentum_buffer
        if moment is not None and name in like:
            found[name] = placed(moment, like[name].device).to(like[name]).reshape(like[name].shape)
    return found


def stored_half(
    state: OptimizerState | None, layer: Layer, parameters: Mapping[str, Tensor]
) -> torch.dtype | None:
    """Find the half precision in which a layer is trained: that of its saved moments, if its weights fit into it.

    Weights alone may be rounded copies of what is trained; moments of half precision are made for such parameters.

    Args:
        state: the optimizer's state.
        layer: the layer.
        parameters: by name.

    Returns:
        bfloat16 or float16; None where it is not trained in one.
    """
    if state is None or not state.saved:
        return None
    found: set[torch.dtype] = set()
    for part in layer.parts:
        own = state.parameters.get(part.parameter)
        moment = None if own is None else (own.exp_avg if own.exp_avg is not None else own.momentum_buffer)
        if moment is None or moment.dtype not in _HALF:
            return None
        weight = parameters[part.parameter].detach()
        if not torch.equal(weight.to(moment.dtype).to(weight.dtype), weight):
            return None
        found.add(moment.dtype)
    return found.pop() if len(found) == 1 else None


def next_update_of(
    state: OptimizerState | None,
    layer: Layer,
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
) -> Tensor | None:
    """Give the optimizer's next update of one layer in full.

    Args:
        state: the optimizer's state.
        layer: the layer.
        gradients: by parameter name.
        parameters: by name.

    Returns:
        [size]; None where the optimizer's state does not say it.
    """
    if state is None or not state.saved:
        return None
    names = {part.parameter for part in layer.parts}
    own = {name: gradients[name] for name in names}
    update = full_update(state, own, parameters)
    return (
        None if update is None else torch.cat([part.gather(update[part.parameter]) for part in layer.parts])
    )


def depth_rows(subject: Subject, norms: Mapping[str, float]) -> list[Row]:
    """Fit the gradient norm of a block against its number.

    Args:
        subject: module and layers.
        norms: gradient norm by layer path.

    Returns:
        One row of the whole model; none for fewer than three blocks, or where one has no gradient.
    """
    squares = [
        sum(norm**2 for path, norm in norms.items() if path == block or path.startswith(f"{block}."))
        for block in blocks_of(subject.module)
    ]
    if len(squares) < 3 or not all(0 < one < float("inf") for one in squares):
        return []
    return _interval_rows(subject, {"block_gradient_norms": np.sqrt(np.array(squares))})


def noise_rows(subject: Subject, noise: GradientNoise | None) -> list[Row]:
    """Tell the noise between sequences.

    Args:
        subject: what was measured.
        noise: gradients of groups of rows, None where there are none.

    Returns:
        Rows of the whole model.
    """
    if noise is None:
        return []
    return _interval_rows(subject, {"noise": noise})


def gradients_and_noise(
    module: nn.Module, batches: Sequence[MicroBatch], together: int
) -> tuple[dict[str, Tensor], GradientNoise | None]:
    """Differentiate the mean loss of all rows, in the groups whose gradients tell the noise: it costs nothing more.

    Args:
        module: in eval mode.
        batches: all rows.
        together: rows that may go through the model at once.

    Returns:
        The gradient by parameter name; and the comparison of the groups with it, as `gradient_noise` makes it.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    groups = _Groups.of(batches)
    parts = [*groups.batches, groups.rest] if groups.rest is not None else groups.batches
    vectors: list[Tensor] = []
    whole: Tensor | None = None
    for part in parts:
        vector = _gradient(module, parameters, part.split(together))
        share = count_predicted(part.tokens, part.labels) / groups.predicted
        whole = share * vector if whole is None else whole.add_(vector, alpha=share)
        if part is not groups.rest:
            vectors.append(vector)
    spend("gradient", rows_of(batches))
    assert whole is not None
    noise = groups.compared([_differences(vector, whole) for vector in vectors], whole)
    pieces = whole.split_with_sizes([value.numel() for value in parameters.values()])
    gradients = {
        name: piece.reshape(value.shape).to(value.dtype)
        for (name, value), piece in zip(parameters.items(), pieces, strict=True)
    }
    return gradients, noise


def gradient_noise(
    module: nn.Module, batches: Sequence[MicroBatch], gradients: Mapping[str, Tensor]
) -> GradientNoise | None:
    """Compare the gradients of groups of rows with that of all rows.

    The groups are cut from the first half of all rows, whatever micro-batches these come in; the size of those bounds
    how many rows go through the model at once.

    Args:
        module: in eval mode.
        batches: all rows.
        gradients: of all rows, by parameter name.

    Returns:
        The comparison; None for fewer than four rows, or where something is not finite.
    """
    groups = _Groups.of(batches)
    if not groups.batches:
        return None
    together = max(len(batch.tokens) for batch in batches)
    parameters = {name: value for name, value in module.named_parameters() if name in gradients}
    whole = torch.cat([gradients[name].reshape(-1) for name in parameters])
    told: list[Tensor] = []
    for group in groups.batches:
        told.append(_differences(_gradient(module, parameters, group.split(together)), whole))
        spend("gradient", len(group.tokens))
    return groups.compared(told, whole)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of rows cut from the first half of all rows, and what is left.

    Attributes:
        batches: the groups that predict something; none for fewer than four rows.
        sizes: how many sequences of average length each has: those that predict more weigh more in every mean.
        rest: all other rows, None where they predict nothing.
        rows: all rows.
        predicted: positions that all rows predict.
    """

    batches: list[MicroBatch]
    sizes: list[float]
    rest: MicroBatch | None
    rows: int
    predicted: int

    @classmethod
    def of(cls, batches: Sequence[MicroBatch]) -> _Groups:
        total = rows_of(batches)
        tokens = torch.cat([batch.tokens for batch in batches])
        labels = [batch.labels for batch in batches if batch.labels is not None]
        targets = torch.cat(labels) if len(labels) == len(batches) else None
        predicted = count_predicted(tokens, targets)
        size = max(1, int(total * GROUPED_SHARE) // GROUPS)
        number = min(GROUPS, int(total * GROUPED_SHARE) // size) if total >= FEWEST_ROWS else 0

        def cut(rows: slice) -> MicroBatch:
            return MicroBatch(tokens[rows], None if targets is None else targets[rows], 1.0)

        groups = [cut(slice(at * size, (at + 1) * size)) for at in range(number)]
        counts = [count_predicted(group.tokens, group.labels) for group in groups]
        rest = cut(slice(number * size, None))
        return cls(
            [group for group, count in zip(groups, counts, strict=True) if count],
            [count / predicted * total for count in counts if count],
            rest if count_predicted(rest.tokens, rest.labels) else None,
            total,
            predicted,
        )

    def compared(self, told: Sequence[Tensor], whole: Tensor) -> GradientNoise | None:
        """Put together what `_differences` found of each group; None where it says nothing."""
        if len(told) < 2:
            return None
        norm = whole.square().sum().double()
        values = torch.cat([torch.stack(list(told)).flatten(), norm.reshape(1)]).cpu().numpy()
        if not np.isfinite(values).all():
            return None
        pairs = values[:-1].reshape(-1, 2)
        return GradientNoise(
            np.array(self.sizes),
            float(self.rows),
            pairs[:, 0],
            pairs[:, 1],
            float(values[-1]),
            self.predicted / self.rows,
        )


def _differences(vector: Tensor, whole: Tensor) -> Tensor:
    """Squared distance of a group's gradient from that of all rows, and its projection on it."""
    told = torch.zeros(2, dtype=torch.float64, device=whole.device)
    for first in range(0, whole.numel(), _STRETCH):
        all_rows = whole[first : first + _STRETCH]
        difference = vector[first : first + _STRETCH] - all_rows
        along = (difference * all_rows).sum()
        told += torch.stack([difference.square().sum(), along])
    return told


def _gradient(module: nn.Module, parameters: Mapping[str, Tensor], batches: Sequence[MicroBatch]) -> Tensor:
    """Gradient of the mean loss of some micro-batches whose weights sum to 1, one parameter after another."""
    found = mean_gradients(module, parameters, batches)
    return torch.cat([found.pop(name).reshape(-1) for name in parameters])


def mean_gradients(
    module: nn.Module, parameters: Mapping[str, Tensor], batches: Sequence[MicroBatch]
) -> dict[str, Tensor]:
    """Differentiate the mean loss of some micro-batches.

    Args:
        module: in eval mode.
        parameters: its parameters by name.
        batches: micro-batches whose weights sum to 1.

    Returns:
        The gradient by parameter name.
    """
    from hnf_offline.profile.suffix.blocks import unfused

    sums: dict[str, Tensor] = {}
    for batch in batches:
        with torch.enable_grad(), unfused():
            loss = evaluate(module, batch.tokens, batch.labels).loss
            found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, found, strict=True):
            scaled = gradient if batch.weight == 1.0 else batch.weight * gradient
            sums[name] = sums[name].add_(scaled) if name in sums else scaled
    return sums


def check_rows(subject: Subject, seed: int) -> list[Row]:
    """Hold the gradient against central differences of the loss along random directions, in float64.

    A copy of the module does it, on the first micro-batch; twice the memory of its parameters, once more in float64.

    Args:
        subject: module and rows.
        seed: of the directions.

    Returns:
        One row of the whole model.
    """
    module = copy.deepcopy(subject.module).double()
    batch = subject.batches[0]
    parameters = dict(module.named_parameters())
    gradients = mean_gradients(module, parameters, [MicroBatch(batch.tokens, batch.labels, 1.0)])
    generator = torch.Generator().manual_seed(seed)
    length = torch.stack([value.detach().square().sum() for value in parameters.values()]).sum().sqrt()
    step = float(length) * CHECK_STEP
    analytic: list[Tensor] = []
    numeric: list[Tensor] = []
    with torch.no_grad():
        for _ in range(DIRECTIONS):
            direction = {
                name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
                for name, value in parameters.items()
            }
            norm = torch.stack([value.square().sum() for value in direction.values()]).sum().sqrt()
            analytic.append(sum_of_products(gradients, direction) / norm)
            losses: list[Tensor] = []
            for shift in (1.0, -2.0):  # to w + e v, then to w - e v
                for name, value in parameters.items():
                    value.add_(direction[name] / norm, alpha=shift * step)
                losses.append(evaluate(module, batch.tokens, batch.labels).loss)
            for name, value in parameters.items():
                value.add_(direction[name] / norm, alpha=step)
            numeric.append((losses[0] - losses[1]) / (2 * step))
    spend("forward", (2 * DIRECTIONS + 3) * len(batch.tokens))
    told = torch.stack([torch.stack(analytic), torch.stack(numeric)]).cpu().double().numpy()
    (entry,) = computable(frozenset({"analytic", "numeric"}), "gradient")
    error = float(entry.function(told[0], told[1]))
    return [Row(subject.step, "", "model", -1, entry.name, error, batch=subject.name)]


def sum_of_products(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Inner product of two vectors kept by parameter name.

    Returns:
        A scalar.
    """
    return torch.stack([(one[name] * other[name]).sum() for name in one]).sum()


def _interval_rows(subject: Subject, offered: Mapping[str, object]) -> list[Row]:
    rows: list[Row] = []
    for entry in computable(frozenset(offered), "gradient"):
        value, low, high = entry.function(**{name: offered[name] for name in entry.inputs})
        # An interval without an upper end is no solver's failure: it says itself what is not known.
        rows.append(Row(subject.step, "", "model", -1, entry.name, value, low, high, batch=subject.name))
    return rows
