"""Symmetric half-edge collapse by quadric error: the result is a subset of the input vertices.

Every collapse is done together with its mirror twin, midline vertices move only along the midline,
and the link condition keeps the surface closed; so the vertex count can be met exactly and a closed
genus-0 surface of n vertices ends with 2 n - 4 triangles.
"""

from __future__ import annotations

import heapq

import numpy as np

MAX_VALENCE = 9
MIN_QUALITY = 0.18  # 1: equilateral
MIN_NORMAL_COSINE = 0.3  # a kept triangle may not turn further than this


class _Mesh:
    def __init__(self, vertices: np.ndarray, faces: np.ndarray, mirror: np.ndarray,
                 importance: np.ndarray, edge_cost: float) -> None:  # fmt: skip
        n = len(vertices)
        self.vertices, self.mirror, self.importance = vertices, mirror, importance
        self.edge_cost = edge_cost
        self.middle = mirror == np.arange(n)
        self.faces = [[int(v) for v in face] for face in faces]
        self.face_alive = np.ones(len(faces), bool)
        self.around: list[set[int]] = [set() for _ in range(n)]  # faces at a vertex
        for number, face in enumerate(self.faces):
            for vertex in face:
                self.around[vertex].add(number)
        self.alive = np.ones(n, bool)
        self.version = np.zeros(n, int)
        corner = vertices[faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        area = np.linalg.norm(normal, axis=1)
        normal /= np.maximum(area, 1e-15)[:, None]
        plane = np.c_[normal, -(normal * corner[:, 0]).sum(1)]
        quadric = plane[:, :, None] * plane[:, None, :] * (area / 2)[:, None, None]
        self.quadric, self.area = np.zeros((n, 4, 4)), np.zeros(n)
        for k in range(3):
            np.add.at(self.quadric, faces[:, k], quadric)
            np.add.at(self.area, faces[:, k], area / 6)
        self.quadric *= importance[:, None, None]

    def neighbours(self, vertex: int) -> set[int]:
        out = {v for face in self.around[vertex] for v in self.faces[face]}
        out.discard(vertex)
        return out

    def cost(self, gone: int, kept: int) -> float:
        """Cost of moving `gone` onto `kept`."""
        point = np.append(self.vertices[kept], 1.0)
        edge = self.vertices[gone] - self.vertices[kept]
        weight = 0.5 * (self.importance[gone] + self.importance[kept])
        error = point @ self.quadric[gone] @ point
        return float(error + self.edge_cost * weight * (edge @ edge) * self.area[gone])

    def allowed(self, gone: int, kept: int) -> bool:
        ring_gone, ring_kept = self.neighbours(gone), self.neighbours(kept)
        shared = ring_gone & ring_kept
        if len(shared) != 2 or len(ring_gone) + len(ring_kept) - 4 > MAX_VALENCE:
            return False
        if any(len(self.neighbours(v)) <= 3 for v in shared):
            return False
        return all(
            self._still_good(self.faces[f], gone, kept)
            for f in self.around[gone]
            if kept not in self.faces[f]
        )

    def _still_good(self, face: list[int], gone: int, kept: int) -> bool:
        a, b, c = self.vertices[face]
        p, q, r = self.vertices[[kept if v == gone else v for v in face]]
        before, after = np.cross(b - a, c - a), np.cross(q - p, r - p)
        size_before, size_after = np.linalg.norm(before), np.linalg.norm(after)
        if size_before > 1e-14 and before @ after < MIN_NORMAL_COSINE * size_before * size_after:
            return False
        squares = sum(float(e @ e) for e in (q - p, r - q, p - r))
        return size_after * 2 * np.sqrt(3) >= MIN_QUALITY * squares

    def collapse(self, gone: int, kept: int) -> None:
        for number in list(self.around[gone]):
            face = self.faces[number]
            if kept in face:
                self.face_alive[number] = False
                for vertex in face:
                    self.around[vertex].discard(number)
            else:
                face[face.index(gone)] = kept
                self.around[kept].add(number)
        self.around[gone].clear()
        self.alive[gone] = False
        self.quadric[kept] += self.quadric[gone]
        self.area[kept] += self.area[gone]


def decimate(
    vertices: np.ndarray,
    faces: np.ndarray,
    mirror: np.ndarray,
    importance: np.ndarray,
    target: int,
    edge_cost: float = 2e-2,
) -> tuple[np.ndarray, np.ndarray]:
    """Collapse a closed symmetric triangle mesh to exactly `target` vertices.

    vertices (n, 3) metres, x = 0 the mirror plane; mirror (n,) the twin of each vertex; importance
    (n,) factor on the error. Returns the kept vertex numbers (target,) and faces in terms of them.
    Raises RuntimeError if the count cannot be reached.
    """
    mesh = _Mesh(vertices, faces, mirror, importance, edge_cost)
    heap: list[tuple[float, int, int, int, int]] = []

    def push(gone: int, kept: int) -> None:
        if vertices[gone, 0] < -1e-9:  # the right side follows the left
            return
        if mesh.middle[gone] and not mesh.middle[kept]:
            return
        if mirror[gone] == kept and not mesh.middle[gone]:
            return
        entry = (mesh.cost(gone, kept), gone, kept)
        heapq.heappush(heap, (*entry, int(mesh.version[gone]), int(mesh.version[kept])))

    for vertex in range(len(vertices)):
        for other in mesh.neighbours(vertex):
            push(vertex, other)
    count = len(vertices)
    while count > target:
        if not heap:
            raise RuntimeError(f"decimation stopped at {count} vertices, wanted {target}")
        _, gone, kept, version_gone, version_kept = heapq.heappop(heap)
        if mesh.version[gone] != version_gone or mesh.version[kept] != version_kept:
            continue
        if not (mesh.alive[gone] and mesh.alive[kept]) or not _collapse_pair(
            mesh, gone, kept, count - target
        ):
            continue
        count -= 1 if mesh.middle[gone] else 2
        touched = {kept} if mesh.middle[gone] else {kept, int(mirror[kept])}
        for centre in touched:
            ring = mesh.neighbours(centre) | {centre}
            for vertex in ring:
                mesh.version[vertex] += 1
            for vertex in ring:
                for other in mesh.neighbours(vertex):
                    push(vertex, other)
                    push(other, vertex)
    keep = np.flatnonzero(mesh.alive)
    number = np.full(len(vertices), -1)
    number[keep] = np.arange(len(keep))
    alive = [face for face, ok in zip(mesh.faces, mesh.face_alive, strict=True) if ok]
    return keep, number[np.array(alive)]


def _collapse_pair(mesh: _Mesh, gone: int, kept: int, room: int) -> bool:
    """Collapse with the mirror twin if the surface allows it; `room`: vertices still to remove."""
    if mesh.middle[gone]:
        if not mesh.allowed(gone, kept):
            return False
        mesh.collapse(gone, kept)
        return True
    twin_gone, twin_kept = int(mesh.mirror[gone]), int(mesh.mirror[kept])
    if room < 2 or twin_gone in mesh.neighbours(gone) or not mesh.allowed(gone, kept):
        return False
    # Both twins end at the same midline vertex: its valence grows twice.
    grown = len(mesh.neighbours(kept)) + 2 * (len(mesh.neighbours(gone)) - 4)
    if mesh.middle[kept] and grown > MAX_VALENCE:
        return False
    mesh.collapse(gone, kept)
    if len(mesh.neighbours(twin_gone) & mesh.neighbours(twin_kept)) != 2:
        raise RuntimeError("decimation lost its symmetry")
    mesh.collapse(twin_gone, twin_kept)
    return True
