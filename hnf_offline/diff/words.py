"""Numbers and lists as a reader sees them in a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnf_offline.comparison import Separation


def place(separation: Separation) -> str:
    """Name a quantity where it was measured.

    Returns:
        "layers.0.mlp (gradient.norm)".
    """
    return f"{separation.layer} ({separation.quantity})" if separation.layer else separation.quantity


def value(of: Any) -> str:
    """Spell a value.

    Returns:
        "0.01", "not stated", "not finite".
    """
    if of is None:
        return "not stated"
    if isinstance(of, float):
        return f"{of:.4g}" if math.isfinite(of) else "not finite"
    return str(of)


def all_of(parts: list[str]) -> str:
    """Join with commas and "and".

    Returns:
        "a, b and c".
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def listed(names: list[str], show: int = 3) -> str:
    """List the first few names.

    Returns:
        "a, b, c and 4 more".
    """
    return ", ".join(names[:show]) + (f" and {len(names) - show} more" if len(names) > show else "")


def some(names: list[str], what: str, many: str = "") -> str:
    """Count things and name the first few.

    Returns:
        "5 layers (a, b, c and 2 more)".
    """
    return f"{len(names)} {what if len(names) == 1 else many or what + 's'} ({listed(names)})"
