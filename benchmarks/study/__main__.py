"""Train, profile and score the families of the prediction study: `python -m benchmarks.study`.

Runs, profiles and whatever else takes long stay in the cache and are never made twice; scores are always taken anew
from the public pipeline. Even seeds tune, odd seeds test; `--seeds fresh` draws the set of the final tables, once.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.study import initial, injection, intervention, page
from benchmarks.study.analysis import analysed, trained_only
from benchmarks.study.archive import Archive
from benchmarks.study.case import FRESH, Case
from benchmarks.study.dear import measured_dearly
from benchmarks.study.families import FAMILIES
from benchmarks.study.initial import begun
from benchmarks.study.intervention import tried
from benchmarks.study.localisation import asked
from benchmarks.study.workers import one_thread, side_by_side

#: Short runs of four kinds: one that blows up, one that diverges, one of a raised rate, one of bad batches.
SMOKE = ("D-lr0.15-seed0", "I-lr0.03-b0.999-seed0", "F-x20-none-seed0", "G-labels-seed0")
#: Steps of the one run that is retrained there.
SMOKE_STEPS = 200
#: Number of the fault that is looked for there: one NaN, which ends its run at once.
SMOKE_FAULT = 12


def wanted_seeds(spelled: str, family: str) -> tuple[int, ...]:
    """Read which seeds of a family are asked for.

    Args:
        spelled: "tune", "test", "both", "fresh", or numbers such as "0,2".
        family: letter.

    Returns:
        Seeds, ascending.
    """
    known = FAMILIES[family].seeds
    sets = {
        "both": known,
        "tune": tuple(seed for seed in known if seed % 2 == 0),
        "test": tuple(seed for seed in known if seed % 2 == 1),
        "fresh": FAMILIES[family].fresh(),
    }
    return sets[spelled] if spelled in sets else tuple(sorted({int(seed) for seed in spelled.split(",")}))


def cases(families: str, seeds: str) -> list[Case]:
    """List the runs asked for, the longest families first, so that no worker is left with one at the end.

    Returns:
        The runs.
    """
    found = [
        case
        for letter in families
        for seed in wanted_seeds(seeds, letter)
        for case in FAMILIES[letter].cases(seed)
    ]
    return sorted(found, key=lambda case: -case.steps * case.model.n_layer)


def intervened(families: str, *, smoke: bool) -> list[Case]:
    """List the runs of experiment 3.

    Returns:
        The runs; one short one where it is only to be shown that it works.
    """
    if smoke:
        return [replace(case, steps=SMOKE_STEPS) for case in intervention.cases((0,), "D")]
    return intervention.cases(families="".join(set(families) & set(intervention.INTERVENED)))


def main() -> None:
    """Run what was asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--families", default="".join(FAMILIES), help="letters, such as AD")
    parser.add_argument(
        "--seeds", default="both", help=f"tune, test, both, fresh ({FRESH} and up), or numbers"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--cache", type=Path, default=Path("reports/study-cache"), help="runs and profiles")
    parser.add_argument(
        "--out", type=Path, help="where the page goes; reports/study, or reports/study-part for a part of it"
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep what the page's folder holds of other runs: the study in parts",
    )
    parser.add_argument("--smoke", action="store_true", help="four short runs: whether it works at all")
    parser.add_argument(
        "--experiments",
        default="12345",
        help="1 and 2: alarms and scores; of seeds of their own, 3: acting on them, 4: which layer, 5: from the start",
    )
    parser.add_argument(
        "--dear",
        action="store_true",
        help="also the plain Hessian's eigenvalue and near-unit mass, as scores: as long again",
    )
    parser.add_argument(
        "--train-only", action="store_true", help="train and tell the spikes; profile nothing"
    )
    chosen = parser.parse_args()
    unknown = set(chosen.families) - set(FAMILIES)
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    for letter in chosen.families:
        try:
            wanted_seeds(chosen.seeds, letter)
        except ValueError:
            parser.error(f"--seeds {chosen.seeds} is neither tune, test, both, fresh nor numbers such as 0,2")
    if not chosen.experiments or set(chosen.experiments) - set("12345"):
        parser.error(f"--experiments {chosen.experiments}: there are 1 to 5")
    whole = (
        not chosen.smoke
        and set(chosen.families) == set(FAMILIES)
        and chosen.seeds in {"both", "fresh"}
        and {"3", "4", "5"} <= set(chosen.experiments)
        and bool(set(chosen.experiments) & set("12"))
    )
    out = chosen.out or Path("reports/study" if whole or chosen.add else "reports/study-part")
    found = (
        [case for letter in FAMILIES for case in FAMILIES[letter].cases(0) if case.name in SMOKE]
        if chosen.smoke
        else cases(chosen.families, chosen.seeds)
    )
    if chosen.train_only:
        one_thread()
        for case in found:
            print(trained_only(case, chosen.cache), flush=True)
        return
    began = time.monotonic()
    runs = []
    if set(chosen.experiments) & set("12"):
        made = side_by_side(
            measured_dearly if chosen.dear else analysed,
            found,
            chosen.cache,
            chosen.jobs,
            lambda run: f"{len(run.onsets)} onsets, {run.seconds:.0f} s",
        )
        runs = sorted(made, key=lambda run: run.case.name)
    outcomes = []
    if "3" in chosen.experiments:
        acted_on = intervened(chosen.families, smoke=chosen.smoke)
        all_tried = side_by_side(
            tried,
            acted_on,
            chosen.cache,
            chosen.jobs,
            lambda done: f"{', '.join(str(one.onsets) for one in done)} onsets",
        )
        outcomes = sorted((one for done in all_tried for one in done), key=lambda one: one.run)
    named = []
    if "4" in chosen.experiments:
        faults = injection.runs()[SMOKE_FAULT : SMOKE_FAULT + 1] if chosen.smoke else injection.runs()
        all_asked = side_by_side(
            asked,
            faults,
            chosen.cache,
            chosen.jobs,
            lambda done: f"{sum(one.right for one in done)} of {len(done)} answers right",
        )
        named = sorted((one for done in all_asked for one in done), key=lambda one: (one.run, one.since))
    beginnings = []
    if "5" in chosen.experiments:
        starts = [replace(initial.cases((0,))[-1], steps=SMOKE_STEPS)] if chosen.smoke else initial.cases()
        all_begun = side_by_side(
            begun, starts, chosen.cache, chosen.jobs, lambda one: "failed" if one.failed else "learned"
        )
        beginnings = sorted(all_begun, key=lambda one: one.run)
    made = page.made_now(" ".join(sys.argv[1:]), time.monotonic() - began)
    part = Archive(tuple(runs), tuple(outcomes), tuple(named), tuple(beginnings), (made,))
    written = page.write(Archive.load(out).with_part(part) if chosen.add else part, out)
    print(written)


if __name__ == "__main__":
    main()
