"""npz files by row range: memory-mapped where stored, streamed where deflated, never unpickled.

Source: docs/reference/pipeline.md#npz (memmap of a stored member at its zip offset), #hostile-input
(what broken files look like). A stored member is mapped: no worker copies it. A deflated member in
C order is streamed: each worker keeps one decompressor per member and reads forward, so rows asked
for in rising order cost one pass in total and no memory; going back starts the pass anew. A member
that is deflated and in Fortran order is decompressed into memory at first use.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.paths import check_regular
from pipeline.readers.base import FieldSpec
from pipeline.readers.tables import Table
from skel_fit.npy_header import read_npy_header

_KINDS = "biufcSU"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CHUNK = 1 << 20
MAX_HELD_BYTES = 256 << 20
"""Of one file in memory: where its arrays cannot be mapped or streamed, all of them together."""
_BOMB_BYTES = 256 << 20
_BOMB_RATIO = 500  # real labels deflate 1.2 to 3 times
_DAMAGE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, ValueError, EOFError,
    KeyError, OSError, MemoryError, NotImplementedError, RuntimeError, SyntaxError, TypeError,
    OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A plain array in an npz file. `dtype` may be object: then only `NpzFile.bytes` reads it."""

    name: str
    entry: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    stored: bool
    size: int
    """Bytes of the array."""
    header: int
    """Bytes before the array within the member."""
    offset: int
    """Place of the array in the file; meaningful for stored members."""


