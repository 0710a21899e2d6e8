"""Every measure of the source documents leads somewhere, or says why not."""

from __future__ import annotations

import re

import pytest
import typer

from hnf_offline.cli import VERBS
from hnf_offline.quantities import catalogue
from hnf_offline.quantities.sources import DOCUMENTS, MEASURES, Measure, measures_of

_IDS = [f"{measure.document}: {measure.name}" for measure in MEASURES]


@pytest.mark.parametrize("measure", MEASURES, ids=_IDS)
def test_a_measure_has_an_entry_or_a_reason(measure: Measure) -> None:
    assert measure.document in DOCUMENTS
    missing = set(measure.quantities) - set(catalogue())
    assert not missing, "no such quantity"
    assert measure.quantities or measure.elsewhere or len(measure.remark.split()) >= 2


@pytest.mark.parametrize("measure", MEASURES, ids=_IDS)
def test_the_verbs_and_policies_that_are_named_exist(measure: Measure) -> None:
    from hnf_offline.rerun.policies.registry import catalogue as policies

    for place in measure.elsewhere:
        verb = place.split()[1]
        assert verb in VERBS
        policy = re.search(r"--policy (\S+)", place)
        if policy:
            assert policy[1] in policies()


@pytest.mark.parametrize("measure", MEASURES, ids=_IDS)
def test_the_options_that_are_named_exist(measure: Measure) -> None:
    from hnf_offline.cli import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for place in measure.elsewhere:
        known = {option for one in verbs[place.split()[1]].params for option in one.opts}
        assert set(re.findall(r"--[a-z-]+", place)) <= known, place


@pytest.mark.parametrize("measure", MEASURES, ids=_IDS)
def test_nothing_is_put_off(measure: Measure) -> None:
    assert "not yet" not in measure.remark


def test_every_measure_is_listed_once_and_every_document_has_some() -> None:
    assert len({(measure.document, measure.name) for measure in MEASURES}) == len(MEASURES)
    for document in DOCUMENTS:
        assert measures_of(document)
    assert sum(len(measures_of(document)) for document in DOCUMENTS) == len(MEASURES)


def test_entries_that_come_from_a_source_document_are_in_its_table() -> None:
    named = {name for measure in MEASURES for name in measure.quantities}
    words = ("source document", "condition-number profiler", "training-stability catalogue")
    lost = [
        entry.name
        for entry in catalogue().values()
        if entry.inputs and any(word in entry.reference for word in words) and entry.name not in named
    ]
    assert not lost
