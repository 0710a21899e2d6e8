"""JSON schemas of the documents that the program writes, from its own records (draft 2020-12)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from pydantic import TypeAdapter

from hnf_offline import comparison, findings

#: File name -> the record that the document is, its schema number, and what writes it.
DOCUMENTS: dict[str, tuple[type, int, str]] = {
    "findings.schema.json": (
        findings.Findings,
        findings.SCHEMA,
        "findings.json of `hnf report`, and its --json",
    ),
    "spikes.schema.json": (
        findings.LogFindings,
        findings.SCHEMA,
        "spikes.json of `hnf spikes --out`, and its --json",
    ),
    "diff.schema.json": (comparison.Comparison, findings.SCHEMA, "diff.json of `hnf diff`, and its --json"),
}
_ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*): (.*)$")


def schema(record: type, number: int, of: str) -> str:
    """Write the schema of a document.

    A number that is NaN or infinite is null, and stands spelled under its name and `_text` beside it.

    Args:
        record: the frozen dataclass that it is.
        number: what its key `schema` says.
        of: which files it describes.

    Returns:
        JSON.
    """
    written = TypeAdapter(record).json_schema(mode="serialization")
    for own in (written, *written.get("$defs", {}).values()):
        _describe(own)
    written = _strict(written)
    written["properties"] = {"schema": {"const": number}} | written["properties"]
    written["required"] = ["schema", *written.get("required", [])]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "description": f"{of}."}
    return (
        json.dumps(head | {key: value for key, value in written.items() if key != "description"}, indent=1)
        + "\n"
    )


def _strict(part: Any) -> Any:
    """Allow for numbers that are not finite, and for nothing else that is not declared."""
    if isinstance(part, list):
        return [_strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    result = {key: _strict(value) for key, value in part.items() if key not in {"title", "default"}}
    if result.get("type") == "number":
        result["type"] = ["number", "null"]
    if result.get("type") == "object":
        spelled = {"_text$": {"type": "string"}}
        if "properties" in result:
            result |= {"patternProperties": spelled, "additionalProperties": False}
            result["required"] = list(result["properties"])
        elif isinstance(result.get("additionalProperties"), dict) and result["additionalProperties"]:
            result["patternProperties"] = spelled
    return result


def _describe(own: dict[str, Any]) -> None:
    """Put what the record's docstring says of each attribute beside it."""
    record = next((one for one in _records() if one.__name__ == own.get("title")), None)
    if record is None or "properties" not in own:
        return
    text = inspect.getdoc(record) or ""
    own["description"] = text.split("\n")[0]
    for name, said in _attributes(text):
        if name in own["properties"]:
            own["properties"][name] = {**own["properties"][name], "description": said}


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    _, _, listed = text.partition("Attributes:\n")
    names: list[str] = []
    said: list[str] = []
    for line in [*listed.split("\n"), "end: "]:
        started = _ATTRIBUTE.match(line[4:] if line.startswith("    ") else line)
        if started is None:
            said.append(line.strip())
            continue
        for name in names:
            yield name, " ".join(said).strip()
        names, said = started[1].split(", "), [started[2]]


def _records() -> list[type]:
    return [
        one
        for module in (findings, comparison)
        for one in vars(module).values()
        if isinstance(one, type) and is_dataclass(one)
    ]
