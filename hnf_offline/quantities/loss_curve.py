"""The learning curve: quantities of the logged loss alone. Arrays are float64, one value a logged row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_CATALOGUE = "training-stability catalogue (source document)"


@quantity(
    "loss.mean",
    unit="loss",
    formula="m = 1/n sum_i L_i over a window of rows",
    reference=f"definition; {_CATALOGUE}, moving statistics",
    tier="log",
    layers="the log: all of it, each epoch, each phase of the learning rate",
    reading="Compare the windows of one run; the median is robust where there are spikes.",
    cannot="Mixes trend and noise: of a falling loss it is neither the present nor the final level.",
)
def loss_mean(loss: Floats) -> float:
    """Mean of the logged loss over a window."""
    return float(np.mean(loss))


@quantity(
    "loss.deviation",
    unit="loss",
    formula="s = sqrt(1/(n-1) sum_i (r_i - mean r)^2), r the loss minus its straight line in the window",
    reference=f"definition; {_CATALOGUE}, moving statistics, which leaves the trend in",
    tier="log",
    layers="the log: its last window, each epoch, each phase",
    reading="The noise of one row; a change of the level smaller than this needs many rows to be seen.",
    cannot="Neighbouring rows are correlated: s / sqrt(n) is not the error of the mean.",
)
def loss_deviation(loss: Floats) -> float:
    """Standard deviation of the loss about its straight line in a window.

    Returns:
        NaN for fewer than three rows.
    """
    return float(np.std(_about_its_line(loss), ddof=1)) if loss.size > 2 else float("nan")


@quantity(
    "loss.skewness",
    unit="1",
    formula="m3 / m2^(3/2), m_k = 1/n sum_i (r_i - mean r)^k, r the loss minus its straight line in the window",
    reference=f"definition; {_CATALOGUE}, statistical analysis of loss",
    tier="log",
    layers="the log: its last window",
    reading="0 for symmetric noise; well above 0: single batches stand out upwards.",
    cannot="A few spikes make all of it; it does not say whether they are batches or the optimizer.",
)
def loss_skewness(loss: Floats) -> float:
    """Skewness of the loss about its straight line.

    Returns:
        NaN for a loss without any noise.
    """
    return _standardised_moment(loss, 3)


@quantity(
    "loss.excess_kurtosis",
    unit="1",
    formula="m4 / m2^2 - 3, m_k = 1/n sum_i (r_i - mean r)^k, r the loss minus its straight line in the window",
    reference=f"definition; {_CATALOGUE}, statistical analysis of loss",
    tier="log",
    layers="the log: its last window",
    reading="0 for normal noise; above about 3 the tails are heavy, and a rule of so many sigmas alarms too often.",
    cannot="Grows with a change of the noise's size within the window as well as with heavy tails.",
)
def loss_excess_kurtosis(loss: Floats) -> float:
    """Excess kurtosis of the loss about its straight line.

    Returns:
        NaN for a loss without any noise.
    """
    return _standardised_moment(loss, 4) - 3.0


@quantity(
    "loss.explosion_score",
    unit="sigma",
    formula="(L_t - L_(t-1)) / sigma_t, sigma_t the standard deviation of the changes L_s - L_(s-1) of the rows "
    "before t (robust: 1.4826 MAD of up to 60)",
    reference=f"{_CATALOGUE}, loss explosion detection, which divides by one sigma of the loss of all history: the "
    "early fall then hides every later spike, so the trailing noise of changes is taken",
    tier="log",
    layers="the log; its highest value is told",
    reading="A change of 3 is common in a thousand rows, above 10 is a jump in one row.",
    cannot="Sees one row's change: a rise over several rows, and whether it came back, are what spikes tell.",
)
def explosion_score(loss: Floats, trailing_sigma: Floats) -> Floats:
    """Change of the loss in one row, in units of the noise of the changes before it.

    Returns:
        One value a row, NaN at the first.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.diff(loss, prepend=np.nan) / trailing_sigma)


