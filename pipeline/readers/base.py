"""What every annotation reader gives: rows of SMPL labels with their original fields.

Camera frame x right, y down, z forward; metres and radians (docs/architecture.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.given_labels import GivenSkel


@dataclass(frozen=True)
class FieldSpec:
    """An original column: `dtype` as stored in the file, `shape` of one row."""

    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AnnotationRows:
    """Rows `start` to `stop` of a source, in source order; a rejected row is here too.

    source_row: (n,) int64 row in the label file.
    poses: (n, 72) float64 SMPL axis-angle, radians, the first 3 the global orientation.
    betas: (n, 10) float64 SMPL shape.
    transl: (n, 3) float64 metres, added to the SMPL output.
    smpl_gender: (n,) str, body model of the label: neutral, male or female.
    skel_gender: (n,) str, body model wanted: male or female.
    fields: original columns, (n, ...) each, values and dtype as in the file.
    reasons: (n,) str, empty for an accepted row, else why not (`pipeline.row_checks.REASONS`).
    skel: SKEL labels, where they are taken as they are (`given_skel`).
    """

    source_row: np.ndarray
    poses: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    smpl_gender: np.ndarray
    skel_gender: np.ndarray
    fields: dict[str, np.ndarray]
    reasons: np.ndarray
    skel: GivenSkel | None = None

    def with_skel(self, skel: GivenSkel, reasons: np.ndarray) -> AnnotationRows:
        """The same rows with SKEL labels, and what is wrong with these."""
        return replace(self, skel=skel, reasons=reasons)


class AnnotationSource(ABC):
    """An open label file. Cheap to open, picklable, holds no rows.

    format: name of the reader. path: what was opened. files: every file the labels come from, in
    order, for provenance. rows: number of rows. fields: original columns, in file order.
    up: which way is up, one of `pipeline.up_axis.UPS`; None: not stated.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    rows: int
    fields: dict[str, FieldSpec]
    up: str | None = None

    @abstractmethod
    def read(self, start: int, stop: int) -> AnnotationRows:
        """Rows start <= row < stop. Raises InputError when the file cannot be read, IndexError for
        a range outside 0..rows."""

    @abstractmethod
    def check(self) -> None:
        """Read every byte once: checksums, then what only all rows can tell (the unit of `scale`).

        Done in planning; `read` does not repeat it. Raises InputError naming file and member.
        """
