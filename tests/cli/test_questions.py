"""A stranger's five questions, answered by the summary: what, where first, when known, luck, what now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def test_a_run_that_ends_in_nan_after_its_last_checkpoint(
    hnf: Any, other_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "COLUMNS", "160"
    )  # how long its layer's name is decides whether 100 columns cut the end
    shutil.copytree(other_run, "dead")
    last = json.loads(Path("dead/log.jsonl").read_text().splitlines()[-1])
    with Path("dead/log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(25, 40):
            log.write(
                json.dumps({**last, "step": step, "loss": last["loss"] if step < 30 else float("nan")}) + "\n"
            )
    said = hnf("report", "dead", "--tier", "stability", "--zoom", "off")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert len(lines) <= 12 and lines[-1] == "reports/dead/index.html"
    text = " ".join(said.out.split())
    assert "Diverged: One loss spike, at step 30" in text and "not finite" in text  # what
    assert "least stable in transformer." in text or "first: transformer." in text  # where first
    assert "checkpoint 24" in text  # when
    assert (
        "It lies outside of the checkpoints' steps, so luck cannot be ruled out" in text
        and "0 spikes" not in text.split("last")[0]
    )
    assert (
        "last healthy checkpoint: 24" in text and "Lower the learning rate for good to at most" in text
    )  # what now


def test_a_folder_that_cannot_be_read_says_which_file_and_what_to_do(hnf: Any) -> None:
    Path("bad").mkdir()
    Path("bad/model.safetensors").write_bytes(b"\x07" * 3000)
    said = hnf("report", "bad")
    assert said.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert "bad/model.safetensors" in said.err and "copy the file again" in said.err
    assert not Path("reports").exists()
