"""A pickle decodes to inert records or is refused; nothing in it runs."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats import inert_pickle
from hnf_offline.run.formats.inert_pickle import ITEM_SIZES, decode

FILE = Path(".metadata")


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call

    def __call__(self) -> None:
        """Lets a call stand where a function is pickled."""


def hostile(canary: Path) -> dict[str, Any]:
    line = f"open({str(canary)!r}, 'w')"
    return {
        "system": Calls(os.system, f"touch {canary}"),
        "eval": Calls(eval, line),
        "nested getattr": Calls(Calls(getattr, Calls(__import__, "os"), "system"), f"touch {canary}"),
        "open": Calls(builtins.open, str(canary), "w"),
        "touch": Calls(Path.touch, canary),
        "torch.load": Calls(torch.load, str(canary)),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("trap", hostile(Path("x")))
def test_code_is_refused_in_one_line_and_never_run(tmp_path: Path, trap: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    content = hostile(canary)[trap]
    for whole in (content, {"a": [1, (content,)]}, Metadata({}, planner_data=content, storage_data={})):
        with pytest.raises(UnsafeFileError, match="nothing of it was run") as caught:
            decode(pickle.dumps(whole, protocol=protocol), FILE)
        assert caught.value.path == FILE and caught.value.remedy and "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    "asked",
    [
        b"cos\nsystem\n",
        b"ctorch\nSize.__class__\n",
        b"ctorch.distributed.checkpoint.metadata\nMetadata.__init__.__globals__\n",
        b"ctorch\nload\n",
        b"cbuiltins\ngetattr\n",
        b"cpathlib\nPath.write_text\n",
        b"(S'touch x'\nios\nsystem\n",  # INST
        b"Px\n",  # persistent object
        b"\x82\x01",  # extension registry
        b"\x93",  # STACK_GLOBAL of nothing
        b"K\x01r\xff\xff\xff\xff",  # a memo of four billion places
        b"\x96\xff\xff\xff\xff\xff\x00\x00\x00",  # a bytearray of a terabyte
        b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00",  # bytes of a terabyte
    ],
)
def test_hand_made_pickles_are_refused(asked: bytes) -> None:
    with pytest.raises(InputError):
        decode(b"\x80\x04" + asked + b".", FILE)


def test_a_pickle_cannot_change_the_records() -> None:
    before = dict(vars(inert_pickle.Metadata))
    for state in ((None, {"__setstate__": "x"}), {"__new__": 1}, (None, {"arguments": 1})):
        body = pickle.dumps(state, protocol=4)[2:-1]
        module = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
        with pytest.raises(InputError):
            decode(b"\x80\x04" + module + body + b"b.", FILE)
    assert dict(vars(inert_pickle.Metadata)) == before


def test_what_describes_a_checkpoint_is_kept_and_nothing_is_built() -> None:
    saved = Metadata({}, planner_data=OrderedDict(a=("b", 1)), storage_data={MetadataIndex("x", [1, 2]): 3})
    record = decode(pickle.dumps((saved, PurePosixPath("/a"), torch.Size([3]))), FILE)
    described, path, size = record
    assert type(described) is inert_pickle.Metadata and size == (3,) and type(size) is tuple
    assert type(path) is inert_pickle.Record and path.arguments == ("/", "a")
    assert described.state["planner_data"] == {"a": ("b", 1)}
    (key,) = described.state["storage_data"]
    assert type(key) is inert_pickle.KeyRecord and key.state["offset"] == (1, 2)


@pytest.mark.parametrize("name", ITEM_SIZES)
def test_every_type_of_elements_is_named_with_its_size(name: str) -> None:
    dtype = getattr(torch, name)
    assert decode(pickle.dumps(dtype), FILE) == name
    assert torch.empty(0, dtype=dtype).element_size() == ITEM_SIZES[name]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_crash_the_decoder(data: st.DataObject) -> None:
    whole = pickle.dumps(Metadata({}, planner_data={"a": ("b", 1)}, storage_data={MetadataIndex("x"): 3}))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(content), FILE)
    except InputError as error:
        assert error.reason and error.remedy


def test_the_opcodes_on_the_list_exist() -> None:
    assert {opcode.name for opcode in pickletools.opcodes} >= inert_pickle._OPCODES
