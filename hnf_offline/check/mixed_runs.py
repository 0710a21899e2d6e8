"""Checkpoints of several runs in one folder: other settings, another tokenizer, another history."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, counted, some
from hnf_offline.findings import Fault
from hnf_offline.run.configuration import flatten
from hnf_offline.run.formats.safetensors_file import read_json
from hnf_offline.run.paths import leads_out

#: What a newer library, another folder or another machine writes differently for the same model.
_UNIMPORTANT = {
    *("transformers_version", "_name_or_path", "name_or_path", "use_cache", "torch_dtype", "dtype"),
    *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "return_dict"),
}
#: Settings without which it is another model.
_SIZES = {
    *(
        "model_type",
        "vocab_size",
        "hidden_size",
        "n_embd",
        "d_model",
        "n_layer",
        "num_hidden_layers",
        "n_head",
    ),
    *(
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "head_dim",
        "block_size",
        "n_positions",
    ),
    *("max_position_embeddings", "hidden_act", "rope_theta", "norm", "tied", "tie_word_embeddings"),
}
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model", "merges.txt")
#: Bytes of tokenizers and of trainer states that are read in all.
_MOST_BYTES = 2**25
#: Losses that are compared with the log of each trainer state.
_COMPARED = 200


def look(series: Series) -> Outcome:
    """Compare settings, tokenizers and histories of the checkpoints.

    Returns:
        A danger for checkpoints of another model or another history, a warning for other settings or tokenizers.
    """
    checkpoints = series.run.checkpoints
    if len(checkpoints) < 2:
        return Outcome((), "", "fewer than two checkpoints")
    faults, looked, skipped = [], [], []
    covered: dict[Fault, tuple[int, ...]] = {}
    settings = {step: _flat(one) for step, one in series.settings.items()}
    if len(settings) > 1:
        faults += _other_settings(series, settings, covered)
        looked.append(f"settings of {some(len(settings), 'checkpoint')}")
    else:
        skipped.append("no settings are saved with single checkpoints")
    folders = {one.step: one.path for one in checkpoints if one.path.is_dir()}
    tokenizers = _tokenizers(folders)
    if len(tokenizers) > 1:
        faults += _other_tokenizers(series, tokenizers)
        looked.append(f"tokenizers of {len(tokenizers)}")
    compared, other, unread = _histories(series, folders)
    faults += other
    if compared:
        looked.append(f"histories of {compared}")
    if unread:
        skipped.append(f"the histories of {some(unread, 'checkpoint')} are too long to be read")
    return Outcome(tuple(faults), ", ".join(looked), "; ".join(skipped), covered)


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: json.dumps(value, default=str)
        for name, value in flatten(settings)
        if name.rpartition(".")[2] not in _UNIMPORTANT
    }


def _other_settings(
    series: Series, settings: Mapping[int, Mapping[str, str]], covered: dict[Fault, tuple[int, ...]]
) -> list[Fault]:
    votes: dict[str, Counter[str | None]] = {}
    names = {name for one in settings.values() for name in one}
    for name in names:
        votes[name] = Counter(one.get(name) for one in settings.values())
    expected = {name: vote.most_common(1)[0][0] for name, vote in votes.items()}
    groups: dict[tuple[tuple[str, str | None], ...], list[int]] = {}
    for step, one in settings.items():
        other = tuple(sorted((n, one.get(n)) for n in names if one.get(n) != expected[n]))
        if other:
            groups.setdefault(other, []).append(step)
    faults = []
    for other, steps in groups.items():
        told = ", ".join(
            f"{n} is {value or 'absent'} ({expected[n] or 'absent'} elsewhere)" for n, value in other[:3]
        )
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        evidence = f"{counted(steps)}: {told}{more}"
        sizes = any(n.rpartition(".")[2] in _SIZES for n, _ in other)
        severity = "danger" if sizes else "warning"
        where = series.path_of(steps[0])
        fault = Fault(CHECK.name, severity, steps[0], where, evidence, CHECK.remedy)
        covered[fault] = tuple(steps)
        faults.append(fault)
    return faults


def _tokenizers(folders: Mapping[int, Path]) -> dict[int, dict[str, str]]:
    # Step -> file -> hash of its content, as far as the bytes last.
    found: dict[int, dict[str, str]] = {}
    left = _MOST_BYTES
    for step, folder in folders.items():
        for name in _TOKENIZERS:
            try:
                file = folder / name
                # A link out of the run is not followed; the run is the folder above, or the checkpoint itself.
                if not file.is_file() or (leads_out(file, folder) and leads_out(file, folder.parent)):
                    continue
                size = file.stat().st_size
                if size > left:
                    continue
                content = file.read_bytes()
            except OSError:
                continue
            left -= size
            found.setdefault(step, {})[name] = hashlib.blake2b(content, digest_size=8).hexdigest()
    return found


def _other_tokenizers(series: Series, tokenizers: Mapping[int, Mapping[str, str]]) -> list[Fault]:
    faults = []
    for name in sorted({name for one in tokenizers.values() for name in one}):
        votes = Counter(one[name] for one in tokenizers.values() if name in one)
        usual = votes.most_common(1)[0][0]
        other = [step for step, one in tokenizers.items() if one.get(name, usual) != usual]
        if other:
            where = f"{series.path_of(other[0])}/{name}"
            evidence = f"{counted(other)}: another {name} than in the other checkpoints"
            faults.append(Fault(CHECK.name, "warning", other[0], where, evidence, CHECK.remedy))
            break  # a vocabulary comes in several files
    return faults


def _histories(series: Series, folders: Mapping[int, Path]) -> tuple[int, list[Fault], int]:
    # A trainer state repeats the log up to its step: with other losses it is of another run.
    log = series.run.log
    if log is None:
        return 0, [], 0
    known = log.rows.select("step", "loss").drop_nulls()
    logged = dict(zip(known["step"].to_list(), known["loss"].to_list(), strict=True))
    compared, unread, faults = 0, 0, []
    left = _MOST_BYTES
    for step, folder in folders.items():
        file = folder / "trainer_state.json"
        try:
            size = file.stat().st_size
        except OSError:
            continue
        if size > left:
            unread += 1
            continue
        left -= size
        history = read_json(file).get("log_history")
        rows = [one for one in history if isinstance(one, dict)] if isinstance(history, list) else []
        own = {
            one["step"] + log.shift: one["loss"]
            for one in rows[-_COMPARED:]
            if isinstance(one.get("step"), int) and isinstance(one.get("loss"), int | float)
        }
        shared = [at for at in own if at in logged]
        if not shared:
            continue
        compared += 1
        other = [at for at in shared if _differ(float(own[at]), logged[at])]
        # A few rows may have been written again after a resume.
        if 2 * len(other) > len(shared):
            at = other[-1]
            evidence = (
                f"its own history has the loss {own[at]:.4g} at step {at}, the run's log {logged[at]:.4g}; so do "
                f"{len(other)} of {len(shared)} rows"
            )
            where = series.relative(file)
            faults.append(Fault(CHECK.name, "danger", step, where, evidence, CHECK.remedy))
    return compared, faults, unread


def _differ(own: float, logged: float) -> bool:
    if math.isnan(own) or math.isnan(logged):
        return False  # NaN says nothing of whose it is
    return abs(own - logged) > 1e-4 * max(1.0, abs(logged))


CHECK = Check(
    name="mixed-runs",
    cost="cheap",
    looks_for="checkpoints of several runs in one folder",
    matters="Two runs read as one give changes that no training made.",
    remedy="keep each run in a folder of its own, or name one with [checkpoints] glob in run.toml",
    look=look,
)
