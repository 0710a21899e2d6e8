"""Which files or folders of a run directory are its training log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from hnf_offline.errors import InputError, MissingExtraError, UserError
from hnf_offline.run.logs import format_of, read_log
from hnf_offline.run.logs.places import Place, leading_out, runs_in, size, sources
from hnf_offline.run.logs.same_run import goes_further, repeats, steps_with_a_loss
from hnf_offline.run.logs.scalars import listed
from hnf_offline.run.records import Checkpoint, Log, Skipped

#: Bytes of further logs that are read to see whether they tell more than the one that was found.
_MOST_COMPARED = 50_000_000
_LARGEST = 2_000_000_000
#: Files of one kind that are read as parts of one log; of more than this none is tried.
_MOST_FILES = 200
_TEXTS = {".jsonl", ".csv", ".tsv", ".json"}

#: What `columns.choose_columns` says where it finds no step or loss.
_COLUMN = "column among"
_REMEDY = "name one of them, or say which are of this run in run.toml: [log] files = [...]"


@dataclass(slots=True)
class _Seen:
    """What was come across on the way."""

    skipped: list[Skipped]
    others: list[str]


def find_logs(
    path: Path, checkpoints: Sequence[Checkpoint] = (), columns: Mapping[str, str] | None = None
) -> tuple[Log | None, list[Skipped]]:
    """Find and read the training log of a run directory.

    In the order of `places.sources`: trainer_state.json, files with the names logs usually have, TensorBoard,
    W&B and MLflow folders, any other file that reads as a log. The first that reads is the log, unless a later one
    holds the same losses and goes on further or tells more steps. Several files of one kind are merged where each
    goes on from the one before. Two kinds are never merged; those not used are named in the log's notes.

    Args:
        path: the run directory.
        checkpoints: its checkpoints.
        columns: our column name -> name in the file.

    Returns:
        The log, None where there is none, and what was passed over and why.
    """
    seen = _Seen(leading_out(path), [])
    chosen: Log | None = None
    failed: list[Skipped] = []
    asked: list[Skipped] = []
    compared = 0
    for place in sources(path, checkpoints):
        if chosen is not None:
            compared += sum(map(size, place.files))
            if compared > _MOST_COMPARED:
                seen.others.append(f"{_names(place.files, path)} (large, not compared)")
                continue
        failures: list[Skipped] = []
        logs = _readable(place, columns, failures)
        # A text file or JSON that is no log is nothing to report, unless only the name of its loss is not known.
        failed += [] if place.tried else failures
        asked += [one for one in failures if place.tried and (_COLUMN in one.reason or one.path.is_dir())]
        if not logs:
            continue
        ambiguous: list[Skipped] = []
        log = _together(logs, path, checkpoints, columns, seen.others, ambiguous, place.states)
        if chosen is None and log is None:
            return None, seen.skipped + ambiguous
        if chosen is None or log is None:
            chosen = log or chosen
            seen.others += [f"{_names(list(logs), path)} (several runs)"] if log is None else []
        elif goes_further(log, chosen):
            seen.others.append(f"{_names(chosen.files, path)} (the same run, told less far or less finely)")
            chosen = log
        else:
            why = "the same run" if repeats(log, chosen) else "another run, or told otherwise"
            seen.others.append(f"{_names(list(logs), path)} ({why})")
    # What a package is missing for, or is broken, matters where nothing else was found, or was named as logs are.
    seen.skipped += [one for one in failed if chosen is None or one.path.suffix in _TEXTS]
    seen.skipped += asked if chosen is None else []
    if chosen is None and not checkpoints and (runs := runs_in(path)):
        reason = f"holds no log itself, but what looks like runs: {_names(runs, path)}"
        seen.skipped.insert(0, Skipped(path, reason, f"name one of them, such as {runs[0]}"))
    if chosen is not None and seen.others:
        told = f"Other logs were seen and not used: {listed(seen.others, 8)}."
        chosen = replace(chosen, notes=(*chosen.notes, told))
    return chosen, seen.skipped


def _readable(place: Place, columns: Mapping[str, str] | None, skipped: list[Skipped]) -> dict[Path, Log]:
    logs: dict[Path, Log] = {}
    if len(place.files) > _MOST_FILES:
        first = place.files[0]
        skipped.append(
            Skipped(first.parent, f"holds {len(place.files)} files that may be logs; none was tried", _REMEDY)
        )
        return logs
    for file in place.files:
        if size(file) > _LARGEST:
            skipped.append(Skipped(file, "is too large to be tried as a log", "name it itself"))
            continue
        if place.tried and format_of(file) is None:
            continue
        try:
            logs[file] = read_log(file, columns)
        except (InputError, MissingExtraError) as error:
            skipped.append(Skipped(error.path or file, error.reason, error.remedy or ""))
        except UserError:
            # The columns named in run.toml are those of another file.
            continue
    return logs


def _together(
    logs: Mapping[Path, Log],
    path: Path,
    checkpoints: Sequence[Checkpoint],
    columns: Mapping[str, str] | None,
    others: list[str],
    skipped: list[Skipped],
    states: bool,
) -> Log | None:
    # One log of several files where they are segments of one run; None where they are several runs.
    if states:
        # Each is the whole history up to its checkpoint.
        return max(logs.values(), key=lambda log: log.rows.height)
    logs = _without_copies(_beside(logs, path, checkpoints, others), path, others)
    if len(logs) == 1:
        return next(iter(logs.values()))
    ranges = sorted(map(steps_with_a_loss, logs.values()))
    for (first, last), (after_first, after_last) in pairwise(ranges):
        shared = min(last, after_last) - after_first + 1
        if shared > 0.5 * (min(last - first, after_last - after_first) + 1):
            reason = f"has {len(logs)} logs of the same steps: {_names(sorted(logs), path)}"
            skipped.append(Skipped(path, reason, _REMEDY))
            return None
    return read_log(list(logs), columns)


def _beside(
    logs: Mapping[Path, Log], path: Path, checkpoints: Sequence[Checkpoint], others: list[str]
) -> Mapping[Path, Log]:
    # The log in whose folder all checkpoints lie (lightning_logs/version_3/), where there is one.
    for file in logs:
        folder = file if file.is_dir() else file.parent
        if folder != path and checkpoints and all(c.path.is_relative_to(folder) for c in checkpoints):
            own = {one: log for one, log in logs.items() if one.is_relative_to(folder)}
            rest = [one for one in logs if one not in own]
            if rest:
                others.append(f"{_names(rest, path)} (not beside the checkpoints)")
            return own
    return logs


def _without_copies(logs: Mapping[Path, Log], path: Path, others: list[str]) -> dict[Path, Log]:
    # Of files that hold the same rows (a console copied to two files) the longest is kept.
    kept: dict[Path, Log] = {}
    for file in sorted(logs, key=lambda one: -logs[one].rows.height):
        original = next((one for one in kept if repeats(logs[file], kept[one])), None)
        if original is None:
            kept[file] = logs[file]
        else:
            others.append(f"{_names([file], path)} (a copy of {_names([original], path)})")
    return {file: log for file, log in logs.items() if file in kept}


def _names(files: Sequence[Path], path: Path) -> str:
    return listed([str(file.relative_to(path)) if file.is_relative_to(path) else file.name for file in files])
