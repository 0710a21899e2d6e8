"""A hostile case, and what every kind of damage needs: values that nobody expects, and places to put them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import specimens

Rng = np.random.Generator

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>"
ANSI = "\x1b[2J\x1b[31mred\x1b]0;title\x07\x9b1m"
#: What is put where a JSON value was, as it is spelled.
JSON_VALUES: tuple[bytes, ...] = (
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1.5",
    b"NaN",
    b"-Infinity",
    b"1e999999",
    b"-1e999999",
    b"1e-999999",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"18446744073709551616",
    b"1" * 400,
    b"7" * 5000,
    b'""',
    b'"1"',
    b'"nan"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\\u001b[31mred"',
    b'"\xff\xfe"',
    b'"a\\nb"',
    json.dumps(HTML).encode(),
    json.dumps(ANSI).encode(),
    b'"' + b"x" * 100_000 + b'"',
    b"[]",
    b"{}",
    b"[null]",
    b"[[1]]",
    b'{"a": 1}',
    b"[1, 2, 3]",
    b"[-1, 5]",
    b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
    b"[" + b"1," * 30_000 + b"1]",
    b'"F64"',
    b'"F4"',
    b'"I64"',
    b'"BOOL"',
    b'"../outside/model.safetensors"',
    b'"/etc/passwd"',
    b'"../../../../../../etc/passwd"',
    b'"."',
    b'".."',
    b'"model.safetensors.index.json"',
    b'"a\\u0000b"',
    b'"' + b"n" * 300 + b'"',
    b'"llama"',
    b"2000000000",
)
NAMES = (
    "new\nline",
    "red\x1b[31m",
    HTML.replace("/", "\u2215"),
    "\udcff\udcfe",
    "\u202egpj.exe",
    "n" * 250,
    " ",
    "-rf",
    "step-99999999999999999999999999",
    "checkpoint-0",
    "step--5",
    "step-1e9",
    "checkpoint-\u0661\u0662",
    "con\x00"[:3],
    "%s%n{0}",
    "$(touch x)",
    "`id`",
    "'; drop",
    "a\tb",
    "..x",
    "step-20 ",
    "[bold red]x[/]",
    "model.safetensors",
)
TEXTS: tuple[bytes, ...] = (
    ANSI.encode(),
    HTML.encode(),
    b"\x00" * 50,
    b"\r",
    b"\r\r\r\n",
    b"\xff\xfe\xfd",
    b"\xef\xbb\xbf",
    "\u2028".encode(),
    b"NaN",
    b"inf",
    b"1e999",
    b"-",
    b"'" * 999,
    b'"',
    b'"unclosed',
    b"{" * 2000,
    b"[" * 50_000,
    b"=" * 3000,
    b"|" * 3000,
    b"9" * 5000,
    b"step=" * 500,
    b"\x1b]8;;http://x\x07",
    b",,,,,,,,",
    b"\t" * 500,
    b"{'loss': __import__('os')}",
    b"loss: " * 900,
    b"a" * 200_000,
    b"iter 99999999999999999999: loss 1",
    b"step:1/0 train_loss:1",
    b"\x7f\x80\x9b",
)


@dataclass
class Case:
    """One hostile run.

    Attributes:
        number: its number; the same number is the same case.
        specimen: what it was made of.
        kind: family of the damage.
        what: the damage in words.
        files: path -> content.
        acts: what is done to the folder after the files are written, each with the folder and the outside.
        target: what a user would name, relative to the folder.
    """

    number: int
    specimen: str
    kind: str
    what: str
    files: dict[str, bytes]
    target: str
    acts: list[Callable[[Path, Path], None]] = field(default_factory=list)

    def plant(self, folder: Path, outside: Path) -> Path:
        """Write the case.

        Args:
            folder: where the run goes.
            outside: a folder with secrets, which nobody may open.

        Returns:
            What a user would name.
        """
        folder.mkdir(parents=True)
        specimens.write(self.files, folder)
        for act in self.acts:
            act(folder, outside)
        return folder / self.target


def pick(rng: Rng, choices: Any) -> Any:
    listed = list(choices)
    return listed[rng.integers(len(listed))]


def place(rng: Rng, size: int) -> int:
    """A place in a file; headers, where the most can go wrong, come up most."""
    if rng.random() < 0.5:
        return int(rng.integers(min(size, 300) + 1))
    return int(rng.integers(size + 1))
