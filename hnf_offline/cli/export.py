"""`hnf export`: a report into TensorBoard, W&B or MLflow."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hnf_offline.cli.app import verb
from hnf_offline.options import Json, Out, Quiet, step_range
from hnf_offline.output import relative
from hnf_offline.printing import emit, emit_json


class Tracker(StrEnum):
    """Where to."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"


@verb(
    "hnf export reports/gpt-small --to tensorboard",
    "hnf export reports/gpt-small --to wandb --quantity 'hessian.*' --layers '*.layers.0.*'",
)
def export(
    report: Annotated[
        Path, typer.Argument(metavar="{REPORT}", help="Folder that hnf report wrote.", show_default=False)
    ],
    to: Annotated[Tracker, typer.Option("--to", help="Which tracker.")] = Tracker.tensorboard,
    out: Out = None,
    quantity: Annotated[
        str, typer.Option("--quantity", metavar="GLOB", help="Quantities to export: 'hessian.*'.")
    ] = "*",
    layers: Annotated[
        str,
        typer.Option("--layers", metavar="GLOB", help="Layers to export; the whole model is always there."),
    ] = "*",
    steps: Annotated[
        str | None,
        typer.Option("--steps", metavar="A:B", help="Only scalars and alarms from step A to B."),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", metavar="N", min=1, help="Scalars of every N-th measured step only.")
    ] = 1,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be written, and where; write nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a report's quantities as scalars and its alarms as text for a tracker.

    Nothing leaves the machine: W&B is written offline, MLflow into a store of files.
    """
    from hnf_offline.export import export as write

    first, last = step_range(steps)
    folder, exported = write(
        report, to.value, out, quantities=quantity, layers=layers, first=first, last=last, every=every,
        write=not plan,
    )  # fmt: skip
    tags, measured = exported.scalars["tag"].n_unique(), exported.scalars["step"].n_unique()
    if as_json:
        told = {
            "export": str(relative(folder)),
            "to": to.value,
            "tags": tags,
            "steps": measured,
            "scalars": exported.scalars.height,
            "alarms": len(exported.texts),
        }
        return emit_json({"schema": 1, "plans": [told]} if plan else {"schema": 1, **told})
    if not quiet:
        emit(
            f"{exported.scalars.height:,} scalars of {tags} tags at {measured} steps, {len(exported.texts)} alarms"
        )
    return emit(f"would be written: {relative(folder)}" if plan else str(relative(folder)))
