"""fairseq: `train_inner | {"loss": "5.1", ...}`, and its text `| epoch 001:  100 / 1000 loss=5.1, ...`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.run.logs.raw import RawLog, Reading, as_number, flatten
from hnf_offline.run.logs.text_rows import NUMBER, TextRows, seen

# Source: facebookresearch/fairseq@0400ebb fairseq/logging/progress_bar.py: JsonProgressBar.log and .print (whose
# keys begin with "train_" or "valid_"), SimpleProgressBar.log ("{prefix}:  {i:5d} / {size:d} k=v, k=v") and .print
# ("{prefix} | k v | k v"); the prefix is "epoch 001", then " | valid on 'valid' subset". Until 2019 a line begins
# with "| " in place of time, level and logger.
_JSON = re.compile(r"\| (train_inner|train|valid\w{0,40}|test) \| (\{.{0,15000})")
_INNER = re.compile(r"\bepoch (\d{1,6}):\s{1,12}\d{1,12} / \d{1,12} (.*)")
_SUMMARY = re.compile(r"(?:^|\| )epoch (\d{1,6}) \| (.*)")
_COMMAS = re.compile(rf"([A-Za-z]\w{{0,40}})=\s{{0,8}}({NUMBER})(?=,|\s|$)")
_PIPES = re.compile(rf"\s*([A-Za-z]\w{{0,40}})\s{{1,8}}({NUMBER})\s*")
_ROW = re.compile(
    r"\| (?:train_inner|train) \| \{"
    r"|epoch \d{1,6}:\s{1,12}\d{1,12} / \d{1,12} [^\n]{0,2000}?\bloss=[^\n]{0,2000}?num_updates="
    r"|epoch \d{1,6} \| [^\n]{0,200}?\bloss [^\n]{0,2000}?num_updates "
)


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a row in the head.

    Returns:
        True where `read` should be tried.
    """
    return "num_updates" in head and seen(_ROW, head)


def read(path: Path) -> RawLog:
    """Read the rows; those that close an epoch keep names of their own ("train_...", "valid_...").

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return TextRows(path, _parse, "fairseq")


def _parse(line: str) -> Mapping[str, float] | None:
    if "loss" not in line:
        return None
    found = _JSON.search(line)
    if found is not None:
        return _from_json(found[2])
    inner = _INNER.search(line)
    if inner is not None:
        values = {name: float(value) for name, value in _COMMAS.findall(inner[2])}
        return {"epoch": float(inner[1]), **values} if "num_updates" in values else {}
    summary = _SUMMARY.search(line)
    if summary is None:
        return None
    place = "valid_" if re.match(r"(?:valid|test)\b", summary[2]) else "train_"
    matches = (_PIPES.fullmatch(piece) for piece in summary[2].split("|")[:200])
    values = {match[1]: float(match[2]) for match in matches if match is not None}
    return _placed({"epoch": float(summary[1]), **values}, place) if "num_updates" in values else {}


def _from_json(text: str) -> Mapping[str, float]:
    try:
        row = json.loads(text.rstrip())
    except (ValueError, RecursionError):
        return {}
    numbers = {name: as_number(value) for name, value in flatten(row).items()}
    values = {name: number for name, number in numbers.items() if number is not None}
    for place in ("train_", "valid_", "test_"):
        if f"{place}num_updates" in values:
            values["num_updates"] = values.pop(f"{place}num_updates")
    return values if "num_updates" in values else {}


def _placed(values: Mapping[str, float], place: str) -> dict[str, float]:
    own = {"num_updates", "epoch"}
    return {name if name in own or name.startswith(place) else place + name: v for name, v in values.items()}
