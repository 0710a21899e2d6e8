"""What the verbs say beside their result, on stderr, and the record of what the user typed."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError, UserError, spelled
from hnf_offline.output import relative
from hnf_offline.progress import note

if TYPE_CHECKING:
    from hnf_offline.check.examine import Examination
    from hnf_offline.run.records import Run

#: Faults that are told before the work; the report lists them all.
MOST_TOLD = 3


def no_checkpoints(run: Run) -> UserError:
    """Say that a verb needs checkpoints and the run has none.

    Returns:
        The error to raise.
    """
    return InputError(
        "holds no checkpoint that can be read",
        path=run.path,
        remedy="hnf spikes reads logs alone; see docs/formats.md, or use --manifest FILE",
    )


def remarks(run: Run, remark: str, quiet: bool) -> None:
    """Tell on stderr what was passed over and what is missing, unless asked to be quiet."""
    if quiet:
        return
    if remark:
        note(remark)
    for skipped in run.skipped[:5]:
        note(
            f"skipped {spelled(relative(skipped.path))}: {spelled(skipped.reason)}"
            + (f"; {skipped.remedy}" if skipped.remedy else "")
        )
    if len(run.skipped) > 5:
        note(f"skipped {len(run.skipped) - 5} more; the report lists them all")


def check_first(run: Run, quiet: bool, model: str | None = None, device: str = "auto") -> Examination:
    """Run the cheap checks before anything slow, and tell on stderr what is wrong, unless asked to be quiet.

    How the model was initialised is looked at too: that reads one checkpoint, and only where it is an initial one.

    Args:
        run: the run.
        quiet: tell nothing.
        model: `package.module:function` that builds the model, None where the run says.
        device: where to run the initial checkpoint on a few rows.

    Returns:
        What was looked at, and all that was found.
    """
    from hnf_offline.check import check_run
    from hnf_offline.report import fault_line, faults_counted

    checked = check_run(run, cheap=True, initial=True, model=model, device=device)
    wrong = checked.wrong
    if wrong and not quiet:
        note(f"this series of checkpoints is not sound: {faults_counted(wrong)}; hnf check says more")
        for fault in wrong[:MOST_TOLD]:
            note(spelled(fault_line(fault)))
        if len(wrong) > MOST_TOLD:
            note(f"{len(wrong) - MOST_TOLD} more; the report lists them all")
    return checked


def typed_command() -> str:
    """Spell what the user typed, for the record.

    Returns:
        One line that a shell would understand.
    """
    return shlex.join(["hnf", *sys.argv[1:]])
