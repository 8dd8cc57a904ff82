"""Pickles as data: numpy arrays, torch tensors and plain values, and nothing is ever run.

Label files are untrusted. The unpickler knows the few names below, maps each to an inert stand-in
and has the instructions taken out that only import or run something. Arrays are made afterwards,
from bytes whose number was checked. Source: reference/pipeline.md 4.2, datasets.md 3.1 and 5.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any, ClassVar

import numpy as np

from pipeline.readers.npz import NpzFile, checked_text

MAX_OBJECT_BYTES = 256 << 20
_DTYPE = re.compile(r"[<>|=]?(?:[biuf](?:1|2|4|8)|[SU][0-9]{1,5}|O8?)")
_MAX_DEPTH = 64
_MEMORY_FACTOR = 16  # bytes in memory for a byte of the file


class PickleError(ValueError):
    """Refused: an unknown name, an instruction that labels do not need, or damaged bytes."""


def load_pickle(data: bytes) -> Any:
    """Plain values of a pickle: dict, list, tuple, text, numbers, numpy arrays.

    Tensors become arrays; a 0-d object array becomes what it holds. Raises PickleError.
    """
    try:
        return _Converter(len(data)).convert(_Unpickler(io.BytesIO(data), len(data)).load())
    except PickleError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise PickleError(f"not a readable pickle of labels ({reason})") from error


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


# ---- stand-ins ----------------------------------------------------------------------------------


class _StandIn:
    __slots__ = ()


class _DType(_StandIn):
    __slots__ = ("code", "order")

    def __init__(self, code: Any = None, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise PickleError(f"array type {str(code)[:40]!r} is not read")
        self.code, self.order = code.lstrip("<>|="), code[0] if code[0] in "<>" else "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise PickleError("array type with an unknown state")
        self.order = state[1] if state[1] in "<>" else "="

    def numpy(self) -> np.dtype:
        return np.dtype(object) if self.code[0] == "O" else np.dtype(self.order + self.code)


class _Array(_StandIn):
    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise PickleError("array with an unknown state")
        self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        if not _is_shape(shape) or not isinstance(dtype, _DType):
            raise PickleError("array with an unknown state")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, bool(fortran), data


class _Storage(_StandIn):
    """A torch storage: dtype and raw bytes."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: np.dtype, data: bytes) -> None:
        self.dtype, self.data = dtype, data


class _StorageType(_StandIn):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


class _Tensor(_StandIn):
    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: _Storage, offset: Any, size: Any, stride: Any) -> None:
        whole = isinstance(offset, int) and offset >= 0 and _is_shape(size) and _is_shape(stride)
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


