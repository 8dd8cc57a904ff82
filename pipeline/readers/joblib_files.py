"""Files of `joblib.dump` as data: a pickle between whose instructions arrays lie as raw bytes.

Only what is not compressed and holds plain arrays is read; the arrays stay in the file, mapped,
until somebody looks at them, so that a result of gigabytes costs what is used of it. How joblib
writes: docs/reference/label-formats.md#joblib.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pipeline.readers.npz import checked_text
from pipeline.readers.pickles import LABEL_NAMES, MAX_OBJECT_BYTES, Mapped, plain_values
from skel_fit.restricted_pickle import Array, DType, Following, PickleError, is_shape, load

REMEDY = (
    "load it with joblib where it was made and save its arrays with numpy.savez (docs/inputs.md)"
)
_COMPRESSED = {
    b"\x78": "zlib", b"\x1f\x8b": "gzip", b"BZ": "bz2", b"\x5d\x00": "lzma",
    b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"ZF": "an old way of joblib",
}  # fmt: skip
_MODULE = "joblib.numpy_pickle"


def compression(start: bytes) -> str:
    """How a file that begins so was compressed; empty: it was not."""
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), "")


def load_pickle_file(path: Path) -> Any:
    """Plain values of a file of `pickle.dump` or `joblib.dump`, as `load_pickle` gives them.

    Raises PickleError: as there, or a compressed file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if not start:
            raise PickleError("the file is empty; download or copy it again")
        if how := compression(start):
            raise PickleError(f"compressed ({how}); {REMEDY}")
        stream = _Counted(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        content = load(cast("IO[bytes]", stream), stream.size, _NAMES)
    except PickleError as error:
        if f"asks for {_MODULE.split('.')[0]}." in str(error):
            raise PickleError(f"{error}; {REMEDY}") from error
        raise
    return plain_values(content, stream.size)


class _Counted:
    """A mapped file as a stream. What is read, not skipped, may be `MAX_OBJECT_BYTES`."""

    def __init__(self, data: mmap.mmap) -> None:
        self.size, self._data, self._left = len(data), data, MAX_OBJECT_BYTES

    def read(self, size: int = -1) -> bytes:
        return self._charged(self._data.read(size if size >= 0 else self.size))

    def readline(self) -> bytes:
        return self._charged(self._data.readline())

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def skip(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        start = self._data.tell()
        if size > self.size - start:
            raise PickleError("an array that reaches beyond the end; download or copy it again")
        self._data.seek(start + size)
        return memoryview(self._data)[start : start + size]

    def _charged(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise PickleError(
                f"more than {MAX_OBJECT_BYTES} bytes of Python objects; save plain arrays with "
                "numpy.savez"
            )
        return data


class _JoblibArray(Following, Mapped):
    """`NumpyArrayWrapper`: what an array is; its bytes follow, after a padding in newer files."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __setstate__(self, state: Any) -> None:
        known = isinstance(state, dict) and state.get("subclass") is Array
        dtype = state.get("dtype") if known else None
        if not known or not is_shape(state.get("shape")) or not isinstance(dtype, DType):
            raise PickleError(f"refused: an array of joblib of an unknown kind; {REMEDY}")
        self.dtype = dtype.numpy()
        if self.dtype.hasobject:
            raise PickleError(f"refused: an array of Python objects in a joblib file; {REMEDY}")
        self.shape, self.fortran = state["shape"], state.get("order") == "F"
        padding = state.get("numpy_array_alignment_bytes")
        self.data: Any = padding  # until `follow`

    def follow(self, stream: IO[bytes], size: int) -> None:
        if not isinstance(stream, _Counted):
            raise PickleError("refused: an array of joblib outside a joblib file")
        if self.data is not None:
            padding = stream.read(1)
            stream.read(padding[0] if padding else 0)
        self.data = stream.skip(math.prod(self.shape) * self.dtype.itemsize)

    def numpy(self) -> np.ndarray:
        if not isinstance(self.data, memoryview):
            raise PickleError("an array of joblib without its bytes")
        if math.prod(self.shape) * self.dtype.itemsize == 0:
            return np.empty(self.shape, self.dtype)
        flat = np.frombuffer(self.data, self.dtype)
        values = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return checked_text(values)


_NAMES = {**LABEL_NAMES, (_MODULE, "NumpyArrayWrapper"): _JoblibArray}
