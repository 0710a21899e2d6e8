import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.report.svg import path
from hnf_offline.report.text import block, clean, common_prefix, loss, number, shorten


@given(st.text())
def test_cleaned_text_is_one_printable_line(text):
    cleaned = clean(text)
    assert len(cleaned) <= 2000
    assert not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in cleaned)
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(6.2831, "6.28"), (0.0081, "0.00810"), (139840, "139,840"), (float("nan"), "NaN"), (float("inf"), "∞"),
     (None, "-"), (0.0, "0"), (1.5e-9, "1.50e-09"), (123456.0, "123,456")],
)  # fmt: skip
def test_numbers(value, spelled):
    assert number(value) == spelled


def test_losses_have_two_decimals_above_one():
    assert [loss(value) for value in (10.8612, 0.05, float("nan"))] == ["10.86", "0.0500", "NaN"]


def test_layer_names_lose_what_they_share_but_keep_the_word_before_the_number():
    layers = ["model.embed_tokens", "model.layers.0.mlp", "model.layers.1.mlp", "lm_head"]
    assert common_prefix(layers) == "model."
    assert block("model.layers.12.mlp.up_proj") == "model.layers.12"
    assert shorten("model.layers.0.self_attn", 12) == "…0.self_attn"
    assert shorten("") == "whole model"


def test_a_path_keeps_one_decimal_without_drift():
    import numpy as np

    x = np.linspace(0, 1000, 777)
    spelled = path([(x, np.sin(x) * 100)])
    start, moves = spelled[1:].split("l")
    total = np.array(start.split(), dtype=float)
    deltas = np.array(moves.split(), dtype=float).reshape(-1, 2)
    assert np.abs(total + deltas.sum(axis=0) - [1000, np.sin(1000) * 100]).max() < 0.06


def test_a_shortened_layer_keeps_its_number():
    assert shorten("layers.3.post_attention_layernorm", 28) == "…3.post_attention_layernorm"
    assert shorten("model.layers.17.self_attn.some_long_name", 20) == "…17…n.some_long_name"
    assert all(len(shorten("model.layers.17.self_attn.k_proj", width)) <= width for width in range(6, 40))


def test_sentences_begin_and_end_as_sentences_but_names_keep_their_case():
    from hnf_offline.report.words import sentence

    assert sentence("the loss fell back") == "The loss fell back."
    assert sentence("layers.0.self_attn moved") == "layers.0.self_attn moved."
    assert sentence("") == ""
