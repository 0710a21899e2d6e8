"""Seeded damage: a case number says which bytes, links and names a hostile run has, today and next year."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from . import specimens
from .cases import Case, Rng
from .damage_bytes import damage_bytes
from .damage_files import damage_files
from .damage_json import damage_config, damage_json
from .damage_manifest import damage_manifest
from .damage_pickles import damage_dcp, damage_pickle, holds_pickles
from .damage_text import damage_text, is_text
from .damage_zip import damage_npz, damage_zip, is_zip

SEED = 4

#: Kind -> (what does it, which files it fits, how often it comes up).
KINDS: Mapping[str, tuple[Callable[[Rng, Case, str, str], str], Callable[[str], bool], int]] = {
    "bytes": (damage_bytes, lambda path: True, 5),
    "json": (damage_json, lambda path: path.endswith((".json", ".jsonl", ".safetensors")), 5),
    "zip": (damage_zip, is_zip, 4),
    "npz": (damage_npz, lambda path: path.endswith((".npz", ".npy")), 4),
    "pickle": (damage_pickle, holds_pickles, 5),
    "dcp": (damage_dcp, lambda path: path.endswith(".metadata"), 5),
    "text": (damage_text, is_text, 5),
    "files": (damage_files, lambda path: True, 4),
    "manifest": (damage_manifest, lambda path: True, 1),
    "config": (damage_config, lambda path: path.endswith("config.json"), 2),
}


def case(number: int, marker: str = "/tmp/hnf-hostile-canary") -> Case:
    """Make a case.

    Args:
        number: any whole number from 0.
        marker: the file that a canary would make.

    Returns:
        The case.
    """
    from . import specials

    if number >= specials.FIRST:
        return specials.case(number, marker)
    rng = np.random.default_rng([SEED, number])
    names = specimens.names()
    one = specimens.specimen(names[number % len(names)])
    made = Case(number, one.name, "", "", dict(one.files), one.target)
    paths = sorted(made.files)
    kinds = [
        kind for kind, (_, fits, weight) in KINDS.items() for _ in range(weight) if any(map(fits, paths))
    ]
    made.kind = kinds[rng.integers(len(kinds))]
    apply, fits, _ = KINDS[made.kind]
    fitting = [path for path in paths if fits(path)]
    path = fitting[rng.integers(len(fitting))]
    made.what = f"{path}: {apply(rng, made, path, marker)}"
    return made
