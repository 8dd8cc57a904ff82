"""A converted dataset as a table for people: one value a cell, units in the names.

`open_dataset(...).to_pandas()` and `hmr-skel export --format csv` have these columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.columns import ERROR_COLUMNS
from pipeline.positions import RowReader
from pipeline.readers.base import SEQUENCE
from skel_fit.anatomy import POSE_NAMES

ANGLES = tuple(f"{name}_deg" for name in POSE_NAMES)
"""Angles of a row, degrees, in the order of `skel_poses`."""
ON_LIMIT = "on_limit"
"""Names of the angles that lie on a limit, with spaces between them."""
_FIRST = ("source_row", "imgname", SEQUENCE, "status", "smpl_gender", "skel_gender")
_MILLIMETRES = (*ERROR_COLUMNS, "vertex_error_unlimited", "vertex_error_alone")
_BETAS = tuple(f"skel_beta_{k}" for k in range(10))
_TRANS = tuple(f"skel_trans_{axis}_m" for axis in "xyz")


@dataclass(frozen=True)
class FlatTable:
    """The columns of a table and what it needs of the dataset.

    needed: columns to read. plain: those of them that are taken as they are.
    """

    needed: tuple[str, ...]
    plain: tuple[str, ...]
    extra: tuple[str, ...]

    @classmethod
    def of(cls, rows: RowReader, extra: Sequence[str] = ()) -> FlatTable:
        """The table of some rows.

        extra: further columns of the dataset.

        Raises:
            KeyError: no such column.
            ValueError: one has several values a row.
        """
        rows.check_names(extra)
        plain = [name for name in _FIRST if name in rows.fields]
        further = [name for name in dict.fromkeys(extra) if name not in plain]
        empty = rows.take((*plain, *further), range(0))
        for name in further:
            if empty[name].ndim != 1:
                raise ValueError(
                    f"column '{name}' has {list(empty[name].shape[1:])} values a row; a table "
                    "takes columns of one value"
                )
        plain = [name for name in plain if empty[name].ndim == 1]
        errors = [name for name in _MILLIMETRES if name in rows.fields]
        made = ("active_limits", "skel_poses", "skel_betas", "skel_trans")
        return cls((*plain, *errors, *made, *further), tuple(plain), tuple(further))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the table, in order."""
        errors = [f"{name}_mm" for name in _MILLIMETRES if name in self.needed]
        return (*self.plain, *errors, ON_LIMIT, *_TRANS, *_BETAS, *ANGLES, *self.extra)

    def lines(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Table columns (n,) from dataset columns (n, ...). Numbers that a fit made are float32."""
        table = {name: _readable(columns[name]) for name in self.plain}
        for name in _MILLIMETRES:
            if name in columns:
                table[f"{name}_mm"] = columns[name] * np.float32(1000)
        table[ON_LIMIT] = _names_of(columns["active_limits"])
        table |= dict(zip(_TRANS, columns["skel_trans"].T, strict=True))
        table |= dict(zip(_BETAS, columns["skel_betas"].T, strict=True))
        degrees = np.rad2deg(columns["skel_poses"].astype(np.float64)).astype(np.float32)
        table |= dict(zip(ANGLES, degrees.T, strict=True))
        return table | {name: _readable(columns[name]) for name in self.extra}


def _readable(values: np.ndarray) -> np.ndarray:
    """Bytes as text; what is no UTF-8 shows its bytes."""
    if values.dtype.kind != "S":
        return values
    return np.char.decode(values, "utf-8", "backslashreplace")


def _names_of(active: np.ndarray) -> np.ndarray:
    """(n,) text: names of the angles that are set in each row of (n, 46)."""
    names = [" ".join(POSE_NAMES[k] for k in np.flatnonzero(row)) for row in active]
    return np.array(names, np.str_) if names else np.zeros(0, "<U1")
