"""Words and numbers as a reader sees them; whatever comes from a file is cleaned here first."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
# C0 and C1 controls, and the marks that reverse or hide text.
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LONGEST = 2000


def clean(value: object, longest: int = _LONGEST) -> str:
    """Strip terminal escapes, control characters and direction marks from text that came from a file.

    Returns:
        One line of harmless text, cut at `longest` characters.
    """
    text = _ESCAPE_SEQUENCE.sub("", str(value))
    text = re.sub(r"[\t\r\n]+", " ", text)
    text = _SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def number(value: object, digits: int = 3) -> str:
    """Spell a number with a few significant digits; NaN and infinity in words, None as a dash.

    Returns:
        "6.28", "0.0081", "1.2e-07", "139,840", "NaN", "∞", "-".
    """
    if value is None or isinstance(value, bool):
        return "-" if value is None else ("yes" if value else "no")
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return clean(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    spelled = f"{value:,.{places}f}"
    return spelled.rstrip("0").rstrip(".") if "." in spelled and abs(value) >= 10**digits else spelled


def loss(value: float) -> str:
    """Spell a loss: two decimals above 1, as logs print it.

    Returns:
        "10.86", "0.0508", "NaN".
    """
    return f"{value:,.2f}" if math.isfinite(value) and 1 <= abs(value) < 1e6 else number(value)


def axis_number(value: float) -> str:
    """Spell a tick: short, without trailing noise.

    Returns:
        "0.5", "2", "1e6".
    """
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').removesuffix('.')}e{int(exponent)}"
    return f"{value:.6g}"


def times(log_ratio: float) -> str:
    """Spell a natural-log ratio as a factor.

    Returns:
        "×12", "×0.25".
    """
    return f"×{number(math.exp(min(log_ratio, 700.0)), 2)}"


def signed(value: float | None) -> str:
    """Spell a number with its sign.

    Returns:
        "+0.14", "-0.20", "-" for None.
    """
    if value is None:
        return "-"
    return f"+{number(value, 2)}" if value > 0 else number(value, 2)


def plural(count: int, noun: str) -> str:
    """Count something.

    Returns:
        "1 spike", "2 spikes".
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shorten(layer: str, width: int = 28) -> str:
    """Shorten a module path from its left end, which says least, but keep its number; "" is the whole model.

    Returns:
        At most `width` characters.
    """
    name = clean(layer) or "whole model"
    if len(name) <= width:
        return name
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part[:1].isdigit()), None)
    if place is None or len(parts[place]) > width // 3:
        return "…" + name[len(name) - width + 1 :]
    number_and_dot, rest = f"…{parts[place]}.", ".".join(parts[place + 1 :])
    if len(number_and_dot) + len(rest) <= width:
        return number_and_dot + rest
    head = number_and_dot[:-1] + "…"
    return head + rest[len(rest) - (width - len(head)) :]


def common_prefix(layers: Sequence[str]) -> str:
    """Find the module path that all numbered layers share and no reader needs.

    Returns:
        "model." or "transformer." and the like, "" where there is none.
    """
    named = [layer for layer in layers if any(part[:1].isdigit() for part in layer.split("."))]
    if len(named) < 2:
        return ""
    first, last = min(named), max(named)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    prefix = first[: first[:shared].rfind(".") + 1]
    # "layers.3" says more than "3": the word before a number stays.
    if any(layer[len(prefix) :][:1].isdigit() for layer in named):
        prefix = prefix[: prefix[:-1].rfind(".") + 1]
    return prefix


def block(layer: str) -> str:
    """Name the block a module belongs to: its path up to the first number.

    Returns:
        "model.layers.3" of "model.layers.3.mlp.up_proj"; the path's first two parts where no number is in it.
    """
    parts = layer.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return ".".join(parts[:2])


def ascii_only(text: str) -> str:
    """Spell text for an encoding without marks.

    Returns:
        ASCII.
    """
    swaps = {
        "…": "~",
        "×": "x",
        "–": "-",
        "∞": "inf",
        "λ": "lambda ",
        "→": "->",
        "≥": ">=",
        "·": "-",
        "η": "lr",
    }
    for mark, plain in swaps.items():
        text = text.replace(mark, plain)
    return text.encode("ascii", "replace").decode("ascii")
