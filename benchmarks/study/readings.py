"""Readings of runs on disk: what is scored, so that the study can be made in parts and scored without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.study.analysis import Analysed
from benchmarks.study.case import Case

_COLUMN = pl.Struct({"name": pl.String, "values": pl.List(pl.Float64)})
_RULE = pl.Struct({
    "name": pl.String,
    "baseline": pl.Boolean,
    "resolution": pl.Int64,
    "alarms": pl.List(pl.Int64),
    "at": pl.List(pl.Int64),
})
SCHEMA = {
    "run": pl.String,
    "declared": pl.String,
    "gap": pl.Int64,
    "first": pl.Int64,
    "last": pl.Int64,
    "onsets": pl.List(pl.Int64),
    "failed": pl.Boolean,
    "certified": pl.Float64,
    "seconds": pl.Float64,
    "rules": pl.List(_RULE),
    "scores": pl.List(_COLUMN),
    "log": pl.List(_COLUMN),
}


def keep(runs: Sequence[Analysed], folder: Path) -> None:
    """Write runs, one file a family and split; a file of that name is replaced.

    A run takes one row for all its checkpoints and one for each reading with fewer; the latter hold no scores and no
    log, which are parts of the former's.

    Args:
        runs: what is scored.
        folder: where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(runs, key=lambda run: (_file(run), run.case.name))
    for name, members in groupby(ordered, key=_file):
        rows = [
            row
            for run in members
            for row in (_row(run), *(_row(one) | {"scores": [], "log": []} for one in run.sparser))
        ]
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(folder / name, compression_level=19)


def kept(folder: Path) -> list[Analysed]:
    """Read the runs of a folder, as they were kept.

    Returns:
        The runs; none where the folder does not exist.
    """
    found: dict[str, Analysed] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pl.read_parquet(path).iter_rows(named=True):
            one = _analysed(row)
            whole = found.get(row["run"])
            found[row["run"]] = one if whole is None else replace(whole, sparser=(*whole.sparser, one))
    return list(found.values())


def _file(run: Analysed) -> str:
    return f"{run.case.family}-{run.case.split}.parquet"


def _row(run: Analysed) -> dict[str, Any]:
    return {
        "run": run.case.name,
        "declared": json.dumps(asdict(run.case), sort_keys=True),
        "gap": run.gap,
        "first": run.first,
        "last": run.last,
        "onsets": list(run.onsets),
        "failed": run.failed,
        "certified": run.certified,
        "seconds": run.seconds,
        "rules": [
            {
                "name": name,
                "baseline": run.baseline[name],
                "resolution": run.resolution[name],
                "alarms": alarms,
                "at": run.at[name],
            }
            for name, alarms in run.alarms.items()
        ],
        "scores": _columns(run.scores),
        "log": _columns(run.log),
    }


def _columns(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [{"name": name, "values": frame[name].cast(pl.Float64).to_list()} for name in frame.columns]


def _frame(columns: Sequence[dict[str, Any]]) -> pl.DataFrame:
    frame = pl.DataFrame({one["name"]: pl.Series(one["values"], dtype=pl.Float64) for one in columns})
    return frame.with_columns(pl.col("step").cast(pl.Int64)) if columns else frame


def _analysed(row: dict[str, Any]) -> Analysed:
    rules = row["rules"]
    return Analysed(
        case=Case.declared(json.loads(row["declared"])),
        first=row["first"],
        last=row["last"],
        onsets=tuple(row["onsets"]),
        failed=row["failed"],
        gap=row["gap"],
        alarms={one["name"]: one["alarms"] for one in rules},
        at={one["name"]: one["at"] for one in rules},
        resolution={one["name"]: one["resolution"] for one in rules},
        baseline={one["name"]: one["baseline"] for one in rules},
        scores=_frame(row["scores"]),
        log=_frame(row["log"]),
        certified=row["certified"],
        seconds=row["seconds"],
    )
