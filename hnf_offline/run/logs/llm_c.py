"""llm.c: `step 1/100 | train loss 4.3 | norm 1.2 | lr 1e-4 | ...`, and its main.log `s:10 trl:4.3`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.text_rows import NUMBER, TextRows, seen

# Sources: karpathy/llm.c@046d001 llmc/logger.h (main.log: trl is the train loss, tel the validation loss, eval
# HellaSwag); @5afc570 train_gpt2.cu, main: "step %4d/%d | loss %7.6f (%+.2fz)| norm %6.4f (%+.2fz)| lr %.2e |
# %.2f ms | %.1f%% bf16 MFU | %.0f tok/s"; train_gpt2.py: "step 1/10 | train loss 10.9 | norm 18.4 | lr 7.00e-04
# | (4.4 ms | 58k tok/s)"; train_gpt2.c and the CUDA program before June 2024: "step 3: train loss 5.3 (took 9 ms)".
_MAIN = re.compile(
    rf"^s:(\d{{1,15}}) ((?:trl|tel|eval):{NUMBER}(?: (?:lr|norm):{NUMBER})*)\s*$", re.MULTILINE
)
_MAIN_FIELD = re.compile(rf"(trl|tel|eval|lr|norm):({NUMBER})")
_STEP = re.compile(
    rf"^\s{{0,20}}step\s{{1,20}}(\d{{1,15}})(?:/\d{{1,15}})?(?: \||:) (train loss|loss) ({NUMBER})(?=[ |]|$)(.*)",
    re.MULTILINE,
)
_BEGINNING = re.compile(r"^\s{0,20}step\s{1,20}\d{1,15}/\d{1,15} \||^s:\d{1,15} ")
_NORM = re.compile(rf"\| norm ({NUMBER})(?=[ |])")
_RATE = re.compile(rf"\| lr ({NUMBER})(?=[ |])")
_TIME = re.compile(rf"({NUMBER}) ms\b")
_TOKENS = re.compile(rf"({NUMBER})(k?) tok/s")
_VALIDATION = re.compile(rf"^val loss ({NUMBER})\s*$")


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a row in the head; nanoGPT's evaluations and build-nanogpt's rows look similar.

    Returns:
        True where `read` should be tried.
    """
    if "s:" in head and seen(_MAIN, head):
        return True
    return "loss" in head and any("/" in row[0] or "(took" in row[4] for row in _STEP.finditer(head))


def read(path: Path) -> RawLog:
    """Read the rows; a validation loss belongs to the step of the row before it.

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return TextRows(path, _Parser(), "llm.c")


class _Parser:
    def __init__(self) -> None:
        self._step = 0.0

    def __call__(self, line: str) -> Mapping[str, float] | None:
        found = _MAIN.match(line)
        if found is not None:
            fields = {name: float(value) for name, value in _MAIN_FIELD.findall(found[2])}
            return {"step": float(found[1]), **fields}
        found = _STEP.match(line)
        if found is not None:
            return self._row(found)
        found = _VALIDATION.match(line)
        if found is not None:
            return {"step": self._step, "val loss": float(found[1])}
        return {} if _BEGINNING.match(line) else None

    def _row(self, found: re.Match[str]) -> Mapping[str, float]:
        self._step = float(found[1])
        row = {"step": self._step, found[2]: float(found[3])}
        for name, pattern in (("norm", _NORM), ("lr", _RATE), ("step_time", _TIME), ("tok/s", _TOKENS)):
            value = pattern.search(found[4])
            if value is not None:
                row[name] = float(value[1]) * (1000.0 if name == "tok/s" and value[2] else 1.0)
        return row
