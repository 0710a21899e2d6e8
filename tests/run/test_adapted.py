"""Which model an adapter is put on: found beside the run, named by run.toml, or told to be missing in one line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hnf_offline.cli import main
from hnf_offline.errors import InputError, UsageError
from hnf_offline.run import open_run

FACTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4,
    "num_hidden_layers": 1,
}


def adapter(folder: Path, step: int = 9, **settings: Any) -> Path:
    """A run with one adapter."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({FACTOR: torch.ones(2, 4)}, checkpoint / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base", **settings}
    (checkpoint / "adapter_config.json").write_text(json.dumps(said))
    return folder


def base(folder: Path, **config: Any) -> Path:
    """The folder of a model, as far as it is looked at before anything is built."""
    folder.mkdir(parents=True)
    save_file({"model.embed_tokens.weight": torch.ones(2, 4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PEFT were installed: what is only looked for is not imported."""
    found = importlib.util.find_spec("json")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)


def why_not(run: Path, manifest: Path | None = None) -> str:
    opened = open_run(run, manifest)
    assert opened.model is None
    (lacking,) = [one for one in opened.missing if one.what == "only an adapter"]
    assert "\n" not in lacking.cost
    return lacking.cost


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "place", ["beside the run", "in the run", "where the program was started", "whole path"]
)
def test_the_base_is_found_where_training_may_have_been_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    folders = {"beside the run": tmp_path / "models", "in the run": tmp_path / "run" / "models"}
    folder = base(folders.get(place, elsewhere / "models") / "base")
    named = str(folder) if place == "whole path" else "models/base"
    adapter(tmp_path / "run", base_model_name_or_path=named)
    if place == "where the program was started":
        monkeypatch.chdir(elsewhere)
    run = open_run(tmp_path / "run")
    assert run.model is not None and run.model.adapter is not None
    assert run.model.kind == "adapter" and run.model.config["model_type"] == "llama"
    assert [file.resolve() for file in run.model.adapter.base_files] == [folder / "model.safetensors"]
    assert not any(one.what == "only an adapter" for one in run.missing)


def test_what_the_hub_s_cache_has_is_used_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: None
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the net"))
    run = adapter(tmp_path / "run", base_model_name_or_path="somebody/tiny")
    assert "not on this disk" in why_not(run)
    folder = tmp_path / "hub" / "models--somebody--tiny"
    base(folder / "snapshots" / "0123abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    opened = open_run(run)
    assert opened.model is not None and opened.model.adapter is not None
    assert opened.model.adapter.base_files == (folder / "snapshots" / "0123abc" / "model.safetensors",)


@pytest.mark.usefixtures("installed")
def test_the_base_that_a_run_toml_names_wins(tmp_path: Path) -> None:
    base(tmp_path / "base")
    mine = base(tmp_path / "mine")
    manifest = tmp_path / "mine.toml"
    manifest.write_text('[model]\nbase = "mine"\n')
    run = open_run(adapter(tmp_path / "run"), manifest)
    assert run.model is not None and run.model.adapter is not None
    assert run.model.adapter.base_files == (mine / "model.safetensors",)


@pytest.mark.usefixtures("installed")
def test_with_the_model_the_state_of_an_unknown_family_has_an_order(tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    names = [f"base_model.model.net.{part}.lora_A.weight" for part in ("zeta", "alpha")]
    save_file({name: torch.ones(2, 4) for name in names}, run / "checkpoint-9" / "adapter_model.safetensors")
    torch.save({"state": {}, "param_groups": []}, run / "checkpoint-9" / "optimizer.pt")
    assert open_run(run).checkpoints[0].optimizer_files == ()
    base(tmp_path / "base")
    assert open_run(run).checkpoints[0].optimizer_files == (run / "checkpoint-9" / "optimizer.pt",)


@pytest.mark.usefixtures("installed")
def test_a_base_that_is_not_there_is_told_with_what_to_write(tmp_path: Path) -> None:
    told = why_not(adapter(tmp_path / "run", base_model_name_or_path="meta/no-such-model-7b"))
    assert "meta/no-such-model-7b" in told and "not on this disk" in told
    assert '[model] base = "FOLDER"' in told and "--manifest" in told


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", [None, 3, "", "\0", "x" * 5000, "../" * 60 + "dev/null"])
def test_a_name_that_no_folder_can_have_is_no_base(tmp_path: Path, name: Any) -> None:
    assert "not on this disk" in why_not(adapter(tmp_path / "run", base_model_name_or_path=name))


@pytest.mark.parametrize("package", ["peft", "transformers"])
def test_without_the_package_the_extra_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find("json"))
    base(tmp_path / "base")
    run = adapter(tmp_path / "run")
    told = why_not(run)
    assert f"needs the package {package}" in told and "pip install 'hnf_offline[peft]'" in told
    # The weights are looked at as before.
    assert main(["report", str(run), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "hnf_offline[peft]" in json.dumps(json.loads((tmp_path / "out" / "findings.json").read_text()))
    capsys.readouterr()


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="looks at what the finder says of a package"
)
def test_a_package_that_cannot_be_imported_is_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    base(tmp_path / "base")
    assert "needs the package peft" in why_not(adapter(tmp_path / "run"))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"bias": "all"}, "bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"something_new": 3}, "something_new"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern"),
        ({"modules_to_save": "lm_head"}, "modules_to_save"),
    ],
)
def test_an_adapter_of_another_computation_is_not_replayed(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    base(tmp_path / "base")
    assert named in why_not(adapter(tmp_path / "run", **settings))


@pytest.mark.usefixtures("installed")
def test_a_base_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    base(tmp_path / "base", quantization_config={"load_in_4bit": True})
    assert "quantised" in why_not(run)
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"\x80")
    assert "no safetensors weights" in why_not(run)
    # One that the user names is an error.
    manifest = tmp_path / "mine.toml"
    manifest.write_text('[model]\nbase = "base"\n')
    with pytest.raises(InputError, match="no safetensors weights"):
        open_run(run, manifest)


def test_the_run_s_own_run_toml_does_not_lead_out_of_it(tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    base(tmp_path / "base")
    (run / "run.toml").write_text('[model]\nbase = "../base"\n')
    with pytest.raises(InputError, match="leads outside"):
        open_run(run)


def test_a_base_without_adapters_is_refused(tmp_path: Path) -> None:
    run = base(tmp_path / "run")
    (run / "run.toml").write_text('[model]\nbase = "."\n')
    with pytest.raises(UsageError, match="base is for checkpoints that are adapters"):
        open_run(run)
