"""The report: one page that opens offline, the figures as PNG, the findings as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.findings import Advice, Findings, Growth, ReplayCheck
from hnf_offline.quantities import catalogue
from hnf_offline.report import figures, svg, svg_evidence, svg_map, words
from hnf_offline.report.chart import Chart
from hnf_offline.report.curve_text import curve_lines, log_quantities, precision_lines
from hnf_offline.report.evidence import Predictors, Raster, predictors, raster, share
from hnf_offline.report.faults import fault_rows, faults_counted, nav_mark, unsound
from hnf_offline.report.files import strict_json, whole, write_text
from hnf_offline.report.key_picture import key_picture
from hnf_offline.report.layer_map import LayerMap, layer_maps
from hnf_offline.report.layer_table import top_layers
from hnf_offline.report.pooling import pooled
from hnf_offline.report.series import symbol
from hnf_offline.report.stories import CAUSES, StoryPanel, recovery, severity, story_panels
from hnf_offline.report.template import render
from hnf_offline.report.text import clean, loss, number, plural, shorten

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

#: Story panels drawn in full; the table lists every spike.
MOST_STORIES = 12
MOST_REPLAY_CHECKS = 6
MOST_ROWS = 200
#: Rows of a map's detailed copy: beyond this even one pixel a row is no longer readable.
MOST_THIN_ROWS = 1200


@dataclass(frozen=True, slots=True)
class Panels:
    """Everything the page draws, as data.

    Attributes:
        key_picture: loss and the strongest quantity.
        stories: one a spike.
        maps: layer maps, unpooled.
        raster: alarms before each onset.
        predictors: every rule beside its baselines.
    """

    key_picture: Chart | None
    stories: tuple[StoryPanel, ...]
    maps: tuple[LayerMap, ...]
    raster: Raster | None
    predictors: Predictors | None


def panels(findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame) -> Panels:
    """Build every panel of the report.

    Returns:
        The panels.
    """
    return Panels(
        key_picture=key_picture(findings, run_log, profile),
        stories=story_panels(findings, run_log, profile),
        maps=layer_maps(findings, run_log, profile),
        raster=raster(findings),
        predictors=predictors(findings),
    )


def write_report(
    findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame, out: Path, *, command: str = ""
) -> Path:
    """Write `index.html`, `findings.json` and `figures/*.png`; all of them appear, or none.

    Args:
        findings: what was found.
        run_log: rows of the training log, None where there is none.
        profile: the long table, empty where nothing was measured.
        out: folder to write to; made where it is not there.
        command: what the user typed.

    Returns:
        Path of the page.

    Raises:
        UsageError: if the folder cannot be written.
    """
    findings = replace(findings, advice=tuple(_with_evidence_written(one, out) for one in findings.advice))
    built = panels(findings, run_log, profile)
    with whole(out) as scratch:
        drawn = save_figures(built, scratch / "figures")
        document = strict_json(findings.to_json())
        write_text(scratch / "findings.json", document)
        hashes = {"findings.json": document.encode("utf-8", "replace")}
        if (out / "profile.parquet").is_file():
            hashes["profile.parquet"] = (out / "profile.parquet").read_bytes()
        page = report_page(findings, built, run_log, profile, command=command, files=hashes, drawn=drawn)
        write_text(scratch / "index.html", page)
    return out / "index.html"


def _with_evidence_written(one: Advice, out: Path) -> Advice:
    # A page links only to what is there.
    return one if not one.evidence or (out / one.evidence).is_file() else replace(one, evidence="")


def drawn_figures(built: Panels) -> list[tuple[str, Figure]]:
    """Draw every panel with matplotlib.

    Returns:
        Names and figures, none of them shown.
    """
    charts = [built.key_picture, *(story.chart for story in _told(built.stories))]
    drawn = [(chart.name, figures.chart(chart)) for chart in charts if chart is not None]
    drawn += [
        (grid.name, figures.layer_map(pooled(grid, most_rows=svg_map.MOST_ROWS))) for grid in built.maps
    ]
    if built.raster is not None:
        drawn.append((built.raster.name, figures.raster(built.raster)))
    if built.predictors is not None and built.predictors.dots:
        drawn.append((built.predictors.name, figures.predictors(built.predictors)))
    return drawn


def save_figures(built: Panels, folder: Path) -> tuple[str, ...]:
    """Save every panel as PNG.

    Returns:
        The file names.
    """
    drawn = drawn_figures(built)
    for name, figure in drawn:
        figures.save(figure, folder / f"{name}.png")
    return tuple(f"{name}.png" for name, _ in drawn)


def report_page(
    findings: Findings,
    built: Panels,
    run_log: pl.DataFrame | None,
    profile: pl.DataFrame,
    *,
    command: str,
    files: dict[str, bytes],
    drawn: tuple[str, ...],
) -> str:
    """Fill the report's template.

    Returns:
        The page as HTML.
    """
    word = findings.verdict.get("word", "Cannot say")
    run = findings.run
    layers = top_layers(built.maps[0] if built.maps else None)
    told = _told(built.stories)
    left_out = len(built.stories) - len(told)
    has_log = run_log is not None and "loss" in run_log.columns and run_log.height > 0
    return render(
        "report.html.j2",
        title=f"{run.get('name', 'run')}: {word}",
        heading=run.get("name", "run"),
        subtitle=words.subtitle(run),
        sections=_sections(findings, built),
        verdict={key: findings.verdict.get(key, "") for key in ("sentence", "caveat")} | {"word": word},
        tone=words.tone(word),
        glyph=words.MARKS.get(word, "?"),
        facts=findings.facts[:4],
        key_picture=None if built.key_picture is None else svg.chart(built.key_picture),
        missing=words.missing(run),
        zoomed=[words.sentence(one) for one in words.zoomed(findings.zooms)],
        zoom_rows=words.differences(findings.zooms),
        has_log=has_log,
        spike_rows=[_spike_row(story, findings) for story in built.stories],
        stories=[_story(story) for story in told],
        stories_left_out=f"{plural(left_out, 'milder spike')} listed in the table only." if left_out else "",
        maps=[map_context(grid) for grid in built.maps],
        raster=None
        if built.raster is None
        else {"title": built.raster.title, "svg": svg_evidence.raster(built.raster)},
        predictors=None if built.predictors is None else _predictors(built.predictors),
        regimes=_regimes(findings),
        aurocs=[_auroc(one) for one in findings.rates.get("auroc") or ()],
        growth=[_growth(one) for one in findings.growth[:20]],
        layers=[
            {
                "layer": row.layer or "whole model",
                "kind": row.kind,
                "baseline": row.baseline,
                "peak": row.peak,
                "departure": row.departure,
                "step": row.step,
                "bar": f"{100 * row.share:.0f}",
            }
            for row in layers
        ],
        layers_by=symbol(built.maps[0].quantity) if built.maps else "",
        estimates=bool(built.maps) and built.maps[0].form == "bands",
        pathologies=[
            {
                "kind": one.kind,
                "layer": one.layer or "whole model",
                "step": f"{one.step:,}",
                "evidence": one.evidence,
                "action": one.action,
            }
            for one in findings.pathologies[:200]
        ],
        faults=fault_rows(findings.faults),
        unsound=unsound(findings.faults),
        faults_counted=faults_counted(findings.faults),
        checked=", ".join(one for one in findings.run.get("checked") or () if one != "initialisation"),
        initialisation=str(findings.run.get("initialisation") or ""),
        replay_checks=[words.replay_sentence(check) for check in _telling(findings)],
        replay_title=words.replay_title(findings.replay_checks) if findings.replay_checks else "",
        health=words.health(run),
        curve=[*curve_lines(findings.curve), *precision_lines(findings.precision)],
        skipped=words.skipped(run),
        advice=[
            {
                "action": words.sentence(one.action),
                "because": words.sentence(one.because),
                "tested": words.sentence(one.tested),
                "evidence": clean(one.evidence),
                "policy": clean(one.policy),
                "numbers": ", ".join(
                    f"{key.replace('_', ' ')} {number(value)}" for key, value in one.numbers.items()
                ),
            }
            for one in findings.advice
        ],
        methods=[*methods(profile), *log_quantities(findings.curve, findings.precision)],
        command=command,
        links=[*files, *(f"figures/{name}" for name in drawn)],
        made=_made(findings, files),
        run_rows=words.listing(run),
    )


def map_context(grid: LayerMap) -> dict[str, Any]:
    """Draw a map, pooled where it has too many rows, with every layer's own row in a second picture.

    Returns:
        Title, SVG, caption and the detailed SVG (None where nothing was pooled).
    """
    shown = pooled(grid, most_rows=svg_map.MOST_ROWS)
    rows = len(grid.rows)
    # Only the first map is worth its bytes twice.
    full = shown is not grid and grid.name in {"map_1", "ratio_map"} and rows <= MOST_THIN_ROWS
    caption = "; ".join(shown.notes)
    return {
        "title": shown.title,
        "svg": svg_map.layer_map(shown),
        "caption": f"{caption}." if caption else "",
        "full": svg_map.layer_map(grid, row_height=2.0) if full else None,
    }


def methods(profile: pl.DataFrame) -> list[Any]:
    """Look up the catalogue's entries of what was measured.

    Returns:
        Entries in catalogue order.
    """
    present = set(profile["quantity"].unique().to_list())
    return [entry for name, entry in catalogue().items() if name in present and not name.endswith("_head")]


def _told(stories: tuple[StoryPanel, ...]) -> tuple[StoryPanel, ...]:
    # Keep the worst spikes' panels, in order of onset.
    worst = sorted(stories, key=lambda story: severity(story.spike), reverse=True)[:MOST_STORIES]
    return tuple(story for story in stories if story in worst)


def _telling(findings: Findings) -> list[ReplayCheck]:
    # What does not agree comes first, then the checkpoints just before an onset.
    onsets = [spike.onset for spike in findings.spikes]

    def far(check: ReplayCheck) -> tuple[bool, int]:
        ahead = [onset - check.checkpoint for onset in onsets if onset > check.checkpoint]
        return check.agrees, min(ahead, default=2**62)

    return sorted(findings.replay_checks, key=far)[:MOST_REPLAY_CHECKS]


def _sections(findings: Findings, built: Panels) -> list[tuple[str, str]]:
    spikes = len(findings.spikes)
    checks = findings.replay_checks
    healthy = not findings.pathologies and all(check.agrees for check in checks)
    return [
        ("spikes", f"Spikes {spikes} ▲" if spikes else "Spikes 0"),
        ("map", "Which layer, when"),
        ("lead", "Does it lead?"),
        ("layers", "Layers"),
        ("series", nav_mark(findings.faults, findings.run.get("checked"))),
        ("health", "Health ✓" if healthy and checks else ("Health" if healthy else "Health !")),
        ("advice", f"Advice {len(findings.advice)}"),
        ("methods", "Methods"),
        ("data", "Data"),
    ]


def _spike_row(panel: StoryPanel, findings: Findings) -> dict[str, str | int]:
    spike = panel.spike
    story = next((one for one in findings.stories if one.spike == spike.id), None)
    return {
        "id": spike.id,
        "onset": f"{spike.onset:,}",
        "peak": f"{loss(spike.loss_peak)} at {spike.peak:,}",
        "before": loss(spike.loss_before),
        "z": number(spike.z, 2),
        "kind": spike.kind + (", at a resume" if spike.at_resume else ""),
        "recovered": recovery(spike),
        "lead": story.lead_text if story else "-",
        "first": shorten(story.first_layer, 40) if story and story.first_quantity else "-",
        "cause": CAUSES.get(story.cause, story.cause) if story else "-",
    }


def _story(panel: StoryPanel) -> dict[str, Any]:
    return {
        "id": panel.spike.id,
        "onset": f"{panel.spike.onset:,}",
        "worst": panel.worst,
        "sentence": words.sentence(panel.sentence),
        "facts": panel.facts,
        "svg": None if panel.chart is None else svg.chart(panel.chart),
        "timeline": [(f"{step:,}", sentence) for step, sentence in panel.timeline],
    }


def _predictors(panel: Predictors) -> dict[str, Any]:
    return {
        "title": panel.title,
        "rows": panel.rows,
        "more": panel.more[:MOST_ROWS],
        "svg": svg_evidence.predictors(panel) if panel.dots else None,
    }


def _regimes(findings: Findings) -> dict[str, Any] | None:
    # Lay the regimes out as a table: every key that any of them has is a column.
    if not findings.regimes:
        return None
    columns = list(dict.fromkeys(key for regime in findings.regimes for key in regime))
    rows = [
        [words.listing({"": regime[key]})[0][1] if regime.get(key) is not None else "-" for key in columns]
        for regime in findings.regimes[:60]
    ]
    return {"columns": [column.replace("_", " ") for column in columns], "rows": rows}


def _auroc(one: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("auroc", "step_index", "log_loss", "time_since_spike")
    return {
        "rule": one.get("rule", ""),
        "quantity": symbol(str(one.get("quantity", ""))),
        "horizon": number(one.get("horizon")),
        "n": f"{number(one.get('n_positive'))} of {number(one.get('n_steps'))}",
        "baseline": bool(one.get("baseline")),
        "values": [share(one.get(key)) for key in keys],
    }


def _growth(one: Growth) -> dict[str, str]:
    reach = "-"
    if one.threshold is not None and one.projected_step is not None:
        reach = f"{number(one.threshold)} at step {number(round(one.projected_step))}"
    return {
        "quantity": symbol(one.quantity),
        "layer": one.layer or "whole model",
        "steps": f"{one.start:,}–{one.end:,}",
        "doubling": f"{number(one.doubling_steps)} steps [{number(one.low)}–{number(one.high)}]",
        "r2": number(one.r2, 2),
        "reach": reach,
    }


def _made(findings: Findings, files: dict[str, bytes]) -> list[tuple[str, str]]:
    rows = [(key, value) for key, value in words.listing(findings.made) if key != "command"]
    rows += [
        (f"SHA-256 of {name}", hashlib.sha256(content).hexdigest()[:16]) for name, content in files.items()
    ]
    return rows
