"""A web server, and nothing left behind however a program ends."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.run import open_run
from hnf_offline.run.formats import load_weights
from hnf_offline.run.remote import registry
from hnf_offline.run.remote.skeleton import PREFIX

fsspec = pytest.importorskip("fsspec")

from .conftest import (  # noqa: E402
    STEPS,
    same,
    upload,
)


class Server(http.server.SimpleHTTPRequestHandler):
    """Lists folders, and gives parts of files as stores do."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            return super().do_GET()
        first, last = wanted.removeprefix("bytes=").split("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.end_headers()
        self.wfile.write(data)
        return None


def test_a_web_server_that_lists_folders(tiny: Path, usage: dict[str, int]) -> None:
    pytest.importorskip("aiohttp")

    def handler(*arguments: Any) -> Server:
        return Server(*arguments, directory=str(tiny.parent))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        run = open_run(f"http://127.0.0.1:{server.server_port}/tiny")
        near = open_run(tiny)
        assert [point.step for point in run.checkpoints] == [4, 8, 12, 16, 20] and run.name == "tiny"
        assert run.skipped == () and run.log is not None and run.log.rows.height == STEPS
        assert same(load_weights(run.checkpoints[3]), load_weights(near.checkpoints[3]))
        assert usage["fetches"] == 1 and registry.identity(run.checkpoints[3].weight_files[0])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ENDING: dict[str, Callable[..., str]] = {
    "end": lambda: "",
    "error": lambda: "raise RuntimeError('an error')",
    "interrupt": lambda: "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)",
}


@pytest.mark.parametrize("ending", ENDING)
def test_nothing_is_left_however_the_program_ends(tiny: Path, tmp_path: Path, ending: str) -> None:
    code = (
        "import fsspec, pathlib\n"
        "from hnf_offline.run import open_run, load_weights\n"
        f"folder = pathlib.Path({str(tiny)!r})\n"
        "files = fsspec.filesystem('memory')\n"
        "for file in folder.rglob('*'):\n"
        "    if file.is_file(): files.pipe_file('/b/' + str(file.relative_to(folder)), file.read_bytes())\n"
        "run = open_run('memory://b')\n"
        "load_weights(run.checkpoints[0])\n"
        "assert run.path.is_dir() and run.path.parent.stat().st_mode & 0o077 == 0\n"
        "print('open', flush=True)\n" + ENDING[ending]()
    )
    temporary = tmp_path / "own"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert "open" in done.stdout, done.stderr
    assert not list(temporary.iterdir())


def test_what_a_killed_program_left_is_removed_by_the_next(tiny: Path, tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left = tmp_path / "temporary" / f"{PREFIX}{int(gone.stdout)}-abc"
    alive = tmp_path / "temporary" / f"{PREFIX}{os.getpid()}-abc"
    for folder in (left, alive):
        (folder / "run").mkdir(parents=True)
    open_run(upload(tiny, "bucket/tiny"))
    assert not left.exists() and alive.exists()
    shutil.rmtree(alive)
