"""trainer_state.json of the Hugging Face Trainer: the rows of its log_history."""

from __future__ import annotations

import json
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.raw import RawLog, flatten, frame_of


def recognises(path: Path, head: str) -> bool:
    """Tell a trainer state by its name, or a JSON object that spans several lines.

    Returns:
        True where `read` should be tried.
    """
    return path.suffix == ".json" and (path.name == "trainer_state.json" or head.lstrip()[:1] == "{")


def read(path: Path) -> RawLog:
    """Read log_history; NaN and Infinity may be bare. The closing summary of a run is no row.

    Evaluation rows keep their own columns (`eval_loss`) and never supply the training loss.

    Returns:
        Its numeric columns.

    Raises:
        InputError: when the file is not JSON or has no log_history.

    Source: transformers 5.23.0 src/transformers/trainer_callback.py, TrainerState.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", path=path, remedy="copy it again from the run") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise InputError("has no log_history", path=path, remedy="name the log file that training wrote")
    rows = [row for row in history if isinstance(row, dict)]
    training = [flatten(row) for row in rows if "train_runtime" not in row]
    return RawLog(frame_of(training), len(history) - len(rows))
