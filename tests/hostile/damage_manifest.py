"""Every type of value in every key of run.toml, paths out of the run, and functions to import."""

from __future__ import annotations

from . import pickles
from .cases import Case, Rng, pick

TOML_VALUES = (
    "0",
    "-1",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "true",
    '""',
    '"x"',
    "[]",
    "{}",
    "[1, 2, 3]",
    '["a", 1]',
    "[[1], [2]]",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "9223372036854775808",
    "99999999999999999999999999999999",
    "0x7fffffffffffffff",
    '"../outside/secret.txt"',
    '"/etc/passwd"',
    '"../outside"',
    '"**"',
    '"../**"',
    '"**/../**/*"',
    '"[!"',
    '"*" ',
    '"\\u0000"',
    '"\\u001b[31m"',
    '"<script>alert(1)</script>"',
    '"hnf_hostile_canary:build"',
    '"os:system"',
    '"builtins:exec"',
    '"subprocess:Popen"',
    '{ loss = "nope" }',
    "{ a = { b = { c = 1 } } }",
    '["../outside/log.jsonl"]',
    '["."]',
    '[""]',
    "[nan, inf]",
    "[-1, 1e9]",
    '"all"',
    "[0, 0, 0, 0, 0, 0, 0, 0]",
    '"' + "y" * 50_000 + '"',
    "[" * 400 + "]" * 400,
    '"log.jsonl"',
    '"batches.npz"',
    "[" + "1," * 20_000 + "1]",
    "1000000000000",
    '"gpt"',
    '"hf"',
    '"factory"',
    '["log.jsonl", "log.jsonl"]',
    '"run.toml"',
    '"."',
)


def damage_manifest(rng: Rng, one: Case, path: str, marker: str) -> str:
    from hnf_offline.run.manifest import KEYS

    sections = {name: dict.fromkeys(keys) for name, keys in KEYS.items()}
    section = pick(rng, sections)
    key = pick(rng, sections[section])
    value = pick(rng, TOML_VALUES)
    lines = [] if rng.random() < 0.5 else one.files.get("run.toml", b"").decode().splitlines()
    how = pick(rng, ("set", "set", "set", "set", "unknown", "section", "two"))
    if how == "unknown":
        lines = [*lines, f"[{section}x]", f"{key} = {value}"]
    elif how == "section":
        lines = [f"{section} = {value}", *lines]
    else:
        lines = [line for line in lines if not line.startswith(f"{key} =")]
        wanted = [(section, key, value)]
        if how == "two" or (section, key) == ("model", "kind"):
            wanted.append(("model", "factory", '"hnf_hostile_canary:build"'))
        for section_, key_, value_ in wanted:
            header = f"[{section_}]"
            if header not in lines:
                lines.append(header)
            lines.insert(lines.index(header) + 1, f"{key_} = {value_}")
    one.files["run.toml"] = "\n".join(lines).encode()
    # A module of that name lies in the run, for a reader that would import from there.
    one.files[f"{pickles.MODULE}.py"] = f"open({marker!r}, 'w').close()\n".encode()
    return f"run.toml: {how} [{section}] {key} = {value[:40]}"
