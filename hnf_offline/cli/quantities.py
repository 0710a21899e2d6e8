"""`hnf quantities`: the catalogue of what can be measured."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hnf_offline.cli.app import verb
from hnf_offline.options import Json
from hnf_offline.printing import emit, emit_json, entries, explanation, listing, terminal


class CatalogueTier(StrEnum):
    """What a quantity needs: the training log alone, or a tier of replayed checkpoints."""

    log = "log"
    weights = "weights"
    forward = "forward"
    gradient = "gradient"
    stability = "stability"
    curvature = "curvature"
    full = "full"


@verb(
    "hnf quantities --tier curvature",
    "hnf quantities --kind weight",
    "hnf quantities hessian.stability_ratio",
)
def quantities(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Explain this quantity.")] = None,
    tier: Annotated[CatalogueTier | None, typer.Option("--tier", help="Only this tier.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", metavar="WORD", help="Only this family, or what is measured on it: weight, softmax."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="WORD",
            help="Only what this source document lists (profiler, rksp, explosion, catalogue), or this reference.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be measured, or explain it.

    With NAME: formula, unit, how to read it, what it cannot show, and its source.
    """
    width = terminal()["width"]
    chosen = entries(name, None if tier is None else tier.value, kind, source)
    if as_json:
        return emit_json({"schema": 1, "quantities": chosen})
    return emit(explanation(chosen[0], width) if name else listing(chosen, width))
