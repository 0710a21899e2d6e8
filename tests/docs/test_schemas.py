"""The JSON schemas are those of the records, and what the program writes keeps to them."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from docs.generate import HERE
from docs.schemas import DOCUMENTS, schema
from hnf_offline.comparison import LinearBarrier
from tests.report import made


def validator(file: str) -> Draft202012Validator:
    written = json.loads((HERE / "schemas" / file).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(written)
    return Draft202012Validator(written)


def as_written(document: dict[str, Any]) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


@pytest.mark.parametrize("file", DOCUMENTS)
def test_the_schemas_are_those_of_the_records(file: str) -> None:
    assert (HERE / "schemas" / file).read_text(encoding="utf-8") == schema(*DOCUMENTS[file]), (
        "run: python -m docs.generate"
    )


@pytest.mark.parametrize("run", [made.spike_run, made.healthy_run, made.nan_run, made.log_only_run])
def test_findings_keep_to_their_schema(run: Any) -> None:
    validator("findings.schema.json").validate(as_written(run().findings.to_json()))


def test_comparisons_keep_to_their_schema() -> None:
    validator("diff.schema.json").validate(as_written(made.comparison().to_json()))
    barrier = LinearBarrier(300, math.inf, math.inf, math.inf, 0.5, 2.3, 2.2, True, "rows")
    told = replace(made.comparison(), barriers=(barrier,))
    validator("diff.schema.json").validate(as_written(told.to_json()))


def test_what_the_command_line_writes_keeps_to_the_schemas(tmp_path: Path, capsys: Any) -> None:
    from hnf_offline.cli import main

    log = tmp_path / "log.jsonl"
    losses = [3 * math.exp(-step / 50) + 2 + 0.01 * (step % 5) for step in range(120)]
    losses[80], losses[110] = 9.0, math.nan
    log.write_text("".join(json.dumps({"step": k + 1, "loss": one}) + "\n" for k, one in enumerate(losses)))
    for arguments, file in (
        (["spikes", str(log), "--json"], "spikes.schema.json"),
        (["report", str(log), "--json", "--out", str(tmp_path / "out")], "findings.schema.json"),
    ):
        assert main(arguments) == 0
        validator(file).validate(json.loads(capsys.readouterr().out))


def test_a_schema_refuses_what_is_not_declared_or_of_another_kind() -> None:
    whole = as_written(made.spike_run().findings.to_json())
    for spoil in (
        lambda one: one["spikes"][0].update(onset="soon"),
        lambda one: one["spikes"][0].update(invented=1),
        lambda one: one.pop("verdict"),
        lambda one: one.update(schema=0),
        lambda one: one["stories"][0]["timeline"].append(["150", "S"]),
    ):
        spoiled = copy.deepcopy(whole)
        spoil(spoiled)
        assert not validator("findings.schema.json").is_valid(spoiled)


def test_every_attribute_of_a_spike_is_explained() -> None:
    spike = json.loads((HERE / "schemas" / "findings.schema.json").read_text())["$defs"]["Spike"]
    assert all(one.get("description") for one in spike["properties"].values())
    assert spike["properties"]["loss_peak"]["type"] == ["number", "null"], "it may be NaN, spelled beside it"
