"""Open shards of a dataset, kept between reads: for rows that are asked for one by one."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.shards import CHUNK_ROWS, open_shard, read_column, shard_errors

_OPEN = 8
"""Files a process keeps open for a dataset."""


@dataclass(frozen=True)
class ShardFile:
    """A shard, and what it must say of itself: plan id and number; sealed: as `open_shard`."""

    path: Path
    plan_id: str
    shard: int
    sealed: bool = True


class ShardFiles:
    """Open shards of this process: the last few that were read.

    Nothing that HDF5 has open goes through a fork or a pickle: each process opens its own files. A
    file that changed since it was opened is opened, and its seal compared, anew.
    """

    def __init__(self) -> None:
        self._reset()

    def read(
        self, wanted: ShardFile, names: Sequence[str], rows: NDArray[np.int64]
    ) -> dict[str, np.ndarray]:
        """Some rows (ascending, unique, within the shard) of columns, see `read_column`.

        Raises:
            InputError: not this shard, a column is missing, or a checksum fails.
        """
        if self._process != os.getpid():
            self._reset()
        with self._lock, self._opened(wanted) as file, shard_errors(wanted.path):
            return {name: _read_rows(file, name, rows) for name in names}

    @contextmanager
    def _opened(self, wanted: ShardFile) -> Iterator[h5py.File]:
        stamp = _stamp(wanted.path)
        held = self._held.pop(wanted, None)
        if held is not None and held[0] != stamp:
            held[2].close()
            held = None
        if held is None:
            stack = ExitStack()
            expect = (wanted.plan_id, wanted.shard)
            file = stack.enter_context(open_shard(wanted.path, expect, sealed=wanted.sealed))
            held = stamp, file, stack
        self._held[wanted] = held
        if len(self._held) > _OPEN:
            self._held.popitem(last=False)[1][2].close()
        yield held[1]

    def _reset(self) -> None:
        self._process = os.getpid()
        self._held: OrderedDict[ShardFile, tuple[tuple[int, ...], h5py.File, ExitStack]] = (
            OrderedDict()
        )
        # HDF5 itself does one thing at a time; a lock that was held in a fork stays held.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        del state
        self._reset()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_rows(file: h5py.File, name: str, rows: NDArray[np.int64]) -> np.ndarray:
    """Ascending rows of a column: every chunk that has one of them is read once, no other."""
    apart = np.flatnonzero(np.diff(rows // CHUNK_ROWS) > 1) + 1
    parts = []
    for run in np.split(rows, apart):
        first, last = (int(run[0]), int(run[-1]) + 1) if run.size else (0, 0)
        values = read_column(file, name, slice(first, last))
        parts.append(values if len(values) == len(run) else values[run - first])
    return joined(parts)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts of one column as one array: of their type, byte order included; texts of the widest."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].dtype.kind in "SU":
        return np.concatenate(parts)
    return np.concatenate(parts, dtype=parts[0].dtype)
