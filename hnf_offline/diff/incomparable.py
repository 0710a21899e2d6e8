"""On which steps two runs can be compared, and what cannot be compared at all."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.diff.words import listed, some

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.diff.series import Series
    from hnf_offline.findings import Findings
    from hnf_offline.run.records import Run


def alignment(
    log_series: list[tuple[str, Series]],
    profile_series: list[tuple[str, str, Series]],
    run_a: Run,
    run_b: Run,
) -> dict[str, Any]:
    """Say on which steps the two runs were compared.

    Returns:
        The axis in words, the common steps, and the first step at which the losses differ at all.
    """
    logged = sorted({int(step) for _, series in log_series for step in series.steps})
    profiled = sorted({int(step) for _, _, series in profile_series for step in series.steps})
    loss = next((series for name, series in log_series if name == "loss"), None)
    first_difference = None
    if loss is not None:
        unequal = ~((loss.a == loss.b) | (np.isnan(loss.a) & np.isnan(loss.b)))
        first_difference = int(loss.steps[unequal][0]) if unequal.any() else None
    common = {one.step for one in run_a.checkpoints} & {one.step for one in run_b.checkpoints}
    return {
        "axis": "step (optimizer updates applied)",
        "log_steps": len(logged),
        "log_first": logged[0] if logged else None,
        "log_last": logged[-1] if logged else None,
        "profile_steps": profiled,
        "common_checkpoints": len(common),
        "first_loss_difference": first_difference,
    }


def not_comparable(
    findings_a: Findings,
    findings_b: Findings,
    run_a: Run,
    run_b: Run,
    profile_a: pl.DataFrame,
    profile_b: pl.DataFrame,
    aligned: Mapping[str, Any],
    replay: Path | None,
) -> Iterable[str]:
    """List what could not be compared, and why.

    Yields:
        One sentence each.
    """
    import polars as pl

    if run_a.log is None or run_b.log is None:
        without = " and ".join(label for label, run in (("A", run_a), ("B", run_b)) if run.log is None)
        yield f"No training log in {without}: losses were not compared."
    elif not aligned["log_steps"]:
        yield "The two logs have no step in common: losses were not compared."
    else:
        yield from _one_sided("logged step", _log_steps(run_a), _log_steps(run_b))
    steps_a, steps_b = set(profile_a["step"].to_list()), set(profile_b["step"].to_list())
    if not (steps_a and steps_b):
        without = " and ".join(label for label, steps in (("A", steps_a), ("B", steps_b)) if not steps)
        yield f"No profile of {without}: curvature and layers were not compared."
        return
    if not steps_a & steps_b:
        yield "The two runs have no profiled checkpoint in common: curvature and layers were not compared."
    yield from _one_sided("profiled checkpoint", steps_a, steps_b)
    layers_a, layers_b = set(profile_a["layer"].to_list()), set(profile_b["layer"].to_list())
    for label, only in (("A", layers_a - layers_b), ("B", layers_b - layers_a)):
        if only:
            yield f"{some(sorted(only), 'layer')} only in {label}: not compared."
    shared = layers_a & layers_b
    names_a, names_b = set(profile_a["quantity"].to_list()), set(profile_b["quantity"].to_list())
    for label, only in (("A", names_a - names_b), ("B", names_b - names_a)):
        if only and shared:
            yield f"{some(sorted(only), 'quantity', 'quantities')} only in {label}: not compared."
    if replay is None:
        yield from _replayed_data(run_a, run_b)
    optimizer_a, optimizer_b = (_optimizer_kind(one) for one in (findings_a, findings_b))
    if optimizer_a != optimizer_b:
        yield (
            f"Other optimizers ({optimizer_a} and {optimizer_b}): S compares each with its own edge; "
            "the raw eigenvalues say nothing about which run is nearer to it."
        )
    rule_a, rule_b = findings_a.made.get("spike_rule"), findings_b.made.get("spike_rule")
    if rule_a != rule_b:
        yield f"Spikes were found by other rules ({rule_a} and {rule_b}): their counts are not comparable."
    for label, profile in (("A", profile_a), ("B", profile_b)):
        uncertified = profile.filter(~pl.col("certified"))
        if not uncertified.is_empty():
            names = sorted(set(uncertified["quantity"].to_list()))
            yield (
                f"{len(uncertified)} of {len(profile)} values of {label} are not certified "
                f"({listed(names)}): a separation there may be the solver's."
            )


def _optimizer_kind(findings: Findings) -> str:
    # "AdamW, lr 0.005": the rate is a matter of the configuration.
    return str(findings.run.get("optimizer") or "unknown").split(",", maxsplit=1)[0]


def _replayed_data(run_a: Run, run_b: Run) -> Iterable[str]:
    a, b = run_a.batches, run_b.batches
    if a is None or b is None or a.path == b.path:
        return
    try:
        same = filecmp.cmp(a.path, b.path, shallow=False)
    except OSError as error:
        yield f"The replay batches could not be compared ({error.strerror or error})."
        return
    if not same:
        yield (
            f"A and B were replayed on other batches ({a.path.name} and {b.path.name} differ): "
            "values measured on data differ for that reason too; give both the same rows with --replay FILE."
        )


def _log_steps(run: Run) -> set[int]:
    return set() if run.log is None else set(run.log.rows["step"].to_list())


def _one_sided(what: str, a: set[int], b: set[int]) -> Iterable[str]:
    for label, only in (("A", a - b), ("B", b - a)):
        if only:
            yield (
                f"{len(only)} {what}{'' if len(only) == 1 else 's'} only in {label} "
                f"({min(only)} to {max(only)}): not compared."
            )
