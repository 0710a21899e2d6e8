"""JSON with one thing in it replaced, removed, renamed or said twice; in headers, lines and whole files."""

from __future__ import annotations

import json
import struct
from typing import Any

from .cases import HTML, JSON_VALUES, NAMES, Case, Rng, pick


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for place_, inner in enumerate(value):
            found += _paths(inner, (*path, place_))
    return found


_HERE = "@@here@@"


def changed_json(rng: Rng, value: Any) -> tuple[bytes, str]:
    """A JSON value with one thing in it replaced, removed, renamed or said twice."""
    path = pick(rng, _paths(value))
    how = pick(rng, ("replace", "replace", "replace", "remove", "rename", "twice", "wrap"))
    spelled = pick(rng, JSON_VALUES)
    if not path:
        return (spelled if how != "wrap" else b"[" + json.dumps(value).encode() + b"]"), "the whole document"
    *above, last = path
    holder = value
    for key in above:
        holder = holder[key]
    if how == "remove":
        del holder[last]
    elif how == "rename" and isinstance(holder, dict):
        holder[pick(rng, (*NAMES, "\ud800", "__metadata__", "../x", "step", "loss", "a" * 70_000))] = (
            holder.pop(last)
        )
    elif how == "twice" and isinstance(holder, dict):
        text = json.dumps(value).replace(
            json.dumps(last) + ":", f"{json.dumps(last)}: {_HERE}, {json.dumps(last)}:", 1
        )
        return text.encode("utf-8", "surrogatepass").replace(_HERE.encode(), spelled), f"{last} twice"
    elif how == "wrap":
        holder[last] = [holder[last]]
    else:
        holder[last] = _HERE
    text = json.dumps(value, ensure_ascii=bool(rng.integers(2)))
    data = text.encode("utf-8", "surrogatepass").replace(json.dumps(_HERE).encode(), spelled)
    return data, f"{how} {'/'.join(str(key)[:20] for key in path)} ({spelled[:30]!r})"


def damage_json(rng: Rng, one: Case, path: str, marker: str) -> str:
    data = one.files[path]
    if path.endswith(".safetensors"):
        length = int.from_bytes(data[:8], "little")
        header, what = changed_json(rng, json.loads(data[8 : 8 + length]))
        if rng.random() < 0.1:
            claimed = pick(
                rng, (0, 1, 2**63, 2**64 - 1, 2**40, 99_999_999, 100_000_001, len(data), length + 1)
            )
            one.files[path] = struct.pack("<Q", claimed) + data[8:]
            return f"a header of {claimed} bytes"
        one.files[path] = struct.pack("<Q", len(header)) + header + data[8 + length :]
        return f"header: {what}"
    if path.endswith(".jsonl"):
        lines = data.split(b"\n")
        number = int(rng.integers(len(lines) - 1))
        line, what = changed_json(rng, json.loads(lines[number]))
        lines[number] = line
        if rng.random() < 0.3:
            lines = [line] * 30 + lines
        one.files[path] = b"\n".join(lines)
        return f"line {number}: {what}"
    one.files[path], what = changed_json(rng, json.loads(data))
    return what


def damage_config(rng: Rng, one: Case, path: str, marker: str) -> str:
    """A model's settings that describe no model, or one as large as the world."""
    key = pick(
        rng,
        (
            "vocab_size",
            "n_layer",
            "n_embd",
            "n_head",
            "block_size",
            "mlp_width",
            "norm",
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "auto_map",
            "_name_or_path",
            "torch_dtype",
            "architectures",
            "quantization_config",
        ),
    )
    value = pick(
        rng,
        (
            0,
            -1,
            10**5,
            10**7,
            10**9,
            10**12,
            1.5,
            "8",
            None,
            [],
            {"a": "b--c.d"},
            HTML,
            True,
            float("nan"),
            "/etc/passwd",
            ["EvilForCausalLM"],
            "../outside",
            "https://example.invalid/x",
        ),
    )
    content = json.loads(one.files[path])
    holder = content.get("model", content) if isinstance(content.get("model", content), dict) else content
    holder[key] = value
    one.files[path] = json.dumps(content).encode()
    return f"config: {key} = {str(value)[:30]}"
