"""What the suite found, each with the smallest input that showed it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hnf_offline.cli import main
from hnf_offline.errors import InputError, UsageError, UserError
from hnf_offline.run import formats, open_run
from hnf_offline.run.batches import describe
from hnf_offline.run.configuration import flatten
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.inert_pickle import decode
from hnf_offline.run.manifest import read_manifest
from hnf_offline.run.model.build import build_model
from hnf_offline.run.model.huggingface import without_code
from hnf_offline.run.records import ModelSource

from . import pickles, specimens
from .damage_pickles import laugh


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return specimens.write(specimens.specimen("recorded").files, tmp_path / "run")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return specimens.write(specimens.specimen("recorded").files, tmp_path / "outside")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "name",
    ["config.json", "RUN.json", "trainer_state.json", "batches.npz", "step-000030/model.safetensors.index.json",
     "step-000030/config.json", "train.log", "pytorch_model_fsdp_0/.metadata", "step-000030/.metadata"],
)  # fmt: skip
def test_a_pipe_is_not_waited_for(name: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).parent.mkdir(exist_ok=True)
    os.mkfifo(run / name)
    assert len(open_run(run).checkpoints) == 4


@pytest.mark.timeout(30)
def test_a_pipe_named_as_a_log_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run.toml").write_text('[log]\nfiles = ["pipe"]\n')
    with pytest.raises(InputError, match="neither a file nor a folder"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    "name", ["step-000024", "step-000024/model.safetensors", "step-000024/optimizer.safetensors"]
)
def test_a_link_out_of_the_run_is_told_and_not_followed(name: str, run: Path, outside: Path) -> None:
    if (run / name).is_dir():
        for file in (run / name).iterdir():
            file.unlink()
        (run / name).rmdir()
    else:
        (run / name).unlink()
    (run / name).symlink_to(outside / name)
    opened = open_run(run)
    assert [checkpoint.step for checkpoint in opened.checkpoints] == [6, 12, 18]
    (told,) = [one for one in opened.skipped if "link out of the run" in one.reason]
    assert told.path == run / name and "cp -rL" in told.remedy


@pytest.mark.parametrize(
    "name", ["config.json", "log.jsonl", "batches.safetensors", "random_states.safetensors", "RUN.json"]
)
def test_what_lies_beside_checkpoints_is_not_followed_out_of_the_run(
    name: str, run: Path, outside: Path
) -> None:
    (outside / "RUN.json").write_text('{"secret": "swordfish"}')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside / name)
    opened = open_run(run)
    found = {
        "log.jsonl": opened.log,
        "batches.safetensors": opened.batches,
        "random_states.safetensors": opened.random_states,
    }
    assert found.get(name) is None
    assert name != "config.json" or opened.model is None
    assert "swordfish" not in str(opened.configuration)


def test_a_run_toml_that_is_a_link_out_of_the_run_is_refused(run: Path, outside: Path) -> None:
    (outside / "run.toml").write_text("[secret]\nswordfish = 1\n")
    (run / "run.toml").symlink_to(outside / "run.toml")
    with pytest.raises(InputError, match="link out of the run") as caught:
        open_run(run)
    assert "swordfish" not in str(caught.value)


def test_links_inside_the_run_and_those_of_the_hugging_face_cache_are_followed(
    run: Path, tmp_path: Path
) -> None:
    (run / "latest").symlink_to("step-000024")
    assert len(open_run(run).checkpoints) == 4
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    revision = cache / "snapshots" / "0123"
    revision.mkdir(parents=True)
    (cache / "blobs" / "w").write_bytes((run / "step-000024" / "model.safetensors").read_bytes())
    (revision / "model.safetensors").symlink_to("../../blobs/w")
    (checkpoint,) = open_run(revision).checkpoints
    assert formats.load_weights(checkpoint)


def test_a_user_may_name_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(run)
    (tmp_path / "current.jsonl").symlink_to(run / "log.jsonl")
    assert len(open_run(tmp_path / "current").checkpoints) == 4
    assert open_run(tmp_path / "current.jsonl").log is not None


def test_links_that_lead_to_themselves_are_passed_over(run: Path) -> None:
    for name in ("loop", "step-30.safetensors", "step-000040"):
        (run / name).symlink_to(name)
    assert len(open_run(run).checkpoints) == 4


def test_a_factory_is_imported_only_where_the_user_names_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    (run / f"{pickles.MODULE}.py").write_text(
        "open('sings', 'w').close()\nfrom torch.nn import Identity as build\n"
    )
    (run / "run.toml").write_text(f'[model]\nfactory = "{pickles.MODULE}:build"\n')
    source = open_run(run).model
    assert source is not None and source.untrusted
    with pytest.raises(UsageError, match=f"--model {pickles.MODULE}:build"):
        build_model(source, device=torch.device("cpu"), dtype=torch.float32)
    assert not (run / "sings").exists()
    named = open_run(run, run / "run.toml").model
    assert named is not None and not named.untrusted
    assert isinstance(build_model(named, device=torch.device("cpu"), dtype=torch.float32), torch.nn.Identity)


def test_a_run_that_names_a_factory_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.toml").write_text('[model]\nfactory = "os:system"\n')
    code = main(["profile", str(run), "--tier", "forward", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and "--model os:system" in said.err


@pytest.mark.parametrize(
    "changed",
    [{"vocab_size": 2**30}, {"n_embd": 2**20, "n_head": 2}, {"n_layer": 10**6}, {"mlp_width": 2**30}],
)
def test_a_model_larger_than_its_checkpoints_takes_no_memory(changed: dict[str, Any]) -> None:
    config = {
        "model_type": "gpt",
        "vocab_size": 8,
        "block_size": 4,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 8,
        **changed,
    }
    began = time.process_time()
    with pytest.raises(InputError, match=r"model configuration|parameters"):
        build_model(
            ModelSource("gpt", config),
            device=torch.device("cpu"),
            dtype=torch.float32,
            most_parameters=10_000_000,
        )
    assert time.process_time() - began < 5


def test_nothing_that_names_code_reaches_transformers() -> None:
    config = {
        "hidden_size": 8,
        "auto_map": {"AutoModel": "a/b--c.D"},
        "text_config": {"_attn_implementation": "a/b", "x": 1},
    }
    assert without_code(config) == {"hidden_size": 8, "text_config": {"x": 1}}


@pytest.mark.timeout(30)
def test_settings_that_hold_themselves_are_walked_once() -> None:
    itself: dict[str, Any] = {"x": 1}
    itself |= {str(number): itself for number in range(1000)}
    cycle: list[Any] = []
    cycle.append(cycle)
    found = dict(
        flatten({"a": laugh(), "b": itself, "c": cycle, "d": [1, [2]], "e": 10**5000, "f": [10**5000]})
    )
    assert found["d"] == [1, [2]]
    assert not {"a", "c", "e", "f"} & set(found)


@pytest.mark.parametrize(
    "name", ["a key of a billion laughs", "a key that is 100,000 deep", "bytearray(3 * 10**9)"]
)
def test_a_pickle_that_only_its_hash_or_its_memory_would_stop(name: str, tmp_path: Path) -> None:
    bomb = dict(pickles.bombs())[name]
    file = tmp_path / "step-1.pt"
    archive = specimens.torch_bytes({"a": torch.zeros(2)})
    file.write_bytes(
        pickles.rewritten(archive, lambda member, data: bomb if member.endswith("data.pkl") else data)
    )
    with pytest.raises(InputError):
        torch_file.load(file)


def test_ordinary_tuples_are_no_bomb(tmp_path: Path) -> None:
    import pickle

    value = {("a", (1, (2, (3,)))): tuple(range(20_000)), "state": (3, tuple(range(625)), None)}
    assert decode(pickle.dumps(value, protocol=4), tmp_path / "x") == value


@pytest.mark.parametrize(
    "shape", ["(1000000000000, 2)", "(1, 1000000000000)", "(" * 9000, "(4294967296, 4294967296, 4294967296)", "(-1, 2)"]
)  # fmt: skip
def test_an_array_that_claims_more_than_is_there(shape: str, tmp_path: Path) -> None:
    from .hand_arrays import npy_bytes

    specimens.write(
        {"a.npz": specimens.archive(tokens=npy_bytes(shape)), "starts.npy": npy_bytes(shape)}, tmp_path
    )
    with pytest.raises(InputError) as caught:
        describe(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)
    (tmp_path / "train.bin").write_bytes(bytes(100))
    (tmp_path / "run.toml").write_text('[batches]\nfile = "train.bin"\nlength = 4\nstarts = "starts.npy"\n')
    with pytest.raises(InputError):
        describe(tmp_path / "train.bin", read_manifest(tmp_path))


def test_steps_of_a_trillion_rows_are_not_listed(tmp_path: Path) -> None:
    from .hand_arrays import npy_bytes

    file = tmp_path / "batches.npz"
    file.write_bytes(specimens.archive(tokens=npy_bytes("(4, 2)"), steps=npy_bytes("(1000000000000,)")))
    with pytest.raises(InputError, match="larger than what is stored"):
        describe(file)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = 1\n" * 2_000_000, "[resume]\nsteps = " + '"' + "y" * 50_000 + '"']
)
def test_a_run_toml_without_end_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path)
    assert len(str(caught.value)) < 2_500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("glob", ["[" * 100, "**a", ""])
def test_a_glob_that_is_none(glob: str, run: Path) -> None:
    (run / "run.toml").write_text(f'[checkpoints]\nglob = "{glob}"\n')
    try:
        open_run(run)
    except UserError as error:
        assert "glob" in str(error)


def test_a_type_that_torch_only_stores_is_named(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [4, 32], "data_offsets": [0, 64]}}
    spelled = json.dumps(header).encode()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "model.safetensors").write_bytes(
        len(spelled).to_bytes(8, "little") + spelled + bytes(64)
    )
    (checkpoint,) = open_run(tmp_path).checkpoints
    with pytest.raises(InputError, match="does not compute"):
        formats.load_weights(checkpoint)


def test_what_is_skipped_has_one_line_each_whatever_it_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for number, name in enumerate(("new\nline", "\x1b[2J", os.fsdecode(b"\xff\xfe"), "n" * 200)):
        below = folder / f"{name}-step-{number}"
        below.mkdir(parents=True)
        (below / "model.safetensors").write_bytes(b"no")
    (folder / "log.jsonl").write_bytes(specimens.jsonl())
    code = main(["report", str(folder), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 0
    lines = said.err.splitlines()
    assert sum(line.startswith("skipped ") for line in lines) == 4
    assert not any(line.startswith("line-step") for line in lines)
    assert "\x1b" not in said.err + said.out


def test_json_on_stdout_can_be_printed_whatever_a_file_is_called(tmp_path: Path) -> None:
    from .examine import command_line

    folder = tmp_path / os.fsdecode(b"run-\xff\xfe")
    folder.mkdir()
    (folder / "log.jsonl").write_bytes(specimens.jsonl())
    outcome, said, _ = command_line(["report", str(folder), "--json", "--out", str(tmp_path / "out")])
    assert outcome.problems == []
    assert json.loads(said)["run"]["name"] == folder.name


def test_columns_of_half_a_character_are_read(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(f'{{"step": {n}, "loss": 1.5, "\\ud800": 1}}\n' for n in range(1, 5))
    )
    log = open_run(tmp_path / "log.jsonl").log
    assert log is not None and log.rows.height == 4


@pytest.mark.timeout(60)
def test_a_thousand_checkpoints_and_ten_thousand_files_take_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    for number in range(2, 1000):
        specimens.write(
            {f"step-{number}/model.safetensors": data, **{f"step-{number}/{n}.txt": b"" for n in range(9)}},
            tmp_path,
        )
    began = time.process_time()
    found, skipped = formats.find(tmp_path)
    assert (len(found), skipped) == (999, [])
    assert time.process_time() - began < 10


def test_the_messages_of_the_suite_say_how_to_see_a_case_again() -> None:
    from . import crew

    record = {
        "number": 4711,
        "specimen": "dcp",
        "kind": "bytes",
        "what": "x",
        "through": "library",
        "problems": ["boom"],
    }
    told = crew.told([record])
    assert "boom" in told and "tests.hostile.worker /tmp/room 4711 4712 1" in told
    assert SimpleNamespace(**record).problems == ["boom"]


@pytest.mark.timeout(30)
def test_batches_that_are_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "batches.npz")
    (tmp_path / "run.toml").write_text('[batches]\nfile = "batches.npz"\n')
    (tmp_path / "log.jsonl").write_bytes(specimens.jsonl())
    with pytest.raises(InputError, match="is not a file"):
        open_run(tmp_path)


def test_a_name_that_no_file_can_have_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(specimens.jsonl())
    (tmp_path / "run.toml").write_text(f'[batches]\nfile = "{"y" * 5000}"\n')
    with pytest.raises(InputError, match="not there") as caught:
        open_run(tmp_path)
    assert len(str(caught.value)) < 2_500
    assert caught.value.path == tmp_path / "run.toml"


def test_json_that_only_python_reads_is_refused_with_the_array(tmp_path: Path) -> None:
    from hnf_offline.run.batches import load_rows

    header = b'{"input_ids": {"shape": 1e999, "dtype": "I64", "shape": [4, 2], "data_offsets": [0, 64]}}'
    (tmp_path / "batches.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(InputError):
        load_rows(describe(tmp_path / "batches.safetensors"), [0])


def test_losses_at_the_edge_of_what_a_number_holds_are_compared_and_drawn(tmp_path: Path) -> None:
    from .examine import command_line

    edge = ("1e308", "-1e308", "inf", "-inf", "nan", "0", "5e-324", "1e999")
    rows = "".join(f"{step},{edge[step % len(edge)]}\n" for step in range(1, 161))
    (tmp_path / "log.csv").write_text("step,loss\n" + rows)
    log = str(tmp_path / "log.csv")
    for arguments in (["report", log], ["diff", log, log]):
        outcome, _, told = command_line([*arguments, "--out", str(tmp_path / arguments[0])])
        assert outcome.problems == [], told
        assert (tmp_path / arguments[0] / "index.html").is_file()
