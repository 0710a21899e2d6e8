# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A walk through the library
#
# The spiky sample run, from its files to what went wrong in it. Run it in the folder of the repository: as a notebook
# (VS Code opens the cells as they are, Jupyter through jupytext), or as a script. It takes about half a minute on one
# core and writes into a temporary folder only.

# %%
import tempfile
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

import hnf_offline as hnf

try:
    REPOSITORY = Path(__file__).resolve().parents[1]
except NameError:  # in a notebook: the folder it runs in, or the one above
    REPOSITORY = next(
        folder for folder in (Path.cwd(), Path.cwd().parent) if (folder / "sample_runs").is_dir()
    )
workshop = tempfile.TemporaryDirectory(prefix="hnf-gallery-")
OUT = Path(workshop.name)

# %% [markdown]
# ## What is on disk
#
# Nothing is configured: checkpoints, log, rows, model and optimizer are found. What is missing, or could not be read,
# is in `run.missing` and `run.skipped`.

# %%
run = hnf.open_run(REPOSITORY / "sample_runs" / "spiky")
print(f"{len(run.checkpoints)} checkpoints, steps {run.checkpoints[0].step} to {run.checkpoints[-1].step}")
print(f"missing: {[one.what for one in run.missing]}, skipped: {len(run.skipped)}")
run.log.rows.head()

# %% [markdown]
# ## Measure
#
# The tier `stability` measures *S*, the learning rate over the largest that would be stable, and the direction that
# becomes unstable first. The fifteen checkpoints around the last spike are enough here.

# %%
settings = hnf.ProfileSettings(tier="stability", first_step=780, last_step=960, device="cpu")
profile = hnf.profile(run, settings, out=OUT / "spiky")
profile

# %% [markdown]
# The long table has a row for every measured value. One quantity of the whole model:

# %%
ratio = profile.series("hessian.stability_ratio")
ratio.with_columns((1 / pl.col("value")).alias("headroom"))

# %% [markdown]
# *S* fell after the spike at 759, and climbs to 1 before the one at 917. The same in a picture of one's own, the loss
# above it:

# %%
figure = Figure(figsize=(8, 4), layout="constrained")
above, below = figure.subplots(2, sharex=True)
near = run.log.rows.filter(pl.col("step").is_between(780, 960))
above.semilogy(near["step"], near["loss"])
above.set_ylabel("loss")
below.plot(ratio["step"], ratio["value"], marker="o")
below.axhline(1, linestyle="--", color="black")
below.set(xlabel="step", ylabel="S")
figure

# %% [markdown]
# ## Where the unstable direction lives
#
# The share of it in every layer at the last checkpoint before the spike. Shares sum to 1; what tells is the change
# against the run's own past, which the report looks at.

# %%
share = (
    profile.table
    .filter((pl.col("quantity") == "hessian.unstable_mass") & (pl.col("step") == 912))
    .select("layer", "value")
    .sort("value", descending=True)
)
share

# %% [markdown]
# ## What it means
#
# `hnf.report` finds the spikes, says what a live monitor would have said and when, and scores that beside chance. What
# was measured above is not measured again.

# %%
report = hnf.report(run, settings, out=OUT / "spiky")
print(report.verdict)

# %%
report.spikes.select("id", "onset", "peak", "loss_before", "loss_peak", "recovery_steps", "offset")

# %% [markdown]
# Alarms that warn, of the whole model. `known_at` is the step at which they could have been said, without looking
# ahead:

# %%
warnings = report.alarms.filter((pl.col("severity") != "info") & (pl.col("layer") == ""))
warnings.select("known_at", "rule", "quantity", "value", "projected_step", "action")

# %% [markdown]
# One spike is too few to test a rule on, and `p_value` says so: it cannot be small however good the rule is. Read
# recall and precision beside their chance values.

# %%
report.relations.select(
    "rule", "n_alarms", "n_spikes", "recall", "chance_recall", "precision", "chance_precision", "p_value"
).head()

# %% [markdown]
# ## Pictures and the page
#
# Figures are matplotlib's, returned and not shown. `report` alone at the end of a cell shows the whole page.

# %%
figures = report.figures()
print(", ".join(figures))
figures["key_picture"]

# %%
page = report.save()
print(page.relative_to(OUT), f"{page.stat().st_size / 1e3:.0f} kB")

# %% [markdown]
# ## Elsewhere
#
# The same numbers for a tracker (`hnf export` on the command line; extra `tensorboard`), as files. Nothing is sent.

# %%
from hnf_offline.export import export

folder, exported = export(page.parent, "tensorboard", OUT / "tensorboard", quantities="hessian.*")
print(
    f"{exported.scalars.height} scalars of {exported.scalars['tag'].n_unique()} tags, {len(exported.texts)} alarms"
)

# %% [markdown]
# From here: `hnf zoom` and `hnf whatif` retrain the steps before a spike, as they were and under other policies
# (docs/how-to/zoom-and-what-if.md); docs/catalogue.md lists everything that can be measured.

# %%
workshop.cleanup()
