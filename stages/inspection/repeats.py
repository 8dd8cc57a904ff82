"""Rows of a label file that repeat earlier ones, found by a 64-bit hash a row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.readers.labels import as_float64
from pipeline.row_checks import image_name


def row_hashes(columns: Sequence[NDArray]) -> NDArray[np.uint64]:
    """(n,) hashes of the rows of some columns (n, ...): numbers by their float64 bits, texts.

    A polynomial in an odd 64-bit base, mixed; equal rows have equal hashes.
    """
    n = len(columns[0])
    words = [_words(column).reshape(n, int(np.prod(column.shape[1:]))) for column in columns]
    result = np.zeros(n, np.uint64)
    for word in np.concatenate(words, axis=1).T:
        result = (result ^ _mixed(word)) * np.uint64(0x9E3779B97F4A7C15)
        result ^= result >> np.uint64(29)
    return result


def later_copies(hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` whose hash an earlier one of them has."""
    _, first = np.unique(hashes[rows], return_index=True)
    return np.setdiff1d(rows, rows[first])


def _words(column: NDArray) -> NDArray[np.uint64]:
    if column.dtype.kind in "SUO":
        return np.array([_text_hash(image_name(text)) for text in column.tolist()], np.uint64)
    return np.ascontiguousarray(as_float64(column)).view(np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)


def _text_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