@quantity(
    "loss.validation_gap",
    unit="loss",
    formula="L_val(t) - mean of L_train over the rows since the evaluation before t",
    reference=f"{_CATALOGUE}, training-validation gap analysis",
    tier="log",
    layers="the log; each step with a validation loss",
    reading="A gap that grows while the validation loss rises and the training loss falls is overfitting.",
    cannot="Dropout, augmentation and another data mixture shift it; its level alone says nothing.",
)
def validation_gap(validation_loss: Floats, training_level: Floats) -> Floats:
    """Validation loss minus the training loss at the same time.

    Returns:
        One value an evaluation.
    """
    return validation_loss - training_level


@quantity(
    "loss.accuracy_drop",
    unit="share or percent, as logged",
    formula="max over evaluations of the validation accuracy - median of its last three",
    reference="training stability fixes (source document), validation accuracy",
    tier="log",
    layers="the log; a validation accuracy",
    reading="Near 0 while it still rises or rests; a drop beyond its own noise says that it has turned.",
    cannot="The highest of many noisy values is too high by itself: a small drop is no turn.",
)
def accuracy_drop(accuracy: Floats) -> float:
    """Best validation accuracy minus where it ends.

    Returns:
        At least 0.
    """
    return float(accuracy.max() - np.median(accuracy[-3:]))


@quantity(
    "loss.component_share",
    unit="share",
    formula="mean of a further training loss (z_loss, aux_loss, ...) / mean of the loss, over the last rows that have "
    "both",
    reference=f"{_CATALOGUE}, loss components decomposition",
    tier="log",
    layers="the log; every further loss in it, known by its name",
    reading="What the loss is made of. A part whose share grows begins to decide the gradient; one that jumps by many "
    "sigma at the step of a spike is where to look.",
    cannot="As logged: a part may be written without the weight it is added with, or not be added at all, and then "
    "shares do not sum to 1.",
)
def component_share(component: Floats, loss: Floats) -> float:
    """Mean of one part of the loss relative to the loss.

    Args:
        component: one value a row.
        loss: of the same rows.

    Returns:
        The share; NaN where the mean loss is 0.
    """
    whole = float(np.mean(loss))
    return float(np.mean(component)) / whole if whole else float("nan")


@quantity(
    "loss.plateau_score",
    unit="loss",
    formula="1/w sum_(i=0..w-1) |L(t-i) - M|, M the median of the w rows before those",
    reference=f"{_CATALOGUE}, plateau detection, which takes the one row L(t-w) for M: on a log its own noise is "
    "then most of the score",
    tier="log",
    layers="the log; its last window against the one before",
    reading="Beside it stands what noise alone gives (the same of the window before, about its own median): a ratio "
    "near 1 is a loss that moves by less than its noise.",
    cannot="A slow fall below the noise of one row scores as a plateau: see the power law's expected gain.",
)
def plateau_score(loss: Floats, reference_level: float) -> float:
    """Mean distance of a window's loss from the level before it."""
    return float(np.mean(np.abs(loss - reference_level)))


@quantity(
    "loss.power_law",
    unit="loss",
    formula="L(t) = a + b t^-c by least squares on means over equal stretches of log t, c by a search, a and b linear; "
    "a >= 0 where all losses are positive",
    reference=f"{_CATALOGUE}, learning curve extrapolation; Hestness et al. 2017, arXiv 1712.00409",
    tier="log",
    layers="the log after its first 5 %",
    reading="a is where the loss would end, c how fast; intervals are the values that fit as well (95 %).",
    cannot="A fit of the past: a schedule that goes on otherwise (decay, another batch size) leaves it.",
)
def power_law(step: Floats, floor: float, amplitude: float, exponent: float) -> Floats:
    """The power law a + b t^-c."""
    return floor + amplitude * step**-exponent


@quantity(
    "loss.expected_gain",
    unit="loss",
    formula="b (T^-c - (2T)^-c): the fall that the power law expects of as many steps again",
    reference=f"{_CATALOGUE}, learning curve extrapolation; the choice of twice T is ours",
    tier="log",
    layers="the log, from its last step T",
    reading="Worth continuing where even the low end of its interval is above 1 % of the loss.",
    cannot="Holds under the schedule so far; after a learning rate that decayed to nothing it promises too much.",
)
def expected_gain(last_step: float, amplitude: float, exponent: float) -> float:
    """Fall of the loss that the power law expects of training as long again."""
    return float(amplitude * (last_step**-exponent - (2.0 * last_step) ** -exponent))


