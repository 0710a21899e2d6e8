"""Write into a tracker's format: the folder appears when it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hnf_offline.errors import UsageError
from hnf_offline.export import trackers
from hnf_offline.export.measured import Exported, measured

#: Tracker -> what writes it.
TARGETS: Mapping[str, Callable[[Exported, Path, Path], None]] = {
    "tensorboard": trackers.tensorboard,
    "wandb": trackers.wandb,
    "mlflow": trackers.mlflow,
}


def export(
    report: Path,
    to: str,
    out: Path | None = None,
    *,
    quantities: str = "*",
    layers: str = "*",
    first: int | None = None,
    last: int | None = None,
    every: int = 1,
    write: bool = True,
) -> tuple[Path, Exported]:
    """Export what `hnf report` wrote.

    Args:
        report: its folder.
        to: one of `TARGETS`.
        out: folder for the result; beside the report, named `<report>-<tracker>`, by itself.
        quantities: glob over names of the catalogue.
        layers: glob over module paths.
        first: first step, None for all.
        last: last step, None for all.
        every: every n-th measured step of those.
        write: whether to write it; else it is only said what would be written.

    Returns:
        The folder and what is in it.

    Raises:
        UsageError: if the folder is there already, or cannot be written.
    """
    folder = out if out is not None else report.with_name(f"{report.resolve().name}-{to}")
    if folder.exists():
        raise UsageError("is there already", path=folder, remedy="remove it, or choose another with --out")
    exported = measured(report, quantities, layers, first=first, last=last, every=every)
    if not write:
        return folder, exported
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"cannot be written ({error.strerror})", path=folder, remedy="choose another folder with --out"
        ) from error
    try:
        TARGETS[to](exported, scratch, folder)
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder, exported
