"""What the default spike rule says of other people's logs: `python -m benchmarks.real_logs`.

Prints the Markdown tables of docs/logs.md: each real log with the spikes that are known to be in it, those found and
those missed, and false alarms in noise. The logs are looked for in ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from hnf_offline.detect.spikes import SPIKE_RULES, find_spikes
from hnf_offline.errors import UserError
from hnf_offline.findings import LogFindings, Spike
from hnf_offline.relate.log_alone import log_findings
from hnf_offline.run.logs import read_log
from hnf_offline.run.records import Log, Run
from hnf_offline.synthetic import ar1

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
NEAR_ROWS = 2


@dataclass(frozen=True)
class Truth:
    """One real log and what is known of it.

    Attributes:
        name: as the table calls it.
        files: patterns below the data folder; several files are one run.
        onsets: steps at which a loss spike is known to begin; a pair where it begins within a stretch.
        healthy: whether no spike may be found in it.
        events: kinds of other events that have to be told.
        border: steps at which something is to be seen that the default rule does not call a spike.
    """

    name: str
    files: tuple[str, ...]
    onsets: tuple[int | tuple[int, int], ...] = ()
    healthy: bool = False
    events: tuple[str, ...] = ()
    border: tuple[int, ...] = ()


def _pythia(run: str) -> tuple[str, ...]:
    return (f"logs/polypythias_wandb_tsv/{run}_*.tsv",)


_MODDED, _GROKKING = "logs/modded_nanogpt_txt/", "logs/jsonl_grokking/"
_MEGATRON, _STATE = "logs/bigscience_megatron_out/", "logs/hf_trainer_state/"

#: From shared/formats.md, which says where each log is from.
TRUTHS = (
    Truth("sample run spiky", ("sample:spiky/log.jsonl",), (210, 392, 566, 759, 917)),
    Truth("sample run steady", ("sample:steady/log.jsonl",), healthy=True),
    Truth("HF Trainer, Llama", ("runs/hf_trainer_llama_spike/trainer_state.json",), (151, 220)),
    Truth("torch DCP, nanoGPT", ("runs/dcp_fsdp2_nanogpt/trace.jsonl",), ((75, 78),)),
    Truth("Pythia 410m-seed3, 4 files", _pythia("410m-seed3"), (75002,)),
    Truth(
        "Pythia 410m-seed4, 5 files", _pythia("410m-seed4"), (122002,), events=("duplicated-log", "restart")
    ),
    Truth("Pythia 160m-seed4", _pythia("160m-seed4"), ((1318, 1343),)),
    Truth("Pythia 160m-seed9, 3 files", _pythia("160m-seed9"), ((1256, 1279),), events=("duplicated-log",)),
    Truth("Pythia 410m-seed8, 4 files", _pythia("410m-seed8"), events=("duplicated-log", "restart")),
    Truth(
        "modded-nanogpt ScaleUp1B", (f"{_MODDED}2024-10-20_ScaleUp1B_*.txt",), (428, 607, 1120, 1788, 5964)
    ),
    Truth(
        "modded-nanogpt Muon", (f"{_MODDED}2024-10-10_Muon_*.txt",), (919, 947, 1760, 3194, 5335, 5462, 6127)
    ),
    Truth("modded-nanogpt recent, validation only", (f"{_MODDED}recent_*.txt",), healthy=True),
    Truth(
        "Megatron ds-off",
        (f"{_MEGATRON}meg_ds_3d_gpt2_perf_n16-ds-off.out",),
        (3,),
        events=("slow-divergence",),
    ),
    Truth("Megatron gpt2_base n32", (f"{_MEGATRON}*1809620.out",), events=("skipped-steps",)),
    Truth("Megatron gpt2_base n4", (f"{_MEGATRON}*1809579.out",), events=("skipped-steps",), border=(30,)),
    Truth("fairseq run1", ("logs/fairseq_text_log/run1.log",), (3,), events=("skipped-steps",)),
    Truth("fairseq run2", ("logs/fairseq_text_log/run2.log",), (3,), events=("skipped-steps",)),
    Truth("grokking s5 s4", (f"{_GROKKING}s5_*_s4.jsonl",), (2300, 3500), events=("open-spike",)),
    Truth("grokking s5 s3", (f"{_GROKKING}s5_*_s3.jsonl",), (1400, 1900, 3650), events=("open-spike",)),
    Truth("grokking mech_sgdm", (f"{_GROKKING}mech_sgdm_*.jsonl",), (275,)),
    Truth("grokking add_normctl", (f"{_GROKKING}add_normctl_*.jsonl",)),
    *(
        Truth(f"LoRA RoBERTa run{i}", (f"logs/tensorboard_lora_roberta/runs/run{i}",), healthy=True)
        for i in range(5)
    ),
    Truth("stanford_alpaca", (f"{_STATE}stanford_alpaca_spike932.json",), healthy=True, border=(932,)),
    Truth("mistral translator", (f"{_STATE}mistral_translator_healthy.json",), healthy=True),
    Truth(
        "star, custom keys", (f"{_STATE}star_custom_keys.json",), healthy=True, events=("gradient-outliers",)
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What was found in one real log, against what is known.

    Attributes:
        truth: what is known.
        log: the log as read.
        findings: what was found.
        hits: known onset -> the spike found there.
        missed: known onsets without a spike.
        beyond: spikes that the list of known ones does not have.
        untold: kinds of events that should have been told and were not.
    """

    truth: Truth
    log: Log
    findings: LogFindings
    hits: dict[int | tuple[int, int], Spike] = field(default_factory=dict)
    missed: tuple[int | tuple[int, int], ...] = ()
    beyond: tuple[Spike, ...] = ()
    untold: tuple[str, ...] = ()


