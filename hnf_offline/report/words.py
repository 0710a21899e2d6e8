"""What page and terminal say alike: the verdict's mark, what is missing, the health of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hnf_offline.findings import ReplayCheck
from hnf_offline.report.files import flat
from hnf_offline.report.text import clean, number, plural
from hnf_offline.strict_json import plain

#: So many exact zooms are told one by one.
MOST_EXACT = 2

#: Verdict word -> mark; the word always stands beside it.
MARKS = {"Spike": "▲", "Diverged": "✕", "Stable": "●", "Same": "●", "Differ": "◆", "Cannot say": "?"}
ASCII_MARKS = {"Spike": "!", "Diverged": "X", "Stable": "o", "Same": "o", "Differ": "#", "Cannot say": "?"}


def tone(word: str) -> str:
    """Name the style of a verdict.

    Returns:
        "spike", "diverged", "stable", "same", "differ" or "unsure".
    """
    return word.lower() if word in MARKS and word != "Cannot say" else "unsure"


def missing(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what was missing and what that cost.

    Returns:
        One clause each: "optimizer.pt in 17 of 30 checkpoints: S unknown there".
    """
    return tuple(_pair(one, "what", "cost", ": ") for one in run.get("missing") or ())


def skipped(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which files were passed over, and why.

    Returns:
        One clause each.
    """
    return tuple(
        _pair(one, "path", "reason", ": ") + (f"; {clean(one['remedy'])}" if _has(one, "remedy") else "")
        for one in run.get("skipped") or ()
    )


def _has(one: Any, key: str) -> bool:
    return isinstance(one, Mapping) and bool(one.get(key))


def _pair(one: Any, first: str, second: str, between: str) -> str:
    if not isinstance(one, Mapping):
        return clean(one)
    return between.join(clean(one[key]) for key in (first, second) if one.get(key))


def replay_sentence(check: ReplayCheck) -> str:
    """Tell one replay check with both numbers.

    Returns:
        "checkpoint-150 on the rows of step 151 gives 3.4282, the log says 3.4282".
    """
    said = (
        f"checkpoint-{check.checkpoint} on the rows of step {check.batch_step} gives "
        f"{_loss(check.replayed)}, the log says {_loss(check.logged)}"
    )
    if check.shift:
        said += f" (rows shifted by {plural(abs(check.shift), 'step')})"
    return said if check.agrees else f"{said}: they do not agree"


def _loss(value: float) -> str:
    spelled = number(value)
    return spelled if spelled in {"NaN", "∞", "-∞"} else f"{value:.4f}"


def replay_title(checks: Iterable[ReplayCheck]) -> str:
    """Sum the replay checks up.

    Returns:
        One sentence.
    """
    listed = list(checks)
    agreeing = sum(check.agrees for check in listed)
    if agreeing == len(listed):
        return (
            f"Checkpoints, batches and log fit together: {agreeing} of {plural(len(listed), 'replay')} agree"
        )
    return f"Checkpoints, batches and log do not all fit: {agreeing} of {plural(len(listed), 'replay')} agree"


def zoomed(zooms: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Say which stretches were retrained step by step, and what S there is worth.

    Returns:
        One sentence each: "steps 140–151 retrained: exact (11 losses equal to 6e-7, weights at 150 equal): S is
        measured at every step there"; one for all that are exact where those are more than two.
    """
    zooms = list(zooms)
    said = []
    alike = [zoom for zoom in zooms if zoom.get("word") == "exact"]
    if len(alike) > MOST_EXACT:
        said.append(_all_exact(alike))
        zooms = [zoom for zoom in zooms if zoom.get("word") != "exact"]
    for zoom in zooms:
        steps = f"steps {number(zoom.get('start'))}–{number(zoom.get('stop'))}"
        because = clean(zoom.get("because") or "").strip().rstrip(".")
        word = str(zoom.get("word", ""))
        if word == "not_reproducible":
            because = f": {because}" if because else ""
            said.append(f"{steps} could not be reproduced{because}. S there is known at checkpoints only.")
            continue
        if word == "not_zoomed":
            because = f": {because}" if because else ""
            said.append(f"{steps} were not retrained{because}. S there is known at checkpoints only.")
            continue
        because = f" ({because})" if because else ""
        each = _each(zoom)
        meaning = f"S is measured at {each} there."
        if word != "exact":
            meaning = f"S at {each} there is that of a run close to this one, not of this run itself."
        said.append(f"{steps} retrained: {clean(word)}{because}: {meaning}")
    return tuple(said)


def _each(zoom: Mapping[str, Any]) -> str:
    every = zoom.get("every") or 1
    return "every step" if every == 1 else f"one step in {every}"


def _all_exact(zooms: list[Mapping[str, Any]]) -> str:
    steps = ", ".join(f"{number(zoom.get('start'))}–{number(zoom.get('stop'))}" for zoom in zooms)
    apart = max((float(zoom.get("loss_difference_max") or 0.0) for zoom in zooms), default=0.0)
    each = " or ".join(dict.fromkeys(_each(zoom) for zoom in zooms))
    return (
        f"{len(zooms)} stretches retrained, all exact (no loss differs from the log by more than {number(apart, 2)} "
        f"relative): S is measured at {each} of {steps}."
    )


def differences(zooms: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Spell how far each retraining was from the run.

    Returns:
        Rows of a table: steps, verdict, largest difference of a loss and of a weight.
    """
    return [
        {
            "steps": f"{number(zoom.get('start'))}–{number(zoom.get('stop'))}",
            "word": clean(zoom.get("word", "")).replace("_", " "),
            "loss": number(zoom.get("loss_difference_max"), 2),
            "weight": number(zoom.get("weight_difference_max"), 2),
        }
        for zoom in zooms
    ]


def health(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Tell what was odd in the log and the files.

    Returns:
        Sentences; only of what the findings state.
    """
    log = run.get("log")
    told = dict(log) if isinstance(log, Mapping) else {}
    said = []
    names = {
        "duplicates": "logged step written twice; the last writer wins",
        "skipped_lines": "log line unreadable",
    }
    for key, words in names.items():
        count = told.get(key, run.get(key))
        if isinstance(count, int):
            said.append(f"{count:,} × {words}" if count else f"no {words.split(';')[0]}")
    restarts = told.get("restarts", run.get("restarts"))
    if isinstance(restarts, list | tuple):
        listed = ", ".join(f"{step:,}" for step in restarts[:20])
        said.append(f"log starts again at step {listed}" if restarts else "no restart in the log")
    resumes = run.get("resume_steps")
    if isinstance(resumes, list | tuple) and resumes:
        said.append(f"resumed at step {', '.join(f'{step:,}' for step in resumes[:20])}")
    files = told.get("files")
    if isinstance(files, list | tuple) and files:
        formats = told.get("formats")
        kind = (
            f" ({', '.join(clean(one) for one in formats)})"
            if isinstance(formats, list | tuple) and formats
            else ""
        )
        said.append("log read from " + ", ".join(clean(file) for file in files[:5]) + kind)
    said += _segments(told.get("segments"))
    notes = told.get("notes")
    if isinstance(notes, list | tuple):
        said += [clean(note) for note in notes[:10]]
    return tuple(said)


def _segments(segments: Any) -> list[str]:
    """Tell how a log was put together, where it has more than one uninterrupted stretch.

    Returns:
        One sentence, none for a log of one stretch.
    """
    if not isinstance(segments, list | tuple) or len(segments) < 2:
        return []
    told = []
    for one in segments[:12]:
        first, last = one["steps"]
        lost = f", {one['replaced']:,} of its rows written again later" if one["replaced"] else ""
        told.append(f"{first:,}–{last:,} ({clean(one['file'])}{lost})")
    more = f" and {len(segments) - 12} more" if len(segments) > 12 else ""
    return [f"log put together from {len(segments)} stretches: {'; '.join(told)}{more}"]


def subtitle(run: Mapping[str, Any]) -> str:
    """Describe a run in one line.

    Returns:
        "30 checkpoints, steps 10-300, 139,840 parameters, AdamW" as far as the findings state it.
    """
    parts = []
    checkpoints = run.get("checkpoints")
    count = len(checkpoints) if isinstance(checkpoints, list | tuple) else checkpoints
    found = run.get("checkpoints_found", count)
    if isinstance(count, int):
        parts.append(plural(count, "checkpoint") if found == count else f"{count} of {found} checkpoints")
    steps = run.get("steps")
    if isinstance(steps, list | tuple) and steps:
        parts.append(
            f"steps {number(steps[0])}–{number(steps[-1])}"
            if steps[0] != steps[-1]
            else f"step {number(steps[0])}"
        )
    elif isinstance(steps, int | str):
        parts.append(f"{number(steps)} steps" if isinstance(steps, int) else clean(steps))
    model = run.get("model")
    if isinstance(model, Mapping):
        parts += [clean(model[key]) for key in ("name", "architecture", "kind") if model.get(key)][:1]
        if isinstance(model.get("parameters"), int):
            parts.append(f"{model['parameters']:,} parameters")
    elif model:
        parts.append(clean(model))
    if isinstance(run.get("parameters"), int):
        parts.append(f"{run['parameters']:,} parameters")
    optimizer = run.get("optimizer")
    if isinstance(optimizer, Mapping):
        parts += [clean(optimizer[key]) for key in ("name", "kind") if optimizer.get(key)][:1]
    elif optimizer:
        parts.append(clean(optimizer))
    return ", ".join(part for part in parts if part != "unknown")


def listing(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Spell a mapping as rows for a table, nested keys dotted, long lists cut.

    Returns:
        Key and value.
    """
    rows = []
    for key, item in flat(value).items():
        if isinstance(item, list | tuple):
            shown = ", ".join(_spelled(one) for one in item[:12]) + (
                f", … ({len(item)})" if len(item) > 12 else ""
            )
        else:
            shown = _spelled(item)
        rows.append((clean(key), shown or "-"))
    return rows


def _spelled(value: Any) -> str:
    value = plain(value)
    if isinstance(value, dict):
        return "; ".join(f"{clean(key)} {_spelled(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return clean(value) if isinstance(value, str) else number(value)


def sentence(text: object) -> str:
    """Spell words as a sentence: a capital first, a full stop last.

    Returns:
        The sentence; "" stays "".
    """
    said = clean(text).strip()
    if not said:
        return ""
    # A layer's or quantity's name keeps its case.
    first = said.split()[0]
    said = said if "." in first.rstrip(".") or "_" in first else said[0].upper() + said[1:]
    return said if said[-1] in ".!?" else f"{said}."
