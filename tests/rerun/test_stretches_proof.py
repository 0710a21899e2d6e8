"""Proof in a report, on a run that really spikes: advice is retrained, and what it is worth is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import Advice, Findings, Spike
from hnf_offline.pipeline import analyse
from hnf_offline.printing import plan_text
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.proof import can_replay, planned_zooms, prove_advice, zoom_before_spikes
from hnf_offline.retraining import EXACT, NOT_REPRODUCIBLE
from hnf_offline.run import open_run
from hnf_offline.table import table

SETTINGS = ProfileSettings(tier="stability", device="cpu", rows=12)


def rate(step: int) -> float:
    """Far too large for two steps."""
    return 0.2 if step in {44, 45} else 3e-3


@pytest.fixture
def spiky(record: Callable[..., Path]) -> Path:
    return record(rate=rate, steps=70)


def spikes_of(path: Path) -> tuple[Spike, ...]:
    log = open_run(path).log
    assert log is not None
    return tuple(find_spikes(log.rows, resume_steps=()))


def advised(path: Path, *policies: str, step: int = 40) -> Findings:
    spikes = spikes_of(path)
    advice = tuple(Advice(f"try {one}", "", step, {}, spikes[0].id, one) for one in policies)
    return Findings({}, {}, (), spikes=spikes, advice=advice)


def test_the_planted_spike_is_there(spiky: Path) -> None:
    (spike,) = spikes_of(spiky)
    assert spike.onset in {45, 46}  # the loss of a step is computed before its update
    assert spike.loss_peak > 1.3 * spike.loss_before


def test_each_piece_of_advice_gets_the_verdict_it_deserves(spiky: Path, plant: SimpleNamespace) -> None:
    before = plant.content(spiky)
    findings = advised(spiky, "lr-cap=0.003", "lr-cap=1", "lr-cap=0.14")
    onset = findings.spikes[0].onset
    advice, retrainings = prove_advice(open_run(spiky), findings, SETTINGS)
    cap, nothing, half = (one.tested for one in advice)
    assert cap.startswith("tested: no spike, loss ")
    assert nothing.startswith(f"tested: does not help: a spike at step {onset} ")
    assert "within what slightly changed weights give" in nothing
    assert half.startswith("tested: helps in part: a spike at step "), half
    (done,) = retrainings
    assert (done.start, done.reproduction.word) == (40, EXACT)
    assert done.twins is not None
    assert [arm.policy for arm in done.arms] == ["as was", "lr-cap=0.003", "lr-cap=1", "lr-cap=0.14"]
    assert done.arms[0].loss == pytest.approx(done.arms[2].loss)
    assert plant.content(spiky) == before


def test_two_pieces_with_the_same_policy_are_tried_once(spiky: Path) -> None:
    advice, retrainings = prove_advice(
        open_run(spiky), advised(spiky, "lr-cap=0.003", "lr-cap=0.003"), SETTINGS
    )
    assert advice[0].tested == advice[1].tested != ""
    assert len(retrainings[0].arms) == 2


def test_advice_without_a_policy_is_left_untested(spiky: Path) -> None:
    advice, retrainings = prove_advice(open_run(spiky), advised(spiky, ""), SETTINGS)
    assert (advice[0].tested, retrainings) == ("", ())


def test_the_retraining_begins_where_the_advice_can_still_act(spiky: Path) -> None:
    _, retrainings = prove_advice(open_run(spiky), advised(spiky, "lr-cap=0.003", step=25), SETTINGS)
    assert retrainings[0].start == 20


def test_a_run_that_cannot_be_replayed_proves_nothing(spiky: Path, plant: SimpleNamespace) -> None:
    plant.batches(spiky, lambda rows: rows | {"input_ids": rows["input_ids"].flip(0).contiguous()})
    advice, (done,) = prove_advice(open_run(spiky), advised(spiky, "lr-cap=0.003"), SETTINGS)
    assert done.reproduction.word == NOT_REPRODUCIBLE
    assert advice[0].tested.startswith("not tested: the retraining is not the run, because ")


def test_where_nothing_can_be_replayed_a_report_says_so_of_its_advice(spiky: Path, tmp_path: Path) -> None:
    run = replace(open_run(spiky), batches=None)
    findings = analyse(run, SETTINGS, tmp_path / "out", rule="robust", prove=True).findings
    named = [one.tested for one in findings.advice if one.policy]
    assert len(named) > 0
    assert set(named) == {"not tested: it takes the model, the batch of each step and an optimizer state"}


def test_no_state_before_the_spike_is_said(spiky: Path, plant: SimpleNamespace) -> None:
    plant.drop_state(spiky, 10, 20, 30, 40)
    advice, retrainings = prove_advice(open_run(spiky), advised(spiky, "lr-cap=0.003"), SETTINGS)
    assert advice[0].tested == "not tested: no checkpoint with optimizer state lies before the spike"
    assert retrainings == ()


def test_what_cannot_be_trained_is_said_and_stops_nothing(spiky: Path) -> None:
    (spiky / "config.json").unlink()
    advice, retrainings = prove_advice(open_run(spiky), advised(spiky, "lr-cap=0.003"), SETTINGS)
    assert advice[0].tested.startswith("not tested: has no model")
    assert retrainings == ()


def test_a_report_zooms_to_the_onset(spiky: Path, tmp_path: Path) -> None:
    run, findings = open_run(spiky), advised(spiky)
    zooms = zoom_before_spikes(run, table(), findings, SETTINGS, tmp_path / "out")
    (told,) = zooms.told
    onset = findings.spikes[0].onset
    assert (told["start"], told["stop"], told["every"], told["word"]) == (40, onset, 1, EXACT)
    assert zooms.table["step"].unique().sort().to_list() == list(range(40, onset + 1))
    assert (tmp_path / "out" / "zoom").is_dir()


def test_a_report_does_not_zoom_where_s_is_not_asked_for_or_nothing_can_be_replayed(
    spiky: Path, plant: SimpleNamespace, tmp_path: Path
) -> None:
    findings = advised(spiky)
    cheap = replace(SETTINGS, tier="forward")
    assert zoom_before_spikes(open_run(spiky), table(), findings, cheap, tmp_path / "out").told == ()
    plant.drop_state(spiky, *range(10, 80, 10))
    assert not can_replay(open_run(spiky), None)
    assert zoom_before_spikes(open_run(spiky), table(), findings, SETTINGS, tmp_path / "out").told == ()
    assert not (tmp_path / "out").exists()


def test_a_plan_says_of_an_optimizer_what_the_zoom_would_say(
    record: Callable[..., Path], spiky: Path, tmp_path: Path
) -> None:
    known = planned_zooms(open_run(spiky), SETTINGS)
    assert known["zoom_steps"] > 0 and "zoom_refused" not in known
    other = open_run(record(rate=rate, steps=70, optimizer=torch.optim.NAdam))
    assert spikes_of(other.path)
    planned = planned_zooms(other, SETTINGS)
    findings = Findings({}, {}, (), spikes=spikes_of(other.path))
    (zoomed,) = zoom_before_spikes(other, table(), findings, SETTINGS, tmp_path / "out").told
    assert zoomed["word"] == "not_zoomed"
    assert set(planned) == {"zoom_refused"} and zoomed["because"] in planned["zoom_refused"]
    assert "Adam, AdamW and SGD can" in planned["zoom_refused"]


def test_a_plan_announces_no_zoom_that_would_take_too_long(
    spiky: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hnf_offline.rerun.planning.affordable", lambda *_, **__: SimpleNamespace(every=1000, seconds=1)
    )
    planned = planned_zooms(open_run(spiky), SETTINGS)
    assert (
        set(planned) == {"zoom_refused"}
        and "would take too long; hnf zoom does it" in planned["zoom_refused"]
    )


def test_a_plan_in_words_has_the_refusal() -> None:
    told = {
        "run": "a", "out": "b", "checkpoints": 2, "cached": 0, "tier": "curvature", "layers": 1, "parameters": 9,
        "rows": 2, "tokens": 8, "device": "cpu", "forwards": 9.0, "peak_bytes": 1, "missing": [],
        "seconds_low": 1.0, "seconds_high": 2.0,
    }  # fmt: skip
    assert "zoom" not in plan_text(told)
    assert "\n  no zoom before spikes: because" in plan_text({**told, "zoom_refused": "because"})
