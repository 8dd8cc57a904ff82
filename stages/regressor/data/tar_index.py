"""Where the members of tar files are: an index that loader processes share.

40 bytes a member, in an array of shared memory; names are not kept.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from stages.regressor.data.shared_arrays import Shared, share, unshared

_ENTRY = np.dtype([(name, "<u8") for name in ("first", "second", "file", "offset", "size")])
_MAX_MEMBERS_KEPT = 1 << 20  # rows of one part while a tar is read


class TarIndex:
    """name -> (file, offset, size); the first file that has a name wins.

    A name is known by 128 bits of its BLAKE2b digest.
    """

    def __init__(self, columns: np.ndarray) -> None:
        """columns: (5, n) of 64 bits, as `_ENTRY`; a column stands in one piece, so that a search
        copies nothing."""
        self._columns = columns
        self._first, self._second, self._file, self._offset, self._size = columns

    @cached_property
    def _shared(self) -> Shared:
        return share(self._columns)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> TarIndex:
        """The index of some tar files.

        Raises:
            InputError: one is not an uncompressed tar file, is cut short or damaged.
        """
        parts: list[np.ndarray] = []
        for number, path in enumerate(paths):
            rows: list[tuple[int, int, int, int, int]] = []
            for name, offset, size in _members(path):
                rows += [(*_digest(key), number, offset, size) for key in _spellings(name)]
                if len(rows) >= _MAX_MEMBERS_KEPT:
                    parts.append(np.array(rows, _ENTRY))
                    rows = []
            parts.append(np.array(rows, _ENTRY))
        entries = np.concatenate(parts) if parts else np.empty(0, _ENTRY)
        # Stable: of equal names the one that was read first.
        entries = entries[np.lexsort((entries["second"], entries["first"]))]
        same = np.zeros(len(entries), bool)
        same[1:] = (entries["first"][1:] == entries["first"][:-1]) & (
            entries["second"][1:] == entries["second"][:-1]
        )
        entries = entries[~same]
        return cls(np.stack([entries[name] for name in _ENTRY.names or ()]))

    def __len__(self) -> int:
        return self._columns.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the index, whatever the number of processes."""
        return self._columns.nbytes

    def find(self, name: str) -> tuple[int, int, int] | None:
        """File, offset, size of a member; None: there is none."""
        first, second = _digest(name)
        k = int(np.searchsorted(self._first, np.uint64(first)))
        while k < len(self) and self._first[k] == first:
            if self._second[k] == second:
                return int(self._file[k]), int(self._offset[k]), int(self._size[k])
            k += 1
        return None

    def __reduce__(self) -> tuple:
        # Shared once: every loader process maps the same bytes.
        return _unshared_index, (self._shared,)


def _unshared_index(data: Shared) -> TarIndex:
    return TarIndex(unshared(data))


def _digest(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg():
                    yield member.name.removeprefix("./"), member.offset_data, member.size
                # tarfile would keep 0.6 KB a member; typeshed does not know where.
                archive.members = []  # type: ignore[attr-defined]
            end = archive.offset
        with path.open("rb") as stream:  # tarfile takes a damaged header for the end
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"damaged or cut short at byte {end}")
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: not a readable, uncompressed tar file ({error})") from error


def _spellings(name: str) -> list[str]:
    """A name, and what it stands for in our export (pipeline/exporters/webdataset.py), where a dot
    inside a name is %2E."""
    if "%2" not in name:
        return [name]
    folder, slash, base = name.rpartition("/")
    return [name, folder + slash + base.replace("%2E", ".").replace("%25", "%")]
