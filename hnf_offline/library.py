"""The verbs for notebooks and programs: a run in, tables and figures out, nothing shown and nothing printed.

import hnf_offline as hnf

run = hnf.open_run("runs/gpt")
profile = hnf.profile(run)      # profile.table is a polars DataFrame
report = hnf.report(run)        # report.spikes, report.alarms, report.figures(), report.save()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from hnf_offline.findings import Findings
    from hnf_offline.profile.settings import ProfileSettings, Progress
    from hnf_offline.run.records import Run

#: Height of a report within a notebook, in pixels: its first screen.
_HEIGHT = 760


@dataclass(frozen=True, slots=True, repr=False)
class ProfiledRun:
    """What was measured of a run.

    Attributes:
        run: the run; checkpoints that could not be measured are among its `skipped`.
        table: the long table: step, layer, kind, depth, quantity, value, low, high, certified, batch, source.
        folder: where the table and its parts lie, so that they are measured once.
    """

    run: Run
    table: pl.DataFrame
    folder: Path

    def series(self, quantity: str, layer: str = "") -> pl.DataFrame:
        """Pick one quantity of one layer.

        Args:
            quantity: its name in the catalogue.
            layer: module path, "" for the whole model.

        Returns:
            step, value, low, high, certified, by step.

        Raises:
            KeyError: if that was not measured there; it says what was.
        """
        import polars as pl

        rows = self.table.filter((pl.col("quantity") == quantity) & (pl.col("layer") == layer))
        if rows.is_empty():
            layers = self.table.filter(pl.col("quantity") == quantity)["layer"].unique().sort().to_list()
            there = f"only in {', '.join(layers[:5])}" if layers else "nowhere in this run"
            raise KeyError(f"{quantity} was measured {there}")
        return rows.select("step", "value", "low", "high", "certified").sort("step")

    def __repr__(self) -> str:
        steps = self.table["step"].n_unique()
        return (
            f"<profile of {self.run.name}: {steps} checkpoints, {self.table['layer'].n_unique()} layers, "
            f"{self.table['quantity'].n_unique()} quantities, {self.table.height} rows>"
        )

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self)[1:-1])}</p>{self.table._repr_html_()}"


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What was found in a run.

    Attributes:
        run: the run.
        findings: everything the page says, as records; `findings.to_json()` is findings.json.
        profile: the long table.
        folder: where `save` writes by itself.
    """

    run: Run
    findings: Findings
    profile: pl.DataFrame
    folder: Path

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return f"{self.findings.verdict['word']}: {self.findings.verdict['sentence']}"

    @property
    def spikes(self) -> pl.DataFrame:
        """The loss spikes, one row each."""
        return _records(self.findings.spikes)

    @property
    def alarms(self) -> pl.DataFrame:
        """What a live monitor would have said, one row each."""
        return _records(self.findings.alarms)

    @property
    def relations(self) -> pl.DataFrame:
        """How well each rule announced the spikes, beside chance and the baselines."""
        return _records(self.findings.relations)

    @property
    def log(self) -> pl.DataFrame | None:
        """Rows of the training log, None where the run has none."""
        return None if self.run.log is None else self.run.log.rows

    def figures(self) -> dict[str, Figure]:
        """Draw every panel of the page.

        Returns:
            Matplotlib figures by name; none is shown.
        """
        from hnf_offline.report.page import drawn_figures, panels

        return dict(drawn_figures(panels(self.findings, self.log, self.profile)))

    def save(self, folder: Path | str | None = None) -> Path:
        """Write the page, its pictures and findings.json.

        Args:
            folder: where; `self.folder` by itself. Never inside a run, and never over files of other origin.

        Returns:
            Path of the page.
        """
        from hnf_offline.output import output_folder
        from hnf_offline.report.page import write_report

        out, _ = output_folder(Path(folder) if folder is not None else self.folder, (self.run,))
        return write_report(self.findings, self.log, self.profile, out)

    def __repr__(self) -> str:
        from hnf_offline.report.terminal import summary

        return summary(self.findings, width=100)

    def _repr_html_(self) -> str:
        from hnf_offline.report.page import panels, report_page

        page = report_page(
            self.findings,
            panels(self.findings, self.log, self.profile),
            self.log,
            self.profile,
            command="",
            files={},
            drawn=(),
        )
        # Within its own document the page keeps its styles to itself, and its rule that nothing is fetched.
        return (
            f'<iframe title="{escape(self.verdict, quote=True)}" srcdoc="{escape(page, quote=True)}" '
            f'sandbox="allow-scripts" style="width:100%;height:{_HEIGHT}px;border:0"></iframe>'
        )


def profile(
    run: Run | Path | str,
    settings: ProfileSettings | None = None,
    *,
    out: Path | str | None = None,
    model: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ProfiledRun:
    """Measure every checkpoint of a run; what was measured before is taken from the folder.

    Args:
        run: what `open_run` gave, or its path.
        settings: what to measure; `ProfileSettings()` by itself.
        out: folder for the results; `reports/<name>` by itself, never inside the run.
        model: `package.module:function` that builds the model.
        on_progress: called after every checkpoint.

    Returns:
        The run and its long table.
    """
    from hnf_offline.pipeline import measure
    from hnf_offline.profile.settings import ProfileSettings

    run, folder = _opened(run, out)
    measured = measure(run, settings or ProfileSettings(), folder, model=model, on_progress=on_progress)
    return ProfiledRun(measured.run, measured.table, folder)


def report(
    run: Run | Path | str,
    settings: ProfileSettings | None = None,
    *,
    out: Path | str | None = None,
    model: str | None = None,
    rule: str = "robust",
    zoom: bool = False,
    prove: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Check and profile a run and say what went wrong in it. Writes the profile; the page only with `save`.

    Args:
        run: what `open_run` gave, or its path.
        settings: what to measure; `ProfileSettings()` by itself.
        out: folder for the results; `reports/<name>` by itself, never inside the run.
        model: `package.module:function` that builds the model.
        rule: name of the spike rule.
        zoom: retrain and measure step by step before spikes.
        prove: retrain with the advice that is given.
        on_progress: called after every checkpoint.

    Returns:
        The report.
    """
    from hnf_offline.check import check_run
    from hnf_offline.pipeline import analyse
    from hnf_offline.profile.settings import ProfileSettings

    run, folder = _opened(run, out)
    chosen = settings or ProfileSettings()
    checked = check_run(run, cheap=True, initial=True, model=model, device=chosen.device)
    done = analyse(
        run, chosen, folder, rule=rule, model=model, zoom=zoom, prove=prove,
        on_progress=on_progress,
    )  # fmt: skip
    return Report(done.run, checked.told(done.findings), done.profile, folder)


def _opened(run: Run | Path | str, out: Path | str | None) -> tuple[Run, Path]:
    from hnf_offline.output import output_folder
    from hnf_offline.pipeline import open_input
    from hnf_offline.run.records import Run

    opened = run if isinstance(run, Run) else open_input(run)
    return opened, output_folder(None if out is None else Path(out), (opened,))[0]


def _records(records: Sequence[Any]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame([asdict(one) for one in records], infer_schema_length=None)
