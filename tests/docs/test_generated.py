"""The reference pages say what the program does today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from docs.commands import commands_page
from docs.generate import HERE, catalogue_page, pages
from docs.run_toml import EXAMPLE
from hnf_offline.cli import app
from hnf_offline.exit import exit_code
from hnf_offline.run.manifest import KEYS, read_manifest

VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", pages())
def test_the_written_pages_are_those_of_the_program(page: str) -> None:
    assert (HERE / page).read_text(encoding="utf-8") == pages()[page], "run: python -m docs.generate"


def section(verb: str) -> str:
    return commands_page().partition(f"\n## hnf {verb}\n")[2].partition("\n## hnf ")[0]


@pytest.mark.parametrize("verb", VERBS)
def test_the_commands_page_has_every_option_with_its_default_and_its_variable(verb: str) -> None:
    told = section(verb)
    assert f"| [`hnf {verb}`](#hnf-{verb}) |" in commands_page()
    for parameter in VERBS[verb].params:
        # Patterns are escaped in the page, and a default in words has a column of its own.
        words = re.sub(r"\s*\[default: [^\]]*\]", "", " ".join(parameter.help.split()))
        assert words.removesuffix(".") in told.replace("\\", ""), parameter.name
        if parameter.param_type_name == "argument":
            continue
        row = next(line for line in told.splitlines() if re.match(rf"\| `[^`]*{parameter.opts[0]}\b", line))
        default = getattr(parameter, "default", None)
        if parameter.envvar:
            assert row.endswith(f"`{parameter.envvar}` |")
        if default is not None and default is not False:
            assert f"| `{getattr(default, 'value', default)}` |" in row


def test_the_commands_page_has_every_example() -> None:
    for verb, command in VERBS.items():
        for line in command.epilog.splitlines():
            if line.strip().startswith("hnf "):
                assert f"$ {line.strip()}" in section(verb)


def test_the_commands_page_is_the_same_on_every_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = commands_page()
    for columns, term in (("40", "dumb"), ("300", "xterm-256color")):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERM", term)
        assert commands_page() == wide


def test_exit_codes_are_those_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(app)
    told = set(re.findall(r"^\| (\d+) \| ", commands_page(), re.MULTILINE))
    assert told == {"0", "1", "2", "130", "141"}
    assert exit_code(command, ["quantities", "hessian.stability_ratio"]) == 0
    assert exit_code(command, ["report", str(tmp_path / "nothing")]) == 2
    assert exit_code(command, ["report"]) == 2
    for step in (10, 20):  # the same weights under two steps
        (tmp_path / "run" / f"step-{step}").mkdir(parents=True)
        save_file({"w": torch.ones(4, 4)}, tmp_path / "run" / f"step-{step}" / "model.safetensors")
    assert exit_code(command, ["check", str(tmp_path / "run"), "--quiet"]) == 1
    capsys.readouterr()


def test_the_run_toml_page_has_every_key_and_its_example_is_read(tmp_path: Path) -> None:
    page = (HERE / "reference" / "run-toml.md").read_text(encoding="utf-8")
    for name, keys in KEYS.items():
        own = page.partition(f"\n## [{name}]\n")[2].partition("\n## ")[0]
        assert all(f"| `{key}` |" in own for key in keys), name
    assert EXAMPLE in page
    for file in ("train.jsonl", "tokens.npz"):
        (tmp_path / file).touch()
    (tmp_path / "run.toml").write_text(EXAMPLE)
    read = read_manifest(tmp_path)
    assert (read.model_kind, read.batch_steps, read.optimizer.accumulation) == ("gpt", 8, 4)
    assert read.checkpoint_glob == "ckpt-*.pt" and read.resume_steps == (4000,)


def test_the_catalogue_page_has_everything_of_every_entry() -> None:
    from hnf_offline.quantities import catalogue
    from hnf_offline.quantities.sources import MEASURES

    page = catalogue_page()
    for entry in catalogue().values():
        if entry.inputs:
            for text in (entry.formula, entry.unit, entry.reading, entry.cannot, entry.reference):
                assert text in page, entry.name
    assert all(measure.name.replace("|", "\\|") in page for measure in MEASURES)
