"""How the program ends: every error becomes one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from hnf_offline.errors import UserError
from hnf_offline.pipeline import InterruptedRunError
from hnf_offline.progress import note


def exit_code(command: Any, arguments: Sequence[str] | None) -> int:
    """Run a command line; every error a user can meet becomes one line on stderr.

    Args:
        command: the parser.
        arguments: what the user typed, None for `sys.argv`.

    Returns:
        The exit code: 0 done, 2 bad usage or input, 130 interrupted, 141 nobody reads the output.

    Raises:
        SystemExit: after shell completion.
    """
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions and not os.environ.get("HNF_DEBUG"):
                # What numpy thinks of a loss of 1e308 is nothing the user can mend.
                warnings.simplefilter("ignore")
            code = command.main(args=arguments, prog_name="hnf", standalone_mode=False)
        sys.stdout.flush()
    except (UserError, InterruptedRunError) as error:
        return _fail(str(error), 130 if isinstance(error, InterruptedRunError) else 2)
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as leaving:
        # The parser leaves this way when it meets a closed pipe, and after shell completion.
        if isinstance(leaving.__context__, BrokenPipeError):
            return _nobody_reads()
        raise
    except typer.Abort:
        return _fail("interrupted", 130)
    except Exception as error:
        shown = getattr(error, "format_message", None)
        if shown is None:
            first = (str(error).splitlines() or [""])[0]
            remedy = "set HNF_DEBUG=1 for the traceback"
            return _fail(f"internal error: {type(error).__name__}: {first}; {remedy}", 2)
        return _usage(error, str(shown()))
    if code == 130:
        return _fail("interrupted", 130)
    return int(code or 0)


def _nobody_reads() -> int:
    """Send what is left in the buffers nowhere, or Python would complain when it flushes them at exit.

    Returns:
        141, as a program that dies of SIGPIPE.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141


def _usage(error: Exception, message: str) -> int:
    """Print a usage error of the parser: the help itself where nothing was asked, else one line.

    Returns:
        2.
    """
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    path = "hnf" if context is None else str(context.command_path)
    return _fail(f"{' '.join(message.split())} See: {path} --help", 2)


def _fail(text: str, code: int) -> int:
    if os.environ.get("HNF_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    note(f"hnf: {text}")
    return code
