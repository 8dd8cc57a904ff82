"""`SurfaceMap`: where each vertex of SKEL's skin lies on the surface of another body.

A map belongs to two topologies, told by the SHA-256 of their triangles: the licensed SKEL and the
stand-in have 6890 vertices each, and their maps must never be mixed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from skel_fit.errors import ModelFileError
from skel_fit.strict_npz import DAMAGE, read_strict, write_strict

if TYPE_CHECKING:
    from torch import Tensor

    from skel_fit.skel import SKEL

_Array = TypeVar("_Array", np.ndarray, "Tensor")

TARGET_VERTICES = 6890
UNKNOWN_FACES = "0" * 64
"""Digest of a source whose triangles nobody gave: only its vertices are counted."""
SUM_TOLERANCE = 1e-5
"""How far the weights of a vertex may be from 1 in sum."""
LEAST_ENTRY = -1e-6
"""Weights below are no place on a triangle."""
_MOST_VERTICES = 1_000_000
_LARGEST = 4 << 20
_NAME = 40
_KINDS = {
    "columns": ("<i4", (TARGET_VERTICES, 3)),
    "weights": ("<f4", (TARGET_VERTICES, 3)),
    "vertex_weight": ("<f4", (TARGET_VERTICES,)),
    "source_vertices": ("<i8", ()),
    "source": ("U", ()),
    "source_faces_sha256": ("U", ()),
    "target_faces_sha256": ("U", ()),
    "licence": ("U", ()),
}


@dataclass(frozen=True)
class SurfaceMap:
    """Each target vertex as a weighted mean of three source vertices.

    columns: (6890, 3) int32 source vertices; weights: (6890, 3) float32, each row with sum 1;
    vertex_weight: (6890,) float32, 0 to 1, how far each correspondence can be relied on;
    source_vertices: how many vertices the source has; source: its name (`smplx`, `mhr`, ...);
    source_faces_sha256, target_faces_sha256: `faces_sha256` of both; licence: of the map.

    Raises ValueError where these do not make a map.
    """

    columns: np.ndarray
    weights: np.ndarray
    source_vertices: int
    source: str
    source_faces_sha256: str
    target_faces_sha256: str
    licence: str
    vertex_weight: np.ndarray

    def __post_init__(self) -> None:
        shape = (TARGET_VERTICES, 3)
        if self.columns.shape != shape or self.weights.shape != shape:
            raise ValueError(
                f"columns {self.columns.shape} and weights {self.weights.shape}, expected {shape}"
            )
        if not 0 < self.source_vertices <= _MOST_VERTICES:
            raise ValueError(f"source_vertices {self.source_vertices}")
        low, high = int(self.columns.min()), int(self.columns.max())
        if not 0 <= low <= high < self.source_vertices:
            raise ValueError(
                f"columns name vertices {low} to {high} of {self.source_vertices} source vertices"
            )
        off = np.abs(self.weights.astype(np.float64).sum(axis=1) - 1.0)
        if not off.max() <= SUM_TOLERANCE:
            raise ValueError(
                f"weights of vertex {int(np.nanargmax(off))} do not add up to 1 (off by "
                f"{np.nanmax(off):.2g})"
            )
        if self.weights.min() < LEAST_ENTRY:
            raise ValueError(f"a weight of {self.weights.min():.2g}, expected at least 0")
        trust = self.vertex_weight
        if trust.shape != shape[:1] or not ((trust >= 0.0) & (trust <= 1.0)).all():
            raise ValueError(f"vertex_weight {trust.shape}: expected {shape[:1]} of 0 to 1")
        if not trust.max() > 0.0:
            raise ValueError("vertex_weight is 0 for every vertex")
        for digest in (self.source_faces_sha256, self.target_faces_sha256):
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{digest[:70]!r} is no SHA-256")
        if not self.source or len(self.source) > _NAME or not self.source.isidentifier():
            raise ValueError(f"source {self.source[:50]!r} is no name of a body")
        if not self.licence:
            raise ValueError("licence is empty")

    @staticmethod
    def of(
        columns: np.ndarray,
        weights: np.ndarray,
        *,
        source: str,
        source_vertices: int,
        source_faces: np.ndarray,
        target_faces: np.ndarray,
        licence: str,
        vertex_weight: np.ndarray | None = None,
    ) -> SurfaceMap:
        """A map from arrays of any integer and float type; None: every vertex counts fully."""
        trust = np.ones(len(columns)) if vertex_weight is None else vertex_weight
        return SurfaceMap(
            np.ascontiguousarray(columns, "<i4"),
            np.ascontiguousarray(weights, "<f4"),
            int(source_vertices),
            source,
            faces_sha256(source_faces),
            faces_sha256(target_faces),
            licence,
            np.ascontiguousarray(trust, "<f4"),
        )

    @staticmethod
    def same_topology(faces: np.ndarray, source: str = "smpl") -> SurfaceMap:
        """The map of a body that has the target's own vertices and triangles (SMPL, SMPL-H)."""
        own = np.repeat(np.arange(TARGET_VERTICES)[:, None], 3, axis=1)
        first = np.tile((1.0, 0.0, 0.0), (TARGET_VERTICES, 1))
        return SurfaceMap.of(
            own,
            first,
            source=source,
            source_vertices=TARGET_VERTICES,
            source_faces=faces,
            target_faces=faces,
            licence="none: every vertex is itself",
        )

    def apply(self, vertices: _Array) -> _Array:
        """Source vertices (n, V, 3) -> (n, 6890, 3), numpy or torch, in their dtype.

        A row's result does not depend on the others. Raises ValueError for another V.
        """
        self.check_shape(tuple(vertices.shape))
        if isinstance(vertices, np.ndarray):
            shares = self.weights.astype(vertices.dtype)
            parts = [vertices[:, self.columns[:, k]] * shares[:, k, None] for k in range(3)]
            return parts[0] + parts[1] + parts[2]
        import torch

        columns = torch.as_tensor(self.columns.T.copy(), device=vertices.device)
        shares = torch.as_tensor(self.weights.T.copy()).to(vertices)[:, :, None]
        # a few rows at a time on a processor: what is in between stays in its cache
        found = vertices.new_empty(len(vertices), len(self.columns), 3)
        width = 1 if vertices.device.type == "cpu" else max(1, len(vertices))
        for given, out in zip(vertices.split(width), found.split(width), strict=True):
            torch.mul(given.index_select(1, columns[0]), shares[0], out=out)
            for k in (1, 2):
                out += given.index_select(1, columns[k]) * shares[k]
        return found

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError where vertices of this shape are not the source's (n, V, 3)."""
        if len(shape) != 3 or shape[1:] != (self.source_vertices, 3):
            raise ValueError(
                f"vertices of shape {shape}; the map of {self.source} takes "
                f"(n, {self.source_vertices}, 3)"
            )

    def carried(self, values: np.ndarray) -> np.ndarray:
        """What belongs to source vertices (V, k), as of the target's (6890, k)."""
        return np.einsum("vc,vck->vk", self.weights.astype(np.float64), values[self.columns])

    @property
    def knows_source_faces(self) -> bool:
        """Whether the source's triangles were known when the map was made."""
        return self.source_faces_sha256 != UNKNOWN_FACES

    def check_target(self, skel: SKEL) -> None:
        """Raises ValueError where the map is for another topology of 6890 vertices."""
        found = faces_sha256(skel.faces.cpu().numpy())
        if found != self.target_faces_sha256:
            body = "the licence-free stand-in" if skel.standin else "the licensed SKEL"
            raise ValueError(
                f"the map of {self.source} leads to another topology (triangles "
                f"{self.target_faces_sha256[:12]}...) than {body} has ({found[:12]}...); a map "
                "made for the stand-in does not fit the licensed bodies, and the other way round"
            )

    def check_source(self, faces: np.ndarray) -> None:
        """Raises ValueError where a source with these triangles (F, 3) is not the map's."""
        if self.knows_source_faces and faces_sha256(faces) != self.source_faces_sha256:
            raise ValueError(
                f"the triangles of the source ({len(faces)}) are not those that the map of "
                f"{self.source} was made for"
            )

    def digest(self) -> str:
        """SHA-256 of the content."""
        digest = hashlib.sha256()
        for name, value in sorted(vars(self).items()):
            data = value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()
            digest.update(f"{name} {len(data)}\n".encode() + data)
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write it as npz, whole or not at all; same map, same bytes. Raises OSError."""
        write_strict(
            path,
            {
                "columns": self.columns,
                "weights": self.weights,
                "vertex_weight": self.vertex_weight,
                "source_vertices": np.array(self.source_vertices, "<i8"),
                "source": np.array(self.source),
                "source_faces_sha256": np.array(self.source_faces_sha256),
                "target_faces_sha256": np.array(self.target_faces_sha256),
                "licence": np.array(self.licence),
            },
        )

    @staticmethod
    def read(path: Path) -> SurfaceMap:
        """Read a map of anybody: exactly its members, arrays of expected kinds, nothing is run.

        Raises ModelFileError in one line.
        """
        try:
            found = read_strict(path, _KINDS, _LARGEST)
            texts = {name: str(found[name]) for name, (kind, _) in _KINDS.items() if kind == "U"}
            return SurfaceMap(
                columns=found["columns"],
                weights=found["weights"],
                source_vertices=int(found["source_vertices"]),
                vertex_weight=found["vertex_weight"],
                **texts,
            )
        except DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            raise ModelFileError(
                f"{path}: not a map between bodies of hmr-skel ({reason}); make it again with "
                "hmr-skel maps add"
            ) from error


def faces_sha256(faces: np.ndarray) -> str:
    """SHA-256 of triangles (F, 3), in the order of the file, as little-endian int32."""
    return hashlib.sha256(np.ascontiguousarray(faces, "<i4").tobytes()).hexdigest()
