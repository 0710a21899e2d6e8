"""The page of two runs: where they part, in what, and what could not be compared."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.comparison import Comparison
from hnf_offline.findings import Alarm, Spike
from hnf_offline.quantities import catalogue
from hnf_offline.report import figures, svg, svg_map, words
from hnf_offline.report.comparison_panels import both_losses, ratio_map
from hnf_offline.report.comparison_text import barrier_line, comparison_summary, loss_test, spelled
from hnf_offline.report.files import strict_json, whole, write_text
from hnf_offline.report.page import map_context, methods
from hnf_offline.report.pooling import pooled
from hnf_offline.report.series import symbol
from hnf_offline.report.stories import recovery
from hnf_offline.report.template import render
from hnf_offline.report.text import loss, number

if TYPE_CHECKING:
    import polars as pl

__all__ = ["comparison_summary", "write_comparison"]

MOST_SEPARATIONS = 60
MOST_ALARMS = 60
MOST_DISTANCES = 5


def write_comparison(
    comparison: Comparison,
    log_a: pl.DataFrame | None,
    log_b: pl.DataFrame | None,
    profile_a: pl.DataFrame,
    profile_b: pl.DataFrame,
    out: Path,
    *,
    command: str = "",
) -> Path:
    """Write `index.html`, `diff.json` and `figures/*.png`; all of them appear, or none.

    Args:
        comparison: what was found.
        log_a: rows of A's training log, None where there is none.
        log_b: rows of B's.
        profile_a: A's long table, empty where nothing was measured.
        profile_b: B's.
        out: folder to write to; made where it is not there.
        command: what the user typed.

    Returns:
        Path of the page.

    Raises:
        UsageError: if the folder cannot be written.
    """
    losses = both_losses(comparison, log_a, log_b, profile_a, profile_b)
    grid = ratio_map(comparison, log_a, log_b, profile_a, profile_b)
    with whole(out) as scratch:
        drawn = [] if losses is None else [(losses.name, figures.chart(losses))]
        if grid is not None:
            drawn.append((grid.name, figures.layer_map(pooled(grid, most_rows=svg_map.MOST_ROWS))))
        for name, figure in drawn:
            figures.save(figure, scratch / "figures" / f"{name}.png")
        document = strict_json(comparison.to_json())
        write_text(scratch / "diff.json", document)
        of_both = [one for one in methods(profile_a) if one in methods(profile_b)]
        barrier = catalogue()["landscape.linear_barrier"]
        page = render(
            "diff.html.j2",
            **_context(comparison),
            key_picture=None if losses is None else svg.chart(losses),
            map=None if grid is None else map_context(grid),
            methods=[
                *of_both,
                *([catalogue()["loss.paired_t"]] if comparison.loss_test else ()),
                *([barrier] if comparison.barriers and barrier not in of_both else ()),
            ],
            command=command,
            links=["diff.json", *(f"figures/{name}.png" for name, _ in drawn)],
            made=[
                *((key, value) for key, value in words.listing(comparison.made) if key != "command"),
                (
                    "SHA-256 of diff.json",
                    hashlib.sha256(document.encode("utf-8", "replace")).hexdigest()[:16],
                ),
            ],
        )
        write_text(scratch / "index.html", page)
    return out / "index.html"


def _context(comparison: Comparison) -> dict[str, Any]:
    word = comparison.verdict.get("word", "Cannot say")
    name_a, name_b = (
        str(run.get("name", label)) for label, run in (("A", comparison.a), ("B", comparison.b))
    )
    shown = comparison.separations[:MOST_SEPARATIONS]
    alarms = len(comparison.alarms_a) + len(comparison.alarms_b)
    return {
        "title": f"{name_a} vs {name_b}: {word}",
        "heading": f"{name_a} vs {name_b}",
        "subtitle": "",
        "sections": [
            ("configuration", f"Configuration {len(comparison.configuration)}"),
            ("map", "Which layer, when"),
            ("separations", "Where they part"),
            ("spikes", f"Spikes {len(comparison.spikes_a)} | {len(comparison.spikes_b)}"),
            ("incomparable", f"Incomparable {len(comparison.incomparable)}"),
            ("methods", "Methods"),
            ("data", "Data"),
        ],
        "verdict": {key: comparison.verdict.get(key, "") for key in ("sentence", "caveat")} | {"word": word},
        "tone": words.tone(word),
        "glyph": words.MARKS.get(word, "?"),
        "facts": comparison.facts[:4],
        "name_a": f"{name_a} ({words.subtitle(comparison.a)})",
        "name_b": f"{name_b} ({words.subtitle(comparison.b)})",
        "aligned": _aligned(comparison),
        "differences": [
            {"key": one.key, "a": spelled(one.a), "b": spelled(one.b)} for one in comparison.configuration
        ],
        "shared": words.listing(comparison.shared_configuration),
        "separations": [
            {
                "quantity": symbol(one.quantity),
                "layer": one.layer or "whole model",
                "step": "never durably" if one.step is None else f"{one.step:,}",
                "a": number(one.a),
                "b": number(one.b),
                "threshold": f"|log ratio| {number(one.threshold, 2)}",
                "certified": "yes" if one.certified else "no",
            }
            for one in shown
        ],
        "loss_test": loss_test(comparison),
        "barrier_line": barrier_line(comparison),
        "barriers": [
            {
                "step": f"{one.step:,}",
                "value": number(one.value),
                "rounding": number(one.high - one.value, 1) if math.isfinite(one.value) else "-",
                "place": f"{one.place:.0%}",
                "a": number(one.loss_a),
                "b": number(one.loss_b),
                "batch": one.batch,
                "certified": "yes" if one.certified else "no",
            }
            for one in comparison.barriers
        ],
        "separations_left_out": _left_out(len(comparison.separations) - len(shown), "more in diff.json"),
        "distances": _distances(comparison),
        "side_by_side": _side_by_side(comparison),
        "alarms_left_out": _left_out(alarms - MOST_ALARMS, "later alarms in diff.json"),
        "incomparable": comparison.incomparable,
    }


def _left_out(count: int, words_after: str) -> str:
    return f"{count:,} {words_after}." if count > 0 else ""


def _aligned(comparison: Comparison) -> str:
    said = [
        f"{key.replace('_', ' ')}: {value}"
        for key, value in words.listing(comparison.aligned)
        if key not in {"sentence", "words"}
    ]
    sentence = comparison.aligned.get("sentence") or comparison.aligned.get("words")
    return str(sentence) if sentence else "; ".join(said[:3])


def _distances(comparison: Comparison) -> list[dict[str, str]]:
    steps = sorted({one.step for one in comparison.weight_distances})
    rows = []
    for step in steps:
        there = [one for one in comparison.weight_distances if one.step == step]
        for one in sorted(there, key=lambda one: -one.relative)[:MOST_DISTANCES]:
            rows.append({
                "step": f"{step:,}",
                "layer": one.layer or "whole model",
                "distance": number(one.distance),
                "relative": number(one.relative),
            })
    return rows


def _side_by_side(comparison: Comparison) -> list[dict[str, str]]:
    # Tell spikes and alarms of both runs in order of the step at which they were known.
    told: dict[int, dict[str, list[str]]] = {}
    sides: tuple[tuple[str, tuple[Spike, ...], tuple[Alarm, ...]], ...] = (
        ("a", comparison.spikes_a, comparison.alarms_a),
        ("b", comparison.spikes_b, comparison.alarms_b),
    )
    alarms = sorted((alarm.known_at, side, alarm.text) for side, _, every in sides for alarm in every)
    for step, side, said in alarms[:MOST_ALARMS]:
        told.setdefault(step, {"a": [], "b": []})[side].append(said)
    for side, spikes, _ in sides:
        for spike in spikes:
            told.setdefault(spike.onset, {"a": [], "b": []})[side].append(
                f"▲ spike {spike.id}: loss {loss(spike.loss_before)} to {loss(spike.loss_peak)} "
                f"at {spike.peak:,}, recovered: {recovery(spike)}"
            )
    return [
        {"step": f"{step:,}", "a": "; ".join(sides["a"]) or "-", "b": "; ".join(sides["b"]) or "-"}
        for step, sides in sorted(told.items())
    ]
