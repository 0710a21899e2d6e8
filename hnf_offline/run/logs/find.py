"""Which files of a run directory are its training log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from hnf_offline.errors import InputError, UserError
from hnf_offline.run.logs import format_of, read_log
from hnf_offline.run.records import Checkpoint, Log, Skipped

#: Names trainers and recorders give their log, best first.
KNOWN_NAMES = (
    "log.jsonl",
    "metrics.jsonl",
    "trace.jsonl",
    "train_log.jsonl",
    "training_log.jsonl",
    "train.jsonl",
    "history.jsonl",
    "metrics.csv",
    "log.csv",
    "log.tsv",
    "metrics.tsv",
    "history.csv",
    "progress.csv",
)
_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".log", ".txt")
_FOLDERS = ("log", "logs", "metrics", "lightning_logs", "checkpoints")
_LARGEST = 2_000_000_000


def find_logs(
    path: Path, checkpoints: Sequence[Checkpoint] = (), columns: Mapping[str, str] | None = None
) -> tuple[Log | None, list[Skipped]]:
    """Find and read the training log of a run directory.

    A trainer_state.json (of the run or of its last checkpoint, the longer history) comes first, then files
    with the names logs usually have, then any other file that reads as a log. Several files are merged where
    each goes on from the one before.

    Args:
        path: the run directory.
        checkpoints: its checkpoints.
        columns: our column name -> name in the file.

    Returns:
        The log, None where there is none, and what was passed over and why.
    """
    skipped: list[Skipped] = []
    states = [folder / "trainer_state.json" for folder in (path, *(c.path for c in checkpoints[-1:]))]
    readable = _readable([state for state in states if state.is_file()], columns, skipped)
    if readable:
        return max(readable.values(), key=lambda log: log.rows.height), skipped
    folders = [path, *(path / name for name in _FOLDERS)]
    below = [
        child
        for folder in folders[1:]
        if folder.is_dir()
        for child in sorted(folder.iterdir())
        if child.is_dir()
    ]
    files = [
        file
        for folder in [*folders, *below]
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.suffix in _SUFFIXES and file.is_file() and file.stat().st_size <= _LARGEST
    ]
    for name in KNOWN_NAMES:
        named = _readable([file for file in files if file.name == name], columns, skipped)
        if named:
            return _together(named, path, columns, skipped), skipped
    others = [file for file in files if file.name not in KNOWN_NAMES and file.name != "trainer_state.json"]
    # A text file or JSON that is no log is nothing to report; it was only tried.
    found = _readable([file for file in others if format_of(file) is not None], columns, [])
    return (_together(found, path, columns, skipped) if found else None), skipped


def _readable(
    files: Sequence[Path], columns: Mapping[str, str] | None, skipped: list[Skipped]
) -> dict[Path, Log]:
    logs = {}
    for file in files:
        try:
            logs[file] = read_log(file, columns)
        except InputError as error:
            skipped.append(Skipped(error.path or file, error.reason, error.remedy or ""))
        except UserError:
            # The columns named in run.toml are those of another file.
            continue
    return logs


def _together(
    logs: Mapping[Path, Log], path: Path, columns: Mapping[str, str] | None, skipped: list[Skipped]
) -> Log | None:
    # One log of several files where they are segments of one run; None where they are several runs.
    if len(logs) == 1:
        return next(iter(logs.values()))
    names = ", ".join(sorted(file.name for file in logs)[:6])
    ranges = sorted((int(log.rows["step"][0]), int(log.rows["step"][-1])) for log in logs.values())
    for (first, last), (after_first, after_last) in pairwise(ranges):
        shared = min(last, after_last) - after_first + 1
        if shared > 0.5 * (min(last - first, after_last - after_first) + 1):
            skipped.append(
                Skipped(
                    path,
                    f"has {len(logs)} logs of the same steps: {names}",
                    "say which are of this run in run.toml: [log] files = [...]",
                )
            )
            return None
    return read_log(list(logs), columns)
