"""The loop of a live monitor: look, measure what is new, say what is new, wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError, UserError, spelled
from hnf_offline.follow.asked import Following, Waiting
from hnf_offline.follow.history import joined
from hnf_offline.follow.settled import PATIENCE, Settling, Signature, signature

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.report.monitor import Remark
    from hnf_offline.run.open import Found
    from hnf_offline.run.records import Checkpoint, Run, Skipped

#: The replayed loss of checkpoint s is held against the log of the steps s to s + 2 (profile.checkpoint).
_STEPS_AFTER = 2


def follow(following: Following) -> Iterator[list[Remark]]:
    """Say of a run that goes on what a live monitor says, as its log and checkpoints appear.

    A line is said once the log has reached its step and every checkpoint up to there is measured, so that what is
    said does not change with what comes later: the lines are those that the finished run would give. Where nothing
    changes for a while, what is there is said as it is.

    Args:
        following: how.

    Yields:
        What is new, in order of step; never the same twice.

    Raises:
        InputError: when the run was followed until it was idle and nothing in it could ever be read.
    """
    live = _Live(following)
    changed_at = following.clock()
    while True:
        if live.look():
            changed_at = following.clock()
        idle = following.clock() - changed_at
        last = following.until_idle is not None and idle >= following.until_idle
        if (last or live.changed) and (new := live.say(final=last)):
            yield new
        if last:
            if live.never_read is not None:
                raise live.never_read
            return
        following.on_wait(live.waiting(idle))
        following.sleep(following.interval)


class _Live:
    """What is known of the run so far.

    Attributes:
        never_read: why nothing could be read yet, None once something was.
        changed: whether there may be something new to say.
    """

    def __init__(self, following: Following) -> None:
        self.following = following
        self.never_read: UserError | None = None
        self.changed = True
        from hnf_offline.run.logs.growing import Memory

        self._memory = Memory()
        self._settling = Settling(following.interval, following.now)
        self._files: dict[str, tuple[int, int]] | None = None
        self._found: Found | None = None
        self._looks = 0  # since anything changed
        self._run: Run | None = None
        self._log: pl.DataFrame | None = None
        self._profile: pl.DataFrame | None = None
        self._shift = 0  # by how much the log's steps are moved, found by replay
        self._measured: dict[int, tuple[Path, object]] = {}
        self._pending: tuple[Checkpoint, ...] = ()
        self._half: list[int] = []  # steps of checkpoints of which a part is written
        self._again: list[int] = []
        self._restarts: set[int] = set()  # of the log, as at the last look
        self._shorter = False  # whether the log was so at the last look: half written, it may be
        self._told: set[str] = set()
        self._said: set[tuple[object, ...]] = set()
        self._texts: set[str] = set()

    def look(self) -> bool:
        """Look whether any file changed.

        Returns:
            True where one did since the last look.
        """
        files = signature([self.following.path, *self._elsewhere()])
        changed = files != self._files
        first = self._files is None
        if changed and not _only_logs(self._files or {}, files, self._logs()):
            self._found = None
        self._files = files
        self._looks = 0 if changed else self._looks + 1
        # What is still settling is looked at again, and what stays as it is counts as whole in the end.
        waits = bool(self._pending or self._half or self._shorter) or self.never_read is not None
        self.changed = changed or first or self._looks == PATIENCE or (waits and self._looks < PATIENCE)
        return changed

    def say(self, *, final: bool) -> list[Remark]:
        """Read and measure what is there, and find what can be said now and was not said before.

        Args:
            final: take everything as it is, since nothing more is to come.

        Returns:
            What is new, in order.
        """
        from hnf_offline.run.logs.growing import remembering
        from hnf_offline.run.logs.lines import only_whole_lines

        quiet = final or self._looks >= PATIENCE
        try:
            # Output that goes through a buffer ends within a line for minutes.
            with remembering(self._memory), nullcontext() if final else only_whole_lines():
                run = self._open()
        except InputError as error:
            if self._looks:
                self._tell(f"{error}; waiting for it")
            if self._run is None:
                self.never_read = error
                return []
            run = replace(self._run, checkpoints=(), log=None)
        self._run, self.never_read = run, None
        self._tell_skipped(run, quiet)
        self._take_log(run, final)
        self._measure(run, quiet)
        return self._new(run, quiet)

    def waiting(self, seconds: float) -> Waiting:
        """Describe what is waited for.

        Returns:
            The description.
        """
        step = None if self._log is None or self._log.is_empty() else int(self._log["step"][-1])
        return Waiting(step, len(self._measured), len(self._pending) + len(self._half), seconds)

    def _elsewhere(self) -> list[Path]:
        # What --manifest names, and files of the log that run.toml names: they may lie beside the run.
        named = [] if self.following.manifest is None else [self.following.manifest]
        return named if self._run is None or self._run.log is None else [*named, *self._run.log.files]

    def _logs(self) -> frozenset[str]:
        # Those that belong to no checkpoint, as trainer_state.json does.
        if self._run is None or self._run.log is None:
            return frozenset()
        saved = {one.path for one in self._run.checkpoints} - {self.following.path}
        return frozenset(str(one) for one in self._run.log.files if saved.isdisjoint(one.parents))

    def _open(self) -> Run:
        from hnf_offline.run.open import find_checkpoints, open_run
        from hnf_offline.run.remote import local_path

        asked = self.following
        if self._found is None:
            self._found = find_checkpoints(local_path(asked.path), asked.manifest)
        return open_run(
            asked.path, asked.manifest, columns=asked.columns, memory_map=asked.memory_map, found=self._found
        )

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.following.note(text)

    def _tell_skipped(self, run: Run, quiet: bool) -> None:
        from hnf_offline.run.formats.names import step_in_path

        self._half = []
        for one in run.skipped:
            # Of a checkpoint that is being written only a part can be read: it is not broken because it is young.
            if quiet or self._old_enough(one):
                remedy = f"; {one.remedy}" if one.remedy else ""
                self._tell(f"skipped {spelled(one.path)}: {spelled(one.reason)}{remedy}")
            elif (step := step_in_path(one.path, self.following.path)) is not None:
                self._half.append(step)

    def _old_enough(self, one: Skipped) -> bool:
        inside = (
            one.path.parent if one.path.is_file() and one.path.parent != self.following.path else one.path
        )
        self._settling.look(inside)
        return self._settling.unchanged(inside) >= PATIENCE

    def _take_log(self, run: Run, final: bool) -> None:
        import polars as pl

        if run.log is None:
            return
        before = self._log
        if before is not None and self._shift:
            before = before.with_columns(pl.col("step") - self._shift)
        rows, again = joined(before, run.log)
        # A file that is written whole, as trainer_state.json is, may be looked at when half of it is there.
        back = set(run.log.restarts) - self._restarts
        self._shorter = again is not None and not back and not self._shorter and not final
        if self._shorter:
            return
        self._restarts = set(run.log.restarts)
        if again is not None:
            again += self._shift
            self._again.append(again)
            # The attempt that goes on from here may say anew of later steps what it finds there.
            self._said = {about for about in self._said if not _is_after(about, again)}
            self._measured = {step: one for step, one in self._measured.items() if step < again}
            if self._profile is not None:
                self._profile = self._profile.filter(pl.col("step") < again)
        self._log = rows.with_columns(pl.col("step") + self._shift) if self._shift else rows

    def _measure(self, run: Run, quiet: bool) -> None:
        """Measure the checkpoints that are whole and not measured yet, each once."""
        from hnf_offline.profile.selection import selected

        chosen = selected(run, self.following.settings)
        for one in chosen:
            self._settling.look(one.path, one.files)
        new = [one for one in chosen if self._measured.get(one.step) != self._identity(one)]
        ready: list[Checkpoint] = []
        for one in new:
            if any(step < one.step for step in self._half) or not (
                quiet
                or (self._settling.is_whole(one.path, like_others=True) and self._logged_beyond(one.step))
            ):
                break  # in order: a later one is not measured before an earlier one
            self._settling.is_as_usual(one.path)
            ready.append(one)
        self._pending = tuple(new[len(ready) :])
        if ready:
            self._profile_of(run, chosen, ready)

    def _identity(self, one: Checkpoint) -> tuple[Path, object]:
        state = self._settling.state(one.path)
        return one.path, tuple(sorted((name, state[name]) for name in map(str, one.files) if name in state))

    def _logged_beyond(self, step: int) -> bool:
        rows = self._log
        return rows is None or rows.is_empty() or int(rows["step"][-1]) >= step + _STEPS_AFTER

    def _profile_of(self, run: Run, chosen: tuple[Checkpoint, ...], ready: list[Checkpoint]) -> None:
        import polars as pl

        from hnf_offline.pipeline import measure
        from hnf_offline.profile.shards import join_shards, write_parquet

        asked = self.following
        settings = replace(asked.settings, every=1)  # chosen already
        # What weights alone show compares each checkpoint with the one before it.
        together = settings.tier in {"weights", "full"} or settings.density
        last = ready[-1].step
        points = tuple(one for one in chosen if one.step <= last) if together else tuple(ready)
        for one in ready:
            self._measured[one.step] = self._identity(one)
        log = (
            run.log if run.log is None or self._log is None else replace(run.log, rows=self._rows_as_logged())
        )
        try:
            done = measure(
                replace(run, checkpoints=points, log=log), settings, asked.out, model=asked.model,
                on_progress=asked.on_progress,
            )  # fmt: skip
        except InputError as error:
            self._tell(f"not measured: {error}")
            return
        known = {one.path for one in run.skipped}
        self._tell_skipped(
            replace(run, skipped=tuple(s for s in done.run.skipped if s.path not in known)), True
        )
        found = 0 if done.run.log is None else done.run.log.shift
        if found and self._log is not None:
            self._log = self._log.with_columns(pl.col("step") + (found - self._shift))
            self._shift = found
        steps = done.table["step"].unique()
        kept = [] if self._profile is None else [self._profile.filter(~pl.col("step").is_in(steps.implode()))]
        self._profile = join_shards([*kept, done.table])
        write_parquet(asked.out / "profile.parquet", self._profile)

    def _rows_as_logged(self) -> pl.DataFrame:
        import polars as pl

        assert self._log is not None
        return self._log.with_columns(pl.col("step") - self._shift)

    def _new(self, run: Run, quiet: bool) -> list[Remark]:
        import polars as pl

        from hnf_offline.detect.alarms import all_alarms
        from hnf_offline.detect.live import certain_ends, onset_losses
        from hnf_offline.detect.spikes import find_spikes
        from hnf_offline.relate.evidence import annotated
        from hnf_offline.report.monitor import remarks
        from hnf_offline.table import table

        rows = pl.DataFrame(schema=_LOG_SCHEMA) if self._log is None else self._log
        profile = table() if self._profile is None else self._profile
        resumes = tuple(sorted({*run.resume_steps, *self._again}))
        spikes = find_spikes(rows, rule=self.following.rule, resume_steps=resumes)
        found = remarks(
            annotated(all_alarms(profile, rows, spikes), spikes),
            spikes,
            losses=onset_losses(rows, spikes),
            ends=certain_ends(rows, spikes),
            restarts=resumes,
        )
        settled = float("inf") if quiet else self._settled()
        new = []
        for one in found:
            text = f"{one.step} {one.tag} {one.text}"
            if one.step <= settled and one.about not in self._said and text not in self._texts:
                new.append(one)
                self._said.add(one.about)
                self._texts.add(text)
        return new

    def _settled(self) -> float:
        """Say up to which step nothing that is still to come can change what is said.

        Returns:
            The step.
        """
        reached = float("inf")
        if self._log is not None and not self._log.is_empty():
            reached = float(self._log["step"][-1])
        unmeasured = [*(one.step for one in self._pending), *self._half]
        return min([reached, *(step - 1.0 for step in unmeasured)])


_LOG_SCHEMA = {"step": int, "loss": float, "grad_norm": float, "learning_rate": float}


def _only_logs(before: Signature, after: Signature, logs: frozenset[str]) -> bool:
    """Say whether nothing changed but logs: then the checkpoints are as they were.

    Args:
        before: the files at the last look.
        after: the files now.
        logs: files that are the log.

    Returns:
        False where a file came or went, or another one changed.
    """
    if before.keys() != after.keys():
        return False
    changed = (name for name, state in after.items() if before[name] != state)
    # Beside checkpoints lie what TensorBoard and W&B append to.
    return all(name in logs or "tfevents" in name or name.endswith(".wandb") for name in changed)


def _is_after(about: tuple[object, ...], step: int) -> bool:
    # The step is the first or second of what a remark is about, beside the word for what it is.
    return any(isinstance(one, int) and one >= step for one in about)
