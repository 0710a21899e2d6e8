"""Output rows of weights and biases: what one projection of a fused one is made of, read and scaled in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hnf_offline.run.model.layers import Layer


@dataclass(frozen=True, slots=True)
class Rows:
    """The outputs of a parameter that belong to one layer.

    Attributes:
        parameter: a weight of two dimensions, or a bias.
        outputs: which of its outputs; None for all.
        outputs_last: whether a weight is stored [inputs, outputs] (GPT-2's Conv1D).
    """

    parameter: nn.Parameter
    outputs: Tensor | None
    outputs_last: bool

    @property
    def count(self) -> int:
        """Number of outputs."""
        if self.outputs is not None:
            return len(self.outputs)
        return int(self.parameter.shape[-1 if self.outputs_last else 0])

    def read(self) -> Tensor:
        """Give the entries.

        Returns:
            [outputs, inputs], or [outputs] of a bias; detached, perhaps a view.
        """
        stored = self.parameter.detach()
        table = stored.T if self.outputs_last and stored.ndim == 2 else stored
        return table if self.outputs is None else table[self.outputs]

    def scale(self, factors: Tensor) -> None:
        """Multiply in place.

        Args:
            factors: one for each output, or a scalar for all of them.
        """
        stored = self.parameter.detach()
        table = stored.T if self.outputs_last and stored.ndim == 2 else stored
        wide = factors.to(table).reshape(-1, *[1] * (table.ndim - 1)) if factors.ndim else factors.to(table)
        if self.outputs is None:
            table.mul_(wide)
        else:
            table[self.outputs] *= wide


def rows_of(module: nn.Module, layer: Layer) -> tuple[Rows, ...]:
    """Find the trained weights and biases of a layer.

    Returns:
        One for each parameter of at most two dimensions that is trained; views into the module, not copies.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: list[Rows] = []
    for part in layer.parts:
        parameter = parameters[part.parameter]
        if not parameter.requires_grad or parameter.ndim not in {1, 2}:
            continue
        owner = module.get_submodule(part.parameter.rpartition(".")[0])
        last = type(owner).__name__ == "Conv1D" and parameter.ndim == 2
        outputs = part.index
        if outputs is not None and parameter.ndim == 2:
            # Flat positions of whole outputs: rows of the table, or columns where the outputs are last.
            grid = (
                outputs.reshape(parameter.shape[0], -1) if last else outputs.reshape(-1, parameter.shape[1])
            )
            outputs = grid[0] if last else torch.div(grid[:, 0], parameter.shape[1], rounding_mode="floor")
        place = None if outputs is None else outputs.to(parameter.device)
        found.append(Rows(parameter, place, last))
    return tuple(found)
