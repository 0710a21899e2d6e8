"""What is measured apart from the rest of a profile, with shards of its own, and joins its table and its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from hnf_offline.profile.densities import measure_densities
from hnf_offline.profile.landscape import measure_landscape
from hnf_offline.profile.run import Profile
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import write_parquet
from hnf_offline.profile.weights import measure_weights
from hnf_offline.run.records import Run
from hnf_offline.table import sort


def with_the_rest(
    profile: Profile,
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    model_factory: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Profile:
    """Measure what the settings ask for beside a profile, and add it.

    Args:
        profile: what was measured.
        run: the run directory's records.
        settings: what to measure.
        out: the output directory.
        model_factory: `package.module:function` instead of the run's own model.
        on_progress: called after every checkpoint.

    Returns:
        The profile with weights and landscape (tier full, the latter also by itself) and densities.
    """
    full = settings.tier == "full"
    if full:
        weights = measure_weights(run, settings, out, model_factory=model_factory, on_progress=on_progress)
        # Which parameters are not finite is in the profile already.
        rows = weights.table.filter(pl.col("quantity") != "weight.nonfinite")
        profile = _joined(profile, rows, weights.skipped, out)
    if full or settings.landscape:
        landscape = measure_landscape(
            run, settings, out, model_factory=model_factory, on_progress=on_progress
        )
        profile = _joined(profile, landscape.rows, landscape.skipped, out)
        profile = replace(profile, forwards=profile.forwards + landscape.forwards)
    if settings.density:
        densities = measure_densities(
            run, settings, out, model_factory=model_factory, on_progress=on_progress
        )
        profile = _joined(profile, densities.rows, densities.skipped, out, every=True)
    return profile


def _joined(
    profile: Profile,
    rows: pl.DataFrame,
    skipped: Sequence[tuple[Path, str, str]],
    out: Path,
    *,
    every: bool = False,
) -> Profile:
    """Add rows to a profile and its file; of checkpoints that are told already, tell only `every` skip again."""
    table = sort(pl.concat([profile.table, rows]))
    write_parquet(out / "profile.parquet", table)
    known = set() if every else {path for path, _, _ in profile.skipped}
    told = (*profile.skipped, *(one for one in skipped if one[0] not in known))
    return replace(profile, table=table, skipped=told)
