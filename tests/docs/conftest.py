"""A desk to follow the how-to pages at."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.docs.pages import ROOT


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to train and analyse in, with the sample runs in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HNF_DEVICE", "cpu")
    monkeypatch.setenv("HNF_TIER", "stability")
    monkeypatch.setenv("HNF_ACCURACY", "screen")
    (tmp_path / "sample_runs").symlink_to(ROOT / "sample_runs")
    torch.manual_seed(0)
    yield tmp_path
    sys.modules.pop("my_model", None)


@pytest.fixture
def hnf(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Type a line of a page."""

    def typed(line: str, code: int = 0) -> str:
        from hnf_offline.cli import main

        words = shlex.split(line)
        assert words[0] == "hnf"
        capsys.readouterr()
        assert main(words[1:]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return typed
