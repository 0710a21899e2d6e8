"""Checkpoint layouts: one file each, one line in `FORMATS`; found by walking the run directory once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import (
    adapter,
    dcp,
    dcp_safetensors,
    deepspeed,
    hf_trainer,
    lightning,
    megatron,
    nanogpt,
    olmo,
    safetensors_folder,
    torch_state,
)
from hnf_offline.run.formats.names import step_in_name, step_in_path
from hnf_offline.run.formats.outward import outward_links
from hnf_offline.run.formats.protocol import CheckpointFormat
from hnf_offline.run.paths import OUTWARD, OUTWARD_REMEDY, leads_out
from hnf_offline.run.records import Checkpoint, Skipped
from hnf_offline.run.remote import available

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from hnf_offline.run.optimizer import RawOptimizer

#: Layout name -> module; the first that recognises a file or folder has it.
FORMATS: Mapping[str, CheckpointFormat] = {
    # Before the one below: Megatron's torch_dist folders are of that layout, with settings of their own.
    megatron.LAYOUT: megatron,
    # Before the Trainer's: accelerate writes this layout into checkpoint-<step>/.
    dcp.LAYOUT: dcp,
    dcp_safetensors.LAYOUT: dcp_safetensors,
    deepspeed.LAYOUT: deepspeed,
    olmo.LAYOUT: olmo,
    # Before the Trainer's: a checkpoint-<step>/ may hold an adapter only.
    adapter.LAYOUT: adapter,
    hf_trainer.LAYOUT: hf_trainer,
    safetensors_folder.LAYOUT: safetensors_folder,
    lightning.LAYOUT: lightning,
    nanogpt.LAYOUT: nanogpt,
    # Last: any file of tensors with a step in its name.
    torch_state.LAYOUT: torch_state,
}

#: Bounds on the walk: deeper or larger trees are not runs.
_DEEPEST = 4
_MOST_ENTRIES = 100_000
_WEIGHT_SUFFIXES = {".distcp", ".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


def find(path: Path, glob: str | None = None) -> tuple[list[Checkpoint], list[Skipped]]:
    """Find the checkpoints of a run directory, or the one that `path` is.

    A damaged checkpoint is passed over and recorded. Of two with one step the one with more files is kept.

    Args:
        path: a run directory, a checkpoint folder or a checkpoint file.
        glob: pattern relative to `path`; only what it matches can be a checkpoint.

    Returns:
        The checkpoints sorted by step, and what was passed over and why.
    """
    found: list[Checkpoint] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    real_folders: dict[Path, Path] = {}
    claimed: set[Path] = set()
    unknown: list[Skipped] = []
    entries = _matching(path, glob) if glob is not None else _entries(path)
    outward: dict[Path, Skipped] = {}
    own: list[Checkpoint] = []
    used: set[Path] = set()
    for entry in entries:
        if entry in used or not claimed.isdisjoint(entry.parents):
            continue
        links = outward_links(entry, path)
        outward |= {link: Skipped(link, OUTWARD, OUTWARD_REMEDY, checkpoint=True) for link in links}
        if links:
            continue
        real = _real(entry, real_folders)
        if real is None or real in seen:
            continue
        checkpoint = _recognise(entry, path, skipped)
        if checkpoint is None:
            unknown.extend(_unknown(entry))
            continue
        seen.add(real)
        if entry != path:
            claimed.add(entry)
            found.extend(checkpoint)
        else:
            own.extend(checkpoint)
            used.update(file for one in checkpoint for file in one.files)
    holding = claimed.union(*(one.parents for one in claimed))
    skipped += [folder for folder in unknown if folder.path not in holding]
    skipped += outward.values()
    return _one_a_step([*found, *own], path, skipped), skipped


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read a checkpoint's weights on the CPU, in their own types.

    Returns:
        Parameter name -> tensor.

    Raises:
        InputError: when a tensor has a type that torch stores and cannot compute with.
    """
    with available(checkpoint.path, checkpoint.weight_files):
        weights = FORMATS[checkpoint.layout].load_weights(checkpoint)
    for name, tensor in weights.items():
        if not _is_computable(tensor.dtype):
            raise InputError(
                f"its tensor {name[:100]!r} has the type {tensor.dtype}, with which torch does not compute",
                path=checkpoint.weight_files[0],
                remedy="save the weights unpacked, such as in bfloat16",
            )
    return weights


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read a checkpoint's optimizer state on the CPU, as saved.

    Returns:
        The state, None where none was saved.
    """
    with available(checkpoint.path, checkpoint.optimizer_files):
        return FORMATS[checkpoint.layout].load_optimizer(checkpoint)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read the settings saved with a checkpoint, without reading its tensors.

    Returns:
        Sections "model", "optimizer", "training"; those that are not there are left out.
    """
    return FORMATS[checkpoint.layout].configuration(checkpoint)


