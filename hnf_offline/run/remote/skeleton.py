"""A far run as a folder on this disk: small files whole, weight files as placeholders, filled in while in use.

At most two checkpoints are on disk at any time: the one in use and the next one, which is fetched meanwhile. The
folder is private, lies outside of everything, and goes when the program ends.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hnf_offline.errors import STANDS_FOR, InputError
from hnf_offline.run.records import Skipped
from hnf_offline.run.remote.address import name_of
from hnf_offline.run.remote.parts import TORCH_SUFFIXES, holds_batches, write_parts
from hnf_offline.run.remote.source import Entry, Source

#: Checkpoints on disk at a time.
RESIDENT = 2
#: Folders of this program in the system's place for temporary files, followed by the number of the process.
PREFIX = "hnf-remote-"
_LARGEST_SMALL = 2_000_000_000
_READERS = 8
#: Disk that is left free whatever is fetched.
_SPARE = 64 * 2**20
_SMALL = {
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".log", ".txt", ".out", ".err", ".toml", ".yaml", ".yml"),
    *(".npz", ".npy", ".gz", ".wandb", ""),
}
#: Part of many checkpoints, and of no use here.
_NO_USE = re.compile(
    r"tokenizer.*|vocab.*|merges\.txt|special_tokens_map\.json|added_tokens\.json|generation_config\.json"
    r"|README.*|LICENSE.*|Makefile|Dockerfile"
)
#: Where batches are looked for (run/batches.py, find_batches).
_BATCH_FOLDERS = {Path(), Path("batches"), Path("data"), Path("replay")}
_REMEDY = "point TMPDIR at a disk with more room"


class Skeleton:
    """One far run that is open.

    Attributes:
        path: what stands for the address: a folder, or a file where the address is one's.
        folder: the folder all of it is in.
        skipped: what was left out, and why.
    """

    def __init__(self, address: str) -> None:
        self._source = Source(address)
        listed, refused, single = self._source.entries()
        if not listed:
            raise InputError("holds no files", path=self._source.address, remedy="check the address")
        self._room = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve()
        self.folder = self._room / (name_of(address) if not single else "run")
        self.path = self.folder / listed[0].name if single else self.folder
        place = self._source.address
        STANDS_FOR[str(self.folder)] = place.rpartition("/")[0] if single else place
        self.skipped = [
            Skipped(self.folder, f"{name!r} is no name of a file in a folder") for name in refused
        ]
        self._entries: dict[Path, Entry] = {}
        self._placeholders: set[Path] = set()
        self._aside: dict[Path, Path] = {}
        self._groups: dict[Path, set[Path]] = {}
        self._pins: dict[Path, int] = {}
        self._lock = threading.RLock()
        try:
            (self._room / "aside").mkdir()
            self._lay_out(listed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove everything of it from this disk."""
        shutil.rmtree(self._room, ignore_errors=True)

    def version(self, file: Path) -> str | None:
        """Tell two contents of one file apart without reading it.

        Returns:
            A text; None where the server says nothing that changes with the content.
        """
        entry = self._entries.get(file)
        return None if entry is None else entry.version

    def is_placeholder(self, file: Path) -> bool:
        """Tell whether a file is all holes at this moment.

        Returns:
            False for files that are not of the run, small ones, and those that are filled in.
        """
        return file in self._placeholders and file not in self._aside

    def read(self, file: Path, start: int, stop: int) -> bytes:
        """Read a part of a file over the network, keeping nothing.

        Returns:
            The bytes, fewer where the file ends before.
        """
        entry = self._entries[file]
        return self._source.read(entry, min(start, entry.size), min(stop, entry.size))

    def fill(self, group: Path, files: Iterable[Path]) -> None:
        """Fetch some files of a checkpoint and keep them until `release`; older checkpoints are emptied first.

        Args:
            group: the checkpoint.
            files: its files that are needed.
        """
        with self._lock:
            self._pins[group] = self._pins.get(group, 0) + 1
            try:
                wanted = [file for file in dict.fromkeys(files) if self.is_placeholder(file)]
                if wanted:
                    self._make_room(group, sum(self._entries[file].size for file in wanted))
                for file in wanted:
                    self._fetch_whole(group, file)
            except BaseException:
                self.release(group)
                raise

    def release(self, group: Path) -> None:
        """Say that a checkpoint's files are not being read at this moment; they go when others need the room."""
        with self._lock:
            self._pins[group] -= 1

    def largest(self, groups: Iterable[Iterable[Path]]) -> int:
        """Add up what a checkpoint takes on disk.

        Returns:
            Bytes of the largest one.
        """
        return max(
            (
                sum(self._entries[file].size for file in dict.fromkeys(files) if file in self._placeholders)
                for files in groups
            ),
            default=0,
        )

    def check_room(self, size: int) -> None:
        """Refuse to fetch what would not leave the disk some room.

        Raises:
            InputError: if it would not.
        """
        free = shutil.disk_usage(self._room).free
        if size > free - _SPARE:
            raise InputError(
                f"needs {size / 1e6:,.0f} MB on this disk, and {max(0, free - _SPARE) / 1e6:,.0f} MB are free",
                path=self.path,
                remedy=_REMEDY,
            )

    def _lay_out(self, listed: list[Entry]) -> None:
        small: list[Path] = []
        placeholders: list[Path] = []
        self.folder.mkdir()
        for entry in listed:
            file = self.folder / entry.name
            kind = _kind(file, file.relative_to(self.folder).parent)
            if kind is None:
                continue
            if kind == "small" and entry.size > _LARGEST_SMALL:
                reason = f"has {entry.size / 1e9:.1f} GB, too many for a log or a list of batches"
                self.skipped.append(Skipped(file, reason, "copy the run to this machine"))
                continue
            if file in self._entries:
                continue
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self.skipped.append(Skipped(file, f"has no place on this disk ({error.strerror})"))
                continue
            self._entries[file] = entry
            (small if kind == "small" else placeholders).append(file)
        self.check_room(sum(self._entries[file].size for file in small))
        with ThreadPoolExecutor(_READERS) as readers:
            jobs: list[tuple[Path, Future[None]]] = []
            jobs += [(file, readers.submit(self._fetch_small, file)) for file in small]
            jobs += [(file, readers.submit(self._fetch_parts, file)) for file in placeholders]
            try:
                for file, job in jobs:
                    self._finish(file, job)
            except BaseException:
                readers.shutdown(cancel_futures=True)
                raise

    def _finish(self, file: Path, job: Future[None]) -> None:
        try:
            job.result()
        except (InputError, OSError, OverflowError) as error:
            told = (
                error if isinstance(error, InputError) else InputError(f"has no place on this disk ({error})")
            )
            self.skipped.append(Skipped(file, told.reason, told.remedy or ""))
            if file.is_file():
                file.unlink()

    def _fetch_small(self, file: Path) -> None:
        self._source.fetch(self._entries[file], file)

    def _fetch_parts(self, file: Path) -> None:
        entry = self._entries[file]
        write_parts(self._source, entry, file)
        folder = file.relative_to(self.folder).parent
        if file.suffix == ".safetensors" and folder in _BATCH_FOLDERS and holds_batches(file):
            self.check_room(entry.size)
            self._source.fetch(entry, file)
            return
        self._placeholders.add(file)

    def _make_room(self, group: Path, size: int) -> None:
        # Oldest first; whoever still has one mapped into memory keeps what it mapped.
        others = [one for one in self._groups if one != group and not self._pins.get(one)]
        while others and len(self._groups.keys() | {group}) > RESIDENT:
            self._empty(others.pop(0))
        while others and size > shutil.disk_usage(self._room).free - _SPARE:
            self._empty(others.pop(0))
        self.check_room(size)

    def _fetch_whole(self, group: Path, file: Path) -> None:
        # Beside it first, so that a file is at all times either all holes or whole.
        partial = self._room / "aside" / f"{len(self._entries)}.part"
        aside = self._room / "aside" / f"{list(self._entries).index(file)}.holes"
        try:
            self._source.fetch(self._entries[file], partial)
            file.replace(aside)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        self._aside[file] = aside
        self._groups.setdefault(group, set()).add(file)

    def _empty(self, group: Path) -> None:
        for file in self._groups.pop(group):
            self._aside.pop(file).replace(file)


def _kind(file: Path, folder: Path) -> str | None:
    # "small" to be fetched whole, "weights" for a placeholder, None for what nothing here reads.
    if file.name in {".metadata", "random_states.safetensors"} or "tfevents" in file.name:
        return "small"
    if file.name.startswith(".") or _NO_USE.fullmatch(file.name) or file.name == "training_args.bin":
        return None
    if file.suffix in {".npz", ".npy"} and folder not in _BATCH_FOLDERS:
        return None
    if file.suffix in TORCH_SUFFIXES | {".safetensors", ".distcp"}:
        return "weights"
    return "small" if file.suffix.lower() in _SMALL else None
