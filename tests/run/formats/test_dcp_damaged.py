"""torch.distributed.checkpoint folders written by hand: uneven, wrong, damaged, hostile."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats import find, load_weights
from hnf_offline.run.formats.dcp_metadata import Item, Piece, plain_value, read_index

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def saved(folder: Path, content: Mapping[str, Any]) -> Path:
    distributed.save(dict(content), checkpoint_id=folder, no_dist=True)
    return folder


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


def test_a_rewritten_checkpoint_is_read_anew(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "step-3", (5, 7), BLOCKS)
    assert len(read_index(folder)["model.w"].pieces) == 4
    by_hand(folder, (5, 7), [((0, 0), WHOLE)])
    assert len(read_index(folder)["model.w"].pieces) == 1
