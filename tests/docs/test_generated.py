"""The reference pages say what the program does today."""

from __future__ import annotations

from pathlib import Path

from docs.generate import HERE, catalogue_page, formats_page

ROOT = Path(__file__).parents[2]


def test_the_formats_page_is_that_of_the_readers() -> None:
    written = (HERE / "formats.md").read_text(encoding="utf-8")
    assert written == formats_page(), "run: python -m docs.generate"


def test_the_catalogue_page_is_that_of_the_registry() -> None:
    written = (HERE / "catalogue.md").read_text(encoding="utf-8")
    assert written == catalogue_page(), "run: python -m docs.generate"


def test_the_catalogue_page_has_everything_of_every_entry() -> None:
    from hnf_offline.quantities import catalogue
    from hnf_offline.quantities.sources import MEASURES

    page = catalogue_page()
    for entry in catalogue().values():
        if entry.inputs:
            for text in (entry.formula, entry.unit, entry.reading, entry.cannot, entry.reference):
                assert text in page, entry.name
    assert all(measure.name.replace("|", "\\|") in page for measure in MEASURES)


def test_the_readme_links_lead_somewhere() -> None:
    import re

    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (ROOT / link).exists()]
