"""Correspondence files of others -> `SurfaceMap`: read as data, checked, never run.

Known: npz of `triangle_ids` and `baryc_coords` (tools of MHR) with its triangles, from a
PLY file; the sparse matrices that come with SMPL-X (`mtx` or `matrix` in a pickle; only the columns
of vertices count); sparse torch tensors (`smplx2smpl_sparse.pt`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skel_fit.bodies.surface_map import (
    LEAST_ENTRY,
    SUM_TOLERANCE,
    TARGET_VERTICES,
    UNKNOWN_FACES,
    SurfaceMap,
    faces_sha256,
)
from skel_fit.errors import ModelFileError
from skel_fit.model_files import SparseEntries, load_family, read_sparse
from skel_fit.strict_npz import DAMAGE, read_strict

SOURCES = {10_475: "smplx", 18_439: "mhr", TARGET_VERTICES: "smplh", 18_056: "soma", 13_718: "anny"}
"""Vertices -> name of the body that has so many."""
MHR_FACES = "mhr_face_mask.ply"
_LARGEST = 64 << 20
_NEGLIGIBLE = 1e-6
_TARGET_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Correspondence:
    """What a file says: weighted means of source vertices, and the source's triangles if known."""

    columns: np.ndarray  # (6890, 3)
    weights: np.ndarray  # (6890, 3) float64
    source_vertices: int
    faces: np.ndarray | None


def read_correspondence(path: Path, faces: Path | None = None) -> Correspondence:
    """Read a file by its kind.

    faces: PLY file with the source's triangles, which triangle numbers need; None: the one that
    MHR's tools keep beside it. Raises ModelFileError: one line that says what was expected.
    """
    try:
        start = path.open("rb").read(4)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    if start == b"PK\x03\x04" and path.suffix == ".npz":
        return _of_triangles(path, faces or path.parent / MHR_FACES)
    return _of_matrix(path, read_sparse(path, ("mtx", "matrix")))


