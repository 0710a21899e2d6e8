"""torch.distributed.checkpoint folders: written by torch itself, or by hand where they are hostile."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run import open_run
from hnf_offline.run.batches import load_rows
from hnf_offline.run.formats import configuration, dcp, find, load_optimizer, load_weights
from hnf_offline.run.formats.dcp_metadata import Item, Piece, plain_value, read_index
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.optimizer import match_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

#: What the real run needs to be replayed whole; the model is in its RUN.json.
MANIFEST = """\
[batches]
file = "{data}/text/shakespeare_char_bin/train.bin"
starts = "batch_starts.npy"
length = 64
"""


def saved(folder: Path, content: Mapping[str, Any]) -> Path:
    distributed.save(dict(content), checkpoint_id=folder, no_dist=True)
    return folder


def trained(make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    module = make.module()
    decayed = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95))
    make.train(module, optimizer)
    return module, optimizer


def same_weights(checkpoint: Any, module: nn.Module) -> bool:
    weights, state = load_weights(checkpoint), module.state_dict()
    return set(weights) == set(state) and all(torch.equal(weights[name], state[name]) for name in state)


def check_state(checkpoint: Any, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.names and len(raw.groups) == 2
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    state = match_optimizer(raw, shapes, open_run(checkpoint.path).optimizer, checkpoint.path)
    assert state.kind == "adamw"
    for name, parameter in module.named_parameters():
        own, theirs = state.parameters[name], optimizer.state[parameter]
        assert torch.equal(own.exp_avg, theirs["exp_avg"]), name
        assert torch.equal(own.exp_avg_sq, theirs["exp_avg_sq"]), name
        assert (own.step, own.learning_rate, own.beta1) == (3, 0.02, 0.8)
        assert own.weight_decay == (0.3 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("flattened", [False, True], ids=["groups", "groups by parameter"])
def test_what_torch_writes_is_read_back_equal(tmp_path: Path, make: Any, flattened: bool) -> None:
    module, optimizer = trained(make)
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    state = get_optimizer_state_dict(module, optimizer, options=options)
    content = {"model": get_model_state_dict(module), "optimizer": state, "train_state": {"step": 7}}
    folder = saved(tmp_path / "step-7", content)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.layout, skipped) == (7, "dcp", [])
    assert checkpoint.weight_files == (folder / ".metadata", folder / "__0_0.distcp")
    assert checkpoint.optimizer_files == checkpoint.weight_files
    assert same_weights(checkpoint, module)
    check_state(checkpoint, module, optimizer)
    settings = configuration(checkpoint)["optimizer"]
    assert (settings["lr"], settings["betas"], settings["weight_decay"]) == (0.02, (0.8, 0.95), 0.3)
    assert "params" not in settings


@pytest.mark.parametrize("kind", ["torchtitan", "tutorial", "accelerate", "weights only"])
def test_other_trainers_arrange_it_otherwise(tmp_path: Path, make: Any, kind: str) -> None:
    module, optimizer = trained(make)
    options = StateDictOptions(flatten_optimizer_state_dict=kind == "torchtitan")
    state = get_optimizer_state_dict(module, optimizer, options=options)
    weights = get_model_state_dict(module)
    folder = tmp_path / "checkpoint-12"
    if kind == "torchtitan":
        saved(folder, {**weights, "optimizer": state, "lr_scheduler": {"last": torch.tensor(3)}})
    elif kind == "tutorial":
        saved(folder, {"app": {"model": weights, "optim": state}})
    elif kind == "accelerate":
        saved(folder / "pytorch_model_fsdp_0", {"model": weights})
        saved(folder / "optimizer_0", {"optimizer": state})
    else:
        saved(folder, weights)
    (checkpoint,), skipped = find(tmp_path)
    assert (checkpoint.step, checkpoint.path, skipped) == (12, folder, [])
    assert same_weights(checkpoint, module)
    if kind == "weights only":
        assert checkpoint.optimizer_files == () and load_optimizer(checkpoint) is None
    else:
        check_state(checkpoint, module, optimizer)


def test_numbered_optimizer_state_stays_numbered(tmp_path: Path, make: Any) -> None:
    module, optimizer = trained(make)
    saved(tmp_path / "step-1", {"model": module.state_dict(), "optimizer": optimizer.state_dict()})
    raw = load_optimizer(find(tmp_path)[0][0])
    assert (
        raw is not None
        and not raw.names
        and [group["params"] for group in raw.groups]
        == [
            [0, 1],
            [2, 3, 4, 5],
        ]
    )
    assert raw.state[0]["exp_avg"].shape == (5, 3)


@pytest.mark.parametrize("step", [31, torch.tensor(31)], ids=["number", "tensor"])
def test_the_step_is_saved_where_the_name_has_none(tmp_path: Path, make: Any, step: Any) -> None:
    saved(tmp_path / "last", {"model": make.module().state_dict(), "train_state": {"step": step}})
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [31]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    saved(tmp_path / "step-1", {"model": {"w": tensor, "scalar": torch.tensor(2).to(dtype)}})
    weights = load_weights(find(tmp_path)[0][0])
    assert weights["w"].dtype == dtype and torch.equal(weights["w"], tensor)
    assert weights["scalar"].shape == ()


Block = tuple[tuple[int, ...], Tensor]


def by_hand(
    folder: Path,
    shape: tuple[int, ...],
    blocks: list[Block],
    change: Callable[[Metadata], None] = lambda _: None,
    blob: Callable[[Tensor], Any] = lambda block: block,
) -> Path:
    """One tensor `w` in blocks, each by its own torch.save in one file a block."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks, stored = [], {}
    for number, (offsets, block) in enumerate(blocks):
        buffer = io.BytesIO()
        torch.save(blob(block), buffer)
        name = f"__{number}_0.distcp"
        (folder / name).write_bytes(b"before" + buffer.getvalue() + b"after")
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), block.shape))
        stored[MetadataIndex("model.w", torch.Size(offsets), number)] = _StorageInfo(
            name, 6, len(buffer.getvalue())
        )
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(shape), chunks)
    metadata = Metadata({"model.w": tensor}, {"model.w": ("model", "w")}, stored)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


