"""Logs that are read again and again while they grow: what was read is remembered, and only what is new is read.

JSON lines, delimited text, text logs and TensorBoard's event files are appended to, so reading goes on where it
stopped (`raw.Reading`). trainer_state.json is written whole at every save, W&B's and MLflow's folders are many files,
and compressed files have no place to go on from: they are read whole, and only where they changed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from hnf_offline.errors import UserError
from hnf_offline.run.logs.lines import is_left_for_later
from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.walk import walk
from hnf_offline.run.records import Log

#: A file changed less than this many seconds ago may change again within the same tick of its clock.
_TICK = 2.5
#: What is compared of the beginning that was read: its ends, and places between them.
_END, _PLACES, _SAMPLE = 4_096, 30, 64
_DEEPEST = 4

#: Name, size and time of the last change of each file, its device and its number there.
State = tuple[tuple[str, int, int, int, int], ...]


@dataclass(slots=True)
class _Known:
    """What was read of one log: its rows or the reason why there are none, and how to go on."""

    name: str
    state: State
    at: float
    whole_lines: bool
    reading: Reading | None = None
    samples: Mapping[Path, bytes] = field(default_factory=dict)
    raw: RawLog | None = None
    error: UserError | None = None


@dataclass(slots=True)
class Memory:
    """What was read of the logs of one run. One for as long as the run is followed.

    Attributes:
        now: the time of day in seconds, as files are dated.
    """

    now: Callable[[], float] = time.time
    _logs: dict[tuple[object, ...], _Known] = field(default_factory=dict)
    _formats: dict[tuple[object, ...], tuple[State, float, str | None]] = field(default_factory=dict)
    _made: dict[tuple[object, ...], tuple[tuple[RawLog, ...], Log]] = field(default_factory=dict)
    _used: set[tuple[object, ...]] = field(default_factory=set)

    def format_of(self, path: Path, find: Callable[[], str | None]) -> str | None:
        """Give the format of a file: as remembered where the file did not change or only grew, else found anew.

        Args:
            path: the file or folder.
            find: finds it.

        Returns:
            Its name.
        """
        key = ("format", path)
        self._used.add(key)
        state = state_of(path)
        known = self._formats.get(key)
        if known is None or not self._is_same(*known[:2], state):
            at, name = self.now(), find()
            known = self._formats[key] = state, at, name
        return known[2]

    def read(
        self,
        path: Path,
        columns: Mapping[str, str],
        format_of: Callable[[], str],
        begin: Callable[[str], Reading | RawLog],
        settled: int,
    ) -> tuple[str, RawLog]:
        """Give the rows of a log: as remembered where nothing changed, read on where it grew, else read anew.

        Args:
            path: the file or folder.
            columns: the columns that the user named.
            format_of: finds its format.
            begin: begins to read a format that can be read on, or reads it whole.
            settled: bytes of a file that decide its format.

        Returns:
            The name of the format, and the rows.

        Raises:
            UserError: as reading it does.
        """
        key = ("log", path, *sorted(columns.items()))
        self._used.add(key)
        state, known = state_of(path), self._logs.get(key)
        if (
            known is None
            or known.whole_lines != is_left_for_later()
            or not self._is_same(known.state, known.at, state)
        ):
            at = self.now()
            places = () if known is None else _places_to_go_on(known, state)
            if known is None or not places or min(places) < settled:
                name = format_of()
                if known is None or not places or known.name != name:
                    known = _Known(name, state, at, whole_lines=False)
            self._logs.pop(key, None)
            _read_on(known, begin)
            known.state, known.at, known.whole_lines = state, at, is_left_for_later()
            self._logs[key] = known
        if known.error is not None:
            raise known.error
        assert known.raw is not None
        return known.name, known.raw

    def made(self, key: tuple[object, ...], raws: Sequence[RawLog], make: Callable[[], Log]) -> Log:
        """Give what was made of the rows of some files, made anew only where those of one of them are new.

        Args:
            key: what else decides it.
            raws: the rows.
            make: makes it.

        Returns:
            What it gives.
        """
        self._used.add(key)
        known = self._made.get(key)
        if known is None or list(map(id, known[0])) != list(map(id, raws)):
            known = self._made[key] = (tuple(raws), make())
        return known[1]

    def forget_unused(self) -> None:
        """Forget what was not asked for since the last time, such as files that were rotated away."""
        for one in (self._logs, self._formats, self._made):
            for key in one.keys() - self._used:
                del one[key]
        self._used.clear()

    def _is_same(self, before: State, at: float, state: State) -> bool:
        return before == state and at - max((one[2] for one in state), default=0) / 1e9 >= _TICK


_MEMORY: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextmanager
def remembering(memory: Memory) -> Iterator[None]:
    """Remember what is read of logs meanwhile, and use what was remembered.

    Args:
        memory: of the same run.

    Yields:
        Nothing.
    """
    before = _MEMORY.set(memory)
    try:
        yield
    finally:
        _MEMORY.reset(before)
        memory.forget_unused()


def memory() -> Memory | None:
    """Give the memory in use.

    Returns:
        None outside of `remembering`.
    """
    return _MEMORY.get()


def state_of(path: Path) -> State:
    """Note which files a log has and when they were last changed; none is opened.

    Returns:
        One entry a file.
    """
    files = [file for one in walk(path, _DEEPEST) for file in one.files] if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue  # it went away
        found.append((str(file), stat.st_size, stat.st_mtime_ns, stat.st_dev, stat.st_ino))
    return tuple(found)


def samples(path: Path, size: int) -> bytes:
    """Sum up the first bytes of a file by its two ends and some places between them.

    Args:
        path: the file.
        size: how many bytes.

    Returns:
        A sum that is another one for most other files; b"" where it is shorter or cannot be read.
    """
    places = [(0, _END), (max(0, size - _END), _END)]
    places += [(size * number // _PLACES, _SAMPLE) for number in range(1, _PLACES)]
    found = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < size:
                return b""
            for place, length in places:
                file.seek(place)
                found.update(file.read(min(length, size - place)))
    except OSError:
        return b""
    return found.digest()


def _places_to_go_on(known: _Known, state: State) -> tuple[int, ...]:
    # Where to go on in each file, if all that was read is still there, in the same files; else nothing.
    if known.reading is None:
        return ()
    places = known.reading.places()
    files = {Path(one[0]): one for one in state}
    before = {Path(one[0]): one for one in known.state}
    for path, size in places.items():
        now, then = files.get(path), before.get(path)
        if now is None or then is None or now[3:] != then[3:] or now[1] < size:
            return ()
        if not known.samples.get(path) or samples(path, size) != known.samples[path]:
            return ()
    return tuple(places.values())


def _read_on(known: _Known, begin: Callable[[str], Reading | RawLog]) -> None:
    known.raw = known.error = None
    try:
        if known.reading is None:
            begun = begin(known.name)
            if isinstance(begun, RawLog):
                known.raw = begun
                return
            known.reading = begun
        known.raw = known.reading.more()
    except UserError as error:
        known.error = error
    if known.reading is not None:
        known.samples = {path: samples(path, size) for path, size in known.reading.places().items()}
