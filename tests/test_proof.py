"""Advice is tested by retraining: what is said of it, and where the evidence lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hnf_offline.errors import InputError
from hnf_offline.findings import Advice
from hnf_offline.pipeline import Analysis
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.proof import prove_advice
from hnf_offline.table import table

from .report import made
from .report import retrainings as retrained

CAP = retrained.arm("lr-cap=0.0084", 140, 180, outcome="no spike, loss 2.16 at step 180 instead of 3.12")
CLIP = retrained.arm("clip=1.0", 140, 180, peak=(152, 6.11), level=3.08, outcome="a spike at step 151")
LATER = retrained.arm("lr-scale=0.7", 140, 180, peak=(172, 6.2), level=3.08, outcome="a spike at step 171")


def advised(policy: str, spike: int | None) -> Advice:
    return Advice(f"try {policy}", "", 140, {}, spike, policy)


def prove(monkeypatch: pytest.MonkeyPatch, answers: dict[int, Any], *advice: Advice) -> Any:
    """Test advice; `answers` says what retraining from a checkpoint gives, an error where it fails."""
    findings = replace(made.spike_run().findings, advice=advice)
    states = [SimpleNamespace(step=step, optimizer_files=("optimizer.pt",)) for step in (140, 210)]
    run = SimpleNamespace(checkpoints=[*states, SimpleNamespace(step=145, optimizer_files=())])

    def whatif(run: Any, *, start: int, **_: Any) -> Any:
        if isinstance(answers[start], Exception):
            raise answers[start]
        return answers[start]

    monkeypatch.setattr("hnf_offline.rerun.whatif.whatif", whatif)
    return findings, *prove_advice(run, findings, ProfileSettings())  # type: ignore[arg-type]


def test_every_piece_of_advice_says_what_came_of_it_and_where_the_evidence_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = retrained.whatif(arms=(retrained.as_was(), CAP, CLIP, LATER))
    _, advice, proofs = prove(
        monkeypatch, {140: tried}, advised("lr-cap=0.0084", 1), advised("clip=1.0", 1),
        advised("lr-scale=0.7", 1), advised("", 1),
    )  # fmt: skip
    assert [one.tested for one in advice] == [
        "tested: no spike, loss 2.16 at step 180 instead of 3.12",
        "tested: does not help: a spike at step 151",
        "tested: the spike comes 20 steps later: a spike at step 171",
        "",
    ]
    assert [one.evidence for one in advice] == ["proof/spike-1/index.html"] * 3 + [""]
    assert proofs == (tried,)


def test_the_evidence_belongs_to_its_spike_where_another_could_not_be_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = retrained.whatif(start=210, arms=(retrained.as_was(), CAP))
    answers = {140: InputError("has no batches"), 210: tried}
    findings, advice, proofs = prove(
        monkeypatch, answers, advised("clip=1.0", 1), replace(advised("lr-cap=0.0084", 2), step=210)
    )
    assert advice[0].tested == "not tested: has no batches"
    assert [one.evidence for one in advice] == ["", "proof/spike-2/index.html"]
    analysis = Analysis(None, table(), replace(findings, advice=advice), proofs)  # type: ignore[arg-type]
    ((page, proof),) = analysis.evidence()
    assert (page, proof.start) == ("proof/spike-2/index.html", 210)


def test_a_report_keeps_the_retrainings_and_links_to_them(
    monkeypatch: pytest.MonkeyPatch, tiny_log: Path, tmp_path: Path
) -> None:
    from hnf_offline.cli import main

    one = replace(advised("lr-cap=0.0084", 1), tested="tested: no spike", evidence="proof/spike-1/index.html")
    monkeypatch.setattr("hnf_offline.proof.can_replay", lambda *_: True)
    monkeypatch.setattr("hnf_offline.proof.prove_advice", lambda *_, **__: ((one,), (retrained.whatif(),)))
    out = tmp_path / "report"
    for _ in range(2):  # the folder is the program's own, so it may be written again
        assert main(["report", str(tiny_log), "--prove", "--quiet", "--out", str(out)]) == 0
    assert (out / one.evidence).is_file()
    assert (out / "proof/spike-1/rerun.json").is_file()
    assert f'<a href="{one.evidence}">' in (out / "index.html").read_text(encoding="utf-8")
    assert main(["report", str(tiny_log), "--quiet", "--out", str(out)]) == 0
    assert "proof/spike-1" not in (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def tiny_log(tmp_path: Path) -> Path:
    log = tmp_path / "run" / "log.jsonl"
    log.parent.mkdir()
    lines = [f'{{"step": {step}, "loss": {3 + 0.01 * (step % 3)}}}' for step in range(1, 101)]
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return log
