"""Thresholds that pages tell in words are those of the program."""

from __future__ import annotations

import re

from hnf_offline.check.registry import CHECKS
from hnf_offline.detect.rules import STUDIED
from hnf_offline.detect.spike_rules import RISE, RULES, SIGMAS, WINDOW
from hnf_offline.output import WRITTEN
from hnf_offline.profile.settings import TIERS
from hnf_offline.quantities import catalogue
from hnf_offline.relate import localise, relations, series
from hnf_offline.rerun import twins, witness
from hnf_offline.run.records import Run
from hnf_offline.table import COLUMNS, KINDS
from tests.docs.pages import PAGES, text_of

CONCEPTS = "docs/concepts"


def words(page: str) -> str:
    return " ".join(text_of(page).split())


def test_alarms() -> None:
    text = words(f"{CONCEPTS}/warnings.md")
    assert f"rises past {STUDIED.on:g} after it was below {STUDIED.off:g}" in text
    assert f"S is above {STUDIED.forecast_from:g}, grows" in text
    assert (
        f"within {STUDIED.forecast_steps} steps or two checkpoint gaps" in text and STUDIED.forecast_gaps == 2
    )
    assert f"For {STUDIED.refractory} steps after a spike" in text
    assert f"in the {relations.WINDOW} steps before it" in text
    assert f"within {series.AFTERSHOCK} steps of another count as one" in text


def test_spikes() -> None:
    text = words(f"{CONCEPTS}/spikes.md")
    assert (
        f"z >= {SIGMAS:g} of log loss over the last {WINDOW} rows (median and MAD) and a rise of more than {RISE:g}"
        in text
    )
    assert all(f"| `{rule}`" in text for rule in RULES)


def test_retraining() -> None:
    text = words(f"{CONCEPTS}/retraining.md")
    assert (witness.EXACT_LOSS, witness.EXACT_WEIGHTS) == (1e-4, 1e-3)
    assert "1e-4 relative" in text and "within a thousandth of the way" in text
    assert (
        f"losses within {witness.CLOSE_LOSS:.0%} of the log, weights within {witness.CLOSE_WEIGHTS:.0%}".replace(
            "%", " %"
        )
        in text
    )
    assert twins.PERTURBATION == 1e-6 and "changed by one millionth" in text


def test_where_the_direction_lives() -> None:
    text = words(f"{CONCEPTS}/unstable-direction.md")
    assert (localise.SMALLEST_MASS_CHANGE, localise.STANDS_OUT, localise.MINIMUM_BASELINE) == (0.1, 6.0, 3)
    assert "at least a tenth of the whole" in text and "six robust standard deviations" in text
    assert f"{localise.SMALLEST_RATIO_CHANGE:g} times more than the median layer's" in text
    assert "Before three quiet checkpoints" in text


def test_tiers_and_what_is_written() -> None:
    tiers = re.findall(r"^\| `(\w+)`", text_of(f"{CONCEPTS}/tiers.md"), re.MULTILINE)
    assert tuple(tiers) == TIERS
    output = text_of("docs/reference/output.md")
    assert all(f"`{name}`" in output or f"`{name}/`" in output for name in WRITTEN)
    assert all(f"`{column}`" in output for column in COLUMNS)
    assert f"| {', '.join(KINDS)} |" in output
    assert "Seventeen checks" in text_of("docs/how-to/check.md") and len(CHECKS) == 17
    assert "skipped" in Run.__dataclass_fields__  # named in refused-files.md


def test_quantities_named_in_pages_are_in_the_catalogue() -> None:
    families = {name.partition(".")[0] for name in catalogue()}
    named = {
        (page, word)
        for page in PAGES
        if page.startswith(("docs/how-to", "docs/concepts", "README"))
        for word in re.findall(r"`([a-z]+\.[a-z_]+)`", text_of(page))
        if word.partition(".")[0] in families and not word.endswith(".parquet")
    }
    assert named and {one for one in named if one[1] not in catalogue()} <= {
        (page, "map.left_out") for page in PAGES
    }  # a row with a reason in place of a value
