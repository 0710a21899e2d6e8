"""Runs in a store whose contents, listing and failures a test decides."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save_file
from torch.nn import functional

from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.record import Recorder
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.records import Run
from hnf_offline.run.remote import close_all
from hnf_offline.run.remote.skeleton import Skeleton

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
