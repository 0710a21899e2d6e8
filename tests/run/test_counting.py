"""Steps counted from 0 become optimizer updates, with everything that was counted by the log."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from hnf_offline.run.counting import recounted
from hnf_offline.run.records import Batches, Log, LogSegment, Run

FILE = Path("log.jsonl")
LOG = Log(
    pl.DataFrame({"step": [0, 1, 2, 1, 2], "loss": [5.0, 4.0, 3.0, 4.0, 3.0]}),
    (FILE,),
    restarts=(1,),
    segments=(LogSegment(FILE, 0, 2, 3, 2), LogSegment(FILE, 1, 2, 2)),
)


def run(batches: Batches | None = None, resumes: tuple[int, ...] = (1,)) -> Run:
    return Run(Path("r"), "r", (), LOG, batches, None, resume_steps=resumes)


def test_a_log_that_counts_from_0_is_moved_whole() -> None:
    moved = recounted(run(), 1, "replay says so")
    assert moved.log is not None
    assert moved.log.rows["step"].to_list() == [1, 2, 3, 2, 3]
    assert moved.log.rows["loss"].to_list() == LOG.rows["loss"].to_list()
    assert moved.log.restarts == (2,) == moved.resume_steps
    assert [(one.first, one.last) for one in moved.log.segments] == [(1, 3), (2, 3)]
    assert (moved.log.shift, moved.log.notes) == (1, ("replay says so",))


def test_resumes_that_the_user_named_stay() -> None:
    assert recounted(run(resumes=(7,)), 1, "").resume_steps == (7,)


@pytest.mark.parametrize(
    ("batches", "batch_shift", "first_rows_of"),
    [
        # Counted from the log's first step: the rows of the first update are the same rows under its new number.
        (Batches(FILE, "t", None, 8, 4, rows_per_step=2, first_step=0), None, 1),
        (Batches(FILE, "t", None, 8, 4, rows_per_step=2, first_step=1), None, 1),
        # The file itself says which step each row belongs to; it is moved only where replay says so.
        (Batches(FILE, "t", None, 8, 4, steps=(0, 0, 1, 1, 2, 2, 3, 3)), None, 0),
        (Batches(FILE, "t", None, 8, 4, steps=(0, 0, 1, 1, 2, 2, 3, 3)), 1, 1),
        (Batches(FILE, "t", None, 8, 4, rows_per_step=2, first_step=1), -1, 0),
    ],
)
def test_rows_stay_with_their_update(batches: Batches, batch_shift: int | None, first_rows_of: int) -> None:
    moved = recounted(run(batches), 1, "", batch_shift=batch_shift).batches
    assert moved is not None
    assert list(moved.rows_of_step(first_rows_of)) == [0, 1]
    assert list(moved.rows_of_step(first_rows_of + 1)) == [2, 3]


def test_without_a_shift_or_a_log_nothing_changes() -> None:
    here = run()
    assert recounted(here, 0, "") is here
    bare = Run(Path("r"), "r", (), None, None, None)
    assert recounted(bare, 1, "") is bare
