"""What the pages tell to type can be typed: verbs, options and values exist, and make targets too."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from hnf_offline.cli import app
from tests.docs.pages import PAGES, ROOT, commands_of, text_of

GROUP = typer.main.get_command(app)
TYPED = [(page, line) for page in PAGES for line in commands_of(page)]
OPTION = re.compile(r"`(?:hnf (\w+) )?(--[a-z][a-z-]+)")


def parse(line: str) -> None:
    words = shlex.split(line)
    verb = GROUP.commands[words[1]]  # type: ignore[attr-defined]
    verb.make_context(words[1], words[2:])


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in TYPED if line.startswith("hnf ")])
def test_every_line_of_hnf_parses(page: str, line: str) -> None:
    if line == "hnf VERB --help":
        return
    parse(line)


def test_a_line_that_is_no_longer_right_is_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("hnf report runs/x --no-such-option")
    with pytest.raises(Exception, match="everything"):
        parse("hnf report runs/x --tier everything")


def test_there_is_something_to_type_on_every_how_to_page() -> None:
    typed = {page for page, _ in TYPED}
    assert {page for page in PAGES if page.startswith("docs/how-to/")} - typed <= {
        "docs/how-to/refused-files.md",
        "docs/how-to/notebook.md",
    }


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    told = {(page, word) for page, line in TYPED if line.startswith("make ") for word in line.split()[1:]}
    told |= {(page, word) for page in PAGES for word in re.findall(r"`make ([a-z-]+)`", text_of(page))}
    assert told and {one for one in told if one[1] not in targets} == set()


def test_options_named_in_words_exist() -> None:
    known = {
        option
        for verb in GROUP.commands.values()  # type: ignore[attr-defined]
        for parameter in verb.params
        for option in parameter.opts
    } | {"--help", "--version"}
    others = {"--add", "--only", "--quick", "--write", "--eval"}  # of benchmarks, and of nanoGPT
    told = {
        (page, option)
        for page in PAGES
        if page.startswith("docs/how-to/") or page.startswith("docs/concepts/") or page == "README.md"
        for _, option in OPTION.findall(text_of(page))
    }
    assert told and {one for one in told if one[1] not in known | others} == set()
