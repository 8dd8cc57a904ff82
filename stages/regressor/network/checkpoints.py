"""Checkpoint files: tensors and plain types only, read with `weights_only=True`, atomic writes.

A checkpoint of ours is a mapping with the keys of `FORMAT`; foreign files (SKEL-CF, HSMR, ViTPose,
HumanFOV) are read by `official.py`. torch compares no checksum when it reads: behind a file of
ours (a zip, whose readers ignore what follows) stands the SHA-256 of all before it, and of other
zips the CRC-32 of every member is compared.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.output_files import published

FORMAT = "hmr-skel-regressor"
VERSION = 2
_UNSEALED = 1
"""Version without the digest: still read, by the CRC-32 of its members."""
_MAGIC = b"hmr-skel-sha256:"
_BLOCK = 1 << 20


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors, numbers, text, lists, dicts) so that the file is whole or absent.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    with published(path) as stream:
        hashed = _Hashed(stream)
        _save({**content, "format": FORMAT, "version": VERSION}, cast("IO[bytes]", hashed))
        stream.write(_MAGIC + hashed.digest.digest())


def save_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as other programs expect it: no format, no digest; whole or absent.

    Raises:
        OutputError: as `save_checkpoint`.
    """
    with published(path) as stream:
        _save(content, stream)


def _save(content: Mapping[str, Any], stream: IO[bytes]) -> None:
    try:
        torch.save(content, stream)
    except RuntimeError as error:
        # torch reports a failed write (disk full) as a RuntimeError of its zip writer.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU.

    Raises:
        InputError: no such file, damaged, not tensors and plain types, another format or version.
    """
    sealed = check_bytes(path)
    content = _load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of hmr-skel train; expected the file last.pt or best.pt "
            "of a training folder, or what hmr-skel import-checkpoint makes of an official file"
        )
    version = content.get("version")
    if version not in (VERSION, _UNSEALED):
        raise InputError(
            f"{path}: checkpoint version {version!r}, expected {VERSION}; "
            "train again or use the hmr-skel that wrote it"
        )
    if version == VERSION and not sealed:
        raise InputError(f"{path}: damaged: its digest is missing; restore it or train again")
    return content


@dataclass(frozen=True)
class KeyDifferences:
    """How the entries of a file differ from those of a network. False where they do not."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        """Each kind counted, a few named."""
        return (
            f"{len(self.missing)} missing{_some(self.missing)}, {len(self.unexpected)} "
            f"unexpected{_some(self.unexpected)}, {len(self.shapes)} of another shape"
            f"{_some(self.shapes)}"
        )


def compared(network: nn.Module, tensors: Mapping[str, Tensor]) -> KeyDifferences:
    """What a strict load of `tensors` into `network` would stumble over."""
    return differing(network.state_dict(), tensors)


def differing(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> KeyDifferences:
    """How `tensors` differ from those that are wanted, in names, shapes and kinds of numbers."""
    return KeyDifferences(
        missing=tuple(sorted(wanted.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - wanted.keys())),
        shapes=tuple(
            f"{name}: expected {_form(wanted[name])}, found {_form(tensors[name])}"
            for name in sorted(wanted.keys() & tensors.keys())
            if _form(wanted[name]) != _form(tensors[name])
        ),
    )


def _form(tensor: Tensor) -> str:
    """Shape, and the kind of numbers where they are not real ones."""
    kind = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " integers"
    return f"{tuple(tensor.shape)}{kind}"


def _some(names: Sequence[str], most: int = 4) -> str:
    """A few of the names in brackets, for an error line."""
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" ({', '.join(names[:most])}{more})"


class _Hashed:
    """What torch writes through, hashed on the way."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def check_bytes(path: Path) -> bool:
    """Compare every byte with the digest behind the file; False where there is none.

    Without one (foreign files, version 1) the checksums of a zip are compared.
    """
    length = len(_MAGIC) + 32
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - length, 0))
            tail = stream.read()
            if not tail.startswith(_MAGIC) or size < length:
                _check_members(path)
                return False
            stream.seek(0)
            digest, left = hashlib.sha256(), size - length
            while left:
                block = stream.read(min(_BLOCK, left))
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if digest.digest() != tail[len(_MAGIC) :]:
        raise InputError(f"{path}: damaged: its SHA-256 is not what its digest says; restore it")
    return True


def _check_members(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return  # torch's older format, without checksums
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ):
        wrong = "its list of members"
    if wrong is not None:
        raise InputError(f"{path}: damaged: {wrong} does not have its checksum; restore it")


DAMAGE = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, EOFError,
          LookupError, AssertionError, MemoryError)  # fmt: skip
"""What torch raises on bytes that are no checkpoint."""


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        if path.suffix.lower() == ".npz":
            raise InputError(
                f"{path}: arrays (.npz), expected a checkpoint like best.pt"
            ) from error
        raise InputError(
            f"{path}: damaged, or holds more than tensors and plain types (which is refused; "
            f"hmr-skel import-checkpoint reads official files): {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Torch's reason without its advice to load the file with less care."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return f"{type(error).__name__}: {' '.join(text.strip().splitlines()[:1])[:140]}"
