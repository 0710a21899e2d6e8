"""What is on disk: checkpoints, logs, batches and the model, found without configuration and read safely."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.run.batches import find_batches, load_rows
    from hnf_offline.run.formats import load_optimizer, load_weights
    from hnf_offline.run.logs import read_log
    from hnf_offline.run.open import open_run
    from hnf_offline.run.optimizer import match_optimizer

_HOMES = {
    "open_run": "hnf_offline.run.open",
    "read_log": "hnf_offline.run.logs",
    "find_batches": "hnf_offline.run.batches",
    "load_rows": "hnf_offline.run.batches",
    "load_weights": "hnf_offline.run.formats",
    "load_optimizer": "hnf_offline.run.formats",
    "match_optimizer": "hnf_offline.run.optimizer",
}

__all__ = [
    "find_batches",
    "load_optimizer",
    "load_rows",
    "load_weights",
    "match_optimizer",
    "open_run",
    "read_log",
]


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that `import hnf_offline.run` stays instant and free of torch and polars.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
