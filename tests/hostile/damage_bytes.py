"""Bytes cut, flipped, zeroed, doubled, and mixed with those of other files."""

from __future__ import annotations

from . import specimens
from .cases import Case, Rng, pick, place


def damage_bytes(rng: Rng, one: Case, path: str, marker: str) -> str:
    data = one.files[path]
    names = specimens.names()
    how = pick(
        rng,
        ("truncate", "flip", "delete", "duplicate", "insert", "zero", "splice", "ones", "extend", "reverse"),
    )
    start, length = place(rng, len(data)), int(rng.integers(1, 200))
    stop = min(len(data), start + length)
    match how:
        case "truncate":
            data = data[:start]
        case "flip":
            changed = bytearray(data)
            for _ in range(int(rng.integers(1, 9))):
                if changed:
                    changed[min(place(rng, len(changed)), len(changed) - 1)] ^= 1 << int(rng.integers(8))
            data = bytes(changed)
        case "delete":
            data = data[:start] + data[stop:]
        case "duplicate":
            data = data[:stop] + data[start:]
        case "insert":
            data = data[:start] + rng.bytes(length) + data[start:]
        case "zero":
            data = data[:start] + bytes(stop - start) + data[stop:]
        case "ones":
            data = data[:start] + b"\xff" * (stop - start) + data[stop:]
        case "extend":
            data = data + rng.bytes(length)
        case "reverse":
            data = data[::-1]
        case _:
            other = specimens.specimen(names[rng.integers(len(names))]).files
            donor = other[pick(rng, sorted(other))]
            data = data[:start] + donor[place(rng, len(donor)) :]
            if rng.random() < 0.3:
                data = donor
    one.files[path] = data
    return f"{how} at {start}, {length} bytes"