WHOLE = torch.arange(35.0).reshape(5, 7)
BLOCKS: list[Block] = [
    ((2, 4), WHOLE[2:, 4:].clone()),
    ((0, 0), WHOLE[:2, :4].clone()),
    ((0, 4), WHOLE[:2, 4:].clone()),
    ((2, 0), WHOLE[2:, :4].clone()),
]


def test_uneven_blocks_in_two_dimensions_and_any_order(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "step-3", (5, 7), [*BLOCKS, ((5, 0), torch.empty(0, 7))])
    (checkpoint,), _ = find(tmp_path)
    assert torch.equal(load_weights(checkpoint)["w"], WHOLE)
    assert len(checkpoint.weight_files) == 5 and all(
        file.parent == folder for file in checkpoint.weight_files
    )


def test_blocks_that_overlap_do_not_pass_for_a_tensor(tmp_path: Path) -> None:
    blocks = [((0,), torch.ones(2)), ((1,), torch.ones(2))]
    by_hand(tmp_path / "step-3", (4,), blocks)
    with pytest.raises(InputError, match="overlap"):
        load_weights(find(tmp_path)[0][0])


def stored(metadata: Metadata, **fields: Any) -> None:
    for info in metadata.storage_data.values():
        vars(info).update(fields)


def described(metadata: Metadata, **fields: Any) -> None:
    vars(metadata.state_dict_metadata["model.w"]).update(fields)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda m: stored(m, relative_path="../outside"), "leads outside"),
        (lambda m: stored(m, relative_path="/etc/passwd"), "leads outside"),
        (lambda m: stored(m, relative_path="link"), "link out of the run"),
        (lambda m: stored(m, relative_path="a\0b"), "leads outside"),
        (lambda m: stored(m, relative_path=7), "no name"),
        (lambda m: stored(m, relative_path="__9_9.distcp"), "not there"),
        (lambda m: stored(m, offset=10**9), "truncated"),
        (lambda m: stored(m, length=10**9), "truncated"),
        (lambda m: stored(m, offset=-3), "no whole number"),
        (lambda m: stored(m, length=8), "8 bytes cannot hold"),
        (lambda m: stored(m, transform_descriptors=["zstd"]), "compressed"),
        (lambda m: described(m, size=torch.Size([10**9, 10**9])), "elements of model.w are stored"),
        (lambda m: described(m, size=torch.Size([5])), "outside of its shape"),
        (lambda m: described(m, size=[5.0, 7]), "no whole number"),
        (lambda m: described(m, size=None), "no whole number"),
        (lambda m: described(m, chunks=m.state_dict_metadata["model.w"].chunks[:2]), "of 35 elements"),
        (lambda m: m.storage_data.popitem(), "not stored"),
        (lambda m: vars(m).update(storage_data=None), "incomplete"),
        (lambda m: vars(m).update(state_dict_metadata=[1]), "incomplete"),
    ],
)
def test_wrong_descriptions_are_named(tmp_path: Path, change: Callable[[Metadata], None], hint: str) -> None:
    (tmp_path / "outside").write_bytes(b"x" * 100)
    folder = tmp_path / "run" / "step-3"
    folder.mkdir(parents=True)
    if hint == "link out of the run":
        (folder / "link").symlink_to(tmp_path / "outside")
    by_hand(folder, (5, 7), BLOCKS, change)
    checkpoints, skipped = find(tmp_path / "run")
    assert checkpoints == [] and hint in skipped[0].reason and skipped[0].remedy and skipped[0].checkpoint


