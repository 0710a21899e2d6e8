"""Names, sizes, stores and addresses that are not to be trusted, each told in one line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.cli import main
from hnf_offline.errors import InputError, MissingExtraError, UserError
from hnf_offline.pipeline import open_input
from hnf_offline.profile.run import profile_run
from hnf_offline.run import open_run
from hnf_offline.run.formats import load_weights
from hnf_offline.run.remote import address_of, local_path
from hnf_offline.run.remote.address import name_of, shown

fsspec = pytest.importorskip("fsspec")

from .conftest import (  # noqa: E402
    SETTINGS,
    Far,
    bytes_of_a_checkpoint,
    upload,
)


@pytest.mark.parametrize(
    "name", ["/bucket/tiny/..", "/bucket/tiny/../../etc/passwd", "/bucket/tiny/a\0b", "//"]
)
def test_names_that_lead_elsewhere_are_left_alone(tiny: Path, tmp_path: Path, name: str) -> None:
    address = upload(tiny, "bucket/tiny")
    Far.extra_names = [name]
    before = {path for path in tmp_path.rglob("*") if "temporary" not in path.parts}
    run = open_run(address)
    assert len(run.checkpoints) == 5
    assert {path for path in tmp_path.rglob("*") if "temporary" not in path.parts} == before
    assert all(path.is_relative_to(run.path.parent) for path in (tmp_path / "temporary").rglob("*/*"))
    if ".." in name.rpartition("/")[2] or "\0" in name:
        assert any("is no name of a file" in skipped.reason for skipped in run.skipped)


def test_a_file_that_grows_while_it_is_fetched_does_not_fill_the_disk(tiny: Path) -> None:
    address = upload(tiny, "bucket/tiny")
    run = open_run(address)
    Far.store["/bucket/tiny/checkpoints/step-000004/model.safetensors"].write(b"x" * 10**6)
    with pytest.raises(InputError, match=r"longer than its listing|not the"):
        load_weights(run.checkpoints[0])


def test_too_little_disk_is_told_beforehand(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(upload(tiny, "bucket/tiny"))
    free = shutil.disk_usage(tmp_path)._replace(free=64 * 2**20 + bytes_of_a_checkpoint(open_run(tiny)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=r"MB on this disk.*TMPDIR"):
        profile_run(run, SETTINGS, tmp_path / "out")
    assert load_weights(run.checkpoints[0]), "one of them fits"


def test_a_file_that_claims_an_endless_size_is_left_out(tiny: Path) -> None:
    address = upload(tiny, "bucket/tiny")
    Far.claimed = {
        "step-000012/model.safetensors": 2**62,
        "log.jsonl": 2**62,
        "step-000016/model.safetensors": -1,
    }
    run = open_run(address)
    assert [point.step for point in run.checkpoints] == [4, 8, 20] and run.log is None
    assert len(run.skipped) >= 3


def test_a_folder_and_a_file_of_one_name(tiny: Path) -> None:
    # An object store has keys, not folders: "a" and "a/b" are two of them.
    address = upload(tiny, "bucket/tiny")
    Far.extra_names = ["/bucket/tiny/checkpoints", "/bucket/tiny/log.jsonl"]
    run = open_run(address)
    assert len(run.checkpoints) == 5 and run.skipped and run.log is not None


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("memory://nothing/here", "is not there|holds no files"),
        ("nosuch://bucket/run", "protocol that fsspec does not know"),
        ("s3://bucket/run", "needs the package s3fs; install it with: pip install s3fs"),
        ("gs://bucket/run", "needs the package gcsfs"),
        ("http://127.0.0.1:9/run", "cannot be read|aiohttp"),
        ("simplecache::memory://run", "leave the cache:: out"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    address: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    import re

    assert main(["report", address]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told and re.search(hint, told), told
    assert "Traceback" not in told and address.partition("://")[0] in told


@pytest.mark.parametrize(
    ("raised", "hint"),
    [
        (PermissionError("Access Denied"), "may not be read by you; log in to the store"),
        (
            type("NoCredentialsError", (Exception,), {})("Unable to locate"),
            "Unable to locate.*log in to the store",
        ),
        (TimeoutError(), r"cannot be read \(TimeoutError\)"),
        (OSError("first\nsecond"), r"cannot be read \(OSError: first\)"),
    ],
)
def test_what_a_store_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, hint: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(Far, "ls", fail)
    with pytest.raises(InputError, match=hint) as caught:
        open_run("far://bucket/run")
    assert str(caught.value).startswith("far://bucket/run: ") and "\n" not in str(caught.value)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hnf_offline\[remote\]'"):
        open_run("s3://bucket/run")


def test_file_addresses_are_read_where_they_are(tiny: Path, tmp_path: Path) -> None:
    run = open_input(Path(f"file://{tiny}"))
    assert run.path == tiny and len(run.checkpoints) == 5
    assert open_run(f"local://{tiny}").path == tiny
    with pytest.raises(UserError, match="no such file"):
        open_input(f"file://{tmp_path}/nothing")


@pytest.mark.parametrize(
    ("typed", "address", "name"),
    [
        ("s3://b/run", "s3://b/run", "run"),
        (Path("s3://b/run"), "s3://b/run", "run"),
        (Path("s3://b/run/"), "s3://b/run", "run"),
        ("hf://user/repo@step1000", "hf://user/repo@step1000", "repo@step1000"),
        ("S3://b", "s3://b", "b"),
        (Path("zip://a::s3://b/c.zip"), "zip://a::s3://b/c.zip", "c.zip"),
        ("https://me:secret@host/runs/a b", "https://me:secret@host/runs/a b", "a_b"),
        ("https://host/run?sig=secret", "https://host/run?sig=secret", "run"),
        ("s3://b/..", "s3://b/..", "run"),
        ("runs/a", None, None),
        ("C:/runs/a", None, None),
        ("file:///runs/a", None, None),
    ],
)
def test_addresses_are_told_from_paths(typed: str | Path, address: str | None, name: str | None) -> None:
    assert address_of(typed) == address
    if address is not None and name is not None:
        assert name_of(address) == name and "secret" not in shown(address)


def test_a_folder_that_looks_like_an_address_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/b").mkdir(parents=True)
    assert address_of(Path("s3:/b")) is None and local_path(Path("s3:/b")) == Path("s3:/b")
