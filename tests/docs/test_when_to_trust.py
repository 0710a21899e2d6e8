"""The figures of docs/when-to-trust.md, of the README and of other pages are those of the study beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.study.archive import Archive
from benchmarks.study.dear import LAMBDA_MAX, NEAR_UNIT_MASS, known
from benchmarks.study.hovering import hovers
from benchmarks.study.initial import FAILED, ranked
from benchmarks.study.intervention import effects
from benchmarks.study.localisation import findings
from benchmarks.study.page import unseen
from benchmarks.study.scoring import WINDOW, Pooled, area, pooled
from hnf_offline.relate import clipping
from hnf_offline.relate.relations import PRIMARY
from hnf_offline.relate.resolution import ANNOUNCED

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOC = ROOT / "docs" / "when-to-trust.md"


@pytest.fixture(scope="module")
def study() -> Archive:
    return Archive.load(ROOT / "reports" / "study")


def words(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.0f} %"


def of(runs: list, sought: bool) -> Pooled:
    found = pooled([run for run in runs if hovers(run) is sought], PRIMARY, WINDOW)
    assert found is not None
    return found


def test_what_regimes_do_to_the_warning(study: Archive) -> None:
    runs = unseen(study.runs)
    calm, edge = of(runs, sought=False), of(runs, sought=True)
    text = words(DOC)
    assert (
        f"{percent(calm.recall.value)} of the spikes were announced, where as many alarms at random announce "
        f"{percent(calm.chance_recall)}; {percent(calm.precision.value)} of the alarms were right "
        f"({percent(calm.chance_precision)} by chance)"
    ) in text
    each = 1000 / calm.false_alarms_per_1000.value
    assert f"a false alarm comes every {100 * round(each / 100):,} steps" in text
    assert (
        f"There {percent(edge.precision.value)} of the alarms were right, hardly more than by chance "
        f"({percent(edge.chance_precision)})"
    ) in text
    for page in (README, DOC.parent / "concepts" / "limits.md"):
        assert (
            f"{percent(calm.precision.value)} of the alarms were right "
            f"({percent(calm.chance_precision)} by chance)"
        ) in words(page)
    assert (
        f"precision of {percent(calm.precision.value)} is worth what it has over the "
        f"{percent(calm.chance_precision)} that chance gives"
    ) in words(DOC.parent / "concepts" / "warnings.md")


def test_sgd_with_momentum(study: Archive) -> None:
    runs = [run for run in unseen(study.runs) if run.case.family == "D"]
    found = pooled(runs, PRIMARY, WINDOW)
    assert found is not None and found.recall.value is not None and found.precision.value is not None
    announced = round(found.recall.value * found.spikes)
    wrong = found.alarms - round(found.precision.value * found.alarms)
    text = words(DOC)
    assert (
        f"{announced} of {found.spikes} spikes were announced, {np.median(found.leads):.0f} steps ahead"
        in text
    )
    assert wrong == 1 and f"one false alarm in {found.runs} runs" in text


def test_checkpoints(study: Archive) -> None:
    del study
    dense, _, twice, once, _ = (percent(share) for _, share, _ in ANNOUNCED)
    assert (
        f"With six or more checkpoints between two spikes {dense} were announced, with two or three {twice}, with one "
        f"{once}"
    ) in words(DOC)
    assert (
        f"With six or more checkpoints between two spikes {dense} of the spikes of our study were announced "
        f"({percent(ANNOUNCED[0][2])} by chance), with one {once} ({percent(ANNOUNCED[3][2])})"
    ) in words(DOC.parent / "how-to" / "first-report.md")
    rows = [
        f"| {'above' if upper == float('inf') else f'{upper:g}'} | {percent(share)} | {percent(chance)} |"
        for upper, share, chance in ANNOUNCED
    ]
    assert "\n".join(rows) in (DOC.parent / "concepts" / "resolution.md").read_text(encoding="utf-8")


def test_layers(study: Archive) -> None:
    def found(kind: str, quantity: str) -> int:
        asked = findings([one for one in study.named if one.kind == kind])
        return next(one.found for one in asked if one.quantity == quantity)

    for kind in ("ramp", "jump"):
        assert found(kind, "share of the unstable direction") == 5
        assert found(kind, "gradient norm *") == 1 and found(kind, "gradient norm, against before *") in {
            1,
            3,
        }
        assert found(kind, "next update over weights *") in {5, 6}
    for kind in ("scale", "dead"):
        assert found(kind, "spectral norm, against before *") == 6
    assert "names the module in 5 of 6 runs" in words(DOC) and "at once (6 of 6)" in words(DOC)


def test_first_steps(study: Archive) -> None:
    by_name = {one.score: one for one in ranked(study.begun, FAILED)}
    mass, ratio = by_name["near-unit mass"], by_name["S after step 10, at the peak's rate"]
    text = words(DOC)
    assert f"area under the curve {mass.overall.value:.2f} over {mass.runs} runs".replace("0.", ".") in text
    assert f"{mass.within_architecture.value:.2f} within an architecture".replace("0.", ".") in text
    assert f"has {ratio.overall.value:.2f}".replace("0.", ".") in text


def test_scores(study: Archive) -> None:
    text = words(DOC)

    def ranked_by(letter: str, score: str) -> str:
        runs = known([run for run in unseen(study.runs) if run.case.family == letter])
        found = area(runs, score, 16)
        assert found is not None
        return f"{found.auroc.value:.2f}".removeprefix("0")

    plain = {letter: (ranked_by(letter, LAMBDA_MAX), ranked_by(letter, "S")) for letter in "ADI"}
    climb, momentum, model = (plain[letter] for letter in "ADI")
    assert (
        f"(climb {climb[0]} beside {climb[1]}, SGD {momentum[0]}, a language model {model[0]} beside" in text
    )
    assert momentum[0] == momentum[1] and f"beside {model[1]}). Near-unit mass" in text
    masses = [ranked_by(letter, NEAR_UNIT_MASS) for letter in "ADI"]
    assert f"tells nothing ({masses[0]}, {masses[1]}) or the opposite ({masses[2]})" in text

    deep = [run for run in unseen(study.runs) if run.case.family == "E"]
    lag, ratio = area(deep, "RMS_t", 16), area(deep, "S", 16)
    assert lag is not None and ratio is not None and lag.auroc.value > ratio.auroc.value
    assert "(RMS_t) ranks the dangerous checkpoints as well as S or better" in text


def test_policies(study: Archive) -> None:
    text = words(DOC)
    climb = {one.arm: one for one in effects([one for one in study.interventions if one.family == "A"])}
    ratchet = climb["S ratchet"].fewer
    assert f"leaves {ratchet.value:.2f} of the spikes [{ratchet.low:.2f}, {ratchet.high:.2f}]" in text
    assert f"makes *more* ({climb['halve at the alarm, restore after 100 steps'].fewer.value:.2f}" in text
    assert f"a blind decay with as many steps does as well ({climb['blind decay'].fewer.value:.2f}" in text
    assert f"a cosine to zero leaves {climb['cosine to 0'].fewer.value:.2f}" in text
    momentum = {one.arm: one for one in effects([one for one in study.interventions if one.family == "D"])}
    clip = momentum["clip at 1"]
    assert (clip.failed, f"({clip.runs} runs, of which {clip.failed_as_was} failed)" in text) == (0, True)
    told = (clipping.RUNS, clipping.FAILED_AS_WAS, clipping.FAILED_CLIPPED)
    assert told == (clip.runs, clip.failed_as_was, clip.failed), "what the advice says of the study"
    assert momentum["S controller"].failed == 1 and "all but one" in text
