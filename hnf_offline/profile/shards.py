"""One Parquet shard a checkpoint: written whole or not at all, found again by the content of what it measured."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import polars as pl

import hnf_offline
from hnf_offline.errors import InputError
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run.records import Checkpoint
from hnf_offline.run.remote import identity
from hnf_offline.table import COLUMNS, Row, sort, table

#: Files up to this size are hashed whole; of larger ones a part, spread evenly, beside the exact size.
WHOLE_BYTES = 256 << 20
_CHUNK = 1 << 20
_SAMPLES = 128
_KEY = "hnf_offline.key"
#: Counted up where one version comes to measure something else than before under the same settings.
_MEASURED = 3


def content_hash(files: Iterable[Path]) -> str:
    """Hash what is in some files, not when they were written.

    Files above 256 MiB are sampled: 128 stretches of 1 MiB at even distances, first and last included, and the
    size. Every training step changes every stretch, so this finds another checkpoint; it is no proof against a
    forger. A file on a server is known by its size and the version or time that the server tells.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        version = identity(path)
        if version is not None:
            # Of a run on a server: reading all of it once more would cost as much as measuring it.
            digest.update(f"{path.name}\0{version}\0".encode())
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= WHOLE_BYTES:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                continue
            for sample in range(_SAMPLES):
                stream.seek((size - _CHUNK) * sample // (_SAMPLES - 1))
                digest.update(stream.read(_CHUNK))
    return digest.hexdigest()


def settings_key(settings: ProfileSettings, data: Sequence[str]) -> str:
    """Hash what decides a measurement besides the checkpoint: settings, rows, model, program version.

    Which checkpoints are chosen does not enter: it changes no value. Densities and
    landscapes have shards of their own.

    Returns:
        32 hexadecimal digits.
    """
    apart = {"first_step", "last_step", "every", "replay", "device", "density", "koopman", "landscape"}
    chosen = {name: value for name, value in asdict(settings).items() if name not in apart}
    if settings.koopman or settings.tier == "full":  # what was measured before there were modes stays valid
        chosen["koopman"] = True
    text = json.dumps(
        [hnf_offline.__version__, _MEASURED, sorted(COLUMNS), chosen, list(data)], sort_keys=True, default=str
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def shard_path(folder: Path, checkpoint: Checkpoint) -> Path:
    """Name a checkpoint's shard.

    Returns:
        `step-000140.parquet` in the folder.
    """
    return folder / f"step-{checkpoint.step:06d}.parquet"


def shard_key(checkpoint: Checkpoint, settings: str) -> str:
    """Join the settings' key and the checkpoint's content.

    Returns:
        The key that a shard must carry to be used again.
    """
    return f"{settings}-{content_hash(checkpoint.files)}"


def read_shard(path: Path, key: str) -> pl.DataFrame | None:
    """Read a shard if it was made with this key.

    Returns:
        The rows; None where the shard is absent, damaged, or of other settings or files.
    """
    try:
        if pl.read_parquet_metadata(path).get(_KEY) != key:
            return None
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        return None


def write_shard(path: Path, rows: Iterable[Row], key: str) -> pl.DataFrame:
    """Write a shard under a temporary name and rename it.

    Returns:
        The rows as a table.
    """
    frame = table(rows)
    write_parquet(path, frame, {_KEY: key})
    return frame


def write_parquet(path: Path, frame: pl.DataFrame, metadata: dict[str, str] | None = None) -> None:
    """Write a Parquet file that is either whole or not there.

    Raises:
        InputError: if the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(temporary, metadata=metadata)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"cannot write: {error.strerror}", path=path, remedy="choose another --out"
        ) from error


def join_shards(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Put shards together.

    Returns:
        The long table, sorted.
    """
    return sort(pl.concat([table(), *frames]))
