"""What every annotation reader gives: rows of SMPL labels with their original fields.

Camera frame x right, y down, z forward; metres and radians (docs/architecture.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pipeline.given_labels import GivenSkel


@dataclass(frozen=True)
class FieldSpec:
    """An original column: `dtype` as stored in the file, `shape` of one row."""

    dtype: np.dtype
    shape: tuple[int, ...]


SMPL = "smpl"
"""Body of labels that are SMPL's parameters."""
SEQUENCE = "sequence"
"""Column that says which rows are one motion."""
FRAME_RATES = ("mocap_framerate", "mocap_frame_rate", "frame_rate", "framerate", "fps")
"""Columns that hold the frames per second of a motion."""


@dataclass(frozen=True)
class BodyRows:
    """Labels of n rows that are another body than SMPL.

    body: its name (`smplh`, `smplx`, `mhr`, ... as `skel_fit.bodies` and maps call it).
    parameters: (n, ...) each, of the names and units of `skel_fit.bodies`; bare meshes are
    `vertices` (n, V, 3), metres, camera or world frame of the source.
    identity: (n,) int64, whose shape a row has: one number for one person in the whole source.
    """

    body: str
    parameters: dict[str, np.ndarray]
    identity: np.ndarray

    def take(self, rows: np.ndarray) -> BodyRows:
        """The listed rows."""
        some = {name: values[rows] for name, values in self.parameters.items()}
        return BodyRows(self.body, some, self.identity[rows])


def joined_bodies(rows: Sequence[AnnotationRows]) -> BodyRows | None:
    """The bodies of several ranges of rows, one after the other; None: they are SMPL's."""
    parts = [part.other for part in rows if part.other is not None]
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    parameters = {
        name: np.concatenate([part.parameters[name] for part in parts])
        for name in parts[0].parameters
    }
    return BodyRows(parts[0].body, parameters, np.concatenate([part.identity for part in parts]))


@dataclass(frozen=True)
class AnnotationRows:
    """Rows `start` to `stop` of a source, in source order; a rejected row is here too.

    source_row: (n,) int64 row in the label file.
    poses: (n, 72) float64 SMPL axis-angle, radians, the first 3 the global orientation.
    betas: (n, 10) float64 SMPL shape.
    transl: (n, 3) float64 metres, added to the SMPL output.
    smpl_gender: (n,) str, body model of the label: neutral, male or female.
    skel_gender: (n,) str, body model wanted: male or female; of another body than SMPL also
        `unknown`: the identity decides.
    fields: original columns, (n, ...) each, values and dtype as in the file.
    reasons: (n,) str, empty for an accepted row, else why not (`pipeline.row_checks.REASONS`).
    skel: SKEL labels, where they are taken as they are (`given_skel`).
    other: the labels, where they are not SMPL's; poses, betas and transl are NaN then.
    cameras: (n, 4, 4) float64, world -> camera, metres, where poses and transl are of the world and
        bodies are wanted in the camera; None: they are where they are wanted.
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
    other: BodyRows | None = None
    cameras: np.ndarray | None = None

    @property
    def body(self) -> str:
        """Name of the labels' body."""
        return SMPL if self.other is None else self.other.body

    def with_skel(self, skel: GivenSkel, reasons: np.ndarray) -> AnnotationRows:
        """The same rows with SKEL labels, and what is wrong with these."""
        return replace(self, skel=skel, reasons=reasons)


class AnnotationSource(ABC):
    """An open label file. Cheap to open, picklable, holds no rows.

    format: name of the reader. path: what was opened. files: every file the labels come from, in
    order, for provenance. rows: number of rows. fields: original columns, in file order.
    up: which way is up, one of `pipeline.up_axis.UPS`; None: not stated.
    recorded: options that plans name though nobody gave them: what this version of the reader
        takes, where others took something else.
    body: of the labels; another than SMPL's has `identities` and `vertices`.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    rows: int
    fields: dict[str, FieldSpec]
    up: str | None = None
    recorded: Mapping[str, str] = MappingProxyType({})
    body: str = SMPL

    def identities(self) -> np.ndarray:
        """(rows,) int64: whose shape each row has. Only for another body than SMPL."""
        raise TypeError(f"{self.path}: labels of SMPL have no identities")

    @property
    def vertices(self) -> int | None:
        """How many vertices a row of bare meshes has; None: labels are parameters."""
        return None

    @abstractmethod
    def read(self, start: int, stop: int) -> AnnotationRows:
        """Rows start <= row < stop. Raises InputError when the file cannot be read, IndexError for
        a range outside 0..rows."""

    def gender_pairs(self) -> set[tuple[str, str]] | None:
        """(smpl, skel) genders that accepted rows can have, or more; None: only `read` tells. Of
        another body than SMPL: always told, SKEL's also `unknown`."""
        return None

    @abstractmethod
    def check(self) -> None:
        """Read every byte once: checksums, then what only all rows can tell (the unit of `scale`).

        Done in planning; `read` does not repeat it. Raises InputError naming file and member.
        """
