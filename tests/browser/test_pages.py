"""What a reader sees and can do, in a real browser: first screen, crosshair, keys, print, phone, both themes."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.browser.conftest import RUNS, Opened
from tests.report import made

Open = Callable[..., Opened]
PAGES = [*RUNS, "diff"]
THEMES = ["light", "dark"]


def bottom(page: Any, selector: str) -> float:
    box = page.locator(selector).first.bounding_box()
    assert box is not None, selector
    return float(box["y"] + box["height"])


@pytest.mark.parametrize("name", PAGES)
def test_verdict_facts_and_key_picture_are_on_the_first_screen(name: str, opened: Open, pages: Any) -> None:
    page = opened(pages[name]).page
    assert bottom(page, ".verdict") <= 400 and bottom(page, "dl.facts") <= 450
    assert bottom(page, "header figure svg") <= 900


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("wide", [420, 800, 1400, 2200])
def test_no_page_has_to_be_pushed_sideways(name: str, wide: int, opened: Open, pages: Any) -> None:
    page = opened(pages[name], viewport={"width": wide, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= wide


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", THEMES)
def test_nothing_is_fetched_and_nothing_goes_wrong(name: str, theme: str, opened: Open, pages: Any) -> None:
    seen = opened(pages[name], color_scheme=theme)
    seen.page.wait_for_timeout(200)
    outside = [one for one in seen.requests if one != pages[name].as_uri() and not one.startswith("data:")]
    assert outside == [] and seen.complaints == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_no_serious_violation(name: str, theme: str, opened: Open, pages: Any) -> None:
    axe = pytest.importorskip(
        "axe_core_python.sync_playwright", reason="needs axe-core-python: the extra dev"
    )
    page = opened(pages[name], color_scheme=theme).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = axe.Axe().run(page)
    told = [
        f"{one['id']}: {one['nodes'][0]['html'][:120]} ({len(one['nodes'])} places)"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert told == []


def test_the_dark_theme_is_dark(opened: Open, pages: Any) -> None:
    def luminance(theme: str) -> float:
        page = opened(pages["spike"], color_scheme=theme).page
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(one) for one in re.findall(r"\d+", colour)[:3]) / 3

    assert luminance("dark") < 60 < 200 < luminance("light")


def key_picture(page: Any) -> tuple[Any, Any]:
    figure = page.locator("header figure").first
    return figure.locator("svg"), figure.locator(".read")


def step_of(told: str) -> int:
    found = re.match(r"step (\d+)", told)
    assert found, told
    return int(found[1])


def test_the_crosshair_reads_the_picture_under_the_mouse(opened: Open, pages: Any) -> None:
    run = made.spike_run()
    page = opened(pages["spike"]).page
    picture, told = key_picture(page)
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.2 * box["height"])
    first = told.text_content()
    step = step_of(first)
    shown = float(re.search(r"loss +([\d.]+)", first)[1])
    logged = run.log.filter(pl.col("step").is_between(step - 2, step + 2))["loss"]
    assert logged.min() * 0.97 <= shown <= logged.max() * 1.03
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.2 * box["height"])
    assert step_of(told.text_content()) > step


def test_the_crosshair_is_moved_by_keys(opened: Open, pages: Any) -> None:
    page = opened(pages["spike"]).page
    picture, told = key_picture(page)
    picture.focus()
    page.keyboard.press("ArrowRight")
    first = step_of(told.text_content())
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    further = step_of(told.text_content())
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert further > first == step_of(told.text_content())
    assert told.get_attribute("aria-live") == "polite", "a screen reader says where it is"


def test_a_cell_of_the_map_is_read_back_from_its_colour(opened: Open, pages: Any) -> None:
    page = opened(pages["spike"]).page
    page.wait_for_timeout(200)
    figure = page.locator("figure:has(svg.map)").first
    picture = figure.locator("svg.map")
    picture.scroll_into_view_if_needed()
    picture.focus()
    told = figure.locator(".read")
    for _ in range(8):  # the first checkpoint lies a little after the first step
        page.keyboard.press("ArrowRight")
    seen = set()
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        seen.add(told.text_content().split(":")[0].split("  ")[-1])
    layers = {path.removeprefix("model.") for path, _ in made.LAYERS}
    assert len(seen) >= 3
    assert all(any(path.endswith(one.lstrip("….")) for path in layers) for one in seen), seen
    assert re.search(r"about ×[\d.]+|not measured", told.text_content())


def test_every_spike_opens_by_keyboard(opened: Open, pages: Any) -> None:
    page = opened(pages["spike"]).page
    closed = page.locator("#spikes details:not([open])").first
    closed.locator("summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#spikes details[open]").count() == 2


def test_the_first_tab_skips_to_the_verdict(opened: Open, pages: Any) -> None:
    page = opened(pages["spike"]).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#verdict"


@pytest.mark.parametrize("name", ["spike", "diff"])
def test_print_shows_what_is_folded_away(name: str, opened: Open, pages: Any) -> None:
    page = opened(pages[name]).page
    folded = page.locator("details:not([open]) > *:not(summary)")
    assert folded.count() > 0
    page.emulate_media(media="print")
    heights = [folded.nth(number).bounding_box() for number in range(folded.count())]
    assert all(box is not None and box["height"] > 0 for box in heights)


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_everything_that_was_found_is_there(name: str, opened: Open, pages: Any) -> None:
    page = opened(pages[name], java_script_enabled=False).page
    assert page.locator(".verdict .word").inner_text().strip()
    assert page.locator("dl.facts dd").count() == 4
    assert page.locator("header figure svg path.line").count() > 0


def test_400_layers_by_500_checkpoints_can_be_read(opened: Open, tmp_path: Path) -> None:
    from hnf_offline.report import write_report

    run = made.large_run()
    seen = opened(write_report(run.findings, run.log, run.profile, tmp_path))
    seen.page.wait_for_timeout(500)
    assert bottom(seen.page, "header figure svg") <= 900 and seen.complaints == []
    figure = seen.page.locator("figure:has(svg.map)").first
    box = figure.locator("svg.map").bounding_box()
    assert 200 <= box["height"] <= 1200, "a map is a picture to be seen at once"
    rows = figure.locator("svg.map text[text-anchor=end]")
    boxes = [rows.nth(number).bounding_box() for number in range(rows.count())]
    labels = sorted(one["y"] for one in boxes if one["x"] + one["width"] < box["x"] + 0.3 * box["width"])
    assert len(labels) >= 8
    assert all(after - before >= 6 for before, after in pairwise(labels)), "labels of rows cover each other"


@pytest.mark.parametrize("name", PAGES)
def test_no_words_of_the_key_picture_cover_each_other(name: str, opened: Open, pages: Any) -> None:
    page = opened(pages[name]).page
    words = page.locator("header figure svg text")
    boxes = [(words.nth(k).text_content(), words.nth(k).bounding_box()) for k in range(words.count())]
    for number, (one, a) in enumerate(boxes):
        for other, b in boxes[number + 1 :]:
            wide = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
            tall = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
            assert wide <= 1 or tall <= 3, f"{one!r} over {other!r}"
