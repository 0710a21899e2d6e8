"""The policies by name: one small file each registers itself with its formula, source and cost. Torch-free."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError

if TYPE_CHECKING:
    from hnf_offline.rerun.policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy of the catalogue.

    Attributes:
        name: as typed ("lr-cap").
        value: what follows the "=", in capitals ("RATE"; "FACTOR[:STEPS]"), "" where nothing may.
        summary: one sentence on what it does.
        formula: what is changed, as a formula.
        reference: paper and section, or the source document.
        cost: what it costs a step ("nothing", "one Hessian-vector product").
        example: one spelling that works.
        make: builds it from the text behind "=" (None where there is none); raises UsageError.
    """

    name: str
    value: str
    summary: str
    formula: str
    reference: str
    cost: str
    example: str
    make: Callable[[str | None], Policy]


_ENTRIES: dict[str, Entry] = {}


def policy(
    name: str, *, value: str, summary: str, formula: str, reference: str, cost: str, example: str
) -> Callable[[Callable[[str | None], Policy]], Callable[[str | None], Policy]]:
    """Register the function that builds a policy from its text.

    Returns:
        A decorator that leaves the function as it is.
    """

    def register(make: Callable[[str | None], Policy]) -> Callable[[str | None], Policy]:
        if name in _ENTRIES:
            raise ValueError(f"two policies are called {name}")
        _ENTRIES[name] = Entry(name, value, summary, formula, reference, cost, example, make)
        return make

    return register


def catalogue() -> Mapping[str, Entry]:
    """Give all policies.

    Returns:
        Name -> entry, in alphabetical order.
    """
    from hnf_offline.rerun.policies.families import FAMILIES

    for family in FAMILIES:
        import_module(f"hnf_offline.rerun.policies.{family}")
    return dict(sorted(_ENTRIES.items()))


def parts_of(spelling: str) -> list[str]:
    """Split a spelling at each "+" that begins another policy; that of 1e+3 does not.

    Returns:
        One spelling a policy.
    """
    return re.split(r"\+(?=[a-z])", spelling)


def entries_of(spelling: str) -> tuple[Entry, ...]:
    """Look up every policy of a spelling such as "lr-cap=0.01" or "lr-cap=0.01+skip=220".

    Returns:
        The entries, in order.

    Raises:
        UsageError: if a name is unknown, with the one that was probably meant.
    """
    known = catalogue()
    found: list[Entry] = []
    for part in parts_of(spelling):
        name = part.partition("=")[0].strip()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise UsageError(
                f"--policy {part}: no policy is called {name!r}",
                remedy=f"did you mean {near[0]}?" if near else "hnf whatif --list-policies shows them all",
            )
        found.append(known[name])
    return tuple(found)


def make_policies(spelling: str) -> tuple[Policy, ...]:
    """Build the policies of a spelling; several joined by "+" act in that order.

    Returns:
        Fresh policies, for one training.

    Raises:
        UsageError: if a name is unknown, or a value is missing, superfluous or out of range.
    """
    made: list[Policy] = []
    for part, entry in zip(parts_of(spelling), entries_of(spelling), strict=True):
        _, mark, value = part.partition("=")
        if mark and not entry.value:
            raise UsageError(f"--policy {part}: {entry.name} takes no value", remedy=f"write {entry.example}")
        try:
            made.append(entry.make(value.strip() if mark else None))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"--policy {part}: {error}", remedy=f"write {entry.example}") from error
    return tuple(made)
