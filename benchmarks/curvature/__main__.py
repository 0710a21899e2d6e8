"""What every layer's curvature costs, and how wrong it is, beside published tools: `python -m benchmarks.curvature`.

Needs the extra `benchmarks`. Everything runs in one process on one thread; cost is the process's processor time over
that of one forward pass (without a graph, of the same rows) timed before and after, so other processes disturb it
little. `--write` puts the tables into docs/curvature.md; `--only` measures some parts again and leaves the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.curvature import page
from benchmarks.curvature.comparison import Plan, compare
from benchmarks.curvature.memory import WORKS, memory, peak_here, resident_over_checkpoints
from benchmarks.curvature.model import LARGE, SMALL, Size
from benchmarks.curvature.scaling import against_blocks, against_checkpoints, against_rows

SIZES = {"small": SMALL, "large": LARGE}
PLANS = {
    "small": Plan(SMALL, (40, 120, 210, 300, 400), referenced=5, reference_stride=1, strides=(1, 1, 5)),
    "large": Plan(LARGE, (50, 70, 100, 120, 150), referenced=1, reference_stride=2, strides=(1, 5, 20)),
}
QUICK = {"small": Plan(SMALL, (400,), referenced=1, reference_stride=4, strides=(1, 8, 18))}


def tell(line: str) -> None:
    """Report progress."""
    print(line, file=sys.stderr, flush=True)


def parts(cache_folder: Path, *, quick: bool) -> dict[str, Callable[[], str]]:
    """List what can be measured.

    Returns:
        By name, functions that measure and spell a fragment of the page.
    """
    plans = QUICK if quick else PLANS
    repeats = 1 if quick else 5
    found: dict[str, Callable[[], str]] = {
        name: lambda plan=plan: page.comparison(compare(plan, cache_folder, tell))  # type: ignore[misc]
        for name, plan in plans.items()
    }
    if Path("/proc/self/clear_refs").exists():  # elsewhere no peak can be read
        found["memory"] = lambda: page.peaks(
            SMALL, memory(SMALL, cache_folder, 1 if quick else 3, 10 if quick else 100, tell)
        )
    if not quick:
        found["layers"] = lambda: page.points(
            "blocks", against_blocks(SMALL, (2, 4, 6, 8, 12), cache_folder, repeats, tell)
        )
        found["tokens"] = lambda: page.points(
            "rows", against_rows(SMALL, (1, 2, 4, 8, 16), cache_folder, repeats, tell)
        )
        found["checkpoints"] = lambda: page.points(
            "checkpoints", against_checkpoints(SMALL, (1, 2, 5, 10, 20), cache_folder, tell)
        )
    return found


def measure(chosen: argparse.Namespace, cache_folder: Path) -> None:
    """Measure the chosen parts, print each, and write it if asked."""
    every = parts(cache_folder, quick=chosen.quick)
    command = "python -m benchmarks.curvature" + (" --quick" if chosen.quick else "")
    for name in chosen.only or every:
        if name not in every:
            raise SystemExit(f"no part {name}; there are {', '.join(every)}")
        fragment = f"`{command} --only {name}` on {page.machine()}.\n\n{every[name]()}"
        print(f"## {name}\n\n{fragment}\n", flush=True)
        if chosen.write:
            text = page.PAGE.read_text(encoding="utf-8")
            page.PAGE.write_text(page.put(text, name, fragment), encoding="utf-8")


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="small, large, memory, layers, tokens, checkpoints"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one checkpoint, one repeat, fewer targets: nothing to quote"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/curvature.md")
    parser.add_argument(
        "--cache", type=Path, help="where checkpoints and references are kept; a temporary folder"
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help=argparse.SUPPRESS)
    parser.add_argument("--peak", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--growth", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick and chosen.write:
        parser.error("--quick measures too little to be written down")
    torch.set_num_threads(1)
    size: Size = SIZES[chosen.size]
    if chosen.peak:
        print(peak_here(size, chosen.cache, chosen.peak))
    elif chosen.growth:
        print(*resident_over_checkpoints(size, chosen.cache, chosen.growth))
    elif chosen.cache:
        chosen.cache.mkdir(parents=True, exist_ok=True)
        measure(chosen, chosen.cache.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(chosen, Path(folder))


if __name__ == "__main__":
    main()
