"""`hnf monitor --follow` as a user runs it: in a terminal, in a pipe, and until Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_progress import on_a_terminal


def test_json_is_one_document_a_line_and_says_what_the_text_says(
    hnf: Any, write_log: Any, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "data" / "log.jsonl", nan=180)
    arguments = ("monitor", log, "--follow", "--interval", 0.1, "--until-idle", 0)
    said = hnf(*arguments)
    assert said.code == 0, said.err
    assert said.out.splitlines() == hnf("monitor", log).out.splitlines()
    assert said.out.startswith("[SPIKE] Step 120: loss 3.00 -> ")

    def strict(name: str) -> None:
        pytest.fail(f"{name} is not strict JSON")

    documents = [
        json.loads(line, parse_constant=strict) for line in hnf(*arguments, "--json").out.splitlines()
    ]
    assert [(one["schema"], one["tag"], one["step"]) for one in documents] == [
        (1, "spike", 120),
        (1, "recovered", 133),
        (1, "spike", 180),
    ]
    assert documents[0]["spike"]["onset"] == 120 and "peak" not in documents[0]["spike"], "not known yet"
    assert documents[1]["spike"]["peak"] in {120, 121} and documents[2]["spike"]["loss_text"] == "nan"


def test_every_checkpoint_that_is_there_is_measured_and_kept(hnf: Any, tiny_run: Path) -> None:
    arguments = ("monitor", tiny_run, "--tier", "gradient", "--interval", 0.1)
    said = hnf(*arguments, "--follow", "--until-idle", 0)
    assert said.code == 0, said.err
    assert "profile 4/4" in said.err
    again = hnf(*arguments)
    assert "4 of 4 from cache" in again.err and again.out.rstrip() == said.out.rstrip()
    assert hnf(*arguments, "--follow", "--until-idle", 0, "--quiet").err == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["s3://bucket/run", "--follow"], ["s3://bucket/run", "--follow", "leave out --follow"]),
        (["nowhere", "--follow"], ["nowhere", "no such file or folder", ";"]),
        ([".", "--until-idle", "5"], ["--until-idle", "add --follow"]),
        ([".", "--follow", "--interval", "0"], ["--interval"]),
        ([".", "--follow", "--layers", "none*", "--out", "."], ["never written inside a run"]),
    ],
)
def test_what_cannot_be_followed_is_one_line(arguments: list[str], parts: list[str], hnf: Any) -> None:
    said = hnf("monitor", *arguments)
    assert said.code == 2 and said.out == "" and said.err.count("\n") == 1
    for part in parts:
        assert part in said.err


def test_an_empty_folder_followed_until_idle_is_an_error(hnf: Any) -> None:
    Path("empty").mkdir()
    said = hnf("monitor", "empty", "--follow", "--interval", 0.1, "--until-idle", 0.3)
    assert said.code == 2 and said.out == ""
    assert said.err.splitlines()[0].endswith("; waiting for it")
    assert "empty" in said.err.splitlines()[-1] and len(said.err.splitlines()) == 2


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hnf_offline", "monitor", *arguments, "--follow", "--interval", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
    )  # fmt: skip


def test_new_lines_come_while_it_runs_and_an_interrupt_is_130(
    write_log: Any, tmp_path: Path, tiny_run: Path
) -> None:
    run = tmp_path / "live"
    shutil.copytree(tiny_run, run)
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    process = start([str(run), "--tier", "forward"], tmp_path)
    try:
        assert process.stdout is not None
        shard = tmp_path / "reports" / "live" / "profile"
        with (run / "log.jsonl").open("a", encoding="utf-8") as log:
            rows = [json.loads(line) for line in text.splitlines()]
            for step in range(25, 60):
                log.write(json.dumps({**rows[-1], "step": step, "loss": 50.0 if step > 55 else 1.0}) + "\n")
        line = process.stdout.readline()  # comes through the pipe before the program ends
        while line and not line.startswith("[SPIKE] Step 56"):
            line = process.stdout.readline()
        assert line.startswith("[SPIKE] Step 56: loss 1.00 -> 50.00")
        assert len(list(shard.glob("step-*.parquet"))) == 4
    finally:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "hnf: stopped, what was measured is kept; run again to go on"
    assert "Traceback" not in err and "\r" not in err and "nothing new" not in err


def test_a_reader_that_leaves_ends_it_quietly(write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "data" / "log.jsonl")
    process = start([str(log)], tmp_path)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("[SPIKE]")
    process.stdout.close()
    with log.open("a", encoding="utf-8") as file:
        for step in range(201, 260):
            file.write(f'{{"step": {step}, "loss": {9.0 if step > 230 else 3.0}}}\n')
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("more", "shown"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_only_a_terminal_is_told_what_is_waited_for(
    more: dict[str, str], shown: bool, write_log: Any, tmp_path: Path
) -> None:
    log = write_log(tmp_path / "data" / "log.jsonl")
    arguments = ["monitor", str(log), "--follow", "--interval", "0.1", "--until-idle", "0.5"]
    code, text = on_a_terminal(arguments, tmp_path, **more)
    assert code == 0
    assert ("log at step 200, 0 checkpoints measured; nothing new for" in text) == shown
    assert ("\x1b" in text) == shown and ("\r\x1b[2K" in text) == shown
    assert "[SPIKE] Step 120" in text
    assert os.environ.get("HNF_DEBUG") is None
