"""Compare two runs: the parts in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.comparison import Comparison, LinearBarrier
from hnf_offline.detect.paired import paired_test
from hnf_offline.diff.configuration import configuration_differences, logged_learning_rate
from hnf_offline.diff.incomparable import alignment, not_comparable
from hnf_offline.diff.separation import LOG_FLOOR, PROFILE_FLOOR, in_order, separate
from hnf_offline.diff.series import logged, profiled
from hnf_offline.diff.verdict import tell
from hnf_offline.diff.weights import weight_distances

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.findings import Findings
    from hnf_offline.run.records import Run


def compare(
    findings_a: Findings,
    findings_b: Findings,
    run_a: Run,
    run_b: Run,
    profile_a: pl.DataFrame,
    profile_b: pl.DataFrame,
    *,
    replay: Path | None = None,
    made: Mapping[str, Any] | None = None,
    barriers: Sequence[LinearBarrier] = (),
    no_barriers: Sequence[str] = (),
) -> Comparison:
    """Compare two runs at their common steps.

    Args:
        findings_a: what was found in run A.
        findings_b: what was found in run B.
        run_a: run A as found on disk.
        run_b: run B as found on disk.
        profile_a: long table of run A.
        profile_b: long table of run B.
        replay: the batch file both were replayed on, None where each was replayed on its own.
        made: versions, time and device of this comparison.
        barriers: on the way from A to B, where those were measured.
        no_barriers: sentences on steps that have none, and why.

    Returns:
        Configuration differences, separations, weight distances, and what could not be compared.
    """
    from hnf_offline.run.configuration import full_configuration

    configuration, shared = configuration_differences(full_configuration(run_a), full_configuration(run_b))
    logs = list(logged(run_a, run_b))
    profiles = list(profiled(profile_a, profile_b))
    if not any(difference.key.endswith(("learning_rate", ".lr")) for difference in configuration):
        configuration += logged_learning_rate(logs)
    separations = [separate(name, "", series, LOG_FLOOR) for name, series in logs]
    separations += [separate(name, layer, series, PROFILE_FLOOR) for name, layer, series in profiles]
    distances, weights_incomparable = weight_distances(run_a, run_b, profile_a)
    aligned = alignment(logs, profiles, run_a, run_b)
    incomparable = (
        *not_comparable(findings_a, findings_b, run_a, run_b, profile_a, profile_b, aligned, replay),
        *weights_incomparable,
        *no_barriers,
    )
    verdict, facts = tell(
        configuration, separations, distances, logs, aligned, incomparable, run_a.gap or run_b.gap
    )
    losses = next((series for name, series in logs if name == "loss"), None)
    test = None if losses is None else paired_test(losses.steps, losses.a, losses.b)
    return Comparison(
        a=findings_a.run,
        b=findings_b.run,
        verdict=verdict,
        facts=facts,
        aligned=aligned,
        configuration=configuration,
        shared_configuration=shared,
        separations=tuple(sorted(separations, key=in_order)),
        weight_distances=distances,
        spikes_a=findings_a.spikes,
        spikes_b=findings_b.spikes,
        alarms_a=findings_a.alarms,
        alarms_b=findings_b.alarms,
        incomparable=incomparable,
        made=dict(made or {}),
        loss_test=None if test is None else asdict(test),
        barriers=tuple(barriers),
    )
