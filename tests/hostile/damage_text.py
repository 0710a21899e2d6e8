"""Text in other encodings, with control characters and markup, compressed, in one line, without end."""

from __future__ import annotations

import gzip
import re

from .cases import HTML, TEXTS, Case, Rng, pick


def is_text(path: str) -> bool:
    return (
        path.endswith((".log", ".txt", ".csv", ".tsv", ".jsonl", ".json", ".yaml", "latest"))
        or "/metrics/" in path
    )


def damage_text(rng: Rng, one: Case, path: str, marker: str) -> str:
    data = one.files[path]
    how = pick(
        rng,
        (
            "insert",
            "insert",
            "insert",
            "crlf",
            "cr",
            "utf16",
            "utf16be",
            "utf32",
            "latin1",
            "nul",
            "gzip",
            "gzip cut",
            "gzip twice",
            "gzip bomb",
            "one line",
            "swap lines",
            "repeat",
            "backwards",
            "long line",
            "numbers",
            "columns",
            "html",
        ),
    )
    lines = data.split(b"\n")
    number = int(rng.integers(len(lines)))
    text = pick(rng, TEXTS)
    match how:
        case "insert":
            at = int(rng.integers(len(lines[number]) + 1))
            lines[number] = lines[number][:at] + text + lines[number][at:]
            data = b"\n".join(lines)
        case "crlf":
            data = data.replace(b"\n", b"\r\n")
        case "cr":
            data = data.replace(b"\n", b"\r")
        case "utf16" | "utf16be" | "utf32":
            encoding = {"utf16": "utf-16", "utf16be": "utf-16-be", "utf32": "utf-32"}[how]
            data = data.decode("utf-8", "replace").encode(encoding)
        case "latin1":
            data = data.replace(b"loss", "löss".encode("latin-1"))
        case "nul":
            data = data[: len(data) // 2] + bytes(int(rng.integers(1, 5000))) + data[len(data) // 2 :]
        case "gzip":
            data = gzip.compress(data, mtime=0)
        case "gzip cut":
            packed = gzip.compress(data, mtime=0)
            data = packed[: int(rng.integers(len(packed)))]
        case "gzip twice":
            data = gzip.compress(data, mtime=0) + gzip.compress(data, mtime=0) + pick(rng, (b"", b"junk"))
        case "gzip bomb":
            data = gzip.compress(data + bytes(30_000_000), mtime=0, compresslevel=9)
        case "one line":
            data = data.replace(b"\n", b" ")
        case "swap lines":
            order = rng.permutation(len(lines))
            data = b"\n".join(lines[place_] for place_ in order)
        case "repeat":
            data = data * int(rng.integers(2, 30))
        case "backwards":
            data = b"\n".join(reversed(lines))
        case "long line":
            lines.insert(number, lines[number] * 300 + b"x" * 1_500_000)
            data = b"\n".join(lines)
        case "numbers":
            spelled = pick(
                rng,
                (
                    b"1e400",
                    b"-1e400",
                    b"nan",
                    b"1" * 500,
                    b"0x10",
                    b"1_000",
                    b"\xd9\xa1",
                    b"--1",
                    b"1.2.3",
                    b"",
                    b"-0",
                ),
            )
            data = re.sub(rb"\d+\.\d+", lambda found: spelled if rng.random() < 0.2 else found.group(), data)
        case "columns":
            data = data.replace(
                b"loss",
                pick(
                    rng, (HTML.encode(), b"step", b"", b"loss,loss", b"eval_loss", b"x" * 70_000, b"\x1b[1m")
                ),
            )
        case _:
            data = data.replace(b"grad_norm", HTML.encode()).replace(b"gnorm", HTML.encode())
    one.files[path] = data
    if how.startswith("gzip") and rng.random() < 0.5:
        one.files[f"{path}.gz"] = one.files.pop(path)
        if one.target == path:
            one.target = f"{path}.gz"
    return f"text: {how} at line {number} ({text[:20]!r})"
