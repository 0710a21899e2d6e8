"""docs/reference/run-toml.md: every key that a run.toml may have, from the table that the program checks it by."""

from __future__ import annotations

from collections.abc import Mapping

from hnf_offline.run.manifest import KEYS, MODEL_KINDS, OPTIMIZER_KINDS, PRECISIONS

_PAGE = """# run.toml

Written by `python -m docs.generate` from the table by which the program checks the file. Most runs need none: what is
on disk is found by itself ([What is read](../formats.md)). A `run.toml` in the run, or any file named with
`--manifest FILE`, overrides what was found. Every section and key may be left out; an unknown one, or a value of the
wrong kind, is refused with the nearest known word.

A `run.toml` inside a run came with the run, so its paths stay inside of it, and a model function that only it names is
not imported: repeat it with `--model`. A file that you name with `--manifest` is your own word: its paths are looked
for beside it first and then in the run, they may lead anywhere, and its function is imported.

What `[analysis]` asks for takes the place of the verbs' defaults: an option wins over an environment variable, that one
over `run.toml`, and `--plan` says where each value comes from. From Python, `hnf.ProfileSettings` says it all, and
`[analysis]` is not looked at.

```toml
{example}```

{sections}

## Words

- `[model] kind`: {models}
- `[optimizer] kind`: {optimizers}
- `[optimizer] precision`: {precisions}
"""

#: Shown, and read back by a test.
EXAMPLE = """[checkpoints]
glob = "ckpt-*.pt"

[model]
kind = "gpt"

[model.settings]                # in place of a config.json
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
vocab_size = 50304

[log]
files = ["train.jsonl"]
columns = { step = "iter", loss = "train/lm_loss" }

[batches]
file = "tokens.npz"
steps = 8

[optimizer]
kind = "adamw"
weight_decay = 0.1
max_grad_norm = 1.0
accumulation = 4
precision = "bfloat16"

[resume]
steps = [4000]

[analysis]
tier = "stability"
rows = 16
"""

_VALUES: Mapping[str, str] = {
    "text": "text",
    "texts": "text or a list of texts",
    "columns": "a table of texts",
    "table": "a table of its own",
    "number": "a number",
    "count": "a whole number above 0",
    "pair": "two numbers",
    "flag": "true or false",
    "integers": "a list of steps",
    "steps": 'a whole number, a list of steps, or `"all"`',
    "device": "a device, such as `cpu` or `cuda:0`",
    "range": "A:B, either of which may be left out",
}

_MEANING: Mapping[str, Mapping[str, str]] = {
    "model": {
        "kind": "what builds the model; without it a configuration's `model_type` decides",
        "factory": "`package.module:function` that builds it; called with the configuration if it takes an argument",
        "config": "file with the model's configuration, as a `config.json`",
        "settings": "the configuration itself; not together with `config`",
        "base": "folder of the model that LoRA adapters were trained on: `config.json` and safetensors weights",
    },
    "checkpoints": {"glob": "pattern of the checkpoints, relative to the run; nothing else is one then"},
    "log": {
        "files": "the training log; several are read as parts of one",
        "columns": "our name of a column = its name in the log; `--column` does the same and wins",
    },
    "batches": {
        "file": "rows to replay: `.safetensors`, `.npz`, or a flat uint16 `.bin` (nanoGPT's)",
        "tokens": "name of the array of tokens, or of images and other rows of floating-point numbers; `input_ids`, "
        "`tokens` or `pixel_values` by itself",
        "labels": "name of the label array; `labels`, `targets` or `target` by itself; none where they are the tokens",
        "aligned": "whether `labels[t]` is the target of position t itself, as nanoGPT's `y`",
        "steps": 'rows of each step, in order; or the step of each row; or `"all"`: every row at every step',
        "length": "tokens of a row, for a flat file",
        "starts": "a `.npy` with the places in a flat file where rows begin, [steps, rows] or [rows]",
    },
    "optimizer": {
        "kind": "which optimizer it was, where the saved state does not say; `other` has no S",
        "lr": "learning rate of the next update",
        "betas": "decays of Adam's two moments",
        "eps": "what Adam adds to the root of the second moment",
        "momentum": "decay of SGD's momentum",
        "nesterov": "whether SGD looks ahead",
        "weight_decay": "decay coefficient; used by retraining",
        "max_grad_norm": "bound on the global gradient norm, 0 for none; used by retraining",
        "accumulation": "batches whose gradients made one update; used by retraining",
        "precision": "of the forward and backward passes; used by retraining",
    },
    "resume": {"steps": "steps at which training was resumed; by itself, where the log restarts"},
    "analysis": {
        "tier": "how much to measure, as `--tier`",
        "accuracy": "how well eigenvalues are to be known, as `--accuracy`",
        "device": "where to compute, as `--device`",
        "dtype": "precision of the products, as `--dtype`",
        "rows": "sequences to replay, as `--rows`",
        "replay": "file of the rows to replay, as `--replay`",
        "steps": "checkpoints from step A to B, as `--steps`",
        "every": "every n-th checkpoint alone, as `--every`",
        "layers": "layers that get a curvature of their own, as `--layers`",
        "rule": "definition of a loss spike, as `--rule`",
    },
}


def run_toml_page() -> str:
    """Spell docs/reference/run-toml.md.

    Returns:
        Markdown; a key without a meaning here is an error.
    """
    return _PAGE.format(
        example=EXAMPLE,
        sections="\n\n".join(_section(name, keys) for name, keys in KEYS.items()),
        models=_listed(MODEL_KINDS),
        optimizers=_listed(OPTIMIZER_KINDS),
        precisions=_listed(PRECISIONS),
    )


def _section(name: str, keys: Mapping[str, str]) -> str:
    rows = [f"| `{key}` | {_VALUES[value]} | {_MEANING[name][key]} |" for key, value in keys.items()]
    return "\n".join([f"## [{name}]", "", "| key | value | what it says |", "|---|---|---|", *rows])


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)
