"""Restricted reader of the official SKEL and SMPL files.

Source: reference/skel-model.md section 1. A model file is untrusted: a pickle is read by an
unpickler that knows a few names only and maps every one of them to an inert stand-in of ours, so
nothing of numpy, scipy or chumpy runs while it is read; arrays are made afterwards from checked
bytes. Zip (npz) files are read member by member, without pickles.
"""

import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import numpy as np
import smplx
import torch
from smplx.utils import Struct

from skel_fit.errors import ModelFileError
from skel_fit.pose_table import JOINT_NAMES, NUM_JOINTS, NUM_POSES, PARENTS
from skel_fit.skel import (
    NUM_BETAS,
    NUM_FACES,
    NUM_POSE_FEATURES,
    NUM_VERTICES,
    SKEL,
    SkelArrays,
)

Kind = Literal["skel", "smpl"]

SKEL_VERSION = "1.1.1"
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

_GENDERS = {"skel": ("male", "female"), "smpl": ("neutral", "male", "female")}
_WHERE = {
    "skel": "download SKEL v1.1.1 from https://skel.is.tue.mpg.de",
    "smpl": "download SMPL from https://smpl.is.tue.mpg.de",
}
_MAX_FILE_BYTES = 4 << 30
_MAX_SKELETON = 2_000_000  # vertices or faces of the bone mesh; the released files have 247,252
_MAX_CHUMPY_DEPTH = 8
_ORTHONORMAL_TOLERANCE = 1e-4

# ---- which file ---------------------------------------------------------------------------------


def model_file(path: str | Path, kind: Kind, gender: str) -> Path:
    """The file that `path` means: itself if it is a file, else the official name inside it.

    kind `skel`: genders male, female; kind `smpl`: neutral, male, female.
    Raises ModelFileError if there is no such file or gender.
    """
    path = Path(path)
    if kind not in _GENDERS:
        raise ModelFileError(f"{path}: expected kind skel or smpl, found {kind!r}")
    if gender not in _GENDERS[kind]:
        raise ModelFileError(
            f"{path}: {kind} gender: expected one of {', '.join(_GENDERS[kind])}, found "
            f"{gender!r}" + ("; there is no neutral SKEL" if kind == "skel" else "")
        )
    if path.is_file():
        return path
    names = _official_names(kind, gender)
    if not path.is_dir():
        raise ModelFileError(
            f"{path}: no such file or folder; expected {names[0]} or a folder that holds it; "
            f"{_WHERE[kind]}"
        )
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ModelFileError(
        f"{path}: {kind} model for gender {gender} is missing; expected one of "
        f"{', '.join(names)} in this folder; {_WHERE[kind]}"
    )


def _official_names(kind: Kind, gender: str) -> list[str]:
    if kind == "skel":
        return [f"skel_{gender}.pkl", f"skel/skel_{gender}.pkl",
                f"skel_models_v1.1/skel_{gender}.pkl"]  # fmt: skip
    letter = gender if gender == "neutral" else gender[0]
    names = [
        f"SMPL_{gender.upper()}.pkl",
        f"SMPL_{gender.upper()}.npz",
        f"basicmodel_{letter}_lbs_10_207_0_v1.1.0.pkl",
        f"basicModel_{letter}_lbs_10_207_0_v1.0.0.pkl",
    ]
    return [f"smpl/{names[0]}", *names, *(f"smpl/{name}" for name in names[1:])]


# ---- inert stand-ins ----------------------------------------------------------------------------

_DTYPE = re.compile(r"[<>|=]?(?:[biuf](?:1|2|4|8)|[SU][0-9]{1,4}|O8?)")


class _StandIn:
    """Base of what an allowed name becomes: keeps what the file says, runs nothing."""

    __slots__ = ()


class _DType(_StandIn):
    __slots__ = ("byteorder", "code")

    def __init__(self, code: Any = None, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"array type {str(code)[:40]!r} is not allowed")
        self.code = code.lstrip("<>|=")
        self.byteorder = code[0] if code[0] in "<>" else "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("array type with an unknown state")
        self.byteorder = state[1]

    def numpy(self) -> np.dtype:
        if self.code.startswith("O"):
            raise ValueError("an array of Python objects")
        order = self.byteorder if self.byteorder in "<>" else "="
        return np.dtype(order + self.code)


