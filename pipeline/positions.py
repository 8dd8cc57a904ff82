"""Which rows are meant: indices, slices and masks as positions; what reads rows by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Positions: TypeAlias = "range | NDArray[np.int64]"
"""Rows of a dataset, each from 0 up to but without its length: in any order, also repeated."""


class RowReader(Protocol):
    """What gives rows: a dataset, or a view of one (`pipeline.dataset_view.Rows`)."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all columns."""
        ...

    def __len__(self) -> int: ...

    def take(self, names: Sequence[str], positions: Positions) -> dict[str, np.ndarray]:
        """Some rows of some columns: (len(positions), ...) each, in the order of `positions`."""
        ...

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `KeyError` for a column that is not there."""
        ...


def chosen(of: Positions, positions: Positions) -> Positions:
    """`positions` of `of`; a range of a range stays one."""
    if isinstance(of, range):
        if isinstance(positions, range):
            first, last = (of.start + k * of.step for k in (positions.start, positions.stop))
            return range(first, last, of.step * positions.step)
        return of.start + positions * of.step
    if isinstance(positions, range):
        positions = np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    return of[positions]


def positions_of(key: ArrayLike, length: int) -> NDArray[np.int64]:
    """Indices (negative ones from the end) or a mask as row numbers.

    Raises:
        IndexError: outside, or a mask of another length.
        TypeError: neither indices nor a mask.
    """
    found = np.asarray(key)
    if found.ndim != 1 or not (found.dtype.kind in "iub" or found.size == 0):
        raise TypeError(
            "expected a column's name, a row's number, a slice, a list of row numbers or a mask; "
            f"got {found.dtype} of shape {found.shape}"
        )
    if found.dtype.kind == "b":
        if len(found) != length:
            raise IndexError(f"a mask of {len(found)} for {length} rows")
        return np.flatnonzero(found)
    rows = found.astype(np.int64)
    outside = (rows < -length) | (rows >= length)
    if outside.any():
        raise IndexError(f"row {rows[outside][0]} of {length}")
    return np.where(rows < 0, rows + length, rows)
