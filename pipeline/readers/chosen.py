"""Rows of a source by their numbers, read forwards in batches.

A compressed file gives rows in rising order only; going back reads it from its beginning again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.readers.base import AnnotationRows, AnnotationSource, joined_bodies

BATCH = 64
"""Rows of a reading, at most."""
_GAP = 4
"""Rows that nobody asked for and that are read all the same, between two that are wanted."""
_COLUMNS = (
    "source_row", "poses", "betas", "transl", "smpl_gender", "skel_gender", "reasons",
)  # fmt: skip


def read_chosen(source: AnnotationSource, rows: np.ndarray) -> AnnotationRows:
    """The listed rows (n,) int64, rising, n > 0, without original columns."""
    return joined_rows(list(read_batches(source, rows)))


def read_batches(source: AnnotationSource, rows: np.ndarray) -> Iterator[AnnotationRows]:
    """The listed rows (n,) int64, rising, some at a time, without original columns."""
    for part in _batches(rows):
        first = int(part[0])
        yield taken(source.read(first, int(part[-1]) + 1), part - first)


def first_accepted(source: AnnotationSource, count: int) -> AnnotationRows | None:
    """The first rows that are not rejected, at most `count`; None: there are none."""
    found: list[AnnotationRows] = []
    start, size = 0, count
    while count and start < source.rows:
        rows = source.read(start, min(start + size, source.rows))
        good = np.flatnonzero(rows.reasons == "")[:count]
        if len(good):
            found.append(taken(rows, good))
            count -= len(good)
        start, size = start + size, min(2 * size, BATCH)
    return joined_rows(found) if found else None


def taken(rows: AnnotationRows, places: np.ndarray) -> AnnotationRows:
    """Rows at some places, without original columns."""
    some: dict[str, Any] = {name: getattr(rows, name)[places] for name in _COLUMNS}
    other = None if rows.other is None else rows.other.take(places)
    return AnnotationRows(**some, fields={}, other=other)


def joined_rows(parts: list[AnnotationRows]) -> AnnotationRows:
    """One or more ranges of rows, one after the other, without original columns."""
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
    }
    return AnnotationRows(**joined, fields={}, other=joined_bodies(parts))


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rising rows, cut at gaps and where a reading would be too long."""
    start = 0
    for place in range(1, len(rows) + 1):
        if (
            place == len(rows)
            or rows[place] - rows[place - 1] > _GAP
            or rows[place] - rows[start] >= BATCH
        ):
            yield rows[start:place]
            start = place
