"""When is a file or folder whole that another program is still writing?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Looks after which what has not changed counts as whole, whatever it lacks.
PATIENCE = 5
_DIGITS = re.compile(r"\d+")

#: Name within the entry -> size and time of the last change.
Signature = dict[str, tuple[int, int]]


def signature(paths: Iterable[Path]) -> Signature:
    """Note which files there are, how large they are and when they were last changed; none is opened.

    Args:
        paths: files, or folders with everything below them; links are not followed.

    Returns:
        One entry a file.
    """
    found: Signature = {}
    for path in paths:
        folders = [path]
        while folders:
            folder = folders.pop()
            try:
                if not folder.is_dir() or (folder != path and folder.is_symlink()):
                    state = folder.lstat() if folder != path else folder.stat()
                    found[str(folder)] = (state.st_size, state.st_mtime_ns)
                    continue
                folders += [Path(entry.path) for entry in os.scandir(folder)]
            except OSError:
                continue  # it went away, or may not be looked at
    return found


@dataclass(slots=True)
class _Seen:
    """What was noted of one entry: its files, the looks since they changed, and the seconds before the first."""

    files: Signature
    looks: int
    seconds: float


@dataclass(slots=True)
class Settling:
    """Tells what is whole from what is still being written, by looking again and again.

    What did not change between two looks, an `interval` apart, is whole; so is, at the first look, what was last
    changed longer ago than that. A checkpoint that lacks files which the one before it had, such as the optimizer's
    that are written last, is waited for longer: `PATIENCE` looks; so is the first one, which nothing is known of.

    Attributes:
        interval: seconds between two looks.
        now: the time of day in seconds, as files are dated.
    """

    interval: float
    now: Callable[[], float]
    _seen: dict[Path, _Seen] = field(default_factory=dict)
    _usual: frozenset[str] | None = None

    def look(self, path: Path, files: Iterable[Path] = ()) -> None:
        """Look at an entry once more; exactly once at every look at the run.

        Args:
            path: a file or folder.
            files: files beside it that belong to it.
        """
        found = signature({path, *files})
        before = self._seen.get(path)
        if before is not None and before.files == found:
            before.looks += 1
            return
        newest = max((changed for _, changed in found.values()), default=0) / 1e9
        # Files that change under our eyes are young whatever their date says.
        seconds = 0.0 if before is not None else max(0.0, self.now() - newest)
        self._seen[path] = _Seen(found, 0, seconds)

    def is_whole(self, path: Path, *, like_others: bool = False) -> bool:
        """Say whether an entry that was looked at is whole.

        Args:
            path: the entry.
            like_others: whether it has to have the kinds of files that the one before it had.

        Returns:
            False while it may still be written.
        """
        lacks = like_others and (self._usual is None or bool(self._usual - self._kinds(path)))
        return self.unchanged(path) >= (PATIENCE if lacks else 1)

    def is_as_usual(self, path: Path) -> None:
        """Remember the kinds of files of a whole checkpoint, for the next one."""
        self._usual = self._kinds(path)

    def unchanged(self, path: Path) -> float:
        """Count the looks since an entry last changed.

        Returns:
            Looks; for what was there before the first look, those that would have fit into its age.
        """
        seen = self._seen.get(path)
        return 0 if seen is None else seen.looks + seen.seconds // max(self.interval, 1e-9)

    def state(self, path: Path) -> Signature:
        """Give what was noted of an entry.

        Returns:
            Its files as at the last look.
        """
        seen = self._seen.get(path)
        return {} if seen is None else seen.files

    def _kinds(self, path: Path) -> frozenset[str]:
        # Names without their numbers: rng_state_0.pth of every rank is one kind.
        inside = len(str(path))
        return frozenset(
            _DIGITS.sub("#", name[inside:]) for name in self.state(path) if name.startswith(str(path))
        )
