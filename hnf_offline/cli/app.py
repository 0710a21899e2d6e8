"""The parser: what `hnf` itself understands, and how a verb joins it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hnf_offline.cli.common import why_not

app = typer.Typer(
    name="hnf",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Verb(TyperCommand):
    """A verb; of an option that others have and it has not, it says why."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed.

        Returns:
            What is left over.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None)
            reason = why_not(str(ctx.info_name), option) if isinstance(option, str) else ""
            if reason and type(error).__name__ == "NoSuchOption":
                # What is spelled nearly like it is of no use to whoever means this one.
                error.possibilities = None  # type: ignore[attr-defined]
                error.message = f"No such option {option}: {reason}."  # type: ignore[attr-defined]
            raise


def verb(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a verb with runnable examples at the end of its help.

    Returns:
        A decorator that leaves the function as it is.
    """
    return app.command(cls=Verb, epilog="\b\nExample:\n" + "\n".join(f"  {example}" for example in examples))


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
