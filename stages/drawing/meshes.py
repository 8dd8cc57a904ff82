"""Meshes as binary glTF 2.0 (.glb), written by trimesh: one file, one material a mesh.

glTF is y up and looks along -z; camera frame is y down, z forward: (x, y, z) -> (x, -y, -z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from stages.drawing.render import vertex_normals

_FLIP = np.array((1.0, -1.0, -1.0))


@dataclass(frozen=True)
class Part:
    """A named mesh: vertices (V, 3) camera frame, metres; faces (F, 3); RGBA in [0, 1]."""

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    color: tuple[float, float, float, float]


def glb_bytes(parts: Sequence[Part]) -> bytes:
    """The bytes of a .glb file; the same parts give the same bytes."""
    scene = trimesh.Scene()
    for part in parts:
        scene.add_geometry(_mesh(part), node_name=part.name, geom_name=part.name)
    return scene.export(file_type="glb", include_normals=True)


def _mesh(part: Part) -> trimesh.Trimesh:
    normals = vertex_normals(part.vertices, part.faces) * _FLIP
    # A vertex without faces has no normal; glTF wants unit length.
    normals[np.linalg.norm(normals, axis=1) < 0.5] = (0.0, 0.0, 1.0)
    material = PBRMaterial(
        name=part.name,
        baseColorFactor=part.color,
        metallicFactor=0.0,
        roughnessFactor=0.8,
        alphaMode="BLEND" if part.color[3] < 1 else "OPAQUE",
        doubleSided=True,
    )
    return trimesh.Trimesh(
        part.vertices * _FLIP,
        part.faces,
        vertex_normals=normals,
        visual=TextureVisuals(material=material),
        process=False,
    )