class _Array(_StandIn):
    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("array with an unknown state")
        self.fill(*state[-4:])

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        if (
            not isinstance(shape, tuple)
            or not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in shape)
            or not isinstance(dtype, _DType)
        ):
            raise pickle.UnpicklingError("array with an unknown state")
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, bool(fortran), data

    def numpy(self) -> np.ndarray:
        if self.shape is None:
            raise ValueError("an array without contents")
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        dtype = self.dtype.numpy()
        size = math.prod(self.shape) * dtype.itemsize
        if not isinstance(data, bytes | bytearray) or len(data) != size:
            raise ValueError(f"an array of shape {self.shape} without its {size} bytes")
        flat = np.frombuffer(data, dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class _Attributes(_StandIn):
    """An object whose state is a dict."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and state[1] is None:
            state = state[0]
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("object with an unknown state")
        self.state = state


class _Sparse(_Attributes):
    """A scipy sparse matrix; subclasses say the format."""

    __slots__ = ()
    format = "coo"

    @property
    def shape(self) -> tuple[int, int]:
        shape = self.state.get("_shape")
        if not (isinstance(shape, tuple) and len(shape) == 2):
            raise ValueError("a sparse matrix without a shape")
        rows, columns = (int(n) for n in shape)
        return rows, columns

    def numpy(self) -> np.ndarray:
        """Dense; the caller has checked the shape."""
        values = _plain(self.state.get("data"), 0).astype(np.float64)
        rows, columns = self._positions(values)
        shape = self.shape
        if values.ndim != 1 or rows.shape != values.shape or columns.shape != values.shape:
            raise ValueError("a sparse matrix whose indices and values differ in number")
        if len(values) and (
            min(rows.min(), columns.min()) < 0
            or rows.max() >= shape[0]
            or columns.max() >= shape[1]
        ):
            raise ValueError("a sparse matrix with an index out of range")
        dense = np.zeros(shape)
        np.add.at(dense, (rows, columns), values)  # duplicates add up
        return dense

    def _positions(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def indices(name: str) -> np.ndarray:
            return _plain(self.state.get(name), 0).astype(np.int64)

        if self.format == "coo":
            coords = self.state.get("coords")
            if isinstance(coords, tuple) and len(coords) == 2:
                row, column = (_plain(c, 0).astype(np.int64) for c in coords)
                return row, column
            return indices("row"), indices("col")
        pointer, minor = indices("indptr"), indices("indices")
        majors = self.shape[0] if self.format == "csr" else self.shape[1]
        counts = np.diff(pointer)
        if len(pointer) != majors + 1 or (counts < 0).any() or counts.sum() != len(values):
            raise ValueError("a sparse matrix with a damaged index")
        major = np.repeat(np.arange(majors), counts)
        return (major, minor) if self.format == "csr" else (minor, major)


class _Csr(_Sparse):
    __slots__ = ()
    format = "csr"


class _Csc(_Sparse):
    __slots__ = ()
    format = "csc"


class _Chumpy(_Attributes):
    """chumpy.ch.Ch: the value is `x`."""

    __slots__ = ()


class _ChumpySelect(_Attributes):
    """chumpy.reordering.Select: the value is ravel(a)[idxs] in `preferred_shape`."""

    __slots__ = ()


class _Object(_StandIn):
    __slots__ = ()


def _numpy_reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("array of an unknown class")
    return _Array()


def _numpy_scalar(dtype: Any, data: Any = None) -> _Array:
    value = _Array()
    value.fill((), dtype, False, data)
    return value


def _numpy_frombuffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    value = _Array()
    value.fill(shape, dtype, order == "F", data)
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "bytes"):
        raise pickle.UnpicklingError("string encoding is not allowed")
    return text.encode("latin1")


def _copyreg_reconstructor(kind: Any, base: Any = None, state: Any = None) -> _StandIn:
    if not _is_stand_in(kind) or base is not _Object or state is not None:
        raise pickle.UnpicklingError("object of an unknown class")
    return kind()


def _dict(*args: Any) -> dict:
    if args:
        raise pickle.UnpicklingError("dictionary with arguments is not allowed")
    return {}


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, _StandIn)


def _allowed_names() -> dict[tuple[str, str], Any]:
    """Exact module and name -> stand-in."""
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): _dict,
        ("chumpy.ch", "Ch"): _Chumpy,
        ("chumpy", "Ch"): _Chumpy,
        ("chumpy.reordering", "Select"): _ChumpySelect,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = _numpy_reconstruct
        allowed[f"{core}.multiarray", "scalar"] = _numpy_scalar
        allowed[f"{core}.numeric", "_frombuffer"] = _numpy_frombuffer
    for name, stand_in in (("coo", _Sparse), ("csr", _Csr), ("csc", _Csc)):
        for module in (f"scipy.sparse.{name}", f"scipy.sparse._{name}"):
            allowed[module, f"{name}_matrix"] = stand_in
            allowed[module, f"{name}_array"] = stand_in
    for module in ("copy_reg", "copyreg"):
        allowed[module, "_reconstructor"] = _copyreg_reconstructor
    for module in ("__builtin__", "builtins"):
        allowed[module, "object"] = _Object
    return allowed


_ALLOWED = _allowed_names()
_FUNCTIONS = tuple(v for v in _ALLOWED.values() if not isinstance(v, type))

# Instructions that only run or import something; no model file needs them.
_REFUSED_OPCODES = (
    pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
    pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX,
)  # fmt: skip


# The pure-Python unpickler: its instruction table can be narrowed and its memo is a dict, which a
# hostile index cannot blow up. Model files have few instructions, so it is not slow.
class _RestrictedUnpickler(pickle._Unpickler):
    """Reads plain containers, arrays, sparse matrices and chumpy values; refuses the rest."""

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, encoding="latin1", fix_imports=False)
        self._size = size

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except (KeyError, TypeError):
            full = f"{module}.{name}"[:80]
            raise pickle.UnpicklingError(f"the name {full!r} is not allowed") from None

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("an instruction that no model file needs")

    def _reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        known = function in _FUNCTIONS if callable(function) else False
        if not isinstance(args, tuple) or not (known or _is_stand_in(function)):
            raise pickle.UnpicklingError("a call that is not allowed")
        self.stack[-1] = function(*args)

    def _newobj(self) -> None:
        args = self.stack.pop()
        kind = self.stack[-1]
        if args != () or not _is_stand_in(kind):
            raise pickle.UnpicklingError("an object that is not allowed")
        self.stack[-1] = kind()

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _DType | _Array | _Attributes):
            raise pickle.UnpicklingError("a state for an object that takes none")
        target.__setstate__(state)

    def _append(self) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def _appends(self) -> None:
        items = self.pop_mark()
        self._list().extend(items)

    def _list(self) -> list:
        target = self.stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError("items for something that is no list")
        return target

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._mapping()[key] = value

    def _setitems(self) -> None:
        items = self.pop_mark()
        target = self._mapping()
        target.update(zip(items[::2], items[1::2], strict=True))

    def _mapping(self) -> dict:
        target = self.stack[-1]
        if type(target) is not dict:
            raise pickle.UnpicklingError("entries for something that is no dictionary")
        return target

    def _bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self._size:
            raise pickle.UnpicklingError("a byte string longer than the file")
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


def _plain(value: Any, depth: int) -> np.ndarray:
    """Array behind a stand-in; ValueError says what it is if there is none."""
    if depth > _MAX_CHUMPY_DEPTH:
        raise ValueError("a chumpy value nested too deeply")
    if isinstance(value, _Chumpy):
        return _plain(value.state.get("x"), depth + 1)
    if isinstance(value, _ChumpySelect):
        source = _plain(value.state.get("a"), depth + 1)
        index = _plain(value.state.get("idxs"), depth + 1).astype(np.int64)
        if len(index) and (index.min() < 0 or index.max() >= source.size):
            raise ValueError("a chumpy selection with an index out of range")
        selected = source.ravel()[index]
        shape = value.state.get("preferred_shape")
        if shape is None:
            return selected
        size = tuple(int(n) for n in np.atleast_1d(_plain(shape, depth + 1)))
        return selected.reshape(size)
    if isinstance(value, _Array | _Sparse | _NpzMember):
        return value.numpy()
    if isinstance(value, int | float | list | tuple):
        array = np.array(value)
        if array.dtype.kind in "biuf":
            return array
    raise ValueError(f"a {type(value).__name__.lstrip('_').lower()}")


def _stored_shape(value: Any) -> tuple[int, ...] | None:
    """Shape that the file announces, before any array is made; None where only reading tells."""
    if isinstance(value, _Array | _Sparse | _NpzMember):
        return value.shape
    return None


# ---- npz ----------------------------------------------------------------------------------------


class _NpzMember:
    """One array of a zip file; read when asked for, never through pickle."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._path, self._info = path, info

    @property
    def shape(self) -> tuple[int, ...]:
        with self._open() as (_, shape, _, _):
            return shape

    def numpy(self) -> np.ndarray:
        with self._open() as (file, shape, fortran, dtype):
            data = file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
        with zipfile.ZipFile(self._path) as archive, archive.open(self._info) as file:
            version = np.lib.format.read_magic(file)
            readers: dict[tuple[int, int], Callable[[IO[bytes]], Any]] = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in readers:
                raise ValueError(f"an array of npy version {version}")
            shape, fortran, dtype = readers[version](file)
            if dtype.hasobject or dtype.kind not in "biufSU":
                raise ValueError("an array of Python objects; save it as plain numbers")
            size = file.tell() + math.prod(shape) * dtype.itemsize
            if size != self._info.file_size:
                raise ValueError(
                    f"an array whose header says {size} bytes in a member of "
                    f"{self._info.file_size}"
                )
            yield file, shape, fortran, dtype


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise ValueError("a zip file with two members of one name")
    return {
        member.filename.removesuffix(".npy"): _NpzMember(path, member)
        for member in members
        if member.filename.endswith(".npy")
    }


# ---- checked access -----------------------------------------------------------------------------

# What damaged bytes can raise inside pickle, zipfile and numpy; anything else is our own mistake.
_DAMAGE = (
    pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
    OverflowError, MemoryError, RecursionError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error,
)  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    """Top-level dict of a pickle or npz file; values are plain or stand-ins."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path}: expected a model file of at most {_MAX_FILE_BYTES} bytes, found {size}"
            )
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            found = _read_npz(path) if is_zip else _RestrictedUnpickler(file, size).load()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ModelFileError:
        raise
    except _DAMAGE as error:
        raise ModelFileError(
            f"{path}: refused, not a body-model file or damaged: {_one_line(error)}; expected the "
            "official file, unchanged; download it again"
        ) from error
    if not isinstance(found, dict):
        raise ModelFileError(
            f"{path}: expected a dictionary of arrays, found a {type(found).__name__}"
        )
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


class _AtLeast(int):
    """A dimension of at least this size."""


Size = int | None
_MANY = None  # any number up to _MAX_SKELETON


class _Fields:
    """Checked access to the entries of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read(path)

    def error(self, key: str, expected: str, found: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: key {key!r}: expected {expected}, found {found}")

    def get(self, key: str) -> Any:
        """Raw entry, or None."""
        return self._entries.get(key)

    def require(self, key: str, expected: str) -> Any:
        if key not in self._entries:
            raise self.error(key, expected, "no such key")
        return self._entries[key]

    def floats(self, key: str, shape: tuple[Size, ...]) -> np.ndarray:
        """Finite numbers of the given shape, float64."""
        array = self._array(key, shape, "numbers", "biuf").astype(np.float64)
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise self.error(key, "finite numbers", f"{bad} that are not")
        return array

    def integers(self, key: str, shape: tuple[Size, ...]) -> np.ndarray:
        """Whole numbers of the given shape, int64."""
        array = self._array(key, shape, "integers", "biu")
        if array.dtype.kind == "u" and array.dtype.itemsize == 8:
            array = np.minimum(array, np.iinfo(np.int64).max)
        return array.astype(np.int64)

    def faces(self, key: str, count: Size, vertices: int) -> np.ndarray:
        faces = self.integers(key, (count, 3))
        if len(faces) and not 0 <= faces.min() <= faces.max() < vertices:
            raise self.error(
                key, f"vertex numbers 0..{vertices - 1}", f"{faces.min()}..{faces.max()}"
            )
        return faces

    def rotations(self, key: str, array: np.ndarray) -> np.ndarray:
        product = array @ array.transpose(0, 2, 1)
        error = np.abs(product - np.eye(3)).max(axis=(1, 2))
        worst = int(error.argmax())
        if error[worst] > _ORTHONORMAL_TOLERANCE:
            raise self.error(
                key,
                f"orthonormal matrices (to {_ORTHONORMAL_TOLERANCE:g})",
                f"an error of {error[worst]:.2g} at entry {worst} ({JOINT_NAMES[worst]})",
            )
        mirrored = np.flatnonzero(np.linalg.det(array) < 0)
        if len(mirrored):
            raise self.error(key, "rotations", f"a reflection at entry {mirrored[0]}")
        return array

    def weights(self, key: str, rows: Size) -> np.ndarray:
        weights = self.floats(key, (rows, NUM_JOINTS))
        empty = np.flatnonzero(~(weights.sum(1) > 0))
        if len(empty):
            raise self.error(key, "a positive sum of weights in every row", f"none in {empty[0]}")
        return weights

    def _array(
        self, key: str, shape: tuple[Size, ...], what: str, kinds: str
    ) -> np.ndarray:
        expected = f"{what} of shape ({', '.join(map(_size_text, shape))})"
        value = self.require(key, expected)
        try:
            announced = _stored_shape(value)
            if announced is not None and not _fits(announced, shape):
                raise self.error(key, expected, f"shape {announced}")
            array = _plain(value, 0)
        except ModelFileError:
            raise
        except _DAMAGE as error:
            raise self.error(key, expected, _one_line(error)) from error
        if not _fits(array.shape, shape):
            raise self.error(key, expected, f"shape {array.shape}")
        if array.dtype.kind not in kinds:
            raise self.error(key, expected, f"type {array.dtype}")
        return array


def _size_text(size: Size) -> str:
    if size is None:
        return "N"
    return f">={int(size)}" if isinstance(size, _AtLeast) else str(size)


def _fits(found: tuple[int, ...], expected: tuple[Size, ...]) -> bool:
    def one(n: int, size: Size) -> bool:
        if size is None:
            return 0 < n <= _MAX_SKELETON
        return size <= n <= 1000 if isinstance(size, _AtLeast) else n == size

    return len(found) == len(expected) and all(map(one, found, expected))


# ---- SKEL ---------------------------------------------------------------------------------------


def load_skel(
    path: str | Path,
    gender: str,
    *,
    dtype: torch.dtype = torch.float32,
    corrected_left_ankle: bool = False,
) -> SKEL:
    """SKEL from an official v1.1.1 file (or the folder that holds it).

    gender: male or female (there is no neutral SKEL); corrected_left_ankle: mirror the axis of
    ankle_angle_l, which the published model does not do. Raises ModelFileError.
    """
    fields = _Fields(model_file(path, "skel", gender))
    _check_version(fields)
    _check_names(fields)
    parents = _skel_parents(fields)
    transforms = fields.floats("apose_rel_transfo", (NUM_JOINTS, 4, 4))
    skeleton = fields.floats("skel_template_v", (_MANY, 3))
    arrays = SkelArrays(
        template=fields.floats("skin_template_v", (NUM_VERTICES, 3)),
        faces=fields.faces("skin_template_f", NUM_FACES, NUM_VERTICES),
        shapedirs=fields.floats("shapedirs", (NUM_VERTICES, 3, _AtLeast(NUM_BETAS)))[
            :, :, :NUM_BETAS
        ],
        posedirs=fields.floats("posedirs", (NUM_VERTICES, 3, NUM_POSE_FEATURES)),
        joint_regressor=fields.floats("J_regressor_osim", (NUM_JOINTS, NUM_VERTICES)),
        skin_weights=fields.weights("skin_weights", NUM_VERTICES),
        per_joint_rot=fields.rotations(
            "per_joint_rot", fields.floats("per_joint_rot", (NUM_JOINTS, 3, 3))
        ),
        apose_rot=fields.rotations("apose_rel_transfo", transforms[:, :3, :3]),
        apose_trans=transforms[:, :3, 3],
        kintree_parents=parents,
        skeleton_template=skeleton,
        skeleton_faces=fields.faces("skel_template_f", _MANY, len(skeleton)),
        skeleton_weights=fields.weights("skel_weights", len(skeleton)),
        skeleton_weights_rigid=fields.weights("skel_weights_rigid", len(skeleton)),
        gender=gender,
        path=fields.path,
        standin=_is_standin(fields),
    )
    return SKEL(arrays, dtype=dtype, corrected_left_ankle=corrected_left_ankle)


def _check_version(fields: _Fields) -> None:
    advice = f"version {SKEL_VERSION!r}"
    version = fields.get("version")
    if version is None and ("weights" in fields._entries or "joint_sockets" in fields._entries):
        raise fields.error(
            "version", advice, f"none: an older SKEL (v1.0) or another model; {_WHERE['skel']}"
        )
    version = fields.require("version", advice)
    if isinstance(version, bytes):
        version = version.decode("latin1")
    if version != SKEL_VERSION:
        raise fields.error("version", advice, f"{str(version)[:40]!r}; {_WHERE['skel']}")
    stored = fields.get("gender")
    if isinstance(stored, str) and stored not in ("", "male", "female"):
        raise fields.error("gender", "male or female", repr(stored[:40]))


def _check_names(fields: _Fields) -> None:
    for key, count in (("joints_name", NUM_JOINTS), ("pose_params_name", NUM_POSES)):
        names = fields.get(key)
        if isinstance(names, list | tuple) and len(names) != count:
            raise fields.error(key, f"{count} names", str(len(names)))


def _skel_parents(fields: _Fields) -> np.ndarray:
    table = fields.integers("osim_kintree_table", (2, NUM_JOINTS))
    if (table[1] != np.arange(NUM_JOINTS)).any() or (table[0, 1:] != PARENTS[1:]).any():
        raise fields.error(
            "osim_kintree_table",
            f"the SKEL tree with parents {list(PARENTS)}",
            f"parents {table[0].tolist()} of joints {table[1].tolist()}",
        )
    return table[0]


def _is_standin(fields: _Fields) -> bool:
    """Files of the licence-free default body carry the key `standin`."""
    return "standin" in fields._entries


# ---- SMPL ---------------------------------------------------------------------------------------


def load_smpl(
    path: str | Path, gender: str, *, dtype: torch.dtype = torch.float32
) -> smplx.SMPL:
    """An `smplx.SMPL` layer with 10 betas from an official SMPL file (or its folder).

    gender: neutral, male or female. The layer has no parameters of its own: pass `betas` (B, 10),
    `global_orient` (B, 3), `body_pose` (B, 69) and, if wanted, `transl` (B, 3) in every call. Its
    attributes `path` (Path) and `standin` (bool) say where it comes from. Raises ModelFileError.
    """
    fields = _Fields(model_file(path, "smpl", gender))
    tree = fields.integers("kintree_table", (2, NUM_JOINTS))
    if (tree[0, 1:] != SMPL_PARENTS[1:]).any():
        raise fields.error(
            "kintree_table", f"the SMPL tree with parents {list(SMPL_PARENTS)}",
            f"parents {tree[0].tolist()}",
        )  # fmt: skip
    tree[0, 0] = -1  # stored as 4294967295
    directions = fields.floats("shapedirs", (NUM_VERTICES, 3, _AtLeast(NUM_BETAS)))
    data = Struct(
        v_template=fields.floats("v_template", (NUM_VERTICES, 3)),
        shapedirs=_padded(directions[:, :, :NUM_BETAS]),
        posedirs=fields.floats("posedirs", (NUM_VERTICES, 3, NUM_POSE_FEATURES)),
        J_regressor=fields.floats("J_regressor", (NUM_JOINTS, NUM_VERTICES)),
        weights=fields.weights("weights", NUM_VERTICES),
        kintree_table=tree,
        f=fields.faces("f", NUM_FACES, NUM_VERTICES),
    )
    smpl = smplx.SMPL(
        model_path=str(fields.path),
        data_struct=data,
        num_betas=NUM_BETAS,
        gender=gender,
        dtype=dtype,
        create_betas=False,
        create_global_orient=False,
        create_body_pose=False,
        create_transl=False,
    )
    # Licensed arrays stay out of the checkpoints of networks that hold a body model.
    smpl._non_persistent_buffers_set.update(name for name, _ in smpl.named_buffers(recurse=False))
    smpl.path = fields.path
    smpl.standin = _is_standin(fields)
    return smpl


def _padded(directions: np.ndarray) -> np.ndarray:
    """Shape directions with zeros up to 300: smplx prints a warning for shorter ones."""
    padded = np.zeros((*directions.shape[:2], smplx.SMPL.SHAPE_SPACE_DIM), dtype=np.float64)
    padded[:, :, : directions.shape[2]] = directions
    return padded
