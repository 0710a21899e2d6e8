"""Recording a training run: as a whole, or as a black box that keeps its last steps.

    recorder = Recorder("runs/mine", every=100, model={"model_type": "gpt", ...}, training={"seed": 0})
    recorder.save_batches(tokens)                       # rows to replay later
    for step in range(1, steps + 1):
        ...                                             # forward, backward, optimizer.step(), scheduler.step()
        recorder.record(step, module, optimizer, loss=loss, grad_norm=norm)

Written: `config.json`, `log.jsonl` (one line a step), `batches.safetensors`, and for every recorded step
`checkpoints/step-000100/` with `model.safetensors` and `optimizer.safetensors` (state by parameter name).

    box = FlightRecorder("boxes/mine", module, optimizer, keep=128, state_every=32)
    for tokens, labels in loader:
        with box.step(tokens, labels) as taken:
            ...                                         # forward, backward, optimizer.step(), scheduler.step()
            taken.done(loss=loss, grad_norm=norm)

Written, when something goes wrong: a folder of the same layout with everything an exact replay needs.
"""

from __future__ import annotations

from hnf_offline.record.files import FORMAT
from hnf_offline.record.flight import FlightRecorder
from hnf_offline.record.optimizer import describe_optimizer
from hnf_offline.record.recorder import Recorder

__all__ = ["FORMAT", "FlightRecorder", "Recorder", "describe_optimizer"]
