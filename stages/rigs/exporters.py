"""The formats `glb` and `bvh`: one moving person of a dataset as a rig."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.columns import SKEL_COLUMNS
from pipeline.dataset import Dataset
from pipeline.dataset_rows import (
    DEFAULT_RATE,
    RowRange,
    check_one_person,
    chosen_rows,
    recorded_ground,
    recorded_rate,
)
from pipeline.errors import UsageError
from pipeline.exporters.base import Exported, ExportOptions, Selection
from pipeline.output_files import write_bytes
from pipeline.task import conversion_models
from skel_fit.anatomy import JOINT_NAMES
from skel_fit.models import BodyModels
from stages.drawing.viewer.bodies import Parameters
from stages.rigs.bvh import CHANNELS, bvh
from stages.rigs.glb import glb
from stages.rigs.rig import Rig, rig_of

MOST_FRAMES = 20_000
TO_Y_UP: dict[str, NDArray[np.float64]] = {
    "camera": np.diag([1.0, -1.0, -1.0]),
    "y-up": np.eye(3),
    "z-up": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
    "none": np.eye(3),
}
"""Rotation from the axes of the data to those of the files, y up."""


class RigOptions(ExportOptions):
    """rows: `A:B`. sequence: name of one. ground: axes of the data. rate: frames a second."""

    rows: RowRange | None = None
    sequence: str | None = None
    ground: Literal["auto", "camera", "y-up", "z-up", "none"] = "auto"
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class _Taken:
    """A rig, y up, and what it was made of."""

    rig: Rig
    rows: NDArray[np.int64]
    selection: Selection
    standin: bool


@dataclass(frozen=True)
class GlbExport:
    """The format `glb`."""

    name: ClassVar[str] = "glb"
    options: ClassVar[type[ExportOptions]] = RigOptions

    def write(
        self, dataset: Dataset, path: Path, options: RigOptions, models: Path | None
    ) -> Exported:
        taken = _taken(dataset, options, models)
        made = glb(
            taken.rig,
            str(dataset.attrs["subset"]),
            {
                "subset": dataset.attrs["subset"],
                "digest": dataset.attrs["digest"],
                "rows": f"{taken.rows[0]}:{taken.rows[-1] + 1}",
                "standin": taken.standin,
            },
        )
        write_bytes(path, made.data)
        return Exported(
            path=path,
            rows=len(taken.rig),
            left_out=taken.selection.left_out,
            columns=("skin", "bones", *JOINT_NAMES),
            attention=f"the file's skin is within {1000 * made.deviation[1]:.2f} mm of SKEL's",
        )


@dataclass(frozen=True)
class BvhExport:
    """The format `bvh`."""

    name: ClassVar[str] = "bvh"
    options: ClassVar[type[ExportOptions]] = RigOptions

    def write(
        self, dataset: Dataset, path: Path, options: RigOptions, models: Path | None
    ) -> Exported:
        taken = _taken(dataset, options, models)
        write_bytes(path, bvh(taken.rig).encode("ascii"))
        return Exported(
            path=path,
            rows=len(taken.rig),
            left_out=taken.selection.left_out,
            columns=JOINT_NAMES,
            attention=f"centimetres, y up; every joint has {CHANNELS}",
        )


def _taken(dataset: Dataset, options: RigOptions, models: Path | None) -> _Taken:
    if options.rejected == "keep":
        raise UsageError("--rejected keep: rows without a fit have no pose to export")
    selection = Selection.of(dataset, options)
    rows = chosen_rows(dataset, selection.kept, options.rows, options.sequence)
    check_one_person(dataset, rows)
    if len(rows) > MOST_FRAMES:
        raise UsageError(f"{len(rows)} frames; one file holds {MOST_FRAMES}: choose with --rows")
    ground = recorded_ground(dataset.plan) if options.ground == "auto" else options.ground
    bodies = BodyModels(conversion_models(dataset.plan, dataset.attrs["models_directory"], models))
    start, stop = int(rows[0]), int(rows[-1]) + 1
    poses, betas, transl = (
        dataset.read(name, start, stop)[rows - start].astype(np.float64) for name in SKEL_COLUMNS
    )
    gender = str(dataset.read("skel_gender", start, start + 1)[0])
    skel = bodies.model("skel", gender)
    given = Parameters(poses, betas, transl, (gender,) * len(rows))
    rate = options.rate or recorded_rate(dataset, rows) or DEFAULT_RATE
    rig = rig_of({gender: skel}, given, rate).turned(TO_Y_UP[ground])
    return _Taken(rig, rows, selection, skel.standin)
