"""The page of a retraining: is it the run, and what would have happened otherwise."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hnf_offline.quantities import catalogue
from hnf_offline.report import figures, retraining_figures, retraining_svg, words
from hnf_offline.report import retraining_words as spelled
from hnf_offline.report.colours import ARMS_DARK, ARMS_LIGHT
from hnf_offline.report.files import strict_json, whole, write_text
from hnf_offline.report.retraining_panels import Picture, arm_label, arm_style, picture
from hnf_offline.report.stories import recovery
from hnf_offline.report.template import render, source
from hnf_offline.report.text import loss, number
from hnf_offline.retraining import Arm, LargestStable, Retraining, Twins

if TYPE_CHECKING:
    import polars as pl

#: Every figure this page may have; one that is not drawn again is removed.
FIGURES = ("retraining", "largest_stable")
MOST_SPIKES = 60


def write_retraining(
    retraining: Retraining, log: pl.DataFrame | None, out: Path, *, command: str = ""
) -> Path:
    """Write `index.html`, `rerun.json` and `figures/*.png`; all of them appear, or none.

    Args:
        retraining: what was found.
        log: rows of the run's training log, None where there is none.
        out: folder to write to; made where it is not there.
        command: what the user typed.

    Returns:
        Path of the page.

    Raises:
        UsageError: if the folder cannot be written.
    """
    panel = picture(retraining, log)
    with whole(out) as scratch:
        drawn = [] if panel is None else [(panel.name, retraining_figures.picture(panel))]
        if retraining.largest_stable is not None:
            drawn.append(("largest_stable", retraining_figures.largest_stable(retraining.largest_stable)))
        for name, figure in drawn:
            figures.save(figure, scratch / "figures" / f"{name}.png")
        document = strict_json(retraining.to_json())
        write_text(scratch / "rerun.json", document)
        hashed = hashlib.sha256(document.encode("utf-8", "replace")).hexdigest()[:16]
        beside = ["profile.parquet"] if (out / "profile.parquet").is_file() else []
        page = render(
            "retraining.html.j2",
            **context(retraining, panel),
            command=command,
            links=["rerun.json", *beside, *(f"figures/{name}.png" for name, _ in drawn)],
            made=[
                *((key, value) for key, value in words.listing(retraining.made) if key != "command"),
                ("SHA-256 of rerun.json", hashed),
            ],
        )
        write_text(scratch / "index.html", page)
    for name in set(FIGURES) - {name for name, _ in drawn}:
        (out / "figures" / f"{name}.png").unlink(missing_ok=True)
    return out / "index.html"


def context(retraining: Retraining, panel: Picture | None) -> dict[str, Any]:
    """Put a retraining into the words of its page.

    Returns:
        What the template needs, except what only the writing knows.
    """
    word, glyph, _, tone = spelled.verdict(retraining.reproduction)
    name = str(retraining.run.get("name", "run"))
    what = "zoom" if retraining.kind == "zoom" else "what if"
    largest, twins = retraining.largest_stable, retraining.twins
    notes = [words.sentence(one) for one in retraining.notes]
    measured = any(arm.stability_steps for arm in retraining.arms)
    return {
        "title": f"{name}: {what}, {word}",
        "heading": f"{name}: {what}",
        "subtitle": spelled.subtitle(retraining),
        "sections": _sections(retraining),
        "verdict": {
            "word": word,
            "sentence": spelled.because(retraining.reproduction),
            "caveat": _caveat(retraining),
        },
        "tone": tone,
        "glyph": glyph,
        "facts": spelled.facts(retraining),
        "kind": retraining.kind,
        "arms_style": arms_style(),
        "assumed": [_clause(one) for one in retraining.reproduction.assumed],
        "found": [_clause(one) for one in retraining.reproduction.found],
        "picture": None if panel is None else retraining_svg.picture(panel),
        "caption": "" if panel is None else f"{panel.title}.",
        "arms": [_arm(place, arm, retraining.arms[0]) for place, arm in enumerate(retraining.arms)],
        "spikes": [_spikes(place, arm) for place, arm in enumerate(retraining.arms) if arm.spikes],
        "largest": None if largest is None else _largest(largest),
        "twins": None if twins is None else _twins(twins),
        "weights": _weights(retraining),
        "agreement": _agreement(retraining),
        "notes": notes,
        "policies": [
            {
                "label": arm_label(place, arm),
                "formula": arm.formula,
                "cost": arm.cost,
                "reference": arm.reference,
            }
            for place, arm in enumerate(retraining.arms)
            if arm.formula or arm.reference
        ],
        "methods": [catalogue()["hessian.stability_ratio"]] if measured else [],
        "run_rows": words.listing(retraining.run),
    }


def arms_style() -> Markup:
    """Spell the colours of the arms for both themes.

    Returns:
        Style rules.
    """

    def rules(colours: tuple[str, ...]) -> str:
        return "".join(
            f".arm{place}{{stroke:{colour}}}.fill.arm{place}{{fill:{colour}}}"
            for place, colour in enumerate(colours)
        )

    dark = f"@media (prefers-color-scheme:dark){{{rules(ARMS_DARK)}}}"
    return Markup(f"{source('retraining.css')}{rules(ARMS_LIGHT)}{dark}")


def _sections(retraining: Retraining) -> list[tuple[str, str]]:
    shown = [
        ("arms", "Steps" if retraining.kind == "zoom" else f"Arms {len(retraining.arms)}", retraining.arms),
        ("largest", "Largest stable rate", retraining.largest_stable),
        ("twins", "Chance", retraining.twins),
        ("weights", f"Weights {len(retraining.reproduction.weights)}", True),
        ("notes", f"Notes {len(retraining.notes)}", retraining.notes),
        ("methods", "Methods", True),
        ("data", "Data", True),
    ]
    return [(target, label) for target, label, there in shown if there]


def _caveat(retraining: Retraining) -> str:
    # What the arms showed stands beside whether they may be believed.
    told = [f"{arm.policy}: {arm.outcome}" for arm in retraining.arms[1:3] if arm.outcome]
    more = len(retraining.arms) - 3
    said = "; ".join(told) + (f"; and {more} more below" if told and more > 0 else "")
    mismatch = retraining.reproduction.first_mismatch
    named = f"of step {mismatch} " in retraining.reproduction.because
    first = "" if mismatch is None or named else f"The first loss that differs is that of step {mismatch:,}. "
    return first + (words.sentence(said) if said else "")


def _clause(text: str) -> str:
    return text.strip().rstrip(".")


def _arm(place: int, arm: Arm, as_was: Arm) -> dict[str, Any]:
    return {
        "chip": retraining_svg.chip(*arm_style(place)),
        "label": arm_label(place, arm),
        "outcome": words.sentence(arm.outcome),
        "formula": arm.formula,
        "cost": arm.cost or "-",
        "row": spelled.arm_row(arm, as_was),
    }


def _spikes(place: int, arm: Arm) -> dict[str, Any]:
    rows = [
        (
            f"{spike.onset:,}",
            f"{loss(spike.loss_peak)} at {spike.peak:,}",
            loss(spike.loss_before),
            number(spike.z, 2),
            spike.kind,
            recovery(spike),
        )
        for spike in arm.spikes[:MOST_SPIKES]
    ]
    return {"label": arm_label(place, arm), "rows": rows}


def _largest(found: LargestStable) -> dict[str, Any]:
    return {
        "text": words.sentence(found.text),
        "interval": spelled.stable_interval(found),
        "curvature": spelled.from_curvature(found),
        "checkpoint": f"{found.checkpoint:,}",
        "rate": spelled.rate(found.learning_rate),
        "steps": f"{found.steps:,}",
        "tried": [
            {
                "rate": spelled.rate(rate),
                "times": f"×{number(rate / found.learning_rate)}" if found.learning_rate else "-",
                "result": "▲ spike" if spiked else "● no spike",
                "peak": loss(peak),
            }
            for rate, spiked, peak in sorted(found.tried)
        ],
    }


def _twins(twins: Twins) -> dict[str, Any]:
    rows = [("what they are", spelled.band(twins))]
    if twins.steps:
        rows.append((
            f"their loss at step {twins.steps[-1]:,}",
            f"{loss(twins.low[-1])}–{loss(twins.high[-1])}",
        ))
    rate = spelled.lyapunov(twins)
    rows.append(("Lyapunov rate", rate or "cannot be told"))
    kinds = {
        "butterfly": "Butterfly twins: the run again, on the same batches, from slightly changed weights",
        "statistical": "Statistical twins: runs like this one on other batches, not this run",
    }
    what = kinds.get(twins.kind, words.sentence(twins.kind).rstrip("."))
    return {"what": what, "text": words.sentence(twins.text), "rows": rows}


def _weights(retraining: Retraining) -> list[tuple[str, str, str, str]]:
    return [
        (
            f"{check.step:,}",
            number(check.difference, 2),
            number(check.travelled, 2),
            number(check.difference / check.travelled, 2)
            if check.travelled and math.isfinite(check.travelled)
            else "-",
        )
        for check in retraining.reproduction.weights
    ]


def _agreement(retraining: Retraining) -> list[tuple[str, str]]:
    found = retraining.reproduction
    return [
        ("losses compared with the log", f"{found.losses:,}"),
        ("largest difference of a loss, relative", number(found.loss_difference, 2)),
        ("largest difference of a gradient norm, relative", number(found.grad_norm_difference, 2)),
    ]