def files_of(truth: Truth, data: Path = DATA) -> list[Path]:
    """Find the files of a log.

    Returns:
        The files, none where the data are absent.
    """
    found: list[Path] = []
    for pattern in truth.files:
        sample = pattern.removeprefix("sample:")
        where = data if sample == pattern else Path(__file__).resolve().parents[1] / "sample_runs"
        found += sorted(where.glob(sample))
    return found


def outcome(truth: Truth, files: list[Path], rule: str = "robust") -> Outcome:
    """Read a log and hold what is found against what is known.

    A known onset is found where a spike begins at most two rows of the log from it.

    Returns:
        The outcome.
    """
    log = read_log(files if len(files) > 1 else files[0])
    run = Run(files[0], files[0].name, (), log, None, None, resume_steps=log.restarts)
    findings = log_findings(run, log, rule=rule)
    steps = log.rows.filter(pl.col("loss").is_not_null())["step"].to_numpy()
    hits: dict[int | tuple[int, int], Spike] = {}
    for known in truth.onsets:
        first, last = known if isinstance(known, tuple) else (known, known)
        low, high = np.searchsorted(steps, first), np.searchsorted(steps, last)
        for spike in findings.spikes:
            if low - NEAR_ROWS <= np.searchsorted(steps, spike.onset) <= high + NEAR_ROWS:
                hits.setdefault(known, spike)
    told = {event.kind for event in findings.events}
    return Outcome(
        truth,
        log,
        findings,
        hits,
        tuple(known for known in truth.onsets if known not in hits),
        tuple(spike for spike in findings.spikes if spike not in hits.values()),
        tuple(kind for kind in truth.events if kind not in told),
    )


def outcomes(rule: str = "robust") -> Iterator[Outcome]:
    """Go through all real logs that are there.

    Yields:
        One outcome a log.
    """
    for truth in TRUTHS:
        files = files_of(truth)
        if files:
            yield outcome(truth, files, rule)


def noise(kind: str, seed: int, rows: int = 2400) -> np.ndarray:
    """Draw a loss without any spike.

    Returns:
        One loss a row.
    """
    draw = np.random.default_rng(seed)
    place = np.arange(rows)
    normal = draw.standard_normal(rows)
    if kind == "normal, 3 %":
        return 3 + 0.1 * normal
    if kind == "log-normal, 10 %":
        return 3 * np.exp(0.1 * normal)
    if kind == "log-normal, 30 %":
        return 3 * np.exp(0.3 * normal)
    if kind == "AR(.8), 5 %":
        return 3 + 0.15 * ar1(rows, 0.8, seed)
    if kind == "Student t3, 5 %":
        return 3 * np.exp(0.05 * draw.standard_t(3, rows))
    if kind == "falling, 5 %":
        return (1.5 + 8 * np.exp(-place / 200)) * np.exp(0.05 * normal)
    if kind == "8 % up at each epoch, 3 %":
        return (2 + 0.16 * (1 - (place % 200) / 200)) * np.exp(0.03 * normal)
    if kind == "25 % up at each epoch, 3 %":
        return (2 + 0.5 * (1 - (place % 200) / 200)) * np.exp(0.03 * normal)
    if kind == "noise that decays, 20 % to 0":
        return 2 * np.exp(0.2 * np.exp(-place / 500) * normal)
    return 2 * np.exp(0.2 * place / rows * normal)


