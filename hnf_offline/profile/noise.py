"""Random start vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Noise:
    """Seeded unit vectors, drawn on the CPU so that every device starts alike.

    Attributes:
        seed: of the first one; `fresh` gives others.
        device: where they are used.
        dtype: in which precision.
    """

    seed: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, size: int) -> Tensor:
        """Draw the vector of a size: always the same.

        Returns:
            [size].
        """
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=0).to(self.device, self.dtype)

    @property
    def fresh(self) -> Noise:
        """Vectors independent of these."""
        return replace(self, seed=self.seed + 1_000_003)