class _OrderedDict(dict):
    """What collections.OrderedDict becomes; its items arrive as pairs or one by one."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        for key, value in items:
            self[key] = value


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= 32
        and all(type(n) is int and 0 <= n < 1 << 40 for n in value)
    )


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _Array:
        raise PickleError("array of an unknown class")
    return _Array()


def _scalar(dtype: Any, data: Any = None) -> _Array:
    value = _Array()
    value.fill((), dtype, False, data)
    return value


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    value = _Array()
    value.fill(shape, dtype, order == "F", data)
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("text encoding is not read")
    return text.encode("latin1")


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
    magic, version, _, storage, keys = (
        _Unpickler(stream, len(data), storages=True).load() for _ in range(5)
    )
    if magic != _TORCH_MAGIC or version != _TORCH_VERSION or not isinstance(keys, list):
        raise PickleError("tensor storage of an unknown format")
    if not isinstance(storage, _PersistentStorage) or keys != [storage.key]:
        raise PickleError("tensor storage with an unknown state")
    count = int.from_bytes(stream.read(8), "little", signed=True)
    raw = stream.read()
    if count != storage.numel or len(raw) != count * storage.kind.dtype.itemsize:
        raise PickleError("tensor storage with missing numbers")
    return _Storage(storage.kind.dtype, raw)


class _PersistentStorage(_StandIn):
    __slots__ = ("key", "kind", "numel")

    def __init__(self, kind: _StorageType, key: str, numel: int) -> None:
        self.kind, self.key, self.numel = kind, key, numel


_TORCH_MAGIC, _TORCH_VERSION = 0x1950A86A20F9469CFC6C, 1001
_TORCH_STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
    "BoolStorage": "?",
}  # fmt: skip


def _allowed() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): _OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
    }
    for module in ("__builtin__", "builtins"):
        names[module, "bytes"] = _no_bytes
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = _frombuffer
    for name, dtype in _TORCH_STORAGES.items():
        names["torch", name] = _StorageType(dtype)
    return names


_ALLOWED = _allowed()
_CALLABLE = tuple(v for v in _ALLOWED.values() if not isinstance(v, _StandIn))
_REFUSED = (
    pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
    pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX,
)  # fmt: skip


# The pure-Python unpickler: its instruction table can be narrowed, and its memo is a dict, which a
# large index in the file cannot blow up.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    dispatch: ClassVar[dict] = {
        code: action
        for code, action in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if bytes([code]) not in _REFUSED
    }

    def __init__(self, stream: io.BytesIO, size: int, *, storages: bool = False) -> None:
        super().__init__(stream, fix_imports=True, encoding="latin1")
        self._size, self._storages = size, storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise PickleError(f"refused: the pickle asks for {module}.{name}"[:160])
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _PersistentStorage:
        if (
            not self._storages
            or not isinstance(pid, tuple)
            or len(pid) not in (5, 6)
            or pid[0] != "storage"
            or not isinstance(pid[1], _StorageType)
            or (len(pid) == 6 and pid[5] is not None)
        ):
            raise PickleError("refused: the pickle refers to something outside itself")
        return _PersistentStorage(pid[1], pid[2], pid[4])

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is known for known in _CALLABLE) or not isinstance(arguments, tuple):
            raise PickleError("refused: the pickle calls something that is no array")
        self.stack[-1] = function(*arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if kind is not _OrderedDict or arguments:
            raise PickleError("refused: the pickle makes an object that is no array")
        self.append(_OrderedDict())

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _OrderedDict):  # attributes of a dict carry no label
            return
        if not isinstance(target, _Array | _DType):
            raise PickleError("refused: the pickle gives a state to something that is no array")
        target.__setstate__(state)

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise PickleError("bytes that reach beyond the end")
        self.append(self.read(size))

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


_DAMAGE = (
    pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
    OverflowError, MemoryError, RecursionError, NotImplementedError,
)  # fmt: skip


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
        if isinstance(value, _Array):
            return self._array(value, depth)
        raise PickleError(f"a {type(value).__name__.strip('_').lower()} where a label is expected")

    def _array(self, value: _Array, depth: int) -> Any:
        if value.shape is None:
            raise PickleError("an array without contents")
        dtype, count = value.dtype.numpy(), math.prod(value.shape)
        size = count * dtype.itemsize
        self._charge(size)
        order = "F" if value.fortran else "C"
        if dtype.hasobject:
            if not isinstance(value.data, list) or len(value.data) != count:
                raise PickleError(f"an object array of shape {value.shape} without its values")
            items = [self.convert(item, depth + 1) for item in value.data]
            if value.shape == ():
                return items[0]
            result = np.empty(count, object)
            for place, item in enumerate(items):
                result[place] = item
            return result.reshape(value.shape, order=order)
        data = value.data.encode("latin1") if isinstance(value.data, str) else value.data
        if not isinstance(data, bytes) or len(data) != size:
            raise PickleError(f"an array of shape {value.shape} without its {size} bytes")
        if size == 0:
            return np.empty(value.shape, dtype)
        return checked_text(np.frombuffer(data, dtype).reshape(value.shape, order=order))

    def _charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise PickleError("few bytes that expand to very many")


def _key(key: Any) -> str | int:
    if isinstance(key, str | int):
        return key
    raise PickleError("a dictionary key that is neither text nor number")
