"""Restricted reader of the official SKEL and SMPL files, and of joint regressors.

Source: docs/reference/skel-model.md#skel-files, #smpl-files. A model file is untrusted: pickles are
read as data (`restricted_pickle`), with stand-ins for scipy and chumpy too; arrays are made
afterwards from checked bytes. Zip (npz) files are read member by member, without pickles.
"""

import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import smplx
import torch
from smplx.utils import Struct

from skel_fit import restricted_pickle
from skel_fit.anatomy import JOINT_NAMES, NUM_JOINTS, NUM_POSES, PARENTS, SMPL_PARENTS
from skel_fit.errors import ModelFileError
from skel_fit.npy_header import read_npy_header
from skel_fit.restricted_pickle import Array, PickleError, StandIn, is_stand_in, one_line
from skel_fit.skel import (
    NUM_BETAS,
    NUM_FACES,
    NUM_POSE_FEATURES,
    NUM_VERTICES,
    SKEL,
    SkelArrays,
)
from skel_fit.strict_npz import plain_members

Kind = Literal["skel", "smpl", "smplh", "smplx"]

SKEL_VERSION = "1.1.1"

_ALL = ("neutral", "male", "female")
_GENDERS = {"skel": ("male", "female"), "smpl": _ALL, "smplh": _ALL, "smplx": _ALL}
_WHERE = {
    "skel": "download SKEL v1.1.1 from https://skel.is.tue.mpg.de",
    "smpl": "download SMPL from https://smpl.is.tue.mpg.de",
    "smplh": "download SMPL-H (the extended model of AMASS) from https://mano.is.tue.mpg.de",
    "smplx": "download SMPL-X from https://smpl-x.is.tue.mpg.de",
}
_MAX_FILE_BYTES = 4 << 30
_MAX_SKELETON = 2_000_000  # vertices or faces of the bone mesh; the released files have 247,252
_MAX_CHUMPY_DEPTH = 8
_ORTHONORMAL_TOLERANCE = 1e-4

# ---- which file ---------------------------------------------------------------------------------


def model_file(path: str | Path, kind: Kind, gender: str) -> Path:
    """The file that `path` means: itself if it is a file, else the official name inside it.

    kind `skel`: genders male, female; `smpl`, `smplh`, `smplx`: neutral, male, female.
    Raises ModelFileError if there is no such file or gender.
    """
    path = Path(path)
    if kind not in _GENDERS:
        raise ModelFileError(f"{path}: expected kind {', '.join(_GENDERS)}, found {kind!r}")
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
    if kind != "smpl":
        upper = f"{kind.upper()}_{gender.upper()}"
        names = [f"{upper}.npz", f"{upper}.pkl"]
        return [*names, *(f"{kind}/{name}" for name in names), f"{kind}/{gender}/model.npz"]
    letter = gender if gender == "neutral" else gender[0]
    names = [
        f"SMPL_{gender.upper()}.pkl",
        f"SMPL_{gender.upper()}.npz",
        f"basicmodel_{letter}_lbs_10_207_0_v1.1.0.pkl",
        f"basicModel_{letter}_lbs_10_207_0_v1.0.0.pkl",
    ]
    return [f"smpl/{names[0]}", *names, *(f"smpl/{name}" for name in names[1:])]


# ---- what the files hold besides plain arrays ---------------------------------------------------


