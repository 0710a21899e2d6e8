"""What a checkpoint layout has to answer; every module in `FORMATS` has these four functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer


class CheckpointFormat(Protocol):
    """One checkpoint layout, as a module."""

    def recognise(self, entry: Path, root: Path) -> Checkpoint | None:
        """Look at one file or folder of a run.

        Returns:
            The checkpoint, or None where the entry has another layout; raises InputError where it has this
            layout but is damaged.
        """
        ...

    def load_weights(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Read the weights on the CPU in their own type.

        Returns:
            Parameter name -> tensor.
        """
        ...

    def load_optimizer(self, checkpoint: Checkpoint) -> RawOptimizer | None:
        """Read the optimizer state on the CPU.

        Returns:
            The state as saved, None where none was saved.
        """
        ...

    def configuration(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Read the settings saved inside the checkpoint, cheaply.

        Returns:
            Sections "model", "optimizer", "training"; those that are not there are left out.
        """
        ...
