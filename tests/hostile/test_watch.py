"""The guard itself: what it has to notice, it notices; otherwise a suite without findings would say nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import examine
from .worker import REPOSITORY

_PROGRAM = """\
import json, os, pathlib, pickle, socket, subprocess, sys
from tests.hostile import pickles, watch
room = pathlib.Path(sys.argv[1])
run, outside, own = room / "run", room / "outside", room / "own"
for folder in (run, outside / "deep", own):
    folder.mkdir(parents=True)
(run / "file").write_text("x")
(outside / "deep" / "secret").write_text("x")
(run / "link").symlink_to(outside / "deep" / "secret")
marker = own / "canary"
guard = watch.Watch(outside, [pathlib.Path(sys.prefix), pathlib.Path(sys.base_prefix), pathlib.Path.cwd()])
with guard.over(run, own, marker):
    try:
        exec(sys.argv[2])
    except Exception as error:
        pass
print(json.dumps(guard.problems))
"""

BAD = {
    "a pickle that calls": (
        "pickle.loads(pickles.alone(pickles.canaries(str(marker))['REDUCE os.system']))",
        "CANARY",
    ),
    "a pickle that sets the environment": (
        "pickle.loads(pickles.alone(pickles.canaries('x')['REDUCE os.putenv']))",
        "CANARY",
    ),
    "any pickle": ("pickle.loads(pickle.dumps(pathlib.Path('x')))", "pickle.find_class"),
    "a file through a link": ("(run / 'link').read_text()", "for reading"),
    "a file outside, opened without Python": (
        "import ctypes; ctypes.CDLL(None).open(os.fsencode(outside / 'deep' / 'secret'), 0)",
        "inotify",
    ),
    "a password file": ("open('/etc/passwd').read()", "for reading"),
    "a folder outside": ("os.listdir(outside)", "inotify"),
    "a file written outside": ("(outside / 'new').write_text('x')", "for writing"),
    "a file written in the run": ("(run / 'new').write_text('x')", "changed the run"),
    "a file removed from the run": ("(run / 'file').unlink()", "changed the run"),
    "a file removed beside the room": ("(own.parent / 'none').unlink()", "os.remove"),
    "a command": ("os.system('true')", "os.system"),
    "a process": ("subprocess.run(['true'])", "subprocess.Popen"),
    "a name looked up": ("socket.getaddrinfo('localhost', 80)", "getaddrinfo"),
    "a connection": ("socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
    "a module of the run": (
        "sys.path.insert(0, str(run)); (run / 'm.py').touch(); import m",
        "changed the run",
    ),
}
GOOD = {
    "the run": "(run / 'file').read_text(); os.listdir(run)",
    "results": "(own / 'new').write_text('x'); (own / 'new').unlink()",
    "imports": "import tarfile, wave",
}


def watched(room: Path, code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(room), code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("what", BAD)
def test_what_must_not_happen_is_noticed(what: str, tmp_path: Path) -> None:
    code, word = BAD[what]
    assert any(word in problem for problem in watched(tmp_path, code)), what


@pytest.mark.parametrize("what", GOOD)
def test_what_may_happen_is_not(what: str, tmp_path: Path) -> None:
    assert watched(tmp_path, GOOD[what]) == []


@pytest.mark.parametrize(
    "markup",
    [
        "<img src=x>",
        "<a href='javascript:x'>",
        "<b onclick=x>",
        "<script>x</script>",
        "<iframe>",
        "<a href='https://x'>",
    ],
)
def test_a_page_that_obeys_is_noticed(markup: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f"<p>{markup}</p>")
    assert examine.page_problems(tmp_path, 0)
    (tmp_path / "index.html").write_text("<p>&lt;img src=x&gt;</p><img src='figures/a.png'>")
    assert examine.page_problems(tmp_path, 0) == []


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("print('\\x1b[2J')", "holds"),
        ("import sys; print('Traceback', file=sys.stderr)", "Traceback"),
        ("raise RuntimeError", "left by"),
        ("return 3", "exit code"),
        ("return 2", "lines of its own"),
        ("print('not JSON')", "not JSON"),
    ],
)
def test_a_command_line_that_says_the_wrong_thing_is_noticed(
    code: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: dict[str, object] = {}
    exec(f"def main(arguments):\n    {code}\n    return 0\n", scope)
    monkeypatch.setattr("hnf_offline.cli.main", scope["main"])
    outcome, _, _ = examine.command_line(["spikes", "x", "--json"])
    assert any(word in problem for problem in outcome.problems)
