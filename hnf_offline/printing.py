"""What the verbs print on stdout: JSON documents, plans and the catalogue."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from hnf_offline.errors import UsageError
from hnf_offline.progress import in_colour, printable

#: C1 controls, marks that hide or reverse text, and halves of characters.
_OBEYED = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")

#: Fields of a catalogue entry, as `--json` prints them and `explanation` spells them.
TOLD = ("name", "unit", "tier", "layers", "formula", "description", "reading", "cannot", "reference", "bands")


def emit(text: str) -> None:
    """Print a result; in a pipe, control characters are escaped."""
    # A live terminal gets the colours of our own views; they clean whatever they took from files.
    print(text if in_colour(sys.stdout) else printable(text))


def emit_json(document: Mapping[str, Any]) -> None:
    """Print one strict JSON document; what a terminal would obey, and half characters, stay escaped in it."""
    text = json.dumps(document, allow_nan=False, ensure_ascii=not _utf(), indent=2, default=str)
    print(_OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def emit_now(text: str) -> None:
    """Print a result and hand it on at once, for whoever reads while we go on."""
    emit(text)
    sys.stdout.flush()


def json_line(document: Mapping[str, Any]) -> str:
    """Spell one strict JSON document on one line.

    Returns:
        The line, with what a terminal would obey escaped.
    """
    text = json.dumps(document, allow_nan=False, ensure_ascii=not _utf(), default=str)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def terminal() -> dict[str, Any]:
    """Describe stdout: how wide, and whether colours and marks beyond ASCII can be shown.

    Returns:
        Keyword arguments of the terminal views.
    """
    width = shutil.get_terminal_size((100, 24)).columns
    return {"width": width, "color": in_colour(sys.stdout), "unicode": _utf()}


def _utf() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")


def plan_text(told: Mapping[str, Any]) -> str:
    """Spell the plan of one run.

    Returns:
        A few lines.
    """
    lines = [f"{told['run']} -> {told['out']}"]
    if told["checkpoints"]:
        lines += [
            f"  {_counted(told['checkpoints'], 'checkpoint')}, {told['cached']} of them from cache",
            f"  tier {told['tier']}, {told['layers']} layers with their own curvature, "
            f"{told['parameters']:,} parameters",
            f"  {_replayed(told)} replayed on {told['device']}",
            f"  about {told['forwards']:,.0f} forward passes a checkpoint, "
            f"{told['peak_bytes'] / 2**20:,.0f} MiB at the peak",
            _time_text(told),
        ]
        if told.get("zoom_steps"):
            lines.append(
                f"  zoom: {_counted(told['zoom_steps'], 'step')} before spikes, "
                f"measured every {told['zoom_every']}, about "
                f"{_duration(told['zoom_seconds'])}, and as much again where alarms are found; --zoom off leaves it out"
            )
        if told.get("zoom_refused"):
            lines.append(f"  no zoom before spikes: {told['zoom_refused']}")
    else:
        lines.append("  no checkpoints: the log alone is analysed")
    return "\n".join([*lines, *(f"  missing: {one}" for one in told["missing"])])


def check_plan_text(told: Mapping[str, Any]) -> str:
    """Spell what `hnf check` would look at.

    Returns:
        What would be read and replayed, the checks by what they take, and those that would not be made.
    """
    steps, replayed = told["steps"], told["replayed"]
    where = f" of steps {steps[0]} to {steps[1]}" if steps else ""
    lines = [f"{printable(told['run'])}: {_counted(told['checkpoints'], 'checkpoint')}{where}"]
    if told["read_bytes"]:
        size = told["read_bytes"]
        shown = f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"
        lines.append(f"  read: {shown} of weights and optimizer states, one checkpoint at a time")
    if replayed:
        lines.append(
            f"  replay: checkpoints {', '.join(map(str, replayed))} on the batches of the steps next to them, or fewer "
            "where the model is large"
        )
    costs = {
        "cheap": "from names, headers, JSON and the log",
        "first": "from the first checkpoint",
        "weights": "from every tensor",
        "replay": "from replays",
    }
    for cost, words in costs.items():
        made = [one for one in told["checks"] if one["cost"] == cost and not one["skipped_because"]]
        if made:
            lines.append(f"  {words}:")
            size = max(len(one["name"]) for one in made)
            lines += [f"    {one['name']:<{size}}  {one['looks_for']}" for one in made]
    reasons: dict[str, list[str]] = {}
    for one in told["checks"]:
        if one["skipped_because"]:
            reasons.setdefault(one["skipped_because"], []).append(one["name"])
    lines += [f"  not checked: {', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return "\n".join([*lines, *(f"  missing: {one}" for one in told["missing"])])


def fields_text(told: Mapping[str, Any]) -> str:
    """Spell a plan that is a mapping of fields, one a line; seconds and bytes in units a reader knows.

    Returns:
        "name -> folder", then a line a field, and a line for each thing that is missing or worth a note.
    """
    lines = [f"{told['run']} -> {told['out']}"]
    listed: list[str] = []
    for key, value in told.items():
        label = key.removesuffix("_bytes").replace("_", " ")
        if key in {"run", "out", "path"} or value is None or value in ("", (), []):
            continue
        if isinstance(value, list | tuple) and key in {"missing", "notes"}:
            listed += [f"  {key.removesuffix('s')}: {one}" for one in value]
        elif isinstance(value, list | tuple):
            lines.append(f"  {label}: {', '.join(str(one) for one in value)}")
        elif key.endswith("_bytes"):
            lines.append(f"  {label}: {value / 2**20:,.0f} MiB")
        elif "seconds" in key:
            lines.append(f"  {label.replace('seconds', 'time')}: about {_duration(value)}")
        elif isinstance(value, bool):
            lines.append(f"  {label}: {'yes' if value else 'no'}")
        elif isinstance(value, int | float):
            lines.append(f"  {label}: {value:,}" if isinstance(value, int) else f"  {label}: {value:,.3g}")
        else:
            lines.append(f"  {label}: {value}")
    return "\n".join([*lines, *listed])


def _replayed(told: Mapping[str, Any]) -> str:
    if told.get("array"):
        return f"{told['rows']} rows of {printable(told['array'])} ({_counted(told['tokens'], 'position')})"
    return f"{told['rows']} sequences ({told['tokens']:,} tokens)"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _time_text(told: Mapping[str, Any]) -> str:
    if not told["forwards"]:
        return "  how long that takes is not foreseen: files are read, nothing is replayed"
    low, high, left = told["seconds_low"], told["seconds_high"], told["checkpoints"] - told["cached"]
    return (
        f"  {_between(low, high)} a checkpoint, {_between(low * left, high * left)} for those not in the cache, "
        "while the machine is as busy as now"
    )


def _between(low: float, high: float) -> str:
    """Spell a range of seconds in whole units: no finer than a second, since nothing was measured finer.

    Returns:
        "3 to 8 s", "2 to 5 min", "about 2 h"; "less than 1 s".
    """
    if high == 0:
        return "0 s"
    if high <= 1:
        return "less than 1 s"
    size, unit = (1, "s") if high < 90 else (60, "min") if high < 5400 else (3600, "h")
    digits = 1 if unit == "h" and high < 36_000 else 0
    least, most = (f"{value / size:.{digits}f}" for value in (low, high))
    if float(least) == 0:
        return f"up to {most} {unit}"
    return f"about {most} {unit}" if least == most else f"{least} to {most} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def entries(
    name: str | None, tier: str | None, kind: str | None = None, source: str | None = None
) -> list[dict[str, Any]]:
    """Select from the catalogue.

    Args:
        name: one quantity, None for all.
        tier: one tier, None for all.
        kind: a family ("weight") or what it is measured on ("softmax"), None for all.
        source: a source document ("profiler") or words of the reference ("2309.14322"), None for all.

    Returns:
        The entries as JSON values, in catalogue order.

    Raises:
        UsageError: if there is no quantity of that name in that tier, or none of that kind or source.
    """
    import difflib

    from hnf_offline.quantities import catalogue

    known = {key: one for key, one in catalogue().items() if tier is None or one.tier == tier}
    if kind is not None:
        known = {key: one for key, one in known.items() if _is_of_kind(key, one.layers, kind)}
        if not known:
            families = ", ".join(dict.fromkeys(key.partition(".")[0] for key in catalogue()))
            raise UsageError(f"nothing is measured of {kind}", remedy=f"the families are {families}")
    if source is not None:
        known = _from_source(known, source)
    if name is not None and name not in known:
        close = difflib.get_close_matches(name, known, 3) or [key for key in known if name in key][:3]
        remedy = f"did you mean {', '.join(close)}?" if close else "hnf quantities lists them all"
        where = "" if tier is None else f" in tier {tier}"
        raise UsageError(f"no quantity is called {name}{where}", remedy=remedy)
    chosen = known.values() if name is None else [known[name]]
    return [{field: getattr(one, field) for field in TOLD} for one in chosen]


def _is_of_kind(name: str, layers: str, kind: str) -> bool:
    family = name.partition(".")[0]
    return family == kind or re.search(rf"\b{re.escape(kind)}(e?s)?\b", layers, re.IGNORECASE) is not None


def _from_source(known: Mapping[str, Any], source: str) -> dict[str, Any]:
    from hnf_offline.quantities.sources import DOCUMENTS, measures_of

    if source in DOCUMENTS:
        listed = {name for measure in measures_of(source) for name in measure.quantities}
        return {key: one for key, one in known.items() if key in listed}
    found = {key: one for key, one in known.items() if source.casefold() in one.reference.casefold()}
    if not found:
        raise UsageError(
            f"no reference says {source}",
            remedy=f"the source documents are {', '.join(DOCUMENTS)}; else words of a reference, such as 2309.14322",
        )
    return found


def listing(chosen: Sequence[Mapping[str, Any]], width: int) -> str:
    """Spell entries of the catalogue as a table.

    Returns:
        One line an entry: name, tier, unit and what it is; two where one is too narrow.
    """
    if not chosen:
        return "no quantity"
    columns = [max(len(str(one[field])) for one in chosen) for field in ("name", "tier", "unit")]
    lines = []
    if width < sum(columns) + 26:  # room for some words beside the columns
        for one in chosen:
            lines.append(textwrap.shorten(f"{one['name']} ({one['tier']}, {one['unit']})", width))
            lines.append(f"  {textwrap.shorten(one['description'], width - 2)}")
        return "\n".join(lines)
    for one in chosen:
        head = "  ".join(
            str(one[field]).ljust(size) for field, size in zip(("name", "tier", "unit"), columns, strict=True)
        )
        lines.append(f"{head}  {textwrap.shorten(one['description'], max(20, width - len(head) - 2))}")
    return "\n".join(lines)


def explanation(one: Mapping[str, Any], width: int) -> str:
    """Explain one quantity.

    Returns:
        A paragraph a field.
    """
    fields = {
        "what": one["description"],
        "formula": one["formula"],
        "unit": one["unit"],
        "where": one["layers"],
        "tier": one["tier"],
        "read it like this": one["reading"],
        "it cannot show": one["cannot"],
        "bands": ", ".join(f"{band:g}" for band in one["bands"]) or "none published",
        "source": one["reference"],
    }
    lines = [one["name"]]
    for label, text in fields.items():
        lines += textwrap.wrap(
            str(text),
            min(width, 100),
            initial_indent=f"  {label + ':':<19}",
            subsequent_indent=" " * 21,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
