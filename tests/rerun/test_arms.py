"""An arm carries S with its error bars, and says where an eigenvalue has not settled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hnf_offline.linalg.stopping import ACCURACIES, StopRule
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.arms import unsettled
from hnf_offline.rerun.whatif import whatif
from hnf_offline.rerun.zoom import zoom
from hnf_offline.run import open_run

SETTINGS = ProfileSettings(tier="stability", device="cpu", rows=12)


def test_s_of_every_arm_lies_within_its_error_bar(recorded: Path) -> None:
    done = whatif(
        open_run(recorded), start=10, steps=4, policies=("lr-scale=0.5",), settings=SETTINGS, every=2
    )
    for arm in done.arms:
        assert len(arm.stability_ratio) == len(arm.stability_certified) == 3
        for low, value, high in zip(arm.stability_low, arm.stability_ratio, arm.stability_high, strict=True):
            assert low is not None and high is not None
            assert low <= value <= high
    as_was, halved = done.arms
    assert halved.stability_ratio[0] == pytest.approx(as_was.stability_ratio[0] / 2, rel=1e-3)


def test_what_has_not_settled_is_said(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACCURACIES, "hasty", StopRule(0.05, 3, maximum=2))
    hasty = replace(SETTINGS, accuracy="hasty")
    done = zoom(open_run(recorded), start=10, stop=12, settings=hasty, out=tmp_path).retraining
    assert not all(done.arms[0].stability_certified)
    assert any("has not settled at" in note for note in done.notes)
    sure = replace(done.arms[0], stability_certified=(True,) * 3)
    assert unsettled(sure) == ()


def test_a_zoom_that_ends_with_its_batches_says_so(recorded: Path, tmp_path: Path) -> None:
    done = zoom(open_run(recorded), start=30, stop=99, settings=SETTINGS, out=tmp_path, every=0).retraining
    assert done.stop == 40
    assert done.notes[0] == "the batches end at step 40, so steps 41 to 99 were not taken"
