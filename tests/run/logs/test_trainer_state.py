from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run.logs import read_log


def state(rows: list[object], **more: object) -> str:
    return json.dumps({"best_metric": None, **more, "log_history": rows, "stateful_callbacks": {}}, indent=2)


def test_a_nan_that_the_trainer_hides_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    rows = [{"step": s, "loss": 2.5 / s, "grad_norm": math.nan if s in {3, 4} else 1.0} for s in range(1, 6)]
    rows[3]["loss"] = 0.0
    path.write_text(state([*rows, {"train_runtime": 3.0, "train_loss": 9, "step": 5}]))
    log = read_log(path)
    assert log.rows["loss"].to_list() == [2.5, 1.25, 2.5 / 3, 0.0, 0.5] and log.rows["grad_norm"].is_nan()[2]
    assert "grad_norm is NaN at 2 rows" in log.notes[0] and "first at step 3" in log.notes[0]


def test_one_line_a_list_and_another_name(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": s / 4, "nested": {"x": s}} for s in range(1, 4)]
    for name, text in (
        ("trainer_state.json", json.dumps({"log_history": rows})),
        ("saved-state", json.dumps({"epoch": 1, "log_history": rows})),
        ("history.json", json.dumps(rows)),
        ("history.json", "\n" + json.dumps(rows, indent=1)),
    ):
        path = tmp_path / name
        path.write_text(text)
        log = read_log(path)
        assert log.rows["loss"].to_list() == [0.25, 0.5, 0.75] and log.formats == ("trainer_state",)
        assert log.rows["nested/x"].to_list() == [1.0, 2.0, 3.0]


def test_what_comes_before_a_cut_or_beside_a_bad_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    text = state([{"step": s, "loss": 2.5} for s in range(1, 101)])
    path.write_text(text[: len(text) // 2] + "}")
    log = read_log(path)
    assert 45 <= log.rows.height <= 51 and log.skipped_lines == 1
    path.write_text(
        text.replace('"step": 50,', '"step": 50 oops,').replace('"step": 60', '"step": ' + "[" * 5000)
    )
    log = read_log(path)
    assert log.rows.height == 98 and log.skipped_lines >= 2


@pytest.mark.parametrize(
    "text",
    [
        '{"log_history": [' + '{"a": ' * 200_000,
        '{"log_history": ["' + '{"step": 1, "loss": "' * 100_000,
        '{"log_history": [' + "[" * 1_000_000 + "]" * 1_000_000 + "]}",
        '{"log_history": [' + "{" * 1_000_000 + "]}",
        '{"log_history": [' + '{"step": 1e, "loss": 2},' * 100_000 + "]}",
    ],
)
def test_hostile_states_end_soon(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_log(path)
    assert caught.value.path == path


@pytest.mark.real
def test_real_states(data: Path) -> None:
    folder = data / "logs" / "hf_trainer_state"
    star = read_log(folder / "star_custom_keys.json")
    assert star.rows["step"].to_list() == list(range(20, 40_001, 20)) and star.skipped_lines == 0
    assert star.columns["learning_rate"] == "lr" and "train/acc_0" in star.rows.columns
    mistral = read_log(folder / "mistral_translator_healthy.json")
    assert mistral.rows["step"].to_list() == list(range(10, 8661, 10)) and mistral.notes == ()
    alpaca = read_log(folder / "stanford_alpaca_spike932.json")
    assert alpaca.rows["step"].to_list() == list(range(1, 1219))
