"""Stands guard while a hostile run is read: every file opened, every process, socket and import is looked at.

Python's own audit events show what Python opens; inotify shows what the libraries in Rust and C++ open of the
decoy that lies outside of the run.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import pickles

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEVER = {
    *(
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "os.forkpty",
        "os.spawn",
        "pty.spawn",
    ),
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"),
    *("webbrowser.open", "pickle.find_class", "os.startfile", "code.__new__"),
}
_CHANGES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink"),
    *("os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "os.mkfifo", "tempfile.mkdtemp"),
}
#: open, access, modify, moved, created, deleted (linux/inotify.h).
_EVENTS = 0x1 | 0x2 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200


class Watch:
    """The guard of one process; there can be only one, since an audit hook stays for good.

    Attributes:
        problems: what was seen since the last case began.
    """

    def __init__(self, outside: Path, readable: Sequence[Path]) -> None:
        self.problems: list[str] = []
        self._outside = str(outside)
        self._readable = tuple(os.path.realpath(one) + os.sep for one in readable)
        self._run = self._writable = ""
        self._on = self._busy = False
        self._inotify = _watch_tree(outside)
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, run: Path, room: Path, marker: Path) -> Iterator[None]:
        """Watch while a run is read.

        Args:
            run: the run, which may be read and not changed.
            room: where results and temporary files may go.
            marker: the file that a canary makes.

        Yields:
            Nothing; `problems` then holds what was seen.
        """
        self.problems = []
        self._run, self._writable = os.path.realpath(run), os.path.realpath(room) + os.sep
        before = _state(run)
        os.environ.pop(pickles.VARIABLE, None)
        _drain(self._inotify)
        self._on = True
        try:
            yield
        finally:
            self._on = False
        if _drain(self._inotify):
            self.problems.append("opened something outside of the run (inotify)")
        if _state(run) != before:
            self.problems.append("changed the run")
        if marker.exists() or _sings() or pickles.MODULE in sys.modules:
            self.problems.append("CANARY: code from the run was executed")
            marker.unlink(missing_ok=True)
            sys.modules.pop(pickles.MODULE, None)
            ctypes.CDLL(None).unsetenv(pickles.VARIABLE.encode())

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on or self._busy:
            return
        self._busy = True
        try:
            if event == "open":
                self._opened(*arguments[:3])
            elif event in _NEVER:
                self._note(f"{event}{arguments!r}"[:300])
            elif event in _CHANGES:
                # What is removed below an opened folder is named relative to it.
                folder = arguments[1] if event in {"os.remove", "os.rmdir"} else -1
                place = (
                    Path(f"/proc/self/fd/{folder}").readlink()
                    if isinstance(folder, int) and folder >= 0
                    else Path()
                )
                for one in arguments[:2]:
                    if isinstance(one, str | bytes | os.PathLike) and not self._may_write(
                        place / os.fsdecode(one)
                    ):
                        self._note(f"{event} {one!r}")
            elif event == "import":
                name, file = arguments[0], arguments[1]
                if name == pickles.MODULE or (file and os.path.realpath(file).startswith(self._run)):
                    self._note(f"import {name}")
            elif event == "ctypes.dlopen" and self._run in str(arguments[0]):
                self._note(f"dlopen {arguments[0]}")
            elif event == "os.putenv" and os.fsdecode(arguments[0]) == pickles.VARIABLE:
                self._note("putenv of the canary")
        finally:
            self._busy = False

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if isinstance(flags, int) and flags & _WRITES:
            if not self._may_write(path):
                self._note(f"open for writing {path!r}")
            return
        real = os.path.realpath(os.fsdecode(path))
        if not (real + os.sep).startswith((*self._readable, self._run + os.sep, self._writable)):
            self._note(f"open for reading {path!r} -> {real!r}")

    def _may_write(self, path: Any) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return real == "/dev/null" or (real + os.sep).startswith(self._writable)

    def _note(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(f"{text} ({_asked_by()})")


def _asked_by() -> str:
    # The innermost line of the project that led there.
    frame: Any = sys._getframe(1)
    while frame is not None:
        if f"{os.sep}hnf_offline{os.sep}" in frame.f_code.co_filename:
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def _sings() -> bool:
    # os.putenv goes past os.environ.
    get = ctypes.CDLL(None).getenv
    get.restype = ctypes.c_char_p
    return bool(get(pickles.VARIABLE.encode()))


def _state(run: Path) -> dict[Path, tuple[int, int, int]]:
    found = {}
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            try:
                status = (Path(folder) / name).lstat()
            except OSError:
                continue
            found[Path(folder) / name] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def _watch_tree(outside: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    for folder in (outside, *(one for one in outside.rglob("*") if one.is_dir())):
        if libc.inotify_add_watch(descriptor, os.fsencode(folder), ctypes.c_uint32(_EVENTS)) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return int(descriptor)


def _drain(descriptor: int) -> int:
    count = 0
    while True:
        try:
            data = os.read(descriptor, 65_536)
        except BlockingIOError:
            return count
        place = 0
        while place < len(data):
            (length,) = struct.unpack_from("<I", data, place + 12)
            place += 16 + length
            count += 1
