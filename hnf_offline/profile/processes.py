"""Several devices: a process on each, which measures its share of the checkpoints into shards.

The shards make it safe: each is written whole or not at all, and what a process that dies leaves behind is measured
by the next run. Processes are started afresh ("spawn"), because CUDA does not survive a fork; so a script that
profiles on several devices has to guard its own work by `if __name__ == "__main__"`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from hnf_offline.errors import STANDS_FOR, UsageError, UserError
from hnf_offline.profile.checkpoint import measure_each
from hnf_offline.profile.finished import Finished, Lost, Part
from hnf_offline.profile.parts import heard_by
from hnf_offline.profile.session import open_session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run.records import Checkpoint, Run

#: Seconds that a process has to end before it is killed.
_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last word of a process: "" where its work is done, or why it gives up."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Failed:
    """An error that nobody foresaw, as text; tracebacks do not travel."""

    error: str
    trace: str


@dataclass(slots=True)
class _Worker:
    device: str
    process: SpawnProcess
    connection: Connection
    left: dict[int, Checkpoint]


def measure_on_devices(
    run: Run,
    settings: ProfileSettings,
    folder: Path,
    devices: Sequence[str],
    waiting: Sequence[tuple[Checkpoint, str]],
    model_factory: str | None = None,
) -> Generator[Finished | Lost | Part]:
    """Measure checkpoints on several devices at once, a process each; the k-th takes every k-th checkpoint.

    Closing it, or an interruption, ends all processes; finished shards stay.

    Args:
        run: the run's records.
        settings: what to measure; its `device` does not matter here.
        folder: where the shards go.
        devices: one name for every process.
        waiting: the checkpoints and the keys of their shards.
        model_factory: `package.module:function` instead of the run's own model; every process imports it.

    Yields:
        Every checkpoint, in the order in which they are done; how far those are that are not; and every process
        that came to a bad end.

    Raises:
        UsageError: if the run lies on a server.
        RuntimeError: if a process met an error that nobody foresaw.
    """
    if any(run.path.is_relative_to(stand_in) for stand_in in STANDS_FOR):
        raise UsageError(
            "a run at an address is read by one process", remedy="name one device, or copy the run"
        )
    _give_memory_back()
    devices = devices[: len(waiting)]
    workers: list[_Worker] = []
    try:
        for number, device in enumerate(devices):
            own = replace(settings, device=device)
            sharing = sum(other == device for other in devices)
            threads = max(1, torch.get_num_threads() // len(devices))
            share = waiting[number :: len(devices)]
            workers.append(_start(run, own, folder, share, model_factory, sharing, threads))
        yield from _collect(workers)
    finally:
        for worker in workers:
            _stop(worker, folder)


def _start(
    run: Run,
    settings: ProfileSettings,
    folder: Path,
    share: Sequence[tuple[Checkpoint, str]],
    model_factory: str | None,
    sharing: int,
    threads: int,
) -> _Worker:
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_work,
        args=(there, run, settings, folder, tuple(share), model_factory, sharing, threads),
        name=f"hnf {settings.device}",
        daemon=True,
    )
    with _deaf_to_interruption():
        process.start()
    there.close()  # so that the pipe ends when the process does
    return _Worker(settings.device, process, here, {point.step: point for point, _ in share})


@contextmanager
def _deaf_to_interruption() -> Iterator[None]:
    """Let processes that are started ignore Ctrl-C, which a terminal sends to all: this one hears it and ends them.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _collect(workers: Sequence[_Worker]) -> Iterator[Finished | Lost | Part]:
    listening = {worker.connection: worker for worker in workers}
    while listening:
        for connection in wait(list(listening)):
            assert isinstance(connection, Connection)
            worker = listening[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                message = _Ended(_reason(worker.process))
            if isinstance(message, Finished):
                del worker.left[message.checkpoint.step]
                yield message
            elif isinstance(message, Part):
                yield message
            elif isinstance(message, _Failed):
                if os.environ.get("HNF_DEBUG"):
                    print(message.trace, file=sys.stderr)
                raise RuntimeError(f"on {worker.device}: {message.error}")
            else:
                del listening[connection]
                if worker.left:
                    yield Lost(worker.device, message.reason, tuple(worker.left.values()))


def _reason(process: SpawnProcess) -> str:
    process.join(_PATIENCE)
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), as a system does that runs out of memory"
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended before its work did (exit code {code})"


def _stop(worker: _Worker, folder: Path) -> None:
    if worker.process.is_alive():
        worker.process.terminate()
        worker.process.join(_PATIENCE)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.connection.close()
    for half in folder.glob(f".*.{worker.process.pid}.part"):
        with suppress(OSError):
            half.unlink()


def _give_memory_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not used


def _work(
    connection: Connection,
    run: Run,
    settings: ProfileSettings,
    folder: Path,
    share: Sequence[tuple[Checkpoint, str]],
    model_factory: str | None,
    sharing: int,
    threads: int,
) -> None:
    """Measure a share of the checkpoints: all that runs in a process of its own."""
    if not sys.warnoptions and not os.environ.get("HNF_DEBUG"):
        warnings.simplefilter("ignore")  # as the command line does
    torch.set_num_threads(threads)

    def tell_part(step: int, done: int, total: int, share: float) -> None:
        connection.send(Part(step, done, total, share))

    try:
        try:
            session = open_session(run, settings, model_factory, sharing=sharing)
            with heard_by(tell_part):
                for finished in measure_each(run, session, settings, folder, share):
                    connection.send(finished)
            connection.send(_Ended())
        except BrokenPipeError:
            raise
        except UserError as error:
            connection.send(_Ended(str(error)))
        except Exception as error:
            connection.send(_Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
    except BrokenPipeError:
        return  # nobody is left who would want the rest
