"""Takes cases one after another in a process of its own, so that what hangs or dies is one case and not the suite.

    python -m tests.hostile.worker ROOM FIRST STOP STRIDE [WHAT]

Prints a line of JSON before and after each case; `crew.py` reads them. To see one case again:

    python -m tests.hostile.worker /tmp/room 4711 4712 1
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from . import examine, mutations, specials, specimens
from .watch import Watch

#: Seconds that no case may compute; the process then says where it hangs, and dies.
LIMIT = 10
#: Seconds that no case may take, computing or waiting, on a machine that does other work too.
PATIENCE = 60
#: Bytes of address space that a case may take on top of what the libraries have mapped.
ROOM = 3 * 2**30
#: Of so many cases one goes through the command line.
COMMAND_LINE = 10

REPOSITORY = Path(__file__).resolve().parents[2]


def outside(room: Path) -> Path:
    """Make the decoy: valid runs and a secret, which nobody may open."""
    folder = room / "outside"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in ("recorded", "hf_trainer", "dcp", "log_csv", "batches"):
            specimens.write(specimens.specimen(name).files, folder)
        whole = specimens.specimen("recorded").files
        for name in ("step-30.safetensors", "model.safetensors", "step-40/model.safetensors"):
            specimens.write({name: whole["step-000006/model.safetensors"]}, folder)
        (folder / "trainer_state.json").write_bytes(specimens.trainer_state())
        (folder / "RUN.json").write_text('{"secret": "swordfish"}')
        (folder / "secret.txt").write_text("swordfish: 12345\nstep,loss\n1,2\n2,3\n")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "secret": "swordfish"}')
    return folder


def verbs(target: str, rng: np.random.Generator) -> list[str]:
    """One call of the command line, cheap ones oftener."""
    from hnf_offline.cli import VERBS

    report = ["--tier", "forward", "--zoom", "off", "--out", "out"]
    calls = [
        *(["spikes", target], ["spikes", target, "--json"]) * 2,
        *(["profile", target, "--plan"], ["profile", target, "--plan", "--json"]),
        *(["report", target, *report], ["report", target, *report, "--json"], ["report", target, "--plan"]),
        ["monitor", target, "--tier", "forward", "--out", "out"],
        ["monitor", target, "--tier", "forward", "--out", "out", "--json"],
        ["diff", target, target, "--tier", "forward", "--out", "out"],
        ["profile", target, "--tier", "forward", "--replay", target, "--out", "out"],
        ["whatif", target, "--plan"],
        ["zoom", target, "--plan"],
    ]
    if "check" in VERBS:
        calls += [["check", target], ["check", target, "--json"]] * 2
    return calls[rng.integers(len(calls))]


def main() -> None:
    room, first, stop, stride = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    faulthandler.register(signal.SIGPROF, chain=True)
    hidden = outside(room)
    scratch = room / f"worker-{os.getpid()}"
    scratch.mkdir()
    for name in ("TMPDIR", "MPLCONFIGDIR", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"):
        os.environ[name] = str(scratch)
    tempfile.tempdir = str(scratch)
    readable = [
        Path(sys.prefix),
        Path(sys.base_prefix),
        REPOSITORY,
        Path("/usr"),
        Path("/lib"),
        Path("/proc"),
        Path("/sys"),
    ]
    readable += [
        Path(one)
        for one in (
            "/dev/null",
            "/dev/urandom",
            "/etc/ssl",
            "/etc/localtime",
            "/etc/mime.types",
            "/etc/fonts",
        )
    ]
    watch = Watch(hidden, readable)
    marker = scratch / "canary"
    _warm_up(scratch)
    # Address space, not memory in use: an allocation that is only asked for is refused too.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, mapped + ROOM))
    gc.collect()
    gc.freeze()  # what is there to stay is not walked through after every case
    scripts = max([text.count("<script") for text in _pages(scratch)] or [0])
    for number in range(first, stop, stride):
        print(json.dumps({"begins": number}), flush=True)
        print(json.dumps(one_case(number, watch, scratch, hidden, marker, scripts)), flush=True)


def one_case(
    number: int, watch: Watch, scratch: Path, hidden: Path, marker: Path, scripts: int
) -> dict[str, object]:
    """Plant a case, read it under guard, and say how it went."""
    case = mutations.case(number, str(marker))
    room = scratch / "room"
    run = scratch / "runs" / "run"
    target = case.plant(run, hidden)
    (room / "here").mkdir(parents=True)
    os.chdir(room / "here")
    tempfile.tempdir = str(room)
    os.environ["TMPDIR"] = str(room)
    rng = np.random.default_rng([number, 1])
    is_special = number >= specials.FIRST
    by_command = number % 2 == 1 if is_special else number % COMMAND_LINE == 0
    through = "command line" if by_command else "library"
    arguments = verbs(str(target), rng) if by_command else []
    if arguments and number % 30 == 0 and not is_special:
        os.chdir(run)  # the user stands in the run, as many do
        arguments = ["." if one == str(target) and case.target == "." else one for one in arguments]
        arguments = [str(room / "here" / "out") if one == "out" else one for one in arguments]
    gc.collect()
    rests = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    # What computes too long is ended by the processor's clock, which other work on the machine does not move; what
    # waits for something that never comes is ended by the wall's.
    # The guard's own walks over the run are on neither.
    seconds = 0.0
    with watch.over(run, room, marker):
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        computed = time.process_time()
        try:
            if arguments:
                outcome, _, _ = examine.command_line(arguments)
            else:
                outcome = examine.library(target)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            seconds = time.process_time() - computed
    problems = [*outcome.problems, *watch.problems]
    problems += examine.page_problems(room, scripts) if arguments else []
    peak = (_memory("VmHWM") - rests) / 2**10
    os.chdir(scratch)
    for folder in (room, run.parent):
        _remove_tree(folder)
    return {
        "number": number, "specimen": case.specimen, "kind": case.kind, "what": case.what, "through": through,
        "arguments": arguments[:1], "outcome": outcome.word, "skipped": outcome.skipped, "seconds": round(seconds, 3),
        "peak": round(peak), "problems": problems,
    }  # fmt: skip


def _memory(field: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1])


def _warm_up(scratch: Path) -> None:
    """Import whatever reading imports, so that a case's memory and files are its own."""
    import torch

    from hnf_offline.profile import peak

    torch.set_num_threads(1)
    # The largest memory of a case is measured here, so the program may not begin it anew half-way.
    peak._forget_largest = lambda: None
    whole = specimens.write(specimens.specimen("recorded").files, scratch / "warm" / "recorded")
    llama = specimens.write(specimens.specimen("hf_trainer").files, scratch / "warm" / "llama")
    os.chdir(scratch / "warm")
    for name in specimens.names():
        specimens.specimen(name)
    examine.command_line(["report", str(whole), "--tier", "forward", "--zoom", "off", "--out", "out"])
    examine.command_line(["profile", str(llama), "--plan"])
    examine.command_line(["diff", str(whole), str(whole), "--tier", "forward", "--out", "diff"])
    for name in specimens.names():
        one = specimens.specimen(name)
        folder = specimens.write(one.files, scratch / "warm" / name)
        examine.library(folder / one.target)


def _pages(scratch: Path) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in (scratch / "warm").rglob("*.html")]


def _remove_tree(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o700)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
