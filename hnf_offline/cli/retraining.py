"""What `hnf zoom` and `hnf whatif` share: where they begin, where they write, what they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.cli.remarks import no_checkpoints, typed_command
from hnf_offline.cli.results import options_text, told_options
from hnf_offline.errors import UsageError, spelled
from hnf_offline.output import output_folder, relative
from hnf_offline.pipeline import InterruptedRunError, made_by
from hnf_offline.printing import emit, emit_json, fields_text, terminal

if TYPE_CHECKING:
    from hnf_offline.origin import Choice
    from hnf_offline.progress import Reporter
    from hnf_offline.retraining import Retraining
    from hnf_offline.run.records import Run


def check_start(run: Run, start: int) -> None:
    """Make sure that there is a checkpoint to begin at, before anything slow is done.

    Raises:
        UsageError: if there is no checkpoint of that step, with those nearest to it.
    """
    steps = [checkpoint.step for checkpoint in run.checkpoints]
    if not steps:
        raise no_checkpoints(run)
    if start not in steps:
        near = sorted(sorted(steps, key=lambda step: (abs(step - start), step))[:2])
        raise UsageError(
            f"--from {start}: there is no checkpoint of that step",
            path=run.path,
            remedy=f"did you mean {' or '.join(str(step) for step in near)}?",
        )


def retraining_folder(out: Path | None, run: Run, ending: str, *, force: bool) -> tuple[Path, str]:
    """Choose the folder for results; a report already there is never replaced. Creates nothing.

    Args:
        out: the folder asked for, None for `reports/<name>-<ending>`.
        run: the run that is read.
        ending: what tells this retraining from others.
        force: write into a folder that holds files of other origin (they are left alone).

    Returns:
        The folder, and a remark worth telling ("" for none).

    Raises:
        UsageError: if the folder lies inside the run, is a file, or holds a report or files of other origin.
    """
    folder = out if out is not None else Path("reports") / f"{run.name}-{ending}"
    chosen = output_folder(folder, (run,), force=force)
    for held, verb in (("findings.json", "hnf report"), ("diff.json", "hnf diff")):
        if (folder / held).exists():
            raise UsageError(
                f"holds the result of {verb}, whose page this would replace",
                path=folder,
                remedy="choose another folder with --out",
            )
    return chosen


def print_plan(plan: Any, run: Run, folder: Path, *, as_json: bool, options: Sequence[Choice] = ()) -> None:
    """Print what a retraining would cost; nothing is computed or written."""
    told = {
        "run": run.name,
        "path": spelled(relative(run.path)),
        "out": str(relative(folder)),
        **asdict(plan),
    }
    if as_json:
        from hnf_offline.strict_json import plain

        return emit_json(plain({"schema": 1, "plans": [told], "options": told_options(options)}))
    return emit("\n\n".join([fields_text(told), *options_text(options)]))


def write(
    done: Retraining, run: Run, folder: Path, *, device: str, seconds: float
) -> tuple[Retraining, Path]:
    """Write the page.

    Returns:
        The retraining with what made it, and the path of the page.
    """
    from hnf_offline.report import write_retraining

    made = made_by(typed_command(), str(done.made.get("device", device)), seconds, "robust")
    done = replace(done, made={**made, **done.made})
    log = None if run.log is None else run.log.rows
    return done, write_retraining(done, log, folder, command=typed_command())


def interrupted(progress: Reporter, kept: str) -> InterruptedRunError:
    """Say how far a retraining had come when the user stopped it, and what is kept of it.

    Returns:
        The error to raise.
    """
    last = progress.last
    return InterruptedRunError(0 if last is None else last.done, 0 if last is None else last.total, kept)


def tell(
    done: Retraining, run: Run, folder: Path, *, device: str, seconds: float, quiet: bool, as_json: bool
) -> None:
    """Write the page and print the result."""
    from hnf_offline.report import retraining_summary

    done, page = write(done, run, folder, device=device, seconds=seconds)
    if as_json:
        return emit_json(done.to_json())
    if not quiet:
        emit(retraining_summary(done, **terminal()))
    return emit(str(relative(page)))
