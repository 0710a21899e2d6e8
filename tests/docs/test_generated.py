"""The reference pages say what the program does today."""

from __future__ import annotations

from pathlib import Path

from docs.generate import HERE, formats_page

ROOT = Path(__file__).parents[2]


def test_the_formats_page_is_that_of_the_readers() -> None:
    written = (HERE / "formats.md").read_text(encoding="utf-8")
    assert written == formats_page(), "run: python -m docs.generate"


def test_the_readme_links_lead_somewhere() -> None:
    import re

    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (ROOT / link).exists()]
