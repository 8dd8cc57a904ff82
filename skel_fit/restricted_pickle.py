"""Pickles of untrusted files as data: plain values and stand-ins for arrays; nothing is ever run.

`load` knows a few names only and maps every one of them to an inert stand-in of ours, so nothing of
numpy, scipy, torch or chumpy runs while a file is read, and instructions that only import or run
something are refused. Arrays are made afterwards (`Array.numpy`), from bytes whose number was
checked. Model files and label files add the names that they need to `ARRAY_NAMES`.
Source: docs/reference/skel-model.md#untrusted, docs/reference/pipeline.md#hostile-input.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

import numpy as np

_DTYPE = re.compile(r"[<>|=]?(?:[biuf](?:1|2|4|8)|[SU][0-9]{1,5}|O8?)")


class PickleError(ValueError):
    """Refused: an unknown name, an instruction that no data needs, or damaged bytes. One line."""


# What damaged bytes can raise inside pickle and numpy; anything else is our own mistake.
DAMAGE = (
    pickle.UnpicklingError, struct.error, ValueError, TypeError, KeyError, IndexError,
    AttributeError, EOFError, OverflowError, MemoryError, RecursionError, NotImplementedError,
)  # fmt: skip


def load(
    stream: IO[bytes],
    size: int,
    names: Mapping[tuple[str, str], Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The next pickle of a stream: plain containers, text, numbers and stand-ins.

    size: bytes of the stream; no value is longer. names: (module, name) -> `StandIn` class or
    function that makes one; `ARRAY_NAMES` by default. persistent: what a persistent id becomes;
    None: refused. Raises PickleError.
    """
    try:
        return _Unpickler(stream, size, ARRAY_NAMES if names is None else names, persistent).load()
    except PickleError:
        raise
    except DAMAGE as error:
        raise PickleError(f"not a readable pickle of data ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """What an error says, for the middle of a message."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def is_shape(value: Any) -> bool:
    """Whether `value` can be the shape of an array."""
    return (
        isinstance(value, tuple)
        and len(value) <= 32
        and all(type(n) is int and 0 <= n < 1 << 40 for n in value)
    )


# ---- stand-ins ----------------------------------------------------------------------------------


class StandIn:
    """Base of what an allowed name becomes: keeps what the file says, runs nothing."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise PickleError("refused: the pickle gives a state to something that takes none")


class Following(StandIn):
    """A stand-in whose contents lie in the stream, behind the instruction that gives its state."""

    __slots__ = ()

    def follow(self, stream: IO[bytes], size: int) -> None:
        """Read them; `stream` stands at their first byte. size: bytes of the stream."""
        raise NotImplementedError


class DType(StandIn):
    """numpy.dtype: numbers, text, bytes or Python objects; no structured types."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any = None, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise PickleError(f"refused: the array type {str(code)[:40]!r} is not allowed")
        self.code, self.order = code.lstrip("<>|="), code[0] if code[0] in "<>" else "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise PickleError("array type with an unknown state")
        self.order = state[1] if state[1] in "<>" else "="

    def numpy(self) -> np.dtype:
        return np.dtype(object) if self.code[0] == "O" else np.dtype(self.order + self.code)


class Array(StandIn):
    """numpy.ndarray: shape, type and contents as the file gives them, not yet checked."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise PickleError("array with an unknown state")
        self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        if not is_shape(shape) or not isinstance(dtype, DType):
            raise PickleError("array with an unknown state")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, bool(fortran), data

    def numpy(self) -> np.ndarray:
        """Read-only array. PickleError: Python objects, or not as many bytes as the shape says."""
        if self.shape is None:
            raise PickleError("an array without contents")
        dtype = self.dtype.numpy()
        if dtype.hasobject:
            raise PickleError("an array of Python objects")
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        size = math.prod(self.shape) * dtype.itemsize
        if not isinstance(data, bytes) or len(data) != size:
            raise PickleError(f"an array of shape {self.shape} without its {size} bytes")
        if size == 0:
            return np.empty(self.shape, dtype)
        flat = np.frombuffer(data, dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class OrderedDict(dict, StandIn):
    """collections.OrderedDict; its items arrive as pairs or one by one."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__()
        for key, value in items:
            self[key] = value

    def __setstate__(self, state: Any) -> None:
        """Attributes of a dictionary carry no data."""


def _reconstruct(kind: Any, *_: Any) -> Array:
    if kind is not Array:
        raise PickleError("array of an unknown class")
    return Array()


def _scalar(dtype: Any, data: Any = None) -> Array:
    value = Array()
    value.fill((), dtype, False, data)
    return value


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Array:
    value = Array()
    value.fill(shape, dtype, order == "F", data)
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("refused: a text encoding that no data needs")
    return text.encode("latin1")


def _array_names() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): OrderedDict,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = _frombuffer
    return names


#: (module, name) of what pickled numpy arrays ask for -> stand-in.
ARRAY_NAMES: Mapping[tuple[str, str], Any] = _array_names()


# ---- the unpickler ------------------------------------------------------------------------------

# Instructions that only run or import something; no data needs them.
_REFUSED_OPCODES = (
    pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
    pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX,
)  # fmt: skip


# The pure-Python unpickler: its instruction table can be narrowed and its memo is a dict, which a
# hostile index cannot blow up. Our files have few instructions, so it is not slow.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)
    # What the published types of the class leave out.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(
        self,
        stream: IO[bytes],
        size: int,
        names: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream, encoding="latin1", fix_imports=False)
        self._size, self._names, self._persistent = size, names, persistent
        self._stream = stream

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise PickleError(f"refused: the pickle asks for {module}.{name}"[:160])
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise PickleError("refused: the pickle refers to something outside itself")
        return self._persistent(pid)

    def _refuse(self) -> None:
        raise PickleError("refused: an instruction that no data needs")

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        known = any(function is value for value in self._names.values())
        if not known or not callable(function) or not isinstance(arguments, tuple):
            raise PickleError("refused: the pickle calls something that makes no data")
        self.stack[-1] = function(*arguments)

    def _newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack[-1]
        if arguments != () or not is_stand_in(kind):
            raise PickleError("refused: the pickle makes an object that is no data")
        self.stack[-1] = kind()

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, StandIn):
            raise PickleError("refused: the pickle gives a state to something that takes none")
        target.__setstate__(state)
        if isinstance(target, Following):
            target.follow(self._stream, self._size)

    def _append(self) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def _appends(self) -> None:
        items = self.pop_mark()
        self._list().extend(items)

    def _list(self) -> list:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError("refused: items for something that is no list")
        return target

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._mapping()[key] = value

    def _setitems(self) -> None:
        items = self.pop_mark()
        self._mapping().update(zip(items[::2], items[1::2], strict=True))

    def _mapping(self) -> dict:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise PickleError("refused: entries for something that is no dictionary")
        return target

    def _bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise PickleError("bytes that reach beyond the end")
        self.append(bytes(self.read(size)))

    for _opcode in _REFUSED_OPCODES:
        dispatch[_opcode[0]] = _refuse
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _newobj
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.APPEND[0]] = _append
    dispatch[pickle.APPENDS[0]] = _appends
    dispatch[pickle.SETITEM[0]] = _setitem
    dispatch[pickle.SETITEMS[0]] = _setitems
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    del _opcode


def is_stand_in(value: Any) -> bool:
    """Whether `value` is a class of stand-ins."""
    return isinstance(value, type) and issubclass(value, StandIn)
