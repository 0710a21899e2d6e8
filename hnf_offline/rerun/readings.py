"""The plausible readings of a run: the likeliest from what it says of itself, and the others to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.run.records import Run

#: Bounds on the gradient norm that trainers use, tried where none is known.
USUAL_CLIPS = (1.0, 0.5, 5.0, 0.25, 0.1)
#: Numbers of micro-batches tried where the run does not say.
USUAL_ACCUMULATIONS = (2, 4, 8)
_PRECISIONS = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}


def likeliest(start: Start) -> Recipe:
    """Read the run as it describes itself.

    run.toml wins, then the settings saved with the run (under whatever section), then what most trainers do.

    Returns:
        The recipe.
    """
    run, said = start.run, start.run.optimizer
    clip = (
        said.max_grad_norm if said.max_grad_norm is not None else _number(run, "max_grad_norm", "grad_clip")
    )
    accumulation = said.accumulation or int(_number(run, "accumulation", "gradient_accumulation_steps") or 1)
    return Recipe(
        kind=start.kinds[0],
        rates="log" if start.rates.logged else "saved",
        clip=clip if clip else None,
        accumulation=max(1, accumulation),
        precision=said.precision or _precision(run),
        dropout=bool(dropout_of(start.session.module)),
        fresh_state=start.borrowed,
    )


def known_clip(run: Run) -> bool:
    """Tell whether the run says how it clipped.

    Returns:
        True where run.toml or the saved settings name a bound (or 0 for none).
    """
    return run.optimizer.max_grad_norm is not None or _number(run, "max_grad_norm", "grad_clip") is not None


def dropout_of(module: nn.Module) -> float:
    """Find the largest dropout probability of a module, whether a layer's or a setting of its attention.

    Returns:
        The probability, 0.0 without dropout.
    """
    layers = [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
    settings = [
        float(value)
        for part in module.modules()
        for name, value in vars(part).items()
        if "drop" in name and isinstance(value, float) and 0 < value < 1
    ]
    return max([*layers, *settings], default=0.0)


def shifts() -> tuple[tuple[int, int], ...]:
    """List how batch file and log may be counted otherwise: (batch_offset, loss_offset), the nearest first.

    Returns:
        All pairs within two steps and one step but (0, 0).
    """
    pairs = [(batch, loss) for batch in range(-2, 3) for loss in range(-1, 2) if (batch, loss) != (0, 0)]
    return tuple(sorted(pairs, key=lambda pair: (abs(pair[0]) + abs(pair[1]), pair)))


def update_rules(start: Start, recipe: Recipe) -> tuple[Recipe, ...]:
    """List other ways in which the same gradients may have become updates.

    Returns:
        Recipes that differ from this one in one thing each.
    """
    others: list[Recipe] = [replace(recipe, rate_offset=recipe.rate_offset + shift) for shift in (-1, 1)]
    if start.rates.logged:
        others.append(replace(recipe, rates="saved" if recipe.rates == "log" else "log"))
    others += [replace(recipe, kind=kind) for kind in start.kinds if kind != recipe.kind]
    if not known_clip(start.run):
        others += [replace(recipe, clip=clip) for clip in USUAL_CLIPS if clip != recipe.clip]
        if recipe.clip is not None:
            others.append(replace(recipe, clip=None))
    others += others_of_accumulation(start, recipe)
    others += others_of_precision(recipe)
    gap = start.log_gap
    if gap > 1:
        others.append(replace(recipe, loss_span=gap if recipe.loss_span == 1 else 1))
    return tuple(others)


def others_of_accumulation(start: Start, recipe: Recipe) -> list[Recipe]:
    """List other numbers of micro-batches; where labels are left out unevenly, the loss depends on it as well.

    Returns:
        Recipes whose micro-batches have the same number of rows each.
    """
    rows = start.batch_rows
    return [
        replace(recipe, accumulation=parts)
        for parts in (1, *USUAL_ACCUMULATIONS)
        if parts != recipe.accumulation and rows % parts == 0 and rows > parts
    ]


def others_of_precision(recipe: Recipe) -> list[Recipe]:
    """List other precisions, and dropout switched the other way.

    Returns:
        Recipes that change the loss of the very first step already.
    """
    others = [
        replace(recipe, precision=precision)
        for precision in ("float32", "bfloat16")
        if precision != recipe.precision
    ]
    if recipe.dropout:
        others.append(replace(recipe, dropout=False))
    return others


def others_of_divisor(start: Start, recipe: Recipe) -> list[Recipe]:
    """List the loss as trainers have it that divide by all labels, though nothing predicts the first of a row.

    transformers' Trainer does so where it counts `num_items_in_batch` (its loss is then (T - 1) / T of the mean).

    Returns:
        At most one recipe.
    """
    source = start.batches.source
    shifted = not source.aligned and source.starts is None and source.length > 1
    return [replace(recipe, loss_scale=(source.length - 1) / source.length)] if shifted else []


def _settings(run: Run) -> Mapping[str, Any]:
    return {key.rpartition(".")[2]: value for key, value in run.configuration.items()}


def _number(run: Run, *names: str) -> float | None:
    settings = _settings(run)
    for name in names:
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _precision(run: Run) -> str:
    settings = _settings(run)
    for name in ("bf16", "fp16"):
        if settings.get(name) is True:
            return _PRECISIONS[name]
    named = settings.get("precision") or settings.get("mixed_precision")
    text = str(named).lower().removesuffix("-mixed") if named else ""
    return _PRECISIONS.get(text, "float32")
