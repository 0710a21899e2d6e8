"""Hand-made runs of known shape for the report's tests: nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from hnf_offline.comparison import Comparison, Difference, Separation, WeightDistance
from hnf_offline.findings import (
    Advice,
    Alarm,
    Findings,
    Pathology,
    Relation,
    ReplayCheck,
    Spike,
    Story,
)
from hnf_offline.table import Row, schema, table

LAYERS = [("model.embed_tokens", "embedding")] + [
    (f"model.layers.{block}.{path}", kind)
    for block in range(4)
    for path, kind in (
        ("self_attn.q_proj", "query"),
        ("self_attn.k_proj", "key"),
        ("self_attn.v_proj", "value"),
        ("self_attn.softmax", "softmax"),
        ("self_attn.o_proj", "out"),
        ("mlp.up_proj", "mlp_up"),
        ("mlp.down_proj", "mlp_down"),
    )
]
LAYERS.append(("lm_head", "head"))
GUILTY = "model.layers.0.self_attn.k_proj"


@dataclass(frozen=True)
class Made:
    findings: Findings
    log: pl.DataFrame | None
    profile: pl.DataFrame


def log_rows(last: int = 300, *, spikes: bool = True) -> pl.DataFrame:
    steps = np.arange(1, last + 1)
    rng = np.random.default_rng(0)
    loss = 2.2 + 3.5 * np.exp(-steps / 40) + 0.03 * rng.standard_normal(last)
    norm = 0.4 + 0.02 * rng.standard_normal(last)
    rate = np.full(last, 0.01)
    if spikes:
        after = np.clip(steps - 152, 0, None)
        loss += np.where(steps >= 152, 3.9 * np.exp(-after / 8), 0) + np.where(steps > 152, 0.14, 0)
        loss[150], loss[219] = 3.43, 10.86
        norm[150:156], norm[219] = 3.1, 6.0
        rate[149:152] = 0.1
    return pl.DataFrame({"step": steps, "loss": loss, "grad_norm": norm, "learning_rate": rate})


def profile_rows(*, spikes: bool = True) -> pl.DataFrame:
    rows = []
    rng = np.random.default_rng(1)
    for step in range(10, 301, 10):
        known = step in {50, 100, 130, 140, 150, 160, 170, 200, 210, 220, 230, 250, 300}
        whole = 0.2 + 0.4 * step / 300 + (1.3 if spikes and step == 150 else 0)
        if known:
            rows.append(
                Row(step, "", "model", -1, "hessian.stability_ratio", whole, 0.95 * whole, 1.05 * whole,
                    certified=step != 170, batch="replay")
            )  # fmt: skip
        rows.append(Row(step, "", "model", -1, "hessian.lambda_max", 20 * whole, batch="replay"))
        rows.append(Row(step, "", "model", -1, "gradient.norm", 0.4, batch="replay"))
        rows.append(Row(step, "", "model", -1, "replay.loss", 2.3, batch=f"step {step + 1}"))
        for depth, (layer, kind) in enumerate(LAYERS):
            noise = float(np.exp(0.15 * rng.standard_normal()))
            jump = 12.0 if spikes and layer == GUILTY and step in {140, 150} else 1.0
            rows.append(
                Row(step, layer, kind, depth, "hessian.lambda_max", (1 + depth % 5) * noise * jump,
                    certified=not (step == 30 and depth < 3), batch="replay")
            )  # fmt: skip
            if known:
                rows.append(
                    Row(
                        step,
                        layer,
                        kind,
                        depth,
                        "hessian.stability_ratio",
                        0.05 * noise * jump * (1 + depth % 3),
                    )
                )
                rows.append(
                    Row(
                        step, layer, kind, depth, "hessian.unstable_mass", (0.4 if jump > 1 else 0.02) * noise
                    )
                )
            if kind == "softmax":
                rows.append(Row(step, layer, kind, depth, "proxy.softmax_log10", 2 + 5 * step / 300 * noise))
    return table(rows)


def spike_run() -> Made:
    spikes = (
        Spike(1, 151, 152, None, 2.28, 6.28, 4.0, 31.2, "divergence", False, None, 0.14, False),
        Spike(2, 220, 220, 221, 2.75, 10.86, 8.11, 60.0, "spike", True, 1, 0.0, False),
    )
    alarms = (
        Alarm(140, 140, "hessian.unstable_mass", GUILTY, 0.4, 0.1, "band", "info", "mass moves into layers.0 k_proj"),
        Alarm(150, 150, "hessian.stability_ratio", "", 1.7, 1.0, "edge", "danger", "S = 1.70 crosses 1",
              "resume from checkpoint 140 with learning rate 0.0081", 1),
        Alarm(130, 140, "hessian.stability_ratio", "", 0.8, 1.0, "forecast", "warning", "S reaches 1 near step 156",
              "", 1),
        Alarm(260, 260, "optimizer.headroom", "", 1.4, 1.5, "headroom", "warning", "headroom 1.4"),
    )  # fmt: skip
    stories = (
        Story(1, "learning-rate", "The learning rate rose tenfold at 150; S went from 0.4 to 1.7.", GUILTY,
              "hessian.unstable_mass", 140, 140, 11, "11 steps",
              ((140, "S is forecast to reach 1"), (150, "S crosses 1"), (151, "loss leaves its band"))),
        Story(2, "bad-batch", "No precursor; the loss fell back in one step: fits a bad batch.", "", "", None, None,
              None, "none", ((220, "loss 10.86"), (221, "back in its band"))),
    )  # fmt: skip
    relations = (
        Relation("hessian.stability_ratio", "", "edge", 3, 2, 0.5, 0.33, 0.2, 0.11, 11.0, 11.0, 11.0, 10, 3.1, 0.12,
                 None, 14, 30, False),
        Relation("hessian.stability_ratio", "", "forecast", 2, 2, 0.5, 0.5, 0.2, 0.11, 4.0, 4.0, 4.0, 10, 1.1, 0.1,
                 0.31, 14, 30, False),
        Relation("grad_norm", "", "band", 4, 2, 0.0, 0.0, 0.2, 0.1, None, None, None, 1, 8.0, 0.2, 1.0, 14, 30, True),
    )  # fmt: skip
    findings = Findings(
        run={
            "name": "hf_trainer_llama_spike", "path": "runs/hf_trainer_llama_spike", "checkpoints": 30,
            "steps": [10, 300], "model": {"kind": "hf", "parameters": 139840}, "optimizer": "AdamW", "gap": 10,
            "missing": [{"what": "optimizer.pt in 17 of 30 checkpoints", "cost": "S unknown there"}],
            "skipped": [{"path": "checkpoint-200/x.bin", "reason": "cut short", "remedy": "copy it again"}],
            "resume_steps": [], "log": {"files": ["trainer_state.json"], "duplicates": 0, "skipped_lines": 2,
                                        "restarts": []},
        },
        verdict={
            "word": "Diverged",
            "sentence": "The loss spiked at 151 and never came back (+0.14). layers.0.self_attn.k_proj moved first, "
            "at 140. Resume from checkpoint 140 with a learning rate below 0.0081.",
            "caveat": "2 spikes are too few to show that S beats the gradient norm (p >= 0.2).",
        },
        facts=(
            {"label": "last healthy checkpoint", "value": "140"},
            {"label": "lead", "value": "11 steps (gap 10)"},
            {"label": "beats gradient norm?", "value": "not shown (2 spikes)"},
            {"label": "checkpoints read", "value": "30 of 30"},
        ),
        spikes=spikes,
        stories=stories,
        alarms=alarms,
        relations=relations,
        regimes=({"start": 10, "end": 150, "regime": "climb", "sentence": "S rises toward 1: predictive"},),
        pathologies=(Pathology("logit growth", GUILTY, 150, "logits rise from 12 to 80 within 20 steps"),),
        replay_checks=(ReplayCheck(150, 151, 3.42817, 3.42821, 0, True),),
        last_healthy_checkpoint=140,
        advice=(Advice("Resume from checkpoint 140 with learning rate 0.0081", "S was 1.7 at 150", 140,
                       {"largest stable learning rate": 0.0081}, 1),),
        made={"versions": {"hnf_offline": "0.1.0"}, "device": "cpu", "seconds": 41.0},
    )  # fmt: skip
    return Made(findings, log_rows(), profile_rows())


def quiet_findings(name: str, word: str, sentence: str) -> Findings:
    return Findings(
        run={"name": name, "checkpoints": 30, "steps": [10, 300], "gap": 10, "missing": [], "skipped": []},
        verdict={"word": word, "sentence": sentence, "caveat": ""},
        facts=tuple({"label": label, "value": "-"} for label in "abcd"),
    )


def healthy_run() -> Made:
    return Made(
        quiet_findings("healthy", "Stable", "No spike."), log_rows(spikes=False), profile_rows(spikes=False)
    )


def log_only_run() -> Made:
    made = spike_run()
    log = log_rows()
    findings = replace(made.findings, alarms=(), relations=(), stories=(), replay_checks=())
    return Made(findings, log, table())


def nan_run() -> Made:
    log = log_rows(spikes=False).with_columns(
        loss=pl.when(pl.col("step") >= 250).then(float("nan")).otherwise(pl.col("loss"))
    )
    spike = Spike(
        1,
        250,
        250,
        None,
        2.2,
        float("nan"),
        float("nan"),
        float("inf"),
        "nonfinite",
        False,
        None,
        None,
        False,
    )
    quiet = quiet_findings("nan", "Diverged", "The loss is NaN from 250.")
    profile = profile_rows(spikes=False).with_columns(
        value=pl
        .when((pl.col("step") >= 250) & (pl.col("layer") == GUILTY))
        .then(float("nan"))
        .otherwise(pl.col("value"))
    )
    return Made(replace(quiet, spikes=(spike,)), log, profile)


def large_run(layers: int = 400, checkpoints: int = 500) -> Made:
    """400 layers x 500 checkpoints; block 20 rises between checkpoints 230 and 250."""
    rng = np.random.default_rng(2)
    steps = np.arange(1, checkpoints + 1) * 100
    kinds = ["query", "key", "value", "out", "norm", "norm", "softmax", "mlp_up", "mlp_down", "other"]
    names = [f"model.layers.{place // 10}.part{place % 10}" for place in range(layers)]
    walk = np.cumsum(0.03 * rng.standard_normal((layers, checkpoints)), axis=1)
    rise = np.zeros((layers, checkpoints))
    rise[200:210, 230:250] = np.linspace(0, 3, 20)
    frames = []
    for quantity, values in (
        ("hessian.stability_ratio", 0.1 * np.exp(walk + rise)),
        ("hessian.unstable_mass", np.abs(0.0025 + 0.001 * walk + 0.05 * rise)),
        ("proxy.softmax_log10", 3 + walk + rise),
    ):
        frames.append(
            pl.DataFrame(
                {
                    "step": np.tile(steps, layers),
                    "layer": np.repeat(names, checkpoints),
                    "kind": np.repeat([kinds[place % 10] for place in range(layers)], checkpoints),
                    "depth": np.repeat(np.arange(layers), checkpoints).astype(np.int32),
                    "quantity": [quantity] * (layers * checkpoints),
                    "value": values.ravel(),
                    "low": [None] * (layers * checkpoints),
                    "high": [None] * (layers * checkpoints),
                    "certified": rng.random(layers * checkpoints) > 0.05,
                    "batch": ["replay"] * (layers * checkpoints),
                    "source": ["checkpoint"] * (layers * checkpoints),
                },
                schema=schema(),
            )
        )
    every = np.arange(1, checkpoints * 100 + 1)
    loss = 2 + 4 * np.exp(-every / 8000) + 0.02 * rng.standard_normal(len(every))
    loss[25_000:25_400] += 3 * np.exp(-np.arange(400) / 100)
    log = pl.DataFrame({"step": every, "loss": loss})
    spike = Spike(1, 25_001, 25_001, 25_400, 2.2, 5.2, 3.0, 90.0, "spike", True, 399, 0.0, False)
    quiet = quiet_findings("large", "Spike", "One spike at 25,001.")
    quiet = replace(quiet, run={**quiet.run, "checkpoints": checkpoints, "gap": 100, "steps": [100, 50_000]})
    return Made(replace(quiet, spikes=(spike,)), log, pl.concat(frames))


def comparison(*, incomparable: tuple[str, ...] = ("step 40: only A has a checkpoint there",)) -> Comparison:
    a, b = spike_run(), healthy_run()
    return Comparison(
        a=a.findings.run,
        b={**b.findings.run, "name": "hf_trainer_llama_calm"},
        verdict={
            "word": "Differ",
            "sentence": "A and B agree until 140; they part first in layers.0.self_attn.k_proj, the loss at 151.",
            "caveat": "One run of each is no estimate of the noise between runs.",
        },
        facts=(
            {"label": "First durable separation", "value": "step 140"},
            {"label": "In", "value": "S in layers.0.self_attn.k_proj"},
            {"label": "Final loss, A against B", "value": "2.34 against 2.20"},
            {"label": "Comparable", "value": "not in 1 respect"},
        ),
        aligned={"axis": "step (optimizer updates applied)", "steps": 30},
        configuration=(Difference("learning_rate", 0.1, 0.01), Difference("warmup", None, 100)),
        shared_configuration={"optimizer.betas": [0.9, 0.95], "seed": 0},
        separations=(
            Separation("hessian.stability_ratio", GUILTY, 140, 1.7, 0.13, 0.4, True),
            Separation("loss", "", 151, 3.43, 2.28, 0.02, True),
            Separation("gradient.norm", "", None, 0.4, 0.4, 0.1, True),
        ),
        weight_distances=(WeightDistance(10, GUILTY, 0.01, 0.001), WeightDistance(300, GUILTY, 3.0, 0.4)),
        spikes_a=a.findings.spikes,
        spikes_b=(),
        alarms_a=a.findings.alarms,
        alarms_b=(),
        incomparable=incomparable,
        made={"device": "cpu"},
    )
