"""The verdict and the four facts: what happened, where, how early, whether more than chance, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.findings import Advice, Pathology, Relation, Spike, Story
from hnf_offline.relate.evidence import number
from hnf_offline.relate.healthy import worst
from hnf_offline.relate.hovering import no_warning
from hnf_offline.relate.resolution import too_sparse
from hnf_offline.relate.series import column, last_at_or_before, points

if TYPE_CHECKING:
    import polars as pl

#: Spikes below which no claim about chance is made.
ENOUGH_SPIKES = 4
#: "Stable" needs this many profiled checkpoints and this share of logged steps with a finite loss.
ENOUGH_CHECKPOINTS, ENOUGH_FINITE = 3, 0.9
#: Level of the test, and the least difference in skill that counts as better.
LEVEL, CLEARLY = 0.05, 0.1


def skill(relation: Relation) -> float:
    """What a rule knows in time and beyond chance: excess early recall plus excess precision.

    Early recall counts alarms at least ten steps ahead: one step's notice is no warning.

    Returns:
        The sum, 0 where nothing was scored.
    """
    if relation.early_recall is None or relation.precision is None:
        return 0.0
    return (
        relation.early_recall
        - (relation.early_chance or 0.0)
        + relation.precision
        - (relation.chance_precision or 0.0)
    )


def headline(relations: Sequence[Relation]) -> Relation | None:
    """Find the relation of our stability alarm.

    Returns:
        The relation, None where S is not known.
    """
    return next((relation for relation in relations if relation.rule == "stability alarm"), None)


def best_baseline(relations: Sequence[Relation], quantity: str | None = None) -> Relation | None:
    """Find the rival with the most skill.

    Args:
        relations: all relations.
        quantity: only rivals on this quantity, such as "grad_norm".

    Returns:
        The relation, None where there is none.
    """
    rivals = [
        relation
        for relation in relations
        if relation.baseline and relation.recall is not None and quantity in {None, relation.quantity}
    ]
    return max(rivals, key=skill, default=None)


def beats_gradient_norm(relations: Sequence[Relation]) -> str:
    """Say whether the stability alarm announced the spikes better than the gradient norm.

    Returns:
        "yes", "no" or "not shown"; with fewer than four spikes always "not shown".
    """
    ours = headline(relations)
    rival = best_baseline(relations, "grad_norm") or best_baseline(relations, "gradient.norm")
    if ours is None or rival is None or ours.n_spikes < ENOUGH_SPIKES:
        return "not shown"
    if skill(rival) >= skill(ours):
        return "no"
    significant = ours.p_value is not None and ours.p_value <= LEVEL
    return "yes" if significant and skill(ours) > skill(rival) + CLEARLY else "not shown"


def verdict(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    stories: Sequence[Story],
    relations: Sequence[Relation],
    pathologies: Sequence[Pathology],
    advice: Sequence[Advice],
    regimes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Give the verdict: a word, one or two sentences, a caveat.

    Args:
        profile: the long table; may be empty.
        log: the log's rows.
        spikes: the loss spikes.
        stories: their stories, in the same order.
        relations: how well the rules announced them.
        pathologies: what else is wrong.
        advice: what to do.
        regimes: what the regimes detector found.

    Returns:
        {"word", "sentence", "caveat"}.
    """
    logged, loss = column(log, "loss")
    trouble = worst(_telling(spikes, stories))
    broken = next((found for found in pathologies if "nonfinite" in found.kind), None)
    if trouble is not None:
        end = int(logged[-1]) if logged.size else None
        measured = np.unique(points(profile, "hessian.stability_ratio")[0])
        gap = float(np.median(np.diff(measured))) if measured.size > 1 else None
        sparse = too_sparse(gap, [spike.onset for spike in spikes if not spike.at_resume])
        ours = headline(relations)
        shown = ours is not None and ours.p_value is not None and ours.p_value <= LEVEL
        # What a run shows of itself counts more than what others showed.
        doubts = " ".join(one for one in (sparse, "" if shown else no_warning(regimes)) if one)
        told = _spiked(trouble, spikes, stories, relations, advice, end, doubts)
        if broken is not None and broken.kind == "nonfinite-weights":
            # A loss need not show it: some rows of an embedding are seldom read.
            sentence = f"Not finite: {broken.evidence.rstrip('.')}. {told['sentence']}"
            return {**told, "word": "Diverged", "sentence": sentence}
        return told
    share = float(np.isfinite(loss).mean()) if loss.size else 0.0
    checkpoints = profile["step"].n_unique() if profile.height else 0
    if broken is not None:
        sentence = f"Not finite: {broken.evidence.rstrip('.')}."
        return {"word": "Diverged", "sentence": sentence, "caveat": ""}
    climb = next((found for found in pathologies if found.kind == "slow-divergence"), None)
    if climb is not None:
        sentence = f"No spike, but a climb: {climb.evidence.rstrip('.')}."
        return {"word": "Diverged", "sentence": sentence, "caveat": ""}
    if not loss.size:
        if not checkpoints:
            return {"word": "Cannot say", "sentence": "Neither a log nor a profile was read.", "caveat": ""}
        return {
            "word": "Cannot say",
            "sentence": f"No loss log was found, so no spike can be seen; {_level(profile)}.",
            "caveat": "A log with step and loss is needed to find spikes.",
        }
    quiet = f"No loss spike in steps {logged[0]}-{logged[-1]}"
    if share < ENOUGH_FINITE:
        return {
            "word": "Cannot say",
            "sentence": f"{quiet}, but the loss is finite in only {100 * share:.0f} % of the logged steps.",
            "caveat": "A verdict needs a finite loss in nine of ten logged steps.",
        }
    if checkpoints < ENOUGH_CHECKPOINTS:
        read = f"{checkpoints or 'no'} checkpoint{'' if checkpoints == 1 else 's'} "
        read += f"{'was' if checkpoints == 1 else 'were'} profiled"
        return {
            "word": "Cannot say",
            "sentence": f"{quiet}; {read}, so nothing is known about how near the edge the run was.",
            "caveat": f"A verdict about stability needs at least {ENOUGH_CHECKPOINTS} profiled checkpoints.",
        }
    hover = any(_regime(regime) == "hover" for regime in regimes)
    caveat = "Stable at these checkpoints and this learning rate: sharpness can go on growing."
    if not points(profile, "hessian.stability_ratio")[0].size:
        caveat = "That there was no spike is all that is known: how near the edge of stability it was, S would say."
    if hover:
        caveat = (
            "It hovered at the edge of stability (S near 1) without a spike: a higher rate had no room there."
        )
    if pathologies:
        first = pathologies[0]
        caveat += f" Not spikes, but worth a look: {first.kind} ({first.evidence})."
    known = _level(profile)
    return {"word": "Stable", "sentence": f"{quiet}; {known}.", "caveat": caveat}


