"""How many positions rows have in a model: tokens, or the patches that images are cut into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

#: Side of a patch, in pixels, where the model's settings name none.
USUAL_PATCH = 16


def positions(rows: Tensor, module: nn.Module) -> int:
    """Count what the layers of a model are applied to, as far as that is known without running it.

    Of tokens their number; of images [rows, channels, height, width] their patches; of [rows, length, width] the
    length; of other rows of numbers one each.

    Args:
        rows: tokens, or floating-point numbers.
        module: the model, for the size of its patches.

    Returns:
        Positions of all rows together.
    """
    if not rows.is_floating_point():
        return rows.numel()
    if rows.ndim == 3:
        return len(rows) * rows.shape[1]
    if rows.ndim < 4:
        return len(rows)
    sides = zip(rows.shape[-2:], _patch(module), strict=True)
    frames = math.prod(rows.shape[1:-3])
    return len(rows) * frames * math.prod(max(1, size // patch) for size, patch in sides)


def _patch(module: nn.Module) -> tuple[int, int]:
    config: Any = getattr(module, "config", None)
    for settings in (config, getattr(config, "vision_config", None)):
        said = getattr(settings, "patch_size", None)
        if isinstance(said, int) and said > 0:
            return said, said
        if (
            isinstance(said, Sequence)
            and len(said) == 2
            and all(isinstance(one, int) and one > 0 for one in said)
        ):
            return int(said[0]), int(said[1])
    return USUAL_PATCH, USUAL_PATCH
