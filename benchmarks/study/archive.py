"""Everything the study's page is written from, as it lies beside the page, so that parts can be made one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from benchmarks.study import readings
from benchmarks.study.analysis import Analysed
from benchmarks.study.initial import Begun
from benchmarks.study.intervention import Outcome
from benchmarks.study.localisation import Named

READINGS = "readings"
INTERVENTIONS = "interventions.parquet"
LOCALISATION = "localisation.parquet"
BEGINNINGS = "beginnings.parquet"
STUDY = "study.json"

_Record = TypeVar("_Record", Analysed, Outcome, Named, Begun)


@dataclass(frozen=True, slots=True)
class Archive:
    """What was made of the study.

    Attributes:
        runs: of experiments 1 and 2.
        interventions: outcomes of experiment 3.
        named: answers of experiment 4.
        begun: runs of experiment 5.
        made: by part, command, seconds, time, machine, versions.
    """

    runs: tuple[Analysed, ...] = ()
    interventions: tuple[Outcome, ...] = ()
    named: tuple[Named, ...] = ()
    begun: tuple[Begun, ...] = ()
    made: tuple[dict[str, Any], ...] = ()

    def with_part(self, part: Archive) -> Archive:
        """Add what was made since; a run that was made again takes the place of the one before.

        Returns:
            Both.
        """
        return Archive(
            tuple(_joined(self.runs, part.runs, lambda one: one.case.name)),
            tuple(_joined(self.interventions, part.interventions, lambda one: one.run)),
            tuple(_joined(self.named, part.named, lambda one: one.run)),
            tuple(_joined(self.begun, part.begun, lambda one: one.run)),
            (*self.made, *part.made),
        )

    def save(self, out: Path) -> None:
        """Write everything; what the folder held of another study is taken away.

        Args:
            out: folder.
        """
        for stale in (out / READINGS).glob("*.parquet"):
            stale.unlink()
        readings.keep(self.runs, out / READINGS)
        tables = {INTERVENTIONS: self.interventions, LOCALISATION: self.named, BEGINNINGS: self.begun}
        for name, records in tables.items():
            (out / name).unlink(missing_ok=True)
            if records:
                pl.DataFrame([asdict(one) for one in records]).write_parquet(out / name)
        described = [
            {**asdict(run.case), "split": run.case.split, "onsets": list(run.onsets)} for run in self.runs
        ]
        text = json.dumps({"made": list(self.made), "runs": described}, indent=1)
        (out / STUDY).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, out: Path) -> Archive:
        """Read what a folder holds.

        Returns:
            The archive; empty where the folder holds none.
        """
        study = out / STUDY
        return cls(
            # In one order, however they lie in files: intervals are drawn over it.
            tuple(sorted(readings.kept(out / READINGS), key=lambda one: one.case.name)),
            tuple(Outcome(**row) for row in _rows(out / INTERVENTIONS)),
            tuple(Named(**row) for row in _rows(out / LOCALISATION)),
            tuple(Begun(**row) for row in _rows(out / BEGINNINGS)),
            tuple(json.loads(study.read_text(encoding="utf-8"))["made"]) if study.exists() else (),
        )


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    return pl.read_parquet(path).iter_rows(named=True) if path.exists() else ()


def _joined(
    before: Sequence[_Record], since: Sequence[_Record], name: Callable[[_Record], str]
) -> list[_Record]:
    again = {name(one) for one in since}
    return sorted((*(one for one in before if name(one) not in again), *since), key=name)
