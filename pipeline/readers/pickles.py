"""Pickled labels as plain values: numpy arrays, torch tensors, containers, text and numbers.

Label files are untrusted: `skel_fit.restricted_pickle` reads them as data, with stand-ins for torch
added here, and arrays are made afterwards, with a limit to the memory that a file may ask for.
Source: docs/reference/pipeline.md#hostile-input, docs/reference/label-formats.md#webdataset.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from pipeline.readers.npz import NpzFile, checked_text
from skel_fit.restricted_pickle import (
    ARRAY_NAMES,
    DAMAGE,
    Array,
    PickleError,
    StandIn,
    is_shape,
    load,
    one_line,
)

MAX_OBJECT_BYTES = 256 << 20
_MAX_DEPTH = 64
_MEMORY_FACTOR = 16  # bytes in memory for a byte of the file


def load_pickle(data: bytes) -> Any:
    """Plain values of a pickle: dict, list, tuple, text, numbers, numpy arrays.

    Tensors become arrays; a 0-d object array becomes what it holds. Raises PickleError.
    """
    return plain_values(load(io.BytesIO(data), len(data), LABEL_NAMES), len(data))


def plain_values(content: Any, size: int) -> Any:
    """What was loaded with `LABEL_NAMES` from `size` bytes, with arrays for its stand-ins.

    Raises PickleError.
    """
    try:
        return _Converter(size).convert(content)
    except PickleError:
        raise
    except DAMAGE as error:
        raise PickleError(f"not a readable pickle of data ({one_line(error)})") from error


def load_object_member(file: NpzFile, name: str) -> Any:
    """The content of an object member of an npz file, as `load_pickle` gives it."""
    data = file.content(name, MAX_OBJECT_BYTES)
    try:
        return load_pickle(data)
    except PickleError as error:
        raise file.error(name, str(error)) from error


def object_column(file: NpzFile, name: str) -> np.ndarray:
    """(rows, ...) plain array from an object member that holds only text, bytes or numbers."""
    shape = file.members[name].shape
    value = load_object_member(file, name)
    if isinstance(value, np.ndarray) and value.shape == shape and len(shape) == 1:
        plain = _uniform(value)
        if plain is not None:
            return plain
    raise file.error(
        name,
        "Python objects that are not one text or number a row; save it as a plain array, or leave "
        f"it out with the option skip: {name}",
    )


def _uniform(values: np.ndarray) -> np.ndarray | None:
    kinds = {type(value) for value in values.tolist()}
    # A trailing NUL would be lost in a fixed-width column.
    if kinds == {str}:
        return None if any(v.endswith("\0") for v in values) else values.astype(np.str_)
    if kinds == {bytes}:
        return None if any(v.endswith(b"\0") for v in values) else values.astype(np.bytes_)
    if kinds == {bool}:
        return values.astype(bool)
    if kinds == {int}:
        return values.astype(np.int64)
    if kinds and kinds <= {int, float}:
        return values.astype(np.float64)
    arrays = [v for v in values if isinstance(v, np.ndarray)]
    same = {(v.shape, v.dtype) for v in arrays}
    if len(arrays) == len(values) and len(same) == 1 and not arrays[0].dtype.hasobject:
        return np.stack(arrays)
    return None


class Mapped(StandIn):
    """An array whose bytes stay in the file; it costs memory only where it is looked at."""

    __slots__ = ()

    def numpy(self) -> np.ndarray:
        """Read-only. PickleError: no such array."""
        raise NotImplementedError


# ---- stand-ins for torch ------------------------------------------------------------------------


class _Storage(StandIn):
    """A torch storage: dtype and raw bytes."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: np.dtype, data: bytes) -> None:
        self.dtype, self.data = dtype, data


class _StorageType(StandIn):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