@cache
def _is_computable(kind: dtype) -> bool:
    import torch

    try:
        wide = torch.complex128 if kind.is_complex else torch.float64
        return bool(torch.zeros(1, dtype=kind).to(wide).isfinite().all())
    except (RuntimeError, NotImplementedError):
        return False


def _matching(root: Path, glob: str) -> list[Path]:
    try:
        return sorted(root.glob(glob))
    except (ValueError, IndexError, NotImplementedError, OSError) as error:
        raise InputError(
            f"[checkpoints] glob = {glob[:100]!r} is no pattern ({error})",
            path=root,
            remedy="give one such as 'weights/step*'",
        ) from error


def _entries(root: Path) -> Iterator[Path]:
    # What may be a checkpoint: the root and everything below it, folders before what is in them.
    seen_folders: set[Path] = set()
    count = 0

    def walk(folder: Path, depth: int) -> Iterator[Path]:
        nonlocal count
        real = folder.resolve()
        # A link that leads back up would be walked for ever.
        if real in seen_folders or depth > _DEEPEST:
            return
        seen_folders.add(real)
        try:
            children = sorted(folder.iterdir(), key=lambda child: (child.is_symlink(), child.name))
        except OSError:
            return
        for child in children:
            count += 1
            if count > _MOST_ENTRIES:
                return
            if child.name.startswith("."):
                continue
            yield child
            if child.is_dir() and not leads_out(child, root):
                yield from walk(child, depth + 1)

    yield root
    if root.is_dir():
        yield from walk(root, 1)


def _real(entry: Path, real_folders: dict[Path, Path]) -> Path | None:
    # Without its links, None where a link leads to itself; a folder is resolved once, however many files it has.
    try:
        if entry.is_symlink() or entry.name in {"", ".."}:
            return entry.resolve()
        if entry.parent not in real_folders:
            real_folders[entry.parent] = entry.parent.resolve()
    except (OSError, RuntimeError):
        return None
    return real_folders[entry.parent] / entry.name


def _recognise(entry: Path, root: Path, skipped: list[Skipped]) -> list[Checkpoint] | None:
    # The entry's checkpoint in a list; an empty list where it is a damaged one, None where it is none.
    for layout in FORMATS.values():
        try:
            checkpoint = layout.recognise(entry, root)
        except InputError as error:
            skipped.append(Skipped(error.path or entry, error.reason, error.remedy or "", checkpoint=True))
            return []
        except (OSError, ValueError, TypeError, OverflowError) as error:
            skipped.append(Skipped(entry, f"cannot be read ({str(error)[:200]})", checkpoint=True))
            return []
        if checkpoint is not None:
            return [checkpoint]
    return None


def _unknown(entry: Path) -> list[Skipped]:
    # A folder that is named and filled as a checkpoint, of a layout nothing here reads.
    if not entry.is_dir() or step_in_name(entry.name) is None:
        return []
    if any(file.suffix in _WEIGHT_SUFFIXES for file in entry.iterdir()):
        return [
            Skipped(
                entry,
                "looks like a checkpoint of a layout that is not read",
                "convert it to safetensors",
                checkpoint=True,
            )
        ]
    return []


def _one_a_step(found: list[Checkpoint], root: Path, skipped: list[Skipped]) -> list[Checkpoint]:
    kept: dict[int, Checkpoint] = {}
    # These layouts say it inside, where it may well be 0.
    inside = {nanogpt.LAYOUT, lightning.LAYOUT}
    # Final models that trainers save beside the checkpoints say no step, so they have no place in the order.
    stepped = {c.path for c in found if c.step > 0 or step_in_path(c.path, root) is not None}
    for checkpoint in found:
        if stepped and checkpoint.path not in stepped and checkpoint.layout not in inside:
            skipped.append(
                Skipped(checkpoint.path, "its weights say no step and there are checkpoints that do")
            )
            continue
        rival = kept.get(checkpoint.step)
        if rival is None:
            kept[checkpoint.step] = checkpoint
            continue
        better, worse = (
            (checkpoint, rival) if len(checkpoint.files) > len(rival.files) else (rival, checkpoint)
        )
        kept[checkpoint.step] = better
        skipped.append(Skipped(worse.path, f"is also of step {checkpoint.step}; {better.path} was used"))
    return [kept[step] for step in sorted(kept)]