class _Attributes(StandIn):
    """An object whose state is a dict."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and state[1] is None:
            state = state[0]
        if not isinstance(state, dict):
            raise PickleError("object with an unknown state")
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


class _Object(StandIn):
    __slots__ = ()


def _copyreg_reconstructor(kind: Any, base: Any = None, state: Any = None) -> StandIn:
    if not is_stand_in(kind) or base is not _Object or state is not None:
        raise PickleError("object of an unknown class")
    return kind()


def _model_names() -> dict[tuple[str, str], Any]:
    """Exact module and name -> stand-in."""
    names: dict[tuple[str, str], Any] = {
        **restricted_pickle.ARRAY_NAMES,
        ("chumpy.ch", "Ch"): _Chumpy,
        ("chumpy", "Ch"): _Chumpy,
        ("chumpy.reordering", "Select"): _ChumpySelect,
    }
    for name, stand_in in (("coo", _Sparse), ("csr", _Csr), ("csc", _Csc)):
        for module in (f"scipy.sparse.{name}", f"scipy.sparse._{name}"):
            names[module, f"{name}_matrix"] = stand_in
            names[module, f"{name}_array"] = stand_in
    for module in ("copy_reg", "copyreg"):
        names[module, "_reconstructor"] = _copyreg_reconstructor
    for module in ("__builtin__", "builtins"):
        names[module, "object"] = _Object
    return names


_NAMES = _model_names()


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
    if isinstance(value, Array | _Sparse | _NpyArray):
        return value.numpy()
    if isinstance(value, int | float | list | tuple):
        array = np.array(value)
        if array.dtype.kind in "biuf":
            return array
    raise ValueError(f"a {type(value).__name__.lstrip('_').lower()}")


def _stored_shape(value: Any) -> tuple[int, ...] | None:
    """Shape that the file announces, before any array is made; None where only reading tells."""
    if isinstance(value, Array | _Sparse | _NpyArray):
        return value.shape
    return None


# ---- npy and npz --------------------------------------------------------------------------------


class _NpyArray:
    """One array in numpy's own format, of a file or a member of a zip file of `size` bytes.

    Read when asked for, never through pickle.
    """

    def __init__(self, opened: Callable[[], AbstractContextManager[IO[bytes]]], size: int) -> None:
        self._opened, self._size = opened, size

    @property
    def shape(self) -> tuple[int, ...]:
        with self._opened() as file:
            return self._header(file)[0]

    def numpy(self) -> np.ndarray:
        with self._opened() as file:
            shape, fortran, dtype = self._header(file)
            data = file.read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        shape, fortran, dtype = read_npy_header(file)
        if dtype.hasobject or dtype.kind not in "biufSU":
            raise ValueError("an array of Python objects; save it as plain numbers")
        size = file.tell() + math.prod(shape) * dtype.itemsize
        if size != self._size:
            raise ValueError(
                f"an array whose header says {size} bytes in a file or member of {self._size}"
            )
        return shape, fortran, dtype


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        members = plain_members(archive)
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise ValueError("a zip file with two members of one name")
    return {
        member.filename.removesuffix(".npy"): _NpyArray(
            partial(_open_member, path, member), member.file_size
        )
        for member in members
        if member.filename.endswith(".npy")
    }


@contextmanager
def _open_member(path: Path, member: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield file


# ---- checked access -----------------------------------------------------------------------------

# What damaged bytes can raise, inside zipfile too.
_DAMAGE = (
    *restricted_pickle.DAMAGE, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
    struct.error,
)  # fmt: skip


def _read(path: Path) -> Any:
    """Content of a pickle, npz (a dict) or npy file; values are plain, stand-ins or unread."""
    try:
        if not path.is_file() and path.exists():
            raise ModelFileError(f"{path}: not a regular file")
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path}: expected a model file of at most {_MAX_FILE_BYTES} bytes, found {size}"
            )
        with path.open("rb") as file:
            magic = file.read(6)
            file.seek(0)
            if magic.startswith(b"PK\x03\x04"):
                return _read_npz(path)
            if magic == np.lib.format.MAGIC_PREFIX:
                return _NpyArray(lambda: path.open("rb"), size)
            return restricted_pickle.load(file, size, _NAMES)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ModelFileError:
        raise
    except _DAMAGE as error:
        reason = one_line(error)
        reason = reason if reason.startswith("refused: ") else f"refused: {reason}"
        raise ModelFileError(
            f"{path}: not a body-model file, or damaged: {reason}; expected the official file, "
            "unchanged; download it again"
        ) from error


class _AtLeast(int):
    """A dimension of at least this size."""


Size = int | None
_MANY = None  # any number up to _MAX_SKELETON


class _Fields:
    """Checked access to the entries of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read(path)
        if not isinstance(self._entries, dict):
            raise ModelFileError(
                f"{path}: expected a dictionary of arrays, found "
                f"a {type(self._entries).__name__.lstrip('_')}"
            )

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

    def _array(self, key: str, shape: tuple[Size, ...], what: str, kinds: str) -> np.ndarray:
        expected = f"{what} of shape ({', '.join(map(_size_text, shape))})"
        value = self.require(key, expected)
        try:
            return _numbers(value, shape, kinds)
        except _DAMAGE as error:
            raise self.error(key, expected, one_line(error)) from error


def _numbers(value: Any, shape: tuple[Size, ...], kinds: str) -> np.ndarray:
    """Array of a shape and of dtype kinds; ValueError says what there is instead."""
    announced = _stored_shape(value)
    if announced is not None and not _fits(announced, shape):
        raise ValueError(f"shape {announced}")
    array = _plain(value, 0)
    if not _fits(array.shape, shape):
        raise ValueError(f"shape {array.shape}")
    if array.dtype.kind not in kinds:
        raise ValueError(f"type {array.dtype}")
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


def load_smpl(path: str | Path, gender: str, *, dtype: torch.dtype = torch.float32) -> smplx.SMPL:
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


# ---- SMPL-H, SMPL-X ------------------------------------------------------------------------------

_FAMILY = {"smplh": (NUM_VERTICES, NUM_FACES, 52), "smplx": (10475, 20908, 55)}
_SPLIT_SHAPE = 300
"""Shape directions before those of expressions, in files with all of them (400)."""


@dataclass(frozen=True)
class FamilyArrays:
    """What an SMPL-H or SMPL-X file holds, float64; metres."""

    name: str
    gender: str
    template: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    directions: np.ndarray  # (V, 3, B) shape
    expressions: np.ndarray  # (V, 3, E)
    correctives: np.ndarray  # (V, 3, 9 (J - 1))
    regressor: np.ndarray  # (J, V)
    weights: np.ndarray  # (V, J)
    parents: tuple[int, ...]  # -1 for the root
    hand_means: tuple[np.ndarray, np.ndarray]  # left, right (45,)
    path: Path
    standin: bool


