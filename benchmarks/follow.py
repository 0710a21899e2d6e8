"""What a look of `hnf monitor --follow` costs: `python -m benchmarks.follow`.

A log of many rows, to which ten are appended before every look, beside checkpoints of a tiny model; the looks are
those of the verb, in one process, without its pauses. Printed are the median of the looks after the first and its
ratio to the first look, which reads everything and measures the checkpoints, both in seconds of processor time; where
it goes with `--profile`; and the peak memory of the process. `--formats`, `--rows`, `--checkpoints` and `--looks`
choose others.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hnf_offline.follow import Following, follow
from hnf_offline.profile.settings import ProfileSettings

#: Format -> name of the file, the header, and one row of step, loss, gradient norm and learning rate.
FORMATS = {
    "jsonl": (
        "log.jsonl",
        "",
        '{{"step": {0}, "loss": {1:.6f}, "grad_norm": {2:.5f}, "learning_rate": {3}}}\n',
    ),
    "csv": ("metrics.csv", "step,loss,grad_norm,learning_rate\n", "{0},{1:.6f},{2:.5f},{3}\n"),
    "text": ("train.log", "", "step={0} loss={1:.6f} grad_norm={2:.5f} lr={3}\n"),
}
APPENDED = 10


def rows(spelling: str, first: int, count: int, total: int) -> str:
    """Spell rows of a falling loss with a spike every 20,000 steps.

    Returns:
        The lines.
    """
    steps = np.arange(first, first + count)
    draw = np.random.default_rng(first)
    loss = (1.8 + 6 * np.exp(-steps * 10 / total)) * np.exp(0.02 * draw.standard_normal(count))
    loss *= np.where(steps % 20_000 < 3, 2.0, 1.0)
    norms = np.exp(0.2 * draw.standard_normal(count))
    return "".join(
        spelling.format(step, one, norm, 3e-4)
        for step, one, norm in zip(steps.tolist(), loss.tolist(), norms.tolist(), strict=True)
    )


def checkpoints(run: Path, count: int, total: int) -> None:
    """Write checkpoints that are alike, as folders with weights, optimizer and settings."""
    source = Path(__file__).parents[1] / "sample_runs" / "spiky"
    if count:
        for name in ("config.json", "batches.safetensors"):
            shutil.copyfile(source / name, run / name)
    for number in range(count):
        step = (number + 1) * (total // (count + 1))
        shutil.copytree(source / "checkpoints" / "step-000156", run / "checkpoints" / f"step-{step:08d}")


def looks(form: str, log_rows: int, saved: int, count: int) -> list[float]:
    """Follow a run for some looks.

    Returns:
        Seconds of processor time of each.
    """
    name, header, spelling = FORMATS[form]
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        checkpoints(run, saved, log_rows)
        log = run / name
        log.write_text(header + rows(spelling, 1, log_rows, log_rows))
        taken: list[float] = []
        began = [time.process_time()]
        reached = [log_rows]

        def sleep(_: float) -> None:
            taken.append(time.process_time() - began[0])
            if len(taken) > count:
                raise KeyboardInterrupt
            with log.open("a") as file:
                file.write(rows(spelling, reached[0] + 1, APPENDED, log_rows))
            reached[0] += APPENDED
            began[0] = time.process_time()

        settings = ProfileSettings(tier="forward", rows=1)
        following = Following(run, settings, Path(place) / "out", sleep=sleep)
        try:
            for _ in follow(following):
                pass
        except KeyboardInterrupt:
            pass
        return taken


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--checkpoints", type=int, default=0)
    parser.add_argument("--looks", type=int, default=5)
    parser.add_argument("--formats", nargs="*", choices=tuple(FORMATS), default=list(FORMATS))
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    chosen = parser.parse_args()
    for form in chosen.formats:
        profiler = cProfile.Profile()
        if chosen.profile:
            profiler.enable()
        first, *later = looks(form, chosen.rows, chosen.checkpoints, chosen.looks)
        profiler.disable()
        median = statistics.median(later)
        print(
            f"{form}, {chosen.rows:,} rows, {chosen.checkpoints} checkpoints: first look {first:.2f} s, "
            f"later ones {median:.3f} s (median of {len(later)}), {median / first:.3f} of the first"
        )
        if chosen.profile:
            pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)
    unit = 1 if sys.platform == "darwin" else 1024
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
