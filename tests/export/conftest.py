"""A report on disk whose every number is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.report import write_report
from tests.report import made


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made.spike_run()
    out = tmp_path_factory.mktemp("export") / "gpt"
    page = write_report(run.findings, run.log, run.profile, out)
    run.profile.write_parquet(out / "profile.parquet")
    return page.parent