def load_family(path: str | Path, kind: Literal["smplh", "smplx"], gender: str) -> FamilyArrays:
    """SMPL-H or SMPL-X from an official file (or its folder). gender: neutral, male or female.

    Raises ModelFileError.
    """
    fields = _Fields(model_file(path, kind, gender))
    vertices, faces, joints = _FAMILY[kind]
    tree = fields.integers("kintree_table", (2, joints))
    parents = (-1, *tree[0, 1:].tolist())
    if parents[:22] != SMPL_PARENTS[:22] or any(p >= j for j, p in enumerate(parents)):
        raise fields.error(
            "kintree_table", f"the tree of {kind.upper()}, its body that of SMPL", f"{parents}"
        )
    directions = fields.floats("shapedirs", (vertices, 3, _AtLeast(NUM_BETAS)))
    count = directions.shape[2]
    shapes = count
    if kind == "smplx":  # 10 and 10, or 300 and 100
        shapes = min(_SPLIT_SHAPE, count) if count != 2 * NUM_BETAS else NUM_BETAS
    weights = fields.floats("weights", (vertices, joints))
    if (np.abs(weights.sum(axis=1) - 1.0) > 1e-3).any() or weights.min() < -1e-6:
        raise fields.error("weights", "skinning weights that add up to 1", "others")
    means = [
        fields.floats(key, (45,)) if fields.get(key) is not None else np.zeros(45)
        for key in ("hands_meanl", "hands_meanr")
    ]
    return FamilyArrays(
        name=kind,
        gender=gender,
        template=fields.floats("v_template", (vertices, 3)),
        faces=fields.faces("f", faces, vertices),
        directions=directions[:, :, :shapes],
        expressions=directions[:, :, shapes:],
        correctives=fields.floats("posedirs", (vertices, 3, 9 * (joints - 1))),
        regressor=fields.floats("J_regressor", (joints, vertices)),
        weights=weights,
        parents=parents,
        hand_means=(means[0], means[1]),
        path=fields.path,
        standin=_is_standin(fields),
    )


# ---- sparse matrices ----------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseEntries:
    """Entries of a sparse matrix: rows, columns and values (k,) each."""

    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def read_sparse(path: str | Path, keys: tuple[str, ...]) -> SparseEntries:
    """A sparse matrix: of a pickle, under one of `keys`, or a sparse tensor of torch's own format.

    Nothing is run. Raises ModelFileError.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped:
            return _sparse_tensor(path)
        content = _read(path)
        value = next((content[key] for key in keys if key in content), None)
        if not isinstance(value, _Sparse):
            raise ValueError(f"no sparse matrix under {' or '.join(keys)}")
        values = _plain(value.state.get("data"), 0).astype(np.float64)
        rows, columns = value._positions(values)
        return SparseEntries(value.shape, rows, columns, values)
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (*_DAMAGE, pickle.UnpicklingError) as error:
        raise ModelFileError(
            f"{path}: not a correspondence file: {one_line(error)}; expected a pickle with "
            f"{' or '.join(keys)}, or a sparse tensor"
        ) from error


def _sparse_tensor(path: Path) -> SparseEntries:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not (isinstance(found, torch.Tensor) and found.is_sparse and found.ndim == 2):
        raise ValueError("no sparse tensor of two dimensions")
    shape = (int(found.shape[0]), int(found.shape[1]))
    rows, columns = found._indices().numpy()
    values = found._values().numpy().astype(np.float64)
    if values.shape != rows.shape or (
        len(rows)
        and (
            min(rows.min(), columns.min()) < 0
            or rows.max() >= shape[0]
            or columns.max() >= shape[1]
        )
    ):
        raise ValueError("a sparse tensor with an index out of range")
    return SparseEntries(shape, rows, columns, values)


# ---- joint regressors ---------------------------------------------------------------------------


def load_joint_regressor(path: str | Path, rows: int) -> np.ndarray:
    """A joint regressor (rows, 6890), float64: points as weights of the SMPL or SKEL skin.

    path: a pickle (dense or scipy sparse) or a npy file. Raises ModelFileError.
    """
    path = Path(path)
    expected = f"a joint regressor of shape ({rows}, {NUM_VERTICES})"
    value = _read(path)
    try:
        matrix = _numbers(value, (rows, NUM_VERTICES), "iuf").astype(np.float64)
    except _DAMAGE as error:
        raise ModelFileError(
            f"{path}: expected {expected}, found {one_line(error)}; copy the file of that name "
            "from the official download"
        ) from error
    if bad := int((~np.isfinite(matrix)).sum()):
        raise ModelFileError(
            f"{path}: expected {expected} of finite numbers, found {bad} that are not; download "
            "it again"
        )
    return matrix
