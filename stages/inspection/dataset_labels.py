"""The labels of a converted dataset with its SKEL bodies, as `audit` judges those of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.columns import SKEL_COLUMNS
from pipeline.dataset import Dataset
from pipeline.errors import InputError
from pipeline.readers.base import AnnotationRows
from pipeline.readers.given_skel import GivenSkelSource
from pipeline.readers.labels import LabelSource, Layout
from pipeline.rundir import RunDirectory
from pipeline.up_axis import turn_of
from pipeline.verify import find_source
from skel_fit.status import rejection_reasons


class Labels(Protocol):
    """What an audit judges: SMPL labels and SKEL bodies, row by row."""

    format: str
    path: Path
    rows: int

    @property
    def layout(self) -> Layout:
        """Which column is what."""
        ...

    def read(self, start: int, stop: int) -> AnnotationRows: ...


class DatasetLabels:
    """Rows of the label file that a dataset was converted from, with the bodies of the dataset.

    Raises InputError where the label file is not to be found, or has another axis up than cameras.
    """

    def __init__(self, dataset: Dataset, data_root: Path | None = None) -> None:
        if turn_of(dataset.plan) is not None:
            raise InputError(
                f"{dataset.directory}: its labels have z up and were turned; audit judges labels "
                "as they are (hmr-skel verify computes the errors of these rows again)"
            )
        source = find_source(RunDirectory(dataset.directory), dataset.plan, data_root)
        assert isinstance(source, LabelSource | GivenSkelSource)
        if source.layout.cam_ext:
            raise InputError(
                f"{dataset.directory}: its labels are of a world and were moved into cameras; "
                "audit judges labels as they are (hmr-skel verify computes the errors of these "
                "rows again)"
            )
        self._source, self._dataset = source, dataset
        self.format, self.path, self.rows = source.format, dataset.directory, len(dataset)
        columns = {name: f"result {name}" for name in SKEL_COLUMNS}  # no name of a label file's
        self._columns = columns
        self.layout: Layout = replace(
            source.layout,
            skel_poses=columns["skel_poses"],
            skel_betas=columns["skel_betas"],
            skel_trans=columns["skel_trans"],
        )

    def read(self, start: int, stop: int) -> AnnotationRows:
        """Rows start to stop; those that the conversion rejected are rejected here."""
        rows = self._source.read(start, stop)
        found = self._dataset.take((*SKEL_COLUMNS, "status"), range(start, stop))
        bodies = {self._columns[name]: found[name] for name in SKEL_COLUMNS}
        reasons = rejection_reasons(found["status"]) if stop > start else np.zeros(0, "<U1")
        return replace(rows, fields=rows.fields | bodies, reasons=reasons)
