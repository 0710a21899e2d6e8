"""The user's own model: imported from where the user stands, and only under the name the user gave."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from hnf_offline.errors import UsageError
from hnf_offline.run.model.factory import build_from_factory

CODE = """
from torch import nn

WIDTH = 3

def plain():
    return nn.Linear(2, 2)

def configured(config):
    return nn.Linear(config["width"], 1)

def text():
    return "no module"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package in the current folder."""
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "__init__.py").touch()
    (tmp_path / "my_models" / "small.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield "my_models.small"
    assert sys.path == path, "the current folder stays out of the path afterwards"
    for name in [name for name in sys.modules if name.split(".")[0] == "my_models"]:
        del sys.modules[name]


def test_a_function_of_the_current_folder_builds_the_model(package: str) -> None:
    assert isinstance(build_from_factory(f"{package}:plain", {"width": 5}), nn.Linear)


def test_a_function_with_an_argument_gets_the_configuration(package: str) -> None:
    module = build_from_factory(f"{package}:configured", {"width": 5})
    assert isinstance(module, nn.Linear) and module.in_features == 5


def test_a_class_is_a_factory_too() -> None:
    assert isinstance(build_from_factory("torch.nn:Identity", {}), nn.Identity)


@pytest.mark.parametrize("name", ["", "plain", "my_models.small", ":plain", "my_models.small:"])
def test_a_malformed_name_says_what_is_expected(package: str, name: str) -> None:
    with pytest.raises(UsageError, match=r"package\.module:function"):
        build_from_factory(name, {})


@pytest.mark.parametrize(
    "name", ["my_models.absent:plain", "no_such_package:plain", "my_models.small:absent"]
)
def test_a_name_that_is_not_there_says_which(package: str, name: str) -> None:
    with pytest.raises(UsageError) as error:
        build_from_factory(name, {})
    assert name in str(error.value) and error.value.remedy


@pytest.mark.parametrize("name", ["text", "WIDTH"])
def test_something_that_gives_no_module_is_refused(package: str, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        build_from_factory(f"{package}:{name}", {})
