"""A replay that is not finite although the weights are: the layer where it begins is named."""

from __future__ import annotations

import copy
from dataclasses import replace

import polars as pl
import torch

from hnf_offline.detect.degradation import degradations
from hnf_offline.profile.measure import measure
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run.model.layers import layers_of
from hnf_offline.table import Row, table
from tests.profile.judged import case

LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})


def test_the_block_that_overflows_is_named_and_no_other() -> None:
    own = case("GPT pre-norm, tied", "trained").subject
    rows: list[Row] = []
    for step, factor in ((10, 1.0), (20, 1e25)):
        module = copy.deepcopy(own.module)
        with torch.no_grad():
            for name in ("c_fc", "c_proj"):
                module.get_parameter(f"transformer.h.1.mlp.{name}.weight").mul_(factor)
        assert all(bool(value.isfinite().all()) for value in module.parameters())
        subject = replace(own, module=module, step=step, layers=layers_of(module))
        rows += measure(subject, ProfileSettings(tier="forward"))
    (found,) = degradations(table(rows), LOG)
    assert (found.kind, found.step) == ("nonfinite-origin", 20)
    assert found.layer.startswith("transformer.h.1") and found.action
