"""A training whose gradients are known beforehand, so that every policy has a closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.rerun.data import Rates
from hnf_offline.rerun.optimizer import RATIO
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.training import Training
from hnf_offline.run.records import Log


class GivenGradients(nn.Module):
    """Two weights of two entries each; the loss of step s is linear, its gradient the s-th row of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(2))
        self.second = nn.Parameter(torch.ones(2))
        self.table = table

    def forward(self, input_ids: Tensor) -> Tensor:
        row = self.table[input_ids[0, 0]]
        return (self.first * row[:2]).sum() + (self.second * row[2:]).sum()


class StepNumbers:
    """The "batch" of a step is its number; what was asked for is kept."""

    def __init__(self, last: int, every_step: bool = False) -> None:
        self.asked: list[int] = []
        self.last = last
        self.source = SimpleNamespace(path=Path("batches.npz"), every_step=every_step)

    def has(self, step: int) -> bool:
        return step <= self.last

    def of(self, step: int, accumulation: int = 1) -> tuple[MicroBatch, ...]:
        self.asked.append(step)
        return (MicroBatch(torch.tensor([[step]]), None, 1.0),) if self.has(step) else ()


def table(steps: int = 60) -> Tensor:
    return torch.randn(steps + 1, 4, generator=torch.Generator().manual_seed(3))


ToyMaker = Callable[..., Training]


@pytest.fixture
def toy() -> ToyMaker:
    """Make a training after `start` updates; `policies` is a spelling."""

    def make(
        policies: str = "",
        *,
        kind: str = "sgd",
        rate: float = 0.1,
        rates: Sequence[float] = (),
        start: int = 0,
        gradients: Tensor | None = None,
        norms: Sequence[float] = (),
        recipe: dict[str, Any] | None = None,
        every_step: bool = False,
        groups: Sequence[dict[str, Any]] = ({}, {}),
        measure: Callable[[Training], Any] | None = None,
        **settings: Any,
    ) -> Training:
        gradients = table() if gradients is None else gradients
        module = GivenGradients(gradients)
        classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = classes[kind](
            [
                {"params": [parameter], RATIO: 1.0, **own}
                for parameter, own in zip(module.parameters(), groups, strict=True)
            ],
            lr=rate,
            **settings,
        )
        for step in range(1, start + 1):
            optimizer.zero_grad()
            module(torch.tensor([[step]])).backward()
            optimizer.step()
        source = Rates(None, rate)
        if rates:
            source.steps, source.values = list(range(1, len(rates) + 1)), list(rates)
        frame = pl.DataFrame({"step": range(1, len(norms) + 1), "grad_norm": [float(norm) for norm in norms]})
        return Training(
            module,
            optimizer,
            Recipe(kind, **(recipe or {})),
            StepNumbers(len(gradients) - 1, every_step),  # type: ignore[arg-type]
            source,
            start,
            policies=make_policies(policies) if policies else (),
            measure_stability=measure,
            log=Log(frame, ()) if norms else None,
        )

    return make
