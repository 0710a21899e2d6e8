"""Groups of layers that can have a learning rate of their own: an optimizer has one rate a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that share a parameter, such as query, key and value of a fused projection; mostly one layer.

    Attributes:
        layers: their paths.
        parameters: names of all their parameters.
    """

    layers: tuple[str, ...]
    parameters: tuple[str, ...]


def units_of(module: nn.Module) -> tuple[Unit, ...]:
    """Group the layers of a module.

    Returns:
        Units in forward order; every parameter is in exactly one.
    """
    from hnf_offline.run.model.layers import layers_of

    units: list[Unit] = []
    for layer in layers_of(module):
        names = tuple(dict.fromkeys(part.parameter for part in layer.parts))
        sharing = [unit for unit in units if set(unit.parameters) & set(names)]
        paths = tuple(path for unit in sharing for path in unit.layers)
        shared = tuple(name for unit in sharing for name in unit.parameters)
        joined = Unit((*paths, layer.path), tuple(dict.fromkeys(shared + names)))
        place = units.index(sharing[0]) if sharing else len(units)
        units = [unit for unit in units if unit not in sharing]
        units.insert(place, joined)
    return tuple(units)


def scales_of(units: Sequence[Unit], factors: Sequence[float]) -> Mapping[str, float]:
    """Give every parameter the factor of its unit.

    Returns:
        Parameter name -> factor.
    """
    return {name: factor for unit, factor in zip(units, factors, strict=True) for name in unit.parameters}
