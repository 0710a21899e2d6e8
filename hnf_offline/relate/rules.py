"""The rules put to the test, ours and the rivals': each is a name, a series and its alarm episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hnf_offline.detect.stability import stability_alarms
from hnf_offline.findings import Alarm, Spike
from hnf_offline.relate.baselines import exponential_z, rolling_slope_t, rolling_spread, trailing_z
from hnf_offline.relate.null import turned
from hnf_offline.relate.series import AFTERSHOCK, Steps, Values, column, layers, points, spacing
from hnf_offline.table import table

if TYPE_CHECKING:
    import polars as pl

#: Alarm rules that speak of the stability ratio of the whole model; together they are "the stability alarm".
STABILITY_RULES = ("edge", "forecast", "headroom")

#: Alarm episodes closer than this to the end of the last one are the same episode (study, section 5).
APART = 16

#: A layer's stability ratio this many times its own baseline counts as out of line.
LAYER_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, applied to one run.

    Attributes:
        name: what the rule is called everywhere.
        quantity: name in the catalogue or of a log column.
        layer: module path, "" for the whole model.
        sentence: the rule in words.
        baseline: True for the rivals.
        resolution: steps between two chances to speak: the checkpoint gap, or that of the log (mostly 1).
        alarms: start steps of its alarm episodes, causal.
        at: steps at which it could have spoken; empty for every `resolution` steps.
        values: its score at the steps `at`, higher = riskier; empty where it has none.
        testable: False for rules made from the spikes themselves, which a shift test cannot judge.
        turn: for rules that know of the spikes: their alarms when the measured series is turned by so many
            steps on the circle of the scored range, the spikes staying where they are.
    """

    name: str
    quantity: str
    layer: str
    sentence: str
    baseline: bool
    resolution: int
    alarms: Steps
    at: Steps
    values: Values
    testable: bool = True
    turn: Callable[[int], Steps] | None = None


def episodes(steps: Steps, above: NDArray[np.bool_], apart: int = APART) -> Steps:
    """Merge threshold crossings into episodes; a series that begins above was never seen to cross.

    Returns:
        Steps at which an episode starts: above now, not at the point before, nor in the `apart` steps before.
    """
    starts: list[int] = []
    last_above: int | None = None
    previous = True
    for step, now in zip(steps.tolist(), above.tolist(), strict=True):
        if now and not previous and (last_above is None or step - last_above > apart):
            starts.append(step)
        if now:
            last_above = step
        previous = now
    return np.array(starts, np.int64)


def merged(known_at: Sequence[int], apart: int) -> Steps:
    """Merge alarms that repeat within `apart` steps of the one before.

    Returns:
        First step of each run of alarms.
    """
    starts: list[int] = []
    last: int | None = None
    for step in sorted(set(known_at)):
        if last is None or step - last > apart:
            starts.append(step)
        last = step
    return np.array(starts, np.int64)


def projected(steps: Steps, values: Values, ahead: int = 12, through: int = 4) -> Values:
    """Project a positive series ahead, log-linearly through its last points.

    Returns:
        x_t exp(slope * ahead), with the least-squares slope of log x through the last `through` points.
    """
    result = values.copy()
    for k in range(1, values.size):
        last = slice(max(0, k - through + 1), k + 1)
        x, y = steps[last].astype(float), values[last]
        if np.isfinite(y).all() and (y > 0).all():
            result[k] = values[k] * np.exp(np.clip(np.polyfit(x - x[0], np.log(y), 1)[0] * ahead, -20, 20))
    return result


def ratio_to_baseline(values: Values, minimum: int = 3) -> Values:
    """Divide each value by the median of the values before it.

    Returns:
        The causal ratio, NaN until `minimum` values are known.
    """
    result = np.full(values.shape, np.nan)
    for k in range(minimum, values.size):
        past = values[:k][np.isfinite(values[:k]) & (values[:k] > 0)]
        if past.size >= minimum:
            result[k] = values[k] / np.median(past)
    return result


def rules(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    alarms: Sequence[Alarm],
    gap: int | None,
    window: int = 80,
) -> tuple[Rule, ...]:
    """Apply every rule to a run: the state machine's alarms, plain thresholds, and the rivals on the log.

    Args:
        profile: the long table; may be empty.
        log: the log's rows, None where there is none.
        spikes: the loss spikes, for the rule "time since the last spike" only.
        alarms: what the detectors said; severity "info" is left out.
        gap: checkpoint gap.
        window: longest lead that counts.

    Returns:
        The rules that the run has data for, ours first.
    """
    return (
        *_from_alarms(profile, log, spikes, alarms, gap or 1),
        *_thresholds(profile, gap or 1),
        *_layers(profile, gap or 1),
        *_log_rules(log),
        *_always(profile, log, spikes, window),
    )


