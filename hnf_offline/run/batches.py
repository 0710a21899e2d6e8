"""Replay batches: which rows of saved tokens were trained on, read row by row when asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.flat_tokens import flat_shape, read_spans
from hnf_offline.run.formats.safetensors_file import read_header
from hnf_offline.run.manifest import Manifest
from hnf_offline.run.numpy_archive import READ_FAULTS, arrays_of
from hnf_offline.run.paths import leads_out, status_of
from hnf_offline.run.records import Batches
from hnf_offline.run.remote import whole
from hnf_offline.run.stored_rows import IMAGES, TOKENS, flat_rows, stored_rows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_LABELS = ("labels", "targets", "target")
_NAMES = ("batches", "replay", "batch", "tokens")
_REMEDY = (
    "save integer arrays input_ids [rows, length] and, where they differ, labels, with safetensors or numpy"
)
_IMAGE_REMEDY = "save pixel_values [rows, channels, height, width] in float32, and whole-number labels [rows]"
#: Floating-point types that numpy has, as safetensors spells them.
_FLOATS = {"F16", "F32", "F64"}


@dataclass(frozen=True, slots=True)
class _Array:
    """Name, shape and type of one array in a file, known from headers alone."""

    shape: tuple[int, ...]
    integer: bool
    floating: bool = False


def find_batches(
    path: Path,
    manifest: Manifest | None = None,
    *,
    last_steps: Sequence[int] = (),
    first_logged_step: int | None = None,
    full: bool = False,
) -> Batches | None:
    """Find the replay batches of a run directory.

    Rows a step: what run.toml or the file says; else all rows, where the run is known to train on full batches;
    else, where the number of rows is a multiple of the number of steps trained, that multiple.

    Args:
        path: the run directory.
        manifest: its run.toml.
        last_steps: the last logged step and the last checkpoint's, for the rows a step.
        first_logged_step: 0 where the log counts from 0.
        full: whether the run's own settings say that every step trains on all rows.

    Returns:
        The batches, None where there are none.

    Raises:
        InputError: when run.toml names a file that holds none.
    """
    manifest = manifest or Manifest()
    if manifest.batch_file is not None:
        return describe(
            whole(manifest.batch_file),
            manifest,
            last_steps=last_steps,
            first_logged_step=first_logged_step,
            full=full,
        )
    if manifest.starts is not None:
        raise InputError(
            "[batches] starts are places in a flat token file, and no file is named",
            path=manifest.path,
            remedy='add file = "train.bin"',
        )
    for file in _candidates(path):
        try:
            return describe(
                file, manifest, last_steps=last_steps, first_logged_step=first_logged_step, full=full
            )
        except InputError:
            # Weights and other arrays have these suffixes too; only a named file has to hold batches.
            continue
    return None


def passed_over(path: Path) -> InputError | None:
    """Say why a file that by its name holds batches was not taken for some.

    Args:
        path: a run directory in which no batches were found.

    Returns:
        What is wrong with the likeliest file; None where no file has such a name.
    """
    for file in _candidates(path):
        if _unlikely(file)[0] < len(_NAMES):
            try:
                describe(file)
            except InputError as error:
                return error
    return None


def _candidates(path: Path) -> list[Path]:
    # Files of a run directory that may hold batches, likely ones first.
    if not path.is_dir():
        return []
    folders = [path, *(path / name for name in ("batches", "data", "replay") if (path / name).is_dir())]
    files = [
        file
        for folder in folders
        if not leads_out(folder, path)
        for file in sorted(folder.iterdir())
        if file.suffix in {".safetensors", ".npz"} and file.is_file() and not leads_out(file, path)
    ]
    return sorted(files, key=_unlikely)


def describe(
    file: Path,
    manifest: Manifest | None = None,
    *,
    last_steps: Sequence[int] = (),
    first_logged_step: int | None = None,
    full: bool = False,
) -> Batches:
    """Describe one file of batches from its headers.

    Args:
        file: a .safetensors or .npz file, or a flat uint16 .bin where the manifest gives its row length.
        manifest: names of the arrays, rows a step, and where the rows of a flat file begin.
        last_steps: steps the rows may divide into.
        first_logged_step: 0 where the log counts from 0.
        full: whether the run's own settings say that every step trains on all rows.

    Returns:
        The batches.

    Raises:
        InputError: when the file holds no token array, or arrays whose shapes disagree.
    """
    manifest = manifest or Manifest()
    status_of(file)
    names: Mapping[str, _Array] = {}
    labels: str | None
    image: tuple[int, ...] = ()
    if file.suffix == ".bin":
        shape: tuple[int, ...] = flat_shape(file, manifest)
        tokens, labels = "", None
    elif manifest.starts is not None:
        raise InputError(
            "has rows of its own, so [batches] starts mean nothing in it",
            path=file,
            remedy="name the flat token file (.bin), or remove starts",
        )
    else:
        names = _arrays(file)
        found = _name(names, manifest.tokens, (*TOKENS, *IMAGES), file)
        if found is None:
            raise InputError(
                f"holds no token array among {', '.join(sorted(names)[:8])}", path=file, remedy=_REMEDY
            )
        tokens = found
        labels = _name(names, manifest.labels, _LABELS, file)
        shape = names[tokens].shape
        if names[tokens].floating and (tokens in IMAGES or manifest.tokens is not None):
            shape, image = _rows_and_image(file, names, tokens, labels)
        elif tokens in IMAGES:
            raise InputError(
                f"its array {tokens!r} is of a type that is not replayed", path=file, remedy=_IMAGE_REMEDY
            )
        elif not names[tokens].integer or len(shape) not in {2, 3} or 0 in shape:
            raise InputError(
                f"its array {tokens!r} is not whole numbers of shape [rows, length]",
                path=file,
                remedy=_REMEDY,
            )
    rows, length = math.prod(shape[:-1]), shape[-1]
    if labels is not None and not image and not _fit(names[labels].shape, shape):
        raise InputError(
            f"its labels have shape {list(names[labels].shape)}, its tokens {list(shape)}",
            path=file,
            remedy=_REMEDY,
        )
    if manifest.aligned and (labels is None or math.prod(names[labels].shape) != rows * length):
        raise InputError(
            "has no label for every token, so aligned = true means nothing in it",
            path=file,
            remedy="name the array with [batches] labels, or remove aligned",
        )
    steps = None if manifest.every_step else _steps(file, names, manifest, rows)
    per_step, first = _rows_per_step(shape, rows, manifest, last_steps, first_logged_step)
    every_step = manifest.every_step or (full and steps is None and manifest.batch_steps is None)
    if every_step:
        per_step = rows
    return Batches(
        file,
        tokens,
        labels,
        rows,
        length,
        None if steps else per_step,
        first,
        steps,
        starts=manifest.starts,
        aligned=manifest.aligned,
        every_step=every_step,
        shape=image,
    )


def _rows_and_image(
    file: Path, names: Mapping[str, _Array], images: str, labels: str | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # Images have a label each: the dimensions that labels have too are rows, or batches of rows.
    shape = names[images].shape
    own = () if labels is None else names[labels].shape
    if labels is None or not names[labels].integer:
        raise InputError(
            f"has no whole-number labels for its {images}, one a row", path=file, remedy=_IMAGE_REMEDY
        )
    if len(own) not in {1, 2} or own != shape[: len(own)] or len(own) == len(shape) or 0 in shape:
        raise InputError(
            f"its labels have shape {list(own)}, its {images} {list(shape)}: that is not one label a row",
            path=file,
            remedy=_IMAGE_REMEDY,
        )
    image = shape[len(own) :]
    if images in IMAGES and len(image) < len(("channels", "height", "width")):
        raise InputError(
            f"its {images} have shape {list(shape)}, which are no images", path=file, remedy=_IMAGE_REMEDY
        )
    return (*own, 0), image


def _fit(labels: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
    # One label a row, one a token, or rows of another length: those that an encoder-decoder is to write.
    rows = math.prod(tokens[:-1])
    return math.prod(labels) in {rows, math.prod(tokens)} or (labels[:-1] == tokens[:-1] and labels[-1] > 0)


def load_rows(batches: Batches, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Load some rows.

    Rows of images are floating-point numbers as they are stored, with one label each. Labels of tokens that are one
    longer than they mean that position t predicts labels[t + 1]: no last position is lost. An encoder-decoder has
    labels of any length.

    Args:
        batches: the file.
        rows: row numbers, in the order wanted.

    Returns:
        Tokens i64 [n, length], or images f32 (f64 where so stored) [n, *shape]; labels i64 [n, length], [n] (one a
        row) or [n, length + 1] (every position predicts), None where the labels are the tokens.

    Raises:
        InputError: when a row is not in the file.
    """
    import torch

    wanted = [int(row) for row in rows]
    outside = [row for row in wanted if not 0 <= row < batches.rows]
    if outside:
        raise InputError(f"has no row {outside[0]}: it has {batches.rows}", path=batches.path)
    if batches.starts is not None:
        spans = torch.from_numpy(read_spans(batches, wanted))
        return spans[:, :-1].contiguous(), spans
    tokens = (
        flat_rows(batches.path, wanted, batches.rows, batches.length, _REMEDY)
        if batches.path.suffix == ".bin"
        else _read_rows(batches, batches.tokens, wanted)
    ).reshape(len(wanted), *(batches.shape or (batches.length,)))
    if not batches.shape and tokens.size and int(tokens.min()) < 0:
        raise InputError("holds negative tokens", path=batches.path, remedy=_REMEDY)
    labels = None
    if batches.labels is not None:
        read = _read_rows(batches, batches.labels, wanted).astype("int64")
        if batches.aligned:
            read = _shifted(read.reshape(len(wanted), batches.length))
        labels = torch.from_numpy(read.reshape(len(wanted)) if read.size == len(wanted) else read)
    return torch.from_numpy(tokens), labels


