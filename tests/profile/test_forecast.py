"""How long a profile is said to take, on clocks that count work: what is measured lies in the range that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hnf_offline.printing import plan_text
from hnf_offline.profile import cost
from hnf_offline.profile.cost import forward_passes, range_of, timed
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.session import Session, open_session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run import open_run

SPIKY = Path(__file__).resolve().parents[2] / "sample_runs" / "spiky"


class Work(TorchDispatchMode):
    """A clock that goes on with every operation of torch: so much a call, and so much for each number it gives."""

    def __init__(self, call: float, number: float) -> None:
        super().__init__()
        self.call, self.number, self.time = call, number, 0.0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        first = result[0] if isinstance(result, list | tuple) and result else result
        self.time += self.call + self.number * (first.numel() if isinstance(first, torch.Tensor) else 0)
        return result


def session_of(settings: ProfileSettings) -> Session:
    session = open_session(open_run(SPIKY), settings, None)
    assert session is not None
    return session


@pytest.mark.parametrize(("call", "number"), [(1e-3, 0.0), (1e-5, 1e-6)], ids=["calls", "arithmetic"])
@pytest.mark.parametrize("tier", ["stability", "curvature"])
def test_what_a_checkpoint_takes_lies_in_the_range(
    tier: str, call: float, number: float, tmp_path: Path
) -> None:
    settings = ProfileSettings(tier=tier, first_step=150, last_step=190, device="cpu", rows=64)  # type: ignore[arg-type]
    session = session_of(settings)
    forwards = forward_passes(session, settings, with_state=True)
    with Work(call, number) as work:
        one = timed(session, clock=lambda: work.time)
    low, high = range_of(forwards, one)
    with Work(call, number) as work:
        measured = profile_run(open_run(SPIKY), settings, tmp_path / "out")
    assert measured.computed == 3
    assert low <= work.time / 3 <= high
    assert high < 8 * low + 2 * cost.PREPARING, "a range that says something"


def test_the_share_that_fewer_rows_do_not_shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of a + b rows: with half the rows, what is left of b tells a."""
    session = session_of(ProfileSettings(rows=64, device="cpu"))
    now = [0.0]

    def passes(fixed: float, each: float) -> None:
        def evaluate(module: Any, tokens: torch.Tensor, labels: Any) -> None:
            now[0] += fixed + each * len(tokens)

        monkeypatch.setattr(cost, "order_of", lambda _: None)
        monkeypatch.setattr(cost, "share_behind", lambda *_: 1.0)
        monkeypatch.setattr(cost, "evaluate", evaluate)
        monkeypatch.setattr(cost, "exact_graph", lambda *_, **__: None)
        monkeypatch.setattr(cost, "block_products", lambda *_: None)

    rows = min(session.memory.rows, 64)
    for fixed, each, share in ((0.0, 1.0, 0.0), (64.0, 0.0, 1.0), (float(rows), 1.0, 0.5)):
        passes(fixed, each)
        one = timed(session, clock=lambda: now[0])
        assert one.fixed == pytest.approx(share) and one.low == one.seconds == one.high
    narrow, wide = (range_of(100, cost.Timed(1.0, 1.0, 1.0, fixed)) for fixed in (0.0, 1.0))
    assert narrow[0] == wide[0] and narrow[1] < wide[1]


def test_a_busy_machine_makes_the_range_wider() -> None:
    calm = range_of(100, cost.Timed(1.0, 1.0, 1.0, 0.2))
    busy = range_of(100, cost.Timed(2.0, 1.0, 4.0, 0.2))
    assert busy[0] == calm[0] and busy[1] > 3 * calm[1]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.6, "less than 1 s a checkpoint, up to 6 s for"),
        (2.1, 7.8, "2 to 8 s a checkpoint, 21 to 78 s for"),
        (60, 100, "1 to 2 min a checkpoint, 10 to 17 min for"),
        (3_000, 3_010, "about 50 min a checkpoint, 8.3 to 8.4 h for"),
        (0.2, 20, "up to 20 s a checkpoint, up to 3 min for"),
    ],
)
def test_the_range_is_told_no_finer_than_it_is_known(low: float, high: float, said: str) -> None:
    told = {
        "run": "a", "out": "reports/a", "checkpoints": 12, "cached": 2, "tier": "curvature", "layers": 3, "rows": 4,
        "parameters": 9, "tokens": 32, "device": "cpu", "forwards": 100.0, "peak_bytes": 1, "missing": (),
        "seconds": low, "seconds_low": low, "seconds_high": high,
    }  # fmt: skip
    assert said in plan_text(told)
    assert "not foreseen" in plan_text(told | {"forwards": 0.0})
