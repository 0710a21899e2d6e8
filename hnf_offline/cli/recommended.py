"""What a report recommends, as policies that `hnf whatif` can try."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError, spelled
from hnf_offline.output import output_folder
from hnf_offline.pipeline import analyse

if TYPE_CHECKING:
    from hnf_offline.profile.settings import ProfileSettings, Progress
    from hnf_offline.run.records import Run


def advised_policies(run: Run, findings: Mapping[str, Any], start: int, stop: int) -> tuple[str, ...]:
    """Read which policies a report recommends for spikes within some steps.

    Args:
        run: the run, for error messages.
        findings: the findings as JSON values, of this program's own report.
        start: the checkpoint that retraining begins at.
        stop: the last step.

    Returns:
        Spellings of policies, each once.

    Raises:
        InputError: if the report recommends nothing that retraining can try there.
    """
    spikes = {spike.get("id"): spike for spike in findings.get("spikes", ())}
    wanted = [one for one in findings.get("advice", ()) if one.get("policy")]
    here = [
        str(one["policy"])
        for one in wanted
        if one.get("spike") is None or start < int(spikes.get(one["spike"], {}).get("onset", -1)) <= stop
    ]
    if here:
        return tuple(dict.fromkeys(here))
    onsets = sorted({int(spikes[one["spike"]]["onset"]) for one in wanted if one.get("spike") in spikes})
    raise InputError(
        f"the report recommends nothing that retraining steps {start + 1} to {stop} could try",
        path=run.path,
        remedy="choose --from and --steps around the spikes at " + ", ".join(map(str, onsets))
        if onsets
        else "name a policy; see hnf whatif --list-policies",
    )


def report_of(
    run: Run,
    settings: ProfileSettings,
    *,
    rule: str,
    model: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Mapping[str, Any]:
    """Give the findings of a run as JSON values: of the report that is there, or of one made now.

    Returns:
        The findings.
    """
    folder = Path("reports") / run.name
    try:
        held = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        of_this_run = held["run"]["path"] == spelled(run.path) or (
            Path(held["run"]["path"]).resolve() == run.path.resolve()
        )
        # An earlier version's report names no policies.
        if of_this_run and all("policy" in one for one in held["advice"]):
            return held  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    out, _ = output_folder(folder, (run,))
    done = analyse(run, settings, out, rule=rule, model=model, on_progress=on_progress)
    return done.findings.to_json()
