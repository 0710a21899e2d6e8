"""run.toml: what a user says about a run where discovery would guess wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run.paths import OUTWARD, OUTWARD_REMEDY, beside, inside, leads_out
from hnf_offline.run.records import OptimizerSettings, Said

NAME = "run.toml"
_LARGEST = 5_000_000
_DEVICE = r"(?:cpu|mps|cuda(?::\d{1,3})?)"

#: Section -> key -> what its value has to be.
KEYS: Mapping[str, Mapping[str, str]] = {
    "model": {"kind": "text", "factory": "text", "config": "text", "settings": "table", "base": "text"},
    "checkpoints": {"glob": "text"},
    "log": {"files": "texts", "columns": "columns"},
    "batches": {
        "file": "text",
        "tokens": "text",
        "labels": "text",
        "aligned": "flag",
        "steps": "steps",
        "length": "count",
        "starts": "text",
    },
    "optimizer": {
        "kind": "text",
        "lr": "number",
        "betas": "pair",
        "eps": "number",
        "momentum": "number",
        "nesterov": "flag",
        "weight_decay": "number",
        "max_grad_norm": "number",
        "accumulation": "count",
        "precision": "text",
    },
    "resume": {"steps": "integers"},
    "analysis": {
        "tier": "text",
        "accuracy": "text",
        "device": "device",
        "dtype": "text",
        "rows": "count",
        "replay": "text",
        "steps": "range",
        "every": "count",
        "layers": "text",
        "rule": "text",
    },
}

MODEL_KINDS = ("hf", "gpt", "factory")
OPTIMIZER_KINDS = ("adam", "adamw", "sgd", "other")
PRECISIONS = ("float32", "bfloat16", "float16")
EVERY_STEP = "all"
#: What the options of these names take (`options.py`; a test holds the two together).
ANALYSES: Mapping[str, tuple[str, ...]] = {
    "tier": ("weights", "forward", "gradient", "stability", "curvature", "full"),
    "accuracy": ("screen", "standard", "certified"),
    "dtype": ("float32", "float64"),
    "rule": ("robust", "olmo", "olmo-core", "stable-adamw", "mosaic", "adagc"),
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The settings of one run.toml; empty where the file says nothing.

    Attributes:
        path: the file, None where there is none.
        named: whether the user named the file, so that what it says is the user's own word.
        model_kind: "hf", "gpt" or "factory".
        factory: `package.module:function`.
        model_config: the model's configuration file.
        model_settings: the model's configuration itself, in place of a file.
        base: folder of the model that adapters were trained on.
        checkpoint_glob: pattern of the checkpoints, relative to the run.
        log_files: the files of the training log.
        columns: our column name -> name in the log.
        batch_file: file of the replay batches.
        tokens: name of the token array.
        labels: name of the label array.
        aligned: whether labels[t] is the target of position t itself.
        batch_steps: rows a step, or the step of each row.
        every_step: whether all rows are the batch of every step.
        length: tokens a row, for flat token files.
        starts: file of the places in a flat token file where rows begin.
        optimizer: optimizer settings that win over the saved state.
        resume_steps: steps at which training was resumed.
        said: what the file says, as the run carries it on; None where there is no file.
    """

    path: Path | None = None
    named: bool = False
    model_kind: str | None = None
    factory: str | None = None
    model_config: Path | None = None
    model_settings: Mapping[str, Any] | None = None
    base: Path | None = None
    checkpoint_glob: str | None = None
    log_files: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    batch_file: Path | None = None
    tokens: str | None = None
    labels: str | None = None
    aligned: bool = False
    batch_steps: int | tuple[int, ...] | None = None
    every_step: bool = False
    length: int | None = None
    starts: Path | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    resume_steps: tuple[int, ...] = ()
    said: Said | None = None


