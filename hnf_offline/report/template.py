"""The page's templates: autoescaped, undefined names are errors, and whatever is printed is cleaned first."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from hnf_offline.report.text import clean


def source(name: str) -> str:
    """Read a file of the templates folder.

    Returns:
        Its text.
    """
    return (resources.files("hnf_offline.report") / "templates" / name).read_text(encoding="utf-8")


def _printed(value: Any) -> Any:
    return value if isinstance(value, Markup | int | float) else clean(value)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, **context: Any) -> str:
    """Fill a template.

    Returns:
        The page.
    """
    # Style and script are this package's own files; everything else is escaped.
    style, script = Markup(source("style.css")), Markup(source("read.js"))
    return _environment().get_template(name).render(style=style, script=script, **context)
