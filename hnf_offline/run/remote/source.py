"""The far side of an address, through fsspec: what is there, parts of files, whole files; errors in one line."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, MissingExtraError, UserError
from hnf_offline.run.remote.address import shown

#: Bounds on the listing, as on the walk of a local run.
_DEEPEST = 5
_MOST_ENTRIES = 100_000
_MOST_FOLDERS = 20_000
_LONGEST_NAME = 255
#: Protocol -> the package beside fsspec that speaks it.
_PACKAGES: Mapping[str, str] = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("ssh", "sftp"), "paramiko"),
    "hf": "huggingface_hub",
}
#: What servers call the version of a file, and the time it was written.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "Digest", "crc32c", "generation", "VersionId"),
    *("blob_id", "oid", "xet_hash", "checksum"),
)
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "modified", "created")
_REMEDY = "check the address, the network, and that you may read it"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the run.

    Attributes:
        name: its path below the run, every part checked to be a plain name.
        address: its name as the server spells it.
        size: its bytes.
        version: what changes when its content changes, None where the server says nothing of the kind.
    """

    name: str
    address: str
    size: int
    version: str | None


class Source:
    """A run's far side.

    Attributes:
        address: the address as messages spell it.
    """

    def __init__(self, address: str) -> None:
        self.address = shown(address)
        self._scheme = address.partition("://")[0].rpartition("::")[2]
        self._files, self._root = _connect(address, self._scheme, self.address)
        self._web = self._scheme in {"http", "https"}
        self._single = False

    def entries(self) -> tuple[list[Entry], list[tuple[str, str]], bool]:
        """List the files of the run, breadth first, within bounds.

        Returns:
            The files; (name, reason) of those that cannot be had, which are left alone; and whether the address is
            that of one file.

        Raises:
            InputError: if there is nothing at the address, or it cannot be listed.
        """
        found: list[Entry] = []
        refused: list[tuple[str, str]] = []
        waiting = [(self._root, "", 0)]
        listings = 0
        while waiting and len(found) < _MOST_ENTRIES and listings < _MOST_FOLDERS:
            folder, prefix, depth = waiting.pop(0)
            listings += 1
            for full, name, info in self._listed(folder, prefix):
                if full == folder:
                    if info.get("type") == "file" and not prefix and not self._web:
                        self._single = True
                        return [self._entry(name, info)], refused, True
                elif not _plain(name):
                    refused.append((full, "is no name of a file in a folder"))
                elif info.get("type") == "directory":
                    if depth < _DEEPEST and not name.startswith("."):
                        waiting.append((full, f"{prefix}/{name}", depth + 1))
                else:
                    try:
                        found.append(self._entry(f"{prefix}/{name}".lstrip("/"), info))
                    except InputError as error:
                        refused.append((full, error.reason))
        name = posixpath.basename(self._root)
        if not found and not refused and self._web and _plain(name):
            self._single = True
            return [self._entry(name, {"name": self._root})], refused, True
        return found, refused, False

    def _listed(self, folder: str, prefix: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        # (name as the server spells it, last part of it, what is told of it).
        with _told(self.address + prefix):
            listed = self._files.ls(folder + "/" if self._web else folder, detail=True)
        for info in sorted(listed, key=lambda one: str(one["name"])):
            full = str(info["name"]).rstrip("/")
            if not self._web:
                yield full, posixpath.basename(full), info
            elif full.startswith(folder + "/") and not set(full[len(folder) :]) & set("?#"):
                # A page's other links lead elsewhere, or sort it.
                yield full, posixpath.basename(full), info

    def read(self, entry: Entry, start: int, stop: int) -> bytes:
        """Read a part of a file.

        Returns:
            As many bytes as asked for.

        Raises:
            InputError: if it cannot be read, or the file is shorter now than when it was listed.
        """
        if start >= stop:
            return b""
        place = self._place(entry.name)
        with _told(place):
            data = bytes(self._files.cat_file(entry.address, start=start, end=stop))
        if len(data) != stop - start:
            reason = f"gave {len(data)} bytes where {stop - start} were asked for"
            raise InputError(
                reason, path=place, remedy="the file changed, or the server gives no parts of files"
            )
        return data

    def fetch(self, entry: Entry, target: Path) -> None:
        """Copy a whole file to this disk, in pieces, and not a byte more than was listed.

        Raises:
            InputError: if it cannot be read, or has another size now.
        """
        from fsspec.callbacks import Callback

        place = self._place(entry.name)

        class Bounded(Callback):  # type: ignore[misc]
            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > entry.size:
                    raise InputError("is longer than its listing says", path=place, remedy="run again")

        if entry.size == 0:
            target.write_bytes(b"")
            return
        with _told(place):
            self._files.get_file(entry.address, str(target), callback=Bounded())
        if target.stat().st_size != entry.size:
            reason = f"has {target.stat().st_size} bytes, not the {entry.size} of its listing"
            raise InputError(reason, path=place, remedy="it was cut off or is being written: run again")

    def _place(self, name: str) -> str:
        return self.address if self._single else f"{self.address}/{name}"

    def _entry(self, name: str, info: Mapping[str, Any]) -> Entry:
        full = str(info["name"])
        if type(info.get("size")) is not int:
            with _told(self._place(name)):
                info = {**self._files.info(full), "name": full}
        size = info.get("size")
        if type(size) is not int or size < 0:
            raise InputError(
                "has no size that its server tells", path=f"{self.address}/{name}", remedy=_REMEDY
            )
        said = [(key, str(info[key])) for key in (*_VERSIONS, *_TIMES) if info.get(key) not in {None, ""}]
        return Entry(name, full, size, repr([size, *said]) if said else None)


def _connect(address: str, scheme: str, place: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError("fsspec", "remote", f"reading {scheme}:// addresses") from error
    if "cache::" in address:
        raise InputError(
            "keeps what it reads on disk", path=place, remedy="leave the cache:: out of the address"
        )
    try:
        with _told(place):
            files, root = url_to_fs(address, **_options(scheme))
    except ImportError as error:
        package = _PACKAGES.get(scheme, "that fsspec names for it")
        missing = MissingExtraError(package, "remote", f"reading {scheme}:// addresses")
        missing.remedy = f"install it with: pip install {package}" if scheme in _PACKAGES else str(error)
        raise missing from error
    return files, str(root).rstrip("/")


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in {"http", "https"}:
        return {}
    from aiohttp import ClientTimeout

    # A checkpoint may take hours as long as bytes come; the library's own limit is five minutes for a file.
    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}}


@contextmanager
def _told(place: str) -> Iterator[None]:
    # Storage libraries raise what they like; a user gets one line.
    try:
        yield
    except (UserError, ImportError):
        raise
    except FileNotFoundError as error:
        raise InputError("is not there", path=place, remedy=_REMEDY) from error
    except PermissionError as error:
        raise InputError("may not be read by you", path=place, remedy=_permission(place)) from error
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise InputError(
                "has a protocol that fsspec does not know",
                path=place,
                remedy="use s3://, gs://, hf://, https:// or another of fsspec's",
            ) from error
        raise InputError(f"cannot be read ({_line(error)})", path=place, remedy=_REMEDY) from error
    except Exception as error:
        remedy = _permission(place) if "Credentials" in type(error).__name__ else _REMEDY
        raise InputError(f"cannot be read ({_line(error)})", path=place, remedy=remedy) from error


def _permission(place: str) -> str:
    public = "; for a public bucket set FSSPEC_S3_ANON=true" if place.startswith("s3") else ""
    return f"log in to the store, or ask its owner{public}"


def _line(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def _plain(name: str) -> bool:
    return (
        name not in {"", ".", ".."}
        and not set(name) & {"/", "\\", "\0"}
        and len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME
    )
