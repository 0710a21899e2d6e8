"""TensorBoard event files, one or a folder of them."""

from __future__ import annotations

import functools
import re
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, MissingExtraError
from hnf_offline.run.logs.event_records import EventRecords
from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.scalars import Scalars, listed
from hnf_offline.run.logs.walk import walk

#: Levels below a folder at which runs are looked for.
_DEEPEST = 4
#: Sub-folders in which evaluation is logged beside the training of the same run (Estimators, Keras).
_EVALUATION = re.compile(r"(?:eval|val|valid|validation|test|dev)(?:[_.-].*)?", re.IGNORECASE)
_TRAINING = re.compile(r"train(?:ing)?", re.IGNORECASE)
#: The folder that add_hparams makes below the run's own: the time.
_HPARAMS = re.compile(r"[0-9]{9,11}\.[0-9]+")

#: TensorProto data type -> how a number looks in tensor_content, and the field that holds it otherwise.
#: Source: tensorboard 2.21.0 compat/proto/types.proto and tensor.proto.
_NUMBERS = {
    1: ("<f", "float_val"),
    2: ("<d", "double_val"),
    3: ("<i", "int_val"),
    4: ("<B", "int_val"),
    5: ("<h", "int_val"),
    6: ("<b", "int_val"),
    9: ("<q", "int64_val"),
    17: ("<H", "int_val"),
    22: ("<I", "uint32_val"),
    23: ("<Q", "uint64_val"),
}


def recognises(path: Path, head: str) -> bool:
    """Tell event files by their name, or by how they begin; a folder by an event file in it or below.

    Returns:
        True where `read` should be tried.

    Source: tensorboard 2.21.0 backend/event_processing/io_wrapper.py, IsSummaryEventsFile.
    """
    if path.is_dir():
        return any(any(map(is_event_file, folder.files)) for folder in walk(path, _DEEPEST))
    return is_event_file(path) or "brain.Event:" in head[:100]


def is_event_file(path: Path) -> bool:
    """Tell an event file by its name.

    Returns:
        True for a name such as events.out.tfevents.1744230855.host.5388.4.
    """
    return "tfevents" in path.name and not path.name.endswith((".profile-empty", ".gz"))


def read(path: Path) -> RawLog:
    """Read the scalars of an event file, or of the event files of one run.

    The event files in one folder are one run and its restarts. Folders that `add_scalars` made for it, and those in
    which its evaluation was logged, are read with it; other folders below are other runs.

    Returns:
        A column `step` and one a tag.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read event files that may be appended to.

    Returns:
        What reads them.
    """
    return _Events(path)


