"""Every relative link of the documentation leads to a file, and every anchor to a heading."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT, anchors_of, prose_of

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def relative_links(page: str) -> list[str]:
    return [link for link in _LINK.findall(prose_of(page)) if not re.match(r"[a-z][a-z0-9+.-]*:", link)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    lost = []
    for link in relative_links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or not target.resolve().is_relative_to(ROOT):
            lost.append(link)
        elif anchor and target.suffix == ".md":
            known = anchors_of(target.resolve().relative_to(ROOT).as_posix())
            lost += [] if anchor in known else [link]
    assert lost == []


def test_every_page_of_docs_is_reached_from_its_index() -> None:
    linked = {
        ((ROOT / "docs") / link.partition("#")[0]).resolve() for link in relative_links("docs/README.md")
    }
    pages = {path.resolve() for path in (ROOT / "docs").rglob("*.md")} - {
        (ROOT / "docs" / "README.md").resolve()
    }
    assert pages - linked == set()


def test_the_readme_leads_to_the_documentation_and_stays_short() -> None:
    links = {link.partition("#")[0] for link in relative_links("README.md")}
    assert {"docs/README.md", "docs/concepts/limits.md", "docs/reference/commands.md"} <= links
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_anchors_are_githubs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.docs import pages

    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "# Zoom: what, and why?\n## `hessian.stability_ratio`\n## [model]\n## Twice\n## Twice\n\n```\n# no\n```\n"
    )
    assert anchors_of("page.md") == {
        "zoom-what-and-why", "hessianstability_ratio", "model", "twice", "twice-1",
    }  # fmt: skip
