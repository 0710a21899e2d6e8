"""Initial checkpoints: known schemes are named and nothing is said against them; each planted fault is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hnf_offline.check import check_run
from hnf_offline.check.examine import Checked
from hnf_offline.check.initial_judgement import judge
from hnf_offline.check.initial_tensors import initial_tensors
from hnf_offline.findings import Fault
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from tests.check.conftest import SAMPLES

SHAPE: dict[str, Any] = {"vocab_size": 96, "block_size": 32, "n_layer": 4, "n_head": 4, "n_embd": 64}
BLOCK = "transformer.h.2"
Weights = dict[str, Tensor]


def gpt2(**changes: Any) -> Weights:
    """The built-in model as GPT-2 is initialised."""
    module = GPT(GPTConfig(**SHAPE | changes)).initialise(torch.Generator().manual_seed(0))
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def put(
    folder: Path, weights: Weights, *, step: int = 0, batches: bool = True, rate: float = 0.0, **model: Any
) -> Path:
    """Write a run of one checkpoint."""
    place = folder / "checkpoints" / f"step-{step:06d}"
    place.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, place / "model.safetensors")
    described = {"format": "hnf_offline.record/1", "model": {"model_type": "gpt", **SHAPE, **model}}
    (folder / "config.json").write_text(json.dumps(described))
    rows = [{"step": one, "loss": 4.6, "learning_rate": rate} for one in range(1, 30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if batches:
        tokens = torch.randint(0, SHAPE["vocab_size"], (8, 32), generator=torch.Generator().manual_seed(1))
        save_file({"input_ids": tokens}, folder / "batches.safetensors")
    return folder


def audit(run: Path, **options: Any) -> tuple[tuple[Fault, ...], Checked]:
    done = check_run(open_run(run), cheap=True, initial=True, device="cpu", **options)
    (told,) = [one for one in done.checks if one.name == "initialisation"]
    return tuple(one for one in done.faults if one.kind == "initialisation"), told


def test_gpt2s_initialisation_is_named_and_nothing_is_said_against_it(tmp_path: Path) -> None:
    faults, told = audit(put(tmp_path / "run", gpt2()))
    assert faults == ()
    assert (
        "N(0, 0.02) in 9, N(0, 0.02) scaled by 1 / sqrt(2 L) in 8 of 17 matrices, mostly normal"
        in told.looked_at
    )
    assert f"log(96) = {math.log(96):.4g}" in told.looked_at
    assert "over 4 blocks" in told.looked_at
    assert told.skipped_because == ""


def test_pytorchs_own_initialisation_is_named_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = dict(GPT(GPTConfig(**SHAPE, tied=False)).state_dict())
    faults, told = audit(put(tmp_path / "run", weights, tied=False))
    assert faults == ()
    assert (
        "PyTorch's nn.Linear in 17, nn.Embedding's N(0, 1) in 1 of 18 matrices, mostly uniform"
        in told.looked_at
    )


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (nn.init.xavier_uniform_, "Xavier"),
        (nn.init.kaiming_normal_, "He"),
        (lambda matrix: nn.init.normal_(matrix, 0, 1 / math.sqrt(matrix.shape[1])), "LeCun"),
        (nn.init.orthogonal_, "orthogonal"),
        (lambda matrix: nn.init.normal_(matrix, 0, math.sqrt(0.4 / matrix.shape[1])), "small init"),
        (lambda matrix: nn.init.normal_(matrix, 0, 0.006), "N(0, 0.006)"),
    ],
)
def test_each_known_scheme_is_told_by_its_name(draw: Callable[[Tensor], Tensor], name: str) -> None:
    torch.manual_seed(0)
    weights = {key: draw(value) for key, value in gpt2().items() if value.ndim == 2 and ".h." in key}
    remarks, looks = judge(initial_tensors(weights), {"initializer_range": 0.006}, 0.0)
    assert looks.startswith(f"{name} in 16 of 16"), looks
    assert remarks == ()


@pytest.mark.parametrize("library", ["GPT2", "Llama", "Bert", "GPTNeoX", "T5", "Mixtral"])
def test_what_transformers_initialises_is_left_alone(library: str) -> None:
    transformers = pytest.importorskip("transformers")
    shapes: dict[str, dict[str, int]] = {
        "GPT2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
        "T5": {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 4, "num_heads": 4},
    }
    usual = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "num_attention_heads": 4}
    shape = shapes.get(
        library, usual | ({"num_key_value_heads": 2} if library in ("Llama", "Mixtral") else {})
    )
    heads = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM", "T5": "T5ForConditionalGeneration"}
    config = getattr(transformers, f"{library}Config")(vocab_size=96, **shape)
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = getattr(transformers, heads.get(library, f"{library}ForCausalLM"))(config)
        remarks, looks = judge(initial_tensors(module.state_dict()), config.to_dict(), 0.0)
        assert remarks == ()
        if library == "GPT2":
            assert "scaled by 1 / sqrt(2 L) in 8 of 17" in looks


def scaled(weights: Weights) -> str:
    weights[f"{BLOCK}.mlp.c_fc.weight"] *= 4
    return f"{BLOCK}.mlp.c_fc.weight has standard deviation 0.0796, 4 times that"


def emptied(weights: Weights) -> str:
    weights[f"{BLOCK}.attn.c_attn.weight"].zero_()
    return f"{BLOCK}.attn.c_attn.weight holds zeros; its 3 kin do not"


def one_number(weights: Weights) -> str:
    weights[f"{BLOCK}.mlp.c_proj.weight"].fill_(0.02)
    return f"{BLOCK}.mlp.c_proj.weight holds one number, 0.02, everywhere"


def copied(weights: Weights) -> str:
    weights[f"{BLOCK}.mlp.c_fc.weight"] = weights["transformer.h.0.mlp.c_fc.weight"].clone()
    return "transformer.h.0.mlp.c_fc.weight and transformer.h.2.mlp.c_fc.weight hold the same draw"


def half_scaled(weights: Weights) -> str:
    for block in range(4):
        weights[f"transformer.h.{block}.mlp.c_proj.weight"] *= math.sqrt(8)
    return "4 residual projections, such as transformer.h.0.mlp.c_proj.weight, are not scaled by depth"


def large_embedding(weights: Weights) -> str:
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] *= 50
    return "is tied to the embedding, which spreads the first logits by 8"


def gains_of_a_half(weights: Weights) -> str:
    weights[f"{BLOCK}.ln_2.weight"].fill_(0.5)
    return "the gain of 1 norm is not 1 (nor 0), such as transformer.h.2.ln_2.weight with mean 0.5"


@pytest.mark.parametrize(
    "plant", [scaled, emptied, one_number, copied, half_scaled, large_embedding, gains_of_a_half]
)
def test_a_planted_fault_is_named_with_its_layer(plant: Callable[[Weights], str], tmp_path: Path) -> None:
    weights = gpt2()
    evidence = plant(weights)
    faults, told = audit(put(tmp_path / "run", weights))
    wrong = [one for one in faults if one.severity == "warning"]
    assert len(wrong) == 1, faults
    assert evidence in wrong[0].evidence, wrong
    assert wrong[0].step == 0 and wrong[0].remedy
    assert told.looked_at


def test_of_two_blocks_the_one_that_follows_no_scheme_is_named(tmp_path: Path) -> None:
    weights = gpt2(n_layer=2)
    weights["transformer.h.1.mlp.c_fc.weight"] *= 3
    (one,), _ = audit(put(tmp_path / "run", weights, n_layer=2))
    assert one.severity == "warning"
    assert "transformer.h.1.mlp.c_fc.weight has standard deviation 0.06" in one.evidence
    # Where both have it, it may be meant.
    weights["transformer.h.0.mlp.c_fc.weight"] *= 3
    (one,), _ = audit(put(tmp_path / "both", weights, n_layer=2))
    assert one.severity == "info" and "transformer.h.#.mlp.c_fc.weight" in one.evidence


def test_residual_projections_without_scaling_are_a_remark_for_gpt2_alone(tmp_path: Path) -> None:
    weights = gpt2()
    for name in weights:
        if name.endswith("c_proj.weight"):
            weights[name] *= math.sqrt(8)
    (one,), _ = audit(put(tmp_path / "gpt", weights))
    assert (
        one.severity == "info" and "8 branches of full size add up to sqrt(8) = 2.8 times one" in one.evidence
    )
    remarks, _ = judge(initial_tensors(weights), {"model_type": "llama"}, 0.0)
    assert remarks == ()


def test_a_stream_that_multiplies_from_block_to_block_is_seen_in_a_replay(tmp_path: Path) -> None:
    shape = {"norm": "none", "n_layer": 6, "tied": False}
    weights = gpt2(**shape)
    healthy, _ = audit(put(tmp_path / "healthy", weights, **shape))
    assert healthy == ()
    for name in weights:
        if ".mlp." in name and name.endswith("weight"):
            weights[name] *= 0.15 / weights[name].std()  # about 1.8-fold in each block
    faults, _ = audit(put(tmp_path / "run", weights, **shape))
    (growth,) = faults
    assert growth.severity == "warning" and "sqrt(blocks) = 2.45" in growth.evidence
    # Without batches nothing is replayed, and that is said.
    rest, told = audit(put(tmp_path / "bare", weights, batches=False, **shape))
    assert not [one for one in rest if "residual stream" in one.evidence]
    assert "the run has no batches" in told.skipped_because


def test_only_an_initial_checkpoint_is_judged(tmp_path: Path) -> None:
    faults, told = audit(SAMPLES / "steady")
    assert (faults, told.looked_at) == ((), "")
    assert told.skipped_because == "cannot say: the first checkpoint is at step 192"
    weights = gpt2()
    scaled(weights)
    # Five steps of a warm-up move nothing much; five of 0.01 do.
    few, told = audit(put(tmp_path / "few", weights, step=5, rate=1e-5))
    assert [one.step for one in few if one.severity == "warning"] == [5]
    much, told = audit(put(tmp_path / "much", weights, step=5, rate=0.01))
    assert much == () and "learning rates up to it sum to 0.05" in told.skipped_because


def test_a_pretrained_model_at_step_0_is_no_initialisation(tmp_path: Path) -> None:
    trained = next(iter(sorted((SAMPLES / "steady/checkpoints").iterdir())))
    shutil.copytree(trained, tmp_path / "run" / "checkpoints" / "step-000000")
    (tmp_path / "run" / "config.json").write_text((SAMPLES / "steady/config.json").read_text())
    faults, told = audit(tmp_path / "run")
    assert faults == ()
    assert "were trained before" in told.skipped_because


def test_initialisations_that_shrink_with_depth_are_their_own_kin() -> None:
    weights = gpt2()
    generator = torch.Generator().manual_seed(3)
    for name, value in weights.items():
        if name.endswith("c_proj.weight"):
            weights[name] = (
                torch.randn(value.shape, generator=generator) * 0.02 / math.sqrt(2 * (int(name[14]) + 1))
            )
    remarks, looks = judge(initial_tensors(weights), {}, 0.0)
    assert remarks == ()
    assert "scaled by 1 / sqrt(2 (l + 1))" in looks


@pytest.mark.parametrize("name", ["tok.weight", "model.tokens.weight", "vocab.weight", "tok_emb.weight"])
def test_a_table_of_tokens_goes_by_many_names(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(96, 32, generator=draw), "blocks.0.token_mixer.weight": torch.randn(32, 32)}
    roles = [one.place.role for one in initial_tensors(weights) if one.place is not None]
    assert roles == ["embedding", "inner"]
