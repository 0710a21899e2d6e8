"""Runs of a vision transformer: images are replayed as tokens are, at every tier, and retrained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hnf_offline.cli import main
from hnf_offline.profile import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.record import Recorder
from hnf_offline.run import load_weights, open_run
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.layers import layers_of
from tests.profile.dense import dense_hessian
from tests.profile.judged import VIT, structured_images
from tests.profile.judged import labels_of as patterns_of

transformers = pytest.importorskip("transformers")

ROWS, STEPS = 4, 12
CONFIG: dict[str, Any] = {
    "model_type": "vit", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **VIT,
}  # fmt: skip


def module_of() -> Any:
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run: Adam, a fresh batch a step, checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("images") / "vit"
    images = structured_images(ROWS * STEPS, 3)
    labels = patterns_of("images", images)
    module = module_of()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    with Recorder(folder, every=4, model=CONFIG) as recorder:
        recorder.save_batches(images, labels, torch.arange(1, STEPS + 1).repeat_interleave(ROWS))
        for step in range(1, STEPS + 1):
            rows = slice(ROWS * (step - 1), ROWS * step)
            loss = module(pixel_values=images[rows], labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, module, optimizer, loss=loss, learning_rate=0.01)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "vit"))


@pytest.fixture
def hnf(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Any:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        return code, *capsys.readouterr()

    return call


def exact(path: Path, step: int) -> tuple[Any, Tensor, Tensor]:
    """The model at a checkpoint in float64, and the rows that are replayed: the first two batches."""
    run = open_run(path)
    assert run.model is not None
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float64)
    load_weights_into(module, load_weights(next(one for one in run.checkpoints if one.step == step)))
    held = load_file(path / "batches.safetensors")
    return module, held["pixel_values"][: 2 * ROWS].double(), held["labels"][: 2 * ROWS].long()


def value(table: pl.DataFrame, quantity: str, step: int, layer: str = "") -> float:
    rows = table.filter(
        (pl.col("quantity") == quantity)
        & (pl.col("layer") == layer)
        & (pl.col("step") == step)
        & ~pl.col("batch").str.starts_with("step ")
    )
    return float(rows["value"].item())


def test_what_is_measured_is_what_autograd_gives(run: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(tier="gradient", device="cpu", dtype="float64", rows=2 * ROWS)
    table = profile_run(open_run(run), settings, tmp_path / "out").table
    for step in (4, 12):
        module, images, labels = exact(run, step)
        outcome = module(pixel_values=images, labels=labels)
        gradients = torch.autograd.grad(outcome.loss, list(module.parameters()))
        norm = torch.stack([one.square().sum() for one in gradients]).sum().sqrt()
        assert value(table, "replay.loss", step) == pytest.approx(outcome.loss.item(), rel=1e-10)
        assert value(table, "gradient.norm", step) == pytest.approx(norm.item(), rel=1e-9)
        own = dict(zip([name for name, _ in module.named_parameters()], gradients, strict=True))
        path = "vit.layers.1.attention.q_proj"
        square = own[f"{path}.weight"].square().sum() + own[f"{path}.bias"].square().sum()
        assert value(table, "gradient.norm", step, path) == pytest.approx(float(square.sqrt()), rel=1e-8)


def test_attention_between_patches_is_seen(run: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(tier="forward", device="cpu", dtype="float64", rows=2 * ROWS)
    table = profile_run(open_run(run), settings, tmp_path / "out").table
    module, images, _ = exact(run, 12)
    module.set_attn_implementation("eager")
    with torch.no_grad():
        attention = module(pixel_values=images, output_attentions=True).attentions[1]
    assert attention.shape == (2 * ROWS, 2, 5, 5), "four patches and the class token"
    entropy = (attention * attention.clamp_min(1e-300).log()).neg().sum(-1).mean(dim=(0, 2)).min()
    measured = value(table, "attention.entropy", 12, "vit.layers.1.attention.softmax")
    assert measured == pytest.approx(float(entropy), rel=1e-6), "transformers takes that softmax in float32"


def test_every_tier_and_the_landscape_run(run: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(
        tier="full", device="cpu", rows=2 * ROWS, last_step=8, koopman=True, landscape=True, traces=12,
        density=True, gradient_check=True,
    )  # fmt: skip
    profile = profile_run(open_run(run), settings, tmp_path / "out")
    assert not profile.skipped
    families = {name.partition(".")[0] for name in profile.table["quantity"].unique().to_list()}
    assert families >= {"attention", "gradient", "hessian", "koopman", "map", "norm", "residual", "logits"}
    names = profile.table.filter(pl.col("quantity").str.starts_with("map."))["batch"].unique().to_list()
    assert names == ["2 rows of the first 8 of 48 rows of batches.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("folded", [False, True])
def test_other_files_of_the_same_images_give_the_same_loss(
    run: Path, tmp_path: Path, dtype: str, folded: bool
) -> None:
    file = run / "batches.safetensors"
    held = {name: one.numpy() for name, one in load_file(file).items() if name != "steps"}
    file.unlink()
    arrays = {"pixel_values": held["pixel_values"].astype(dtype), "labels": held["labels"]}
    if folded:
        arrays = {name: one.reshape(STEPS, ROWS, *one.shape[1:]) for name, one in arrays.items()}
    np.savez(run / "batches.npz", **arrays)
    opened = open_run(run)
    assert opened.batches is not None
    assert (opened.batches.rows, opened.batches.rows_per_step) == (ROWS * STEPS, ROWS)
    assert opened.batches.shape == (2, 8, 8)
    table = profile_run(opened, ProfileSettings(tier="forward", device="cpu"), tmp_path / "out").table
    save_file({name: torch.from_numpy(one) for name, one in held.items()}, file)
    module, images, labels = exact(run, 12)
    loss = module(pixel_values=images, labels=labels).loss.item()
    assert value(table, "replay.loss", 12) == pytest.approx(loss, rel=1e-2 if dtype == "float16" else 1e-5)


def test_a_plan_counts_images_and_patches(run: Path, hnf: Callable[..., Any]) -> None:
    code, out, _ = hnf("profile", run, "--plan", "--device", "cpu")
    assert code == 0 and "32 rows of pixel_values (128 positions) replayed on cpu" in out
    plan = json.loads(hnf("profile", run, "--plan", "--json", "--rows", 8)[1])["plans"][0]
    assert (plan["rows"], plan["tokens"], plan["array"]) == (8, 32, "pixel_values")


def test_check_holds_images_against_the_log(run: Path, hnf: Callable[..., Any]) -> None:
    code, out, err = hnf("check", run, "--device", "cpu", "--json")
    told = {one["name"]: one["looked_at"] for one in json.loads(out)["checks"]}
    assert (code, told["replayed-loss"]) == (0, "3 checkpoints on the batch of their next step"), err
    held = load_file(run / "batches.safetensors")
    save_file(
        {**held, "pixel_values": held["pixel_values"].flip(-1).contiguous()}, run / "batches.safetensors"
    )
    assert hnf("check", run, "--device", "cpu")[0] == 1


def test_a_zoom_of_images_is_exact(run: Path, hnf: Callable[..., Any]) -> None:
    code, out, err = hnf("zoom", run, "--steps", "4:8", "--device", "cpu", "--out", "zoomed", "--json")
    assert code == 0, err
    assert json.loads(out)["verdict"] == "exact"


def test_a_module_of_ones_own_is_given_images_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "config.json").unlink()
    source = Path(tmp_path / "own_vision.py")
    source.write_text(
        "import transformers\nfrom torch import nn\n"
        f"CONFIG = {CONFIG!r}\n"
        "class Own(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        inner = transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG))\n"
        "        self.vit, self.classifier = inner.vit, inner.classifier\n"
        "    def forward(self, pictures):\n"
        "        return self.classifier(self.vit(pixel_values=pictures).last_hidden_state[:, 0])\n"
        "def build():\n    return Own()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    table = profile_run(
        open_run(run), ProfileSettings(tier="forward", device="cpu", rows=2 * ROWS), tmp_path / "out",
        model_factory="own_vision:build",
    ).table  # fmt: skip
    (run / "config.json").write_text(json.dumps(CONFIG))
    module, images, labels = exact(run, 12)
    loss = module(pixel_values=images, labels=labels).loss.item()
    assert value(table, "replay.loss", 12) == pytest.approx(loss, rel=1e-5)


def test_features_of_ones_own_are_replayed_where_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "features"
    (tmp_path / "own_features.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    rows, labels = torch.randn(8, 6), torch.randint(0, 3, (8,))
    with Recorder(path, every=1) as recorder:
        for step in (1, 2):
            loss = torch.nn.functional.cross_entropy(module(rows), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, module, optimizer, loss=loss)
    save_file({"features": rows, "labels": labels}, path / "batches.safetensors")
    (path / "run.toml").write_text(
        '[batches]\nfile = "batches.safetensors"\ntokens = "features"\nsteps = "all"\n'
    )
    settings = ProfileSettings(tier="curvature", device="cpu", accuracy="certified")
    table = profile_run(open_run(path), settings, tmp_path / "out", model_factory="own_features:build").table
    loss = torch.nn.functional.cross_entropy(module(rows), labels)
    dense = dense_hessian(module, layers_of(module), rows, labels)
    highest = torch.linalg.eigvalsh(dense.hessian)[-1].item()
    assert value(table, "replay.loss", 2) == pytest.approx(loss.item(), rel=1e-6)
    assert value(table, "hessian.lambda_max", 2) == pytest.approx(highest, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda held: {"pixel_values": held["pixel_values"]}, "has no whole-number labels"),
        (lambda held: {**held, "labels": held["labels"][:5]}, "that is not one label a row"),
        (lambda held: {**held, "labels": held["labels"].float()}, "has no whole-number labels"),
        (
            lambda held: {**held, "pixel_values": held["pixel_values"].bfloat16()},
            "of a type that is not replayed",
        ),
        (
            lambda held: {**held, "pixel_values": held["pixel_values"].flatten(1)},
            "which are no images",
        ),
        (
            lambda held: {**held, "pixel_values": held["pixel_values"].byte()},
            "of a type that is not replayed",
        ),
        (
            lambda held: {**held, "pixel_values": held["pixel_values"][..., :4].clone()},
            "does not run on a row",
        ),
    ],
)
def test_images_that_cannot_be_replayed_are_told_in_one_line(
    run: Path, hnf: Callable[..., Any], change: Any, reason: str
) -> None:
    file = run / "batches.safetensors"
    save_file(change(load_file(file)), run / "bad.safetensors")
    file.unlink()
    code, out, err = hnf(
        "profile", run, "--tier", "forward", "--replay", run / "bad.safetensors", "--device", "cpu"
    )
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and reason in err
