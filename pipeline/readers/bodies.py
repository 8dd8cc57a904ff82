"""Labels that are another body than SMPL: `BodySource`, for every reader of such a format.

A reader says which columns its format has (`BodyLayout`) and how they become the parameters of the
body; pictures, genders, ranges of rows and what is carried into the shards are done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline import row_checks
from pipeline.errors import InputError
from pipeline.readers.base import AnnotationRows, BodyRows
from pipeline.readers.labels import (
    NUM_BETAS,
    NUM_POSES,
    LabelOptions,
    LabelSource,
    Layout,
    gender_column,
)
from pipeline.readers.tables import Table
from pipeline.row_checks import Verdicts

VERTICES = "vertices"
_NAMES = "biufSU"
"""Kinds of what tells people apart."""
NEAREST = "nearest"
"""What the option `skel_gender` says for: male or female as the label's body, else whichever SKEL
body is nearer, identity by identity."""
UNKNOWN = "unknown"
"""`AnnotationRows.skel_gender` of rows whose identity decides."""


ParametersOf = Callable[[Mapping[str, np.ndarray], Verdicts], dict[str, np.ndarray]]
"""Columns of some rows -> the parameters of the body (`skel_fit.bodies`), radians and metres; rows
that have none may be rejected with `Verdicts.reject`. Pickled: a function of a module."""


_NO_PICTURE = Layout(poses=(), betas=None)


@dataclass(frozen=True)
class BodyLayout:
    """Which column holds what, and what the columns make.

    body: name of the body. columns: those that `parameters` needs, with how many real numbers a row
    of each has; None: one or more. parameters: see `ParametersOf`.
    vertices: vertices a row, where the parameters are `vertices`; None: other parameters.
    identity: column of numbers or names of people; "": one person in the whole source; None: a
    person of its own in every row. left_out: columns that shards do not carry (meshes).
    picture: names, center, scale, cam_int, keypoints, as far as the format has them.
    """

    body: str
    columns: Mapping[str, int | None]
    parameters: ParametersOf
    vertices: int | None = None
    identity: str | None = None
    left_out: tuple[str, ...] = ()
    picture: Layout = _NO_PICTURE


class BodySource(LabelSource):
    """Rows of another body than SMPL: a table, the layout of its columns, and the options."""

    def __init__(
        self, format: str, table: Table, layout: BodyLayout, options: LabelOptions
    ) -> None:
        self._own = layout
        self.body = layout.body
        super().__init__(format, table, layout.picture, options)
        self.fields = {
            name: spec for name, spec in table.specs.items() if name not in layout.left_out
        }
        self._people: np.ndarray | None = None
        self.faces: np.ndarray | None = None
        """(F, 3) triangles, where the file has them."""

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_people": None}

    @property
    def vertices(self) -> int | None:
        return self._own.vertices

    def identities(self) -> np.ndarray:
        if self._people is None:
            column = self._own.identity
            if column is None:
                self._people = np.arange(self.rows)
            elif column == "":
                self._people = np.zeros(self.rows, np.int64)
            else:
                names = self._table.read(0, self.rows, (column,))[column]
                _, number = np.unique(names.reshape(self.rows), return_inverse=True)
                self._people = number.astype(np.int64)
        return self._people

    def read(self, start: int, stop: int) -> AnnotationRows:
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"{self.path}: rows {start} to {stop} of {self.rows}")
        n = stop - start
        fields = self._table.read(start, stop)
        verdicts = Verdicts.empty(n)
        parameters = self._own.parameters(fields, verdicts)
        genders = self._genders(fields, verdicts, n)
        self._check_parameters(parameters, verdicts)
        self._check_picture(fields, verdicts)
        return AnnotationRows(
            np.arange(start, stop),
            np.full((n, NUM_POSES), np.nan),
            np.full((n, NUM_BETAS), np.nan),
            np.full((n, 3), np.nan),
            *genders,
            fields={name: fields[name] for name in self.fields},
            reasons=verdicts.reasons,
            other=BodyRows(self.body, parameters, self.identities()[start:stop]),
        )

    def _check_parameters(self, parameters: dict[str, np.ndarray], verdicts: Verdicts) -> None:
        for name, values in parameters.items():
            if name == VERTICES:
                row_checks.check_vertices(verdicts, values)
            elif values.dtype.kind == "f":
                finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
                verdicts.reject(~finite, "non_finite_parameter")
        if "betas" in parameters:
            largest = np.abs(parameters["betas"]).reshape(len(verdicts.reasons), -1).max(axis=1)
            verdicts.reject(largest > self._options.max_beta, "betas_out_of_range")
        if "transl" in parameters:
            with np.errstate(over="ignore", invalid="ignore"):
                far = np.linalg.norm(parameters["transl"], axis=1)
            verdicts.reject(far > row_checks.MAX_TRANSLATION, "transl_out_of_range")

    def _genders(
        self, fields: Mapping[str, np.ndarray], verdicts: Verdicts, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the label's body; of SKEL also `unknown`, where the label's is neutral and nobody
        asked for one."""
        options = self._options
        if options.skel_gender != NEAREST:
            return super()._genders(fields, verdicts, n)
        own = gender_column(fields, ("gender",), options.smpl_gender, n)
        verdicts.reject(own == "", "unknown_gender")
        return own, np.where((own == "male") | (own == "female"), own, UNKNOWN)

    def _check_columns(self) -> None:
        own = self._own
        wanted = (*own.columns, *((own.identity,) if own.identity else ()))
        for name in wanted:
            if name not in self._table.specs:
                raise InputError(f"{self.path}: member '{name}': needed, the option skip names it")
        for name, size in own.columns.items():
            self._numeric(name)
            found = math.prod(self.fields[name].shape)
            if found < 1 or size not in (None, found):
                raise self._wrong(name, f"{size or 'one or more'} numbers a row")
        if own.identity:
            spec = self.fields[own.identity]
            if spec.shape not in ((), (1,)) or spec.dtype.kind not in _NAMES:
                raise self._wrong(own.identity, "one number or name of a person a row")
        super()._check_columns()