def facts(
    spikes: Sequence[Spike],
    stories: Sequence[Story],
    relations: Sequence[Relation],
    last_healthy: int | None,
    read: int,
    found: int,
) -> tuple[dict[str, str], ...]:
    """Give the four facts of the first screen.

    Args:
        spikes: the loss spikes.
        stories: their stories, in the same order.
        relations: how well the rules announced them.
        last_healthy: the last healthy checkpoint.
        read: checkpoints that were profiled.
        found: checkpoints on disk.

    Returns:
        Four dicts of label and value.
    """
    trouble = worst(_telling(spikes, stories))
    told = next((story for story in stories if trouble is not None and story.spike == trouble.id), None)
    ours = headline(relations)
    counted = ours.n_spikes if ours is not None else len(spikes)
    lead = "no spike" if told is None else f"{told.lead_text}"
    if told is not None and len(spikes) > 1:
        lead += f" (spike {told.spike})"
    return (
        {"label": "last healthy checkpoint", "value": "none" if last_healthy is None else str(last_healthy)},
        {"label": "lead", "value": lead},
        {
            "label": "beats gradient norm?",
            "value": f"{beats_gradient_norm(relations)} ({counted} spike{'' if counted == 1 else 's'})",
        },
        {"label": "checkpoints read", "value": f"{read} of {found}"},
    )


def _telling(spikes: Sequence[Spike], stories: Sequence[Story]) -> list[Spike]:
    """Spikes the verdict is about: not the passing ones of a bad batch or a resume, where there are others.

    Returns:
        The spikes.
    """
    cause = {story.spike: story.cause for story in stories}
    lasting = [s for s in spikes if not s.recovered or cause.get(s.id) not in {"bad-batch", "resume"}]
    return lasting or list(spikes)


