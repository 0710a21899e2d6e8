"""Where results may be written: never inside a run, never over files of other origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError, UsageError, spelled

if TYPE_CHECKING:
    from hnf_offline.run.records import Run

#: Everything the verbs write into an output folder.
WRITTEN = frozenset({
    "index.html",
    "figures",
    "profile",
    "profile.parquet",
    "density.parquet",
    "findings.json",
    "diff.json",
    "rerun.json",
    "spikes.json",
    "spikes.png",
    "zoom",
    "proof",
    "a",
    "b",
})


def output_folder(out: Path | None, runs: tuple[Run, ...], *, force: bool = False) -> tuple[Path, str]:
    """Choose the folder for results and make sure nothing of the user's can be lost there. Creates nothing.

    Args:
        out: the folder asked for; None for `reports/<name>`, or `reports/<A>-vs-<B>` for two runs.
        runs: the runs that are read.
        force: write into a folder that holds files of other origin (they are left alone).

    Returns:
        The folder, and a remark worth telling ("" for none).

    Raises:
        UsageError: if the folder lies inside a run, is a file, or holds files not made by this program.
        InputError: if it cannot be read.
    """
    folder = out if out is not None else Path("reports") / "-vs-".join(run.name for run in runs)
    resolved = folder.resolve()
    for run in runs:
        room = run.path.resolve()
        if room.is_dir() and (resolved == room or room in resolved.parents):
            raise UsageError(
                "results are never written inside a run",
                path=folder,
                remedy="choose another folder with --out",
            )
    if not folder.exists():
        return folder, ""
    if not folder.is_dir():
        raise UsageError("is a file, not a folder", path=folder, remedy="choose another folder with --out")
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=folder, remedy="choose --out") from error
    foreign = sorted(names - WRITTEN)
    ours = names & {"findings.json", "diff.json", "rerun.json", "profile", "profile.parquet"}
    if not foreign and "index.html" in names and not ours:
        foreign = ["index.html"]
    if foreign and not force:
        raise UsageError(
            f"holds files this program did not write ({foreign[0]}{', ...' if len(foreign) > 1 else ''})",
            path=folder,
            remedy="choose another folder with --out, or --force to write beside them",
        )
    return folder, _other_run(folder, runs)


def _other_run(folder: Path, runs: tuple[Run, ...]) -> str:
    """Notice a report of another run in the folder.

    Returns:
        A remark, "" where there is none to make.
    """
    if len(runs) != 1:
        return ""
    try:
        held = json.loads((folder / "findings.json").read_text(encoding="utf-8"))["run"]["path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    here = spelled(runs[0].path)
    if not isinstance(held, str) or held == here or Path(held).resolve() == runs[0].path.resolve():
        return ""
    return f"{folder}: held the report of another run ({held}); it is replaced"


def borrow_shards(run: Run, room: Path) -> None:
    """Copy what `hnf report` already measured of a run, so that a comparison does not measure it again.

    Shards name what they measured by content; one that does not fit is measured afresh and replaced.
    """
    measured = Path("reports") / run.name / "profile"
    if not measured.is_dir():
        return
    (room / "profile").mkdir(parents=True, exist_ok=True)
    for shard in sorted(measured.glob("*.parquet")):
        target = room / "profile" / shard.name
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.copyfile(shard, partial)
            partial.replace(target)


def relative(path: Path) -> Path:
    """Spell a path relative to the current folder where it lies below it.

    Returns:
        The shorter path.
    """
    if spelled(path) != path.as_posix():
        return path  # it stands for an address
    try:
        return path.absolute().relative_to(Path.cwd())
    except ValueError:
        return path
