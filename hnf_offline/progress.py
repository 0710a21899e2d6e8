"""How progress is told on stderr: one bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from hnf_offline.profile.settings import Progress

#: Without a terminal: a line at every tenth of the work, ...
SHARE = 0.1
#: ... or after this many seconds, whichever comes first.
SECONDS = 30.0
#: On a terminal: seconds between two looks into one checkpoint.
GLANCE = 0.2
#: No time is foretold from a smaller share of one checkpoint.
FORETELLING = 0.01


#: Characters of a line on stderr; what a file calls its tensors may have more.
LONGEST = 2_000


def printable(text: str) -> str:
    """Escape what a terminal would obey instead of show, such as control characters in file names.

    Returns:
        The text; line breaks and tabs are kept.
    """
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )


def is_live(stream: object = None) -> bool:
    """Say whether a stream is a terminal that can redraw a line.

    Returns:
        False for pipes, files, TERM=dumb and NO_COLOR.
    """
    stream = sys.stderr if stream is None else stream
    plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return not plain and bool(getattr(stream, "isatty", lambda: False)())


def in_colour(stream: object) -> bool:
    """Say whether a result may be coloured: on a terminal, and where FORCE_COLOR asks for it.

    Returns:
        False wherever NO_COLOR or TERM=dumb say no, whatever FORCE_COLOR says.
    """
    plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    forced = os.environ.get("FORCE_COLOR", "0") not in {"", "0"}
    return is_live(stream) or (forced and not plain)


def note(text: str) -> None:
    """Print one line on stderr, however many a file's name has and however long one in a file is."""
    line = printable(text).replace("\n", "\\n")
    print(line if len(line) <= LONGEST else f"{line[:LONGEST]} ...", file=sys.stderr, flush=True)


class StatusLine:
    """One line at the bottom of a terminal that is written over and over; nothing elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._live = is_live() and not quiet
        self._shown = False

    def show(self, text: str) -> None:
        """Write the line anew."""
        if self._live:
            print(f"\r\x1b[2K{printable(text)}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def clear(self) -> None:
        """Take the line away, before anything else is printed."""
        if self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._shown = False


class Reporter:
    """Tells the progress of one profile; call it with every `Progress`.

    Attributes:
        last: the latest progress, None before the first.
    """

    def __init__(self, label: str, tier: str, *, unit: str = "ckpt", quiet: bool = False) -> None:
        self.label = label
        self.tier = tier
        self.unit = unit
        self.quiet = quiet
        self.last: Progress | None = None
        self._bar: Bar | None = None
        self._spent = 0.0
        self._told_at = time.monotonic()
        self._told_share = 0.0
        self._told_cache = False
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Tell one step of progress."""
        before = self.last
        if before is not None and (
            progress.done < before.done or progress.total != before.total or progress.work != before.work
        ):
            # Another piece of work begins, such as a zoom after the profile.
            self._spent, self._told_share, self._told_cache = 0.0, 0.0, False
        self.last = progress
        if not progress.part:
            self._spent += progress.seconds
        if self.quiet:
            return
        if progress.cached and not self._told_cache:
            self._told_cache = True
            # Only a profile knows beforehand how much of it is there.
            counted = f"{progress.cached} of {progress.total} from cache"
            self._say("steps measured before are taken from the cache" if progress.work else counted)
        if progress.event:
            self._say(progress.event)
        if is_live():
            self._draw(progress)
        else:
            self._line(progress)

    def _say(self, text: str) -> None:
        if self._bar is None:
            note(text)
        else:
            self._bar.console.print(printable(text), markup=False, highlight=False)

    def _draw(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.part and now - self._drawn_at < GLANCE:
            return
        self._drawn_at = now
        if self._bar is None:
            self._bar = _bar()
            self._bar.add_task(self.label, total=progress.total)
            self._bar.start()
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.done + progress.share,
            total=progress.total,
            description=self._text(progress),
            refresh=True,
        )

    def _line(self, progress: Progress) -> None:
        share = progress.done / max(progress.total, 1)
        now = time.monotonic()
        # Looks into a checkpoint are for those that take minutes: the clock alone decides.
        reached = not progress.part and share - self._told_share >= SHARE
        if reached or now - self._told_at >= SECONDS or progress.done == progress.total:
            self._told_share, self._told_at = share, now
            note(self._text(progress))

    def _text(self, progress: Progress) -> str:
        fresh = progress.done - progress.cached
        # Other work than what was asked for, such as a zoom within a report, has a tier and units of its own.
        own = progress.work in {"", self.label}
        label, tier, unit = (self.label, self.tier, f"/{self.unit}") if own else (progress.work, "", " each")
        words = [f"{label} {progress.done}/{progress.total} step {progress.step}", tier, progress.part]
        if fresh > 0:
            words.append(f"{self._spent / fresh:.1f} s{unit}")
        # What is half done counts half, in the work and in the time it took.
        behind = fresh + progress.share
        if behind >= FORETELLING:
            spent = self._spent + (progress.seconds if progress.part else 0.0)
            left = round(spent / behind * max(0.0, progress.total - progress.done - progress.share))
            words.append(f"ETA {left // 60}:{left % 60:02d}")
        return " ".join(word for word in words if word)


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # Text only where the columns are plain: layer names may hold brackets, which are no markup.
    return Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True, highlight=False),
        transient=True,
        auto_refresh=False,
    )