class _Tensor(StandIn):
    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: _Storage, offset: Any, size: Any, stride: Any) -> None:
        whole = isinstance(offset, int) and offset >= 0 and is_shape(size) and is_shape(stride)
        if not isinstance(storage, _Storage) or not whole or len(size) != len(stride):
            raise PickleError("tensor with an unknown state")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def numpy(self) -> np.ndarray:
        flat = np.frombuffer(self.storage.data, self.storage.dtype)
        if math.prod(self.size) == 0:
            return np.empty(self.size, flat.dtype)
        steps = zip(self.size, self.stride, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        if last >= len(flat) or math.prod(self.size) > len(flat):
            raise PickleError("tensor that reaches beyond its storage")
        strides = [step * flat.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, strides).copy()


def _no_bytes(*contents: Any) -> bytes:
    """`bytes()`, which is how the old protocols write b''."""
    if contents:
        raise PickleError("bytes with arguments are not read")
    return b""


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _storage_from_bytes(data: Any) -> _Storage:
    """A storage as `torch.save` of the old format writes it: five pickles, then raw numbers."""
    if not isinstance(data, bytes):
        raise PickleError("tensor storage with an unknown state")
    stream = io.BytesIO(data)
    magic, version, _, reference, keys = (
        load(stream, len(data), LABEL_NAMES, storage_reference) for _ in range(5)
    )
    if magic != _TORCH_MAGIC or version != _TORCH_VERSION or not isinstance(keys, list):
        raise PickleError("tensor storage of an unknown format")
    if not isinstance(reference, _PersistentStorage) or keys != [reference.key]:
        raise PickleError("tensor storage with an unknown state")
    count = int.from_bytes(stream.read(8), "little", signed=True)
    if count != reference.numel:
        raise PickleError("tensor storage with missing numbers")
    return storage(reference, stream.read())


def storage(reference: _PersistentStorage, raw: bytes) -> _Storage:
    """The numbers of a reference. Raises PickleError: not as many as it says."""
    if len(raw) != reference.numel * reference.kind.dtype.itemsize:
        raise PickleError("tensor storage with missing numbers")
    return _Storage(reference.kind.dtype, raw)


class _PersistentStorage(StandIn):
    __slots__ = ("key", "kind", "numel")

    def __init__(self, kind: _StorageType, key: str, numel: int) -> None:
        self.kind, self.key, self.numel = kind, key, numel


def storage_reference(pid: Any) -> _PersistentStorage:
    """What a persistent id of torch says: `key`, `kind`, `numel`. Raises PickleError."""
    if (
        not isinstance(pid, tuple)
        or len(pid) not in (5, 6)
        or pid[0] != "storage"
        or not isinstance(pid[1], _StorageType)
        or (len(pid) == 6 and pid[5] is not None)
        or not isinstance(pid[4], int)
    ):
        raise PickleError("refused: the pickle refers to something outside itself")
    return _PersistentStorage(pid[1], pid[2], pid[4])


_TORCH_MAGIC, _TORCH_VERSION = 0x1950A86A20F9469CFC6C, 1001
_TORCH_STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip


def _label_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        **ARRAY_NAMES,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
    }
    for module in ("__builtin__", "builtins"):
        names[module, "bytes"] = _no_bytes
    for name, dtype in _TORCH_STORAGES.items():
        names["torch", name] = _StorageType(dtype)
    return names


LABEL_NAMES = _label_names()
"""(module, name) of what pickled labels may ask for -> stand-in."""


# ---- plain values -------------------------------------------------------------------------------


class _Converter:
    """Stand-ins replaced by arrays. Each container once, and no more memory than the file earns."""

    def __init__(self, size: int) -> None:
        self._done: dict[int, Any] = {}
        self._left = _MEMORY_FACTOR * size + (1 << 20)

    def convert(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, str | bytes | int | float):
            return value
        if depth > _MAX_DEPTH:
            raise PickleError(f"nested more than {_MAX_DEPTH} deep")
        if id(value) not in self._done:
            self._done[id(value)] = self._convert(value, depth)
        return self._done[id(value)]

    def _convert(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {_key(key): self.convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.convert(item, depth + 1) for item in value)
        if isinstance(value, _Tensor):
            self._charge(math.prod(value.size) * value.storage.dtype.itemsize)
            return value.numpy()
        if isinstance(value, Mapped):
            return value.numpy()
        if isinstance(value, Array):
            return self._array(value, depth)
        raise PickleError(f"a {type(value).__name__.strip('_').lower()} where a label is expected")

    def _array(self, value: Array, depth: int) -> Any:
        if value.shape is None:
            raise PickleError("an array without contents")
        dtype, count = value.dtype.numpy(), math.prod(value.shape)
        self._charge(count * dtype.itemsize)
        if dtype.hasobject:
            if not isinstance(value.data, list) or len(value.data) != count:
                raise PickleError(f"an object array of shape {value.shape} without its values")
            items = [self.convert(item, depth + 1) for item in value.data]
            if value.shape == ():
                return items[0]
            result = np.empty(count, object)
            for place, item in enumerate(items):
                result[place] = item
            return result.reshape(value.shape, order="F" if value.fortran else "C")
        return checked_text(value.numpy())

    def _charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise PickleError("few bytes that expand to very many")


def _key(key: Any) -> str | int:
    if isinstance(key, str | int):
        return key
    raise PickleError("a dictionary key that is neither text nor number")
