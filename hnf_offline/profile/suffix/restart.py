"""Start a forward pass again behind some blocks, whose outputs are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.suffix.blocks import CallOrder, unfused
from hnf_offline.run.model.loss import evaluate


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One call of a block in the unchanged forward pass.

    Attributes:
        arguments: positional arguments, detached.
        keywords: keyword arguments, detached.
        output: what it returned, detached.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    output: Any


class Restart:
    """The forward pass of one micro-batch, with the calls of its blocks remembered.

    Attributes:
        batch: the micro-batch.
        calls: one for each block.
    """

    def __init__(self, module: nn.Module, order: CallOrder, batch: MicroBatch) -> None:
        """Run the forward pass once, without gradients, and remember what enters and leaves each block.

        Args:
            module: any module.
            order: its blocks.
            batch: the rows.
        """
        self.batch = batch
        self._module = module
        self._order = order
        self._blocks = [module.get_submodule(path) for path in order.blocks]
        self.calls: list[BlockCall] = []
        self._repeated: dict[int, tuple[int, Any]] = {}  # block -> copies, output so often

        def remember(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*arguments: Any, **keywords: Any) -> Any:
                output = original(*arguments, **keywords)
                self.calls.append(BlockCall(_detached(arguments), _detached(keywords), _detached(output)))
                return output

            return forward

        replacements = {block: remember(block.forward) for block in self._blocks}
        with torch.no_grad(), unfused(), replaced(replacements):
            evaluate(module, batch.tokens, batch.labels)

    def block_output(self, number: int, parameters: Mapping[str, Tensor]) -> Any:
        """Call one block as it was called, with some of its parameters replaced.

        Args:
            number: of the block.
            parameters: names below the block -> tensors.

        Returns:
            What the block returns.
        """
        call = self.calls[number]
        with unfused():
            return functional_call(
                self._blocks[number], dict(parameters), call.arguments, dict(call.keywords)
            )

    def loss_behind(self, number: int, outputs: Sequence[Any]) -> Tensor:
        """Go on behind a block with several outputs of it, side by side on the batch axis.

        Args:
            number: of the block.
            outputs: K outputs of the block.

        Returns:
            The sum of the K copies' losses.
        """
        copies = len(outputs)
        axes = self._order.row_axes
        skipped = {
            self._blocks[place]: _given(self._repeated_output(place, copies)) for place in range(number)
        }
        skipped[self._blocks[number]] = _given(_joined(outputs, axes[number]))
        tokens = self.batch.tokens.repeat(copies, *[1] * (self.batch.tokens.ndim - 1))
        labels = self.batch.labels
        if labels is not None:
            labels = labels.repeat(copies, *[1] * (labels.ndim - 1))
        with unfused(), replaced(skipped):
            loss = evaluate(self._module, tokens, labels).loss
        return copies * loss

    def _repeated_output(self, number: int, copies: int) -> Any:
        # Made once for the most copies that were asked for: fewer are its first rows.
        most, repeated = self._repeated.get(number, (0, None))
        axes = self._order.row_axes[number]
        if most < copies:
            repeated = _joined([self.calls[number].output] * copies, axes)
            self._repeated[number] = copies, repeated
            return repeated
        return repeated if most == copies else _shortened(repeated, copies / most, axes)

    def loss_with(self, skip: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """Run the forward pass with some parameters replaced, the first blocks skipped.

        Args:
            skip: how many blocks are skipped; none of them may use the parameters.
            parameters: names -> tensors.

        Returns:
            The loss.
        """
        skipped = {
            block: _given(call.output) for block, call in zip(self._blocks[:skip], self.calls, strict=False)
        }
        with unfused(), replaced(skipped):
            return evaluate_with(self._module, parameters, self.batch)


class _Evaluated(nn.Module):
    """The loss of a module as a module, so that parameters can be replaced for all of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, batch: MicroBatch) -> Tensor:
        """Evaluate.

        Returns:
            The loss.
        """
        return evaluate(self.inner, batch.tokens, batch.labels).loss


def evaluate_with(module: nn.Module, parameters: Mapping[str, Tensor], batch: MicroBatch) -> Tensor:
    """Evaluate the loss with some parameters replaced, wherever they are tied.

    Returns:
        The loss.
    """
    renamed = {f"inner.{name}": value for name, value in parameters.items()}
    loss: Tensor = functional_call(_Evaluated(module), renamed, (batch,))
    return loss


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another `forward` for a while.

    Yields:
        Nothing.
    """
    before: dict[nn.Module, Callable[..., Any] | None] = {
        module: module.__dict__.get("forward") for module in forwards
    }
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def _given(output: Any) -> Callable[..., Any]:
    return lambda *arguments, **keywords: output


def _detached(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, value)


def _shortened(output: Any, share: float, axes: Sequence[int | None]) -> Any:
    leaves, structure = pytree.tree_flatten(output)
    remaining = iter(axes)
    cut: list[Any] = []
    for leaf in leaves:
        axis = next(remaining) if isinstance(leaf, Tensor) else None
        cut.append(leaf if axis is None else leaf.narrow(axis, 0, round(share * leaf.shape[axis])))
    return pytree.tree_unflatten(cut, structure)


def _joined(outputs: Sequence[Any], axes: Sequence[int | None]) -> Any:
    if len(outputs) == 1:
        return outputs[0]
    flat = [pytree.tree_flatten(output) for output in outputs]
    structure = flat[0][1]
    remaining = iter(axes)
    joined: list[Any] = []
    for column in zip(*(leaves for leaves, _ in flat), strict=True):
        axis = next(remaining) if isinstance(column[0], Tensor) else None
        joined.append(column[0] if axis is None else torch.cat(list(column), dim=axis))
    return pytree.tree_unflatten(joined, structure)
