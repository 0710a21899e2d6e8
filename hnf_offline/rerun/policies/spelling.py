"""Take the named options out of what stands behind the "=" of a policy."""

from __future__ import annotations

from collections.abc import Sequence


def options(value: str | None, keys: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Part "A,B,key=C" into the values without a name and those with one.

    Args:
        value: what stands behind the policy's own "="; None where nothing does.
        keys: names that may stand before an equals sign.

    Returns:
        "A,B" (None where nothing is left) and {"key": "C"}.

    Raises:
        ValueError: if a name is unknown or given twice, or its value is empty.
    """
    plain: list[str] = []
    named: dict[str, str] = {}
    for piece in value.split(",") if value is not None else ():
        key, mark, text = (part.strip() for part in piece.partition("="))
        if not mark:
            plain.append(piece)
            continue
        if key not in keys:
            raise ValueError(f"{key!r} is none of its options {', '.join(keys)}")
        if key in named:
            raise ValueError(f"{key} is given twice")
        if not text:
            raise ValueError(f"{key}= has no value")
        named[key] = text
    return ",".join(plain) if plain else None, named
