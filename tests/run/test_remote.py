"""Runs at an address: the same as on disk, two checkpoints at a time, and nothing left behind."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from hnf_offline.cli import main
from hnf_offline.errors import InputError, MissingExtraError, UserError, spelled
from hnf_offline.pipeline import open_input
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.record import Recorder
from hnf_offline.run import open_run
from hnf_offline.run.batches import load_rows
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.records import Run
from hnf_offline.run.remote import address_of, close_all, local_path, registry
from hnf_offline.run.remote.address import name_of, shown
from hnf_offline.run.remote.skeleton import PREFIX, Skeleton

fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

CONFIG: dict[str, Any] = {
    "vocab_size": 9, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 64, "mlp_width": 256, "norm": "none",
}  # fmt: skip
ROWS, STEPS, EVERY = 4, 20, 4
SETTINGS = ProfileSettings(tier="gradient", device="cpu")


class Far(MemoryFileSystem):
    """A store whose contents, listing and failures a test decides."""

    protocol = "far"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    extra_names: ClassVar[list[str]] = []
    timeless = False
    broken: ClassVar[set[str]] = set()
    claimed: ClassVar[dict[str, int]] = {}
    read_bytes: ClassVar[list[tuple[str, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("far://")))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        listed = [dict(one) for one in super().ls(path, detail=True, **kwargs)]
        for one in listed:
            if self.timeless:
                one.pop("created", None)
            for end, size in self.claimed.items():
                one["size"] = size if one["name"].endswith(end) else one["size"]
        listed += [{"name": name, "size": 3, "type": "file"} for name in self.extra_names]
        return listed if detail else [one["name"] for one in listed]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data = bytes(super().cat_file(path, start=start, end=end, **kwargs))
        self.read_bytes.append((path, len(data)))
        return data

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        # MemoryFileSystem hands out one open file, with one position, to all readers: no store does that to threads.
        if mode == "rb" and path in self.store:
            return io.BytesIO(self.store[path].getvalue())
        return super()._open(path, mode=mode, **kwargs)

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        if any(name in rpath for name in self.broken):
            raise ConnectionResetError("the line\nwas cut")
        super().get_file(rpath, lpath, **kwargs)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    fsspec.register_implementation("far", Far, clobber=True)
    Far.store, Far.pseudo_dirs, Far.extra_names, Far.timeless, Far.broken = {}, [""], [], False, set()
    Far.read_bytes, Far.claimed = [], {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    close_all()
    assert not list((tmp_path / "temporary").iterdir()), "something was left on disk"


def upload(folder: Path, place: str) -> str:
    files = fsspec.filesystem("far")
    for file in folder.rglob("*"):
        if file.is_file():
            files.pipe_file(f"/{place}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"far://{place}"


def train() -> Iterator[tuple[int, GPT, torch.optim.Optimizer, torch.Tensor, torch.Tensor]]:
    tokens = torch.randint(0, 9, (STEPS, ROWS, 8), generator=torch.Generator().manual_seed(0))
    module = GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, betas=(0.9, 0.98))
    for step in range(1, STEPS + 1):
        rows = tokens[step - 1]
        loss = functional.cross_entropy(module(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step, module, optimizer, loss.detach(), tokens


def recorded(folder: Path) -> Path:
    with Recorder(folder, every=EVERY, model={"model_type": "gpt", **CONFIG}) as recorder:
        for step, module, optimizer, loss, tokens in train():
            if step == 1:
                steps = torch.arange(1, STEPS + 1).repeat_interleave(ROWS)
                recorder.save_batches(tokens.flatten(0, 1), steps=steps)
            recorder.record(step, module, optimizer, loss=loss, grad_norm=1.0)
    return folder


def in_another_layout(folder: Path, layout: str) -> Path:
    """The same training as its checkpoints and log lie on disk for other trainers."""
    folder.mkdir()
    lines = []
    tokens = torch.empty(0)
    for step, module, optimizer, loss, tokens in train():  # noqa: B007 (the last one's)
        lines.append(json.dumps({"step": step, "loss": float(loss), "grad_norm": 1.0}))
        if step % EVERY:
            continue
        weights, state = module.state_dict(), optimizer.state_dict()
        if layout == "nanogpt":
            content = {"model": weights, "optimizer": state, "iter_num": step, "model_args": CONFIG}
            torch.save(content, folder / f"ckpt-{step}.pt")
            continue
        own = folder / f"checkpoint-{step}"
        own.mkdir()
        (own / "config.json").write_text(json.dumps({"model_type": "gpt", **CONFIG}))
        (own / "tokenizer.json").write_text("{}" * 1000)
        if layout == "hf_trainer":
            save_file({name: one.clone() for name, one in weights.items()}, own / "model.safetensors")
            torch.save(state, own / "optimizer.pt")
        elif layout == "legacy":
            torch.save(weights, own / "pytorch_model.bin", _use_new_zipfile_serialization=False)
            torch.save(state, own / "optimizer.bin", _use_new_zipfile_serialization=False)
        else:
            import torch.distributed.checkpoint as distributed

            shutil.rmtree(own)
            content = {"model": weights, "optimizer": state, "train_state": {"step": step}}
            distributed.save(content, checkpoint_id=own, no_dist=True)
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    steps = torch.arange(1, STEPS + 1).repeat_interleave(ROWS)
    save_file({"input_ids": tokens.flatten(0, 1), "steps": steps}, folder / "batches.safetensors")
    return folder


@pytest.fixture(scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("recorded") / "tiny")


@pytest.fixture
def tiny(_tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_tiny, tmp_path / "tiny"))


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The most bytes that all weight files of far runs took on disk, looked at after every fetch."""
    most = {"bytes": 0, "fetches": 0}
    fetch = Skeleton._fetch_whole

    def watched(self: Skeleton, group: Path, file: Path) -> None:
        fetch(self, group, file)
        held = sum(
            one.stat().st_blocks * 512
            for one in self._room.rglob("*")
            if one.is_file() and one.suffix in {".safetensors", ".pt", ".bin", ".distcp", ".part"}
        )
        most["bytes"], most["fetches"] = max(most["bytes"], held), most["fetches"] + 1

    monkeypatch.setattr(Skeleton, "_fetch_whole", watched)
    return most


