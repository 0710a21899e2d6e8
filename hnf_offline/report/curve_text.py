"""What the learning curve, gradient norms and loss scaling of a log say, in sentences: terminal and page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hnf_offline.quantities import catalogue
from hnf_offline.quantities.registry import Quantity
from hnf_offline.report.text import clean, loss, number, plural

#: Jumps of the learning rate that are told; findings.json has all.
MOST_JUMPS = 3
_BANDS = {
    "below": "below .5",
    "healthy": ".5-5",
    "high": "5-10",
    "critical": "above 10",
    "exploded": "not finite",
}


def curve_lines(curve: Mapping[str, Any]) -> Iterator[str]:
    """Tell the learning curve.

    Yields:
        One sentence a finding, none for what is not known.
    """
    window = curve.get("window")
    if window:
        yield (
            f"level: {loss(window['mean'])} over the last {plural(window['rows'], 'row')}, noise of one row "
            f"{number(window['deviation'], 2)}{_tails(window)}"
        )
    yield from _power_law(curve)
    plateau = curve.get("plateau")
    if plateau and plateau.get("ratio") is not None:
        yield (
            f"plateau score: {number(plateau['score'], 2)} over {plural(plateau['rows'], 'row')}, "
            f"{number(plateau['ratio'], 2)} times what noise alone gives (near 1: it moves less than its noise)"
        )
    target = curve.get("target")
    if target:
        named = "target" if target["given"] else "90 % of the fall"
        tokens = "" if target.get("tokens") is None else f" ({number(target['tokens'])} tokens)"
        reached = "not reached" if target["step"] is None else f"reached at step {target['step']:,}{tokens}"
        yield f"{named}: loss {loss(target['loss'])} {reached}"
    yield from _validation(curve.get("validation"))
    yield from _accuracy(curve.get("accuracy"))
    yield from _components(curve.get("components") or ())
    yield from _jumps(curve.get("schedule") or ())
    for key, title in (("phases", "phase"), ("epochs", "epoch")):
        stretches = curve.get(key) or ()
        if len(stretches) > 1:
            yield f"{title}s: " + "; ".join(
                f"{clean(one[title])} to step {one['last']:,}: mean {loss(one['mean'])}"
                for one in stretches[-5:]
            )
    explosion = curve.get("explosion")
    if explosion:
        yield (
            f"largest jump in one row: {number(explosion['change'], 2)} at step {explosion['step']:,}, "
            f"{number(explosion['score'], 2)} sigma of the changes before it"
        )


def _tails(window: Mapping[str, Any]) -> str:
    if window.get("skewness") is None or window.get("excess_kurtosis") is None:
        return ""
    skewness, kurtosis = number(window["skewness"], 2), number(window["excess_kurtosis"], 2)
    return f" (skewness {skewness}, excess kurtosis {kurtosis})"


def _power_law(curve: Mapping[str, Any]) -> Iterator[str]:
    law = curve.get("power_law")
    if not law:
        if curve.get("no_power_law"):
            yield f"power law: none fitted, {clean(curve['no_power_law'])}"
        return
    low, high = law["gain_interval"]
    said = (
        f"power law: {loss(law['floor'])} + b t^-{number(law['exponent'], 2)}, floor "
        f"{_interval(law['floor_interval'])}; "
        f"as many steps again: {number(-law['gain'], 2)} [{number(-high, 2)} to {number(-low, 2)}]"
    )
    worth = {"yes": "worth continuing", "no": "less than 1 % to gain"}.get(
        law["worth_continuing"], "cannot say whether that is worth it"
    )
    yield f"{said}: {worth}" + (
        ", if the schedule went on as before; the learning rate has decayed" if law["rate_decayed"] else ""
    )


def _interval(ends: Sequence[float | None]) -> str:
    low, high = ends
    if low is None or high is None:
        return "unknown" if high is None else f"at most {loss(high)}"
    return f"{loss(low)} to {loss(high)}"


def _validation(gap: Mapping[str, Any] | None) -> Iterator[str]:
    if not gap:
        return
    said = (
        f"validation - training loss: {number(gap['first'], 2)} at first, {number(gap['last'], 2)} at last "
        f"({clean(gap['column'])}, {plural(gap['evaluations'], 'evaluation')}; lowest {loss(gap['best'])} at step "
        f"{gap['best_step']:,})"
    )
    if gap["onset"] is not None:
        growing = ", and the gap still grows" if gap["growing"] else ""
        said += f"; overfits from step {gap['onset']:,}: {number(gap['rise'], 2)} above its lowest{growing}"
    yield said


def _accuracy(told: Mapping[str, Any] | None) -> Iterator[str]:
    if not told:
        return
    turned = f", {number(told['drop'], 2)} below its best since: it has turned" if told["turned"] else ""
    yield (
        f"validation accuracy: best {number(told['best'])} at step {told['best_step']:,}, {number(told['last'])} at "
        f"last{turned} ({clean(told['column'])}, {plural(told['evaluations'], 'evaluation')})"
    )


def _components(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in parts:
        jump = one.get("explosion")
        most = (
            f"; largest jump {number(jump['change'], 2)} at step {jump['step']:,}, {number(jump['score'], 2)} sigma"
            if jump
            else ""
        )
        yield (
            f"{clean(one['column'])}: {loss(one['mean'])} over the last {plural(one['rows'], 'row')}, "
            f"{_share(one['share'])} of the loss as logged, noise of one row {number(one['deviation'], 2)}{most}"
        )


def _jumps(jumps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in jumps[:MOST_JUMPS]:
        sure = one["low"] > 0 or one["high"] < 0
        effect = f"{one['effect']:+.2g} [{one['low']:+.2g} to {one['high']:+.2g}]"
        yield (
            f"learning rate {number(one['before'], 2)} to {number(one['after'], 2)} at step {one['step']:,}: loss "
            f"{effect} beyond its trend{'' if sure else ', which may be noise'}"
        )
    if len(jumps) > MOST_JUMPS:
        yield f"and {len(jumps) - MOST_JUMPS} more jumps of the learning rate"


def precision_lines(precision: Mapping[str, Any]) -> Iterator[str]:
    """Tell gradient norms and loss scaling.

    Yields:
        One sentence a finding, none for what was not logged.
    """
    bands = precision.get("bands")
    if bands:
        told = [f"{_share(bands[key])} {name}" for key, name in _BANDS.items() if bands.get(key)]
        yield f"gradient norms: {', '.join(told)} (healthy .5-5 by the source's bands for a clipped run)"
    scale = precision.get("scale")
    if scale:
        yield (
            f"loss scale: {number(scale['first'])} to {number(scale['last'])}, lowest {number(scale['lowest'])} at "
            f"step {scale['lowest_step']:,}; {plural(scale['falls'], 'fall')}, {plural(scale['rises'], 'rise')}"
        )
    skipped = precision.get("skipped")
    if skipped:
        share = skipped.get("share_after_it")
        after = "" if share is None else f", then {_share(share)} of the steps"
        yield (
            f"skipped updates: {number(skipped['updates'])}, {number(skipped['at_the_start'])} of them in the search "
            f"at the start{after}"
        )
    for one in precision.get("simulated") or ():
        few, many = one["skipped_if_unknown_is_clean"], one["skipped_if_unknown_overflows"]
        count = (
            f"{few:,}" if few == many else f"{few:,} or {many:,} (what is not known is clean, or overflows)"
        )
        yield (
            f"scaler {number(one['initial'])},{number(one['growth'])},{one['interval']}: would skip {count} of "
            f"{one['updates']:,} updates"
        )
    if precision.get("not_simulated"):
        yield f"other scaler settings: not simulated, {clean(precision['not_simulated'])}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else f"{value:.1g}"


#: What of the findings each quantity of the catalogue stands for.
_SHOWN_BY = {
    "window": ("loss.mean", "loss.deviation", "loss.skewness", "loss.excess_kurtosis"),
    "explosion": ("loss.explosion_score",),
    "validation": ("loss.validation_gap",),
    "accuracy": ("loss.accuracy_drop",),
    "components": ("loss.component_share",),
    "plateau": ("loss.plateau_score",),
    "power_law": ("loss.power_law", "loss.expected_gain"),
    "target": ("loss.steps_to_target",),
    "schedule": ("loss.schedule_effect",),
    "bands": ("gradient.norm_band",),
    "skipped": ("scaler.skipped_share",),
    "simulated": ("scaler.simulated_skips",),
}


def log_quantities(curve: Mapping[str, Any], precision: Mapping[str, Any]) -> list[Quantity]:
    """Look up the catalogue's entries of what was computed from the log.

    Returns:
        Entries in catalogue order.
    """
    told = {**curve, **precision}
    names = {name for key, shown in _SHOWN_BY.items() if told.get(key) for name in shown}
    return [entry for name, entry in catalogue().items() if name in names]
