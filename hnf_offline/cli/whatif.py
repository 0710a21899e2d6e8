"""`hnf whatif`: the same steps again under other policies, beside the run as it was."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnf_offline.cli.app import verb
from hnf_offline.cli.recommended import advised_policies, report_of
from hnf_offline.cli.remarks import remarks
from hnf_offline.cli.retraining import check_start, interrupted, print_plan, retraining_folder, tell, write
from hnf_offline.errors import UsageError
from hnf_offline.options import (
    Accuracy,
    AccuracyName,
    Column,
    Device,
    Find,
    Force,
    Json,
    Manifest,
    Model,
    NoMemoryMap,
    Out,
    Policies,
    Precision,
    PrecisionName,
    Quiet,
    Replay,
    Rows,
    RuleName,
    ShowPlan,
    TierName,
    Twins,
    one_device,
    profile_settings,
    step_range,
)
from hnf_offline.origin import asked_by_run, choices
from hnf_offline.output import relative
from hnf_offline.pipeline import open_input
from hnf_offline.printing import emit, emit_json, terminal
from hnf_offline.progress import Reporter

if TYPE_CHECKING:
    from hnf_offline.profile.settings import ProfileSettings
    from hnf_offline.run.records import Run

#: What the report recommends, as arms.
ADVICE = "advice"

SomeRun = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="Folder of a run: checkpoints, log, batches.")
]
SomeStart = Annotated[
    int | None, typer.Option("--from", metavar="STEP", min=0, help="Checkpoint to retrain from.")
]


def _number_or_range(text: str) -> int | str:
    # Of a number the digits; a range stays as it was typed, and is read with --from.
    if ":" not in str(text):
        if not (str(text).isascii() and str(text).isdecimal() and int(text)):
            raise UsageError(f"--steps {text} is no number of steps", remedy="write it as 40, or as 140:180")
        return int(text)
    return text


Steps = Annotated[
    Any,
    typer.Option(
        "--steps",
        metavar="N|A:B",
        parser=_number_or_range,
        help="How many steps to retrain, or from which checkpoint to which step.",
    ),
]
EverySteps = Annotated[
    int | None,
    typer.Option(
        "--every",
        metavar="N",
        min=0,
        help="Measure S every N-th step; 0 for never [default: about ten times].",
    ),
]
ListPolicies = Annotated[
    bool,
    typer.Option("--list-policies", help="Print the policies there are, or with --policy explain those."),
]


@verb(
    "hnf whatif runs/gpt-small --from 140 --policy lr-cap=0.0084 --policy lr-scale=0.5:20",
    "hnf whatif runs/gpt-small --from 140 --policy advice --find largest-stable-lr",
    "hnf whatif --list-policies",
)
def whatif(
    context: typer.Context,
    run_path: SomeRun = None,
    start: SomeStart = None,
    steps: Steps = 40,
    policies: Policies = None,
    every: EverySteps = None,
    find: Find = None,
    twins: Twins = 2,
    list_policies: ListPolicies = False,
    out: Out = None,
    accuracy: Accuracy = AccuracyName.standard,
    device: Device = "auto",
    dtype: Precision = PrecisionName.float32,
    rows: Rows = None,
    replay: Replay = None,
    manifest: Manifest = None,
    column: Column = None,
    no_mmap: NoMemoryMap = False,
    model: Model = None,
    force: Force = False,
    plan: ShowPlan = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Retrain from a checkpoint under other policies.

    The first arm is the run as it was; each policy is trained on the same batches from the same state beside
    it. Says which spikes are gone, and whether the difference is more than slightly changed weights make.
    Results go to reports/<RUN>-whatif-<FROM> unless --out says otherwise.
    """
    arms = tuple(policies or ())
    if list_policies:
        return _list_policies(arms, as_json)
    if run_path is None:
        raise UsageError("Missing argument 'RUN'", remedy="name the folder of a run; see: hnf whatif --help")
    start, length = _start_and_length(start, steps)
    if not arms and find is None:
        raise UsageError(
            "nothing to try",
            remedy="give --policy P (hnf whatif --list-policies) or --find largest-stable-lr",
        )
    _check(arms)
    run = open_input(run_path, manifest, column, memory_map=not no_mmap)
    check_start(run, start)
    from_run = asked_by_run(context, run.said, without=("steps", "every"))
    settings = profile_settings(
        TierName.stability, None, 1, None, device, dtype, rows, replay, accuracy=accuracy, from_run=from_run
    )
    one_device(settings.device)
    folder, remark = retraining_folder(out, run, f"whatif-{start}", force=force)
    if ADVICE in arms:
        wide = replace(settings, tier=TierName.curvature.value)
        advised = _advised(run, wide, start, start + length, model=model, plan=plan, quiet=quiet)
        arms = tuple(dict.fromkeys(one for arm in arms for one in (advised if arm == ADVICE else (arm,))))
    if plan:
        from hnf_offline.rerun.planning import plan_whatif

        planned = plan_whatif(
            run, start=start, steps=length, policies=arms, settings=settings, every=every,
            model=model, twins=twins, find_largest_stable=find is not None,
        )  # fmt: skip
        return print_plan(planned, run, folder, as_json=as_json, options=choices(context, run, from_run))
    remarks(run, remark, quiet)
    began = time.monotonic()
    from hnf_offline.rerun.whatif import StoppedError
    from hnf_offline.rerun.whatif import whatif as retrain

    with Reporter("whatif", "", unit="arm" if every == 0 else "step", quiet=quiet) as progress:
        try:
            done = retrain(
                run, start=start, steps=length, policies=arms, settings=settings, every=every,
                model=model, twins=twins, find_largest_stable=find is not None, on_progress=progress,
            )  # fmt: skip
        except StoppedError as stopped:
            seconds = time.monotonic() - began
            _, page = write(stopped.retraining, run, folder, device=settings.device, seconds=seconds)
            raise interrupted(progress, f"the arms that were done are kept: {relative(page)}") from stopped
        except KeyboardInterrupt as stopped:
            raise interrupted(progress, "before any policy was tried: nothing to keep") from stopped
    return tell(
        done, run, folder, device=settings.device, seconds=time.monotonic() - began,
        quiet=quiet, as_json=as_json,
    )  # fmt: skip


