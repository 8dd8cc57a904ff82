"""npz files of known members, read strictly: plain arrays of expected kinds, nothing is ever run.

For small files of ours that anybody may hand on: maps between bodies, shapes of identities.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from skel_fit.atomic import whole_file
from skel_fit.npy_header import read_npy_header

Kind = tuple[str, tuple[int | None, ...]]
"""Kind of a member: dtype (`U`: text of any width) and shape, None for any size."""
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, NotImplementedError,
    RuntimeError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip
"""What damaged bytes can raise."""


def plain_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of an untrusted zip, stored or deflated, as numpy and torch write them.

    Raises ValueError: packed otherwise; lzma and bz2 raise errors of their own.
    """
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"member '{info.filename}' is compressed in a way that neither numpy nor torch "
                "writes; save the file again with them"
            )
    return archive.infolist()


def read_strict(path: Path, kinds: Mapping[str, Kind], largest: int) -> dict[str, np.ndarray]:
    """The members of a file that has exactly these, of these kinds, in C order and finite.

    largest: bytes of all members together. Raises one of `DAMAGE`; a ValueError names the member.
    """
    with zipfile.ZipFile(path) as archive:
        every = plain_members(archive)
        members = {info.filename.removesuffix(".npy"): info for info in every}
        if len(members) != len(every):
            raise ValueError("two members of one name")
        if sum(info.file_size for info in every) > largest:
            raise ValueError(f"more than {largest >> 20} MB")
        if odd := sorted(members.keys() ^ kinds.keys()):
            known = "unknown" if odd[0] in members else "missing"
            raise ValueError(f"member '{odd[0]}' is {known}")
        return {name: _member(archive, members[name], name, kinds[name]) for name in kinds}


def write_strict(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as npz, whole or not at all; same content, same bytes. Raises OSError."""
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **dict(arrays))
    with whole_file(path) as stream:
        stream.write(packed.getvalue())


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, kind: Kind) -> np.ndarray:
    wanted, shape = kind
    with archive.open(info) as stream:
        found, fortran, dtype = read_npy_header(stream)
        text = dtype.kind == "U" and wanted == "U"
        same = len(found) == len(shape) and all(
            size is None or size == own for own, size in zip(found, shape, strict=True)
        )
        if fortran or not same or not (text or dtype == np.dtype(wanted)):
            size = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"member '{name}' is {dtype} {found}, expected {wanted} ({size})")
        data = stream.read()
    values = np.frombuffer(data, dtype).reshape(found).copy()
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"member '{name}' has values that are not finite")
    if dtype.kind == "U" and values.size and values.reshape(-1).view("<u4").max() > 0x10FFFF:
        raise ValueError(f"member '{name}' is no text")
    return values
