"""Whatever is typed behind the "=" of these policies, they are built or say in one line why not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import catalogue, make_policies
from hnf_offline.rerun.policies.spelling import options

MINE = (
    "curvature-penalty",
    "embedding-shrink",
    "koopman-shaping",
    "precision",
    "qk-rescale",
    "scaler",
    "spectral-cap",
    "z-loss",
)
PIECES = st.one_of(
    st.sampled_from([
        "",
        "1",
        "0.5",
        "1e-4",
        "-1",
        "nan",
        "inf",
        "1e999",
        "bf16",
        "fp16",
        "*",
        "every=2",
        "rank=",
        "=3",
    ]),
    st.sampled_from([
        "9" * 5000,
        "1_0",
        "٣",
        "*.attn.*",
        "share=0.5",
        "target=0.3",
        "every=9999999999",
        "a=b=c",
    ]),
    st.text(max_size=6),
)


@given(st.sampled_from(MINE), st.lists(PIECES, max_size=5))
def test_any_text_is_understood_or_refused_in_one_line(name: str, pieces: list[str]) -> None:
    try:
        made = make_policies(f"{name}={','.join(pieces)}")
    except UsageError as error:
        assert error.remedy
        assert error.reason.startswith("--policy ")
    else:
        assert all(isinstance(policy, Policy) for policy in made)


@pytest.mark.parametrize("name", MINE)
def test_every_entry_says_what_it_does(name: str) -> None:
    entry = catalogue()[name]
    assert entry.formula
    assert entry.reference
    assert entry.cost
    assert entry.value
    # Whether the function changes at once or only later is part of what a reader must know.
    assert "at once" in entry.summary or "later steps" in entry.summary
    (policy,) = make_policies(entry.example)
    assert policy.notes() == ()


def test_options_are_taken_out_wherever_they_stand() -> None:
    assert options("1,every=2,*.attn.*", ["every"]) == ("1,*.attn.*", {"every": "2"})
    assert options("every=2", ["every"]) == (None, {"every": "2"})
    assert options(None, ["every"]) == (None, {})


@pytest.mark.parametrize("text", ["each=2", "every=2,every=3", "every="])
def test_options_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"every|each"):
        options(text, ["every"])
