"""Addresses such as s3://bucket/run: told from paths, spelled without secrets, named in one word."""

from __future__ import annotations

import re
from pathlib import Path

#: A scheme has two letters at least: C:/run is a folder. A `Path` has made one slash of two.
_ADDRESS = re.compile(r"((?:[A-Za-z0-9]+::)*[A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_CHAINED = re.compile(r"(::[A-Za-z][A-Za-z0-9+.-]+):/+")
_LOCAL = {"file", "local"}


def address_of(path: Path | str) -> str | None:
    """Recognise the address of a run that is not on this machine.

    Args:
        path: what the user typed; a `Path` made of it is understood as well.

    Returns:
        The address, None where it is a path, or a file:// address of one.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or found.group(1).lower() in _LOCAL:
        return None
    if "://" not in str(path) and Path(path).exists():
        return None
    scheme, rest = found.groups()
    return f"{scheme.lower()}://" + _CHAINED.sub(r"\1://", rest)


def local_path(path: Path | str) -> Path:
    """Give the path of what is on this machine.

    Returns:
        The path, without file:// where it was typed so.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or found.group(1).lower() not in _LOCAL or Path(path).exists():
        return Path(path)
    return Path("/" + found.group(2))


def shown(address: str) -> str:
    """Spell an address for messages and reports.

    Returns:
        It, without user, password and signature, and without a slash at the end.
    """
    scheme, _, rest = address.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if scheme.startswith("http") else rest
    place, slash, below = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2] if '@' in place else place}{slash}{below}".rstrip("/")


def name_of(address: str) -> str:
    """Name a run by the last part of its address.

    Returns:
        One word that can be a folder's name.
    """
    last = shown(address).rstrip("/").rpartition("/")[2]
    word = re.sub(r"[^\w.@=+-]", "_", last).strip(".")[:120]
    return word or "run"
