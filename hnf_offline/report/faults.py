"""Faults of a run as a series of files, for page and terminal; whatever comes from files is cleaned here."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hnf_offline.findings import Fault
from hnf_offline.report.text import ascii_only, clean, number, plural

#: Mark of each severity, with the word that says the same: marks alone say nothing to some readers.
MARKS = {"danger": "✗", "warning": "▲", "info": "·"}
ASCII_MARKS = {"danger": "x", "warning": "!", "info": "-"}
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_MOST_ROWS = 200


def faults_table(
    faults: Sequence[Fault], *, width: int = 100, color: bool = False, unicode: bool = True
) -> str:
    """List faults: severity, step, file and check on one line, evidence and remedy below it.

    Returns:
        A few lines a fault; "" where there is none.
    """
    width = max(width, 40)
    lines: list[str] = []
    for fault in faults:
        head = (
            f"{MARKS.get(fault.severity, '?')} {fault.severity:<7}  {_step(fault):<12}  {clean(fault.kind)}"
        )
        if fault.path:
            head += f"  {clean(fault.path)}"
        lines.append(f"{_BOLD}{head}{_PLAIN}" if color and fault.severity == "danger" else head)
        for text in (clean(fault.evidence), f"→ {clean(fault.remedy)}"):
            lines += textwrap.wrap(
                text, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )
    text = "\n".join(lines)
    if unicode:
        return text
    for severity, mark in MARKS.items():
        text = text.replace(f"{mark} {severity}", f"{ASCII_MARKS[severity]} {severity}")
    return ascii_only(text)


def fault_line(fault: Fault) -> str:
    """Tell one fault in one line.

    Returns:
        "danger: step 336 (checkpoints/step-000336): ...".
    """
    where = " ".join(
        part for part in (_step(fault) if fault.step is not None else "", clean(fault.path)) if part
    )
    return f"{fault.severity}: {f'{where}: ' if where else ''}{clean(fault.evidence)}"


def unsound(faults: Sequence[Fault]) -> dict[str, str] | None:
    """Spell the worst fault for the first screen.

    Returns:
        Its mark, and it in one line; None where nothing is wrong but remarks.
    """
    wrong = [one for one in faults if one.severity != "info"]
    if not wrong:
        return None
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return {"mark": MARKS.get(wrong[0].severity, "?"), "line": fault_line(wrong[0]) + more}


def fault_rows(faults: Sequence[Fault]) -> list[dict[str, str]]:
    """Spell faults for the page's table.

    Returns:
        One row a fault, the worst first as they come.
    """
    return [
        {
            "mark": f"{MARKS.get(one.severity, '?')} {one.severity}",
            "step": "-" if one.step is None else number(one.step),
            "path": one.path or "the run",
            "kind": one.kind,
            "evidence": one.evidence,
            "remedy": one.remedy,
        }
        for one in faults[:_MOST_ROWS]
    ]


def faults_counted(faults: Sequence[Fault]) -> str:
    """Count faults by severity.

    Returns:
        "2 dangers, 1 warning, 1 remark"; "no fault" where there is none.
    """
    counts = {word: sum(one.severity == word for one in faults) for word in MARKS}
    words = {"danger": "danger", "warning": "warning", "info": "remark"}
    told = [plural(count, words[word]) for word, count in counts.items() if count]
    return ", ".join(told) or "no fault"


def check_summary(
    faults: Sequence[Fault],
    checks: Sequence[tuple[str, str, str]],
    checkpoints: int,
    *,
    width: int = 100,
    color: bool = False,
    unicode: bool = True,
) -> str:
    """Sum up what was checked, what was found, and what was not looked at.

    Args:
        faults: what is wrong.
        checks: name, what it looked at ("" for nothing), and what it left out and why, of each check.
        checkpoints: how many checkpoints the run has.
        width: columns of the terminal, which folds the line itself.
        color: whether colours can be shown.
        unicode: whether marks beyond ASCII can be shown.

    Returns:
        One line: "12 checks on 30 checkpoints: 2 dangers, 1 warning; not checked: ...".
    """
    del width, color
    done = [name for name, looked, _ in checks if looked]
    found = faults_counted(faults)
    if not any(one.severity != "info" for one in faults):
        found = "sound in what was checked" if found == "no fault" else f"sound in what was checked ({found})"
    groups: dict[str, list[str]] = {}
    for name, looked, because in checks:
        if not looked:
            groups.setdefault(because, []).append(name)
    gone = "; ".join(f"{', '.join(names)} ({clean(because)})" for because, names in groups.items())
    text = f"{plural(len(done), 'check')} on {plural(checkpoints, 'checkpoint')}: {found}"
    part = [f"{name}: {clean(because)}" for name, looked, because in checks if looked and because]
    text += f"; not checked: {gone}" if gone else ""
    text += f"; in part: {'; '.join(part)}" if part else ""
    return text if unicode else ascii_only(text)


def nav_mark(faults: Sequence[Fault], checked: object) -> str:
    """Mark the page's section on the series.

    Args:
        faults: what is wrong.
        checked: names of the checks that looked at something.

    Returns:
        "Series ✗ 2" with dangers, "Series ▲ 1" with warnings, "Series ✓" for sound in what was looked at; "Series"
        where nothing was.
    """
    for severity in ("danger", "warning"):
        count = sum(one.severity == severity for one in faults)
        if count:
            return f"Series {MARKS[severity]} {count}"
    return "Series ✓" if checked else "Series"


def _step(fault: Fault) -> str:
    return "whole run" if fault.step is None else f"step {fault.step}"
