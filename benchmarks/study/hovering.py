"""Runs that hover at the edge of stability, told from the others by what is scored of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import polars as pl

from benchmarks.study.analysis import Analysed
from benchmarks.study.imminence import NAME
from benchmarks.study.scoring import WINDOW, pooled
from benchmarks.study.tables import leads, rate, shares, table
from hnf_offline.detect.regimes import regimes
from hnf_offline.relate.hovering import HOVERS, hovering_share
from hnf_offline.relate.relations import PRIMARY
from hnf_offline.table import Row
from hnf_offline.table import table as long_table

#: Rules that are compared, the last a rival that needs the log alone.
RULES = (PRIMARY, NAME, "S > 1", "gradient norm ZClip z > 2.5")


def hovers(run: Analysed) -> bool:
    """Whether a run hovers, by the report's own regimes of its S.

    Returns:
        False also where S was not measured.
    """
    known = run.scores.select("step", "S").drop_nulls() if "S" in run.scores.columns else pl.DataFrame()
    rows = [
        Row(int(step), "", "model", -1, "hessian.stability_ratio", float(value))
        for step, value in known.iter_rows()
    ]
    spikes = cast(Any, [SimpleNamespace(onset=onset) for onset in run.onsets])
    return bool(rows) and hovering_share(regimes(long_table(rows), spikes)) > HOVERS


def section(runs: Sequence[Analysed], splits: Sequence[str]) -> Iterator[str]:
    """Spell what alarms are worth in runs that hover and in the others, set of seeds by set.

    Yields:
        A heading, a paragraph and a table.
    """
    yield "### By regime"
    yield (
        f"A run hovers where S lies between 0.8 and 1.3, not rising, for more than {100 * HOVERS:.0f} % of its "
        f"measured steps, seen in hindsight, whatever its family; leads of up to {WINDOW} steps. That this tells "
        "good alarms from bad ones was found on test seeds and written down before any fresh seed was scored."
    )
    rows = []
    for split in splits:
        of = [run for run in runs if run.case.split == split]
        for word, members in (
            ("hovers", [run for run in of if hovers(run)]),
            ("does not", [run for run in of if not hovers(run)]),
        ):
            for rule in RULES:
                found = pooled(members, rule, WINDOW)
                if found is not None:
                    rows.append([
                        split,
                        word,
                        rule,
                        str(found.runs),
                        str(found.spikes),
                        *shares(found),
                        leads(found),
                        rate(found.false_alarms_per_1000),
                    ])
    head = ["seeds", "S", "rule", "runs", "spikes", "recall", "chance", "precision", "chance", "lead"]
    yield table([*head, "false per 1000"], rows)
