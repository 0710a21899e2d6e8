"""Where the value of each option comes from: typed, from the environment, from run.toml, or the default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import spelled
from hnf_offline.run.records import Run, Said

if TYPE_CHECKING:
    import typer

#: What a plan tells of, in this order, where the verb has the option.
TOLD = (
    "tier", "accuracy", "device", "dtype", "rows", "replay", "steps", "every", "layers", "traces", "density",
    "gradient_check", "koopman", "landscape", "barrier", "rule", "zoom", "model", "column",
)  # fmt: skip
#: What a plan says of an option without a value.
UNSET = {
    "rows": "two training batches, or about 4096 tokens, or 32 images",
    "replay": "the run's own rows",
    "steps": "all",
    "layers": "all",
    "model": "none found",
    "column": "found by name",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One option in effect.

    Attributes:
        name: of the option, without the dashes.
        value: its value, None where it has none.
        origin: "option", the name of an environment variable, "run.toml" (or the file named with --manifest), the
            file in which a model was found, or "default".
    """

    name: str
    value: Any
    origin: str

    def __str__(self) -> str:
        value = UNSET.get(self.name, "none") if self.value is None else self.value
        value = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        value = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        return f"{self.name.replace('_', '-')} {value} ({self.origin})"


def asked_by_run(
    context: typer.Context, said: Said | None, *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Find what run.toml decides: what it asks for in [analysis] and neither an option nor the environment does.

    Args:
        context: what was typed.
        said: what run.toml says, None where there is none.
        without: options that mean something else for this verb.

    Returns:
        Name of the option -> value.
    """
    if said is None:
        return {}
    open_ = {
        name
        for name in said.analysis
        if name in context.params and name not in without and _origin(context, name) == "default"
    }
    return {name: value for name, value in said.analysis.items() if name in open_}


def asked_by_both(first: Said | None, second: Said | None) -> Said | None:
    """Reduce what two runs ask for to what both ask for alike; a comparison measures both in the same way.

    Returns:
        What both say, None where one of them says nothing.
    """
    if first is None or second is None:
        return None
    # A file in one run is not the file of that name in the other.
    common = {
        name: value
        for name, value in first.analysis.items()
        if name != "replay" and second.analysis.get(name) == value
    }
    return Said(first.file, (), common)


def choices(context: typer.Context, run: Run, from_run: Mapping[str, Any]) -> tuple[Choice, ...]:
    """List the options of a verb with the values in effect, and where each comes from.

    Args:
        context: what was typed.
        run: the run, for its run.toml, model and log.
        from_run: what run.toml decides, of `asked_by_run`.

    Returns:
        One choice an option.
    """
    told = []
    for name in TOLD:
        if name not in context.params:
            continue
        value, origin = context.params[name], _origin(context, name)
        if name in from_run:
            value, origin = from_run[name], _file(run)
        elif name == "model" and value is None:
            value, origin = _model(run)
        elif name == "column" and not value:
            value, origin = _columns(run)
        value = value.value if isinstance(value, Enum) else value
        value = spelled(value) if isinstance(value, Path) else value
        told.append(Choice(name, value, origin))
    return tuple(told)


def _origin(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    if source is None or source.name.startswith("DEFAULT"):
        return "default"
    if source.name == "ENVIRONMENT":
        known = next((one for one in context.command.params if one.name == name), None)
        variable = getattr(known, "envvar", None)
        return str(variable[0] if isinstance(variable, list | tuple) else variable)
    return "option"


def _file(run: Run) -> str:
    return "run.toml" if run.said is None else run.said.file.name


def _says(run: Run, section: str) -> bool:
    return run.said is not None and any(key.startswith(f"{section}.") for key in run.said.keys)


def _model(run: Run) -> tuple[str | None, str]:
    model = run.model
    if model is None:
        return None, "default"
    value = model.kind if model.factory is None else model.factory
    if _says(run, "model"):
        return value, _file(run)
    return value, "found" if model.config_file is None else model.config_file.name


def _columns(run: Run) -> tuple[list[str] | None, str]:
    if run.log is None or run.said is None or "log.columns" not in run.said.keys:
        return None, "default"
    return [f"{ours}={column}" for ours, column in run.log.columns.items()], _file(run)
