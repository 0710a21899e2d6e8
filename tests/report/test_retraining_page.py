"""The page of a retraining says what the record says: verdict first, nothing hidden, nothing obeyed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from hnf_offline.errors import UsageError
from hnf_offline.report import write_retraining
from hnf_offline.report.colours import ARMS_DARK, ARMS_LIGHT
from hnf_offline.report.retraining_panels import arm_style
from hnf_offline.retraining import Reproduction

from . import retrainings as made
from .test_page import read

EVIL = '<script>alert(1)</script>"\x1b[31m\u202e&lt;'


def text_of(page: Path) -> str:
    """The words of a page, without its style, script and tags."""
    whole = re.sub(r"<(style|script)>.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    whole = re.sub(r"<[^>]+>", " ", whole)
    for entity, character in (("&#39;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&amp;", "&")):
        whole = whole.replace(entity, character)
    return " ".join(whole.split())


def strict(path: Path) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    result = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(result, dict)
    return result


def test_the_verdict_comes_before_everything_it_rests_on(tmp_path: Path) -> None:
    one = made.zoomed()
    page = write_retraining(one, made.log_of(one.arms[0]), tmp_path, command="hnf zoom runs/a --from 140")
    assert read(page).untitled == 0
    told = text_of(page)
    place = told.index("hf_llama: zoom", told.index("Skip to the verdict"))
    for words in (
        "● Exact", "20 losses equal the log to 6e-7 relative", "Assumed:", "AdamW from the saved state",
        "Found by trying:", "clipping at 1.0", "loss", "S (stability ratio)", "learning rate",
        "Weights on the way", "Methods",
    ):  # fmt: skip
        place = told.index(words, place)
    for planted in ("6.1e-07 relative", "0 at 150, 1.1e-07 at 160", "0.35", "6.28 at 152", "hnf zoom runs/a"):
        assert planted in told, planted
    document = strict(tmp_path / "rerun.json")
    assert document == json.loads(json.dumps(one.to_json()))
    assert (document["verdict"], document["weight_difference_max"]) == ("exact", 1.1e-7)


@pytest.mark.parametrize(
    ("reproduction", "word", "sentence"),
    [
        (
            replace(made.EXACT, word="close", because="losses are within 0.3% of the log"),
            "◐ Close",
            "Losses are",
        ),
        (Reproduction("not_reproducible", "the model has dropout (0.1)"), "✕ Not this run", "The model has"),
        (Reproduction("close", "", losses=3, loss_difference=0.0042), "◐ Close", "3 losses differ"),
    ],
)
def test_every_verdict_has_its_word_and_its_reason(
    reproduction: Reproduction, word: str, sentence: str, tmp_path: Path
) -> None:
    told = text_of(write_retraining(made.whatif(reproduction=reproduction), None, tmp_path))
    assert f"{word} {sentence}" in told
    assert "● Exact" not in told


def test_the_first_loss_that_differs_is_named_beside_the_verdict(tmp_path: Path) -> None:
    one = made.zoomed(reproduction=replace(made.EXACT, word="close", first_mismatch=147))
    assert "The first loss that differs is that of step 147." in text_of(
        write_retraining(one, None, tmp_path)
    )


def test_what_is_not_this_run_says_so_once_and_claims_no_fit(tmp_path: Path) -> None:
    because = "the loss of step 147 is the first that differs from the log"
    failed = replace(made.EXACT, word="not_reproducible", because=because, first_mismatch=147, found=())
    told = text_of(write_retraining(made.zoomed(reproduction=failed), None, tmp_path))
    assert told.count("step 147") == 1
    assert "Nothing had to be found by trying" not in told
    exact = made.zoomed(reproduction=replace(made.EXACT, found=()))
    assert "Nothing had to be found by trying" in text_of(write_retraining(exact, None, tmp_path))


def test_every_arm_has_a_row_with_its_numbers(tmp_path: Path) -> None:
    one = made.whatif()
    told = text_of(write_retraining(one, made.log_of(one.arms[0]), tmp_path))
    capped = told[told.rindex("1 lr-cap=0.0084 No spike") :]
    capped = capped[: capped.index("2 lr-cap=0.015 A smaller")]
    final, was = one.arms[1].loss[-1], one.arms[0].loss[-1]
    assert final is not None and was is not None
    for planted in (
        "lr_t = min(lr_t, 0.0084)",
        "none",
        f"{final:.2f} at 180",
        f"{final - was:.2f}",
        "nothing",
        "12 s",
    ):
        assert planted in capped, planted
    assert "outside the twins' band" in capped
    clipped = told[told.rindex("3 clip=1.0 Does not help") :][:260]
    assert "6.11 at 152" in clipped
    assert "within the twins' band" in clipped
    assert "14.2 at 153" in told


def test_the_largest_stable_rate_stands_beside_what_curvature_says_with_every_replay(tmp_path: Path) -> None:
    told = text_of(write_retraining(made.whatif(), None, tmp_path))
    assert "by replay between 0.0112 and 0.0139" in told
    assert "lr/S at checkpoint 140 0.0084 [0.0079–0.0091]" in told
    assert "0.0112 ×11.2 ● no spike 2.31" in told
    assert "0.0139 ×13.9 ▲ spike 2.69" in told
    assert "0.02 ×20.0 ▲ spike NaN" in told
    assert (tmp_path / "figures" / "largest_stable.png").is_file()


@pytest.mark.parametrize(
    ("changed", "words"), [({"unstable": None}, "above 0.0112"), ({"stable": None}, "below 0.0139"),
                           ({"from_curvature": None}, "lr/S at checkpoint 140 not measured")]
)  # fmt: skip
def test_a_search_without_one_of_its_ends_says_so(
    changed: dict[str, None], words: str, tmp_path: Path
) -> None:
    found = made.whatif().largest_stable
    assert found is not None
    one = made.whatif(largest_stable=replace(found, **changed))
    assert words in text_of(write_retraining(one, None, tmp_path))


def test_twins_are_told_with_their_band_and_rate(tmp_path: Path) -> None:
    one = made.whatif()
    assert one.twins is not None
    told = text_of(write_retraining(one, None, tmp_path))
    assert "2 twins, weights changed by 1e-06" in told
    assert "0.12 a step [0.10–0.14]: a difference doubles in 5.6 steps" in told
    assert f"{one.twins.low[-1]:.2f}–{one.twins.high[-1]:.2f}" in told
    statistical = replace(one.twins, kind="statistical", perturbation=None, lyapunov_rate=None)
    told = text_of(write_retraining(made.whatif(twins=statistical), None, tmp_path))
    assert "not this run" in told
    assert "cannot be told" in told


def test_words_from_files_are_shown_not_obeyed(tmp_path: Path) -> None:
    bad = replace(made.whatif().arms[1], policy=EVIL, formula=EVIL, cost=EVIL, reference=EVIL, outcome=EVIL)
    one = made.whatif(
        arms=(made.as_was(), bad), run={"name": EVIL, "path": EVIL}, notes=(EVIL,), made={EVIL: EVIL},
        reproduction=replace(made.EXACT, because=EVIL, assumed=(EVIL,), found=(EVIL,)),
    )  # fmt: skip
    page = write_retraining(one, None, tmp_path, command=EVIL)
    reader = read(page)
    raw = page.read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "\x1b" not in raw and "\u202e" not in raw
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)


def test_the_page_opens_offline_and_loads_nothing(tmp_path: Path) -> None:
    one = made.many()
    page = write_retraining(one, made.log_of(one.arms[0]), tmp_path)
    raw = page.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in raw and "default-src 'none'" in raw
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\((?!#)|@import", raw)
    for link in read(page).links:
        assert link.startswith("#") or (tmp_path / link).is_file(), link
    assert len(raw) < 150_000


def test_a_loss_that_is_no_number_is_drawn_and_told_and_json_stays_strict(tmp_path: Path) -> None:
    one = made.many()
    page = write_retraining(one, made.log_of(one.arms[0]), tmp_path)
    told = text_of(page)
    for words in ("NaN at 160", "∞ at 170", "3 lr-scale=0.15:30: NaN", "7 lr-scale=0.35:70: ∞"):
        assert words in told, words
    assert read(page).untitled == 0
    arms = strict(tmp_path / "rerun.json")["arms"]
    assert isinstance(arms, list)
    assert arms[3]["loss"][-1] is None
    assert (tmp_path / "figures" / "retraining.png").stat().st_size > 10_000


def test_a_run_that_was_never_finite_still_makes_a_page(tmp_path: Path) -> None:
    dead = replace(made.dying(made.as_was(), math.nan, 0), stability_ratio=(math.nan,) * 10)
    told = text_of(write_retraining(made.zoomed(arms=(dead,)), made.log_of(dead), tmp_path))
    assert "NaN at 141" in told


def test_twelve_arms_are_all_named_and_all_different(tmp_path: Path) -> None:
    one = made.many(12)
    raw = write_retraining(one, made.log_of(one.arms[0]), tmp_path).read_text(encoding="utf-8")
    assert len({arm_style(place) for place in range(13)}) == 13
    drawing = raw[raw.index('class="chart"') : raw.index("</figure>")]
    places = {}
    for place, arm in enumerate(one.arms):
        name = arm.policy if place == 0 else f"{place} {arm.policy}"
        found = re.findall(rf'<text x="[\d.]+" y="([\d.]+)"[^>]*>{re.escape(name)}</text>', drawing)
        assert found, name
        places[name] = float(found[0])
        assert f"</svg>{name}" in raw, name
    heights = sorted(places.values())
    assert min(after - before for before, after in pairwise(heights)) >= 13


def test_no_spike_anywhere_is_said(tmp_path: Path) -> None:
    calm = tuple(replace(arm, spikes=()) for arm in made.whatif().arms)
    told = text_of(write_retraining(made.whatif(arms=calm), None, tmp_path))
    assert "0 spikes, highest" in told
    assert "3 of 3" in told
    assert "Spikes of" not in told


def test_a_retraining_without_arms_still_gives_its_verdict(tmp_path: Path) -> None:
    one = made.whatif(arms=(), twins=None, largest_stable=None)
    page = write_retraining(one, None, tmp_path)
    assert "No step was retrained" in text_of(page)
    assert not list((tmp_path / "figures").iterdir())


def test_a_figure_that_is_not_drawn_again_goes_and_other_files_stay(tmp_path: Path) -> None:
    write_retraining(made.whatif(), None, tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"x")
    (tmp_path / "profile.parquet").write_bytes(b"x")
    page = write_retraining(made.whatif(largest_stable=None), None, tmp_path)
    assert {one.name for one in (tmp_path / "figures").iterdir()} == {"retraining.png", "mine.png"}
    assert "profile.parquet" in text_of(page)
    assert {one.name for one in tmp_path.iterdir()} == {
        "figures",
        "index.html",
        "profile.parquet",
        "rerun.json",
    }


def test_a_folder_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="--out"):
        write_retraining(made.zoomed(), None, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    log = made.log_of(made.as_was())
    for name in ("a", "b"):
        write_retraining(made.whatif(), log, tmp_path / name)
    for file in ("index.html", "rerun.json", "figures/retraining.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_the_tolerances_that_the_page_explains_are_those_of_the_verdict(tmp_path: Path) -> None:
    witness = pytest.importorskip("hnf_offline.rerun.witness")
    told = text_of(write_retraining(made.zoomed(), None, tmp_path))
    loss, close = f"{witness.EXACT_LOSS:.0e}".replace("e-0", "e-"), f"within {witness.CLOSE_LOSS:.0%}"
    assert f"the logged one to {loss} relative" in told
    assert f"Losses are {close} of the log" in told
    assert f"met to {witness.EXACT_WEIGHTS:.1%} of the farthest" in told
    assert f"weights within {witness.CLOSE_WEIGHTS:.0%} of the way" in told


#: Machado, Oliveira, Fernandes 2009: what red-, green- and blue-blind eyes see, in linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    x = np.cbrt(np.clip(TO_XYZ @ np.clip(light, 0, 1) / [0.95047, 1.0, 1.08883], 0.008856, None))
    return np.array([116 * x[1] - 16, 500 * (x[0] - x[1]), 200 * (x[1] - x[2])])


def pairs(colours: tuple[str, ...]) -> Iterator[float]:
    for seen in BLINDNESS.values():
        spots = [lab(np.array(seen) @ linear(colour)) for colour in colours]
        yield from (float(np.linalg.norm(a - b)) for a, b in combinations(spots, 2))


@pytest.mark.parametrize(
    ("colours", "ink", "paper"), [(ARMS_LIGHT, "#16191d", "#ffffff"), (ARMS_DARK, "#e8eaed", "#14171b")]
)
def test_arms_are_told_apart_with_any_colour_vision(colours: tuple[str, ...], ink: str, paper: str) -> None:
    assert min(pairs((*colours, ink))) > 12
    for colour in colours:
        light, dark = sorted((float(TO_XYZ[1] @ linear(one)) for one in (colour, paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour
