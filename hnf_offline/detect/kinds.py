"""The kinds of pathology: each with its rule in words, what it is read from, and what can be done about it.

A detector registers its kinds beside its thresholds, and only a registered kind makes a `Pathology`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hnf_offline.findings import Pathology


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of pathology.

    Attributes:
        name: as findings call it.
        rule: when it is told, with the thresholds; one sentence or two.
        needs: quantities of the catalogue (`family.name`), or columns of the log, that it is read from.
        action: what can be done, one sentence.
    """

    name: str
    rule: str
    needs: tuple[str, ...]
    action: str

    def at(self, layer: str, step: int, evidence: str) -> Pathology:
        """Tell one.

        Args:
            layer: where, "" for the whole model.
            step: the first at which it was seen.
            evidence: the numbers that show it, one sentence.

        Returns:
            The pathology, with what can be done about it.
        """
        return Pathology(self.name, layer, int(step), evidence, self.action)


_KINDS: dict[str, Kind] = {}


def kind(name: str, *, rule: str, needs: tuple[str, ...], action: str) -> Kind:
    """Register a kind of pathology.

    Returns:
        The kind.

    Raises:
        ValueError: one of that name exists, or a text is missing or no sentence.
    """
    if name in _KINDS:
        raise ValueError(f"two kinds of pathology are called {name!r}")
    if not needs or not all(text.endswith(".") for text in (rule, action)):
        raise ValueError(f"the pathology {name!r} lacks a rule, what it needs or what to do")
    _KINDS[name] = Kind(name, rule, needs, action)
    return _KINDS[name]


def kinds() -> Mapping[str, Kind]:
    """Give all kinds.

    Returns:
        By name, in alphabetical order.
    """
    import hnf_offline.detect.pathologies  # noqa: F401  (its detectors register theirs)

    return MappingProxyType(dict(sorted(_KINDS.items())))
