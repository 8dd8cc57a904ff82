"""Rows that belong together: the sequences of a source, for fits that look at neighbouring frames.

A shard fits every sequence that it touches as a whole and stores its own rows of it, so a result
does not depend on where shards were cut. The column `sequence` of the source says what belongs
together; rows of one sequence follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.errors import InputError
from pipeline.readers.base import SEQUENCE, AnnotationRows, AnnotationSource

_STEP = 4096
_MESHES = 64
"""Rows of meshes that are read at a time: they are large."""


def check_sequences(source: AnnotationSource) -> None:
    """Raises InputError where a source has no sequences."""
    if SEQUENCE not in source.fields:
        raise InputError(
            f"{source.path}: no column '{SEQUENCE}', so nothing tells which rows follow one "
            "another; take a source of format sequence, or leave out fit.sequence"
        )


def whole_sequences(source: AnnotationSource, start: int, stop: int) -> tuple[int, int]:
    """The smallest range around start <= row < stop that cuts no sequence."""
    most = _STEP if source.vertices is None else _MESHES
    first, last = _names(source, start, start + 1)[0], _names(source, stop - 1, stop)[0]
    while start > 0:
        step = min(most, start)
        other = np.flatnonzero(_names(source, start - step, start) != first)
        if other.size:
            start += int(other[-1]) + 1 - step
            break
        start -= step
    while stop < source.rows:
        step = min(most, source.rows - stop)
        other = np.flatnonzero(_names(source, stop, stop + step) != last)
        if other.size:
            stop += int(other[0])
            break
        stop += step
    return start, stop


def runs(where: str, rows: AnnotationRows, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """`chosen` (increasing positions in `rows`), cut where a sequence ends. Rows that are left out
    cut nothing: the frames at their sides follow one another.

    where: what the error message starts with. Raises InputError where the shape changes within a
    sequence.
    """
    if not chosen.size:
        return
    names = _names_of(rows)[chosen]
    new = names[1:] != names[:-1]
    what, shape = ("betas", rows.betas) if rows.other is None else ("person", _people(rows))
    for run in np.split(chosen, np.flatnonzero(new) + 1):
        other = np.flatnonzero((shape[run] != shape[run[0]]).any(axis=1))
        if other.size:
            raise InputError(
                f"{where}: {what} of row {rows.source_row[run[other[0]]]} differ"
                f"{'s' if what == 'person' else ''} from row {rows.source_row[run[0]]} of the same "
                "sequence; one person has one shape: correct the labels, or leave out fit.sequence"
            )
        yield run


def _people(rows: AnnotationRows) -> np.ndarray:
    """(n,1) whose shape each row of another body has."""
    assert rows.other is not None
    return rows.other.identity[:, None]


def _names(source: AnnotationSource, start: int, stop: int) -> np.ndarray:
    return _names_of(source.read(start, stop))


def _names_of(rows: AnnotationRows) -> np.ndarray:
    """(n,) one comparable value a row."""
    values = rows.fields[SEQUENCE]
    if values.ndim == 1:
        return values
    flat = np.ascontiguousarray(values.reshape(len(values), -1))
    return flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))[:, 0]
