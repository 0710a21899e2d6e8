"""Writing results whole or not at all: temporary names in the same folder, then a rename."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hnf_offline.errors import UsageError

#: Figures this program names itself; those of an earlier report that are not drawn again are removed.
_OUR_FIGURES = re.compile(r"(key_picture|lead|predictors|spike_\d+|map_\d+|losses|ratio_map)\.png")


def strict_json(value: Any) -> str:
    """Spell a value as strict JSON, keys sorted, the same every time.

    Returns:
        One document, ended by a line break.
    """
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=_number) + "\n"


def _number(value: Any) -> Any:
    # Turn a numpy scalar or a path into a JSON value.
    if hasattr(value, "item"):
        plain = value.item()
        return None if isinstance(plain, float) and not math.isfinite(plain) else plain
    return str(value)


@contextmanager
def whole(out: Path, *, figures: bool = True) -> Iterator[Path]:
    """Offer a scratch folder inside `out`; on success its files replace those of `out`, index.html last.

    Args:
        out: the folder, made where it is not there.
        figures: whether there are figures, in a folder of their own, to replace the earlier ones.

    Yields:
        The scratch folder.

    Raises:
        UsageError: if the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
    except OSError as error:
        raise UsageError(
            f"cannot be written ({error.strerror})", path=out, remedy="choose another folder with --out"
        ) from error
    try:
        if figures:
            (scratch / "figures").mkdir()
        yield scratch
        _move(scratch, out)
    except OSError as error:
        raise UsageError(
            f"could not be written ({error.strerror})", path=out, remedy="make room, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(scratch: Path, out: Path) -> None:
    if (scratch / "figures").is_dir():
        figures = out / "figures"
        figures.mkdir(exist_ok=True)
        drawn = {figure.name for figure in (scratch / "figures").iterdir()}
        for figure in sorted((scratch / "figures").iterdir()):
            figure.replace(figures / figure.name)
        for old in figures.iterdir():
            if old.name not in drawn and _OUR_FIGURES.fullmatch(old.name):
                old.unlink()
    files = [entry for entry in scratch.iterdir() if entry.is_file()]
    for entry in sorted(files, key=lambda entry: (entry.name == "index.html", entry.name)):
        entry.replace(out / entry.name)


def write_text(path: Path, text: str) -> None:
    """Write text; what cannot be encoded becomes a question mark."""
    path.write_bytes(text.encode("utf-8", "replace"))


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys.

    Returns:
        One level.
    """
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            result.update(flat(item, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = item
    return result