@quantity(
    "loss.steps_to_target",
    unit="steps",
    formula="first step whose trailing median of 20 rows is at or below the target; tokens: the log's count there",
    reference=f"{_CATALOGUE}, learning efficiency metrics (time to convergence, sample efficiency)",
    tier="log",
    layers="the log; without --target the level after 90 % of the fall",
    reading="Compare runs on the same data at the same target.",
    cannot="A target near the noise is reached early by chance; different validation data are not comparable.",
)
def steps_to_target(step: NDArray[np.int64], trailing_loss: Floats, target: float) -> int | None:
    """First step at which the smoothed loss has reached a target.

    Returns:
        The step, None where it never did.
    """
    reached = np.flatnonzero(trailing_loss <= target)
    return int(step[reached[0]]) if reached.size else None


@quantity(
    "loss.schedule_effect",
    unit="loss",
    formula="delta of the least-squares fit L_t = alpha + beta t + delta [t > t0] on up to 50 rows on either side of a "
    "jump t0 of the learning rate; its error with the rows that correlation leaves",
    reference=f"{_CATALOGUE}, learning rate schedule assessment",
    tier="log",
    layers="the log, where the learning rate jumps by more than a fifth from one row to the next",
    reading="Below 0: the loss fell more than its trend when the rate jumped; above: it rose.",
    cannot="Only what comes within 50 rows; a gradual schedule has no jump to look at; not a cause by itself.",
)
def schedule_effect(loss: Floats, after_change: NDArray[np.bool_]) -> float:
    """Step of the loss at a jump of the learning rate, beyond its trend."""
    design = np.column_stack([np.ones(loss.size), np.arange(loss.size), after_change])
    return float(np.linalg.lstsq(design, loss, rcond=None)[0][2])


@quantity(
    "loss.paired_t",
    unit="1",
    formula="t = mean(d) / (s_d / sqrt(n_eff)), d_i = L_A(i) - L_B(i) at common steps; n_eff = n / tau, tau = 1 + 2 "
    "sum of the autocorrelations of d, with n_eff - 1 degrees of freedom; or n_eff = n s_d^2 / w, w the mean square of "
    "the six slowest cosines of d, at most n, with 6: whichever leaves the wider interval",
    reference=f"{_CATALOGUE}, statistical significance testing, which takes n for n_eff; Geyer 1992, Stat. Sci. 7(4), "
    "section 3.3 (initial positive sequence); Lazarus, Lewis, Stock & Watson 2018, J. Bus. Econ. Stat. 36(4)",
    tier="log",
    layers="the log; the second half of the common steps of two runs",
    reading="Beside it stands the mean difference with its 95 % interval and p: below .05 the curves differ by more "
    "than their noise.",
    cannot="One run of each: it does not say whether another seed would do the same. A wander slower than a third of "
    "the rows passes for a difference: of 100 rows with much of it a fifth of equal runs differ at p < .05.",
)
def paired_t(loss_a: Floats, loss_b: Floats, effective_rows: float) -> float:
    """Paired t statistic of two losses whose differences are correlated in time."""
    difference = loss_a - loss_b
    error = np.std(difference, ddof=1) / np.sqrt(effective_rows)
    return float(np.divide(np.mean(difference), error))


def _about_its_line(loss: Floats) -> Floats:
    row = np.arange(loss.size, dtype=np.float64)
    slope, level = np.polyfit(row, loss, 1)
    return np.asarray(loss - level - slope * row)


def _standardised_moment(loss: Floats, power: int) -> float:
    if loss.size < 3:
        return float("nan")
    residual = _about_its_line(loss)
    residual -= residual.mean()
    variance = np.mean(residual**2)
    if variance <= (1e-12 * np.max(np.abs(loss))) ** 2:  # what is left of a straight line is rounding
        return float("nan")
    return float(np.mean(residual**power) / variance ** (power / 2))