KINDS = (
    "normal, 3 %",
    "log-normal, 10 %",
    "log-normal, 30 %",
    "AR(.8), 5 %",
    "Student t3, 5 %",
    "falling, 5 %",
    "8 % up at each epoch, 3 %",
    "25 % up at each epoch, 3 %",
    "noise that decays, 20 % to 0",
    "noise that grows, 0 to 20 %",
)


def false_alarms(kind: str, rule: str = "robust", seeds: int = 40) -> tuple[float, float]:
    """Count spikes in noise.

    Returns:
        Spikes in 1000 rows, and the share of 1000 logs of 30 rows with one in their first ten rows.
    """
    found = rows = 0
    for seed in range(seeds):
        loss = noise(kind, seed)
        found += len(find_spikes(_log(loss), rule=rule))
        rows += loss.size
    early = sum(
        any(spike.onset < 10 for spike in find_spikes(_log(noise(kind, seed, 30)), rule=rule))
        for seed in range(10_000, 11_000)
    )
    return 1000 * found / rows, early / 1000


def _log(loss: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"step": np.arange(loss.size), "loss": loss})


def _spelled(known: int | tuple[int, int]) -> str:
    return f"{known[0]}-{known[1]}" if isinstance(known, tuple) else str(known)


def row(one: Outcome) -> str:
    """Spell an outcome as a line of the table.

    Returns:
        Markdown.
    """
    found = ", ".join(f"{_spelled(known)} (at {spike.onset})" for known, spike in one.hits.items()) or "-"
    beyond = "-"
    if one.beyond:
        ranked = sorted(one.beyond, key=lambda spike: -spike.height)
        beyond = f"{len(ranked)}: " + ", ".join(
            f"{spike.onset} (+{spike.height:.2g})"
            for spike in sorted(ranked[:3], key=lambda spike: spike.onset)
        )
        beyond += ", ..." if len(ranked) > 3 else ""
    told = ", ".join(sorted({event.kind for event in one.findings.events})) or "-"
    rows = one.log.rows.height - one.log.rows["loss"].null_count()
    known = "none may be" if one.truth.healthy else str(len(one.truth.onsets))
    missed = ", ".join(map(_spelled, one.missed)) or "-"
    cells = (one.truth.name, ", ".join(one.log.formats), f"{rows:,}", known, found, missed, beyond, told)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", default="robust", choices=sorted(SPIKE_RULES))
    chosen = parser.parse_args()
    print("| log | format | rows | known spikes | found (onset) | missed | beyond the list | also told |")
    print("|---|---|---|---|---|---|---|---|")
    known = found = beyond = false = rows = healthy_rows = 0
    for truth in TRUTHS:
        files = files_of(truth)
        if not files:
            print(f"| {truth.name} | absent | | | | | | |")
            continue
        try:
            one = outcome(truth, files, chosen.rule)
        except UserError as error:
            print(f"| {truth.name} | not read: {error.reason} | | | | | | |")
            continue
        print(row(one))
        size = one.log.rows.height - one.log.rows["loss"].null_count()
        known += len(truth.onsets)
        found += len(one.hits)
        rows += size
        beyond += 0 if truth.healthy else len(one.beyond)
        healthy_rows += size if truth.healthy else 0
        false += len(one.findings.spikes) if truth.healthy else 0
    print(
        f"\n{found} of {known} known spikes found; {false} false in {healthy_rows:,} rows of healthy logs; ",
        end="",
    )
    print(f"{beyond} spikes beyond the lists in the {rows - healthy_rows:,} rows of the others.\n")
    print(
        "| noise without a spike | spikes in 1000 rows | logs with one in their first ten rows |\n|---|---|---|"
    )
    for kind in KINDS:
        rate, early = false_alarms(kind, chosen.rule)
        print(f"| {kind} | {rate:.2f} | {early:.1%} |")


if __name__ == "__main__":
    main()
