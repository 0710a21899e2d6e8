"""One function a tracker; each imports its own library, and nothing leaves the machine."""

from __future__ import annotations

import os
from pathlib import Path

from hnf_offline.errors import MissingExtraError
from hnf_offline.export.measured import Exported

#: Longest text that trackers show whole.
_LONGEST = 4000


def tensorboard(exported: Exported, folder: Path, _final: Path) -> None:
    """Write an event file, with torch's own writer.

    Args:
        exported: what goes in.
        folder: an empty folder.
        _final: where it will lie in the end.

    Raises:
        MissingExtraError: if tensorboard is not there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "tensorboard", "--to tensorboard") from error
    writer = SummaryWriter(str(folder))
    try:
        for step, values in exported.by_step():
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
        for step, text in exported.texts:
            writer.add_text("alarms", text[:_LONGEST], step)
        writer.add_text("verdict", exported.verdict[:_LONGEST], 0)
    finally:
        writer.close()


def wandb(exported: Exported, folder: Path, _final: Path) -> None:
    """Write a W&B run, offline: `wandb sync` sends it where and when its owner wants.

    Args:
        exported: what goes in.
        folder: an empty folder.
        _final: where it will lie in the end.

    Raises:
        MissingExtraError: if wandb is not there.
    """
    os.environ |= {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    try:
        import wandb as library
    except ImportError as error:
        raise MissingExtraError("wandb", "wandb", "--to wandb") from error
    run = library.init(
        mode="offline",
        dir=str(folder),
        name=exported.name,
        project="hnf_offline",
        reinit="create_new",
        settings=library.Settings(x_disable_stats=True),
    )
    try:
        # Values carry the step of training: that of W&B counts rows and has to grow.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        for step, values in exported.by_step():
            run.log({"step": step, **values})
        for step, text in exported.texts:
            run.log({"step": step, "alarm": text[:_LONGEST]})
        run.summary["verdict"] = exported.verdict[:_LONGEST]
    finally:
        run.finish()


def mlflow(exported: Exported, folder: Path, final: Path) -> None:
    """Write an MLflow run into a store of files.

    Args:
        exported: what goes in.
        folder: an empty folder.
        final: where it will lie in the end: MLflow writes down where artifacts are.

    Raises:
        MissingExtraError: if mlflow is not there.
    """
    # Newer ones want a database where one does not ask for files, and tell their makers that they are used.
    os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError("mlflow", "mlflow", "--to mlflow") from error
    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    experiment = client.create_experiment("hnf_offline")
    run = client.create_run(experiment, run_name=exported.name, tags={"verdict": exported.verdict[:_LONGEST]})
    told = run.info.run_id
    for step, values in exported.by_step():
        metrics = [Metric(_allowed(tag), value, 0, step) for tag, value in values.items()]
        for first in range(0, len(metrics), _AT_ONCE):
            client.log_batch(told, metrics=metrics[first : first + _AT_ONCE])
    text = "".join(f"step {step}: {sentence}\n" for step, sentence in exported.texts)
    client.log_text(told, text, "alarms.txt")
    client.set_terminated(told)
    for described in folder.rglob("meta.yaml"):
        text = described.read_text(encoding="utf-8")
        described.write_text(
            text.replace(folder.resolve().as_uri(), final.resolve().as_uri()), encoding="utf-8"
        )


#: MLflow takes so many values in one call.
_AT_ONCE = 1000


def _allowed(tag: str) -> str:
    """MLflow allows letters, digits and _ - . space / : in names, and no name that is another's folder."""
    tag = tag if "/" in tag else f"{tag}/whole model"
    return "".join(one if one.isalnum() or one in "_-. /:" else "_" for one in tag)
