"""Workers that take hostile cases, and who notices when one of them hangs, dies or tells of something bad."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import specials, specimens
from .worker import LIMIT, PATIENCE, REPOSITORY

#: Bytes more than before a case, in MiB: the bound on what any case may take.
MOST_MEMORY = 1_500


@dataclass
class _Worker:
    """One process and what it still has to do."""

    number: int
    room: Path
    next: int
    stop: int
    stride: int
    process: subprocess.Popen[bytes] | None = None
    current: int | None = None
    since: float = 0.0
    rest: bytes = b""
    starts: int = 0

    def start(self) -> None:
        self.starts += 1
        log = (self.room / f"stderr-{self.number}-{self.starts}.txt").open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.hostile.worker",
                *map(str, (self.room, self.next, self.stop, self.stride)),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "POLARS_MAX_THREADS": "2",
                "PYTHONDONTWRITEBYTECODE": "1",
                "TERM": "dumb",
                "HNF_DEBUG": "",
                "PYTHONPATH": "",
            },
        )
        log.close()
        self.current, self.since, self.rest = None, time.monotonic(), b""

    def said_last(self) -> str:
        text = (self.room / f"stderr-{self.number}-{self.starts}.txt").read_text(errors="replace")
        return text[-1500:]


def run(
    first: int,
    stop: int,
    room: Path,
    *,
    workers: int = 2,
    tell: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Take the cases from `first` to `stop`.

    Args:
        first: the first case's number.
        stop: the number after the last.
        room: an empty folder for the runs.
        workers: processes at a time.
        tell: called with every record as it comes.

    Returns:
        A record a case, in order of their numbers; what hung or died has a problem that says so.
    """
    room.mkdir(parents=True, exist_ok=True)
    crew = [_Worker(place, room / str(place), first + place, stop, workers) for place in range(workers)]
    results: list[dict[str, Any]] = []
    for worker in crew:
        worker.room.mkdir()
        if worker.next < stop:
            worker.start()
    try:
        while any(worker.process for worker in crew):
            busy = {worker.process.stdout.fileno(): worker for worker in crew if worker.process}  # type: ignore[union-attr]
            ready, _, _ = select.select(list(busy), [], [], 1.0)
            for descriptor in ready:
                heard = list(_heard(busy[descriptor], os.read(descriptor, 65_536)))
                results += heard
                for one in heard if tell is not None else ():
                    tell(one)
            for worker in crew:
                # The worker ends itself; this is for one that cannot.
                patience = PATIENCE + 20 if worker.current is not None else 300
                if worker.process and time.monotonic() - worker.since > patience:
                    worker.process.kill()
    finally:
        for worker in crew:
            if worker.process:
                worker.process.kill()
                worker.process.wait()
    return sorted(results, key=lambda result: result["number"])


def _heard(worker: _Worker, data: bytes) -> Iterator[dict[str, Any]]:
    assert worker.process is not None
    if not data:
        code = worker.process.wait()
        worker.process.stdout.close()  # type: ignore[union-attr]
        worker.process = None
        if code == 0:
            return
        if worker.current is None:
            raise RuntimeError(f"a worker died before its first case ({code}):\n{worker.said_last()}")
        said = worker.said_last()
        word = (
            "HANG"
            if "Timeout" in said or code == -signal.SIGPROF or time.monotonic() - worker.since > PATIENCE
            else "DIED"
        )
        number = worker.current
        name = (
            specimens.names()[number % len(specimens.names())] if number < specials.FIRST else "made by hand"
        )
        yield {
            "number": number,
            "specimen": name,
            "kind": "?",
            "what": "?",
            "through": "?",
            "outcome": "none",
            "skipped": 0,
            "seconds": LIMIT,
            "peak": 0,
            "problems": [f"{word} ({code}): {said}"],
        }
        worker.next = number + worker.stride
        if worker.next < worker.stop:
            worker.start()
        return
    *lines, worker.rest = (worker.rest + data).split(b"\n")
    for line in lines:
        told = json.loads(line)
        worker.since = time.monotonic()
        if "begins" in told:
            worker.current = told["begins"]
        else:
            worker.next = told["number"] + worker.stride
            if told["peak"] > MOST_MEMORY:
                told["problems"].append(f"took {told['peak']} MiB")
            yield told


@dataclass
class Tally:
    """What many cases gave.

    Attributes:
        cases: specimen -> kind -> number of cases.
        outcomes: kind -> outcome -> number of cases.
        failures: the records with problems.
    """

    cases: Mapping[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    outcomes: Mapping[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, results: Iterable[Mapping[str, Any]]) -> Tally:
        tally = cls()
        for result in results:
            tally.cases[result["specimen"]][result["kind"]] += 1
            tally.outcomes[result["kind"]][result["outcome"]] += 1
            if result["problems"]:
                tally.failures.append(dict(result))
        return tally


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Cases by specimen and kind, outcomes by kind, and the extremes."""
    tally = Tally.of(results)
    kinds = sorted(tally.outcomes)
    lines = [f"{'specimen':<20}" + "".join(f"{kind:>10}" for kind in kinds)]
    for name in sorted(tally.cases):
        lines.append(f"{name:<20}" + "".join(f"{tally.cases[name][kind]:>10}" for kind in kinds))
    for outcome in ("read", "partly read", "refused"):
        lines.append(f"{outcome:<20}" + "".join(f"{tally.outcomes[kind][outcome]:>10}" for kind in kinds))
    slowest = max(results, key=lambda result: result["seconds"])
    largest = max(results, key=lambda result: result["peak"])
    by_command = sum(result["through"] == "command line" for result in results)
    lines += [
        f"{len(results)} cases, {by_command} of them through the command line; "
        f"{sum(result['skipped'] for result in results)} files and lines skipped and told",
        f"slowest: case {slowest['number']} ({slowest['specimen']}, {slowest['what'][:60]}), {slowest['seconds']} s",
        f"most memory: case {largest['number']} ({largest['specimen']}, {largest['what'][:60]}), {largest['peak']} MiB",
    ]
    for word in ("HANG", "DIED", "CANARY", "Traceback", "open for", "outside", "took"):
        number = sum(any(word in one for one in result["problems"]) for result in results)
        lines.append(f"{word}: {number}")
    return "\n".join(lines)


def told(failures: Sequence[Mapping[str, Any]]) -> str:
    """The failing cases, and how to see each again."""
    lines = []
    for failure in failures[:20]:
        lines.append(
            f"case {failure['number']} ({failure['specimen']}, {failure['kind']}: {failure['what']}; "
            f"{failure['through']}):"
        )
        lines += [f"    {problem}" for problem in failure["problems"][:5]]
        lines.append(
            f"    again: python -m tests.hostile.worker /tmp/room {failure['number']} {failure['number'] + 1} 1"
        )
    return "\n".join([f"{len(failures)} cases failed", *lines])
