"""Where trainers and loggers leave a run's log, best first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hnf_offline.errors import MissingExtraError
from hnf_offline.run.logs import mlflow, tensorboard, wandb_folder
from hnf_offline.run.logs.walk import Folder, walk
from hnf_offline.run.paths import leads_out
from hnf_offline.run.records import Checkpoint, Skipped

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
STATE = "trainer_state.json"
_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".log", ".txt", ".out", ".err")
_BARE = ("log", "stdout", "stderr", "train_log")
#: Folders whose files may be logs, and the folders in them.
_FOLDERS = {
    "log",
    "logs",
    "metrics",
    "lightning_logs",
    "csv_logs",
    "checkpoints",
    "runs",
    "tb",
    "tb_logs",
    "tensorboard",
}
#: Lightning's folder of one run, wherever its logger was told to put it.
_VERSION = re.compile(r"version_[0-9]+")
_STATE_FOLDER = re.compile(r"checkpoint-[0-9]+")
#: Settings and vocabularies, never logs, some of them large.
_NOT_LOGS = re.compile(
    r"(?:(?:generation_|adapter_|preprocessor_|tokenizer_|deepspeed_|ds_)?config|tokenizer|vocab|added_tokens"
    r"|special_tokens_map|all_results|train_results|eval_results|RUN|run|hparams|.*\.index)\.json"
    r"|requirements.*\.txt|vocab\.txt|merges\.txt|SOURCE\.txt|LICENSE\.txt|README\.txt"
)
#: mlruns/<experiment>/<run> and wandb/<run> may lie a level or two deep.
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Files or folders of one kind, in which a log may be.

    Attributes:
        files: what may be read.
        tried: whether they are only tried, because nothing but their suffix speaks for a log.
        states: whether each holds the whole history up to its time, as trainer_state.json does.
    """

    files: tuple[Path, ...]
    tried: bool = False
    states: bool = False


def sources(path: Path, checkpoints: Sequence[Checkpoint] = ()) -> list[Place]:
    """Find where the log of a run directory may be. Nothing is read but names and a few first lines.

    Args:
        path: the run directory.
        checkpoints: its checkpoints, whose folders hold no log but the Trainer's state.

    Returns:
        The places, best first.
    """
    folders = list(walk(path, _DEEPEST, [checkpoint.path for checkpoint in checkpoints]))
    files = [
        file
        for folder in folders
        if _may_hold_files(folder.path, path)
        for file in folder.files
        if _plain(file) not in {"", STATE} and not _NOT_LOGS.fullmatch(file.name)
    ]
    named = [Place(tuple(file for file in files if _plain(file) == name)) for name in KNOWN_NAMES]
    rest = Place(tuple(file for file in files if _plain(file) not in KNOWN_NAMES), tried=True)
    logged = [
        Place(tuple(_event_runs(folders))),
        Place(tuple(sorted(folder.path for folder in folders if wandb_folder.is_run(folder)))),
        Place(
            tuple(sorted(folder.path for folder in folders if mlflow.is_run(folder)))
            or tuple(mlflow.run_folders(path, 0))
        ),
    ]
    places = [Place(_states(path, checkpoints, folders), states=True), *named, *logged, rest]
    return [place for place in places if place.files]


def runs_in(path: Path) -> list[Path]:
    """Find the folders directly in a folder that look like runs: with a Trainer's state, or a log by its name.

    Returns:
        The folders, by name.
    """
    found = set()
    for folder in walk(path, 2):
        above = folder.path.relative_to(path).parts
        named = {_plain(file) for file in folder.files}
        if above and (STATE in named or (len(above) == 1 and named & set(KNOWN_NAMES))):
            found.add(path / above[0])
    return sorted(found)


def leading_out(path: Path) -> list[Skipped]:
    """Find what is named as a log but leads out of the run; it is not followed.

    Returns:
        One record each.
    """
    found = []
    try:
        links = [child for child in path.iterdir() if child.is_symlink()]
        for link in sorted(links):
            known = link.name in _FOLDERS | {"wandb", "mlruns", STATE} or _plain(link) in KNOWN_NAMES
            if known and link.exists() and not link.resolve().is_relative_to(path.resolve()):
                found.append(
                    Skipped(
                        link, "leads out of the run and was not followed", "copy it here, or name it itself"
                    )
                )
    except (OSError, RuntimeError):
        return found
    return found


def size(file: Path) -> int:
    """Count the bytes that reading a log would read.

    Returns:
        The bytes of a file; of a folder those of its event, `.wandb` and metric files, whatever else is kept there.
    """
    try:
        if not file.is_dir():
            return file.stat().st_size
        return sum(
            one.stat().st_size
            for folder in walk(file, 2, [file / "artifacts"])
            for one in folder.files
            if tensorboard.is_event_file(one)
            or one.suffix == ".wandb"
            or "metrics" in folder.path.relative_to(file).parts
        )
    except OSError:
        return 0


def _may_hold_files(folder: Path, root: Path) -> bool:
    if folder == root or _VERSION.fullmatch(folder.name):
        return True
    parts = folder.relative_to(root).parts
    return len(parts) <= 2 and parts[0] in _FOLDERS


def _plain(file: Path) -> str:
    # The name without ".gz" where its suffix is one of a log, "" elsewhere.
    name = file.name.removesuffix(".gz")
    return name if name.endswith(_SUFFIXES) or name in _BARE else ""


def _event_runs(folders: Sequence[Folder]) -> list[Path]:
    with_events = [folder.path for folder in folders if any(map(tensorboard.is_event_file, folder.files))]
    try:
        return tensorboard.runs_of(with_events)
    except MissingExtraError:
        return with_events  # reading them says what is missing


def _states(path: Path, checkpoints: Sequence[Checkpoint], folders: Sequence[Folder]) -> tuple[Path, ...]:
    # Of the run, of its last checkpoint, and of the last folder named as one, which may have lost its weights.
    left = [
        folder.path
        for folder in folders
        if folder.path.parent in {path, path / "checkpoints"} and _STATE_FOLDER.fullmatch(folder.path.name)
    ]
    last = sorted(left, key=lambda one: int(one.name.rpartition("-")[2][:18]))[-1:]
    tried = dict.fromkeys([path, *(c.path for c in checkpoints[-1:]), *last])
    return tuple(folder / STATE for folder in tried if _is_own(folder / STATE, path))


def _is_own(state: Path, path: Path) -> bool:
    return state.is_file() and not leads_out(state, path)
