"""Bones and joint offsets of the Rajagopal 2015 full-body model (MIT), from its plain files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Mesh:
    """vertices (n, 3) metres in the body's own frame (x forward, y up, z right); faces (m, 3)."""

    vertices: np.ndarray
    faces: np.ndarray

    def pieces(self) -> list[Mesh]:
        """Connected components, in the order of their first vertex."""
        edges = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]]])
        n = len(self.vertices)
        graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
        count, label = connected_components(graph, directed=False)
        out = []
        for piece in range(count):
            member = np.flatnonzero(label == piece)
            faces = self.faces[label[self.faces[:, 0]] == piece]
            if len(faces):
                number = np.full(n, -1)
                number[member] = np.arange(len(member))
                out.append(Mesh(self.vertices[member], number[faces]))
        return out

    @property
    def centre(self) -> np.ndarray:
        return self.vertices.mean(0)


class Rajagopal:
    """`offset[body]`: (3,) place of a body's joint in its parent's frame, metres."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        model = ElementTree.parse(folder / "Rajagopal2015.osim").getroot().find("Model")
        bodies = model.find("BodySet/objects") if model is not None else None
        if bodies is None:
            raise ValueError(f"{folder}/Rajagopal2015.osim: no Model/BodySet/objects")
        self.offset: dict[str, np.ndarray] = {}
        for body in bodies:
            place = next(body.iter("location_in_parent"), None)
            if place is not None and place.text:
                numbers = [float(x) for x in place.text.split()]
                self.offset[str(body.get("name"))] = np.array(numbers)

    def mesh(self, name: str) -> Mesh:
        """One geometry file, duplicate vertices merged. Binary PLY with polygons."""
        data = (self._folder / "Geometry" / f"{name}.vtp.ply").read_bytes()
        start = data.index(b"end_header") + len(b"end_header\n")
        header = data[:start].decode().split()
        n_vertices = int(header[header.index("vertex") + 1])
        n_faces = int(header[header.index("face") + 1])
        vertices = np.frombuffer(data, "<f4", n_vertices * 3, start).reshape(-1, 3)
        place = start + n_vertices * 12
        faces = []
        for _ in range(n_faces):
            corners = data[place]
            polygon = np.frombuffer(data, "<i4", corners, place + 1)
            place += 1 + 4 * corners
            faces += [[polygon[0], polygon[k], polygon[k + 1]] for k in range(1, corners - 1)]
        merged = trimesh.Trimesh(vertices.astype(float), np.array(faces), process=True)
        return Mesh(np.array(merged.vertices), np.array(merged.faces))
