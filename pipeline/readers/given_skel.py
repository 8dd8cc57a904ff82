"""A label file whose rows also bring the SKEL bodies that it holds."""

from __future__ import annotations

import numpy as np

from pipeline.errors import InputError
from pipeline.given_labels import GivenSkel
from pipeline.readers.base import AnnotationRows, AnnotationSource
from pipeline.readers.labels import LabelSource, Layout, as_float64, flat


class GivenSkelSource(AnnotationSource):
    """The rows of another source with `AnnotationRows.skel`; unusable SKEL labels are rejected.

    Raises InputError where the file holds no SKEL labels.
    """

    def __init__(self, source: LabelSource) -> None:
        layout = source.layout
        if not layout.skel_poses or not layout.skel_betas:
            raise InputError(
                f"{source.path}: holds no SKEL labels ({source.format}), so there is nothing to "
                "take as it is; convert it without --no-fit"
            )
        self._source = source
        self._poses, self._betas, self._trans = (
            layout.skel_poses,
            layout.skel_betas,
            layout.skel_trans,
        )
        self.format, self.path, self.files = source.format, source.path, source.files
        self.rows, self.fields, self.up = source.rows, source.fields, source.up

    @property
    def layout(self) -> Layout:
        """Which column of the file is what."""
        return self._source.layout

    def check(self) -> None:
        self._source.check()

    def gender_pairs(self) -> set[tuple[str, str]]:
        return self._source.gender_pairs()

    def read(self, start: int, stop: int) -> AnnotationRows:
        rows = self._source.read(start, stop)
        betas = flat(as_float64(rows.fields[self._betas]))[:, :10]
        trans = None if self._trans is None else as_float64(rows.fields[self._trans]).reshape(-1, 3)
        skel = GivenSkel(as_float64(rows.fields[self._poses]), betas, trans)
        reasons = rows.reasons.astype(object)
        for reason, bad in skel.rejections().items():
            reasons[bad & (reasons == "")] = reason
        return rows.with_skel(skel, reasons.astype(np.str_))