#: What is said in words of the rules of the state machine.
SAID = {
    "stability alarm": "S crosses 1, is forecast to, or the learning rate is raised past the headroom",
    "edge": "S crosses 1, armed only after it was well below",
    "forecast": "S grows exponentially and is forecast to cross 1",
    "headroom": "the logged learning rate goes past lr/S of the last checkpoint",
}

#: Quantities whose alarms are rivals of the stability ratio, not part of it.
RIVALS = ("grad_norm", "gradient.norm", "adam.lag_rms", "loss", "learning_rate")


def _from_alarms(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spikes: Sequence[Spike],
    alarms: Sequence[Alarm],
    gap: int,
) -> Iterator[Rule]:
    ratio = "hessian.stability_ratio"
    at, values = points(profile, ratio)
    none = np.empty(0, np.int64), np.empty(0, np.float64)
    spoken = [alarm for alarm in alarms if alarm.severity != "info"]
    ours = [alarm for alarm in spoken if alarm.rule in STABILITY_RULES and alarm.layer == ""]
    if at.size:
        first, last = scored_range(profile, log, gap)
        machine = _turned_machine(at, values, spikes, first, last)
        for name, of in (
            ("stability alarm", STABILITY_RULES),
            *((one, (one,)) for one in STABILITY_RULES),
        ):
            known = [alarm.known_at for alarm in ours if alarm.rule in of]
            raised = np.array([a.known_at for a in ours if a.rule == "headroom" and a.rule in of], np.int64)
            by_rate = name == "headroom"
            yield Rule(
                name,
                "optimizer.headroom" if by_rate else ratio,
                "",
                SAID[name],
                False,
                spacing(column(log, "learning_rate")[0]) if by_rate else gap,
                merged(known, APART),
                *(none if by_rate else (at, values)),
                turn=None if by_rate else partial(_turn, machine, of, raised, first, last),
            )
    others = sorted({(a.rule, a.quantity) for a in spoken if a.rule not in STABILITY_RULES or a.layer})
    for name, quantity in others:
        known = [
            a.known_at
            for a in spoken
            if (a.rule, a.quantity) == (name, quantity) and (a.rule not in STABILITY_RULES or a.layer)
        ]
        grid = np.unique(profile.filter(profile["quantity"] == quantity)["step"].to_numpy()).astype(np.int64)
        yield Rule(
            f"{name} of {quantity}",
            quantity,
            "",
            f"the {name} detector speaks of {quantity}, in any layer",
            quantity in RIVALS,
            gap if grid.size else spacing(column(log, "loss")[0]),
            merged(known, APART),
            grid,
            none[1],
        )


def _turned_machine(
    steps: Steps, values: Values, spikes: Sequence[Spike], first: int, last: int
) -> Callable[[int], tuple[Alarm, ...]]:
    """The state machine, applied to the turned S; each turn once, however many rules ask.

    Returns:
        A function from the turn to the alarms.
    """
    import polars as pl

    empty = table()

    @cache
    def alarms(offset: int) -> tuple[Alarm, ...]:
        where, turned_values = turned(steps, values, offset, first, last)
        turned_profile = empty.select(
            pl.lit(pl.Series(where)).alias("step"),
            pl.lit("").alias("layer"),
            pl.lit("model").alias("kind"),
            pl.lit(-1, pl.Int32).alias("depth"),
            pl.lit("hessian.stability_ratio").alias("quantity"),
            pl.lit(pl.Series(turned_values)).alias("value"),
            pl.lit(None, pl.Float64).alias("low"),
            pl.lit(None, pl.Float64).alias("high"),
            pl.lit(True).alias("certified"),
            pl.lit("").alias("batch"),
        )
        return stability_alarms(turned_profile, empty, spikes)

    return alarms


def _turn(
    machine: Callable[[int], tuple[Alarm, ...]],
    of: tuple[str, ...],
    raised: Steps,
    first: int,
    last: int,
    offset: int,
) -> Steps:
    """Alarms after a turn: the machine's on the turned S, and the learning-rate alarms turned with it.

    Returns:
        Start steps of the episodes.
    """
    known = [alarm.known_at for alarm in machine(offset) if alarm.rule in of and alarm.severity != "info"]
    inside = raised[(raised >= first) & (raised <= last)]
    return merged([*known, *((inside - first + offset) % (last - first + 1) + first).tolist()], APART)


def _threshold(
    name: str,
    quantity: str,
    sentence: str,
    baseline: bool,
    gap: int,
    steps: Steps,
    values: Values,
    threshold: float,
    layer: str = "",
) -> Rule:
    with np.errstate(invalid="ignore"):
        above = values > threshold
    return Rule(name, quantity, layer, sentence, baseline, gap, episodes(steps, above), steps, values)


