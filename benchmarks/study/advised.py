"""Does clipping as the report advises it help? The SGD runs of experiment 3, each at the norm of its own report.

`python -m benchmarks.study.advised [--cache FOLDER]`. Looked at after experiment 3 had been read, on the same runs:
what it says is of the rule by which the norm is chosen, and not a new test of clipping.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.study.case import Case
from benchmarks.study.intervention import SETTINGS, Outcome, cases, effects, tried
from benchmarks.study.tables import figure, table
from benchmarks.study.training import trained
from benchmarks.study.workers import one_thread
from hnf_offline.pipeline import analyse
from hnf_offline.run import open_run

FAMILY, ARM = "D", "clip as advised"


def advised(case: Case, cache: Path) -> str | None:
    """Ask the report of one run for its clipping.

    Returns:
        The policy; None where the report advises none.
    """
    out = cache / "advised" / case.folder
    out.mkdir(parents=True, exist_ok=True)
    told = analyse(open_run(trained(case, cache)), SETTINGS, out, rule="robust").findings.advice
    return next((one.policy for one in told if one.policy.startswith("clip=")), None)


def outcomes(chosen: Sequence[Case], cache: Path) -> Iterator[Outcome]:
    """Retrain the runs that are advised to clip, as they were and clipped.

    Yields:
        Two outcomes a run.
    """
    for case in chosen:
        policy = advised(case, cache)
        print(f"{case.name}: {policy or 'no clipping advised'}", flush=True)
        if policy is not None:
            yield from tried(case, cache, {ARM: policy})


def main() -> None:
    """Retrain and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("reports/study-cache"), help="runs and results")
    one_thread()
    found = effects(list(outcomes(cases(families=FAMILY), parser.parse_args().cache)))
    rows = [
        [one.arm, str(one.runs), str(one.onsets), str(one.failed), figure(one.loss), str(one.compared)]
        for one in found
    ]
    print(table(["policy", "runs", "onsets", "failed", "final loss, times as was", "of runs"], rows))


if __name__ == "__main__":
    main()