class NpzFile:
    """The members of one npz file, their headers checked. Holds no open handle when pickled.

    Raises InputError: not a zip file, truncated, two members of one name, a header that does not
    fit its member, a member that no array of numbers or text is in.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self.path = path
        self.members = self._guard("", self._scan)
        self._maps: dict[str, np.ndarray] = {}
        self._streams: dict[str, IO[bytes]] = {}
        self._archive: zipfile.ZipFile | None = None
        held = sum(m.size for m in self.members.values() if m.fortran and not m.stored)
        if held > MAX_HELD_BYTES:
            raise self.error(
                "", f"{held} bytes deflated in Fortran order, at most {MAX_HELD_BYTES} are held in "
                "memory; save the file in C order or uncompressed",
            )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.members = state["path"], state["members"]
        self._maps, self._streams, self._archive = {}, {}, None

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of a member of rank 1 or more, C order, own memory, dtype as stored."""
        member = self.members[name]
        return self._guard(name, lambda: checked_text(self._rows(member, start, stop)))

    def whole(self, name: str) -> np.ndarray:
        """All of a plain member."""
        return self._guard(name, lambda: checked_text(self._whole(self.members[name])))

    def content(self, name: str, limit: int) -> bytes:
        """The bytes after the header of an object member (a pickle), at most `limit`."""
        member = self.members[name]
        if member.size > limit:
            raise self.error(name, f"{member.size} bytes of Python objects, at most {limit} read")

        def read() -> bytes:
            with self._zip().open(member.entry) as stream:
                _read_exactly(stream, member.header)
                return _read_exactly(stream, member.size)

        return self._guard(name, read)

    def check(self) -> None:
        """Read every member once against its CRC-32; memory stays at 1 MB."""
        for name, member in self.members.items():
            self._guard(name, partial(self._check_crc, member))

    def error(self, name: str, problem: str) -> InputError:
        where = f"{self.path}: member '{name}'" if name else f"{self.path}"
        return InputError(f"{where}: {problem}")

    # ---- opening ----

    def _scan(self) -> dict[str, Member]:
        size = self.path.stat().st_size
        if size == 0:
            raise ValueError("the file is empty")
        members: dict[str, Member] = {}
        with zipfile.ZipFile(self.path) as archive, self.path.open("rb") as raw:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if info.is_dir() or name == info.filename:
                    raise self.error(info.filename, "not an array (.npy), expected a npz file")
                if name in members:
                    raise self.error(name, "stored twice; write the file again")
                opened = self._guard(name, partial(_member, archive, raw, info, name, size))
                members[name] = opened
            packed = sum(info.compress_size for info in archive.infolist())
            _check_expansion(packed, sum(info.file_size for info in archive.infolist()))
        return members

    def _guard(self, name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except InputError:
            raise
        except FileNotFoundError:
            raise self.error("", "no such file") from None
        except _DAMAGE as error:
            what = " ".join(str(error).split())[:200] or type(error).__name__
            if not name and isinstance(error, zipfile.BadZipFile | EOFError | struct.error):
                what = f"not a whole npz file ({what}); download or copy it again"
            raise self.error(name, what) from error

    # ---- reading ----

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive

    def _rows(self, member: Member, start: int, stop: int) -> np.ndarray:
        if member.stored or member.fortran:
            return np.array(self._array(member)[start:stop], order="C")
        row = math.prod(member.shape[1:]) * member.dtype.itemsize
        stream = self._stream_at(member, member.header + start * row)
        data = _read_exactly(stream, (stop - start) * row)
        return np.frombuffer(data, member.dtype).reshape(stop - start, *member.shape[1:]).copy()

    def _stream_at(self, member: Member, place: int) -> IO[bytes]:
        stream = self._streams.get(member.name)
        if stream is None or stream.tell() > place:
            stream = self._streams[member.name] = self._zip().open(member.entry)
        # Not `seek`: zipfile skips 16 MB at a time, in memory.
        while gap := place - stream.tell():
            if not stream.read(min(gap, _CHUNK)):
                raise EOFError("ends early; download or copy the file again")
        return stream

    def _array(self, member: Member) -> np.ndarray:
        if member.name not in self._maps:
            self._maps[member.name] = self._map(member) if member.stored else self._whole(member)
        return self._maps[member.name]

    def _map(self, member: Member) -> np.ndarray:
        if member.size == 0:
            return np.empty(member.shape, member.dtype)
        page = member.offset - member.offset % mmap.ALLOCATIONGRANULARITY
        lead = member.offset - page
        with self.path.open("rb") as raw:
            data = mmap.mmap(raw.fileno(), lead + member.size, access=mmap.ACCESS_READ, offset=page)
        flat = np.frombuffer(data, member.dtype, math.prod(member.shape), lead)
        return flat.reshape(member.shape, order="F" if member.fortran else "C")

    def _whole(self, member: Member) -> np.ndarray:
        if member.dtype.hasobject:
            raise ValueError("an array of Python objects; save it as plain numbers or text")
        if member.size == 0:
            return np.empty(member.shape, member.dtype)
        with self._zip().open(member.entry) as stream:
            _read_exactly(stream, member.header)
            data = _read_exactly(stream, member.size)
        flat = np.frombuffer(data, member.dtype)
        return flat.reshape(member.shape, order="F" if member.fortran else "C")

    def _check_crc(self, member: Member) -> None:
        with zipfile.ZipFile(self.path) as archive, archive.open(member.entry) as stream:
            left = member.header + member.size
            while block := stream.read(_CHUNK):
                left -= len(block)
        if left:
            raise ValueError(f"{left} bytes are missing; download or copy the file again")


class NpzTable(Table):
    """Columns of an npz file: members with `rows` first, and constants that hold for every row.

    names: members to serve. extra: further columns (object arrays read apart) as whole arrays.
    """

    def __init__(
        self,
        file: NpzFile,
        rows: int,
        names: Iterable[str],
        constants: Iterable[str] = (),
        extra: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.path, self.files, self.rows = file.path, (file.path,), rows
        self._file, self._extra = file, dict(extra or {})
        self._constants = frozenset(constants)
        self.specs = {name: self._spec(name) for name in names}

    def with_column(self, name: str, values: np.ndarray) -> NpzTable:
        """The same columns and one more, of values (rows, ...)."""
        extra = self._extra | {name: values}
        return NpzTable(self._file, self.rows, (*self.specs, name), self._constants, extra)

    def _spec(self, name: str) -> FieldSpec:
        if name in self._extra:
            return FieldSpec(self._extra[name].dtype, self._extra[name].shape[1:])
        member = self._file.members[name]
        constant = name in self._constants
        return FieldSpec(member.dtype, member.shape if constant else member.shape[1:])

    def read(self, start: int, stop: int, names: Iterable[str] | None = None) -> dict:
        return {name: self._one(name, start, stop) for name in names or self.specs}

    def check(self) -> None:
        self._file.check()

    def _one(self, name: str, start: int, stop: int) -> np.ndarray:
        if name in self._extra:
            return self._extra[name][start:stop].copy()
        if name in self._constants:
            value = self._file.whole(name)
            return np.broadcast_to(value, (stop - start, *value.shape)).copy()
        return self._file.rows(name, start, stop)


def checked_text(values: np.ndarray) -> np.ndarray:
    """`values`; ValueError for text that holds no characters, which nothing could work with."""
    if values.dtype.kind == "U" and values.size:
        codes = np.ascontiguousarray(values).reshape(-1).view(f"{values.dtype.str[0]}u4")
        if codes.max() > 0x10FFFF:
            raise ValueError("text with numbers that are no Unicode characters")
    return values


def _check_expansion(packed: int, size: int) -> None:
    """Refuse bombs: one member, or all of a file together."""
    if size > _BOMB_BYTES and size > _BOMB_RATIO * packed:
        raise ValueError(
            f"{packed} bytes that expand to {size}; if that is meant, save the file uncompressed"
        )


def _member(
    archive: zipfile.ZipFile, raw: IO[bytes], info: zipfile.ZipInfo, name: str, file_size: int
) -> Member:
    if info.flag_bits & 1:
        raise ValueError("encrypted; expected a plain npz file")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in a way numpy does not write; save it with numpy.savez")
    _check_expansion(info.compress_size, info.file_size)
    with archive.open(info) as stream:
        shape, fortran, dtype = read_npy_header(stream)
        header = stream.tell()
    stored = info.compress_type == zipfile.ZIP_STORED
    size = info.file_size - header
    if not dtype.hasobject:
        if dtype.kind not in _KINDS:
            raise ValueError(f"an array of type {dtype}; expected numbers or text")
        expected = math.prod(shape) * dtype.itemsize
        if expected != size:
            raise ValueError(f"the header says {expected} bytes, the member has {size}")
        if dtype.itemsize == 0 and math.prod(shape) > 0:
            raise ValueError("text of width 0")
    offset = _data_offset(raw, info) + header
    if info.compress_size + offset - header > file_size or (
        stored and info.compress_size != info.file_size
    ):
        raise ValueError("reaches beyond the end of the file; download or copy it again")
    return Member(name, info.filename, dtype, shape, fortran, stored, size, header, offset)


def _data_offset(raw: IO[bytes], info: zipfile.ZipInfo) -> int:
    raw.seek(info.header_offset)
    fields = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    if fields[0] != b"PK\x03\x04":
        raise ValueError("no zip header where the index says; download or copy the file again")
    return info.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"ends {size - len(data)} bytes early; download or copy the file again")
    return data
