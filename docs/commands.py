"""docs/reference/commands.md: what every verb's own help says, one section a verb.

The parts are taken from the parser, not from its printed help, so that no terminal's width is in them.
"""

from __future__ import annotations

import re
from typing import Any

import typer

from hnf_offline.cli import app
from hnf_offline.cli.common import COMMON, NOT_TAKEN

_PAGE = """# Commands

Written by `python -m docs.generate` from the help of the program; `hnf VERB --help` prints the same. RUN is the folder
(or the [address](../how-to/remote.md)) that a trainer left behind; it is only ever read. Results go to stdout, progress
and warnings to stderr. What is written, and where, is in [What is written](output.md).

{verbs}

## Options that verbs have in common

The same name means the same everywhere, on what the verb works on: `--steps` and `--every` choose checkpoints, rows of
a log (`hnf spikes`) or scalars (`hnf export`); `hnf zoom` and `hnf whatif` retrain the steps that `--steps A:B` names
and measure every N-th. `--plan` prints what would be done, and does nothing.

{common}

Where a verb does without one, the error line says why:

{reasons}

## Exit codes

| code | what it means |
|---|---|
| 0 | done; a spike is a finding, not an error |
| 1 | `hnf check` found something wrong, or `hnf report --fail-on spike` a spike; no other verb ends so |
| 2 | bad usage or input: one line on stderr names the file, the reason and the remedy |
| 130 | interrupted; what was finished is kept, and the same command goes on there |
| 141 | nobody reads the output any more, as in `hnf monitor RUN \\| head -1` |

## Environment

| variable | what it does |
|---|---|
{environment}
| `HNF_DEBUG` | `1` prints the traceback of an error as well |
| `NO_COLOR`, `TERM=dumb` | no colours |

{sections}
"""
#: What the parser puts behind an option's text: `[env var: HNF_TIER; default: curvature]`.
_TAIL = re.compile(r"\s*\[([^\[\]]*(?:env var: |default: |required|x>=|x<=)[^\[\]]*)\]\s*$")

#: The same in the words of the option's own text.
_IN_WORDS = re.compile(r"\s*\[default: ([^\[\]]*)\]")
#: What a value may be: some versions of the parser write <a|b>, others [a|b].
_CHOICES = re.compile(r"[<\[](\S+)[>\]]$")


def commands_page() -> str:
    """Spell docs/reference/commands.md.

    Returns:
        Markdown.
    """
    group: Any = typer.main.get_command(app)
    whole = group.context_class(group, info_name="hnf")
    names = group.list_commands(whole)
    verbs = [group.get_command(whole, name) for name in names]
    lines = [
        f"| [`hnf {name}`](#hnf-{name}) | {_sentence(verb)} |"
        for name, verb in zip(names, verbs, strict=True)
    ]
    return _PAGE.format(
        verbs="\n".join(["| verb | what it does |", "|---|---|", *lines]),
        common=_common(names, verbs),
        reasons=_reasons(),
        environment="\n".join(_environment(verbs)),
        sections="\n\n".join(_section(name, verb, whole) for name, verb in zip(names, verbs, strict=True)),
    )


def _common(names: list[str], verbs: list[Any]) -> str:
    taken = [{option for one in verb.params for option in one.opts} for verb in verbs]
    head = ("", *(f"`{option}`" for option in COMMON))
    rows = [
        (f"`hnf {name}`", *("✓" if option in its else "" for option in COMMON))
        for name, its in zip(names, taken, strict=True)
    ]
    return _table(head, rows)


def _reasons() -> str:
    lines = []
    for verb, said in NOT_TAKEN.items():
        grouped: dict[str, list[str]] = {}
        for option, reason in said.items():
            grouped.setdefault(reason, []).append(f"`{option}`")
        lines += [f"- `hnf {verb}`, {', '.join(options)}: {reason}." for reason, options in grouped.items()]
    return "\n".join(lines)


def _section(name: str, verb: Any, whole: Any) -> str:
    context = verb.context_class(verb, info_name=name, parent=whole, help_option_names=["-h", "--help"])
    text = [_plain(" ".join(part.split())) for part in str(verb.help).split("\n\n")]
    arguments = [one for one in verb.params if one.param_type_name == "argument"]
    words = [_argument(one) if one.required else f"[{_argument(one)}]" for one in arguments]
    usage = " ".join(["hnf", name, "[OPTIONS]", *words])
    options = [one for one in verb.get_params(context) if one.param_type_name == "option"]
    parts = [f"## hnf {name}", f"```text\n{usage}\n```", *text]
    if arguments:
        rows: list[tuple[str, ...]] = [(f"`{_argument(one)}`", _row(one, context)[1]) for one in arguments]
        parts.append(_table(("argument", "what it is"), rows))
    rows = [_row(one, context) for one in options]
    parts.append(_table(("option", "what it does", "default", "variable"), rows))
    examples = [line.strip() for line in str(verb.epilog).splitlines() if line.strip().startswith("hnf ")]
    parts.append("```console\n" + "\n".join(f"$ {line}" for line in examples) + "\n```")
    return "\n\n".join(parts)


def _row(parameter: Any, context: Any) -> tuple[str, str, str, str]:
    """Take an option's help apart.

    Returns:
        Its names and values, its text, its default and its environment variable.
    """
    names, text = parameter.get_help_record(context)
    found = _TAIL.search(text)
    said: dict[str, str] = {}
    kept: list[str] = []
    for part in found[1].split("; ") if found else []:
        key, colon, value = part.partition(": ")
        if colon and key in {"env var", "default"}:
            said[key] = value
        else:
            kept.append("required" if part == "required" else part.replace("x>=", "at least "))
    body = " ".join((text[: found.start()] if found else text).split())
    default = _code(said.get("default"))
    inside = _IN_WORDS.search(body)
    if inside and not default:
        body, default = body.replace(inside[0], ""), inside[1]
    if kept:
        stop = "." if body.endswith(".") else ""
        body = f"{body.removesuffix('.')} ({', '.join(kept)}){stop}"
    return f"`{_CHOICES.sub(_bare, names)}`", _plain(body), default, _code(said.get("env var"))


def _environment(verbs: list[Any]) -> list[str]:
    named: dict[str, set[str]] = {}
    for verb in verbs:
        for parameter in verb.params:
            if parameter.envvar:
                named.setdefault(str(parameter.envvar), set()).add(parameter.opts[0])
    return [
        f"| `{variable}` | default of {', '.join(f'`{one}`' for one in sorted(options))} |"
        for variable, options in sorted(named.items())
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    # A column that nothing stands in is left out.
    used = [place for place in range(len(head)) if place < 2 or any(row[place] for row in rows)]
    lines = [[head[place] for place in used], ["---"] * len(used)]
    lines += [[row[place].replace("|", "\\|") for place in used] for row in rows]
    rule = "|" + "|".join(lines[1]) + "|"
    told = ["| " + " | ".join(line) + " |" for line in (lines[0], *lines[2:])]
    return "\n".join([told[0], rule, *told[1:]])


def _sentence(verb: Any) -> str:
    return " ".join(str(verb.help).split("\n\n")[0].split())


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).strip("[]{}")


def _bare(found: re.Match[str]) -> str:
    return found[1]


def _plain(text: str) -> str:
    # Patterns and <placeholders> as they are typed, not as Markdown would read them.
    return re.sub(r"([*<])", r"\\\1", text)


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""