def _spiked(
    trouble: Spike,
    spikes: Sequence[Spike],
    stories: Sequence[Story],
    relations: Sequence[Relation],
    advice: Sequence[Advice],
    log_end: int | None,
    doubts: str,
) -> dict[str, str]:
    diverged = any(not spike.recovered and spike.kind in {"divergence", "nonfinite"} for spike in spikes)
    told = next(story for story in stories if story.spike == trouble.id)
    finite = np.isfinite(trouble.loss_peak)
    peak = number(trouble.loss_peak) if finite else "not finite"
    rose = f"{number(trouble.loss_before)} to {peak}" if np.isfinite(trouble.loss_before) else peak
    many = f"{len(spikes)} loss spikes, the worst" if len(spikes) > 1 else "One loss spike,"
    what = f"{many} at step {trouble.onset} ({rose}"
    if not trouble.recovered:
        what += ", not back by the end of the log" if log_end is None else f", not back by step {log_end}"
    where = f"; least stable in {told.first_layer}" if told.first_layer else ""
    first = f"{what}): {told.sentence.partition(';')[0]}{where}."
    do = next((item for item in advice if item.spike == trouble.id), None)
    act = "" if do is None else f" {do.action[0].upper()}{do.action.partition(';')[0][1:]}."
    caveat = "One run: what is stable is said of its checkpoints, not of others."
    if any(spike.at_resume for spike in spikes):
        caveat = "Spikes at a resume are not scored. " + caveat
    caveat = f"{doubts} {caveat}".strip()
    return {
        "word": "Diverged" if diverged else "Spike",
        "sentence": f"{first} {more_than_chance(relations, len(spikes))}{act}",
        "caveat": caveat,
    }


def more_than_chance(relations: Sequence[Relation], n_spikes: int) -> str:
    """Say whether the alarms of this run announce its spikes better than chance and than the rivals.

    Args:
        relations: how well the rules announced the spikes.
        n_spikes: spikes found.

    Returns:
        One sentence.
    """
    ours, rival = headline(relations), best_baseline(relations)
    scored = n_spikes if ours is None else ours.n_spikes
    spikes = f"{scored} spike{'' if scored == 1 else 's'}"
    are = "is" if scored == 1 else "are"
    if ours is None:
        return f"Without S nothing can be said about curvature as a warning ({spikes})."
    if scored == 0 < n_spikes:
        where = "It lies" if n_spikes == 1 else "They lie"
        return f"{where} outside of the checkpoints' steps, so luck cannot be ruled out."
    if scored < ENOUGH_SPIKES:
        if ours.p_value is not None:
            floor = f"p = {number(ours.p_value)}, and >= {number(1 / (ours.n_shifts + 1))} whatever happens"
        else:
            floor = "no alarm was raised" if not ours.n_alarms else "no shift to compare with"
        return f"{spikes} {are} too few to test ({floor})."
    if ours.p_value is None:
        return f"The stability alarm never spoke, so it announced none of {spikes}."
    if rival is not None and skill(rival) >= skill(ours):
        return f"S warned no better than {rival.rule}: {_early(ours)} against {_early(rival)} at least 10 steps ahead."
    against = "" if rival is None else f"; {rival.rule}: {_early(rival)}"
    verdict_on_chance = "" if ours.p_value <= LEVEL else ", not shown to be more"
    expected = number((ours.early_chance or 0.0) * ours.n_spikes)
    return (
        f"Alarms at least 10 steps ahead: {_early(ours)} "
        f"(chance {expected}{verdict_on_chance}, p = {number(ours.p_value)}){against}."
    )


def _early(relation: Relation) -> str:
    hits = round((relation.early_recall or 0.0) * relation.n_spikes)
    return f"{hits} of {relation.n_spikes}"


def _regime(regime: Mapping[str, Any]) -> str:
    return str(regime.get("regime", regime.get("kind", "")))


def _level(profile: pl.DataFrame) -> str:
    steps, values = points(profile, "hessian.stability_ratio")
    last = last_at_or_before(steps, values, 2**62)
    if last is None:
        return "S was not measured"
    highest = float(np.nanmax(values))
    peak = int(steps[int(np.nanargmax(values))])
    # A schedule that ends at a rate of 0 has S = 0 there, and no headroom to speak of.
    headroom = f" (headroom {number(1 / last[1])})" if last[1] > 0 else ""
    return (
        f"S was {number(last[1])} at checkpoint {last[0]}{headroom}, "
        f"at most {number(highest)} (checkpoint {peak})"
    )
