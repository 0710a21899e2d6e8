"""Files of torch.save: told by their pickle alone, and held to what they claim before torch reads them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats import find, load_weights, torch_file
from hnf_offline.run.formats.plain_settings import plain_settings
from hnf_offline.run.formats.torch_outline import is_tensor, read_outline


def saved(path: Path, content: Any, *, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_an_outline_tells_everything_but_the_numbers(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    content = {
        "model": torch.nn.Linear(3, 2).state_dict(), "t": tensor.T, "p": torch.nn.Parameter(tensor), "step": 7,
        "half": tensor.bfloat16(), "size": tensor.shape, "config": {"lr": 0.5, "betas": (0.9, 0.99), "on": True},
        "big": 2**70, "none": None, "words": ["a", "ß"], "bytes": b"ab", "set": {1, 2},
    }  # fmt: skip
    outline = read_outline(saved(tmp_path / "x.pt", content, zipped=zipped))
    assert outline.foreign == ()
    assert outline.content["step"] == 7 and outline.content["big"] == 2**70
    assert outline.content["config"] == content["config"] and outline.content["words"] == ["a", "ß"]
    assert set(outline.content["model"]) == {"weight", "bias"} and outline.content["size"] == (2, 3)
    assert all(is_tensor(outline.content[name]) for name in ("t", "p", "half"))
    assert not any(is_tensor(outline.content[name]) for name in ("step", "words", "none"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_truncation_of_a_torch_file_is_told(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "step_5.pt", {"w.a": torch.ones(50), "w.b": torch.zeros(9)}, zipped=zipped)
    whole = path.read_bytes()
    for length in (*range(0, 60), len(whole) // 3, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        checkpoints, skipped = find(tmp_path)
        for checkpoint in checkpoints:
            with pytest.raises(InputError):
                load_weights(checkpoint)
        assert checkpoints or len(skipped) == 1


def legacy(path: Path, pickled: bytes, rest: bytes = b"") -> Path:
    parts = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
    )
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts) + pickled + rest)
    return path


def claiming(elements: int) -> bytes:
    # {"w.a": tensor of one element in a storage that claims many}
    from pickle import BINPERSID, EMPTY_DICT, GLOBAL, MARK, PROTO, REDUCE, SETITEM, STOP, TUPLE

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    identity = MARK + text("storage") + GLOBAL + b"torch\nFloatStorage\n" + text("0") + text("cpu")
    identity += number(elements) + b"N" + TUPLE + BINPERSID
    arguments = MARK + identity + number(0) + b"K\x01\x85" + b"K\x01\x85" + b"\x89" + b"}" + TUPLE
    tensor = GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + arguments + REDUCE
    return PROTO + b"\x02" + EMPTY_DICT + text("w.a") + tensor + SETITEM + STOP


@pytest.mark.parametrize("elements", [10**6, 10**12, 2**62, 2**70])
def test_a_legacy_file_that_claims_more_than_it_has(tmp_path: Path, elements: int) -> None:
    path = legacy(tmp_path / "step_5.pt", claiming(elements), pickle.dumps(["0"], protocol=2) + b"\0" * 12)
    with pytest.raises(InputError, match=r"truncated|damaged"):
        torch_file.load(path)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and len(skipped) == 1


def test_a_legacy_file_by_hand_is_read(tmp_path: Path) -> None:
    data = pickle.dumps(["0"], protocol=2) + struct.pack("<qf", 1, 2.5)
    path = legacy(tmp_path / "step_5.pt", claiming(1), data)
    assert load_weights(find(tmp_path)[0][0])["w.a"].tolist() == [2.5]
    assert path.stat().st_size < 600


def test_the_oldest_format_is_refused(tmp_path: Path) -> None:
    # A tar of pickles; its first name can be chosen so that it looks like a pickle.
    for first in ("storages", "\x80"):
        path = tmp_path / "step_5.pt"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin1") as archive:
            for name in (first, "tensors", "pickle"):
                info = tarfile.TarInfo(name)
                info.size = 4
                archive.addfile(info, io.BytesIO(b"\x80\x02K\x01"))
        with pytest.raises(InputError, match="not a torch file"):
            torch_file.load(path)


def test_a_zip_that_unfolds_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "step_5.pt", {"w.a": torch.zeros(1_000_000)}, zipped=True)
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    (tmp_path / "new").replace(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="compressed"):
        torch_file.load(path)


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model_5.pt"))
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "TorchScript" in skipped[0].reason


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "step_5.pt", {"w.a": torch.zeros(1).expand(10**9)}, zipped=True)
    with pytest.raises(InputError, match="repeats"):
        load_weights(find(tmp_path)[0][0])


def test_many_views_of_one_storage_are_refused_where_they_are_too_many(tmp_path: Path) -> None:
    base = torch.zeros(10_000)
    saved(tmp_path / "step_5.pt", {f"w.{i}": base.view(100, 100) for i in range(3)}, zipped=True)
    assert len(load_weights(find(tmp_path)[0][0])) == 3
    saved(tmp_path / "step_5.pt", {f"w.{i}": base.view(100, 100) for i in range(1000)}, zipped=True)
    with pytest.raises(InputError, match="many times larger"):
        load_weights(find(tmp_path)[0][0])


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_that_are_not_all_there(tmp_path: Path, kind: str) -> None:
    whole = torch.ones(3, 3)
    tensor = {
        "sparse": whole.to_sparse,
        "meta": lambda: whole.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8),
    }[kind]()
    saved(tmp_path / "step_5.pt", {"w.a": tensor}, zipped=True)
    with pytest.raises(InputError) as caught:
        load_weights(find(tmp_path)[0][0])
    assert caught.value.remedy


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["key", "value", "config", "optimizer"])
def test_code_is_never_run_and_named(tmp_path: Path, make: Any, zipped: bool, place: str) -> None:
    canary = tmp_path / "canary"
    module = make.module()
    content: dict[Any, Any] = {
        "model": dict(module.state_dict()),
        "optimizer": {"state": {}, "param_groups": []},
    }
    trap = Trap(canary)
    if place == "key":
        content[(trap,)] = 1
    elif place == "value":
        content["model"]["x"] = trap
    elif place == "config":
        content["config"] = {"a": [trap]}
    else:
        content["optimizer"]["param_groups"].append({"params": [], "lr": trap})
    saved(tmp_path / "step_5.pt", content, zipped=zipped)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "code from the file" in skipped[0].reason and not canary.exists()
    with pytest.raises(UnsafeFileError):
        torch_file.load(tmp_path / "step_5.pt")
    assert not canary.exists()


def test_settings_are_copied_within_bounds() -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    many: Any = [1]
    for _ in range(60):
        many = [many] * 9
    deep: Any = {}
    for _ in range(100_000):
        deep = {"d": deep}
    content = {
        "loop": loop,
        "many": many,
        "deep": deep,
        "long": "x" * 10_000,
        "wide": dict.fromkeys(range(5000), 1),
    }
    copied = plain_settings({"first": 1.5, **content})
    assert copied["first"] == 1.5 and copied["loop"]["a"] == 1 and len(copied["long"]) == 500
    assert len(json.dumps(copied)) < 100_000
    del deep
    assert plain_settings([1]) == {}
