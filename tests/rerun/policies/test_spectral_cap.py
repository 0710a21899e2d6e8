"""Spectral cap: no chosen matrix above SIGMA after any update, everything else untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start


def largest(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.detach())[0])


def test_after_every_update_no_matrix_is_above(start: Start) -> None:
    (policy,) = make_policies("spectral-cap=0.25")
    training = start.training(Recipe(start.kinds[0]), [policy])
    for _ in range(10):
        training.advance()
        for name, parameter in training.module.named_parameters():
            if not name.endswith("weight") or parameter.ndim != 2 or "wte" in name or "wpe" in name:
                continue
            pieces = parameter.chunk(3) if "c_attn" in name else (parameter,)
            assert max(map(largest, pieces)) <= 0.25 * 1.01, name
    assert "matrices scaled down" in policy.notes()[0]


def test_it_scales_by_the_ratio_and_nothing_else(start: Start) -> None:
    plain = start.training(Recipe(start.kinds[0]))
    plain.advance()
    free = {name: value.clone() for name, value in plain.module.state_dict().items()}
    capped = start.training(Recipe(start.kinds[0]), make_policies("spectral-cap=0.1,*.h.1.mlp.c_fc"))
    capped.advance()
    for name, value in capped.module.state_dict().items():
        if name == "transformer.h.1.mlp.c_fc.weight":
            torch.testing.assert_close(value, free[name] * 0.1 / largest(free[name]), rtol=1e-3, atol=1e-7)
        else:
            assert torch.equal(value, free[name]), name


def test_one_role_of_a_fused_projection_is_capped_alone(start: Start) -> None:
    training = start.training(
        Recipe(start.kinds[0]), make_policies("spectral-cap=0.01,*.h.0.attn.c_attn.key")
    )
    training.advance()
    query, key, value = training.module.get_parameter("transformer.h.0.attn.c_attn.weight").chunk(3)
    assert largest(key) == pytest.approx(0.01, rel=1e-2)
    assert min(largest(query), largest(value)) > 0.05


def test_a_cap_that_never_binds_changes_not_one_bit_and_says_so(start: Start) -> None:
    def losses(spelling: str | None) -> list[float]:
        training = start.training(Recipe(start.kinds[0]), make_policies(spelling) if spelling else ())
        taken = [float(training.advance().loss) for _ in range(6)]  # type: ignore[arg-type]
        notes = [note for policy in training.policies for note in policy.notes()]
        assert not notes or notes[0].startswith("no matrix came above 50, so nothing was changed")
        return taken

    assert losses("spectral-cap=50") == losses(None)


def test_weights_that_are_not_finite_stay_what_they_are(start: Start) -> None:
    training = start.training(Recipe(start.kinds[0]), make_policies("spectral-cap=0.2"))
    with torch.no_grad():
        training.module.get_parameter("transformer.h.0.mlp.c_fc.weight")[0, 0] = float("nan")
    training.advance()
    training.advance()
    assert training.module.get_parameter("transformer.h.0.mlp.c_fc.weight").isnan().any()


def test_layers_without_a_matrix_are_refused(start: Start) -> None:
    with pytest.raises(UsageError, match="no layer that fits"):
        start.training(Recipe(start.kinds[0]), make_policies("spectral-cap=1,*.ln_1"))
    with pytest.raises(UsageError, match="no layer's path fits"):
        start.training(Recipe(start.kinds[0]), make_policies("spectral-cap=1,nowhere"))


@pytest.mark.parametrize("value", ["", "0", "-1", "inf", "one", "1,a,b"])
def test_a_limit_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="write spectral-cap="):
        make_policies(f"spectral-cap={value}")
