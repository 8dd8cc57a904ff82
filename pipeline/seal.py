"""The seal of a shard: every byte of the file is covered by a checksum that each open compares.

fletcher32 covers the chunks of data and nothing else: a flipped bit in HDF5's own structures moves
a chunk, a type or a fill value, and changes numbers without an error. So a seal follows the HDF5
part of the file (HDF5 ignores what lies behind its end): the extents of the data chunks, and a
SHA-256 over all bytes outside them. It is checked before HDF5 parses anything.

    extents  n x (start, stop)   uint64 little-endian, ascending, apart
    n        uint64
    size     uint64              bytes of the HDF5 part
    digest   32 bytes            SHA-256(bytes outside the extents, extents, n, size)
    magic    16 bytes
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import InputError

_MAGIC = b"hmr-skel seal 1\n"
_TAIL = 8 + 8 + 32 + len(_MAGIC)


def with_seal(file: h5py.File) -> bytes:
    """The bytes of an HDF5 file in memory, with its seal."""
    file.flush()
    extents = _merged(chunk for name in file for chunk in _chunks(file.get(name)))
    image = file.id.get_file_image()
    return image + _seal(extents, len(image), lambda start, stop: image[start:stop])


def check_seal(path: Path) -> None:
    """Compare the bytes outside the data chunks with the seal.

    Raises:
        InputError: no seal, or another digest: the file is damaged.
    """
    sealed_extents(path)


def sealed_extents(path: Path) -> list[tuple[int, int]]:
    """(start, stop) of the data chunks, from a seal that matches; raises as `check_seal`."""
    try:
        with path.open("rb", buffering=0) as stream:
            extents = _checked(stream.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if extents is None:
        raise InputError(
            f"{path}: damaged (its seal does not match); run hmr-skel verify, then hmr-skel convert"
        )
    return extents


def _checked(descriptor: int) -> list[tuple[int, int]] | None:
    length = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _TAIL, max(length - _TAIL, 0))
    count, size = (int.from_bytes(tail[at : at + 8], "little") for at in (0, 8))
    if not tail.endswith(_MAGIC) or size + 16 * count + _TAIL != length:
        return None
    table = os.pread(descriptor, 16 * count, size)
    values = np.frombuffer(table, "<u8")
    if len(values) != 2 * count or (values[1:] < values[:-1]).any() or (values > size).any():
        return None
    extents = [(int(first), int(last)) for first, last in values.reshape(-1, 2)]
    seal = _seal(extents, size, lambda start, stop: _read(descriptor, start, stop))
    return extents if seal == table + tail else None


def _read(descriptor: int, start: int, stop: int) -> bytes:
    parts = []
    while start < stop:  # a read returns at most 2 GB
        part = os.pread(descriptor, stop - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _seal(
    extents: Sequence[tuple[int, int]], size: int, read: Callable[[int, int], bytes]
) -> bytes:
    digest = hashlib.sha256()
    start = 0
    for first, last in (*extents, (size, size)):
        digest.update(read(start, first))
        start = last
    body = np.array(extents, "<u8").tobytes()
    body += len(extents).to_bytes(8, "little") + size.to_bytes(8, "little")
    digest.update(body)
    return body + digest.digest() + _MAGIC


def _chunks(dataset: object) -> list[tuple[int, int]]:
    """Where the chunks of a column lie. Only chunks whose fletcher32 is there count."""
    found: list[tuple[int, int]] = []
    if isinstance(dataset, h5py.Dataset) and dataset.fletcher32:
        dataset.id.chunk_iter(
            lambda chunk: (
                found.append((chunk.byte_offset, chunk.byte_offset + chunk.size))
                if chunk.filter_mask == 0
                else None
            )
        )
    return found


def _merged(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending; neighbours that touch become one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(extents):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        elif first < last:
            merged.append((first, last))
    return merged