def to_map(
    path: Path,
    found: Correspondence,
    target_faces: np.ndarray,
    *,
    source: str | None,
    licence: str,
    models: Path,
) -> SurfaceMap:
    """The map to SKEL's triangles. source: name of the body; None: told from its size.

    Triangles of SMPL-X and SMPL-H come from a model file of the folder, if one is there. Raises
    ModelFileError.
    """
    name = source or SOURCES.get(found.source_vertices)
    if name is None:
        raise ModelFileError(
            f"{path}: {found.source_vertices} source vertices are of no body known here; name it "
            "with --body"
        )
    faces = found.faces if found.faces is not None else _faces_of(models, name)
    try:
        return SurfaceMap(
            np.ascontiguousarray(found.columns, "<i4"),
            np.ascontiguousarray(found.weights, "<f4"),
            found.source_vertices,
            name,
            UNKNOWN_FACES if faces is None else faces_sha256(faces),
            faces_sha256(target_faces),
            licence,
            np.ones(TARGET_VERTICES, "<f4"),
        )
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and triangles (F, 3) of a binary little-endian PLY file.

    Raises ModelFileError.
    """
    try:
        data = path.open("rb").read(_LARGEST)
        head, end = data.index(b"ply"), data.index(b"end_header\n") + 11
        if head != 0 or end > 4096:
            raise ValueError("no PLY header")
        return _ply_parts(data[:end].decode("ascii").split("\n"), data[end:])
    except (OSError, ValueError, struct.error, KeyError, IndexError) as error:
        raise ModelFileError(
            f"{path}: not a binary PLY file of triangles ({str(error).splitlines()[0][:80]}); "
            "give --faces FILE with the triangles of the source"
        ) from error


_PLY_TYPES = {"float": "<f4", "double": "<f8", "uchar": "u1", "int": "<i4", "uint": "<u4"}


def _ply_parts(lines: list[str], body: bytes) -> tuple[np.ndarray, np.ndarray]:
    if "format binary_little_endian 1.0" not in lines:
        raise ValueError("not binary little-endian")
    kinds: list[tuple[str, str]] = []
    counts: dict[str, int] = {}
    element, list_kind = "", ""
    for words in (line.split() for line in lines):
        if words[:1] == ["element"]:
            element = words[1]
            counts[element] = int(words[2])
        elif words[:2] == ["property", "list"] and element == "face":
            list_kind = _PLY_TYPES[words[3]]
            if _PLY_TYPES[words[2]] != "u1":
                raise ValueError("lists of another kind")
        elif words[:1] == ["property"] and element == "vertex":
            kinds.append((words[2], _PLY_TYPES[words[1]]))
    if not list_kind:
        raise ValueError("faces without a list of their corners")
    vertex = np.dtype(kinds)
    face = np.dtype([("count", "u1"), ("corners", list_kind, 3)])
    size = counts["vertex"] * vertex.itemsize
    if len(body) != size + counts["face"] * face.itemsize:
        raise ValueError("another size than its header says")
    points = np.frombuffer(body, vertex, counts["vertex"])
    faces = np.frombuffer(body, face, counts["face"], size)
    if (faces["count"] != 3).any():
        raise ValueError("faces that are no triangles")
    place = np.stack([points[axis] for axis in "xyz"], axis=1).astype(np.float64)
    corners = faces["corners"].astype(np.int64)
    if corners.size and not 0 <= corners.min() <= corners.max() < len(points):
        raise ValueError("triangles of vertices that it has not")
    return place, corners


def _of_triangles(path: Path, faces: Path) -> Correspondence:
    kinds = {
        "triangle_ids": ("<i8", (TARGET_VERTICES,)),
        "baryc_coords": ("<f8", (TARGET_VERTICES, 3)),
    }
    try:
        found = read_strict(path, kinds, _LARGEST)
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ModelFileError(
            f"{path}: not a correspondence to SMPL's 6890 vertices ({reason}); expected members "
            "triangle_ids (6890) and baryc_coords (6890, 3), as in mhr2smpl_mapping.npz"
        ) from error
    if not faces.is_file():
        raise ModelFileError(
            f"{path}: names triangles, whose vertices stand in {faces.name} of the same folder of "
            "MHR's tools: put it beside, or give --faces FILE"
        )
    vertices, triangles = read_ply(faces)
    number = found["triangle_ids"]
    if not 0 <= number.min() <= number.max() < len(triangles):
        raise ModelFileError(
            f"{path}: member 'triangle_ids': triangles up to {number.max()}, {faces.name} has "
            f"{len(triangles)}"
        )
    return Correspondence(triangles[number], found["baryc_coords"], len(vertices), triangles)


def _of_matrix(path: Path, matrix: SparseEntries) -> Correspondence:
    rows, width = matrix.shape
    vertices = width
    if width // 2 in SOURCES and width % 2 == 0:
        vertices = width // 2  # the other half acts on normals
    if rows != TARGET_VERTICES or vertices not in SOURCES:
        raise ModelFileError(
            f"{path}: a matrix of {matrix.shape}, expected 6890 rows (SMPL) and one column a "
            "vertex of SMPL-X (10475), or twice as many"
        )
    used = (matrix.columns < vertices) & (np.abs(matrix.values) > _NEGLIGIBLE)
    row, column, value = matrix.rows[used], matrix.columns[used], matrix.values[used]
    order = np.argsort(row, kind="stable")
    row, column, value = row[order], column[order], value[order]
    count = np.bincount(row, minlength=TARGET_VERTICES)
    if count.max() > 3 or count.min() < 1:
        worst = int(count.argmax() if count.max() > 3 else count.argmin())
        raise ModelFileError(
            f"{path}: row {worst} has {count[worst]} entries on vertices, expected 1 to 3: a point "
            "of a triangle"
        )
    first = np.concatenate(([0], np.cumsum(count)[:-1]))
    place = np.arange(len(row)) - first[row]
    columns = np.repeat(column[first][:, None], 3, axis=1)
    weights = np.zeros((TARGET_VERTICES, 3))
    columns[row, place], weights[row, place] = column, value
    off = np.abs(weights.sum(axis=1) - 1.0)
    if off.max() > _TARGET_TOLERANCE or weights.min() < LEAST_ENTRY:
        raise ModelFileError(
            f"{path}: row {int(off.argmax())} adds up to 1 within {off.max():.2g}, expected "
            f"{SUM_TOLERANCE:g}, and entries of at least 0"
        )
    return Correspondence(columns, weights, vertices, None)


def _faces_of(models: Path, name: str) -> np.ndarray | None:
    """Triangles of a body from a model file that is there."""
    if name not in ("smplx", "smplh"):
        return None
    for gender in ("neutral", "male", "female"):
        try:
            return load_family(models, "smplx" if name == "smplx" else "smplh", gender).faces
        except ModelFileError:
            continue
    return None