def _thresholds(profile: pl.DataFrame, gap: int) -> Iterator[Rule]:
    ratio, gradient, lag = "hessian.stability_ratio", "hessian.gradient_direction", "adam.lag_rms"
    steps, values = points(profile, ratio)
    if steps.size:
        yield _threshold("S > 1", ratio, "S is above 1", False, gap, steps, values, 1.0)
        ahead = projected(steps, values)
        said = "S, projected 12 steps ahead through its last 4 checkpoints, is above 1"
        yield _threshold("S projected > 1", ratio, said, False, gap, steps, ahead, 1.0)
    steps, values = points(profile, gradient)
    if steps.size:
        said = "curvature along the gradient is above .8 of the edge"
        yield _threshold("gradient direction > 0.8", gradient, said, False, gap, steps, values, 0.8)
    steps, values = points(profile, lag)
    if steps.size:
        said = "Adam's second moment lags behind the gradient: RMS_t above 2.3"
        yield _threshold("RMS_t > 2.3", lag, said, True, gap, steps, values, 2.3)
    steps, values = points(profile, "gradient.norm")
    if steps.size:
        z = trailing_z(_log(values), 16, 4)
        said = "log gradient norm at checkpoints, 2 standard deviations above the last 16"
        yield _threshold("replayed gradient norm z > 2", "gradient.norm", said, True, gap, steps, z, 2.0)


def _layers(profile: pl.DataFrame, gap: int) -> Iterator[Rule]:
    for layer in layers(profile, "hessian.stability_ratio"):
        steps, values = points(profile, "hessian.stability_ratio", layer)
        yield _threshold(
            f"layer S > {LAYER_RATIO:g} x its baseline",
            "hessian.stability_ratio",
            "the layer's S is twice the median of its own earlier checkpoints",
            False,
            gap,
            steps,
            ratio_to_baseline(values),
            LAYER_RATIO,
            layer,
        )


def _log_rules(log: pl.DataFrame | None) -> Iterator[Rule]:
    steps, norm = column(log, "grad_norm")
    if steps.size:
        z = trailing_z(_log(norm))
        for threshold in (2.0, 3.0):
            said = f"log gradient norm {threshold:g} standard deviations above its last 128 rows"
            yield _threshold(
                f"gradient norm z > {threshold:g}",
                "grad_norm",
                said,
                True,
                spacing(steps),
                steps,
                z,
                threshold,
            )
        said = "gradient norm 2.5 standard deviations above its exponential mean (ZClip)"
        zclip = exponential_z(norm)
        yield _threshold(
            "gradient norm ZClip z > 2.5", "grad_norm", said, True, spacing(steps), steps, zclip, 2.5
        )
    steps, loss = column(log, "loss")
    if steps.size:
        spread = trailing_z(_log(rolling_spread(loss)))
        said = "log of the loss's spread over 32 rows, 3 standard deviations above its last 128 rows"
        yield _threshold("loss spread z > 3", "loss", said, True, spacing(steps), steps, spread, 3.0)
        slope = rolling_slope_t(_log(loss))
        said = "log loss rises over 16 rows, slope above 3 standard errors"
        yield _threshold("loss slope t > 3", "loss", said, True, spacing(steps), steps, slope, 3.0)


def _always(
    profile: pl.DataFrame, log: pl.DataFrame | None, spikes: Sequence[Spike], window: int
) -> Iterator[Rule]:
    first, last = scored_range(profile, log, None)
    if last <= first:
        return
    marks = [first - 1, *(spike.onset + AFTERSHOCK for spike in spikes), last]
    alarms = [step for mark, following in pairwise(marks) for step in range(mark + 1, following + 1, window)]
    at = np.arange(first, last + 1, dtype=np.int64)
    onsets = np.array(sorted(spike.onset for spike in spikes), np.int64)
    previous = np.searchsorted(onsets, at, side="left") - 1
    since = at - (np.where(previous >= 0, onsets[np.maximum(previous, 0)], first) if onsets.size else first)
    said = f"an alarm every {window} steps since the last spike, whatever is measured"
    yield Rule(
        "always alarm", "step", "", said, True, 1, np.array(alarms, np.int64), at, since.astype(float), False
    )


def scored_range(profile: pl.DataFrame, log: pl.DataFrame | None, gap: int | None) -> tuple[int, int]:
    """Choose the range over which all rules are scored alike: the profiled one, or the log's.

    Returns:
        First and last step; (0, 0) where nothing was read. The last checkpoint speaks for one gap more.
    """
    logged, _ = column(log, "loss")
    if profile.height:
        first, last = int(profile["step"].min() or 0), int(profile["step"].max() or 0)  # type: ignore[arg-type]
        end = last + (gap or 1) - 1
        return first, max(last, min(end, int(logged[-1]))) if logged.size else end
    return (int(logged[0]), int(logged[-1])) if logged.size else (0, 0)


def _log(values: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.where(np.isnan(values), np.nan, -np.inf))
