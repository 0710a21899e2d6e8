"""`hnf zoom` and `hnf whatif` as a user runs them: what is asked for arrives, mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.printing import fields_text
from hnf_offline.retraining import Retraining
from hnf_offline.table import table

# Planted records of what the library gives back.
from ..report import retrainings as made

TINY = {"name": "tiny", "path": "tiny", "model": "GPT", "optimizer": "Adam"}


def one_line(said: Any, *parts: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    for part in parts:
        assert part in said.err, said.err


class Library:
    """Stands for the two library calls, and remembers how they were called."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def zoom(self, run: Any, **asked: Any) -> Any:
        from hnf_offline.rerun.zoom import Zoomed

        self.asked = {"run": run.name, **asked}
        return Zoomed(made.zoomed(run=TINY), table())

    def whatif(self, run: Any, **asked: Any) -> Retraining:
        self.asked = {"run": run.name, **asked}
        return made.whatif(run=TINY)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stands_in = Library()
    monkeypatch.setattr("hnf_offline.rerun.zoom.zoom", stands_in.zoom)
    monkeypatch.setattr("hnf_offline.rerun.whatif.whatif", stands_in.whatif)
    return stands_in


def test_zoom_passes_on_what_was_asked_and_writes_its_page(
    hnf: Any, library: Library, tiny_run: Path
) -> None:
    said = hnf(
        "zoom", tiny_run, "--from", 6, "--to", 18, "--every", 3, "--tier", "curvature", "--layers", "*mlp*",
        "--twins", 2, "--device", "cpu", "--dtype", "float64", "--rows", 4, "--accuracy", "screen",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "reports/tiny-zoom-6-18/index.html"
    assert "● Exact" in said.out or "o Exact" in said.out
    assert Path("reports/tiny-zoom-6-18/rerun.json").is_file()
    settings = library.asked.pop("settings")
    assert (settings.tier, settings.layers, settings.device, settings.dtype, settings.rows, settings.every) == (
        "curvature", "*mlp*", "cpu", "float64", 4, 1,
    )  # fmt: skip
    assert settings.accuracy == "screen"
    library.asked.pop("on_progress")
    assert library.asked == {
        "run": "tiny", "start": 6, "stop": 18, "every": 3, "model": None, "twins": 2,
        "out": Path("reports/tiny-zoom-6-18"),
    }  # fmt: skip


def test_whatif_passes_on_what_was_asked_and_prints_a_line_an_arm(
    hnf: Any, library: Library, tiny_run: Path
) -> None:
    said = hnf(
        "whatif", tiny_run, "--from", 6, "--steps", 12, "--policy", "lr-cap=0.001", "-p", "lr-scale=0.5:4",
        "--every", 0, "--find", "largest-stable-lr", "--twins", 3,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "reports/tiny-whatif-6/index.html"
    assert "lr-cap=0.0084" in said.out
    library.asked.pop("on_progress")
    assert library.asked.pop("settings").tier == "stability"
    assert library.asked == {
        "run": "tiny", "start": 6, "steps": 12, "policies": ("lr-cap=0.001", "lr-scale=0.5:4"), "every": 0,
        "model": None, "twins": 3, "find_largest_stable": True,
    }  # fmt: skip


def test_steps_say_from_where_to_where(hnf: Any, library: Library, tiny_run: Path) -> None:
    assert hnf("zoom", tiny_run, "--steps", "6:18").code == 0
    assert (library.asked["start"], library.asked["stop"]) == (6, 18)
    assert library.asked["out"] == Path("reports/tiny-zoom-6-18")
    whatif = ("whatif", tiny_run, "-p", "lr-cap=1")
    assert hnf(*whatif, "--steps", "6:18").code == 0
    assert (library.asked["start"], library.asked["steps"]) == (6, 12)
    assert hnf(*whatif, "--from", 12, "--steps", ":18", "--out", "b").code == 0
    assert (library.asked["start"], library.asked["steps"]) == (12, 6)
    assert hnf(*whatif, "--from", 12, "--steps", 5, "--out", "c").code == 0
    assert (library.asked["start"], library.asked["steps"]) == (12, 5)
    library.asked.clear()
    one_line(hnf("zoom", tiny_run, "--steps", "6:18", "--to", 12), "leave out one")
    one_line(hnf("zoom", tiny_run, "--steps", "6:"), "has no end")
    one_line(hnf("zoom", tiny_run, "--steps", "6:6"), "does not come after")
    one_line(hnf("zoom", tiny_run, "--to", 12), "Missing option '--from'", "--steps A:B")
    one_line(hnf("zoom", tiny_run, "--from", 6), "Missing option '--to'")
    one_line(hnf(*whatif, "--steps", "6:18", "--from", 6), "leave out one")
    one_line(hnf(*whatif, "--steps", "18:6"), "ends before it begins")
    one_line(hnf(*whatif, "--steps", "6:"), "has no end")
    one_line(hnf(*whatif, "--steps", ":18"), "has no start")
    one_line(hnf(*whatif, "--from", 12, "--steps", ":12"), "does not come after 12")
    one_line(hnf(*whatif, "--from", 6, "--steps", "0"), "is no number of steps")
    one_line(hnf(*whatif, "--from", 6, "--steps", "many"), "is no number of steps")
    assert not library.asked


def test_json_and_quiet(hnf: Any, library: Library, tiny_run: Path) -> None:
    document = hnf("zoom", tiny_run, "--from", 6, "--to", 12, "--json").json
    assert document == json.loads(Path("reports/tiny-zoom-6-12/rerun.json").read_text(encoding="utf-8"))
    assert document["verdict"] == "exact"
    assert document["made"]["versions"]["torch"]
    quiet = hnf("whatif", tiny_run, "--from", 6, "--policy", "lr-cap=1", "--quiet")
    assert (quiet.out, quiet.err) == ("reports/tiny-whatif-6/index.html\n", "")


def test_a_step_without_a_checkpoint_is_met_with_the_nearest(
    hnf: Any, library: Library, tiny_run: Path
) -> None:
    one_line(hnf("zoom", tiny_run, "--from", 7, "--to", 12), "--from 7", "did you mean 6 or 12?")
    one_line(hnf("whatif", tiny_run, "--from", 999, "--policy", "lr-cap=1"), "--from 999", "18 or 24?")
    one_line(hnf("zoom", tiny_run, "--from", 12, "--to", 12), "--to 12", "--to 13")
    assert not library.asked
    assert not Path("reports").exists()


def test_mistakes_of_a_policy_are_one_line(hnf: Any, library: Library, tiny_run: Path) -> None:
    ask = ("whatif", tiny_run, "--from", 6, "--policy")
    one_line(hnf(*ask, "lr-capp=0.1"), "lr-capp", "did you mean lr-cap?")
    one_line(hnf(*ask, "lr-cap"), "lr-cap", "write lr-cap=")
    one_line(hnf(*ask, "lr-cap=fast"), "lr-cap=fast")
    one_line(hnf("whatif", tiny_run, "--from", 6), "nothing to try", "--list-policies")
    one_line(hnf("whatif", tiny_run, "--policy", "lr-cap=1"), "--from")
    one_line(hnf("whatif"), "RUN")
    one_line(hnf("whatif", tiny_run, "--from", 6, "--find", "smallest"), "largest-stable-lr")
    assert not library.asked


def test_a_log_alone_cannot_be_retrained(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    one_line(
        hnf("zoom", write_log(tmp_path / "log.jsonl"), "--from", 1, "--to", 2), "log.jsonl", "checkpoint"
    )


def test_a_report_is_never_replaced_by_a_retraining(hnf: Any, library: Library, tiny_run: Path) -> None:
    assert hnf("report", tiny_run, "--tier", "forward", "--quiet", "--out", "page").code == 0
    before = Path("page/index.html").read_bytes()
    for extra in ((), ("--force",)):
        said = hnf("zoom", tiny_run, "--from", 6, "--to", 12, "--out", "page", *extra)
        one_line(said, "hnf report", "--out")
    one_line(hnf("whatif", tiny_run, "--from", 6, "-p", "lr-cap=1", "--out", tiny_run / "x"), "inside a run")
    assert Path("page/index.html").read_bytes() == before


def test_policies_are_listed_and_explained_without_a_run(hnf: Any) -> None:
    from hnf_offline.rerun.policies.registry import catalogue

    listed = hnf("whatif", "--list-policies")
    assert listed.code == 0, listed.err
    document = hnf("whatif", "--list-policies", "--json").json
    assert [one["name"] for one in document["policies"]] == list(catalogue())
    for name, entry in catalogue().items():
        assert name in listed.out
        told = " ".join(hnf("whatif", "--list-policies", "--policy", name).out.split())
        for part in (entry.formula, entry.reference, entry.cost):
            assert " ".join(part.split()) in told, name


def test_advice_is_what_the_report_recommends(
    hnf: Any, library: Library, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = {
        "spikes": [{"id": 1, "onset": 9}, {"id": 2, "onset": 23}],
        "advice": [{"policy": "lr-cap=0.0007", "spike": 1}, {"policy": "skip=23", "spike": 2},
                   {"policy": "", "spike": 1}],
    }  # fmt: skip
    monkeypatch.setattr("hnf_offline.cli.whatif.report_of", lambda *_, **__: findings)
    ask = ("whatif", tiny_run, "--from", 6, "--steps", 6, "--policy", "lr-scale=0.5", "--policy", "advice")
    said = hnf(*ask)
    assert said.code == 0, said.err
    assert library.asked["policies"] == ("lr-scale=0.5", "lr-cap=0.0007")
    one_line(hnf(*ask, "--plan", "--out", "b"), "hnf report", "--plan")


def test_a_report_of_an_earlier_version_is_made_anew(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnf_offline.cli import recommended
    from hnf_offline.profile.settings import ProfileSettings
    from hnf_offline.run import open_run

    monkeypatch.chdir(tmp_path)
    run = open_run(tiny_run)
    held = Path("reports") / run.name / "findings.json"
    held.parent.mkdir(parents=True)
    made: list[str] = []

    class Done:
        class findings:  # noqa: N801
            to_json = staticmethod(lambda: {"advice": [], "made": "now"})

    monkeypatch.setattr(recommended, "analyse", lambda *_, **__: made.append("now") or Done)
    old = {"run": {"path": str(tiny_run)}, "advice": [{"action": "lower it"}]}
    for advice, expected in (([{"action": "lower it", "policy": ""}], []), (old["advice"], ["now"])):
        held.write_text(json.dumps({**old, "advice": advice}))
        recommended.report_of(run, ProfileSettings(), rule="robust")
        assert made == expected


@pytest.fixture(scope="module")
def replayable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run that predicts the next token of the same rows at every step."""
    import torch

    from hnf_offline.record import Recorder
    from hnf_offline.run.model.gpt import GPT, GPTConfig

    config = {
        "vocab_size": 8, "block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_width": 8,
        "norm": "none", "tied": False,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "replayable"
    torch.manual_seed(0)
    model = GPT(GPTConfig(**config))
    tokens = torch.randint(8, (8, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    settings = {"kind": "Adam", "learning_rate": 0.003}
    with Recorder(folder, every=6, model={"model_type": "gpt", **config}, optimizer=settings) as recorder:
        recorder.save_batches(tokens, tokens)
        for step in range(1, 19):
            logits = model(tokens)[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, model, optimizer, loss=float(loss.detach()), learning_rate=0.003)
    (folder.parent / "run.toml").write_text('[batches]\nsteps = "all"\n', encoding="utf-8")
    return folder


def test_zoom_of_a_recorded_run_is_exact_and_plan_writes_nothing(hnf: Any, replayable: Path) -> None:
    ask = ("zoom", replayable, "--from", 6, "--to", 12, "--manifest", replayable.parent / "run.toml")
    planned = hnf(*ask, "--plan")
    assert planned.code == 0, planned.err
    assert "replayable -> reports/replayable-zoom-6-12" in planned.out
    assert "stop: 12" in planned.out
    assert hnf(*ask, "--plan", "--json").json["plans"][0]["stop"] == 12
    assert not Path("reports").exists()
    document = hnf(*ask, "--json").json
    assert (document["from"], document["to"], document["verdict"]) == (6, 12, "exact")
    assert Path("reports/replayable-zoom-6-12/profile.parquet").is_file()
    again = hnf(*ask)
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1] == "reports/replayable-zoom-6-12/index.html"


def test_whatif_of_a_recorded_run_shows_what_the_policy_changed(hnf: Any, replayable: Path) -> None:
    said = hnf(
        "whatif", replayable, "--from", 6, "--steps", 8, "--policy", "lr-scale=0.1", "--every", 0,
        "--manifest", replayable.parent / "run.toml", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    as_was, slower = said.json["arms"]
    assert as_was["learning_rate"] == [0.003] * 8
    assert slower["learning_rate"] == pytest.approx([0.0003] * 8)
    assert slower["loss"][0] == as_was["loss"][0]
    assert slower["loss"][-1] > as_was["loss"][-1]
    assert as_was["stability_ratio"] == []
    planned = hnf("whatif", replayable, "--from", 6, "--steps", 8, "--policy", "lr-scale=0.1", "--plan",
                  "--manifest", replayable.parent / "run.toml")  # fmt: skip
    assert planned.code == 0, planned.err
    assert "stop: 14" in planned.out


def test_an_interrupted_zoom_keeps_its_steps_and_goes_on(
    hnf: Any, replayable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnf_offline.rerun import zoom as zooming

    measure = zooming.measured_rows
    looks: list[int] = []

    def fourth_time_unlucky(*arguments: Any) -> Any:
        looks.append(1)
        if len(looks) == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(zooming, "measured_rows", fourth_time_unlucky)
    ask = (
        "zoom",
        replayable,
        "--from",
        6,
        "--to",
        12,
        "--manifest",
        replayable.parent / "run.toml",
        "--out",
        "z",
    )
    said = hnf(*ask)
    assert (said.code, said.out) == (130, "")
    assert "Traceback" not in said.err
    assert said.err.splitlines()[-1] == "hnf: stopped at 3/7, kept; run again to go on"
    again = hnf(*ask)
    assert again.code == 0, again.err
    assert "from the cache" in again.err
    assert len(looks) == 4 + 4, "the three steps that were measured are not measured again"


@pytest.mark.parametrize("unlucky", [1, 2, 3])
def test_an_interrupted_what_if_keeps_the_arms_that_were_done(
    unlucky: int, hnf: Any, replayable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnf_offline.rerun import whatif as trying

    train = trying.train_arm
    arms: list[str] = []

    def stopped(begin: Any, recipe: Any, stop: int, spelling: str, *others: Any) -> Any:
        if len(arms) == unlucky:
            raise KeyboardInterrupt
        arms.append(spelling)
        return train(begin, recipe, stop, spelling, *others)

    monkeypatch.setattr(trying, "train_arm", stopped)
    said = hnf(
        "whatif", replayable, "--from", 6, "--steps", 4, "-p", "lr-scale=0.1", "-p", "lr-scale=0.5", "-p", "lr-cap=1",
        "--every", 0, "--manifest", replayable.parent / "run.toml", "--out", "w",
    )  # fmt: skip
    assert (said.code, said.out) == (130, "")
    last = said.err.splitlines()[-1]
    if unlucky == 1:
        assert last == "hnf: stopped at 1/4, before any policy was tried: nothing to keep"
        assert not Path("w/rerun.json").exists()
        return
    assert last == f"hnf: stopped at {unlucky}/4, the arms that were done are kept: w/index.html"
    kept = json.loads(Path("w/rerun.json").read_text(encoding="utf-8"))
    assert [arm["policy"] for arm in kept["arms"]] == ["as was", "lr-scale=0.1", "lr-scale=0.5"][:unlucky]
    assert f"stopped by the user: {unlucky - 1} of 3 policies were tried" in kept["notes"]


@pytest.mark.parametrize(
    ("options", "zoom", "prove"),
    [((), True, False), (("--zoom", "off"), False, False), (("--zoom", "auto", "--prove"), True, True)],
)
def test_report_passes_on_whether_to_retrain(
    options: tuple[str, ...],
    zoom: bool,
    prove: bool,
    hnf: Any,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hnf_offline.cli import report

    asked: dict[str, Any] = {}
    analyse = report.analyse

    def watched(*arguments: Any, **named: Any) -> Any:
        asked.update(named)
        return analyse(*arguments, **named | {"zoom": False, "prove": False})

    monkeypatch.setattr(report, "analyse", watched)
    said = hnf("report", tiny_run, "--tier", "forward", "--quiet", *options)
    assert said.code == 0, said.err
    assert (asked["zoom"], asked["prove"]) == (zoom, prove)


def test_a_plan_is_spelled_in_units_a_reader_knows() -> None:
    told = fields_text({
        "run": "a", "path": "runs/a", "out": "reports/a", "trainings": 3, "step_seconds": 0.25, "seconds": 7200.0,
        "peak_bytes": 3 * 2**20, "device": "cpu", "rate": 0.00841, "cached": False, "policies": ("x", "y"),
        "model": None, "missing": ("no optimizer state",),
    })  # fmt: skip
    assert told.split("\n") == [
        "a -> reports/a", "  trainings: 3", "  step time: about 0.25 s", "  time: about 2.0 h", "  peak: 3 MiB",
        "  device: cpu", "  rate: 0.00841", "  cached: no", "  policies: x, y", "  missing: no optimizer state",
    ]  # fmt: skip
