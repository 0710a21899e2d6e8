"""MLflow's files: mlruns/<experiment>/<run>/metrics/<name>, lines of time, value and step."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.blocks import Lines
from hnf_offline.run.logs.lines import head
from hnf_offline.run.logs.raw import RawLog, as_number
from hnf_offline.run.logs.scalars import MOST_NUMBERS, Scalars, listed
from hnf_offline.run.logs.walk import Folder, walk
from hnf_offline.run.paths import inside

_METRICS = "metrics"
_DEEPEST = 3
#: Metric names with "/" are folders below.
_DEEPEST_NAME = 8
#: Milliseconds since 1970, the value, the step; a metric of a data set names it behind.
_LINE = re.compile(r"(\d{1,18}) (\S{1,60})(?: (-?\d{1,18})(?: \S+ \S+)?)?")
#: A file of metrics alone is told by times of this century; other text has other numbers in front.
_FIRST_LINE = re.compile(r"1\d{12} \S{1,60} -?\d{1,18}(?: \S+ \S+)?(?:\r?\n|$)")


def recognises(path: Path, head: str) -> bool:
    """Tell a metric file by its first line; a folder by a run folder in it or below, or as one's metrics.

    Returns:
        True where `read` should be tried.
    """
    if path.is_dir():
        return bool(run_folders(path, _DEEPEST))
    return _METRICS in path.parts and _FIRST_LINE.match(head) is not None


def run_folders(path: Path, deepest: int) -> list[Path]:
    """Find the folders of MLflow runs: those with metrics of MLflow's form.

    Returns:
        The folders, by name; the metrics folder itself where `path` is one.
    """
    found = sorted(folder.path for folder in walk(path, deepest) if is_run(folder))
    return found or ([path] if path.name == _METRICS and _has_metrics(path) else [])


def is_run(folder: Folder) -> bool:
    """Tell the folder of a run; models have metrics too, but no run of their own.

    Returns:
        True where `read` finds metrics in it.
    """
    return (
        _METRICS in folder.folders
        and folder.path.parent.name != "models"
        and _has_metrics(folder.path / _METRICS)
    )


def read(path: Path) -> RawLog:
    """Read the metrics of one run, or one metric file.

    Lines of all metrics are put in the order of their times, which tells restarts.

    Returns:
        A column `step` and one a metric.

    Raises:
        InputError: when nothing can be read, or the folder holds several runs.
    """
    import numpy as np

    if not path.is_dir():
        parts = path.parts
        below = len(parts) - 1 - parts[::-1].index(_METRICS) if _METRICS in parts else len(parts) - 2
        files = {"/".join(parts[below + 1 :]): path}
    else:
        files = _metric_files(_one_run(path))
    names = list(files)
    times, which, steps, values = array("q"), array("i"), array("q"), array("d")
    skipped = 0
    notes: list[str] = []
    for number, file in enumerate(files.values()):
        lines = Lines(file)
        for line in lines:
            if not line.strip():
                continue
            entry = _entry(line)
            if entry is None or len(times) >= MOST_NUMBERS:
                skipped += 1
                continue
            times.append(entry[0])
            values.append(entry[1])
            steps.append(entry[2])
            which.append(number)
        skipped += lines.overlong
        notes += lines.notes()
    scalars = Scalars()
    for place in np.argsort(np.frombuffer(times, dtype=np.int64), kind="stable") if times else ():
        scalars.add(names[which[place]], steps[place], values[place])
    if not len(scalars.cells):
        raise InputError("holds no metric", path=path, remedy="name a run that logged some")
    frame, left_out = scalars.table()
    return RawLog(frame, skipped, (*notes, *left_out))


def _entry(line: str) -> tuple[int, float, int] | None:
    # Time, value and step of a line.
    # Source: mlflow 3.17.2 store/tracking/file_store.py l.900-915, _get_metric_from_line; l.1091, _log_run_metric.
    match = _LINE.fullmatch(line.strip())
    value = None if match is None else as_number(match[2])
    if match is None or value is None:
        return None
    return int(match[1]), value, int(match[3] or 0)


def _one_run(path: Path) -> Path:
    runs = run_folders(path, _DEEPEST)
    if not runs:
        raise InputError("holds no MLflow run with metrics", path=path)
    if len(runs) > 1 and path not in runs:
        names = [_named(run, path) for run in runs]
        raise InputError(
            f"holds {len(runs)} MLflow runs: {listed(names)}",
            path=path,
            remedy=f"name one of them, such as {runs[0]}",
        )
    return path if path in runs else runs[0]


def _named(run: Path, root: Path) -> str:
    # The run's path, with the name that MLflow shows for it.
    try:
        shown = head(inside(run, "tags/mlflow.runName", named_by=run), 60).split("\n", 1)[0].strip()
    except InputError:
        shown = ""
    place = str(run.relative_to(root))
    return f"{place} ({shown})" if shown and shown.isprintable() else place


def _metric_files(run: Path) -> dict[str, Path]:
    folder = run if run.name == _METRICS and not (run / _METRICS).is_dir() else run / _METRICS
    return {str(file.relative_to(folder).as_posix()): file for file in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    for one in walk(folder, _DEEPEST_NAME):
        yield from one.files


def _has_metrics(folder: Path) -> bool:
    # Whether the first metric file reads as one; empty ones tell nothing.
    for file in itertools.islice(_files(folder), 20):
        start = head(file, 300)
        if start:
            return _FIRST_LINE.match(start) is not None
    return False
