"""The study's runs are declared: names, seeds and data say all."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch

from benchmarks.study.__main__ import SMOKE, cases, wanted_seeds
from benchmarks.study.case import FRESH, Addition, Text, Update
from benchmarks.study.families import FAMILIES
from benchmarks.study.tasks import source, text, transitions
from benchmarks.study.training import kept, record
from hnf_offline.run import open_run

EVERY = cases("".join(FAMILIES), "both") + cases("".join(FAMILIES), "fresh")


def test_every_run_has_its_own_name():
    names = [case.name for case in EVERY]
    assert len(set(names)) == len(names)
    assert set(SMOKE) <= set(names)


@pytest.mark.parametrize("letter", FAMILIES)
def test_seeds_are_split_before_anything_is_looked_at(letter):
    tune, test, fresh = (set(wanted_seeds(name, letter)) for name in ("tune", "test", "fresh"))
    assert tune and test and fresh
    assert not (tune & test) and min(fresh) >= FRESH
    assert set(wanted_seeds("both", letter)) == tune | test and len(fresh) == len(tune | test)
    for name, seeds in (("tune", tune), ("test", test), ("fresh", fresh)):
        assert all(case.split == name for seed in seeds for case in FAMILIES[letter].cases(seed))
    assert wanted_seeds("3,1", letter) == (1, 3)


def test_a_case_that_is_declared_otherwise_is_another_run_of_the_cache():
    case = FAMILIES["I"].cases(0)[0]
    other = replace(case, every=4)
    assert case.name == other.name and case.folder != other.folder
    assert (
        len({one.folder for one in EVERY}) == len(EVERY) and case.folder == FAMILIES["I"].cases(0)[0].folder
    )


def test_the_chain_is_one_of_distributions_and_bigrams_can_be_learned():
    task = Text(32, 24)
    chain = transitions(task)
    assert torch.allclose(chain.sum(-1), torch.ones((), dtype=chain.dtype)) and bool((chain >= 0).all())
    entropy = -(chain * chain.clamp_min(1e-300).log()).sum(-1).mean()
    after_one = chain.mean(dim=0)
    of_one = -(after_one * after_one.clamp_min(1e-300).log()).sum(-1).mean()
    assert entropy < of_one < 0.8 * torch.tensor(32.0).log()
    rows = text(task, 400, torch.Generator().manual_seed(1), chain)
    a, b, c = rows[:, :-2].flatten(), rows[:, 1:-1].flatten(), rows[:, 2:].flatten()
    assert -chain[a, b, c].log().mean() == pytest.approx(float(entropy), abs=0.1)


def test_sums_are_right_and_all_distinct():
    case = FAMILIES["A"].cases(0)[0]
    batch, (tokens, sums) = source(case)
    assert isinstance(case.task, Addition) and len(tokens) == round(0.6 * 31**2)
    assert torch.equal((tokens[:, 0] + tokens[:, 1]) % 31, sums) and len(torch.unique(tokens, dim=0)) == len(
        tokens
    )
    assert all(torch.equal(one, other) for one, other in zip(batch(1), (tokens, sums), strict=True))


def test_bad_batches_are_bad_at_their_steps_alone():
    clean, labels, words = (source(case)[0] for case in (_healthy(), *FAMILIES["G"].cases(0)))
    chain = transitions(FAMILIES["G"].cases(0)[0].task)

    def unlikely(rows):
        return float(-chain[rows[:, :-2], rows[:, 1:-1], rows[:, 2:]].log().mean())

    for step in range(1, 152):
        (rows, same), (again, other), (drawn, _) = clean(step), labels(step), words(step)
        assert torch.equal(rows, same) and torch.equal(again, other) == (step != 150)
        assert (unlikely(drawn) > 2 * unlikely(rows)) == (step == 150)


def _healthy():
    return replace(FAMILIES["G"].cases(0)[0], bad_labels=())


def test_the_rate_warms_up_and_is_raised_at_once():
    update = Update("Adam", 1e-2, warm_up=50, raised_at=200, raised_by=5)
    assert [update.rate(step) for step in (1, 25, 50, 199, 200)] == pytest.approx([
        2e-4,
        5e-3,
        1e-2,
        1e-2,
        5e-2,
    ])


@pytest.mark.parametrize("letter", ["D", "G"])
def test_a_run_is_given_again_by_its_name(letter, tmp_path):
    case = replace(FAMILIES[letter].cases(1)[0], steps=70, first=52)
    (tmp_path / "one.unfinished").mkdir()  # as an interrupted training leaves it
    (tmp_path / "one.unfinished" / "log.jsonl").write_text("{}\n")
    for name, run in (("one", case), ("two", case), ("other", replace(case, seed=3))):
        kept(tmp_path / name, lambda folder, run=run: record(run, folder))
    kept(tmp_path / "one", lambda _: pytest.fail("made twice"))
    one, two, other = (open_run(tmp_path / name) for name in ("one", "two", "other"))
    assert one.log is not None and two.log is not None and other.log is not None
    assert one.log.rows.equals(two.log.rows) and not one.log.rows.equals(other.log.rows)
    assert [point.step for point in one.checkpoints] == [52, 60, 68] and not list(
        tmp_path.glob("*.unfinished")
    )
    assert one.missing == ()
    rate = one.log.rows.filter(pl.col("step") == 60)["learning_rate"].item()
    assert rate == pytest.approx(case.update.learning_rate)
