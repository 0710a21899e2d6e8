"""Every truth of the real logs: the known spikes are found, and healthy logs have none (docs/logs.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import real_logs
from hnf_offline.detect.log_events import log_pathologies
from hnf_offline.relate.log_alone import how_written

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.real


def outcome_of(truth):
    files = real_logs.files_of(truth)
    if not files:
        pytest.skip(f"{truth.files} are absent")
    return real_logs.outcome(truth, files)


@pytest.mark.parametrize("truth", real_logs.TRUTHS, ids=lambda truth: truth.name)
def test_what_is_known_of_a_log_is_found(truth):
    one = outcome_of(truth)
    assert not one.missed
    assert not one.untold
    if truth.healthy:
        assert one.findings.spikes == ()
        assert all(event.severity == "info" for event in one.findings.events)
        # Nor does a report have anything to say against it.
        assert log_pathologies(one.log.rows, one.findings.spikes, how_written(one.log)) == ()
        assert not (one.findings.curve.get("accuracy") or {}).get("turned")


def named(name):
    (truth,) = (truth for truth in real_logs.TRUTHS if truth.name == name)
    return outcome_of(truth)


@pytest.mark.parametrize(
    "name, most",
    [
        ("sample run spiky", 0), ("HF Trainer, Llama", 0), ("torch DCP, nanoGPT", 0), ("Megatron ds-off", 0),
        ("Pythia 410m-seed3, 4 files", 0), ("Pythia 410m-seed4, 5 files", 0), ("Pythia 160m-seed4", 0),
        ("Pythia 160m-seed9, 3 files", 0), ("Pythia 410m-seed8, 4 files", 1), ("fairseq run1", 0), ("fairseq run2", 0),
    ],
)  # fmt: skip
def test_nothing_else_is_found_where_a_log_is_known_well(name, most):
    assert len(named(name).beyond) <= most


def test_peaks_and_recovery_are_those_of_the_files():
    trainer = named("HF Trainer, Llama").hits
    assert (trainer[151].peak, round(trainer[151].loss_peak, 2)) == (152, 6.28)
    assert (trainer[220].peak, round(trainer[220].loss_peak, 2), trainer[220].end) == (220, 10.86, 221)
    grokking = named("grokking s5 s4").hits
    assert grokking[2300].loss_peak == pytest.approx(9.165, abs=1e-3)
    assert grokking[2300].recovered
    assert grokking[3500].recovered
    never = named("Pythia 410m-seed4, 5 files").hits[122002]
    assert (never.recovered, round(never.loss_peak, 2), never.at_resume) == (False, 10.98, True)


@pytest.mark.parametrize(("name", "last"), [("grokking mech_sgdm", [11675]), ("grokking s5 s3", [])])
def test_a_loss_that_goes_up_and_down_diverges_at_its_end_if_at_all(name, last):
    # Dozens of times it comes down to a little above its lowest; only what it ends in may be for good.
    assert [one.onset for one in named(name).findings.spikes if one.kind == "divergence"] == last


def test_a_climb_without_a_jump_is_told_beside_the_spike():
    one = named("Megatron ds-off")
    (climb,) = (event for event in one.findings.events if event.kind == "slow-divergence")
    assert (climb.severity, climb.last) == ("danger", 62)
    assert 28 <= climb.first <= 34


def test_a_log_that_ends_in_a_spike_says_that_it_does():
    (ending,) = (event for event in named("grokking s5 s4").findings.events if event.kind == "open-spike")
    assert (ending.first, ending.last) == (19950, 20000)
    assert "4.744" in ending.evidence


def test_the_border_case_is_the_highest_row_and_no_spike():
    # 0.508 from 0.40: 2.7 sigmas of the 60 rows before it, as one of 1218 normal draws would be.
    one = named("stanford_alpaca")
    assert one.findings.spikes == ()
    assert one.findings.highest["step"] == 932
    assert one.findings.highest["z"] == pytest.approx(2.7, abs=0.1)


def test_gradient_outliers_without_a_loss_spike_are_told():
    (event,) = (e for e in named("star, custom keys").findings.events if e.kind == "gradient-outliers")
    assert "82.4 at 22360" in event.evidence
    assert "53.9 at 33900" in event.evidence


def test_the_documented_table_is_the_one_that_is_printed():
    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    for truth in real_logs.TRUTHS:
        if real_logs.files_of(truth):
            assert real_logs.row(outcome_of(truth)) in text, truth.name
