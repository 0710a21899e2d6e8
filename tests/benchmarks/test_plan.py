"""A plan against what profiles of three models take, in forward passes: counts, so the same on every machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.plan import CASES, Case, held, train
from hnf_offline.profile.settings import ProfileSettings


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", ["screen", "standard"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_plan_is_within_thirty_per_cent_of_the_forward_passes_counted(
    case: Case, accuracy: str, tmp_path: Path
) -> None:
    if "GPT-2" in case.name and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    found = held(case, train(case, tmp_path / "run"), tmp_path / "out", ProfileSettings(accuracy=accuracy))
    predicted, counted = found.forwards
    assert counted > 0
    assert 0.7 <= predicted / counted <= 1.3
