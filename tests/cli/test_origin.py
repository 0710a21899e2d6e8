"""Options win over the environment, that over run.toml, that over the defaults; and a plan says which it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.origin import asked_by_both
from hnf_offline.run.records import Said


@pytest.fixture
def asking_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run whose run.toml asks for another analysis than the defaults."""
    run = tmp_path / "asking"
    shutil.copytree(tiny_run, run)
    (run / "run.toml").write_text(
        '[analysis]\ntier = "gradient"\naccuracy = "screen"\ndevice = "cpu"\ndtype = "float64"\nrows = 2\n'
        'steps = "12:"\nevery = 2\nlayers = "*mlp*"\nrule = "olmo"\n'
        '[batches]\nsteps = "all"\naligned = true\n'
    )
    return run


def in_effect(said: Any) -> dict[str, tuple[Any, str]]:
    assert said.code == 0, said.err
    return {one["name"]: (one["value"], one["from"]) for one in said.json["options"]}


@pytest.mark.parametrize("verb", ["report", "profile", "monitor"])
def test_run_toml_takes_the_place_of_the_defaults(verb: str, hnf: Any, asking_run: Path) -> None:
    said = hnf(verb, asking_run, "--plan", "--json")
    told = in_effect(said)
    assert told["tier"] == ("gradient", "run.toml") and told["device"] == ("cpu", "run.toml")
    assert told["accuracy"] == ("screen", "run.toml") and told["dtype"] == ("float64", "run.toml")
    assert told["rows"] == (2, "run.toml") and told["layers"] == ("*mlp*", "run.toml")
    assert told["steps"] == ("12:", "run.toml") and told["every"] == (2, "run.toml")
    assert told["replay"] == (None, "default") and told["model"] == ("gpt", "config.json")
    assert ("rule" in told) == (verb != "profile")
    assert told.get("rule", ("olmo", "run.toml")) == ("olmo", "run.toml")
    (plan,) = said.json["plans"]
    assert (plan["tier"], plan["checkpoints"], plan["rows"]) == ("gradient", 2, 2)


