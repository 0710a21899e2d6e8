"""Manners of a command line that no single verb answers for: completion, pipes, colours, widths, the same twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.options import TierName

ANSI = "\x1b"
HEAVY = ("torch", "matplotlib", "polars", "transformers", "numpy")
#: One call of every verb that prints a result; {run} is a recorded run, {log} its log.
CALLS = {
    "report": ["report", "{run}", "--tier", "forward", "--map"],
    "profile": ["profile", "{run}", "--tier", "forward", "--map"],
    "monitor": ["monitor", "{run}", "--tier", "forward"],
    "diff": ["diff", "{run}", "{run}", "--tier", "forward"],
    "spikes": ["spikes", "{log}"],
    "check": ["check", "{run}", "--cheap"],
    "quantities": ["quantities"],
    "quantity": ["quantities", "hessian.stability_ratio"],
    "policies": ["whatif", "--list-policies"],
    "env": ["env"],
    "plan": ["report", "{run}", "--plan"],
}


def call(name: str, run: Path) -> list[str]:
    return [word.format(run=run, log=run / "log.jsonl") for word in CALLS[name]]


def completed(shell: str, line: str, **more: str) -> tuple[int, str, list[str]]:
    """Ask for completions as the shell's script does; also say what heavy modules that loaded."""
    program = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))\n"
        "from hnf_offline.cli import main\nsys.exit(main([]))\n"
    )
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env=os.environ | {"_HNF_COMPLETE": f"complete_{shell}"} | asked | more,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[]", "completion is instant"
    return done.returncode, done.stdout, done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_tiers_and_verbs_are_completed_without_anything_heavy(shell: str) -> None:
    _, text, _ = completed(shell, "hnf profile --tier ")
    assert all(tier.value in text for tier in TierName) and "report" not in text
    _, text, _ = completed(shell, "hnf mon")
    assert "monitor" in text and "report" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_run_is_completed_by_the_shell_as_a_path(shell: str) -> None:
    code, text, words = completed(shell, "hnf report sam", _TYPER_COMPLETE_FISH_ACTION="is-args")
    source = subprocess.run(
        [sys.executable, "-m", "hnf_offline"], capture_output=True, text=True, check=True,
        env=os.environ | {"_HNF_COMPLETE": f"source_{shell}"},
    ).stdout  # fmt: skip
    if shell == "bash":
        assert (
            words == [] and "complete -o default" in source
        )  # nothing of ours: the shell's own, which is files
    elif shell == "zsh":
        assert words == ["_files"] and "#compdef" in source
    else:
        assert (
            code == 1 and text == "" and "complete --command" in source
        )  # "no arguments": files are offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_completion_writes_what_the_shell_reads(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    done = subprocess.run(
        [sys.executable, "-m", "hnf_offline", "--install-completion", shell],
        capture_output=True, text=True, check=False, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr
    written = [file for file in tmp_path.rglob("*") if file.is_file() and "_HNF_COMPLETE" in file.read_text()]
    assert written


@pytest.mark.parametrize("name", ["report", "spikes", "quantities", "policies", "plan"])
def test_a_reader_that_takes_one_line_sees_no_traceback(name: str, tiny_run: Path, tmp_path: Path) -> None:
    words = " ".join(call(name, tiny_run))
    done = subprocess.run(
        f"{sys.executable} -m hnf_offline {words} 2>err | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode in {0, 141} and done.stdout.count("\n") == 1
    assert "Traceback" not in (tmp_path / "err").read_text() and "Error" not in (tmp_path / "err").read_text()


@pytest.mark.parametrize("columns", [60, 200])
@pytest.mark.parametrize("name", list(CALLS))
def test_narrow_and_wide_terminals_are_kept(
    name: str, columns: int, hnf: Any, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, "tiny")
    monkeypatch.setenv("COLUMNS", str(columns))
    said = hnf(*call(name, Path("tiny")))
    assert said.code in {0, 1}, said.err
    assert ANSI not in said.out
    # Sentences that the terminal folds itself: lines of a log, a plan's, and what was not checked.
    if name not in {"monitor", "env", "plan", "check"}:
        long = [line for line in said.out.splitlines() if len(line) > columns and " " in line.strip()]
        assert long == []


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False),
    ],
)
def test_a_pipe_is_coloured_only_where_that_is_forced_and_nobody_forbids_it(
    environment: dict[str, str], coloured: bool, hnf: Any, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = hnf(*call("report", tiny_run))
    assert done.code == 0, done.err
    assert (ANSI in done.out) == coloured
    assert ANSI not in done.err and "\r" not in done.out + done.err
    for other in (["--help"], ["nope"], ["check", tiny_run, "--cheap", "--json"]):
        said = hnf(*other)
        assert ANSI not in said.out + said.err


JSON_CALLS = [name for name in CALLS if name not in {"quantity"}]


@pytest.mark.parametrize("name", JSON_CALLS)
def test_json_is_one_document_with_a_schema(name: str, hnf: Any, tiny_run: Path) -> None:
    arguments = [word for word in call(name, tiny_run) if word != "--map"]
    said = hnf(*arguments, "--json")
    assert said.code in {0, 1}, said.err
    assert said.json["schema"] == 1


def test_the_same_input_gives_the_same_findings_but_for_what_made_them(hnf: Any, tiny_run: Path) -> None:
    texts = []
    for out in ("one", "two"):
        assert hnf("report", tiny_run, "--tier", "stability", "--out", out).code == 0
        document = json.loads(Path(out, "findings.json").read_text(encoding="utf-8"))
        assert document.pop("made")["command"]
        texts.append(json.dumps(document))  # in the order of the file
        assert Path(out, "profile.parquet").is_file()
    assert texts[0] == texts[1]


def test_batches_of_another_vocabulary_are_one_line(hnf: Any, tiny_run: Path) -> None:
    import numpy as np

    np.savez("rows.npz", input_ids=np.full((4, 4), 200))
    said = hnf("profile", tiny_run, "--replay", "rows.npz", "--tier", "forward")
    assert said.code == 2 and said.out == "" and said.err.count("\n") <= 2, said.err
    assert "Traceback" not in said.err and "200" in said.err


def test_a_log_of_one_row_and_a_run_without_checkpoints_are_no_stable_run(hnf: Any) -> None:
    Path("short").mkdir()
    Path("short/log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    said = hnf("report", "short", "--json")
    assert said.code == 0 and said.json["verdict"]["word"] == "Cannot say", said.err
    Path("none/checkpoints").mkdir(parents=True)
    none = hnf("report", "none")
    assert none.code == 2 and "none" in none.err and none.err.count("\n") == 1
    assert not Path("reports/none").exists()