def bytes_of_a_checkpoint(run: Run) -> int:
    return max(sum(file.stat().st_size for file in dict.fromkeys(point.files)) for point in run.checkpoints)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def test_the_report_of_a_far_run_has_the_same_table_with_two_checkpoints_on_disk(
    tiny: Path, tmp_path: Path, usage: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tier", "gradient", "--device", "cpu", "--zoom", "off", "--json", "--out"]
    assert main(["report", str(tiny), *options, str(tmp_path / "near")]) == 0
    near = json.loads(capsys.readouterr().out)
    address = upload(tiny, "bucket/tiny")
    size = bytes_of_a_checkpoint(open_run(tiny))
    assert main(["report", address, *options, str(tmp_path / "far")]) == 0
    far = json.loads(capsys.readouterr().out)
    tables = [pl.read_parquet(tmp_path / name / "profile.parquet") for name in ("near", "far")]
    assert tables[0].height > 50 and tables[0].equals(tables[1])
    # What compares whole files is left to the checks that may take long.
    checked = {"checked": far["run"].get("checked")}
    assert far["run"] == {**near["run"], **checked, "path": address} and far["spikes"] == near["spikes"]
    assert "temporary" not in (tmp_path / "far" / "index.html").read_text(encoding="utf-8")
    # Blocks, headers and batches take some more than the files' own bytes.
    assert 0 < usage["bytes"] <= 2 * size + 64 * 1024 < 3 * size
    assert usage["fetches"] == 5 * 2, "every file of every checkpoint once"


@pytest.mark.parametrize("layout", ["recorded", "hf_trainer", "nanogpt", "dcp", "legacy"])
def test_every_layout_is_read_equal_over_the_network(
    tmp_path: Path, usage: dict[str, int], layout: str
) -> None:
    folder = tmp_path / "run"
    near = open_run(recorded(folder) if layout == "recorded" else in_another_layout(folder, layout))
    far = open_run(upload(folder, f"bucket/{layout}"))
    assert [point.step for point in far.checkpoints] == [4, 8, 12, 16, 20]
    assert far.configuration == near.configuration and far.configuration
    assert far.missing == near.missing and far.skipped == near.skipped == ()
    assert far.log is not None and near.log is not None and far.log.rows.equals(near.log.rows)
    assert far.batches is not None and near.batches is not None
    rows = far.batches.rows_of_step(7)
    assert len(rows) == ROWS and torch.equal(
        load_rows(far.batches, rows)[0], load_rows(near.batches, rows)[0]
    )
    held = []
    for mine, theirs in zip(far.checkpoints, near.checkpoints, strict=True):
        held.append(load_weights(mine))
        assert same(held[-1], load_weights(theirs))
        state, saved = load_optimizer(mine), load_optimizer(theirs)
        assert state is not None and saved is not None
        assert same(dict(state.state), dict(saved.state)) and same(state.groups, saved.groups)
    # What was handed out stays what it was, although its files are gone from this disk by now.
    assert all(
        same(weights, load_weights(point)) for weights, point in zip(held, near.checkpoints, strict=True)
    )
    assert 0 < usage["bytes"] <= 2 * bytes_of_a_checkpoint(near) + 128 * 1024


def test_opening_reads_descriptions_only(tiny: Path) -> None:
    total = sum(file.stat().st_size for file in tiny.rglob("*.safetensors"))
    run = open_run(upload(tiny, "bucket/tiny"))
    there = sum(file.stat().st_blocks * 512 for file in run.path.rglob("*.safetensors"))
    assert len(run.checkpoints) == 5 and there < total / 3


def test_a_second_report_measures_nothing_again_and_a_changed_checkpoint_is_noticed(
    tiny: Path, tmp_path: Path
) -> None:
    address, out = upload(tiny, "bucket/tiny"), tmp_path / "out"
    assert profile_run(open_run(address), SETTINGS, out).computed == 5
    close_all()
    Far.read_bytes.clear()
    again = profile_run(open_run(address), SETTINGS, out)
    assert (again.computed, again.cached) == (0, 5)
    files = fsspec.filesystem("far")
    weights = "/bucket/tiny/checkpoints/step-000012/model.safetensors"
    files.pipe_file(weights, files.cat_file("/bucket/tiny/checkpoints/step-000016/model.safetensors"))
    close_all()
    assert profile_run(open_run(address), SETTINGS, out).computed == 1
    Far.timeless = True
    close_all()
    assert profile_run(open_run(address), SETTINGS, out).computed == 5, "nothing tells what changed"


def test_a_checkpoint_that_cannot_be_fetched_is_skipped_and_named_by_its_address(
    tiny: Path, tmp_path: Path
) -> None:
    Far.broken = {"step-000012/model"}
    address = upload(tiny, "bucket/tiny")
    run = open_run(address)
    profile = profile_run(run, SETTINGS, tmp_path / "out")
    assert profile.computed == 4 and len(profile.skipped) == 1
    with pytest.raises(InputError) as caught:
        load_weights(run.checkpoints[2])
    place = f"{address}/checkpoints/step-000012/model.safetensors"
    assert str(caught.value).startswith(f"{place}: cannot be read (ConnectionResetError: the line)")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named_by_its_address(tiny: Path) -> None:
    file = tiny / "checkpoints" / "step-000012" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for remark in (upload(tiny, "bucket/tiny"),):
        (skipped,) = open_run(remark).skipped
        error = str(InputError(skipped.reason, path=skipped.path))
        assert error.startswith("far://bucket/tiny/checkpoints/step-000012/model.safetensors: is truncated")


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


def test_one_log_file_at_an_address(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = upload(tiny, "bucket/tiny")
    run = open_run(f"{address}/log.jsonl")
    assert spelled(run.path) == f"{address}/log.jsonl"
    assert run.log is not None and run.log.rows.height == STEPS and run.checkpoints == ()
    assert main(["spikes", f"{address}/log.jsonl", "--json"]) == 0
    capsys.readouterr()


def test_a_token_file_that_a_manifest_names_is_fetched_for_its_rows(tiny: Path, tmp_path: Path) -> None:
    import numpy as np

    (tiny / "batches.safetensors").unlink()
    np.arange(1000, dtype=np.uint16).tofile(tiny / "train.bin")
    np.save(tiny / "starts.npy", np.arange(80) * 7)
    (tiny / "run.toml").write_text('[batches]\nfile = "train.bin"\nstarts = "starts.npy"\nlength = 8\n')
    run = open_run(upload(tiny, "bucket/tiny"))
    assert run.batches is not None
    assert load_rows(run.batches, [3])[0].tolist() == [list(range(21, 29))]


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


class Server(http.server.SimpleHTTPRequestHandler):
    """Lists folders, and gives parts of files as stores do."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            return super().do_GET()
        first, last = wanted.removeprefix("bytes=").split("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.end_headers()
        self.wfile.write(data)
        return None


def test_a_web_server_that_lists_folders(tiny: Path, usage: dict[str, int]) -> None:
    pytest.importorskip("aiohttp")

    def handler(*arguments: Any) -> Server:
        return Server(*arguments, directory=str(tiny.parent))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        run = open_run(f"http://127.0.0.1:{server.server_port}/tiny")
        near = open_run(tiny)
        assert [point.step for point in run.checkpoints] == [4, 8, 12, 16, 20] and run.name == "tiny"
        assert run.skipped == () and run.log is not None and run.log.rows.height == STEPS
        assert same(load_weights(run.checkpoints[3]), load_weights(near.checkpoints[3]))
        assert usage["fetches"] == 1 and registry.identity(run.checkpoints[3].weight_files[0])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ENDING: dict[str, Callable[..., str]] = {
    "end": lambda: "",
    "error": lambda: "raise RuntimeError('an error')",
    "interrupt": lambda: "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)",
}


@pytest.mark.parametrize("ending", ENDING)
def test_nothing_is_left_however_the_program_ends(tiny: Path, tmp_path: Path, ending: str) -> None:
    code = (
        "import fsspec, pathlib\n"
        "from hnf_offline.run import open_run, load_weights\n"
        f"folder = pathlib.Path({str(tiny)!r})\n"
        "files = fsspec.filesystem('memory')\n"
        "for file in folder.rglob('*'):\n"
        "    if file.is_file(): files.pipe_file('/b/' + str(file.relative_to(folder)), file.read_bytes())\n"
        "run = open_run('memory://b')\n"
        "load_weights(run.checkpoints[0])\n"
        "assert run.path.is_dir() and run.path.parent.stat().st_mode & 0o077 == 0\n"
        "print('open', flush=True)\n" + ENDING[ending]()
    )
    temporary = tmp_path / "own"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert "open" in done.stdout, done.stderr
    assert not list(temporary.iterdir())


def test_what_a_killed_program_left_is_removed_by_the_next(tiny: Path, tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left = tmp_path / "temporary" / f"{PREFIX}{int(gone.stdout)}-abc"
    alive = tmp_path / "temporary" / f"{PREFIX}{os.getpid()}-abc"
    for folder in (left, alive):
        (folder / "run").mkdir(parents=True)
    open_run(upload(tiny, "bucket/tiny"))
    assert not left.exists() and alive.exists()
    shutil.rmtree(alive)
