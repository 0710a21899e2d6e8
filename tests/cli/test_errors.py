"""Bad input is one line that names the file and the remedy; nothing of the user's is ever touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.progress import printable


def one_line(said: Any, *parts: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("\n") == 1, said.err
    for part in parts:
        assert part in said.err, said.err


@pytest.mark.parametrize("verb", ["report", "profile", "monitor", "spikes"])
def test_no_such_path(verb: str, hnf: Any) -> None:
    one_line(hnf(verb, "nowhere"), "nowhere", ";")


@pytest.mark.parametrize("verb", ["report", "profile", "monitor", "spikes"])
def test_an_empty_folder(verb: str, hnf: Any) -> None:
    Path("empty").mkdir()
    one_line(hnf(verb, "empty"), "empty", ";")
    assert not Path("reports").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe" * 100, b"hello\nworld\n", b'{"a": 1}\n', b"step,loss\n"]
)
def test_a_file_that_is_no_log(content: bytes, hnf: Any) -> None:
    Path("thing.txt").write_bytes(content)
    for verb in ("spikes", "report"):
        one_line(hnf(verb, "thing.txt"), "thing.txt")


def test_a_truncated_checkpoint(hnf: Any, tiny_run: Path, tmp_path: Path) -> None:
    whole = next(tiny_run.rglob("model.safetensors")).read_bytes()
    folder = tmp_path / "cut" / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    one_line(hnf("profile", tmp_path / "cut"), "model.safetensors")


def test_a_log_without_checkpoints_cannot_be_profiled(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    one_line(hnf("profile", write_log(tmp_path / "log.jsonl")), "log.jsonl", "hnf spikes")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_an_unreadable_log(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    log.chmod(0)
    one_line(hnf("spikes", log), "log.jsonl")


@pytest.mark.parametrize(
    ("steps", "part"), [("5", "100:200"), ("a:b", "100:200"), ("20:10", "10:20"), ("1:2:3", "100:200")]
)
def test_steps_that_are_no_range(steps: str, part: str, hnf: Any, tiny_run: Path) -> None:
    one_line(hnf("profile", tiny_run, "--steps", steps), f"--steps {steps}", part)


def test_a_replay_file_that_is_not_there(hnf: Any, tiny_run: Path) -> None:
    one_line(hnf("profile", tiny_run, "--replay", "gone.npz"), "gone.npz")


def test_a_model_that_cannot_be_imported(hnf: Any, tiny_run: Path) -> None:
    one_line(hnf("profile", tiny_run, "--model", "no.such.module:build"), "no.such.module")


@pytest.mark.parametrize("verb", ["report", "profile", "monitor"])
def test_results_are_never_written_inside_a_run(verb: str, hnf: Any, tiny_run: Path) -> None:
    before = sorted(tiny_run.rglob("*"))
    for out in (tiny_run, tiny_run / "deep" / "inside", tiny_run / ".." / tiny_run.name / "reports"):
        one_line(hnf(verb, tiny_run, "--out", out), "never written inside a run", "--out")
    assert sorted(tiny_run.rglob("*")) == before


def test_a_link_into_the_run_is_followed(hnf: Any, tiny_run: Path) -> None:
    Path("link").symlink_to(tiny_run)
    one_line(hnf("report", tiny_run, "--out", "link/report"), "never written inside a run")


def test_results_are_never_written_inside_either_run_of_two(
    hnf: Any, tiny_run: Path, other_run: Path
) -> None:
    one_line(hnf("diff", tiny_run, other_run, "--out", other_run / "x"), "never written inside a run")


def test_running_inside_the_run_asks_for_another_folder(
    hnf: Any, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run)
    one_line(hnf("report", "."), "never written inside a run", "--out")


@pytest.mark.parametrize("name", ["thesis.tex", "index.html"])
def test_files_of_other_origin_are_not_overwritten(name: str, hnf: Any, tiny_run: Path) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("precious", encoding="utf-8")
    arguments = ("profile", tiny_run, "--tier", "forward", "--steps", "6:6", "--out", "mine")
    one_line(hnf(*arguments), name, "--force")
    assert hnf(*arguments, "--force").code == 0
    assert Path("mine", name).read_text(encoding="utf-8") == "precious"


def test_the_report_of_another_run_is_replaced_with_a_word(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    one, two = (write_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert hnf("report", one, "--quiet", "--out", "page").code == 0
    said = hnf("report", two, "--out", "page")
    assert said.code == 0
    assert f"another run ({one}" in said.err


def test_an_unexpected_error_is_one_line_and_the_traceback_on_demand(
    hnf: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the sky fell\nsecond line")

    monkeypatch.setattr("hnf_offline.cli.report.open_input", broken)
    one_line(hnf("report", tiny_run), "internal error: RuntimeError: the sky fell", "HNF_DEBUG=1")
    monkeypatch.setenv("HNF_DEBUG", "1")
    assert "Traceback" in hnf("report", tiny_run).err


def test_interrupted_says_what_is_kept_and_goes_on(
    hnf: Any, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    from hnf_offline.profile import checkpoint as profiling

    measure = profiling.measure_in_memory
    calls = []

    def third_time_unlucky(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(profiling, "measure_in_memory", third_time_unlucky)
    said = hnf("profile", tiny_run, "--tier", "forward")
    assert said.code == 130
    assert said.err.splitlines()[-1] == "hnf: stopped at 2/4, kept; run again to go on"
    again = hnf("profile", tiny_run, "--tier", "forward")
    assert again.code == 0
    assert "2 of 4 from cache" in again.err


def test_a_real_interrupt_is_130_without_a_traceback(tiny_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hnf_offline", "profile", str(tiny_run), "--dtype", "float64"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    shard = tmp_path / "reports" / "tiny" / "profile"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(shard.glob("*.parquet")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if process.returncode != 0:  # it may have finished first
        assert process.returncode == 130
        assert err.splitlines()[-1].endswith("kept; run again to go on")


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        f"{sys.executable} -m hnf_offline quantities --json | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 141}
    assert done.stderr == ""


def test_control_characters_in_names_are_shown_not_obeyed(hnf: Any) -> None:
    said = hnf("report", "evil\x1b[2Jname")
    one_line(said, "evil\\x1b[2Jname")
    assert "\x1b" not in said.err


def test_printable_escapes_what_a_terminal_would_obey() -> None:
    assert printable("a\x1b[31mb\x07\u202e\udcff") == "a\\x1b[31mb\\x07\\u202e\\udcff"
    assert printable("größe\tx") == "größe\tx"
