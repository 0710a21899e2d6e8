"""Values that every reader of JSON takes: nothing but what the standard knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Turn mappings, tuples and non-finite floats into strict JSON values.

    Returns:
        The same value of dicts, lists, strings, numbers, booleans and None.
    """
    if isinstance(value, Mapping):
        result: dict[str, Any] = {}
        for key, item in value.items():
            result[str(key)] = plain(item)
            if isinstance(item, float) and not math.isfinite(item):
                result[f"{key}_text"] = str(item)
        return result
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
