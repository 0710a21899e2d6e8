"""How a hostile run made by hand is registered, and what most of them hold."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save

from . import specimens
from .cases import Case

#: Case numbers from here on are those of this file: two each, library and command line.
FIRST = 1_000_000

Act = Callable[[Path, Path], None]
_SPECIALS: dict[str, Callable[[str], Case]] = {}


def names() -> tuple[str, ...]:
    return tuple(_SPECIALS)


def numbers(name: str) -> tuple[int, int]:
    """The case numbers of a special: through the library, and through the command line."""
    first = FIRST + 2 * names().index(name)
    return first, first + 1


def case(number: int, marker: str) -> Case:
    """Make the special of a case number."""
    made = _SPECIALS[names()[(number - FIRST) // 2]](marker)
    made.number = number
    return made


def special(name: str) -> Callable[[Callable[[str], Any]], Callable[[str], Any]]:
    """Register what makes a special: its files, or its files and acts, or those and a target."""

    def register(make: Callable[[str], Any]) -> Callable[[str], Any]:
        def build(marker: str) -> Case:
            made = make(marker)
            files, acts, target = made if isinstance(made, tuple) else (made, [], ".")
            return Case(0, "made by hand", "special", name, dict(files), target, list(acts))

        _SPECIALS[name] = build
        return make

    return register


def weights() -> bytes:
    return save(specimens.trained()[0].state_dict())


def run_with(**files: bytes) -> dict[str, bytes]:
    return {"step-20/model.safetensors": weights(), "log.jsonl": specimens.jsonl(), **files}


def header_and(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data
