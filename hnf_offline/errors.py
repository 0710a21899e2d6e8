"""The few exceptions a user sees: each names the file, the reason and the remedy in one line."""

from __future__ import annotations

import re
from pathlib import Path

#: Folder on this disk -> the address whose files it stands for (run/remote/): messages name what the user named.
STANDS_FOR: dict[str, str] = {}
_LONGEST = 1_000
_ONE_SLASH = re.compile(r"^([a-z][a-z0-9+.-]+):/(?=[^/])")


def spelled(path: Path | str) -> str:
    """Spell a path, or a text with paths in it, for the user.

    Returns:
        The text, with addresses for the folders that stand for them.
    """
    text = path.as_posix() if isinstance(path, Path) else path
    for folder, address in STANDS_FOR.items():
        text = text.replace(folder, address)
    return _ONE_SLASH.sub(r"\1://", text)  # a Path makes one slash of two


def _short(text: str) -> str:
    # What a message quotes from a file may be as long as the file.
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


class UserError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with 2.

    Attributes:
        reason: what is wrong, without a full stop.
        path: the file or folder it is about, where there is one.
        remedy: what to do about it, without a full stop.
    """

    def __init__(self, reason: str, *, path: Path | str | None = None, remedy: str | None = None) -> None:
        self.reason = _short(reason)
        self.path = None if path is None else Path(path)
        self.remedy = None if remedy is None else _short(remedy)
        super().__init__(str(self))

    def __str__(self) -> str:
        where = "" if self.path is None else f"{self.path}: "
        then = "" if self.remedy is None else f"; {self.remedy}"
        return spelled(f"{where}{self.reason}{then}")


class InputError(UserError):
    """A file that cannot be read or understood."""


class UnsafeFileError(InputError):
    """A file that could only be read by running code from it; it is refused, never unpickled."""


class AmbiguousOptimizerError(InputError):
    """Optimizer state that cannot be assigned to parameters without guessing."""


class UsageError(UserError):
    """Options or settings that contradict each other or name nothing."""


class MissingExtraError(UserError):
    """An optional dependency is needed; the remedy names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}",
            remedy=f"install it with: pip install 'hnf_offline[{extra}]'",
        )
