"""Entries that never felt a gradient leave the step metric; what the rows move now stays."""

from __future__ import annotations

import torch

from hnf_offline.profile.rounding import step_metric_of, without_rounding
from hnf_offline.profile.whole import whole_hessian
from tests.profile.judged import case


def test_only_what_is_rounding_in_training_and_now_is_taken_out() -> None:
    gradient = torch.tensor([1.0, 1e-7, 0.0, 1e-7, 0.5])
    moment = torch.tensor([1.0, 1e-14, 0.0, 0.25, 1e-16])  # the last one: a token that training never had
    metric = torch.tensor([1.0, 1e7, 1e8, 2.0, 1e8])
    kept = without_rounding({"a.bias": metric}, {"a.bias": moment}, {"a.bias": gradient})
    assert kept["a.bias"].tolist() == [1.0, 0.0, 0.0, 2.0, 1e8]


def test_a_bias_that_is_all_rounding_is_held_against_the_weight_beside_it() -> None:
    weight, bias = torch.ones(4, 4), torch.full((4,), 1e-7)
    metric = {"key.weight": torch.ones(4, 4), "key.bias": torch.full((4,), 1e7), "other.bias": torch.ones(4)}
    gradients = {"key.weight": weight, "key.bias": bias, "other.bias": bias}
    moments = {name: value.square() for name, value in gradients.items()}
    kept = without_rounding(metric, moments, gradients)
    assert kept["key.bias"].eq(0).all() and kept["key.weight"].eq(1).all()
    assert kept["other.bias"].eq(1).all()  # small throughout is a scale, not rounding


def test_the_metric_of_a_trained_model_leaves_its_key_biases_out() -> None:
    own = case("GPT pre-norm, tied", "trained").subject
    gradients = whole_hessian(own.module, own.batches, exact=False, keep_graphs=False).gradients
    metric = step_metric_of(own.optimizer, gradients)
    assert metric is not None and step_metric_of(None, gradients) is None
    queries, keys, values = metric["transformer.h.0.attn.c_attn.bias"].chunk(3)
    assert keys.eq(0).all() and queries.gt(0).all() and values.gt(0).all()
