"""Positions of rows: tokens as they are counted, images by the model's patches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.run.model.positions import positions


def module_with(**settings: Any) -> nn.Module:
    module = nn.Linear(1, 1)
    module.config = SimpleNamespace(**settings)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (torch.zeros(3, 7, dtype=torch.int64), {"patch_size": 4}, 21),
        (torch.zeros(3, 2, 8, 12), {"patch_size": 4}, 3 * 6),
        (torch.zeros(3, 2, 8, 12), {"patch_size": (2, 6)}, 3 * 8),
        (torch.zeros(3, 2, 8, 12), {"vision_config": SimpleNamespace(patch_size=4)}, 3 * 6),
        (torch.zeros(3, 2, 64, 32), {}, 3 * 8),
        (torch.zeros(3, 2, 8, 12), {"patch_size": "four"}, 3),
        (torch.zeros(3, 5, 2, 8, 12), {"patch_size": 4}, 3 * 5 * 6),
        (torch.zeros(3, 50, 20), {}, 150),
        (torch.zeros(3, 20), {}, 3),
    ],
)
def test_positions_are_those_that_layers_are_applied_to(
    rows: Tensor, settings: dict[str, Any], expected: int
) -> None:
    assert positions(rows, module_with(**settings)) == expected
    assert positions(rows[:1], nn.Linear(1, 1)) > 0
