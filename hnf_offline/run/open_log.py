"""Open the log of a run and nothing else: no checkpoint is looked at, so no torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs import read_log
from hnf_offline.run.logs.find import find_logs
from hnf_offline.run.manifest import Manifest, read_manifest
from hnf_offline.run.records import Run, Skipped


def open_log(
    path: Path, manifest: Path | str | None = None, *, columns: Mapping[str, str] | None = None
) -> Run:
    """Find and read the training log of a run directory, or the log that `path` is.

    Args:
        path: a run directory, one log file, or the folder of one log.
        manifest: a run.toml to read instead of the one in the directory.
        columns: our column name -> name in the log; wins over the manifest's.

    Returns:
        The run with its log, and without checkpoints, batches and model, which were not looked for.

    Raises:
        InputError: when there is no log that can be read.
    """
    folder = path if path.is_dir() else path.parent
    said = (
        read_manifest(folder, None if manifest is None else Path(manifest))
        if path.is_dir() or manifest
        else Manifest()
    )
    named = {**said.columns, **(columns or {})}
    skipped: list[Skipped] = []
    if path.is_file():
        log = read_log(path, named)
    elif said.log_files:
        log = read_log(said.log_files, named)
    else:
        found, skipped = find_logs(path, (), named)
        if found is None:
            reason, remedy = "has no training log that can be read", "name the log file itself"
            if skipped:
                reason += f" ({skipped[0].path.name}: {skipped[0].reason})"
                remedy = skipped[0].remedy or remedy
            raise InputError(reason, path=path, remedy=remedy)
        log = found
    return Run(
        path=path,
        name=path.name or path.resolve().name,
        checkpoints=(),
        log=log,
        batches=None,
        model=None,
        resume_steps=said.resume_steps or log.restarts,
        skipped=tuple(skipped),
        said=said.said,
    )
