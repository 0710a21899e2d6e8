"""Read the comma-separated arguments of a policy: named fields, numbers in a range, whole numbers, spans of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence


def fields(value: str | None, names: Sequence[str], *, required: int) -> list[str | None]:
    """Cut a value at its commas.

    Args:
        value: the text behind "=", None where there is none.
        names: what the fields are called, for messages.
        required: how many of them have to be there.

    Returns:
        One text a name; None for what was left out at the end.

    Raises:
        ValueError: if there are too few or too many, or one is empty.
    """
    given = [] if value is None else [part.strip() for part in value.split(",")]
    if len(given) < required:
        raise ValueError(f"{names[len(given)]} is missing")
    if len(given) > len(names):
        raise ValueError(f"{given[len(names)]!r} is one value too many")
    for name, text in zip(names, given, strict=False):
        if not text:
            raise ValueError(f"{name} is empty")
    return [*given, *[None] * (len(names) - len(given))]


def number(
    text: str,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Read a finite number within a range.

    Args:
        text: the number as typed.
        name: what it is called, for messages.
        above: it has to be greater than this.
        least: it has to be at least this.
        below: it has to be smaller than this.
        most: it has to be at most this.

    Returns:
        The number.

    Raises:
        ValueError: if it is none, not finite, or out of range.
    """
    try:
        found = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
    bounds = (
        (not math.isfinite(found), "finite"),
        (above is not None and found <= above, f"above {above}"),
        (least is not None and found < least, f"at least {least}"),
        (below is not None and found >= below, f"below {below}"),
        (most is not None and found > most, f"at most {most}"),
    )
    for broken, words in bounds:
        if broken:
            raise ValueError(f"{name} is {text}, but must be {words}")
    return found


def spans(value: str | None, name: str) -> tuple[range, ...]:
    """Read steps and ranges of steps: "220,221" or "1318-1343".

    Returns:
        Ranges, in the order typed; both ends are part of a range.

    Raises:
        ValueError: if there is none, or one of them is no step or runs backwards.
    """
    if not value:
        raise ValueError(f"{name} is missing")
    found: list[range] = []
    for part in value.split(","):
        first, mark, last = part.strip().partition("-")
        start = whole(first, name)
        stop = whole(last, name) if mark else start
        if stop < start:
            raise ValueError(f"{name} {part.strip()} runs backwards")
        found.append(range(start, stop + 1))
    return tuple(found)


def whole(text: str, name: str, *, least: int = 1) -> int:
    """Read a whole number.

    Returns:
        The number.

    Raises:
        ValueError: if it is none, or too small.
    """
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no whole number") from None
    if not least <= value < 1 << 31:
        raise ValueError(f"{name} is {text}, but must be at least {least}")
    return value
