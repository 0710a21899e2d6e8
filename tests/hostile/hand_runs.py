"""Settings that name code, models of the size of the world, links, pipes and names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save

from . import pickles, specimens
from .by_hand import run_with, special, weights
from .cases import HTML

_SETTINGS = '[model]\nkind = "gpt"\n[model.settings]\nmodel_type = "gpt"\n'


def _manifest(name: str, text: str, **files: bytes) -> None:
    @special(f"run.toml: {name}")
    def make(marker: str) -> Any:
        module = f"open({marker!r}, 'w').close()\nfrom torch.nn import Identity as build\n"
        return {
            **specimens.specimen("recorded").files,
            "run.toml": text.encode(),
            f"{pickles.MODULE}.py": module.encode(),
            **files,
        }


_manifest("a factory in the run", f'[model]\nfactory = "{pickles.MODULE}:build"\n')
_manifest("os.system as a factory", '[model]\nfactory = "os:system"\n')
_manifest("subprocess as a factory", '[model]\nfactory = "subprocess:Popen"\n')
_manifest("a glob of everything", '[checkpoints]\nglob = "**/*/**/*/**"\n')
_manifest("a glob that leads out by a link", '[checkpoints]\nglob = "*/*"\n')
_manifest("a glob of brackets", f'[checkpoints]\nglob = "{"[" * 5000}"\n')
_manifest("a glob of stars", f'[checkpoints]\nglob = "{"*a" * 2000}"\n')
_manifest("an empty name", '[batches]\nfile = ""\n')
_manifest("dots", '[log]\nfiles = ["..", "."]\n')
_manifest("a million steps", "[batches]\nsteps = [" + "1," * 1_000_000 + "]\n")
_manifest("100,000 deep", "[model.settings]\na = " + "[" * 100_000 + "\n")
_manifest("keys 10,000 deep", "[model.settings" + ".a" * 10_000 + "]\nb = 1\n")
_manifest(
    "a model of the world",
    _SETTINGS + "vocab_size = 1000000000\nblock_size = 4\nn_layer = 1\nn_head = 2\nn_embd = 1000000\n",
)
_manifest(
    "a model of a million layers",
    _SETTINGS + "vocab_size = 8\nblock_size = 4\nn_layer = 1000000\nn_head = 2\nn_embd = 8\n",
)
_manifest("a resume list of negative steps", "[resume]\nsteps = [-5, 99999999999999999999]\n")


@special("run.toml: a pipe, a folder and a link for what it names")
def _manifest_pipes(marker: str) -> Any:
    text = b'[log]\nfiles = ["pipe"]\n[batches]\nfile = "pipe"\n[model]\nconfig = "pipe"\nkind = "hf"\n'

    def act(folder: Path, outside: Path) -> None:
        os.mkfifo(folder / "pipe")

    return {**run_with(), "run.toml": text}, [act], "."


@special("10,000 files in one folder")
def _many_files(marker: str) -> Any:
    def act(folder: Path, outside: Path) -> None:
        for number in range(10_000):
            (folder / f"f{number}.txt").touch()

    return specimens.specimen("recorded").files, [act], "."


@special("2,000 checkpoints of a byte")
def _many_checkpoints(marker: str) -> Any:
    def act(folder: Path, outside: Path) -> None:
        for number in range(2_000):
            (folder / f"checkpoint-{number}").mkdir()
            (folder / f"checkpoint-{number}" / "model.safetensors").write_bytes(b"x")

    return {"log.jsonl": specimens.jsonl()}, [act], "."


@special("500 checkpoints and a link to each")
def _linked_checkpoints(marker: str) -> Any:
    one = weights()

    def act(folder: Path, outside: Path) -> None:
        for number in range(500):
            (folder / f"step-{number}").mkdir()
            (folder / f"step-{number}" / "model.safetensors").write_bytes(one)
            (folder / f"latest-{number}").symlink_to(f"step-{number}")

    return {}, [act], "."


@special("links that lead up, round and to each other")
def _link_maze(marker: str) -> Any:
    def act(folder: Path, outside: Path) -> None:
        for name, target in {
            "a": "b",
            "b": "a",
            "up": "..",
            "self": "self",
            "here": ".",
            "root": "/",
            "proc": "/proc/self/root",
            "logs": "/var/log",
            "checkpoints": "/",
            "wandb": str(outside),
            "mlruns": str(outside),
        }.items():
            (folder / name).symlink_to(target)

    return run_with(), [act], "."


@special("pipes with every name that is looked for")
def _pipes(marker: str) -> Any:
    wanted = (
        "config.json",
        "RUN.json",
        "run.json",
        "run.toml",
        "trainer_state.json",
        "batches.npz",
        "tokens.safetensors",
        "random_states.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "optimizer.pt",
        "optimizer.bin",
        "optimizer.safetensors",
        ".metadata",
        "__0_0.distcp",
        "metadata.json",
        "common.pt",
        "adapter_model.safetensors",
        "adapter_config.json",
        "ckpt.pt",
        "a.ckpt",
        "model.pt",
        "optim.pt",
        "train.pt",
        "config.yaml",
        "hparams.yaml",
        "latest",
        "latest_checkpointed_iteration.txt",
        "mp_rank_00_model_states.pt",
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "log.jsonl",
        "metrics.csv",
        "train.log",
        "output.log",
        "events.out.tfevents.1.host.1.0",
        "run-x.wandb",
        "meta.yaml",
        "args.json",
        "config.yml",
        "params.json",
        "main.log",
    )

    def act(folder: Path, outside: Path) -> None:
        for below in (
            ".",
            "step-20",
            "checkpoint-30",
            "global_step40",
            "iter_0000050",
            "step60-unsharded",
            "mlruns/0/x/metrics",
            "wandb/run-1/files",
            "lightning_logs/version_0",
            "pytorch_model_fsdp_0",
            "step-70/pytorch_model_fsdp_0",
            "iter_0000050/mp_rank_00",
            "logs",
            "data",
        ):
            (folder / below).mkdir(parents=True, exist_ok=True)
            for name in wanted:
                if not (folder / below / name).exists():
                    os.mkfifo(folder / below / name)

    return run_with(), [act], "."


@special("names that a terminal, a page or a shell would obey")
def _names(marker: str) -> Any:
    evil = (
        "\x1b[2J",
        "new\nline",
        "<script>alert(1)</script>".replace("/", "\u2215"),
        "\udcff\udcfe",
        "\u202e",
        "`id`",
        "-rf",
        "x" * 200,
    )
    state = specimens.trained()[0].state_dict()
    renamed = {
        f"{name}{evil[place % len(evil)]}".encode("utf-8", "replace").decode(): value
        for place, (name, value) in enumerate(state.items())
    }
    one = save(renamed)

    def act(folder: Path, outside: Path) -> None:
        for number, name in enumerate(evil):
            below = folder / os.fsdecode(os.fsencode(f"step-{number + 1}0"))
            below.mkdir()
            (below / "model.safetensors").write_bytes(one)
            broken = folder / f"checkpoint-{number}" / name
            broken.mkdir(parents=True)
            (folder / f"{name}-step-{number}.safetensors").write_bytes(b"no")
            (folder / f"{name}.log").write_bytes(b"step=1 loss=2\n")

    return {}, [act], "."


@special("columns that a terminal, a page or a shell would obey")
def _columns(marker: str) -> Any:
    evil = {
        "\x1b[2J\x07": 1.0,
        HTML: 2.0,
        "\ud800": 3.0,
        "a\nb": 4.0,
        "\u202eabc": 5.0,
        "": 6.0,
        "x" * 5000: 7.0,
        "__proto__": 1.0,
    }
    lines = [json.dumps({**row, **evil}) for row in specimens.rows()]
    return {"log.jsonl": "\n".join(lines).encode()}, [], "log.jsonl"


@special("settings that a terminal, a page or a shell would obey")
def _settings(marker: str) -> Any:
    files = dict(specimens.specimen("recorded").files)
    config = json.loads(files["config.json"])
    config["training"] |= {
        HTML: HTML,
        "\x1b[2J": "\x1b[31m",
        "\ud800": "\udfff",
        "a": [HTML],
        "javascript:alert(1)": "javascript:alert(1)",
    }
    return {
        **files,
        "config.json": json.dumps(config).encode(),
        "RUN.json": json.dumps({HTML: HTML}).encode(),
    }


def _hostile_llama(name: str, **changed: Any) -> None:
    @special(f"config.json: {name}")
    def make(marker: str) -> Any:
        config = {
            "model_type": "llama",
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "vocab_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 2,
            **changed,
        }
        return {
            "step-20/model.safetensors": weights(),
            "step-20/config.json": json.dumps(config).encode(),
            "batches.npz": specimens.npz(),
            "log.jsonl": specimens.jsonl(),
        }


_hostile_llama("a vocabulary of 10^12", vocab_size=10**12)
_hostile_llama("a width of 10^6", hidden_size=10**6, intermediate_size=10**6)
_hostile_llama("10^6 layers", num_hidden_layers=10**6)
_hostile_llama(
    "code of the run",
    auto_map={"AutoModelForCausalLM": f"{pickles.MODULE}.Model"},
    architectures=["ModelForCausalLM"],
)
_hostile_llama("code of a repository", auto_map={"AutoModelForCausalLM": "evil/repo--model.Model"})
_hostile_llama(
    "an attention kernel to be fetched", _attn_implementation="evil/kernel", attn_implementation="evil/kernel"
)
_hostile_llama("a type that is a path", model_type="../../etc/passwd")
_hostile_llama("a quantization", quantization_config={"quant_method": "gptq", "bits": 4, "dataset": "c4"})
_hostile_llama(
    "text everywhere", hidden_size="8", num_hidden_layers=[1], rope_scaling={"type": HTML, "factor": "x"}
)
