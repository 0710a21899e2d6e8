"""Of two steps that hold the same weights the one they are really of is told, on a whole run whose speed falls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hnf_offline.check import check_run
from hnf_offline.run import open_run
from tests.check.conftest import SAMPLES, folder_of


@pytest.fixture
def copy_over(tmp_path: Path) -> Callable[[int, int], Path]:
    """Put the weights of one step of the whole steady run under another."""

    def copy(source: int, target: int) -> Path:
        run = tmp_path / "run"
        shutil.copytree(SAMPLES / "steady", run)
        shutil.copy(
            folder_of(run, source) / "model.safetensors", folder_of(run, target) / "model.safetensors"
        )
        return run

    return copy


@pytest.mark.parametrize(("source", "target"), [(984, 300), (984, 192), (984, 768), (300, 984), (480, 588)])
def test_only_the_step_that_holds_weights_of_another_is_accused(
    copy_over: Callable[[int, int], Path], source: int, target: int
) -> None:
    run = copy_over(source, target)
    for checkpoint in (run / "checkpoints").iterdir():  # their own counts would tell
        (checkpoint / "optimizer.safetensors").unlink()
    told = check_run(open_run(run)).wrong
    assert [(one.kind, one.severity, one.step) for one in told] == [("identical-weights", "danger", target)]
    assert f"of step {source}" in told[0].evidence


def test_of_neighbours_on_a_straight_way_none_is_called_the_owner(
    copy_over: Callable[[int, int], Path],
) -> None:
    run = copy_over(516, 552)
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "optimizer.safetensors").unlink()
    (told,) = check_run(open_run(run)).wrong
    assert told.kind == "identical-weights" and "516 and 552" in told.evidence
    assert "they are of step" not in told.evidence
