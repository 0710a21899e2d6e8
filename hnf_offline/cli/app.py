"""The parser: what `hnf` itself understands, and how a verb joins it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

app = typer.Typer(
    name="hnf",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def verb(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a verb with runnable examples at the end of its help.

    Returns:
        A decorator that leaves the function as it is.
    """
    return app.command(epilog="\b\nExample:\n" + "\n".join(f"  {example}" for example in examples))


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hnf {version('hnf_offline')}")
        raise typer.Exit


@app.callback(epilog="\b\nExample:\n  hnf report runs/gpt-small\n  hnf quantities hessian.stability_ratio")
def hnf(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """A training run spiked or died: what went wrong, where, how early could it be known, what to do?

    RUN is the folder a trainer left behind: checkpoints, a log, perhaps the batches. It is only ever read.
    """
