"""Settings as any trainer may have saved them, made plain and bounded: numbers, text, flags and what holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DEEPEST = 6
_MOST_ENTRIES = 2_000
_LONGEST_LIST = 100
_LONGEST_TEXT = 500


def plain_settings(content: Any) -> dict[str, Any]:
    """Copy what can be read as a setting.

    What refers to itself or to one thing in many places comes out bounded as everything else.

    Args:
        content: a mapping of anything.

    Returns:
        Its numbers, texts, flags, short lists of them and mappings of them; empty where it is no mapping.
    """
    return _Copying().mapping(content, 0) if isinstance(content, Mapping) else {}


class _Copying:
    """Counts what it has copied."""

    def __init__(self) -> None:
        self._left = _MOST_ENTRIES

    def mapping(self, content: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in content.items():
            if self._left <= 0:
                break
            self._left -= 1
            if not isinstance(key, str | int):
                continue
            name = str(key)[:_LONGEST_TEXT]
            if isinstance(value, Mapping):
                if depth < _DEEPEST and (inner := self.mapping(value, depth + 1)):
                    found[name] = inner
            elif isinstance(value, list | tuple):
                if len(value) <= _LONGEST_LIST and all(_is_plain(one) for one in value):
                    found[name] = [_short(one) for one in value]
            elif _is_plain(value):
                found[name] = _short(value)
        return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | float) or (isinstance(value, int) and value.bit_length() <= 256)


def _short(value: Any) -> Any:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value
