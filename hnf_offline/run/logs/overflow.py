"""Lines that say an update was skipped because a half-precision gradient overflowed, among rows of any format."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hnf_offline.run.logs.columns import SYNONYMS, normalised
from hnf_offline.run.logs.raw import as_number
from hnf_offline.run.logs.rows import Rows

# Sources: NVIDIA/apex apex/amp/handle.py, "Gradient overflow.  Skipping step, loss scaler 0 reducing loss
# scale to 32768.0"; deepspeedai/DeepSpeed@18fd4c9 deepspeed/runtime/fp16/loss_scaler.py, DynamicLossScaler
# .update_scale, "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768", in
# older releases "Attempting loss scale: 65536"; facebookresearch/fairseq@3d262bb fairseq/trainer.py, "gradient
# overflow detected, ignoring gradient, setting loss scale to: 2.0".
_OVERFLOW = re.compile(
    r"gradient overflow\b.{0,40}?skipping|overflow!.{0,40}?skipping (?:the )?(?:step|update)"
    r"|overflow detected.{0,40}?(?:ignoring|setting|skipping)",
    re.IGNORECASE,
)
_NUMBER = r"([-+]?[0-9.]{1,40}(?:[eE][-+]?[0-9]{1,3})?)"
_SCALES = tuple(
    re.compile(words + _NUMBER, re.IGNORECASE)
    for words in (
        r"loss scale to:?\s{0,4}",
        r"reducing to\s{1,4}",
        r"attempting loss scale:?\s{0,4}",
        r"attempted loss scale:?\s{0,4}",
    )
)
_RANK = re.compile(r"\brank[ =:]{0,2}(\d{1,6})\b", re.IGNORECASE)


class Overflows:
    """Collects the overflow lines between two rows; they belong to the row that follows, the last ones to the last."""

    def __init__(self) -> None:
        self.seen = False
        self._skipped = 0
        self._scale: float | None = None
        self._rank: int | None = None

    def reads(self, line: str) -> bool:
        """Take a line if it tells of an overflow.

        Several processes print the same line; it counts once.

        Returns:
            Whether it did.
        """
        if "verflow" not in line and "OVERFLOW" not in line:
            return False
        text = line[:4000]
        if not _OVERFLOW.search(text):
            return False
        rank = _RANK.search(text)
        if rank is not None:
            self._rank = int(rank[1]) if self._rank is None else min(self._rank, int(rank[1]))
            if int(rank[1]) != self._rank:
                return True
        found = next((match for match in (scale.search(text) for scale in _SCALES) if match), None)
        scale = None if found is None else as_number(found[1].rstrip("."))
        # Without a rank in it a line that repeats the one before is its echo from another process.
        if not self._skipped or rank is not None or scale is None or scale != self._scale:
            self._skipped += 1
        self._scale = scale if scale is not None else self._scale
        self.seen = True
        return True

    def added(self, row: Mapping[str, float]) -> Mapping[str, float]:
        """Put what was collected into the row that follows, where the row does not say it itself.

        Returns:
            The row.
        """
        if not self._skipped:
            return row
        told = dict(row)
        if not _says(row, "skipped_steps"):
            told["skipped_steps"] = float(self._skipped)
        if self._scale is not None and not _says(row, "loss_scale"):
            told["loss_scale"] = self._scale
        self._skipped, self._scale = 0, None
        return told

    def finish(self, rows: Rows) -> None:
        """Put what came after the last row into that row; rows before which nothing overflowed skipped nothing."""
        if self._skipped and rows.height:
            rows.amend("skipped_steps", float(self._skipped))
            if self._scale is not None:
                rows.amend("loss_scale", self._scale)
        if self.seen:
            rows.fill("skipped_steps", 0.0)


def _says(row: Mapping[str, float], ours: str) -> bool:
    return any(normalised(name) in SYNONYMS[ours] for name in row)
