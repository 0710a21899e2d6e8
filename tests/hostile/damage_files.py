"""Links, pipes, sockets and folders where files were; names that are commands, markup or no text at all."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from .cases import NAMES, Case, Rng, pick


def _remove(path: Path) -> None:

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def damage_files(rng: Rng, one: Case, path: str, marker: str) -> str:
    """Links, pipes, sockets and folders where files were; names that are commands, markup or no text at all."""
    how = pick(
        rng,
        (
            "dangling",
            "loop",
            "passwd",
            "outside",
            "outside folder",
            "up",
            "fifo",
            "socket",
            "folder",
            "rename",
            "remove",
            "many",
            "device",
            "rename folder",
            "beside",
            "zero",
            "pipe beside",
            "link beside",
            "deep",
            "unreadable",
        ),
    )
    name = pick(rng, NAMES)
    top = path.split("/", maxsplit=1)[0]
    if path == one.target and how in {"passwd", "outside", "outside folder", "up"}:
        how = "loop"  # a user who names a link means what it leads to

    def act(folder: Path, outside: Path) -> None:
        file = folder / path
        if how in {
            "dangling",
            "loop",
            "passwd",
            "outside",
            "outside folder",
            "up",
            "fifo",
            "socket",
            "folder",
            "device",
        }:
            _remove(folder / top if how == "outside folder" and "/" in path else file)
        try:
            _change(how, file, folder, outside, name)
        except OSError:
            return

    one.acts.append(act)
    return f"files: {how} {name!r}" if "name" in how or how in {"many", "beside"} else f"files: {how}"


def _change(how: str, file: Path, folder: Path, outside: Path, name: str) -> None:
    match how:
        case "dangling":
            file.symlink_to("nowhere/at/all")
        case "loop":
            file.symlink_to(file.name)
        case "passwd":
            file.symlink_to("/etc/passwd")
        case "outside":
            twin = outside / file.relative_to(folder)
            file.symlink_to(twin if twin.exists() else outside / "secret.txt")
        case "outside folder":
            top = folder / file.relative_to(folder).parts[0]
            top.symlink_to(outside / top.name if (outside / top.name).exists() else outside)
        case "up":
            file.symlink_to("..")
        case "fifo":
            os.mkfifo(file)
        case "socket":
            here = Path.cwd()
            with socket.socket(socket.AF_UNIX) as server:
                os.chdir(file.parent)  # a socket's path may have 107 bytes
                try:
                    server.bind(file.name[:90])
                finally:
                    os.chdir(here)
        case "folder":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
        case "remove":
            _remove(file)
        case "zero":
            os.truncate(file, 50_000_000)
        case "rename":
            file.rename(file.with_name(_fitting(name + file.suffix)))
        case "rename folder":
            top = folder / file.relative_to(folder).parts[0]
            top.rename(top.with_name(_fitting(name if top.is_dir() else name + top.suffix)))
        case "beside":
            file.with_name(_fitting(name + file.suffix)).write_bytes(file.read_bytes())
        case "many":
            for number in range(1500):
                (folder / f"{number}{_fitting(name)[:60]}").write_bytes(b"")
        case "pipe beside":
            for other in (
                "config.json",
                "RUN.json",
                "trainer_state.json",
                "run.toml",
                "batches.npz",
                "log.jsonl",
                "model.safetensors",
                "train.log",
                "ckpt.pt",
                "step-30.pt",
                "latest",
                ".metadata",
                "a.ckpt",
                "adapter_config.json",
                "config.yaml",
                "metrics.csv",
                "events.out.tfevents.1.a",
                "run-a.wandb",
                "common.pt",
            ):
                for where in {folder, file.parent}:
                    if not (where / other).exists():
                        os.mkfifo(where / other)
        case "link beside":
            for other in (
                "config.json",
                "RUN.json",
                "trainer_state.json",
                "batches.npz",
                "log.jsonl",
                "random_states.safetensors",
                "step-30.safetensors",
                "step-40",
                "adapter_config.json",
                "metrics.csv",
                "logs",
                "batches",
                "wandb",
                "lightning_logs",
                "mlruns",
                "run.toml",
            ):
                for where in {folder, file.parent}:
                    if not (where / other).exists():
                        (where / other).symlink_to(outside / other)
        case "unreadable":
            file.chmod(0)
        case _:
            below = folder
            for _ in range(40):
                below = below / "step-1"
            below.mkdir(parents=True)
            (below / "model.safetensors").write_bytes(file.read_bytes())


def _fitting(name: str) -> str:
    data = os.fsencode(name).replace(b"/", b"_").replace(b"\x00", b"_")[-250:]
    return os.fsdecode(data) or "_"
