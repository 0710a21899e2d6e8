"""The registry of quantities: name, unit, formula, source, tier, reading, and the function that is the formula.

A quantity's function names its inputs by its parameters; whoever observes something offers it under those
names, and every quantity whose inputs are on offer is evaluated there. Torch-free: `hnf quantities` and the
report read it without loading a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeVar

Reduction = Literal["max", "min", "mean", "rms", "median"]
Function = TypeVar("Function", bound=Callable[..., Any])

#: Bands of the source documents for component estimates, in log10: low < 1e3 < medium < 1e6 < high < 1e9 < danger.
SOURCE_BANDS = (3.0, 6.0, 9.0)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One entry of the catalogue.

    Attributes:
        name: `family.quantity`.
        unit: of the value; "1" for a pure number.
        formula: as text.
        reference: paper and section, or "definition".
        tier: the cheapest tier that measures it; "log" where the training log alone is enough.
        layers: where it is measured, in words.
        reading: one sentence: read it like this.
        cannot: one sentence: what it cannot show.
        description: the first line of the function's docstring.
        inputs: names of the observations the function needs.
        function: the formula.
        over_batches: how values of micro-batches, or of tokens and sequences, combine.
        worst_head: for values per head, which head is reported; None for scalars.
        bands: ascending thresholds between bands, empty where none are published.
    """

    name: str
    unit: str
    formula: str
    reference: str
    tier: str
    layers: str
    reading: str
    cannot: str
    description: str
    inputs: tuple[str, ...]
    function: Callable[..., Any]
    over_batches: Reduction = "mean"
    worst_head: Literal["max", "min"] | None = None
    bands: tuple[float, ...] = ()


_REGISTRY: dict[str, Quantity] = {}


def quantity(
    name: str,
    *,
    unit: str,
    formula: str,
    reference: str,
    tier: str,
    layers: str,
    reading: str,
    cannot: str,
    over_batches: Reduction = "mean",
    worst_head: Literal["max", "min"] | None = None,
    bands: tuple[float, ...] = (),
) -> Callable[[Function], Function]:
    """Register the decorated function as a quantity.

    A quantity with `worst_head` returns one value a head; its companion `<name>_head` says which head it was.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: if the name is taken or an entry is incomplete.
    """

    def register(function: Function) -> Function:
        entry = Quantity(
            name=name,
            unit=unit,
            formula=formula,
            reference=reference,
            tier=tier,
            layers=layers,
            reading=reading,
            cannot=cannot,
            description=(inspect.getdoc(function) or "").split("\n")[0],
            inputs=tuple(inspect.signature(function).parameters),
            function=function,
            over_batches=over_batches,
            worst_head=worst_head,
            bands=bands,
        )
        blank = [
            part for part in ("unit", "formula", "reference", "reading", "cannot") if not getattr(entry, part)
        ]
        if name in _REGISTRY or blank:
            raise ValueError(f"quantity {name}: {'registered twice' if name in _REGISTRY else f'no {blank}'}")
        _REGISTRY[name] = entry
        if worst_head is not None:
            _REGISTRY[f"{name}_head"] = replace(
                entry,
                name=f"{name}_head",
                unit="head index",
                formula=f"arg{worst_head} over heads of {name}",
                description=f"Which head has the {worst_head}imum of {name}.",
                reading="Names the head the value beside it belongs to; a head that stays the same is a suspect.",
                inputs=(),
                worst_head=None,
                bands=(),
            )
        return function

    return register


def catalogue() -> Mapping[str, Quantity]:
    """Give every quantity by name, in the order of the families.

    Returns:
        A read-only mapping.
    """
    from hnf_offline.quantities import families

    assert families.ALL
    return MappingProxyType(_REGISTRY)


def computable(offered: frozenset[str], tier: str) -> tuple[Quantity, ...]:
    """Select the quantities of a tier whose inputs are all offered.

    Returns:
        The quantities, in catalogue order.
    """
    return _computable(offered, tier, len(catalogue()))


@cache
def _computable(offered: frozenset[str], tier: str, _registered: int) -> tuple[Quantity, ...]:
    # Asked at every module of every micro-batch: the answer changes only when something is registered.
    return tuple(
        entry
        for entry in _REGISTRY.values()
        if entry.tier == tier and entry.inputs and set(entry.inputs) <= offered
    )
