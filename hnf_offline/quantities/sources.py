"""What the four source documents list, measure by measure, and where each is here. Torch-free.

The documents are named by what they are about; numbers are those of the project's own list.
"""

from __future__ import annotations

from dataclasses import dataclass

from hnf_offline.quantities.monitoring_table import CATALOGUE
from hnf_offline.quantities.source_tables import EXPLOSION, PROFILER, RKSP, Line

#: Short name -> title of a source document.
DOCUMENTS = {
    "profiler": "Condition number profiler for transformer training",
    "rksp": "Predicting transformer training instability (residual Koopman spectral profiling)",
    "explosion": "Training stability fixes: gradient explosion prevention",
    "catalogue": "Training stability and monitoring: analysis and techniques",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure, check or technique of a source document.

    Attributes:
        document: key of `DOCUMENTS`.
        name: as the document calls it.
        quantities: entries of the catalogue.
        elsewhere: verbs of the program that have it.
        remark: what differs, or why it is nowhere.
    """

    document: str
    name: str
    quantities: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    remark: str = ""


def _of(document: str, measures: tuple[Line, ...]) -> tuple[Measure, ...]:
    """Read lines of name, what has it, and a remark; what has it are names of entries and of verbs, by commas."""
    read: list[Measure] = []
    for line in measures:
        found = [one.strip() for one in line[1].split(",") if one.strip()]
        read.append(
            Measure(
                document,
                line[0],
                tuple(one for one in found if not one.startswith("hnf ")),
                tuple(one for one in found if one.startswith("hnf ")),
                line[2] if len(line) > 2 else "",
            )
        )
    return tuple(read)


MEASURES: tuple[Measure, ...] = (
    *_of("profiler", PROFILER),
    *_of("rksp", RKSP),
    *_of("explosion", EXPLOSION),
    *_of("catalogue", CATALOGUE),
)


def measures_of(document: str) -> tuple[Measure, ...]:
    """Give what one source document lists.

    Returns:
        Its measures, in the document's order.
    """
    return tuple(measure for measure in MEASURES if measure.document == document)
