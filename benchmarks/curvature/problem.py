"""What every tool is given: a module, a batch, its layers; and what every tool gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.curvature.model import Decoder, NextToken, Size
from benchmarks.curvature.training import checkpoint, draw
from hnf_offline.run.model.layers import Layer, layers_of

#: The whole model among the layers' paths.
WHOLE = ""
#: The batch is drawn with a seed no training step has.
BATCH_SEED = 1_000_003


@dataclass(frozen=True)
class Problem:
    """One checkpoint and the rows at which its curvature is wanted.

    Attributes:
        module: in eval mode; all parameters require a gradient.
        tokens: [rows, length], int64.
        targets: what to measure: layer paths, and "" for the whole model.
    """

    module: Decoder
    tokens: Tensor
    targets: tuple[str, ...]

    @classmethod
    def at(cls, size: Size, folder: Path, step: int, rows: int | None = None) -> Problem:
        """Load a checkpoint with all its layers and the whole model as targets.

        Returns:
            The problem.
        """
        module = checkpoint(size, folder, step)
        tokens = draw(size.rows if rows is None else rows, BATCH_SEED)
        return cls(module, tokens, (*(layer.path for layer in layers_of(module)), WHOLE))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers by path."""
        return {layer.path: layer for layer in layers_of(self.module)}

    def parameters(self, target: str) -> dict[str, Tensor]:
        """Give a target's parameters by name.

        Returns:
            Those of the layer, or all.
        """
        every = dict(self.module.named_parameters())
        if target == WHOLE:
            return dict(every)
        return {part.parameter: every[part.parameter] for part in self.layers[target].parts}

    def loss(self) -> Tensor:
        """Evaluate the loss with its graph.

        Returns:
            A scalar.
        """
        return NextToken()(self.module(self.tokens), self.tokens)  # type: ignore[no-any-return]

    def forward(self) -> None:
        """Run one forward pass without a graph: the unit of cost."""
        with torch.no_grad():
            self.loss()

    def gradient(self) -> None:
        """Run one ordinary training gradient of all parameters."""
        self.loss().backward()
        self.module.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class Found:
    """What a tool says of one target.

    Attributes:
        dominant: the eigenvalue of largest size, with its sign.
        products: Hessian products spent, 0 where the tool does not say.
        largest: the algebraically largest eigenvalue, None where the tool does not look for it.
        certified: whether the tool vouches for `largest`, None where it never does.
    """

    dominant: float
    products: int
    largest: float | None = None
    certified: bool | None = None


#: By target.
Answer = Mapping[str, Found]


@dataclass(frozen=True, slots=True)
class Method:
    """A tool with its settings.

    Attributes:
        name: how the table calls it.
        measure: the work.
        weight: 0 measures every target at every repeat; 1 and 2 may measure every so many-th, another set each
            time, where a plan says so.
    """

    name: str
    measure: Callable[[Problem], Answer]
    weight: int = 0
