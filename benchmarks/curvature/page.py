"""The tables as Markdown, and their places in docs/curvature.md."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.curvature.comparison import YARDSTICK, Comparison, Line
from benchmarks.curvature.memory import ROWS, Memory
from benchmarks.curvature.model import LENGTH, Size
from benchmarks.curvature.reference import RESIDUAL
from benchmarks.curvature.scaling import Point
from benchmarks.curvature.timing import Spread

PAGE = Path(__file__).parents[2] / "docs" / "curvature.md"
_PACKAGES = ("torch", "scipy", "pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings")


def machine() -> str:
    """Say on what was measured.

    Returns:
        Processor, threads, versions.
    """
    processor = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        names = [
            line for line in told.read_text(encoding="utf-8").splitlines() if line.startswith("model name")
        ]
        processor = names[0].split(":")[1].strip() if names else processor
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} thread; Python {python}, {versions}"
    )


def number(spread: Spread, digits: int = 0) -> str:
    """Spell a median with its range.

    Returns:
        "202 (190-215)", or the number alone where there is one repeat.
    """
    if spread.repeats == 1:
        return f"{spread.median:,.{digits}f}"
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}-{spread.high:,.{digits}f})"


def percent(share: float) -> str:
    """Spell a share.

    Returns:
        In per cent with two digits; no more than the reference can tell.
    """
    if 0 < share < RESIDUAL:
        return f"< {100 * RESIDUAL:.2g} %"
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:,.0f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Spell a table.

    Returns:
        Markdown.
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def comparison(measured: Comparison) -> str:
    """Spell the main table of one model size.

    Returns:
        Markdown.
    """
    size = measured.size
    targets = measured.modules + 1
    repeats = measured.lines[0].forwards.repeats
    told_repeats = (
        "one repeat" if repeats == 1 else f"{repeats} repeats, each at another checkpoint: median (range)"
    )
    told = (
        f"{size.name}, {LENGTH} tokens a row, {size.rows} rows, {measured.modules} layers and the whole model, trained "
        f"to a loss of {measured.loss}; {told_repeats}. One gradient "
        f"costs {number(measured.gradient, 1)} forwards."
    )
    head = ["tool", "products a target", "forwards", "seconds", "times ours"]
    head += ["error: median", "p90", "worst", "> 1 %", "> 5 %"]
    vouched = table(
        ["accuracy", "cases", "certified", "of these > 1 % off", "of these > 5 % off"],
        [
            [
                one.accuracy,
                str(one.cases),
                str(one.certified),
                str(one.certified_over_one),
                str(one.missed_over_five),
            ]
            for one in measured.vouched
        ],
    )
    rows = [_row(line, targets) for line in measured.lines]
    remark = (
        '"Times ours" is against *'
        + YARDSTICK
        + "* at the same checkpoint. Errors are of the eigenvalue of largest "
        f"size against Lanczos in float64, {measured.lines[0].errors.cases if measured.lines[0].errors else 0} cases."
    )
    if any(line.targets < targets for line in measured.lines):
        remark += (
            ' Marked "~": a repeat measures that many of the targets, another set each time, and the cost of '
            f"all {targets} is estimated from theirs."
        )
    return (
        f"{told}\n\n{table(head, rows)}\n\n{remark}\n\n"
        f"How far `certified` holds, largest eigenvalues, given the previous checkpoint:\n\n{vouched}"
    )


def _row(line: Line, targets: int) -> list[str]:
    estimated = line.targets < targets
    mark = "~" if estimated else ""
    errors = ["-"] * 5
    if line.errors is not None:
        of = line.errors
        errors = [percent(one) for one in (of.median, of.tenth, of.worst, of.over_one, of.over_five)]
    return [
        line.name + (f", {line.targets} of {targets} targets" if estimated else ""),
        f"{line.products:.1f}",
        mark + number(line.forwards),
        mark + number(line.seconds, 1),
        mark + number(line.ratio, 2),
        *errors,
    ]


def peaks(size: Size, measured: Memory) -> str:
    """Spell the memory table.

    Returns:
        Markdown.
    """
    one = measured.peaks["gradient"].median
    rows = [
        [
            "one training gradient" if name == "gradient" else name,
            number(_megabytes(peak), 0),
            f"{peak.median / one:.2f}",
        ]
        for name, peak in measured.peaks.items()
    ]
    head = ["work", "peak above what the process held, MB", "of one gradient"]
    return (
        f"{size.name}, {ROWS} rows of {LENGTH} tokens, each in a fresh process. `screen`, `standard` and `certified` "
        "are ours: all layers and the whole model. A peer measures the first layer and the whole model, its "
        f"two largest graphs.\n\n{table(head, rows)}\n\n"
        f"Over {measured.checkpoints} checkpoints, one row, each given the one before, resident memory lies at "
        f"{measured.level / 1e6:.0f} MB and changes by {measured.slope / 1e3:+.1f} kB a checkpoint."
    )


def _megabytes(spread: Spread) -> Spread:
    return Spread(spread.median / 1e6, spread.low / 1e6, spread.high / 1e6, spread.repeats)


def points(name: str, measured: Sequence[Point]) -> str:
    """Spell one small table.

    Returns:
        Markdown.
    """
    peer = any(point.peer is not None for point in measured)
    head = [
        name,
        "targets",
        "tokens",
        "cold, forwards",
        "given the previous, forwards",
        "a target",
        "seconds",
    ]
    rows = [
        [
            str(point.what), str(point.targets), str(point.tokens), number(point.cold), number(point.given),
            f"{point.given.median / point.targets:.2f}", number(point.seconds, 2),
            *([f"{point.peer:,.0f}" if point.peer is not None else "-"] if peer else []),
        ]
        for point in measured
    ]  # fmt: skip
    return table(head + (["PyHessian, forwards"] if peer else []), rows)


def put(text: str, part: str, fragment: str) -> str:
    """Replace what stands between a part's two markers.

    Args:
        text: of the page.
        part: name of the part.
        fragment: its new content.

    Returns:
        The page.

    Raises:
        ValueError: if the page has no such markers.
    """
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"no markers of {part} in the page")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{fragment}\n{end}{rest.partition(end)[2]}"
