"""The command line: one small file a verb, each a short function that parses, calls the library and prints.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 `hnf check` found something wrong,
2 bad usage or input, 130 interrupted.
Imports of torch, polars and matplotlib stay inside the verbs, so that help and completion are instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import typer

from hnf_offline.cli.app import app
from hnf_offline.exit import exit_code

__all__ = ["app", "main"]

#: In the order in which the help lists them; a new verb is a file of its own and one word here.
VERBS = (
    "report",
    "zoom",
    "whatif",
    "profile",
    "diff",
    "monitor",
    "spikes",
    "check",
    "export",
    "quantities",
    "env",
)

for _verb in VERBS:
    import_module(f"hnf_offline.cli.{_verb}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error a user can meet becomes one line on stderr.

    Returns:
        The exit code: 0 done, 1 a check found something wrong, 2 bad usage or input, 130 interrupted, 141 nobody
        reads the output.
    """
    return exit_code(typer.main.get_command(app), arguments)
