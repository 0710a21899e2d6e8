"""Which column of a log is the step, the loss, the gradient norm and the learning rate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from hnf_offline.errors import InputError, UsageError

#: Our name -> the names logs use, best first; compared in lower case with every separator as "_".
#: Of those after the learning rate the unit is the log's own: skipped_steps since the row before, throughput in
#: tokens, samples or steps a second, step_time in seconds or milliseconds.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "step": (
        "step",
        "global_step",
        "trainer_global_step",
        "train_global_step",
        "iter",
        "iteration",
        "iterations",
        "num_updates",
        "it",
        "update",
        "updates",
        "optimizer_step",
        "train_step",
        "step_num",
        "steps",
        "_step",
    ),
    "loss": (
        "loss",
        "train_loss",
        "training_loss",
        "train_lm_loss",
        "lm_loss",
        "loss_train",
        "loss_lm",
        "lm_loss_train",
        "train_loss_step",
        "loss_step",
        "train_ce_loss",
        "ce_loss",
        "train_cross_entropy",
        "train_crossentropyloss",
        "cross_entropy_loss",
        "cross_entropy",
        "nll_loss",
        "loss_metrics_global_avg_loss",
        "global_avg_loss",
        "reduced_train_loss",
        "loss_train_total",
        "lm_loss_training_lm_loss",
        "trl",
        "train_loss_epoch",
    ),
    "grad_norm": (
        "grad_norm",
        "gnorm",
        "gradient_norm",
        "grad_norm_total",
        "total_grad_norm",
        "global_grad_norm",
        "grad_global_norm",
        "gradients_norm",
        "grad_l2_norm",
        "grad_norm_l2",
        "total_norm",
        "norm_grad",
        "gradnorm",
        "grad_norm_grad_norm",
        "norm",
    ),
    "learning_rate": (
        "learning_rate",
        "lr",
        "learningrate",
        "lr_0",
        "lr_group_0",
        "learning_rate_group0",
        "learning_rate_learning_rate",
        "lr_adam",
        "lr_adamw",
        "lr_sgd",
    ),
    "loss_scale": ("loss_scale", "lossscale", "scaler_scale", "grad_scale", "grad_scaler_scale", "amp_scale"),
    "skipped_steps": (
        "skipped_steps",
        "number_of_skipped_iterations",
        "skipped_iterations",
        "overflow",
        "found_inf",
    ),
    "throughput": (
        "throughput",
        "tokens_per_second",
        "tokens_per_sec",
        "tok_per_sec",
        "tok_s",
        "tok_sec",
        "tokens_s",
        "tps",
        "tokens_per_second_per_gpu",
        "device_tokens_per_second",
        "throughput_per_gpu_tflop_s_gpu",
        "samples_sec",
        "train_tokens_per_second",
        "samples_per_second",
        "train_samples_per_second",
        "steps_per_second",
        "wps",
        "ups",
        "tgs",
        "it_s",
    ),
    "step_time": (
        "step_time",
        "step_seconds",
        "time_per_step",
        "seconds_per_step",
        "sec_per_step",
        "iteration_time",
        "iter_time",
        "elapsed_time_per_iteration_ms",
        "step_avg",
        "dt",
    ),
}

#: Words in front of a name that say where it was logged, not what it is.
_PLACES = ("train_", "training_", "trainer_", "optim_", "optimizer_", "metrics_", "throughput_")
#: Losses that are a part of the training loss, or a penalty beside it.
_PARTS = re.compile(
    r"(?:^|_)(?:aux|auxiliary|balanc\w*|router|z|kl|reg\w*|penalty|moe|mtp\w*|seq_?aux|loss_\w*)_loss$"
)
_NOT_TRAINING = re.compile(r"(?:^|_)(?:eval|val|valid|validation|test|dev)(?:_|$)")


def named_columns(columns: Sequence[str] | None) -> dict[str, str]:
    """Read "loss=train/lm_loss" and the like.

    Returns:
        Our column name -> name in the log.

    Raises:
        UsageError: if a column is not spelled NAME=COLUMN.
    """
    named: dict[str, str] = {}
    for typed in columns or ():
        ours, equals, column = typed.partition("=")
        if not (ours and equals and column):
            raise UsageError(
                f"--column {typed} is not NAME=COLUMN", remedy="write it as --column loss=train/lm_loss"
            )
        named[ours] = column
    return named


def choose_columns(
    names: Sequence[str], counts: Mapping[str, int], override: Mapping[str, str], path: Path
) -> dict[str, str]:
    """Choose the column of each of our names.

    Of several names that mean the same, the one with the most values is taken, then the better known.

    Args:
        names: the columns of the log.
        counts: values in each column.
        override: our name -> column, from run.toml; wins.
        path: the log, for error messages.

    Returns:
        Our name -> column; names the log has no column for are left out.

    Raises:
        InputError: when there is no step or no loss, naming the columns seen.
        UsageError: when the override names what is not there.
    """
    chosen: dict[str, str] = {}
    for ours, column in override.items():
        if ours not in SYNONYMS:
            raise UsageError(
                f"unknown log column {ours!r}", path=path, remedy=f"ours are {', '.join(SYNONYMS)}"
            )
        if column not in names:
            raise UsageError(
                f"has no column {column!r}", path=path, remedy=f"its columns are {_listed(names)}"
            )
        chosen[ours] = column
    for ours in SYNONYMS:
        if ours not in chosen:
            best = _best(ours, [name for name in names if name not in chosen.values()], counts)
            if best is not None:
                chosen[ours] = best
    if "loss" not in chosen:
        # A name of the user's own, where there is but one that can be meant.
        likely = [name for name in names if name not in chosen.values() and seems_a_loss(name)]
        if len(likely) == 1:
            chosen["loss"] = likely[0]
    for ours in ("step", "loss"):
        if ours not in chosen:
            raise InputError(
                f"has no {ours} column among {_listed(names)}",
                path=path,
                remedy=f'say which one it is: --column {ours}=..., or in run.toml [log] columns = {{ {ours} = "..." }}',
            )
    return chosen


@lru_cache(maxsize=4096)
def meaning(name: str) -> str | None:
    """Tell what a column is by its name.

    Returns:
        Our name for it, None where it has none.
    """
    return next((ours for ours in SYNONYMS if _rank(ours, name) is not None), None)


@lru_cache(maxsize=4096)
def seems_a_loss(name: str) -> bool:
    """Tell whether a name is that of a training loss, though it may be none that is known.

    Returns:
        Whether it is one, or ends with "loss" and is neither of an evaluation nor a part of a loss.
    """
    if meaning(name) is not None:
        return meaning(name) == "loss"
    plain = normalised(name)
    return plain.endswith("loss") and not _NOT_TRAINING.search(plain) and not _PARTS.search(plain)


def _best(ours: str, names: Sequence[str], counts: Mapping[str, int]) -> str | None:
    ranked = []
    for position, name in enumerate(names):
        rank = _rank(ours, name)
        if rank is not None:
            # The step is the step whichever name has more rows; a loss logged once is a summary.
            ranked.append((0 if ours == "step" else -counts.get(name, 0), rank, position, name))
    return min(ranked)[3] if ranked else None


def _rank(ours: str, name: str) -> int | None:
    plain = normalised(name)
    if plain.endswith(("__min", "__max")) or (ours != "step" and _NOT_TRAINING.search(plain)):
        return None
    synonyms = SYNONYMS[ours]
    if plain in synonyms:
        return synonyms.index(plain)
    for place in _PLACES:
        if plain.removeprefix(place) in synonyms and plain.startswith(place):
            return len(synonyms) + synonyms.index(plain.removeprefix(place))
    return None


def normalised(name: str) -> str:
    """Spell a column's name plainly: lower case, separators as "_", without W&B's "run name - " in front.

    Returns:
        The plain name.
    """
    plain = name.rsplit(" - ", 1)[-1].strip().lower()
    return re.sub(r"[\s/.:\-|()]+", "_", plain).rstrip("_")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return (shown or "no columns at all") + (f" and {len(names) - 12} more" if len(names) > 12 else "")
