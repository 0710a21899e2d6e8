"""Input embedding and output head that are one tensor in the model and two different ones in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Portrait, Series, some
from hnf_offline.findings import Fault

#: Last parts of the names that embeddings and heads have in the layouts that are read.
_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "tok_embeddings.weight", "shared.weight"),
    *("word_embeddings.weight", "embedding.weight", "token_embedding.weight"),
)
_HEADS = (
    *("lm_head.weight", "embed_out.weight", "output.weight", "output_layer.weight", "ff_out.weight"),
    *("decoder.weight", "head.weight"),
)
#: What configurations call it: transformers, and the built-in GPT.
_TIED = ("tie_word_embeddings", "tied", "weight_tying")


def look(series: Series) -> Outcome:
    """Compare embedding and head where both are stored.

    Returns:
        A danger for the first of the checkpoints in which they differ though they should be one.
    """
    if not series.portraits:
        return Outcome((), "", "no tensor could be read")
    pairs = {portrait.step: _pair(portrait) for portrait in series.portraits}
    both = [portrait for portrait in series.portraits if pairs[portrait.step] is not None]
    if not both:
        return Outcome((), "", "no checkpoint stores both an input embedding and an output head of its shape")
    differ: list[Portrait] = []
    equal: list[Portrait] = []
    for portrait in both:
        embedding, head = pairs[portrait.step] or ("", "")
        same = portrait.tensors[embedding].digest == portrait.tensors[head].digest
        (equal if same else differ).append(portrait)
    promised = [portrait for portrait in differ if _says_tied(series.settings.get(portrait.step, {}))]
    lost = promised or (differ if equal else [])
    if not lost:
        return Outcome((), f"{some(len(both), 'checkpoint')}")
    first = lost[0]
    embedding, head = pairs[first.step] or ("", "")
    why = "the configuration says they are one" if promised else f"they are equal in {len(equal)} others"
    evidence = f"{embedding} and {head} differ, and {why}"
    if len(lost) > 1:
        evidence += f"; so they do in {len(lost) - 1} later checkpoints"
    fault = Fault(CHECK.name, "danger", first.step, series.path_of(first.step), evidence, CHECK.remedy)
    about = {fault: tuple(portrait.step for portrait in lost)}
    return Outcome((fault,), some(len(both), "checkpoint"), covered=about)


def _pair(portrait: Portrait) -> tuple[str, str] | None:
    embedding = _named(portrait, _EMBEDDINGS)
    head = _named(portrait, _HEADS)
    if embedding is None or head is None:
        return None
    same_shape = portrait.tensors[embedding].shape == portrait.tensors[head].shape
    return (embedding, head) if same_shape else None


def _named(portrait: Portrait, endings: tuple[str, ...]) -> str | None:
    for ending in endings:
        for name in portrait.tensors:
            if name == ending or name.endswith("." + ending):
                return name
    return None


def _says_tied(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(key) is True for key in _TIED)


CHECK = Check(
    name="tied-weights",
    cost="weights",
    looks_for="embedding and output head that should be one tensor and are two",
    matters="Loading such a file drops one of the two, and the model that is run is not the one that was trained.",
    remedy="save the model again with its weights tied, or set tie_word_embeddings to what was trained",
    look=look,
)
