"""The rate saved with the last checkpoint is that of a step nobody logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hnf_offline.check.examine import Examination
from tests.check.conftest import STEPS
from tests.check.test_planted import edit_optimizer, put_rows, rows_of

LAST = STEPS[-1]


def decayed_to_zero(run: Path, last_rate: float) -> None:
    """A linear schedule over the whole run: the optimizer keeps the rate of the next step, the log this step's."""
    put_rows(
        run,
        [
            row | {"learning_rate": 0.01 * (1 - (row["step"] - 1) / LAST)}
            for row in rows_of(run)
            if row["step"] <= LAST
        ],
    )
    for step in STEPS:
        rate = last_rate if step == LAST else 0.01 * (1 - step / LAST)
        edit_optimizer(run, step, lambda saved, rate=rate: saved["param_groups"][0].update(lr=rate))


@pytest.mark.parametrize(("last_rate", "steps"), [(0.0, []), (0.005, [LAST])])
def test_a_schedule_that_ends_at_zero_is_no_fault(
    healthy: Path, examined: Callable[..., Examination], last_rate: float, steps: list[int]
) -> None:
    decayed_to_zero(healthy, last_rate)
    found = [one.step for one in examined(healthy).wrong if one.kind == "learning-rate"]
    assert found == steps
