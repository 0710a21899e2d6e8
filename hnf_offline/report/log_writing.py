"""Writing what was found in a log: spikes.json and spikes.png, both or neither."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.findings import LogFindings
from hnf_offline.report.files import strict_json, whole, write_text

if TYPE_CHECKING:
    import polars as pl


def write_log_findings(findings: LogFindings, rows: pl.DataFrame, out: Path) -> tuple[Path, Path]:
    """Write spikes.json and spikes.png into a folder; other files there are left alone.

    Args:
        findings: what was found.
        rows: the rows of the log.
        out: the folder, made where it is not there.

    Returns:
        The paths of the picture and of the document.
    """
    from hnf_offline.report.figures import save
    from hnf_offline.report.log_picture import log_figure

    with whole(out, figures=False) as scratch:
        save(log_figure(findings, rows), scratch / "spikes.png")
        write_text(scratch / "spikes.json", strict_json(findings.to_json()))
    return out / "spikes.png", out / "spikes.json"