def _start_and_length(start: int | None, steps: int | str) -> tuple[int, int]:
    """Read the checkpoint to begin at, and how many steps follow.

    Returns:
        Both.

    Raises:
        UsageError: if the start is not said, or said twice, or the end does not come after it.
    """
    if isinstance(steps, int):
        if start is None:
            raise UsageError(
                "Missing option '--from'",
                remedy="name a checkpoint's step, or give --steps A:B; see: hnf whatif --help",
            )
        return start, steps
    first, last = step_range(steps)
    if last is None or (first is None and start is None):
        raise UsageError(
            f"--steps {steps} has no {'end' if last is None else 'start'}",
            remedy="write it as 140:180, or as 40",
        )
    if first is not None and start is not None:
        raise UsageError(
            f"--steps {steps} begins at {first} and --from at {start}", remedy="leave out one or the other"
        )
    begin = first if first is not None else start
    assert begin is not None
    if last <= begin:
        raise UsageError(
            f"--steps {steps} ends at {last}, which does not come after {begin}",
            remedy=f"write {begin}:{begin + 1} or more",
        )
    return begin, last - begin


def _advised(
    run: Run, settings: ProfileSettings, start: int, stop: int, *, model: str | None, plan: bool, quiet: bool
) -> tuple[str, ...]:
    # What the report recommends for these steps; the report is made where there is none.
    if plan and not (Path("reports") / run.name / "findings.json").is_file():
        raise UsageError(
            "--policy advice: there is no report to take the advice from",
            path=run.path,
            remedy="run hnf report first, or leave out --plan",
        )
    with Reporter("profile", settings.tier, quiet=quiet) as progress:
        findings = report_of(run, settings, rule=RuleName.robust.value, model=model, on_progress=progress)
    return advised_policies(run, findings, start, stop)


def _check(arms: tuple[str, ...]) -> None:
    # Before anything slow: every policy is built once, and thrown away.
    from hnf_offline.rerun.policies.registry import make_policies

    for spelling in arms:
        if spelling != ADVICE:
            make_policies(spelling)


def _list_policies(arms: tuple[str, ...], as_json: bool) -> None:
    from hnf_offline.report import policies_table, policy_explained
    from hnf_offline.rerun.policies.registry import catalogue, entries_of

    named = [entry for spelling in arms for entry in entries_of(spelling)]
    chosen = named or list(catalogue().values())
    if as_json:
        fields = ("name", "value", "summary", "formula", "reference", "cost", "example")
        told = [{field: getattr(entry, field) for field in fields} for entry in chosen]
        return emit_json({"schema": 1, "policies": told})
    shown = terminal()
    if named:
        return emit("\n\n".join(policy_explained(entry, **shown) for entry in named))
    return emit(policies_table(chosen, **shown))
