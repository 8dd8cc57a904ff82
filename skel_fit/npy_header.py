"""Headers of npy arrays of untrusted files: the three entries that numpy writes, nothing else.

numpy gives a header to Python's own parser, which nesting makes fail in many ways, and falls back
to a tokenizer that knows further ones.
"""

from __future__ import annotations

import re
import struct
from typing import IO

import numpy as np

MAX_BYTES = 10_000
"""Of a header; numpy's own bound."""

_LENGTHS = {(1, 0): struct.Struct("<H"), (2, 0): struct.Struct("<I")}
_VALUES = {
    "descr": re.compile(r"'descr': *'([<>|=]?[A-Za-z]\d{0,9}(?:\[\w{1,9}\])?)'"),
    "fortran_order": re.compile(r"'fortran_order': *(True|False)"),
    "shape": re.compile(r"'shape': *\(((?:\d{1,19}L?, *){0,32}(?:\d{1,19}L?)?)\)"),
}
# Of records, `descr` is a list: no file that we read has them.
_HEADER = re.compile(
    r"\{{(?: *(?:{}) *,?){{3}} *\}}\s*".format("|".join(p.pattern for p in _VALUES.values()))
)


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype; the stream is left at the array.

    Raises:
        ValueError: no npy header, or one of records; TypeError: a dtype that does not exist.
    """
    version = np.lib.format.read_magic(stream)
    if version not in _LENGTHS:
        raise ValueError(f"an array of npy version {version}; expected 1.0 or 2.0")
    (length,) = _LENGTHS[version].unpack(_exactly(stream, _LENGTHS[version].size))
    if length > MAX_BYTES:
        raise ValueError(f"a header of {length} bytes, expected at most {MAX_BYTES}")
    text = _exactly(stream, length).decode("latin1")
    found = {name: pattern.findall(text) for name, pattern in _VALUES.items()}
    if not _HEADER.fullmatch(text) or any(len(values) != 1 for values in found.values()):
        raise ValueError(f"a header that is none of plain numbers or text: {text[:60]!r}")
    shape = tuple(int(n) for n in re.findall(r"\d+", found["shape"][0]))
    return shape, found["fortran_order"][0] == "True", np.dtype(found["descr"][0])


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("ends within the header of an array; download or copy the file again")
    return data
