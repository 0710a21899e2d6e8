"""No entry of the catalogue is without a test that would notice a wrong value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnf_offline.quantities import catalogue
from hnf_offline.quantities.gradients import gradient_norm
from tests.quantities.spoiling import TESTS, spoiled, spoiling

ROOT = Path(__file__).parents[2]


def test_every_family_says_where_its_tests_are() -> None:
    families = {name.partition(".")[0] for name, entry in catalogue().items() if entry.inputs}
    assert set(TESTS) == families, "a new family has a line in tests/quantities/spoiling.py"
    for files in TESTS.values():
        assert all((ROOT / "tests" / one).is_file() for one in files)


def test_a_spoiled_entry_is_wrong_for_whoever_imported_it_and_right_again_afterwards() -> None:
    vector = torch.tensor([3.0, 4.0])
    with spoiling(catalogue()["gradient.norm"]):
        assert gradient_norm(vector).item() == pytest.approx(5.51)
    assert gradient_norm(vector).item() == 5.0
    assert spoiled({"a": (1.0, True, 2, None)}) == {"a": (pytest.approx(1.11), False, 3, None)}


@pytest.mark.slow
@pytest.mark.parametrize("family", TESTS)
def test_a_value_that_is_wrong_by_a_tenth_fails_a_test_of_its_family(family: str) -> None:
    names = [name for name, entry in catalogue().items() if entry.inputs and name.partition(".")[0] == family]
    done = subprocess.run(
        [sys.executable, "-m", "tests.quantities.spoiling", *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "entries without a closed form or a planted truth that would fail"
