"""Checkpoints of other programs, read as tensors and plain types; nothing of theirs is imported.

Such files carry more than weights: pickled configuration, optimiser, random states
(docs/reference/checkpoints.md#container). `weights_only` stays on; the names that it would refuse
stand, for this one load, for a class that takes anything and does nothing.
"""

from __future__ import annotations

import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.errors import InputError
from pipeline.paths import check_regular
from stages.regressor.network.checkpoints import DAMAGE, check_bytes

_LEGACY_PICKLES = 4
"""An old file: magic number, protocol, machine, then the object; its list of keys and the raw
numbers follow."""


class Inert:
    """What stands for an object of a foreign class: takes anything, does and holds nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value


def read_foreign(path: Path) -> Any:
    """The object of a checkpoint file, on the CPU; objects of foreign classes are `Inert`.

    Tensors of a zip are mapped from the file, not read: copy what is kept.

    Raises:
        InputError: no such file, damaged, not a checkpoint, or not readable as data alone.
    """
    check_regular(path)
    check_bytes(path)
    zipped = zipfile.is_zipfile(path)
    try:
        if not zipped and tarfile.is_tarfile(path):
            raise ValueError("a tar file; torch wrote such files before version 0.2")
        names = _zip_globals(path) if zipped else _legacy_globals(path)
        with torch.serialization.safe_globals([(Inert, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:140]
        raise InputError(
            f"{path}: damaged, or holds more than tensors, plain types and foreign objects that "
            f"can be left alone (which is refused): {reason}"
        ) from error


def _zip_globals(path: Path) -> list[str]:
    return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def _legacy_globals(path: Path) -> list[str]:
    """Names of an old file that `weights_only` would refuse, from its pickles' text."""
    known = torch._weights_only_unpickler._get_allowed_globals()
    with path.open("rb") as stream:
        found = {name for _ in range(_LEGACY_PICKLES) for name in _globals(stream)}
    return sorted(found - known.keys())


def _globals(stream: BinaryIO) -> Iterator[str]:
    """Names of the next pickle of a stream, which is left behind it."""
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
