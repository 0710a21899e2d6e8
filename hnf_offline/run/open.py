"""Open a run: find everything it left on disk, without configuration, and say what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run import formats
from hnf_offline.run.adapted import adapter_source, with_optimizer
from hnf_offline.run.batches import find_batches, passed_over
from hnf_offline.run.configuration import configuration
from hnf_offline.run.formats.safetensors_file import read_json
from hnf_offline.run.formats.safetensors_folder import is_recording
from hnf_offline.run.logs import format_of, read_log
from hnf_offline.run.logs.find import find_logs
from hnf_offline.run.manifest import Manifest, read_manifest
from hnf_offline.run.random_states import RandomStates, find_random_states
from hnf_offline.run.records import Batches, Checkpoint, Log, Missing, ModelSource, Run, Skipped
from hnf_offline.run.remote import address_of, local_path, open_address

#: nanoGPT's words for a model (karpathy/nanoGPT@3adf61e model.py, GPTConfig); only its models have all five.
_GPT_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")

_REMEDY = "point at the folder that holds the checkpoints or the log, or name them in a run.toml there"


#: Checkpoints, and what was passed over and why.
Found = tuple[Sequence[Checkpoint], Sequence[Skipped]]


def find_checkpoints(path: Path, manifest: Path | None = None) -> Found:
    """Find the checkpoints of a run and nothing else, as `open_run` does.

    Args:
        path: a run directory or a file, on this disk.
        manifest: a run.toml to read instead of the one in the directory.

    Returns:
        The checkpoints, and what was passed over.
    """
    folder = path if path.is_dir() else path.parent
    said = read_manifest(folder, manifest) if path.is_dir() or manifest else Manifest()
    return formats.find(path, said.checkpoint_glob)


def open_run(
    path: Path | str,
    manifest: Path | str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    memory_map: bool = True,
    found: Found | None = None,
) -> Run:
    """Find the checkpoints, log, batches, model and settings of a run.

    Args:
        path: a run directory, one checkpoint, one log file, or the address of one (s3://bucket/run).
        manifest: a run.toml to read instead of the one in the directory.
        columns: our column name -> name in the log; wins over the manifest's.
        memory_map: whether weight files may be mapped into memory.
        found: what `find_checkpoints` found, where it was asked before and nothing of that has changed.

    Returns:
        The run; what could not be read is in `skipped`, what is not there in `missing`.

    Raises:
        InputError: when there is neither a readable checkpoint nor a readable log.
        UsageError: when a run.toml names the model of adapters, and there are none.
    """
    address = address_of(path)
    left_out: list[Skipped] = []
    if address is None:
        path = local_path(path)
    else:
        path, left_out = open_address(address)
        memory_map = True  # what is fetched lies on this disk
    if not path.exists():
        raise InputError("is not there", path=path, remedy="check the spelling, or where the run is mounted")
    folder = path if path.is_dir() else path.parent
    said = (
        read_manifest(folder, None if manifest is None else Path(manifest))
        if path.is_dir() or manifest
        else Manifest()
    )
    said = replace(said, columns={**said.columns, **(columns or {})})

    found = formats.find(path, said.checkpoint_glob) if found is None else found
    checkpoints, skipped = list(found[0]), list(found[1])
    checkpoints = [replace(checkpoint, memory_map=memory_map) for checkpoint in checkpoints]
    skipped += left_out
    if path.is_file() and not checkpoints:
        if skipped and format_of(path) is None:
            raise InputError(skipped[0].reason, path=skipped[0].path, remedy=skipped[0].remedy or None)
        log: Log | None = read_log(path, said.columns)
    elif path.is_file():
        log = None
    else:
        log, passed_over = _log(path, said, checkpoints)
        skipped += passed_over
    if not checkpoints and log is None:
        if skipped:
            raise InputError(
                f"nothing in it can be read; {skipped[0].path}: {skipped[0].reason}",
                path=path,
                remedy=skipped[0].remedy or _REMEDY,
            )
        raise InputError("holds no checkpoint and no log of a known format", path=path, remedy=_REMEDY)

    sections, section_file = _sections(path, checkpoints, skipped)
    adapters = [checkpoint for checkpoint in checkpoints if checkpoint.adapter]
    model, lacking = None, ""
    if not adapters:
        model = _model(path, said, sections, section_file)
        if said.base is not None:
            raise UsageError(
                "[model] base is for checkpoints that are adapters, and this run has none",
                path=said.path,
                remedy="remove the line",
            )
    else:
        model, lacking = adapter_source(path, adapters, said.base)
        if model is not None:
            checkpoints = [with_optimizer(one) if one.adapter else one for one in checkpoints]
    batches = _batches(path, said, sections, checkpoints, log)
    random_states = _random_states(path, skipped)
    return Run(
        path=path,
        name=path.name or path.resolve().name,
        checkpoints=tuple(checkpoints),
        log=log,
        batches=batches,
        model=model,
        optimizer=said.optimizer,
        resume_steps=said.resume_steps or (log.restarts if log is not None else ()),
        configuration=configuration(path, sections),
        skipped=tuple(skipped),
        missing=tuple(_missing(checkpoints, log, batches, model, _refused(path, batches), lacking)),
        random_states=random_states,
        said=said.said,
    )


def _log(path: Path, said: Manifest, checkpoints: list[Checkpoint]) -> tuple[Log | None, list[Skipped]]:
    if said.log_files:
        return read_log(said.log_files, said.columns), []
    return find_logs(path, checkpoints, said.columns)


def _sections(
    path: Path, checkpoints: list[Checkpoint], skipped: list[Skipped]
) -> tuple[Mapping[str, Any], Path | None]:
    # The settings saved with the run: of the first checkpoint that has any, or of the run's config.json.
    config_file = path / "config.json"
    config = read_json(config_file, run=path) if path.is_dir() else {}
    recorded = {
        key: config[key] for key in ("model", "optimizer", "training") if isinstance(config.get(key), dict)
    }
    sections: dict[str, Any] = {}
    file: Path | None = None
    with_optimizer = any(checkpoint.optimizer_files for checkpoint in checkpoints)
    for checkpoint in checkpoints:
        try:
            saved = formats.configuration(checkpoint)
        except InputError as error:
            skipped.append(Skipped(error.path or checkpoint.path, error.reason, error.remedy or ""))
            continue
        if saved.get("model") and "model" not in sections:
            file = checkpoint.config_file or checkpoint.weight_files[0]
        for key, section in saved.items():
            sections[key] = {**section, **sections.get(key, {})}
        # The optimizer's settings come from the first checkpoint that has its state.
        if "model" in sections and (checkpoint.optimizer_files or not with_optimizer):
            break
    if is_recording(config):
        sections = {
            **sections,
            **recorded,
            "optimizer": {**sections.get("optimizer", {}), **recorded.get("optimizer", {})},
        }
        file = config_file
    elif "model" not in sections and "model_type" in config:
        sections["model"], file = config, config_file
    return sections, file


def _nanogpt_model(
    path: Path, config: Mapping[str, Any], file: Path | None
) -> tuple[Mapping[str, Any], Path | None] | None:
    # What a configuration without the name of a model describes, if it has all five of nanoGPT's sizes.
    for described, source in (
        (config, file),
        *(
            (read_json(path / name, run=path), path / name)
            for name in ("config.json", "RUN.json", "run.json")
        ),
    ):
        if "model_type" not in described and all(type(described.get(key)) is int for key in _GPT_SIZES):
            return {"model_type": "gpt", "norm": "pre", **described}, source
    return None


def _model(
    path: Path, said: Manifest, sections: Mapping[str, Any], section_file: Path | None
) -> ModelSource | None:
    file = said.model_config or section_file
    config: Mapping[str, Any] = sections.get("model") or {}
    if not is_recording(read_json(path / "config.json", run=path)) and "model_type" not in config:
        config, file = _nanogpt_model(path, config, file) or (config, file)
    if said.model_settings is not None:
        config, file = said.model_settings, said.path
    if said.model_config is not None:
        config = read_json(said.model_config)
        if is_recording(config):
            config = config.get("model") or {}
        if not config:
            raise InputError(
                "is not a JSON object", path=said.model_config, remedy="name the model's config.json"
            )
    if said.model_kind == "factory":
        return ModelSource("factory", config, file, said.factory, untrusted=not said.named)
    if not config:
        if said.model_kind is not None:
            raise InputError(
                f'[model] kind = "{said.model_kind}" has no configuration',
                path=said.path,
                remedy='add config = "config.json", or its keys as [model.settings]',
            )
        return None
    kind = said.model_kind or (
        "gpt" if config.get("model_type") == "gpt" else "hf" if "model_type" in config else None
    )
    if kind is None and said.model_settings is not None:
        raise InputError(
            "[model.settings] do not say what they describe",
            path=said.path,
            remedy='add kind = "gpt", "hf" or "factory" to [model]',
        )
    return None if kind is None else ModelSource(kind, dict(config), file)


def _batches(
    path: Path, said: Manifest, sections: Mapping[str, Any], checkpoints: list[Checkpoint], log: Log | None
) -> Batches | None:
    logged = [] if log is None or not log.rows.height else [int(log.rows["step"][-1])]
    first = None if log is None or not log.rows.height else int(log.rows["step"][0])
    recorded = path.is_dir() and is_recording(read_json(path / "config.json", run=path))
    return find_batches(
        path,
        said,
        last_steps=[*logged, *(c.step for c in checkpoints[-1:])],
        first_logged_step=first,
        full=recorded and sections.get("training", {}).get("batch") == "full",
    )


def _random_states(path: Path, skipped: list[Skipped]) -> RandomStates | None:
    try:
        return find_random_states(path)
    except InputError as error:
        skipped.append(Skipped(error.path or path, error.reason, error.remedy or ""))
        return None


def _refused(path: Path, batches: Batches | None) -> str:
    # Why a file with the name of batches is none, to be told with what their lack costs.
    error = passed_over(path) if batches is None else None
    if error is None or error.path is None:
        return ""
    return f" ({error.path.name} {error.reason}; {error.remedy})"


def _missing(
    checkpoints: list[Checkpoint],
    log: Log | None,
    batches: Batches | None,
    model: ModelSource | None,
    refused: str,
    lacking: str,
) -> list[Missing]:
    missing = []
    if not checkpoints:
        missing.append(
            Missing("no checkpoint", "only the log can be read: no curvature, no layer, no advice on it")
        )
    else:
        if lacking:
            missing.append(
                Missing("only an adapter", f"only what its weights alone show is measured, since {lacking}")
            )
        elif model is None:
            missing.append(
                Missing("no model", "the weights cannot be run: only what weights alone show is measured")
            )
        if batches is None:
            missing.append(
                Missing(
                    "no batches", f"nothing can be replayed: no gradient, no attention, no curvature{refused}"
                )
            )
        without = sum(not checkpoint.optimizer_files for checkpoint in checkpoints)
        if without:
            missing.append(
                Missing(
                    f"no optimizer state in {without} of {len(checkpoints)} checkpoints",
                    "no stability ratio there, only the raw curvature",
                )
            )
    if log is None:
        missing.append(Missing("no log", "no loss spike can be found, so nothing can be related to one"))
    else:
        for column, what, cost in (
            ("grad_norm", "no gradient norm in the log", "no comparison with the usual warning sign"),
            (
                "learning_rate",
                "no learning rate in the log",
                "jumps of the learning rate cannot be seen between checkpoints",
            ),
        ):
            if log.rows[column].null_count() == log.rows.height:
                missing.append(Missing(what, cost))
    return missing