def read_manifest(run: Path, path: Path | None = None) -> Manifest:
    """Read the run.toml of a run, or another file in its place.

    A run.toml came with the run, so its paths stay inside of it. A file that the user names is the user's own:
    its paths lead anywhere, and are looked for beside it first, then in the run.

    Args:
        run: the run directory.
        path: a manifest to read instead of `run / "run.toml"`.

    Returns:
        Its settings; empty where there is no such file and none was named.

    Raises:
        InputError: when the file cannot be read, or a path in it is not there or leaves the run.
        UsageError: when a key is unknown or a value has the wrong type.
    """
    file = run / NAME if path is None else path
    if path is None and not file.is_file():
        return Manifest()
    if path is None and leads_out(file, run):
        raise InputError(OUTWARD, path=file, remedy=OUTWARD_REMEDY)
    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(
                "is too large to be settings", path=file, remedy="name files of numbers in it instead"
            )
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=file) from error
    except (ValueError, RecursionError) as error:  # no TOML, no text, or brackets in brackets without end
        raise InputError(f"is not TOML: {str(error)[:300]}", path=file, remedy="mend that line") from error

    _check_keys(content, file)
    model, batches, optimizer = (content.get(name, {}) for name in ("model", "batches", "optimizer"))
    _one_of(model.get("kind"), MODEL_KINDS, "[model] kind", file)
    _one_of(optimizer.get("kind"), OPTIMIZER_KINDS, "[optimizer] kind", file)
    _one_of(optimizer.get("precision"), PRECISIONS, "[optimizer] precision", file)
    analysis = dict(content.get("analysis", {}))
    for name, known in ANALYSES.items():
        _one_of(analysis.get(name), known, f"[analysis] {name}", file)
    if model.get("kind") == "factory" and "factory" not in model:
        raise UsageError(
            '[model] kind = "factory" needs a factory',
            path=file,
            remedy='add factory = "package.module:function"',
        )
    if "settings" in model and "config" in model:
        raise UsageError("[model] has both config and settings", path=file, remedy="remove one of them")
    files = content.get("log", {}).get("files", ())
    steps = batches.get("steps")
    betas = optimizer.get("betas")

    def there(name: str) -> Path:
        if path is None:
            return _existing(inside(run, name, named_by=file), file)
        return beside((file.parent, run), name, named_by=file)

    def located(name: str | None) -> Path | None:
        return None if name is None else there(name)

    if "replay" in analysis:
        analysis["replay"] = there(analysis["replay"])
    keys = tuple(f"{section}.{key}" for section, of in content.items() for key in of)
    return Manifest(
        path=file,
        named=path is not None,
        model_kind=model.get("kind", "factory" if "factory" in model else None),
        factory=model.get("factory"),
        model_config=located(model.get("config")),
        model_settings=model.get("settings"),
        base=located(model.get("base")),
        checkpoint_glob=_safe_glob(content.get("checkpoints", {}).get("glob"), file),
        log_files=tuple(there(name) for name in ([files] if isinstance(files, str) else files)),
        columns=content.get("log", {}).get("columns", {}),
        batch_file=located(batches.get("file")),
        tokens=batches.get("tokens"),
        labels=batches.get("labels"),
        aligned=batches.get("aligned", False),
        batch_steps=tuple(steps) if isinstance(steps, list) else None if steps == EVERY_STEP else steps,
        every_step=steps == EVERY_STEP,
        length=batches.get("length"),
        starts=located(batches.get("starts")),
        optimizer=OptimizerSettings(
            kind=optimizer.get("kind"),
            learning_rate=_float(optimizer.get("lr")),
            betas=None if betas is None else (float(betas[0]), float(betas[1])),
            eps=_float(optimizer.get("eps")),
            momentum=_float(optimizer.get("momentum")),
            nesterov=optimizer.get("nesterov"),
            weight_decay=_float(optimizer.get("weight_decay")),
            max_grad_norm=_float(optimizer.get("max_grad_norm")),
            accumulation=optimizer.get("accumulation"),
            precision=optimizer.get("precision"),
        ),
        resume_steps=tuple(sorted(content.get("resume", {}).get("steps", ()))),
        said=Said(file, keys, analysis),
    )


def _check_keys(content: Mapping[str, Any], file: Path) -> None:
    for section, keys in content.items():
        if section not in KEYS:
            raise UsageError(f"unknown section [{section}]", path=file, remedy=_did_you_mean(section, KEYS))
        if not isinstance(keys, dict):
            raise UsageError(
                f"{section} is a section", path=file, remedy=f"write [{section}] on its own line"
            )
        for key, value in keys.items():
            if key not in KEYS[section]:
                remedy = _did_you_mean(key, KEYS[section])
                raise UsageError(f"unknown key {key!r} in [{section}]", path=file, remedy=remedy)
            wanted = _CHECKS[KEYS[section][key]]
            if not wanted[1](value):
                raise UsageError(f"[{section}] {key} = {value!r} is not {wanted[0]}", path=file)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)


_CHECKS: Mapping[str, tuple[str, Any]] = {
    "text": ("text", lambda value: isinstance(value, str) and value != ""),
    "texts": (
        "a list of file names",
        lambda value: (
            isinstance(value, str)
            or (isinstance(value, list) and all(isinstance(name, str) for name in value))
        ),
    ),
    "columns": (
        'a table such as { loss = "train/loss" }',
        lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    ),
    "table": ("a table of its own: [model.settings]", lambda value: isinstance(value, dict) and value != {}),
    "number": ("a number", _is_number),
    "count": ("a whole number above 0", _is_count),
    "pair": (
        "two numbers such as [0.9, 0.999]",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
    ),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "integers": ("a list of steps", _are_integers),
    "device": (
        "a device such as 'cpu', 'cuda' or 'cuda:1'",
        lambda value: isinstance(value, str) and re.fullmatch(rf"auto|{_DEVICE}(,{_DEVICE}){{0,63}}", value),
    ),
    "range": (
        "a range of steps such as '100:200', '100:' or ':200'",
        lambda value: isinstance(value, str) and re.fullmatch(r"\d{0,18}:\d{0,18}", value, re.ASCII),
    ),
    "steps": (
        'the number of rows a step, a list with the step of each row, or "all"',
        lambda value: value == EVERY_STEP or _is_count(value) or _are_integers(value),
    ),
}


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def _one_of(value: str | None, known: tuple[str, ...], what: str, file: Path) -> None:
    if value is not None and value not in known:
        raise UsageError(
            f"{what} = {value!r} is not known", path=file, remedy=_did_you_mean(value, dict.fromkeys(known))
        )


def _safe_glob(pattern: str | None, file: Path) -> str | None:
    if pattern is not None and (Path(pattern).is_absolute() or ".." in Path(pattern).parts):
        raise InputError(
            f"[checkpoints] glob = {pattern!r} leads outside of the run",
            path=file,
            remedy="give a pattern relative to the run directory, such as 'weights/step*'",
        )
    return pattern


def _existing(path: Path, file: Path) -> Path:
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise InputError(
            f"names {str(path)[:300]}, which is not there",
            path=file,
            remedy="mend the name or remove the line",
        )
    return path


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
