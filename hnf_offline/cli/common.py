"""The options that verbs have in common, and why a verb does without one of them."""

from __future__ import annotations

from collections.abc import Mapping

#: What a user may expect of any verb, in the order in which the reference lists them.
COMMON = (
    "--tier", "--steps", "--every", "--layers", "--device", "--dtype", "--replay", "--rows", "--json", "--quiet",
    "--plan",
)  # fmt: skip

_MEASURING = ("--tier", "--device", "--dtype", "--replay", "--rows")


def _all(options: tuple[str, ...], reason: str) -> dict[str, str]:
    return dict.fromkeys(options, reason)


#: Verb -> option that it does not take -> why, a sentence without its end.
NOT_TAKEN: Mapping[str, Mapping[str, str]] = {
    "whatif": {
        "--tier": "every arm is measured by its losses and by S alone; hnf zoom --tier measures more, and --every 0 "
        "leaves out S",
        "--layers": "every arm is measured by its losses and by the S of the whole model; hnf zoom --layers looks at "
        "layers",
    },
    "spikes": {
        **_all(_MEASURING, "hnf spikes reads the log alone and runs no model; hnf report does"),
        "--layers": "hnf spikes reads the log alone, which knows no layers; hnf report does",
    },
    "check": {
        "--layers": "a series is sound or not as a whole: hnf check looks at every tensor",
        "--dtype": "replayed losses are compared with the log to three digits, which float32 keeps",
        "--rows": "the log has the loss of whole batches, so whole batches are replayed",
    },
    "export": _all(_MEASURING, "hnf export measures nothing; it writes what hnf report has measured"),
    "quantities": {
        **_all(
            ("--steps", "--every", "--device", "--dtype", "--replay", "--rows", "--plan"),
            "hnf quantities lists what can be measured and reads no run",
        ),
        "--layers": "hnf quantities reads no run; --kind chooses by what is measured",
        "--quiet": "hnf quantities prints nothing but its result",
    },
    "env": {
        **_all(
            (*_MEASURING, "--steps", "--every", "--layers", "--plan"),
            "hnf env tells of this machine and reads no run",
        ),
        "--quiet": "hnf env prints nothing but its result",
    },
}  # fmt: skip


def why_not(verb: str, option: str) -> str:
    """Say why a verb does not take an option that others have.

    Args:
        verb: such as "spikes".
        option: as it was typed, such as "--layers".

    Returns:
        A sentence without its end, "" where nothing is to be said.
    """
    return NOT_TAKEN.get(verb, {}).get("--quiet" if option == "-q" else option, "")