@pytest.mark.parametrize(
    "blob",
    [lambda t: t.double(), lambda t: t.flatten(), lambda t: t.to_sparse(), lambda t: 3, lambda t: {"w": t}],
    ids=["type", "shape", "sparse", "number", "mapping"],
)
def test_a_block_that_is_not_as_described(tmp_path: Path, blob: Callable[[Tensor], Any]) -> None:
    by_hand(tmp_path / "step-3", (5, 7), BLOCKS, blob=blob)
    with pytest.raises(InputError, match="is not the"):
        load_weights(find(tmp_path)[0][0])


class Trap:
    """A pickle that would create a file if it were ever run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


def test_code_in_a_description_or_a_block_is_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    change: Callable[[Metadata], None] = lambda m: vars(m).update(planner_data=Trap(canary))  # noqa: E731
    by_hand(tmp_path / "a" / "step-3", (5, 7), BLOCKS, change)
    checkpoints, skipped = find(tmp_path / "a")
    assert checkpoints == [] and "nothing of it was run" in skipped[0].reason
    by_hand(tmp_path / "b" / "step-3", (5, 7), BLOCKS, blob=lambda _: Trap(canary))
    with pytest.raises(UnsafeFileError, match="only code"):
        load_weights(find(tmp_path / "b")[0][0])
    assert not canary.exists()


def test_a_damaged_block_is_bad_input(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "step-3", (5, 7), BLOCKS)
    file = folder / "__2_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(InputError, match="damaged") as caught:
        load_weights(find(tmp_path)[0][0])
    assert caught.value.path == file


def test_a_damaged_value_is_no_value(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save((0.8, 0.95), buffer)
    whole = buffer.getvalue()
    file = tmp_path / "__0_0.distcp"
    known = 0
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] = 0xFF  # in its directory this makes zipfile raise half a dozen kinds of errors
        file.write_bytes(data)
        value = plain_value(Item("betas", (), None, None, (Piece((), (), file, 0, len(data)),)))
        known += value == (0.8, 0.95)
    assert 0 < known < len(whole)


@pytest.mark.parametrize("content", [b"\x80", b"\x80\x04.", b"\x80\x04N.", b"\x80\x04}.", b""])
def test_a_damaged_description_is_skipped_and_named(tmp_path: Path, content: bytes) -> None:
    by_hand(tmp_path / "step-3", (5, 7), BLOCKS)
    (tmp_path / "step-3" / ".metadata").write_bytes(content)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and skipped[0].path == tmp_path / "step-3" / ".metadata" and skipped[0].remedy


def test_a_save_that_was_cut_off_has_no_description(tmp_path: Path) -> None:
    by_hand(tmp_path / "step-3", (5, 7), BLOCKS)
    (tmp_path / "step-3" / ".metadata").unlink()
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "not finished" in skipped[0].reason and skipped[0].remedy


def test_other_hidden_metadata_files_are_no_checkpoints(tmp_path: Path, make: Any) -> None:
    (tmp_path / "notes-3").mkdir()
    (tmp_path / "notes-3" / ".metadata").write_text("{}")
    make.weights(tmp_path / "step-4")
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.step for checkpoint in checkpoints] == [4] and skipped == []


def test_a_rewritten_checkpoint_is_read_anew(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "step-3", (5, 7), BLOCKS)
    assert len(read_index(folder)["model.w"].pieces) == 4
    by_hand(folder, (5, 7), [((0, 0), WHOLE)])
    assert len(read_index(folder)["model.w"].pieces) == 1


@pytest.mark.real
def test_the_real_run_is_read_whole(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(MANIFEST.format(data=data.resolve()))
    run = open_run(data / "runs" / "dcp_fsdp2_nanogpt", tmp_path / "run.toml")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [20, 40, 60, 80, 100, 120]
    assert run.missing == () and run.skipped == ()
    assert run.model is not None and run.model.kind == "gpt" and run.model.config["n_embd"] == 32
    assert run.configuration["optimizer.betas"] == [0.9, 0.95]
    assert run.batches is not None and (run.batches.rows, run.batches.rows_per_step) == (1920, 16)
    assert run.log is not None
    logged = dict(run.log.rows.select("step", "loss").iter_rows())
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    for checkpoint in run.checkpoints:
        weights = load_weights(checkpoint)
        assert all(tensor.isfinite().all() for tensor in weights.values())
        load_weights_into(module, weights)
        raw = load_optimizer(checkpoint)
        assert raw is not None
        state = match_optimizer(raw, shapes, run.optimizer, checkpoint.path)
        assert state.kind == "adamw" and list(state.parameters) == [name for name, _ in shapes]
        assert {one.step for one in state.parameters.values()} == {checkpoint.step}
        if checkpoint.step == 120:
            continue
        # The proof: these weights on the next step's batch give the loss that the trainer logged.
        tokens, labels = load_rows(run.batches, run.batches.rows_of_step(checkpoint.step + 1))
        with torch.no_grad():
            loss = evaluate(module, tokens, labels).loss.item()
        assert loss == pytest.approx(logged[checkpoint.step + 1], abs=1e-4)


@pytest.mark.real
def test_real_weights_and_moments_equal_what_torch_reads(data: Path) -> None:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    for checkpoint in find(data / "runs" / "dcp_fsdp2_nanogpt")[0][::3]:
        theirs: dict[str, Any] = {}
        _load_state_dict(
            theirs,
            storage_reader=distributed.FileSystemReader(checkpoint.path),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
        weights = load_weights(checkpoint)
        assert set(weights) == set(theirs["model"])
        assert all(torch.equal(weights[name], theirs["model"][name]) for name in weights)
        raw = load_optimizer(checkpoint)
        assert raw is not None
        for name, state in theirs["optimizer"]["state"].items():
            assert all(torch.equal(raw.state[name][key], value) for key, value in state.items())


def test_opening_needs_no_torch(tmp_path: Path, make: Any) -> None:
    import subprocess
    import sys

    module, optimizer = trained(make)
    saved(
        tmp_path / "step-7",
        {"model": module.state_dict(), "optimizer": get_optimizer_state_dict(module, optimizer)},
    )
    code = (
        "import sys; from hnf_offline.run.open import open_run\n"
        f"run = open_run({str(tmp_path)!r})\n"
        "assert run.configuration['optimizer.learning_rate'] == 0.02, run.configuration\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_a_layout() -> None:
    from hnf_offline.run.formats import FORMATS

    assert FORMATS[dcp.LAYOUT] is dcp
