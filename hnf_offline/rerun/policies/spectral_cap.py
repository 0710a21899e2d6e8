"""Cap the largest singular value of weight matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.layers import chosen_layers
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.linalg.singular import LargestSingularValue
    from hnf_offline.rerun.rows import Rows
    from hnf_offline.rerun.training import Training


class SpectralCap(Policy):
    """Scales a matrix down after each update that left its largest singular value above SIGMA."""

    def __init__(self, limit: float, pattern: str = "*") -> None:
        """Choose limit and layers.

        Args:
            limit: SIGMA.
            pattern: glob over layer paths; "*" leaves embeddings and the head out.
        """
        self.limit = limit
        self.pattern = pattern
        self._matrices: list[tuple[Rows, LargestSingularValue]] = []
        self._scaled: Tensor | None = None
        self._largest: Tensor | None = None

    def begin(self, training: Training) -> None:
        """Find the matrices and their leading singular vectors.

        Raises:
            UsageError: if there is none.
        """
        import torch

        from hnf_offline.linalg.singular import LargestSingularValue
        from hnf_offline.rerun.rows import rows_of

        without = ("embedding", "norm", "head")
        matrices = [
            rows
            for layer in chosen_layers(training.module, self.pattern, "spectral-cap", without)
            if layer.kind != "norm"
            for rows in rows_of(training.module, layer)
            if rows.parameter.ndim == 2
        ]
        if not matrices:
            raise UsageError(
                f"--policy spectral-cap: no layer that fits {self.pattern!r} has a weight matrix",
                remedy="choose layers with --policy spectral-cap=SIGMA,GLOB",
            )
        self._matrices = [(rows, LargestSingularValue(rows.read().float())) for rows in matrices]
        self._scaled = torch.zeros(len(matrices), device=training.device)
        self._largest = torch.zeros((), device=training.device)

    def updated(self, training: Training, step: int) -> None:
        """Scale what is above the limit; nothing here waits for the device."""
        import torch

        assert self._scaled is not None
        assert self._largest is not None
        sigmas = torch.stack([leading.estimate(rows.read().float()) for rows, leading in self._matrices])
        above = sigmas > self.limit
        factors = torch.where(above, self.limit / sigmas, torch.ones_like(sigmas))
        for (rows, _), factor in zip(self._matrices, factors, strict=True):
            rows.scale(factor)
        self._scaled += above
        self._largest = torch.fmax(self._largest, sigmas.max())

    def notes(self) -> tuple[str, ...]:
        """Say how often the cap bound.

        Returns:
            One sentence once training began.
        """
        if self._scaled is None or self._largest is None:
            return ()
        times = self._scaled.tolist()
        bound = sum(count > 0 for count in times)
        largest = f"the largest singular value seen was {float(self._largest):.3g}"
        if not bound:
            return (f"no matrix came above {self.limit:g}, so nothing was changed; {largest}",)
        return (f"{bound} of {len(times)} matrices scaled down, {sum(times):.0f} times in all; {largest}",)


@policy(
    "spectral-cap",
    value="SIGMA[,GLOB]",
    summary="Scale weight matrices down to a largest singular value; changes the function at once where it binds.",
    formula="W -> W min(1, SIGMA / sigma_1(W)) after each update, query, key and value of a fused projection each on "
    "its own; sigma_1 by two sweeps of power iteration on four kept vectors; moments stay. Without GLOB embeddings "
    "and the head are left out",
    reference="Miyato et al. 2018, Spectral normalization, arXiv 1802.05957 (the power iteration); Newhouse et al. "
    "2025, Training transformers with enforced Lipschitz constants, arXiv 2507.13338 (as a cap while training)",
    cost="some twenty products of each matrix with a vector",
    example="spectral-cap=4",
)
def make(text: str | None) -> SpectralCap:
    """Read limit and layers.

    Returns:
        The policy.
    """
    limit, pattern = fields(text, ["SIGMA", "GLOB"], required=1)
    return SpectralCap(number(str(limit), "SIGMA", above=0), pattern or "*")
