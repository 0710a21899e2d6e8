"""`hnf env`: what to paste into a question or a bug report."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hnf_offline.cli.app import verb
from hnf_offline.options import Json
from hnf_offline.printing import emit, emit_json

#: What a profile or a report depends on, then what is only used where it is there.
NEEDED = (
    "torch",
    "safetensors",
    "polars",
    "matplotlib",
    "ruptures",
    "numpy",
    "scipy",
    "typer",
    "jinja2",
    "rich",
)
OPTIONAL = (
    "transformers",
    "lightning",
    "tensorboard",
    "fsspec",
    "accelerate",
    "peft",
    "mlflow-skinny",
    "wandb",
)


@verb("hnf env", "hnf env --json")
def env(as_json: Json = False) -> None:
    """Print versions and devices, for a question or a bug report.

    Names no path, no host and no user; of environment variables only which of HNF_* are set.
    """
    told = environment()
    if as_json:
        return emit_json({"schema": 1, **told})
    lines = [
        f"hnf_offline   {told['hnf_offline']}",
        f"python        {told['python']}",
        f"system        {told['system']}, {told['cores']} cores",
        *(f"{name:<13} {number}" for name, number in told["packages"].items()),
        f"threads       {told['threads']}",
        *(f"device        {device}" for device in told["devices"]),
        f"set           {', '.join(told['set']) or 'none of HNF_*'}",
    ]
    return emit("\n".join(lines))


def environment() -> dict[str, Any]:
    """Collect versions and devices.

    Returns:
        Versions, cores, threads, devices, and the names of our environment variables that are set.
    """
    import torch

    devices = ["cpu"]
    for number in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(number)
        devices.append(f"cuda:{number} {of.name}, {of.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    found = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    return {
        "hnf_offline": version("hnf_offline"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: number for name, number in found.items() if number or name in NEEDED},
        "threads": torch.get_num_threads(),
        "devices": devices,
        "set": sorted(name for name in os.environ if name.startswith("HNF_")),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
