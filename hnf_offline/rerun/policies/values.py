"""Read a whole number out of what stands behind the "=" of a policy."""

from __future__ import annotations


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
