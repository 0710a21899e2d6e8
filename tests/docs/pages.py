"""The pages of the documentation, taken apart: blocks of code, lines of commands, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "reports" / "README.md",
        ROOT / "reports" / "study" / "README.md",
        ROOT / "sample_runs" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language, its text."""

    page: str
    language: str
    text: str


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, language: str = "") -> list[Block]:
    """The fenced blocks of a page, of one language where one is given."""
    found = [Block(page, *match.groups()) for match in _FENCE.finditer(text_of(page))]
    return [block for block in found if not language or block.language == language]


def commands_of(page: str) -> list[str]:
    """What a page tells to type, without the prompt and the remark behind it."""
    lines = [line for block in blocks_of(page, "console") for line in block.text.splitlines()]
    return [line[2:].partition("  # ")[0].strip() for line in lines if line.startswith("$ ")]


def prose_of(page: str) -> str:
    """A page without its blocks and without code within lines."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text_of(page)))


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    anchors: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", text_of(page)), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors[slug] = anchors.get(slug, -1) + 1
        found.add(slug if anchors[slug] == 0 else f"{slug}-{anchors[slug]}")
    return found
