"""Help is instant, has a runnable example everywhere, and mistakes are met with a suggestion."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hnf_offline.cli import app
from hnf_offline.cli.common import COMMON, NOT_TAKEN

VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = ("torch", "matplotlib", "polars", "transformers", "numpy", "scipy")


def test_every_promised_verb_is_there() -> None:
    assert VERBS == [
        "check",
        "diff",
        "env",
        "export",
        "monitor",
        "profile",
        "quantities",
        "report",
        "spikes",
        "whatif",
        "zoom",
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_is_a_line_that_parses(verb: str, hnf: Any) -> None:
    said = hnf(verb, "--help")
    assert said.code == 0
    _, _, examples = said.out.partition("Example:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["hnf", verb]
        command.make_context(verb, words[2:])  # raises where the example is no longer right


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_and_argument_is_explained(verb: str) -> None:
    for parameter in typer.main.get_command(app).commands[verb].params:  # type: ignore[attr-defined]
        assert parameter.help, parameter.name


def test_every_verb_takes_a_common_option_or_says_in_one_line_why_not(hnf: Any) -> None:
    for verb in VERBS:
        command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
        taken = {option for parameter in command.params for option in parameter.opts}
        for option in COMMON:
            reason = NOT_TAKEN.get(verb, {}).get(option)
            assert (option in taken) != bool(reason), f"hnf {verb} {option}"
            if reason:
                said = hnf(verb, "x", f"{option}=1")
                assert (said.code, said.out) == (2, "")
                assert said.err == f"hnf: No such option {option}: {reason}. See: hnf {verb} --help\n"
    assert "hnf zoom --tier measures more" in hnf("whatif", "x", "--tier", "full").err
    assert "hnf env prints nothing but its result" in hnf("env", "-q").err


def test_brackets_in_help_survive(hnf: Any) -> None:
    out = " ".join(hnf("report", "--help").out.split())
    assert "'*.layers.[0-3].*'" in out
    assert "[default: below reports/]" in out


def test_bare_hnf_prints_its_help_and_is_a_usage_error(hnf: Any) -> None:
    said = hnf()
    assert said.code == 2
    assert said.out == ""
    assert "Usage: hnf" in said.err
    assert "report" in said.err


def test_version(hnf: Any) -> None:
    assert re.fullmatch(r"hnf \d+\.\d+\.\d+\S*\n", hnf("--version").out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["repot"], "Did you mean 'report'"),
        (["report", "--tierr", "full"], "--tier"),
        (["report"], "Missing argument 'RUN'"),
        (["report", ".", "--tier", "everything"], "'forward', 'gradient', 'stability', 'curvature'"),
        (["report", ".", "--every", "0"], "'--every'"),
        (["quantities", "hessian.stability"], "did you mean hessian.stability_ratio"),
        (["quantities", "replay.loss", "--tier", "curvature"], "in tier curvature"),
    ],
)
def test_a_mistake_is_one_line_with_a_suggestion(arguments: list[str], expected: str, hnf: Any) -> None:
    said = hnf(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert expected in said.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["report", "--help"], ["quantities", "--help"], ["--version"], []]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom hnf_offline.cli import main\nmain(sys.argv[1:])\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy_and_knows_its_names() -> None:
    program = (
        "import sys, hnf_offline\nassert 'open_run' in dir(hnf_offline)\nassert hnf_offline.__version__\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
        "for name in hnf_offline.__all__: assert getattr(hnf_offline, name)\n"
        "assert callable(hnf_offline.find) and callable(hnf_offline.compare)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_the_tiers_and_rules_offered_are_those_of_the_library() -> None:
    from hnf_offline.detect.spike_rules import RULES
    from hnf_offline.options import RuleName, TierName
    from hnf_offline.profile.settings import TIERS

    assert tuple(TierName) == TIERS
    assert [rule.value for rule in RuleName] == list(RULES)


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hnf_offline", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "hnf: No such command 'nope'. See: hnf --help\n"


def test_env_is_text_to_paste_and_names_no_path(
    hnf: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import getpass
    import platform

    monkeypatch.setenv("HNF_TIER", "gradient")
    monkeypatch.setenv("HNF_SECRET", "token")
    told = hnf("env")
    assert told.code == 0 and "\x1b" not in told.out
    for part in ("hnf_offline", "python", "torch", "cpu", "HNF_TIER"):
        assert part in told.out
    assert "token" not in told.out and "gradient" not in told.out, "which are set, not what they say"
    home = str(Path.home())
    assert (
        home not in told.out and platform.node() not in told.out and getpass.getuser() not in told.out.split()
    )
    document = hnf("env", "--json").json
    assert document["packages"]["torch"] == document["packages"]["torch"].strip() != ""
    assert document["devices"][0] == "cpu" and document["set"] == ["HNF_SECRET", "HNF_TIER"]
