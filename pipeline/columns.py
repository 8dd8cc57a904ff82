"""Every result column, declared once: shards, verify, reports, cards and exports derive from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skel_fit.anatomy import REGIONS


@dataclass(frozen=True)
class Meaning:
    """What a column holds: content, unit, frame, range, and what stands for a missing value."""

    content: str
    unit: str = ""
    frame: str = ""
    range: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Column:
    """A result column.

    dtype: of the array in memory, `U` for text of any width. shape: of one row. rejected: the value
    in rejected rows; None where every row has a value of its own. fitted: whether a fit makes it
    (else the label's row does). finite: no fitted row may hold NaN.
    """

    dtype: str
    shape: tuple[int, ...]
    meaning: Meaning
    rejected: float | bool | int | None = None
    fitted: bool = True
    finite: bool = True

    @property
    def is_text(self) -> bool:
        return self.dtype == "U"

    def empty(self, rows: int) -> np.ndarray:
        """(rows, ...) of the value that rejected rows have; zeros where there is none."""
        dtype = "<U1" if self.is_text else self.dtype
        return np.full((rows, *self.shape), "" if self.is_text else self.rejected or 0, dtype)


_NAN = "NaN in rejected rows"


def _real(
    shape: tuple[int, ...], content: str, unit: str = "", frame: str = "", range: str = ""
) -> Column:
    return Column("<f4", shape, Meaning(content, unit, frame, range, _NAN), rejected=np.nan)


def _error(content: str) -> Column:
    return _real((), f"{content}, metres", "m", "", "0 and more")


def region_column(region: str) -> str:
    """Name of the column of a body region's error."""
    return f"vertex_error_{region}"


RESULT_COLUMNS: dict[str, Column] = {
    "skel_poses": _real(
        (46,), "SKEL joint angles, radians", "rad", "bone axes; [:3] camera frame",
        "joint limits of the fit",
    ),
    "skel_betas": _real((10,), "SKEL shape coefficients"),
    "skel_trans": _real((3,), "SKEL translation, camera frame, metres", "m", "camera"),
    "vertex_error_mean": _error("mean distance to the SMPL target"),
    "vertex_error_max": _error("largest distance to the SMPL target"),
    **{region_column(region): _error(f"mean distance over the {region}") for region in REGIONS},
    "vertex_error_unlimited": Column(
        "<f4",
        (),
        Meaning(
            "mean distance of a fit without joint limits, metres",
            "m", "", "0 and more", "NaN where limits are not active or cost little",
        ),
        rejected=np.nan,
        finite=False,
    ),
    "vertex_error_alone": Column(
        "<f4",
        (),
        Meaning(
            "mean distance of the same frame fitted on its own, metres",
            "m", "", "0 and more", "NaN outside sequences",
        ),
        rejected=np.nan,
        finite=False,
    ),
    "active_limits": Column(
        "|b1", (46,), Meaning("angle lies on a joint limit", "", "", "true or false", "false"),
        rejected=False,
    ),
    "skel_poses_sd": Column(
        "<f4",
        (46,),
        Meaning(
            "standard deviation of the angle, radians",
            "rad", "", "0 to uniform inside the limits",
            "NaN for a frozen root, without a calibration of the two bodies and in rejected rows",
        ),
        rejected=np.nan,
        finite=False,
    ),
    "skel_poses_observed": Column(
        "|i1",
        (46,),
        Meaning(
            "what the angle rests on: 0 prior, 1 the surface, 2 its limit, 3 the label's root",
            "", "", "-1 to 3", "-1",
        ),
        rejected=-1,
    ),
    "iterations": Column("<i4", (), Meaning("solver iterations", "", "", "0 and more", "0"), 0),
    "start": Column("|i1", (), Meaning("which start won", "", "", "0 and more", "-1"), -1),
    "status": Column(
        "U", (), Meaning("converged, limited, max_iter, audited, doubtful or rejected:<reason>")
    ),
    "smpl_gender": Column("U", (), Meaning("body model of the label"), fitted=False),
    "skel_gender": Column("U", (), Meaning("body model of the result"), fitted=False),
    "source_row": Column(
        "<i8", (), Meaning("row in the label file", "", "", "0 and more"), fitted=False
    ),
}  # fmt: skip
"""Name -> column, in the order of docs/format.md."""

_SINCE = {2: ("vertex_error_alone",), 3: ("skel_poses_sd", "skel_poses_observed")}


def result_columns(schema_version: int) -> dict[str, Column]:
    """The result columns of data of a schema version."""
    left_out = [name for since, names in _SINCE.items() if schema_version < since for name in names]
    return {name: column for name, column in RESULT_COLUMNS.items() if name not in left_out}


FIT_COLUMNS = tuple(name for name, column in RESULT_COLUMNS.items() if column.fitted)
"""What a fitter returns, see `pipeline.fitters.Fitter`."""

REGION_COLUMNS = {region: region_column(region) for region in REGIONS}
"""Body region -> name of its error column, metres."""
ERROR_COLUMNS = ("vertex_error_mean", "vertex_error_max", *REGION_COLUMNS.values())
"""Distances of every fitted row, metres."""
SKEL_COLUMNS = ("skel_poses", "skel_betas", "skel_trans")
"""The SKEL body of a row."""
