"""Every layout and log format has a specimen, and every specimen is read as what it is before it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.run import open_run
from hnf_offline.run.formats import FORMATS, load_optimizer, load_weights
from hnf_offline.run.logs import LOG_FORMATS

from . import specimens

#: What is there to be refused: weights of these can only be rebuilt by code from the file.
REFUSED = {"megatron_legacy", "adapter"}


def test_every_layout_and_log_format_has_a_specimen() -> None:
    made = [specimens.specimen(name) for name in specimens.names()]
    assert {one.layout for one in made} - {None} == set(FORMATS)
    assert {one.log_format for one in made} - {None} == set(LOG_FORMATS)


@pytest.mark.parametrize("name", specimens.names())
def test_an_undamaged_specimen_is_read(name: str, tmp_path: Path) -> None:
    one = specimens.specimen(name)
    run = open_run(specimens.write(one.files, tmp_path / "run") / one.target)
    if one.layout is not None:
        assert {checkpoint.layout for checkpoint in run.checkpoints} == {one.layout}
        for checkpoint in run.checkpoints:
            assert all(tensor.isfinite().all() for tensor in load_weights(checkpoint).values())
            if checkpoint.optimizer_files:
                assert load_optimizer(checkpoint) is not None
    if one.log_format is not None:
        assert run.log is not None
        assert one.log_format in run.log.formats
        assert run.log.rows["loss"].drop_nulls().len() >= 20
        assert 2 < run.log.rows["loss"].max() < 10  # type: ignore[operator]


def test_specimens_are_the_same_bytes_every_time() -> None:
    for name in specimens.names():
        made = dict(specimens.specimen(name).files)
        specimens.specimen.cache_clear()
        assert dict(specimens.specimen(name).files) == made, name
