"""Write the reference pages from the program itself: `python -m docs.generate`.

A layout or log format describes itself in the first lines of its module, so a page cannot name what is not read.
"""

from __future__ import annotations

from pathlib import Path

from hnf_offline.quantities import catalogue
from hnf_offline.quantities.registry import Quantity
from hnf_offline.quantities.sources import DOCUMENTS, Measure, measures_of
from hnf_offline.run.formats import FORMATS
from hnf_offline.run.logs import LOG_FORMATS
from hnf_offline.run.logs.columns import SYNONYMS

HERE = Path(__file__).parent

_FORMATS = """# What is read

Written by `python -m docs.generate` from the readers themselves. Nothing has to be configured: a folder is looked
through, and the first reader in each list that knows a file or folder has it. `run.toml` overrides what was found.

## Checkpoints

Weights, and where they were saved the optimizer's state by parameter name, its settings and the model's. Nothing of a
file is run: what cannot be read without that is refused, with what to convert it with.

{layouts}

A step is read from the name (`step-000352`, `checkpoint-100`, `global_step20`, `epoch=1-step=40`), else from inside.
Of two checkpoints of one step the fuller is used, and the other is told.

## Rows to replay

A `.safetensors` or `.npz` file beside the checkpoints, or named with `--replay FILE` or `[batches] file`:

| array | shape | what it is |
|---|---|---|
| `input_ids`, `tokens` | [rows, length] or [batches, rows, length] | tokens, whole numbers |
| `pixel_values` | [rows, channels, height, width], or batches | images as the model gets them, floating-point |
| `labels`, `targets`, `target` | as the tokens, or one a row | what is to be predicted; by itself the next token |
| `steps` | [rows] | the step at which each row was trained on |

Images need labels, one a row, and 16 to 64 bits a number. Other names, and other rows of floating-point numbers, are
named in [run.toml](reference/run-toml.md#batches); so is nanoGPT's flat `.bin`. A module is called as
`module(input_ids=..., labels=...)`; images are its `pixel_values`, or what a model of transformers calls its main
input, in the precision of the replay.

## Logs

One row a step. Restarts are found where steps go back; of rows that were written twice the last one counts, and both
are told. A loss that is NaN or infinite is a finding. If no training loss was logged, a validation loss is read, and
that is said.

{logs}

The meaning of a column is known by its name, whatever its case and separators; `--column NAME=COLUMN` or
`[log] columns` in run.toml overrides. Our names, and some of those they go by:

{columns}

A log whose first step is 0 may count from 0. A few checkpoints are then replayed on the batch of their next step: where
the losses show it, the log is moved by one and a note says so; where batches or model are missing, a note says that
steps may be off by one.

If a run left several logs, the one that tells most is used and the others are named. `--no-mmap` reads weight files
plainly, for network disks; an address takes the place of a folder ([Runs on object stores](how-to/remote.md)).
"""


def formats_page() -> str:
    """Spell docs/formats.md.

    Returns:
        Markdown.
    """
    columns = [
        f"| `{ours}` | {', '.join(f'`{name}`' for name in names[:6])}{', ...' if len(names) > 6 else ''} |"
        for ours, names in SYNONYMS.items()
    ]
    return _FORMATS.format(
        layouts=_table("layout", FORMATS),
        logs=_table("format", LOG_FORMATS),
        columns="\n".join(["| ours | in logs |", "|---|---|", *columns]),
    )


_CATALOGUE = """# The catalogue

Written by `python -m docs.generate` from the registry. `hnf quantities NAME` prints one entry, with `--tier`, `--kind`
and `--source` some of them, `--json` all fields. `log` needs no checkpoint, `weights` no model, the other tiers replay
batches: each tier contains those before it, and `weights` is measured by itself and in `full`. A quantity `NAME` whose
worst head is reported has a companion `NAME_head`, which says which head it was.

{count} quantities:

{families}

# From the source documents

What each of the four documents lists, in its order, and where it is: entries of the catalogue, verbs of the program, or
the reason why it is neither. Where a document's formula is wrong, the entry says under "source" what was put in its
place.

{documents}
"""


def catalogue_page() -> str:
    """Spell docs/catalogue.md.

    Returns:
        Markdown.
    """
    # By name: the registry's own order is that in which somebody imported the families.
    entries = [entry for _, entry in sorted(catalogue().items()) if entry.inputs]
    families: dict[str, list[Quantity]] = {}
    for entry in entries:
        families.setdefault(entry.name.partition(".")[0], []).append(entry)
    return _CATALOGUE.format(
        count=len(entries),
        families="\n\n".join(_family(name, of) for name, of in families.items()),
        documents="\n\n".join(_document(key, title) for key, title in DOCUMENTS.items()),
    )


def _family(name: str, entries: list[Quantity]) -> str:
    parts = [f"## {name}"]
    for entry in entries:
        lines = [f"### `{entry.name}`", "", entry.description, ""]
        told = {
            "formula": f"`{entry.formula}`",
            "unit": entry.unit,
            "tier": entry.tier,
            "where": entry.layers,
            "read it like this": entry.reading,
            "it cannot show": entry.cannot,
            "source": entry.reference,
        }
        lines += [f"- {label}: {text}" for label, text in told.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _document(key: str, title: str) -> str:
    rows = [f"## {title} (`--source {key}`)", "", "| measure | here | remark |", "|---|---|---|"]
    for measure in measures_of(key):
        cells = (measure.name, _places(measure) or "-", measure.remark)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _places(measure: Measure) -> str:
    return ", ".join(f"`{one}`" for one in (*measure.quantities, *measure.elsewhere))


def _table(name: str, readers: object) -> str:
    rows = [f"| {name} | what it is |", "|---|---|"]
    for key, module in dict(readers).items():  # type: ignore[call-overload]
        said = " ".join((module.__doc__ or "").split()).replace("|", "\\|")
        rows.append(f"| `{key}` | {said} |")
    return "\n".join(rows)


def pages() -> dict[str, str]:
    """Spell every page that is written by the program.

    Returns:
        Path below docs/ -> Markdown or JSON.
    """
    from docs.commands import commands_page
    from docs.pathologies_page import pathologies_page
    from docs.run_toml import run_toml_page
    from docs.schemas import DOCUMENTS as RECORDS
    from docs.schemas import schema

    return {
        "formats.md": formats_page(),
        "catalogue.md": catalogue_page(),
        "pathologies.md": pathologies_page(),
        "reference/commands.md": commands_page(),
        "reference/run-toml.md": run_toml_page(),
        **{f"schemas/{file}": schema(*of) for file, of in RECORDS.items()},
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")
