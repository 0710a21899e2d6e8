"""Learning curve and precision in sentences: what is known is told, nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from hnf_offline.detect.learning_curve import learning_curve
from hnf_offline.detect.scaler_history import mixed_precision
from hnf_offline.report import write_report
from hnf_offline.report.curve_text import curve_lines, log_quantities, precision_lines

from . import made

STEPS = np.arange(1, 1001)


def planted() -> pl.DataFrame:
    draw = np.random.default_rng(0)
    loss = 2 + 4 * STEPS**-0.5 + 0.02 * draw.standard_normal(STEPS.size)
    validation = 2.3 + np.abs(STEPS - 500) / 1000
    return pl.DataFrame({
        "step": STEPS,
        "loss": loss,
        "grad_norm": np.full(STEPS.size, 1.0),
        "learning_rate": np.where(STEPS < 700, 1e-3, 1e-4),
        "val_loss": pl.Series(np.where(STEPS % 50 == 0, validation, np.nan)).fill_nan(None),
        "val_accuracy": pl.Series(np.where(STEPS % 50 == 0, 3 - validation, np.nan)).fill_nan(None),
    })


def test_every_part_of_a_curve_is_a_sentence() -> None:
    said = "\n".join(curve_lines(learning_curve(planted())))
    for part in (
        "level: 2.1",
        "power law: ",
        "plateau score",
        "90 % of the fall",
        "overfits from step 500",
        "at step 500, 0.200 at last, 0.45 below its best since: it has turned",
    ):
        assert part in said
    assert "learning rate " in said and " at step 700: loss " in said
    assert "not finite" not in "\n".join(precision_lines(mixed_precision(planted())))


def test_nothing_is_told_of_nothing() -> None:
    assert list(curve_lines({})) == [] == list(precision_lines({}))
    assert log_quantities({}, {}) == []


def test_the_page_tells_it_with_the_method_of_what_was_computed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = made.log_only_run()
    curve, precision = learning_curve(planted()), mixed_precision(planted())
    findings = replace(run.findings, curve=curve, precision=precision)
    page = write_report(findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    assert "Learning curve and precision, from the log" in page and "overfits from step 500" in page
    assert "loss.power_law" in page and "scaler.simulated_skips" not in page
    without = write_report(run.findings, run.log, run.profile, tmp_path / "without").read_text(
        encoding="utf-8"
    )
    assert "Learning curve and precision" not in without
