"""What `hnf spikes` costs on a JSONL log of a million rows: `python -m benchmarks.logs`.

Time: reading the log, finding everything and spelling the table, in one process, beside `polars.read_ndjson` of the
same file; medians over interleaved rounds. Memory: the peak of a fresh process that does the same, less the peak of
one that only imports what it needs, over the size of the file.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from hnf_offline.findings import LogFindings
from hnf_offline.pipeline import open_input
from hnf_offline.relate.log_alone import log_findings
from hnf_offline.report import log_summary
from hnf_offline.run.records import Run

PLANTED = (200_000, 700_000)


def write_log(path: Path, rows: int) -> None:
    """Write a falling loss with two spikes and the columns most trainers log."""
    draw = np.random.default_rng(0)
    place = np.arange(rows)
    loss = (1.8 + 6 * np.exp(-place / 20_000)) * np.exp(0.02 * draw.standard_normal(rows))
    for onset in PLANTED:
        if onset < rows:
            loss[onset : onset + 4] *= (2.0, 2.5, 1.6, 1.2)
    frame = pl.DataFrame({
        "step": place + 1,
        "loss": loss,
        "grad_norm": np.exp(0.2 * draw.standard_normal(rows)),
        "learning_rate": np.full(rows, 3e-4),
        "tokens_per_second": 1e5 * np.exp(0.05 * draw.standard_normal(rows)),
    })
    frame.write_ndjson(path)


def read(path: Path) -> Run:
    """Read the log as the verb does.

    Returns:
        The run.
    """
    return open_input(path, log_only=True)


def find(run: Run) -> LogFindings:
    """Find everything in it.

    Returns:
        The findings.
    """
    assert run.log is not None
    return log_findings(run, run.log)


def timed(work: Callable[[], object]) -> float:
    """Time one call.

    Returns:
        Seconds.
    """
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def times(path: Path, rounds: int) -> dict[str, float]:
    """Time polars and ours in turn.

    Returns:
        Median seconds of polars, of reading, of finding, of spelling, and of all three.
    """
    kept: dict[str, list[float]] = {name: [] for name in ("polars", "read", "find", "table", "all")}
    for turn in range(rounds + 1):
        taken = {"polars": timed(lambda: pl.read_ndjson(path))}
        began = time.perf_counter()
        run = read(path)
        taken["read"] = time.perf_counter() - began
        middle = time.perf_counter()
        findings = find(run)
        taken["find"] = time.perf_counter() - middle
        middle = time.perf_counter()
        log_summary(findings)
        taken["table"] = time.perf_counter() - middle
        taken["all"] = time.perf_counter() - began
        if turn:  # the first one warms up
            for name, seconds in taken.items():
                kept[name].append(seconds)
    return {name: statistics.median(values) for name, values in kept.items()}


def peak(path: Path, stop: str) -> int:
    """Measure a fresh process.

    Returns:
        Its peak memory in bytes; it stops after "import", "polars", "read" or "all".
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.logs", str(path), "--stop", stop],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def up_to(path: Path, stop: str) -> None:
    """Do a part of the work and print this process's peak memory in bytes."""
    if stop == "polars":
        pl.read_ndjson(path)
    if stop in {"read", "all"}:
        run = read(path)
        if stop == "all":
            log_summary(find(run))
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, nargs="?", help="a JSONL log; made where none is named")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stop", choices=("import", "polars", "read", "all"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.stop:
        return up_to(chosen.log, chosen.stop)
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.log or Path(folder) / "log.jsonl"
        if chosen.log is None:
            write_log(path, chosen.rows)
        size = path.stat().st_size
        base = peak(path, "import")
        print(f"{path.name}: {size / 1e6:.1f} MB, {os.cpu_count()} cores, polars {pl.__version__}")
        for stop in ("polars", "read", "all"):
            print(f"peak memory, {stop}: {(peak(path, stop) - base) / size:.2f} times the file")
        taken = times(path, chosen.rounds)
        for name, seconds in taken.items():
            print(f"{name}: {seconds:.2f} s, {seconds / taken['polars']:.2f} times polars")
    return None


if __name__ == "__main__":
    main()
