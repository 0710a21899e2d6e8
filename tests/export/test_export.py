"""A report in a tracker's format says what the report says."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hnf_offline.cli import main
from hnf_offline.errors import InputError, MissingExtraError, UsageError
from hnf_offline.export import TARGETS, export
from hnf_offline.export.measured import measured
from tests.report import made


def test_tensorboard_reads_back_every_value_and_alarm(report: Path, tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, exported = export(report, "tensorboard", tmp_path / "events")
    events = loader.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    run = made.spike_run()
    assert set(events.Tags()["scalars"]) == set(exported.scalars["tag"].to_list())
    ratio = run.profile.filter((pl.col("quantity") == "hessian.stability_ratio") & (pl.col("layer") == ""))
    found = {one.step: one.value for one in events.Scalars("hessian.stability_ratio")}
    assert found == pytest.approx(dict(zip(ratio["step"], ratio["value"], strict=True)), rel=1e-6)
    texts = [
        (one.step, one.tensor_proto.string_val[0].decode()) for one in events.Tensors("alarms/text_summary")
    ]
    told = sorted(run.findings.alarms, key=lambda one: one.known_at)
    assert texts == [(one.known_at, one.text) for one in told]
    assert run.findings.verdict["sentence"] in (
        events.Tensors("verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_globs_choose_and_the_whole_model_is_always_there(report: Path) -> None:
    tags = set(measured(report, "gradient.*", "*.layers.0.*").scalars["tag"].to_list())
    assert tags and all(tag.startswith("gradient.") for tag in tags)
    assert all("/" not in tag or ".layers.0." in tag for tag in tags)
    with pytest.raises(UsageError, match="leave nothing"):
        measured(report, "nothing.*")


def test_a_step_that_was_retrained_too_has_the_value_of_its_checkpoint(report: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(report, copy)
    table = pl.read_parquet(copy / "profile.parquet")
    again = table.with_columns(value=pl.lit(-1.0), source=pl.lit("zoom"))
    pl.concat([again, table]).write_parquet(copy / "profile.parquet")
    assert measured(copy).scalars.equals(measured(report).scalars)


def test_steps_and_every_choose_scalars_and_steps_choose_alarms(report: Path) -> None:
    whole = measured(report)
    steps = whole.scalars["step"].unique().sort().to_list()
    low, high = 150, steps[-2]
    part = measured(report, first=low, last=high, every=2)
    inside = [step for step in steps if low <= step <= high]
    assert part.scalars["step"].unique().sort().to_list() == inside[::2]
    expected = [one for one in whole.texts if low <= one[0] <= high]
    assert list(part.texts) == expected
    assert 0 < len(expected) < len(whole.texts)
    with pytest.raises(UsageError, match="no measured step"):
        measured(report, first=steps[-1] + 1)


def test_a_plan_writes_nothing_and_counts_the_same(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["export", str(report), "--out", str(tmp_path / "new"), "--steps", "10:", "--every", "3"]
    assert main([*asked, "--plan", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert main([*asked, "--plan"]) == 0
    assert f"would be written: {tmp_path / 'new'}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    pytest.importorskip("tensorboard")
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, **plan}


def test_values_that_are_not_finite_are_kept(report: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(report, copy)
    table = pl.read_parquet(copy / "profile.parquet").with_columns(
        pl.when(pl.int_range(pl.len()) == 0).then(float("nan")).otherwise("value").alias("value")
    )
    table.write_parquet(copy / "profile.parquet")
    assert sum(math.isnan(one) for one in measured(copy).scalars["value"].to_list()) == 1


def test_nothing_is_overwritten_and_nothing_is_left_half_written(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match="is there already"):
        export(report, "tensorboard", out)

    def fails(_exported: Any, folder: Path, _final: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("in the middle")

    monkeypatch.setattr("hnf_offline.export.writing.TARGETS", {"tensorboard": fails})
    with pytest.raises(RuntimeError):
        export(report, "tensorboard", tmp_path / "new")
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_is_no_report_is_one_line_with_a_remedy(tmp_path: Path, report: Path) -> None:
    with pytest.raises(InputError, match="no report lies here"):
        measured(tmp_path)
    (tmp_path / "findings.json").write_text("{not json")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        measured(tmp_path)
    (tmp_path / "findings.json").write_text((report / "findings.json").read_text())
    with pytest.raises(InputError, match="only a log was read"):
        measured(tmp_path)
    spoiled = json.loads((report / "findings.json").read_text())
    spoiled["alarms"][0]["known_at"] = "soon"
    (tmp_path / "profile.parquet").write_bytes((report / "profile.parquet").read_bytes())
    for document in (spoiled, [], {"verdict": 1}):
        (tmp_path / "findings.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match=r"is no findings.json of a report"):
            measured(tmp_path)
    (tmp_path / "findings.json").write_text((report / "findings.json").read_text())
    (tmp_path / "profile.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read as a profile"):
        measured(tmp_path)


@pytest.mark.parametrize(
    ("to", "module", "extra"),
    [
        ("tensorboard", "torch.utils.tensorboard", "tensorboard"),
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow.entities", "mlflow"),
    ],
)
def test_a_tracker_that_is_not_installed_names_its_extra(
    to: str, module: str, extra: str, report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as missing:
        export(report, to, tmp_path / "out")
    assert f"hnf_offline[{extra}]" in str(missing.value.remedy)
    assert list(tmp_path.iterdir()) == []


def test_the_verb_says_what_it_wrote(
    report: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", str(report), "--to", "tensorboard", "--out", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["to"] == "tensorboard" and told["scalars"] > 100 and told["alarms"] > 0
    assert main(["export", str(report), "--out", str(tmp_path / "a")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert set(TARGETS) == {"tensorboard", "wandb", "mlflow"}
