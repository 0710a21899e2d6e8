"""The canaries sing when they are unpickled, and nothing of the project makes one sing."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hnf_offline.errors import InputError
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.inert_pickle import decode

from . import pickles, specimens
from .worker import REPOSITORY

#: Canaries that make the file, or set the variable, where they are unpickled; what the others do is not to be seen.
SINGING = (
    "REDUCE posix.system",
    "REDUCE os.system",
    "REDUCE os.putenv",
    "STACK_GLOBAL os.system",
    "STACK_GLOBAL dotted",
    "INST os.system",
    "OBJ os.system",
    "BUILD __setstate__",
    "getattr chain",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "runpy",
    "pathlib write",
    "shutil.copy",
    "timeit",
)
ROUTES = tuple(pickles.canaries("x"))

_UNPICKLE = """\
import os, pickle, sys, time
from tests.hostile import pickles, watch
data = pickles.before(pickles.canaries(sys.argv[2])[sys.argv[1]], pickle.dumps([1, 2], protocol=4))
assert pickle.loads(data) == [1, 2]
deadline = time.monotonic() + 20
while not (os.path.exists(sys.argv[2]) or watch._sings()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""


@pytest.mark.parametrize("route", SINGING)
def test_a_canary_sings_where_it_is_unpickled(route: str, tmp_path: Path) -> None:
    marker = tmp_path / "canary"
    done = subprocess.run([sys.executable, "-c", _UNPICKLE, route, str(marker)], cwd=REPOSITORY, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("route", ROUTES)
def test_no_canary_sings_in_a_description_or_a_torch_file(route: str, tmp_path: Path) -> None:
    marker = tmp_path / "canary"
    canary = pickles.canaries(str(marker))[route]
    zipped, legacy = (specimens.torch_bytes({"a": torch.zeros(2)}, legacy=old) for old in (False, True))
    for number, data in enumerate((
        pickles.in_archive(zipped, canary),
        pickles.before(canary, legacy),
        pickles.alone(canary),
    )):
        file = tmp_path / f"{number}.pt"
        file.write_bytes(data)
        with pytest.raises(InputError) as caught:
            torch_file.load(file)
        assert caught.value.path == file and "\n" not in str(caught.value)
    with pytest.raises(InputError):
        decode(pickles.before(canary, pickle.dumps({"a": 1}, protocol=4)), tmp_path / ".metadata")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "bomb"), list(pickles.bombs()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bomb_is_refused_or_stays_small(name: str, bomb: bytes, tmp_path: Path) -> None:
    archive = specimens.torch_bytes({"a": torch.zeros(2)})
    file = tmp_path / "bomb.pt"
    file.write_bytes(
        pickles.rewritten(archive, lambda member, data: bomb if member.endswith("data.pkl") else data)
    )
    for read in (lambda: torch_file.tensors_of(torch_file.load(file), file), lambda: decode(bomb, file)):
        try:
            value = read()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(value, list | tuple | int | bytes)
