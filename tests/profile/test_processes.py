"""Several devices: the table of one process row for row; a process that dies costs only its own checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from hnf_offline.errors import STANDS_FOR, InputError, UsageError
from hnf_offline.profile import ProfileSettings, plan, profile_run
from hnf_offline.profile import processes as processing
from hnf_offline.profile.devices import choose_device, choose_devices, device_names
from hnf_offline.profile.settings import Progress
from hnf_offline.run import open_run
from hnf_offline.run.records import Run

TWO = ProfileSettings(tier="gradient", device="cpu,cpu")
ONE = replace(TWO, device="cpu")


def test_two_processes_give_the_table_of_one_row_for_row(tiny: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(device="cpu,cpu", last_step=16)
    run = open_run(tiny)
    one = profile_run(run, replace(settings, device="cpu"), tmp_path / "one")
    told: list[Progress] = []
    two = profile_run(run, settings, tmp_path / "two", on_progress=told.append)
    assert_frame_equal(one.table, two.table)
    assert_frame_equal(pl.read_parquet(tmp_path / "two" / "profile.parquet"), one.table)
    assert (two.computed, two.cached, two.skipped, two.device) == (4, 0, (), "cpu, cpu")
    ends = [progress for progress in told if not progress.part]
    assert [progress.done for progress in ends] == [1, 2, 3, 4]
    assert {progress.step for progress in ends} == {4, 8, 12, 16}
    # What two measured, one finds, and the other way round.
    assert profile_run(run, replace(settings, device="cpu"), tmp_path / "two").cached == 4
    assert profile_run(run, settings, tmp_path / "one").cached == 4


def test_two_processes_pass_over_what_one_does_and_import_the_users_own_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_model_of_mine.py").write_text(
        "from hnf_offline.run.model.gpt import GPT, GPTConfig\n\n"
        "def build(config):\n    return GPT(GPTConfig.from_mapping(config))\n"
    )
    monkeypatch.chdir(tmp_path)
    run = open_run(tiny)
    for step in (8, 12):
        file = tiny / "checkpoints" / f"step-{step:06d}" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    one = profile_run(run, ONE, tmp_path / "one", model_factory="a_model_of_mine:build")
    two = profile_run(run, TWO, tmp_path / "two", model_factory="a_model_of_mine:build")
    assert len(one.skipped) == 2
    assert two.skipped == one.skipped, "in the order of the steps"
    assert_frame_equal(one.table, two.table)


def _dies_at(step: int, how: str) -> Callable[..., None]:
    """What a process does whose machine runs out of memory in the middle of a checkpoint."""
    return _Doomed(step, how)


class _Doomed:
    """Runs in the new process; a class, so that it travels there."""

    def __init__(self, step: int, how: str) -> None:
        self.step = step
        self.how = how

    def __call__(self, connection: Any, run: Run, *others: Any) -> None:
        from hnf_offline.profile import checkpoint as measuring

        measure = measuring.measure_in_memory

        def fatal(session: Any, settings: Any, step: int, *rest: Any) -> Any:
            if step == self.step:
                if self.how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.how == "leaves":
                    os._exit(3)
                raise ZeroDivisionError("nobody foresaw this")
            return measure(session, settings, step, *rest)

        measuring.measure_in_memory = fatal
        processing._work(connection, run, *others)  # here it is itself


@pytest.mark.parametrize(
    ("how", "words"), [("killed", "SIGKILL"), pytest.param("leaves", "exit code 3", marks=pytest.mark.slow)]
)
def test_a_process_that_dies_is_told_and_the_rest_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    whole = profile_run(open_run(tiny), ONE, tmp_path / "whole")
    monkeypatch.setattr(processing, "_work", _dies_at(12, how))
    told: list[Progress] = []
    profile = profile_run(open_run(tiny), TWO, tmp_path / "out", on_progress=told.append)
    # The first process has 4, 12 and 20, the second one 8, 16 and 24.
    assert profile.table["step"].unique().sort().to_list() == [4, 8, 16, 24]
    assert [path.name for path, _, _ in profile.skipped] == ["step-000012", "step-000020"]
    assert all(words in reason and "cpu" in reason for _, reason, _ in profile.skipped)
    (event,) = [progress.event for progress in told if progress.event]
    assert event.startswith("cpu: its process") and "2 checkpoints left for another run" in event
    monkeypatch.undo()
    again = profile_run(open_run(tiny), TWO, tmp_path / "out")
    assert (again.computed, again.cached) == (2, 4)
    assert_frame_equal(again.table, whole.table)


@pytest.mark.slow  # seconds for every process that is started
def test_where_all_processes_die_the_reason_is_the_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TWO, last_step=8)
    monkeypatch.setattr(processing, "_work", _AllDie())
    with pytest.raises(InputError, match=r"none of 2 checkpoints could be profiled: .*SIGKILL"):
        profile_run(open_run(tiny), settings, tmp_path / "out")


class _AllDie:
    def __call__(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow  # seconds for every process that is started
def test_an_error_that_nobody_foresaw_ends_all_of_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "_work", _dies_at(12, "fails"))
    with pytest.raises(RuntimeError, match="on cpu: ZeroDivisionError: nobody foresaw this"):
        profile_run(open_run(tiny), TWO, tmp_path / "out")


def _of_group(group: int) -> list[str]:
    """Processes of a group that are alive, where the system lists them as files."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(its_group) == group and state not in "ZX":
            found.append((file.parent / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.slow  # seconds for every process that is started
def test_ctrl_c_ends_all_processes_and_keeps_what_is_finished(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "hnf_offline",
        "profile",
        str(tiny),
        "--out",
        str(out),
        "--device",
        "cpu,cpu",
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (
        not list(out.glob("profile/step-*.parquet"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody hears it
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("hnf: stopped at ") and "kept; run again to go on" in said
    deadline = time.monotonic() + 20
    while (left := _of_group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    kept = list(out.glob("profile/step-*.parquet"))
    assert 1 <= len(kept) < 6
    assert not list(out.glob("profile/.*.part"))
    assert plan(open_run(tiny), ProfileSettings(), out).cached == len(kept), "run again to go on"


def test_a_run_on_a_server_is_read_by_one_process(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STANDS_FOR, str(tiny), "s3://somewhere/tiny")
    with pytest.raises(UsageError, match="one process"):
        profile_run(open_run(tiny), TWO, tmp_path / "out")


# how devices are spelled


@pytest.mark.parametrize("spelled", ["", "gpu", "cuda:", "cuda:x", "auto,cpu", "cpu,", "cuda:-1"])
def test_what_names_no_device_is_refused(spelled: str) -> None:
    with pytest.raises(UsageError, match="no device"):
        device_names(spelled)


def test_devices_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    named = {
        spelled: [str(device) for device in choose_devices(spelled)]
        for spelled in ("auto", "cuda", "cuda:2", "cuda:0, cuda:2", "cpu,cpu", "cpu,cuda")
    }
    assert named == {
        "auto": ["cuda"],
        "cuda": ["cuda:0", "cuda:1", "cuda:2"],
        "cuda:2": ["cuda:2"],
        "cuda:0, cuda:2": ["cuda:0", "cuda:2"],
        "cpu,cpu": ["cpu", "cpu"],
        "cpu,cuda": ["cpu", "cuda:0", "cuda:1", "cuda:2"],
    }
    assert str(choose_device("cuda")) == "cuda:0"
    with pytest.raises(UsageError, match="'cuda:3' is not available here"):
        choose_devices("cuda:0,cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [str(device) for device in choose_devices("cuda")] == ["cuda"]


def test_a_plan_names_all_devices(tiny: Path, tmp_path: Path) -> None:
    assert plan(open_run(tiny), TWO, tmp_path / "out").device == "cpu, cpu"