class _Events:
    """The scalars of the event files of one run, in the order in which the files were begun."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[_EventFile] = []
        self._scalars = Scalars()

    def more(self) -> RawLog:
        notes: list[str] = []
        files = self._found(notes)
        known = {(one.records.path, one.prefix): one for one in self._files}
        self._files = [known.get(one) or _EventFile(*one) for one in files]
        # Where a series goes back is told by what was read before: only the last file can simply be read on.
        anew = list(known) != files[: len(known)]
        for number, file in enumerate(self._files):
            added = file.read_on()
            anew = anew or bool(added and files[number] in known and number < len(files) - 1)
            if not anew:
                file.add_to(self._scalars, added)
        if anew:
            self._scalars = Scalars()
            for file in self._files:
                file.add_to(self._scalars, len(file.steps))
        for file in self._files:
            notes += file.notes()
        if not len(self._scalars.cells):
            raise InputError(
                "holds no scalar", path=self._path, remedy="name the event files of the training itself"
            )
        frame, left_out = self._scalars.table()
        return RawLog(frame, sum(file.skipped() for file in self._files), (*notes, *left_out))

    def places(self) -> dict[Path, int]:
        return {one.records.path: one.records.place for one in self._files}

    def _found(self, notes: list[str]) -> list[tuple[Path, str]]:
        path = self._path
        if not path.is_dir():
            return [(path, "")]
        base, parts, others = _one_run(path)
        files = [(file, "") for file in _event_files(base)]
        files += [(file, prefix) for part, prefix in parts for file in _event_files(part)]
        if others:
            names = [str(other.relative_to(path)) for other in others]
            notes.append(f"Event files of other runs below were not read: {listed(names)}.")
        return sorted(files, key=lambda one: (_written(one[0]), one[1]))


def runs_of(folders: Sequence[Path]) -> list[Path]:
    """Choose of folders with event files those that are a run each, not a part of the run above them.

    Returns:
        The folders, by name; for training and evaluation side by side the folder of both.

    Raises:
        MissingExtraError: when only the package that knows the records could tell.
    """
    owned = _owned(folders)
    runs = sorted(folder for folder in folders if folder not in owned)
    beside = {owner for folder, (owner, _) in owned.items() if folder.parent == owner.parent}
    return [
        run.parent
        if run in beside and not any(one.parent == run.parent for one in runs if one != run)
        else run
        for run in runs
    ]


def _event_folders(path: Path) -> list[Path]:
    return [folder.path for folder in walk(path, _DEEPEST) if any(map(is_event_file, folder.files))]


def _one_run(path: Path) -> tuple[Path, list[tuple[Path, str]], list[Path]]:
    # The folder of the run, folders that belong to it with the prefix of their tags, and other runs' folders.
    folders = _event_folders(path)
    owned = _owned(folders)
    runs = sorted(folder for folder in folders if folder not in owned)
    if not runs:
        raise InputError("holds no TensorBoard event file", path=path)
    base = path if path in runs else runs[0]
    if base != path and len(runs) > 1:
        names = [str(run.relative_to(path)) for run in runs]
        raise InputError(
            f"holds {len(runs)} TensorBoard runs: {listed(names)}",
            path=path,
            remedy=f"name one of them, such as {runs[0]}",
        )
    parts = [(folder, prefix) for folder, (owner, prefix) in owned.items() if owner == base and prefix]
    return base, parts, [run for run in runs if run != base]


def _owned(folders: Sequence[Path]) -> dict[Path, tuple[Path, str]]:
    # Folder -> the run it belongs to, and what goes before its tags, as `_read_file` takes it; "" is not read.
    known = set(folders)
    training = {folder.parent: folder for folder in folders if _TRAINING.fullmatch(folder.name)}
    owned = {}
    for folder in folders:
        if folder.parent in known:
            if _EVALUATION.fullmatch(folder.name):
                owned[folder] = (folder.parent, f"{folder.name}/")
            elif _HPARAMS.fullmatch(folder.name):
                owned[folder] = (folder.parent, "")
            elif tag := _add_scalars_tag(folder):
                owned[folder] = (folder.parent, f"={tag}/{folder.name[len(tag) + 1 :]}")
        elif _EVALUATION.fullmatch(folder.name) and folder.parent in training:
            owned[folder] = (training[folder.parent], f"{folder.name}/")
    return owned


def _add_scalars_tag(folder: Path) -> str | None:
    # add_scalars("a/b", {"train": ...}) logs "a/b" in the folder a_b_train below the run's own.
    # Source: torch 2.13 utils/tensorboard/writer.py, SummaryWriter.add_scalars.
    for file in _event_files(folder)[:1]:
        for batch in EventRecords(file):
            for data, _ in batch[:10]:
                for _, tag, _ in _decoded(data) or ():
                    return tag if folder.name.startswith(tag.replace("/", "_") + "_") else None
            break
    return None


def _event_files(folder: Path) -> list[Path]:
    return [file for one in walk(folder, 0) for file in one.files if is_event_file(file)]


def _written(file: Path) -> tuple[tuple[int, int | str], ...]:
    # Names tell the second in which a file was begun, then host, process and number; 10 comes after 9.
    tail = file.name.partition("tfevents")[2]
    return tuple(
        (0, int(part)) if part.isdecimal() and len(part) < 20 else (1, part)
        for part in re.split(r"([0-9]+)", tail)
    )


class _EventFile:
    """The scalars of one event file, kept so that they can be put in order with those of others.

    The prefix goes before the tags; after a "=" it takes their place.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.records = EventRecords(path)
        self.prefix = prefix
        self.steps = array("q")
        self._values = array("d")
        self._names = array("i")
        self._numbers: dict[str, int] = {}
        self._damaged = 0

    def read_on(self) -> int:
        """Read the records that were not read yet.

        Returns:
            How many scalars they held.
        """
        before = len(self.steps)
        for batch in self.records:
            found: dict[int, list[tuple[int, str, float]]] = {}
            for number, (data, _) in enumerate(batch):
                values = _decoded(data)
                if values is None:
                    self._damaged += 1
                elif values:
                    found[number] = values
            sound = self.records.sound([batch[number] for number in found])
            for values, good in zip(found.values(), sound, strict=True):
                if not good:
                    self._damaged += 1
                    continue
                for step, tag, value in values:
                    name = self.prefix[1:] if self.prefix.startswith("=") else self.prefix + tag
                    self._names.append(self._numbers.setdefault(name, len(self._numbers)))
                    self.steps.append(step)
                    self._values.append(value)
        return len(self.steps) - before

    def add_to(self, scalars: Scalars, last: int) -> None:
        """Add the last so many scalars."""
        names, start = list(self._numbers), len(self.steps) - last
        for name, step, value in zip(
            self._names[start:], self.steps[start:], self._values[start:], strict=True
        ):
            scalars.add(names[name], step, value)

    def skipped(self) -> int:
        """Count the records that could not be read.

        Returns:
            Their number, one for what is lost at the end.
        """
        return self._damaged + bool(self.records.lost)

    def notes(self) -> list[str]:
        """Say what is lost at the end.

        Returns:
            A sentence, if anything is.
        """
        lost = self.records.lost
        if not lost:
            return []
        return [
            f"The last {lost} bytes of {self.records.path.name} are cut off or damaged and were not read."
        ]


def _decoded(data: bytes) -> list[tuple[int, str, float]] | None:
    # Step, tag and value of each scalar of an event; None where it is no event.
    event_class, error = _event()
    try:
        event = event_class.FromString(data)
    except error:
        return None
    found = []
    for value in event.summary.value:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            found.append((event.step, value.tag, value.simple_value))
        elif kind == "tensor":
            number = _number(value.tensor)
            if number is not None:
                found.append((event.step, value.tag, number))
    return found


@functools.cache
def _event() -> tuple[Any, type[Exception]]:
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "reading TensorBoard event files") from error
    return Event, DecodeError


def _number(tensor: Any) -> float | None:
    # The number that a tensor of one element holds; None for anything else.
    if tensor.dtype not in _NUMBERS and tensor.dtype not in {14, 19}:
        return None
    if any(axis.size != 1 for axis in tensor.tensor_shape.dim):
        return None
    content = tensor.tensor_content
    try:
        if tensor.dtype in {14, 19}:
            # bfloat16 and half are kept as bits, bfloat16's being the upper ones of a float.
            bits = struct.unpack("<H", content)[0] if content else tensor.half_val[0]
            raw = struct.pack("<I", (bits & 0xFFFF) << 16) if tensor.dtype == 14 else struct.pack("<H", bits)
            return float(struct.unpack("<f" if tensor.dtype == 14 else "<e", raw)[0])
        shape, field = _NUMBERS[tensor.dtype]
        return float(struct.unpack(shape, content)[0] if content else getattr(tensor, field)[0])
    except (struct.error, IndexError, OverflowError):
        return None
