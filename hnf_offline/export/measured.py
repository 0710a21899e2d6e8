"""Scalars and texts of a report's folder, chosen by quantity and layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError, UsageError

if TYPE_CHECKING:
    import polars as pl

_REMEDY = "give the folder that hnf report wrote, such as reports/gpt-small"


@dataclass(frozen=True, slots=True)
class Exported:
    """What goes into a tracker.

    Attributes:
        name: of the run.
        scalars: step, tag, value; by step, then tag. A tag is "quantity" or "quantity/layer".
        texts: (step, sentence) of every alarm, in the order in which they were known.
        verdict: word and sentence.
    """

    name: str
    scalars: pl.DataFrame
    texts: tuple[tuple[int, str], ...]
    verdict: str

    def by_step(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Group the scalars.

        Yields:
            Steps in order, and the values of each tag there.
        """
        for (step,), rows in self.scalars.group_by(["step"], maintain_order=True):
            yield int(str(step)), dict(zip(rows["tag"].to_list(), rows["value"].to_list(), strict=True))


def measured(
    folder: Path,
    quantities: str = "*",
    layers: str = "*",
    *,
    first: int | None = None,
    last: int | None = None,
    every: int = 1,
) -> Exported:
    """Read a report's folder.

    Args:
        folder: what `hnf report` wrote.
        quantities: glob over names of the catalogue.
        layers: glob over module paths; the whole model is taken whatever it says.
        first: first step of scalars and alarms, None for all.
        last: last step of scalars and alarms, None for all.
        every: scalars of every n-th measured step of those.

    Returns:
        What goes into a tracker.

    Raises:
        InputError: if the folder holds no report, or one that cannot be read.
        UsageError: if globs and steps leave nothing.
    """
    import polars as pl

    findings = _findings(folder / "findings.json")
    table = folder / "profile.parquet"
    if not table.is_file():
        raise InputError("no profile lies here, only a log was read", path=table, remedy=_REMEDY)
    try:
        profile = pl.read_parquet(table, columns=["step", "layer", "quantity", "value", "source"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError("cannot be read as a profile", path=table, remedy="run hnf report again") from error
    names = [one for one in profile["quantity"].unique().to_list() if fnmatchcase(one, quantities)]
    paths = [one for one in profile["layer"].unique().to_list() if one == "" or fnmatchcase(one, layers)]
    inside = range(
        0 if first is None else first, (max(profile["step"], default=0) if last is None else last) + 1
    )
    steps = [step for step in profile["step"].unique().sort().to_list() if step in inside][::every]
    scalars = (
        profile
        .filter(pl.col("step").is_in(steps))
        .filter(pl.col("quantity").is_in(names) & pl.col("layer").is_in(paths))
        .select(
            "step",
            pl
            .when(pl.col("layer") == "")
            .then("quantity")
            .otherwise(pl.format("{}/{}", "quantity", "layer"))
            .alias("tag"),
            "value",
            "source",
        )
        .sort("step", "tag", "source")
        .unique(
            ["step", "tag"], keep="first", maintain_order=True
        )  # of a checkpoint rather than of its retraining
        .drop("source")
    )
    if not steps:
        raise UsageError(
            "no measured step lies in the steps asked for", path=table, remedy="widen --steps A:B"
        )
    if scalars.is_empty():
        raise UsageError(
            f"--quantity {quantities!r} and --layers {layers!r} leave nothing",
            remedy="hnf quantities lists the names",
        )
    try:
        known = [(int(one["known_at"]), str(one["text"])) for one in findings["alarms"]]
        alarms = [one for one in known if (first or 0) <= one[0] and (last is None or one[0] <= last)]
        verdict, name = findings["verdict"], str(findings["run"]["name"])
        told = f"{verdict['word']}: {verdict['sentence']}"
    except (KeyError, TypeError, ValueError) as error:
        path = folder / "findings.json"
        raise InputError("is no findings.json of a report", path=path, remedy=_REMEDY) from error
    return Exported(name, scalars, tuple(sorted(alarms, key=lambda one: one[0])), told)


def _findings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("no report lies here", path=path, remedy=_REMEDY)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("cannot be read as JSON", path=path, remedy="run hnf report again") from error
    if not isinstance(document, dict):
        raise InputError("is no findings.json of a report", path=path, remedy=_REMEDY)
    return document
