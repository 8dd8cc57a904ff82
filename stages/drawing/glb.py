"""Meshes as binary glTF 2.0 (.glb): one file, positions, normals, faces, one colour a mesh.

glTF is y up and looks along -z; camera frame is y down, z forward: (x, y, z) -> (x, -y, -z).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.drawing.render import vertex_normals

_MAGIC, _VERSION = b"glTF", 2
_JSON, _BINARY = 0x4E4F534A, 0x004E4942
_FLOAT, _UINT32 = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963


@dataclass(frozen=True)
class Part:
    """A named mesh: vertices (V, 3) camera frame, metres; faces (F, 3); RGBA in [0, 1]."""

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    color: tuple[float, float, float, float]


def glb_bytes(parts: Sequence[Part]) -> bytes:
    """The bytes of a .glb file; the same parts give the same bytes."""
    views: list[dict] = []
    accessors: list[dict] = []
    blob = bytearray()

    def store(array: np.ndarray, target: int, kind: str, component: int, **extra: list) -> int:
        data = np.ascontiguousarray(array).tobytes()
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data),
                      "target": target})  # fmt: skip
        accessors.append({"bufferView": len(views) - 1, "componentType": component,
                          "count": array.size if kind == "SCALAR" else len(array),
                          "type": kind, **extra})  # fmt: skip
        blob.extend(data)
        return len(accessors) - 1

    meshes, materials, nodes = [], [], []
    for k, part in enumerate(parts):
        flip = np.array((1.0, -1.0, -1.0))
        places = (part.vertices * flip).astype("<f4")
        normals = (vertex_normals(part.vertices, part.faces) * flip).astype("<f4")
        # A vertex without faces has no normal; glTF wants unit length.
        normals[np.linalg.norm(normals, axis=1) < 0.5] = (0.0, 0.0, 1.0)
        attributes = {
            "POSITION": store(places, _ARRAY_BUFFER, "VEC3", _FLOAT,
                              min=places.min(0).tolist(), max=places.max(0).tolist()),
            "NORMAL": store(normals, _ARRAY_BUFFER, "VEC3", _FLOAT),
        }  # fmt: skip
        indices = store(part.faces.astype("<u4"), _ELEMENT_BUFFER, "SCALAR", _UINT32)
        meshes.append({"name": part.name, "primitives": [
            {"attributes": attributes, "indices": indices, "material": k}]})  # fmt: skip
        materials.append({
            "name": part.name, "doubleSided": True,
            "alphaMode": "BLEND" if part.color[3] < 1 else "OPAQUE",
            "pbrMetallicRoughness": {"baseColorFactor": list(part.color), "metallicFactor": 0.0,
                                     "roughnessFactor": 0.8},
        })  # fmt: skip
        nodes.append({"name": part.name, "mesh": k})
    document = {
        "asset": {"version": "2.0", "generator": "hmr-skel"},
        "scene": 0, "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes, "meshes": meshes, "materials": materials,
        "bufferViews": views, "accessors": accessors, "buffers": [{"byteLength": len(blob)}],
    }  # fmt: skip
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = _chunk(_JSON, text, b" ") + _chunk(_BINARY, bytes(blob), b"\0")
    return struct.pack("<4sII", _MAGIC, _VERSION, 12 + len(chunks)) + chunks


def _chunk(kind: int, data: bytes, filler: bytes) -> bytes:
    data += filler * (-len(data) % 4)
    return struct.pack("<II", len(data), kind) + data
