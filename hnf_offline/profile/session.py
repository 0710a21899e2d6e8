"""What stays the same over all checkpoints of a profile: device, module, layers, rows, memory plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from hnf_offline.errors import AmbiguousOptimizerError, InputError, UsageError, UserError
from hnf_offline.linalg.stopping import ACCURACIES
from hnf_offline.linalg.trace import FEWEST_PRODUCTS
from hnf_offline.profile.batch import ReplayBatch, choose_rows
from hnf_offline.profile.devices import choose_device, device_names
from hnf_offline.profile.heap import keep_freed_memory
from hnf_offline.profile.memory import MemoryPlan, free_bytes, plan_memory, saved_bytes
from hnf_offline.profile.settings import TIERS, ProfileSettings
from hnf_offline.profile.shards import content_hash
from hnf_offline.profile.suffix.calibration import ProductChoice
from hnf_offline.run.assumed import assumed_state
from hnf_offline.run.batches import describe, load_rows
from hnf_offline.run.model.build import build_model, vocabulary_size
from hnf_offline.run.model.layers import Layer, layers_of
from hnf_offline.run.model.loss import check_tokens
from hnf_offline.run.optimizer import OptimizerState, RawOptimizer, match_optimizer
from hnf_offline.run.records import Batches, Checkpoint, ModelSource, Run

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Session:
    """Everything a profile needs besides the checkpoints.

    Attributes:
        device: where.
        module: in eval mode, weights arbitrary.
        layers: its layers.
        batch: the rows that are replayed.
        training_batches: the same rows in batches of the training batch's size; one if that is not known.
        source: the batch file, for the rows of single steps.
        memory: how the rows are cut.
        identity: what the settings' key needs to know of model and rows.
        row_bytes: what one row keeps in a forward pass under the math kernel; 0 where that is not known.
        ordinary_bytes: what it keeps in training, under whatever kernel that takes.
        sharing: processes that share the free memory of the device.
        accuracy: of the settings, which decides how many vectors are held.
        products: how the layers' Hessian products are made, found out once.
    """

    device: torch.device
    module: nn.Module
    layers: tuple[Layer, ...]
    batch: ReplayBatch
    training_batches: tuple[ReplayBatch, ...]
    source: Batches
    memory: MemoryPlan
    identity: tuple[str, ...]
    row_bytes: int = 0
    ordinary_bytes: int = 0
    sharing: int = 1
    accuracy: str = "standard"
    products: ProductChoice = field(default_factory=ProductChoice)


def check_settings(settings: ProfileSettings) -> None:
    """Refuse settings that name nothing or cannot work.

    Raises:
        UsageError: with the values that are possible.
    """
    if settings.tier not in TIERS:
        raise UsageError(f"tier {settings.tier!r} is unknown", remedy=f"use one of {', '.join(TIERS)}")
    if settings.dtype not in _DTYPES:
        raise UsageError(
            f"dtype {settings.dtype!r} cannot carry second derivatives", remedy=f"use {' or '.join(_DTYPES)}"
        )
    if settings.accuracy not in ACCURACIES:
        raise UsageError(
            f"accuracy {settings.accuracy!r} is unknown", remedy=f"use one of {', '.join(ACCURACIES)}"
        )
    if settings.every < 1 or (settings.rows is not None and settings.rows < 1):
        raise UsageError("--every and --rows must be at least 1")
    if settings.traces and settings.traces < FEWEST_PRODUCTS:
        raise UsageError(
            f"--traces {settings.traces} leaves no error estimate",
            remedy=f"give each layer {FEWEST_PRODUCTS} products or more, or 0 for no traces",
        )
    device_names(settings.device)


#: Parameters that any run may have besides those in its files.
_SMALL_MODEL = 10_000_000


def open_session(
    run: Run, settings: ProfileSettings, model_factory: str | None = None, *, sharing: int = 1
) -> Session | None:
    """Build the module and choose the rows.

    Args:
        run: the run directory's records.
        settings: which rows, where, in what precision; of several devices the first.
        model_factory: `package.module:function` instead of the run's own model.
        sharing: processes that share the free memory of the device, this one included.

    Returns:
        The session; None where the run has no model or no batches, so that only weights can be looked at.

    Raises:
        UsageError: if `--layers` matches nothing.
    """
    keep_freed_memory()
    source = run.model
    if model_factory is not None:
        source = ModelSource("factory", {} if source is None else source.config, factory=model_factory)
    batches = run.batches
    if settings.replay is not None:
        batches = _replay_file(settings.replay)
    if source is None or batches is None:
        return None
    device = choose_device(settings.device)
    module = build_model(
        source, device=device, dtype=_DTYPES[settings.dtype], most_parameters=most_parameters(run)
    )
    layers = layers_of(module)
    if settings.layers is not None and not any(fnmatchcase(layer.path, settings.layers) for layer in layers):
        raise UsageError(
            f"--layers {settings.layers!r} matches none of {len(layers)} layers",
            remedy=f"the first ones are {', '.join(layer.path for layer in layers[:3])}",
        )
    every_row = settings.replay is not None and settings.rows is None
    rows = tuple(range(batches.rows)) if every_row else choose_rows(batches, settings.rows)
    tokens, labels = load_rows(batches, rows)
    check_tokens(tokens, vocabulary_size(module))
    batch = ReplayBatch.of(
        tokens,
        labels,
        f"the first {len(rows)} of {batches.rows} rows of {batches.path.name}"
        if len(rows) < batches.rows
        else f"all {len(rows)} rows of {batches.path.name}",
    )
    row_bytes, ordinary_bytes = _bytes_of_a_row(
        module, tokens[:1].to(device), None if labels is None else labels[:1].to(device), batches
    )
    training_batches = batch.training_batches(batches.rows_per_step or 0)
    memory = plan_memory(
        row_bytes,
        len(rows),
        bytes_of_parameters(module),
        free_bytes(device) // sharing,
        ordinary_bytes=ordinary_bytes,
        accuracy=settings.accuracy,
        batch=len(training_batches[0].tokens),
    )
    shape = json.dumps([[name, list(value.shape)] for name, value in module.named_parameters()])
    described = [source.kind, source.factory, dict(source.config)]
    if source.adapter is not None:
        described += [dict(source.adapter.settings), content_hash(source.adapter.base_files)]
    model = hashlib.blake2b(
        (json.dumps(described, sort_keys=True, default=str) + shape).encode(), digest_size=16
    )
    identity = (
        model.hexdigest(),
        batch.digest,
        repr(run.optimizer),
        *(one.digest for one in training_batches),
    )
    return Session(
        device,
        module,
        layers,
        batch,
        training_batches,
        batches,
        memory,
        identity,
        row_bytes,
        ordinary_bytes,
        sharing,
        settings.accuracy,
    )


def bytes_of_parameters(module: nn.Module) -> int:
    """Add up the parameters of a module.

    Returns:
        Bytes, in the dtype they have.
    """
    return sum(value.numel() * value.element_size() for value in module.parameters())


def memory_now(session: Session) -> MemoryPlan:
    """Read anew how much memory of a GPU is free: others may have come or gone since the session was opened.

    Elsewhere the plan stays, so that the sums of all checkpoints are taken in one order.

    Returns:
        The plan for the next checkpoint.
    """
    if session.device.type != "cuda" or not session.row_bytes:
        return session.memory
    return plan_memory(
        session.row_bytes,
        len(session.batch.tokens),
        bytes_of_parameters(session.module),
        free_bytes(session.device) // session.sharing,
        ordinary_bytes=session.ordinary_bytes,
        accuracy=session.accuracy,
        batch=len(session.training_batches[0].tokens),
    )


def most_parameters(run: Run) -> int:
    """Bound the parameters that a run's checkpoints can hold, from the size of their files.

    Returns:
        A number that no honest model of this run has more than.
    """
    # An element has a byte or more; tied weights are counted once in a file and perhaps twice in the module.
    sizes = [
        sum(file.stat().st_size for file in checkpoint.weight_files if file.is_file())
        for checkpoint in run.checkpoints
    ]
    return 2 * max(sizes, default=0) + _SMALL_MODEL


def _bytes_of_a_row(
    module: nn.Module, tokens: Tensor, labels: Tensor | None, batches: Batches
) -> tuple[int, int]:
    # The first time that model and batches meet.
    try:
        return saved_bytes(module, tokens, labels), saved_bytes(module, tokens, labels, plain=False)
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise InputError(
            "one row of it does not fit into the memory of the device",
            path=batches.path,
            remedy="use --device cpu, or shorter rows through --replay",
        ) from error
    except Exception as error:  # a user's model can fail in any way on rows it was not made for
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"the model does not run on a row of it ({type(error).__name__}: {reason})",
            path=batches.path,
            remedy="check that config.json or run.toml describes the model, or give its batches with --replay",
        ) from error


def _replay_file(path: Path) -> Batches:
    # Which step its rows belong to is another file's knowledge: they are replayed, not checked against the log.
    return replace(describe(path), rows_per_step=None, steps=None)


def optimizer_of(
    session: Session, run: Run, checkpoint: Checkpoint, raw: RawOptimizer | None
) -> tuple[OptimizerState | None, str]:
    """Assign a checkpoint's optimizer state to the module's parameters.

    Without any, what run.toml and the log say of the optimizer; why that may be nothing is told once for the run.

    Returns:
        The state and "", or None and the reason why there is none.
    """
    named = [(name, tuple(value.shape)) for name, value in session.module.named_parameters()]
    if raw is None and checkpoint.optimizer_files:
        return None, ""  # damaged: told where it was read
    if raw is None:
        return assumed_state(run, [name for name, _ in named], checkpoint.step)[0], ""
    try:
        path = checkpoint.optimizer_files[0] if checkpoint.optimizer_files else checkpoint.path
        return match_optimizer(raw, named, run.optimizer, path), ""
    except AmbiguousOptimizerError as error:
        return None, str(error)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off while profiling: second derivatives do not survive ten bits of mantissa.

    Yields:
        Nothing.
    """
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