def test_the_environment_wins_over_run_toml_and_an_option_over_both(
    hnf: Any, asking_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TIER", "forward"), ("ROWS", "3"), ("ACCURACY", "certified"), ("RULE", "mosaic")):
        monkeypatch.setenv(f"HNF_{name}", value)
    said = hnf("report", asking_run, "--plan", "--json", "--rows", 4, "--every", 1, "--column", "loss=loss")
    told = in_effect(said)
    assert told["tier"] == ("forward", "HNF_TIER") and told["accuracy"] == ("certified", "HNF_ACCURACY")
    assert told["rule"] == ("mosaic", "HNF_RULE")
    assert told["rows"] == (4, "option"), "typed, in the environment and in run.toml"
    assert told["every"] == (1, "option"), "typed as the default is still typed"
    assert told["column"] == (["loss=loss"], "option")
    (plan,) = said.json["plans"]
    assert (plan["tier"], plan["checkpoints"], plan["rows"]) == ("forward", 3, 4)


def test_the_words_of_a_plan(hnf: Any, asking_run: Path, tiny_run: Path) -> None:
    out = hnf("profile", asking_run, "--plan", "--device", "auto").out
    assert "\noptions\n  tier gradient (run.toml)\n" in out and "  device auto (option)\n" in out
    plain = hnf("profile", tiny_run, "--plan").out
    assert "  tier curvature (default)\n" in plain
    assert "  rows two training batches, or about 4096 tokens, or 32 images (default)\n" in plain
    assert "run.toml" not in plain


def test_what_was_asked_for_is_what_is_measured(hnf: Any, asking_run: Path) -> None:
    import polars as pl

    done = hnf("profile", asking_run)
    assert done.code == 0 and "profile 2/2 step 24 gradient" in done.err, done.err
    table = pl.read_parquet("reports/asking/profile.parquet")
    assert sorted(set(table["step"])) == [12, 24]
    assert "gradient.norm" in set(table["quantity"]) and "hessian.lambda_max" not in set(table["quantity"])
    assert hnf("report", asking_run, "--json").json["made"]["spike_rule"] == "olmo"


def test_a_manifest_named_by_the_user_is_told_by_its_name(hnf: Any, tiny_run: Path) -> None:
    Path("mine.toml").write_text(
        '[analysis]\nreplay = "rows.safetensors"\n[log]\ncolumns = { loss = "loss" }\n'
    )
    shutil.copyfile(tiny_run / "batches.safetensors", "rows.safetensors")
    told = in_effect(hnf("profile", tiny_run, "--manifest", "mine.toml", "--plan", "--json"))
    assert told["replay"] == ("rows.safetensors", "mine.toml")
    assert told["column"][1] == "mine.toml" and "loss=loss" in told["column"][0]


def test_other_verbs_take_what_fits_them(hnf: Any, asking_run: Path, other_run: Path, tmp_path: Path) -> None:
    zoom = in_effect(hnf("zoom", asking_run, "--from", 6, "--to", 12, "--plan", "--json"))
    assert zoom["tier"] == ("gradient", "run.toml")
    assert zoom["every"] == (1, "default"), "its --every counts steps, not checkpoints"
    whatif = in_effect(
        hnf("whatif", asking_run, "--from", 6, "--steps", 6, "--policy", "lr-scale=0.5", "--plan", "--json")
    )
    assert whatif["steps"] == (6, "option") and whatif["accuracy"] == ("screen", "run.toml")
    assert whatif["every"][1] == "default"
    # Two runs are measured alike: only what both ask for counts.
    other = tmp_path / "second"
    shutil.copytree(other_run, other)
    assert in_effect(hnf("diff", asking_run, other, "--plan", "--json"))["tier"] == ("curvature", "default")
    (other / "run.toml").write_text('[analysis]\ntier = "gradient"\nrows = 3\n')
    both = in_effect(hnf("diff", asking_run, other, "--plan", "--json"))
    assert both["tier"] == ("gradient", "run.toml") and both["rows"] == (None, "default")


def test_spikes_uses_the_rule_of_run_toml(hnf: Any, write_log: Any) -> None:
    write_log(Path("data/log.jsonl"))
    Path("data/run.toml").write_text('[analysis]\nrule = "mosaic"\n')
    assert hnf("spikes", "data", "--json").json["rule"] == "mosaic"
    assert hnf("spikes", "data", "--json", "--rule", "robust").json["rule"] == "robust"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[analysis]\ntear = 'full'\n", ["'tear' in [analysis]", "did you mean 'tier'?"]),
        ("[analisys]\ntier = 'full'\n", ["[analisys]", "did you mean 'analysis'?"]),
        ("[analysis]\ntier = 'curvatur'\n", ["[analysis] tier", "did you mean 'curvature'?"]),
        ("[analysis]\nrows = 0\n", ["[analysis] rows = 0", "whole number"]),
        ("[analysis]\ndevice = 'gpu'\n", ["[analysis] device = 'gpu'", "cuda"]),
        ("[analysis]\nsteps = '5'\n", ["[analysis] steps", "100:200"]),
        ("[analysis]\nreplay = '../rows.npz'\n", ["../rows.npz"]),
        ("[analysis]\nreplay = 'gone.npz'\n", ["gone.npz"]),
        ("[analysis]\nmodel = 'os:system'\n", ["'model' in [analysis]"]),
    ],
)
def test_what_run_toml_says_wrongly_is_one_line(
    text: str, parts: list[str], hnf: Any, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "wrong"
    shutil.copytree(tiny_run, run)
    shutil.copyfile(run / "batches.safetensors", tmp_path / "rows.npz")
    (run / "run.toml").write_text(text)
    for more in ((), ("--follow",)):
        said = hnf("monitor", run, *more)
        assert said.code == 2 and said.out == "" and said.err.count("\n") == 1, said.err
        assert "run.toml" in said.err
        for part in parts:
            assert part in said.err


def test_a_link_out_of_the_run_is_not_replayed(hnf: Any, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "linked"
    shutil.copytree(tiny_run, run)
    shutil.copyfile(run / "batches.safetensors", tmp_path / "secret.safetensors")
    (run / "rows.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (run / "run.toml").write_text("[analysis]\nreplay = 'rows.safetensors'\n")
    said = hnf("profile", run, "--plan")
    assert said.code == 2 and "rows.safetensors" in said.err and said.out == ""


def test_the_environment_says_wrongly_which_variable_it_was(
    hnf: Any, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNF_TIER", "everything")
    said = hnf("profile", tiny_run)
    assert said.code == 2 and "HNF_TIER" in said.err and said.err.count("\n") == 1


def test_run_toml_knows_what_the_options_know() -> None:
    from hnf_offline import options
    from hnf_offline.run.manifest import ANALYSES

    enums = {
        "tier": options.TierName,
        "accuracy": options.AccuracyName,
        "dtype": options.PrecisionName,
        "rule": options.RuleName,
    }
    assert {name: tuple(one.value for one in enum) for name, enum in enums.items()} == ANALYSES


def test_two_runs_ask_for_what_both_ask_for_and_never_for_a_file_of_one_of_them() -> None:
    file = Path("run.toml")
    one = Said(file, (), {"tier": "gradient", "rows": 2, "every": 4, "replay": Path("rows.npz")})
    other = Said(file, (), {"tier": "gradient", "rows": 3, "replay": Path("rows.npz")})
    both = asked_by_both(one, other)
    assert both is not None and both.analysis == {"tier": "gradient"}
    assert asked_by_both(one, None) is None
