"""Every number that the page says in words or tables stands in findings.json, or in the profile it names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hnf_offline.report import write_report

from . import made

RUNS = {
    "spike": made.spike_run,
    "healthy": made.healthy_run,
    "nan": made.nan_run,
    "log only": made.log_only_run,
}
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
#: What says how a picture is drawn: how far back a raster reaches, where a colour scale ends.
DRAWN = re.compile(r"in the \d+ steps before|darkest from [\d.e-]+ on; the largest departure is [\d.e-]+")
#: Powers of ten are spelled with the logarithm that was measured.
POWER = re.compile(r"\b1e(\d+\.\d+)")
#: What explains the page and not the run: pictures, how a quantity is read, how the page was made.
EXPLAINS = {"svg", "style", "script", "title"}
PROFILE = {"map", "layers"}


class Words(HTMLParser):
    """Text of each section, without pictures, method boxes and what explains."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, bool]] = []
        self.section = "top"
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "section":
            self.section = attributes.get("id") or "top"
        silent = tag in EXPLAINS or "method" in (attributes.get("class") or "").split()
        if tag not in {"meta", "br", "link", "img", "input", "hr"}:
            self.open.append((tag, silent))

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not any(silent for _, silent in self.open):
            self.texts.setdefault(self.section, []).append(data)


def numbers_in(text: str) -> set[str]:
    return {one.replace(",", "").replace("−", "-") for one in NUMBER.findall(text)}


def leaves(value: object):
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from leaves(one)
    elif isinstance(value, list):
        yield len(value)
        for one in value:
            yield from leaves(one)
    else:
        yield value


def spelled_from(numbers: list[float], text: str) -> bool:
    """Whether a number, rounded as the page rounds it, is one of these or of their hundredfold (a per cent)."""
    shown = float(text)
    digits = len(re.sub(r"e.*", "", text).replace("-", "").replace(".", "").lstrip("0")) or 1
    decimals = len(text.partition(".")[2]) if "e" not in text else 0
    for number in numbers:
        for one in (number, 100 * number, abs(number)):
            close = abs(shown - one) <= 0.51 * 10**-decimals
            alike = float(f"{one:.{digits - 1}e}") == shown
            if (decimals or one == round(one) or abs(one) >= 10) and close:
                return True
            if alike:
                return True
    return False


@pytest.mark.parametrize("name", RUNS)
def test_every_number_of_the_page_is_in_the_files_beside_it(name: str, tmp_path: Path) -> None:
    run = RUNS[name]()
    page = write_report(run.findings, run.log, run.profile, tmp_path)
    document = json.loads((tmp_path / "findings.json").read_text())
    known = list(leaves(document))
    words = set().union(*(numbers_in(one) for one in known if isinstance(one, str)))
    numbers = [float(one) for one in known if isinstance(one, int | float) and not isinstance(one, bool)]
    measured = run.profile.select("step", "value", "low", "high", "depth").to_numpy().ravel().tolist()
    measured = [one for one in measured if one == one and abs(one) != float("inf")]
    reader = Words()
    reader.feed(page.read_text(encoding="utf-8"))
    unknown = {}
    for section, parts in reader.texts.items():
        if section in {"methods", "data"}:
            continue
        allowed = numbers + (measured if section in PROFILE else [])
        odd = [
            text
            for text in sorted(numbers_in(POWER.sub(r"\1", DRAWN.sub("", " ".join(parts)))))
            if text not in words and not spelled_from(allowed, text)
        ]
        if odd:
            unknown[section] = odd
    assert not unknown


def test_the_test_notices_a_number_that_is_nowhere() -> None:
    assert numbers_in("at step 1,234 (−0.5, 1e-3)") == {"1234", "-0.5", "1e-3"}
    assert spelled_from([0.12345], "0.12") and spelled_from([0.345], "34") and spelled_from([1234.5], "1234")
    assert not spelled_from([0.12345], "0.13") and not spelled_from([150.0], "15")
