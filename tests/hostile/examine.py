"""The real entry points, called on one hostile run: what a user calls, and the library below it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

#: What a line on a terminal must not hold; results may hold line breaks and tabs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LONGEST_LINE = 4_000


@dataclass
class Outcome:
    """How one run was taken.

    Attributes:
        word: "read", "partly read" or "refused".
        skipped: files and lines passed over.
        problems: what must not happen and did.
    """

    word: str = "read"
    skipped: int = 0
    problems: list[str] = field(default_factory=list)


def library(target: Path) -> Outcome:
    """Open a run and read everything that can be read of it."""
    from hnf_offline.detect.spikes import find_spikes
    from hnf_offline.errors import UserError
    from hnf_offline.run import open_run
    from hnf_offline.run.batches import load_rows
    from hnf_offline.run.formats import configuration, load_optimizer, load_weights
    from hnf_offline.run.random_states import load_random_state

    outcome = Outcome()

    def attempt(what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UserError as error:
            outcome.skipped += 1
            outcome.problems += _unfit(str(error), f"{what}: ")
        except Exception as error:
            outcome.problems.append(f"{what}: {_where(error)}")
        return None

    try:
        run = open_run(target)
    except UserError as error:
        return Outcome("refused", 1, _unfit(str(error)))
    except Exception as error:
        return Outcome("refused", 1, [f"open_run: {_where(error)}"])
    outcome.skipped = len(run.skipped) + (0 if run.log is None else run.log.skipped_lines)
    for one in run.skipped:
        outcome.problems += _unfit(f"{one.reason}; {one.remedy}")
    for checkpoint in run.checkpoints[:3]:
        attempt("configuration", partial(configuration, checkpoint))
        weights = attempt("load_weights", partial(load_weights, checkpoint))
        if weights is not None:
            attempt("norms", partial(_norms, weights))
        attempt("load_optimizer", partial(load_optimizer, checkpoint))
    if run.batches is not None:
        last = run.batches.rows - 1
        attempt("load_rows", lambda: load_rows(run.batches, [0, last]))
        attempt("rows_of_step", lambda: run.batches.rows_of_step(5))
    if run.random_states is not None:
        attempt("random state", lambda: load_random_state(run.random_states, run.random_states.steps[0]))
    if run.log is not None:
        attempt("spikes", lambda: find_spikes(run.log.rows, rule="robust", resume_steps=run.resume_steps))
    if outcome.skipped:
        outcome.word = "partly read"
    return outcome


def _norms(weights: Mapping[str, Any]) -> dict[str, float]:
    # What is the least that anyone does with weights.
    return {
        name: float((tensor.abs() if tensor.is_complex() else tensor).double().norm())
        for name, tensor in weights.items()
    }


def command_line(arguments: Sequence[str]) -> tuple[Outcome, str, str]:
    """Call `hnf` as a user does, in this process; the streams encode as a real terminal's do."""
    from hnf_offline.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    given = sys.argv
    sys.argv = ["hnf", *arguments]
    outcome = Outcome()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code: Any = main(list(arguments))
    except BaseException as error:  # nothing may leave `main`
        code = f"left by {_where(error)}"
    finally:
        sys.argv = given
    said, told = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err))  # type: ignore[attr-defined]
    if code not in {0, 1, 2}:
        outcome.problems.append(f"exit code {code}")
    if "Warning: " in told:
        outcome.problems.append(f"stderr: {told[max(0, told.index('Warning: ') - 100) :][:300]}")
    for name, text in (("stdout", said), ("stderr", told)):
        if "Traceback" in text or "internal error" in text:
            outcome.problems.append(f"{name}: {text.strip().splitlines()[-1][:300]}")
        found = _CONTROLS.search(text)
        if found:
            outcome.problems.append(
                f"{name} holds {found.group()!r} in {text[max(0, found.start() - 60) : found.end()]!r}"
            )
    outcome.problems += [
        f"a line of {len(line)} characters" for line in told.splitlines() if len(line) > _LONGEST_LINE
    ][:1]
    if code == 2:
        outcome.word = "refused"
        # A usage error names itself once; what was skipped before it has a line each.
        own = [line for line in told.splitlines() if line.startswith("hnf: ")]
        if len(own) != 1 or said:
            outcome.problems.append(
                f"exit 2 with {len(own)} lines of its own and {len(said)} characters of result"
            )
    elif "skipped" in told:
        outcome.word = "partly read"
    if "--json" in arguments and code == 0:
        try:
            json.loads(said, parse_constant=lambda name: outcome.problems.append(f"{name} in JSON"))
        except ValueError as error:
            outcome.problems.append(f"stdout is not JSON: {error}")
    return outcome, said, told


class _Page(HTMLParser):
    """Finds what a page would run, load or obey."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in {"iframe", "object", "embed", "link", "base", "form"}:
            self.bad.append(f"<{tag}>")
        for name, value in attrs:
            address = (value or "").strip().lower()
            if name.startswith("on") or (
                name in {"src", "href", "xlink:href", "action"}
                and address.startswith(("http", "javascript:", "//", "file:"))
            ):
                self.bad.append(f"<{tag} {name}={value!r}>")
            if name == "src" and not address.startswith(("data:image/", "figures/")):
                self.bad.append(f"<{tag} src={value!r}>")


def page_problems(folder: Path, scripts: int) -> list[str]:
    """What is wrong with the pages in a folder of results; a page has as many scripts as the template gave it."""
    problems = []
    for file in folder.rglob("*.html"):
        page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
        problems += [f"{file.name}: {one}" for one in page.bad[:3]]
        if page.scripts > scripts:
            problems.append(f"{file.name}: {page.scripts} scripts")
    for file in folder.rglob("*.json"):
        try:
            json.loads(
                file.read_text(encoding="utf-8"),
                parse_constant=lambda name: problems.append(f"{name} in JSON"),
            )
        except ValueError as error:
            problems.append(f"{file.name}: {error}")
    return problems


def _unfit(message: str, what: str = "") -> list[str]:
    if len(message) > _LONGEST_LINE:
        return [f"{what}a message of {len(message)} characters: {message[:200]!r}"]
    return []


def _where(error: BaseException) -> str:
    """The exception, and the innermost line of the project that it came through."""
    import traceback

    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "/hnf_offline/" in frame.filename
    ]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:200]!r}"


def here() -> Path:
    """A fresh folder to stand in."""
    folder = Path(tempfile.mkdtemp(prefix="here-"))
    os.chdir(folder)
    return folder