def _unlikely(file: Path) -> tuple[int, str]:
    likely = [word in file.stem.lower() for word in (*_NAMES, "")]
    return likely.index(True), file.name


def _arrays(file: Path) -> Mapping[str, _Array]:
    if file.suffix == ".safetensors":
        header = read_header(file)
        return {
            name: _Array(
                tuple(entry["shape"]), str(entry["dtype"])[:1] in {"I", "U"}, entry["dtype"] in _FLOATS
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    if file.suffix != ".npz":
        raise InputError("is neither .safetensors nor .npz", path=file, remedy=_REMEDY)
    try:
        return {
            name: _Array(shape, kind.kind in {"i", "u"}, kind.kind == "f" and kind.itemsize <= 8)
            for name, shape, kind in arrays_of(file)
        }
    except READ_FAULTS as error:
        raise InputError(
            f"is not a numpy archive of plain arrays ({str(error)[:200]})", path=file, remedy=_REMEDY
        ) from error


def _name(names: Mapping[str, _Array], wanted: str | None, usual: Sequence[str], file: Path) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise InputError(
                f"has no array {wanted!r}", path=file, remedy=f"its arrays are {', '.join(sorted(names))}"
            )
        return wanted
    return next((name for name in usual if name in names), None)


def _steps(file: Path, names: Mapping[str, _Array], manifest: Manifest, rows: int) -> tuple[int, ...] | None:
    steps: tuple[int, ...] | None = None
    if isinstance(manifest.batch_steps, tuple):
        steps = manifest.batch_steps
    elif manifest.batch_steps is None and "steps" in names and names["steps"].integer:
        every = range(math.prod(names["steps"].shape))
        source = Batches(file, "steps", None, len(every), 1)
        steps = tuple(int(step) for step in _read_rows(source, "steps", every).reshape(-1))
        if len(steps) != rows and steps and rows % len(steps) == 0:
            # One step a batch of [n, B, T].
            steps = tuple(step for step in steps for _ in range(rows // len(steps)))
    if steps is not None and len(steps) != rows:
        raise InputError(
            f"gives {len(steps)} steps for {rows} rows", path=file, remedy="give the step of every row"
        )
    return steps


def _rows_per_step(
    shape: tuple[int, ...],
    rows: int,
    manifest: Manifest,
    last_steps: Sequence[int],
    first_logged_step: int | None,
) -> tuple[int | None, int]:
    first = 0 if first_logged_step == 0 else 1
    if isinstance(manifest.batch_steps, int):
        return manifest.batch_steps, first
    if len(shape) == 3:
        return shape[1], first
    for last in last_steps:
        trained = last + 1 - first
        if trained > 0 and rows % trained == 0:
            return rows // trained, first
    return None, 1


def _read_rows(batches: Batches, name: str, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[Any]]:
    return stored_rows(batches.path, name, rows, batches.rows, _IMAGE_REMEDY if batches.shape else _REMEDY)


def _shifted(labels: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    # Targets in place -> one longer, so that position t predicts labels[t + 1]; nothing predicts the first.
    import numpy as np

    from hnf_offline.run.model.loss import IGNORED

    # nanoGPT ignores -1 where transformers ignores -100; neither is a token.
    return np.pad(np.where(labels == -1, IGNORED, labels), ((0, 0), (1, 0)), constant_values=IGNORED)
