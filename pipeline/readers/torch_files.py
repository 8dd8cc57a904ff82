"""Files of `torch.save` as data: a zip with one pickle and the raw numbers of its tensors.

Neither torch nor anything in the file runs. Source: docs/reference/label-formats.md#torch-files.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

from pipeline.readers.pickles import (
    LABEL_NAMES,
    MAX_OBJECT_BYTES,
    PickleError,
    plain_values,
    storage,
    storage_reference,
)
from skel_fit.restricted_pickle import load
from skel_fit.strict_npz import plain_members

_PICKLE = "/data.pkl"
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, NotImplementedError,
           RuntimeError, ValueError)  # fmt: skip


def is_torch_file(path: Path) -> bool:
    """Whether a zip is one of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(_PICKLE) for name in archive.namelist())
    except (*_DAMAGE,):
        return False


def load_torch_file(path: Path) -> Any:
    """Plain values; tensors become arrays. Raises PickleError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(archive)
    except PickleError:
        raise
    except _DAMAGE as error:
        raise PickleError(f"not a whole file of torch.save ({error})") from error


def _load(archive: zipfile.ZipFile) -> Any:
    members = plain_members(archive)
    names = [info.filename for info in members if info.filename.endswith(_PICKLE)]
    if len(names) != 1:
        raise PickleError(f"{len(names)} pickles in a file of torch.save, expected one")
    if sum(info.file_size for info in members) > MAX_OBJECT_BYTES:
        raise PickleError(f"more than {MAX_OBJECT_BYTES} bytes; save what you need of it apart")
    folder = names[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise PickleError("written on a machine with another byte order")
    known: dict[str, Any] = {}

    def persistent(pid: Any) -> Any:
        reference = storage_reference(pid)
        key = str(reference.key)
        if key not in known:
            if f"{folder}data/{key}" not in archive.namelist():
                raise PickleError("a tensor without its numbers")
            known[key] = storage(reference, archive.read(f"{folder}data/{key}"))
        return known[key]

    with archive.open(names[0]) as stream:
        size = archive.getinfo(names[0]).file_size
        content = load(stream, size, LABEL_NAMES, persistent)
    return plain_values(content, sum(info.file_size for info in members))
