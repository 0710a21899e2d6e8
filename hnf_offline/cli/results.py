"""What several verbs print on stdout in the same way: plans and the map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.pipeline import plans
from hnf_offline.printing import emit, emit_json, plan_text, terminal

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.findings import Findings
    from hnf_offline.origin import Choice
    from hnf_offline.profile.settings import ProfileSettings
    from hnf_offline.run.records import Run


def print_plans(
    runs: tuple[Run, ...],
    settings: ProfileSettings,
    folders: tuple[Path, ...],
    model: str | None,
    as_json: bool,
    *,
    zoom: bool = False,
    barrier: bool = False,
    options: Sequence[Choice] = (),
) -> None:
    """Print what profiling some runs would cost, and zooming or the way between them if asked; nothing is computed."""
    told = plans(runs, settings, folders, model=model, zoom=zoom)
    passes = 0
    if barrier:
        from hnf_offline.profile.barrier import planned_forwards

        a, b = runs
        passes = planned_forwards(a, b, settings)
    if as_json:
        from hnf_offline.strict_json import plain

        between = {"barrier_forwards": passes} if barrier else {}
        return emit_json(plain({"schema": 1, "plans": told, "options": told_options(options), **between}))
    texts = [plan_text(one) for one in told]
    if barrier:
        texts.append(f"The way between the runs: {passes} forward passes of the replayed rows.")
    return emit("\n\n".join([*texts, *options_text(options)]))


def told_options(options: Sequence[Choice]) -> list[dict[str, Any]]:
    """Give the options in effect as JSON values.

    Returns:
        Name, value and origin of each.
    """
    return [{"name": one.name, "value": one.value, "from": one.origin} for one in options]


def options_text(options: Sequence[Choice]) -> list[str]:
    """Spell the options in effect.

    Returns:
        One paragraph, none where there are no options.
    """
    return ["\n".join(["options", *(f"  {one}" for one in options)])] if options else []


def print_map(table: pl.DataFrame, findings: Findings | None = None) -> None:
    """Draw the layer by step map on the terminal."""
    from hnf_offline.report import heat_map

    emit(heat_map(table, findings=findings, **terminal()))
