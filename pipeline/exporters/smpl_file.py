"""The format `smpl`: one moving person as a `.smpl` file of SKEL (smplVersion 5).

Source: docs/reference/label-formats.md#smpl-file: a flat npz of int32 and float32.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
    recorded_rate,
)
from pipeline.errors import UsageError
from pipeline.exporters.base import Exported, ExportOptions, Selection
from pipeline.output_files import write_bytes
from pipeline.readers.base import SEQUENCE

CODEC_VERSION = 2
SKEL_VERSION = 5
GENDERS = ("neutral", "male", "female")
"""What `gender` counts."""


class SmplFileOptions(ExportOptions):
    """rows: `A:B`. sequence: name of one. rate: frames a second, for data that does not say."""

    rows: RowRange | None = None
    sequence: str | None = None
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class SmplFile:
    """The format `smpl`. Axes are those of the dataset; members are compressed."""

    name: ClassVar[str] = "smpl"
    options: ClassVar[type[ExportOptions]] = SmplFileOptions

    def write(
        self, dataset: Dataset, path: Path, options: SmplFileOptions, models: Path | None
    ) -> Exported:
        del models
        if options.rejected == "keep":
            raise UsageError("--rejected keep: rows without a fit have no pose to export")
        selection = Selection.of(dataset, options)
        rows = chosen_rows(dataset, selection.kept, options.rows, options.sequence)
        poses, betas, trans, genders = (
            dataset.take([name], rows)[name] for name in (*SKEL_COLUMNS, "skel_gender")
        )
        _check_one_shape(dataset, rows, betas, genders)
        rate = options.rate or recorded_rate(dataset, rows) or DEFAULT_RATE
        members: dict[str, Any] = {
            "codecVersion": np.int32(CODEC_VERSION),
            "smplVersion": np.int32(SKEL_VERSION),
            "gender": np.int32(GENDERS.index(str(genders[0]))),
            "shapeParameters": betas[0].astype("<f4"),
            "frameCount": np.int32(len(rows)),
            "frameRate": np.float32(rate),
            "bodyTranslation": trans.astype("<f4"),
            "bodyPose": poses.astype("<f4"),
        }
        data = io.BytesIO()
        np.savez_compressed(data, **members)
        write_bytes(path, data.getvalue())
        gaps = int(rows[-1] - rows[0] + 1 - len(rows))
        without = f"{gaps} frames without a fit are left out, the others close up; " if gaps else ""
        return Exported(
            path=path,
            rows=len(rows),
            left_out=selection.left_out,
            columns=tuple(members),
            attention=f"{without}smplVersion 5: a reader needs SKEL",
        )


def _check_one_shape(
    dataset: Dataset, rows: NDArray[np.int64], betas: NDArray, genders: NDArray
) -> None:
    """Raises UsageError where rows are not one person with one shape."""
    check_one_person(dataset, rows)
    if (betas != betas[0]).any() or (genders != genders[0]).any():
        raise UsageError(
            f"{dataset.directory}: the shape changes within {dataset[SEQUENCE][rows[0]]}; one file "
            f"holds one shape: choose with --rows, e.g. {rows[0]}:{rows[0] + 1}"
        )
