"""The initialisations that are in use, as the standard deviation that each gives a weight matrix. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hnf_offline.check.initial import Place

#: Names under which configurations keep the standard deviation of their normal weights.
_RANGES = ("initializer_range", "init_std", "initial_std", "initializer_std", "init_method_std")
#: What transformers and GPT-2 draw with where nothing is said.
USUAL = 0.02


@dataclass(frozen=True, slots=True)
class Scheme:
    """A known initialisation of one matrix.

    Attributes:
        name: what the field calls it.
        deviation: the standard deviation that it gives.
        scaling: how residual projections are scaled by depth in it, "" for not.
    """

    name: str
    deviation: float
    scaling: str = ""

    @property
    def normal(self) -> bool:
        """Whether it is a deviation that does not know the width."""
        return self.name.startswith("N(0")

    def __str__(self) -> str:
        return f"{self.name}{' ' + self.scaling if self.scaling else ''}"


def schemes(place: Place, settings: Mapping[str, Any]) -> Iterator[Scheme]:
    """List what a matrix may have been initialised with.

    Args:
        place: where it stands.
        settings: the model's settings; a standard deviation that they name is a scheme of its own.

    Yields:
        Xavier (Glorot & Bengio 2010): sqrt(2 / (in + out)); He (He et al. 2015, arXiv 1502.01852): sqrt(2 / in);
        LeCun (1998): sqrt(1 / in); PyTorch's nn.Linear: uniform within 1 / sqrt(in), so sqrt(1 / (3 in)); normal of
        the configured or the usual 0.02; small init (Nguyen & Salazar 2019, arXiv 1910.05895): sqrt(2 / (5 in));
        nn.Embedding: 1; muP's readout (Yang et al. 2022, arXiv 2203.03466): 1 / in. Of residual projections each of
        them also scaled by depth, as GPT-2 does (1 / sqrt(2 L)), by 1 / sqrt(L), or by their own block
        (1 / sqrt(2 (l + 1))), and GPT-NeoX's 2 / (L sqrt(in)).
    """
    plain = list(_plain(place, settings))
    yield from plain
    if place.role != "residual" or place.blocks < 2:
        return
    for scheme in plain:
        for words, factor in _by_depth(place):
            yield Scheme(scheme.name, scheme.deviation * factor, words)
    yield Scheme("GPT-NeoX's 2 / (L sqrt(fan_in))", 2 / (place.blocks * math.sqrt(place.fan_in)))


def _plain(place: Place, settings: Mapping[str, Any]) -> Iterator[Scheme]:
    ranges = {
        float(value) for key in _RANGES if isinstance(value := settings.get(key), int | float) and value > 0
    }
    for deviation in sorted(ranges | {USUAL}, key=lambda one: one == USUAL):
        yield Scheme(f"N(0, {deviation:g})", deviation)
    if place.role == "embedding":
        yield Scheme("nn.Embedding's N(0, 1)", 1.0)
        yield Scheme("1 / sqrt(width)", 1 / math.sqrt(place.fan_in))
        yield Scheme("small init", math.sqrt(0.4 / place.fan_in))
        return
    yield Scheme("PyTorch's nn.Linear", 1 / math.sqrt(3 * place.fan_in))
    yield Scheme("LeCun", 1 / math.sqrt(place.fan_in))
    yield Scheme("Xavier", math.sqrt(2 / (place.fan_in + place.fan_out)))
    if place.fused > 1:
        yield Scheme("Xavier", math.sqrt(2 / (place.fan_in + place.fan_out / place.fused)))
    width_of_a_head = settings.get("d_kv")
    if place.role == "inner" and isinstance(width_of_a_head, int) and width_of_a_head > 0:
        yield Scheme("T5's query", 1 / math.sqrt(place.fan_in * width_of_a_head))
    yield Scheme("He", math.sqrt(2 / place.fan_in))
    yield Scheme("small init", math.sqrt(0.4 / place.fan_in))
    if place.role == "head":
        yield Scheme("N(0, 1)", 1.0)
        yield Scheme("muP's readout", 1 / place.fan_in)


def _by_depth(place: Place) -> Iterator[tuple[str, float]]:
    yield "scaled by 1 / sqrt(2 L)", 1 / math.sqrt(2 * place.blocks)
    yield "scaled by 1 / sqrt(L)", 1 / math.sqrt(place.blocks)
    if place.block is not None:
        yield "scaled by 1 / sqrt(2 (l + 1))", 1 / math.sqrt(2 * (place.block + 1))
