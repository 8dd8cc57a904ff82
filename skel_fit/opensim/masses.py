"""Mass, centre of mass and inertia of every body, from the subject's own skin.

The closed skin is cut where its faces change their owner (`owners`). Every cut is closed by a cone
of triangles that the two neighbours share with opposite signs, so each piece is a closed surface
and the volumes of the pieces sum to the volume of the skin, whatever its shape. Moments up to the
second follow from the divergence theorem, exactly for the triangle mesh. The lungs and all other
cavities are part of the segment densities, which come from cadavers.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skel_fit.anatomy import JOINT_NAMES, NUM_JOINTS, PARENTS
from skel_fit.opensim.subject import Subject

_TRUNK_LOW, _THORAX, _SHOULDER, _HEAD = 1010.0, 920.0, 1040.0, 1110.0
_UPPER_ARM, _FOREARM, _HAND = 1070.0, 1130.0, 1160.0
_THIGH, _LEG, _FOOT = 1050.0, 1090.0, 1100.0

#: Segment densities, kg/m3: W. T. Dempster, Space Requirements of the Seated Operator (1955), as
#: tabulated in D. A. Winter, Biomechanics and Motor Control of Human Movement, table 4.1: abdomen
#: and pelvis, thorax, shoulder, head and neck, upper arm, forearm, hand, thigh, leg, foot.
DENSITIES: dict[str, float] = {
    "pelvis": _TRUNK_LOW, "lumbar_body": _TRUNK_LOW, "thorax": _THORAX, "head": _HEAD,
    **{
        f"{body}_{side}": density
        for side in "rl"
        for body, density in (
            ("femur", _THIGH), ("tibia", _LEG), ("talus", _FOOT), ("calcn", _FOOT),
            ("toes", _FOOT), ("scapula", _SHOULDER), ("humerus", _UPPER_ARM),
            ("ulna", _FOREARM), ("radius", _FOREARM), ("hand", _HAND),
        )
    },
}  # fmt: skip


#: Bones whose relative weights differ by less than this factor compete by distance.
_ABOUT_AS_STRONG = 0.9


@dataclass(frozen=True)
class Cuts:
    """The skin of a model cut into bodies: independent of the shape.

    Attributes:
        triangles: (m, 3) point indices, skin vertices first, then the apexes of the cones.
        owners: (m,) body of each triangle.
        apexes: for every apex the vertices whose mean it is, in order of their index.
    """

    triangles: NDArray[np.int64]
    owners: NDArray[np.int64]
    apexes: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class Segments:
    """Mass properties of the 24 bodies, each in its own axes with its joint at the origin.

    Attributes:
        volumes: (24,) m3. masses: (24,) kg. centres: (24, 3) m.
        inertias: (24, 3, 3) tensors about the centre of mass, kg m2.
    """

    volumes: NDArray[np.float64]
    masses: NDArray[np.float64]
    centres: NDArray[np.float64]
    inertias: NDArray[np.float64]


def owners(
    faces: NDArray, skin_weights: NDArray, points: NDArray, joints: NDArray
) -> NDArray[np.int64]:
    """The body that every face of the skin belongs to: (f,).

    It is the bone whose weight is largest in proportion to the most that this bone has anywhere:
    with plain weights scapulae and tali, which move no part of the skin alone, would have no mass.
    Bones that are about as strong share the skin by the distance to their axes.

    faces: (f, 3); skin_weights: (v, 24); points: (v, 3) and joints: (24, 3) at rest.
    """
    weight = skin_weights[faces].mean(1)
    most = skin_weights.max(0)
    relative = weight / np.where(most > 0, most, 1.0)
    near = np.stack([_distance(points[faces].mean(1), k, joints) for k in range(NUM_JOINTS)], 1)
    contender = relative >= _ABOUT_AS_STRONG * relative.max(1, keepdims=True)
    return np.where(contender, near, np.inf).argmin(1)


def _distance(points: NDArray, body: int, joints: NDArray) -> NDArray[np.float64]:
    """Distance of points (n, 3) to the lines from a joint to its children (leaf: to the joint)."""
    start = joints[body]
    distances = [np.linalg.norm(points - start, axis=1)]
    for child in (k for k in range(NUM_JOINTS) if PARENTS[k] == body):
        line = joints[child] - start
        along = np.clip((points - start) @ line / max(line @ line, 1e-12), 0, 1)
        distances.append(np.linalg.norm(points - start - along[:, None] * line, axis=1))
    return np.min(distances, axis=0)


def cuts(faces: NDArray, owner: NDArray) -> Cuts:
    """Cut a closed skin.

    faces: (f, 3); owner: (f,) body of each face.

    Raises:
        ValueError: the skin is not closed.
    """
    faces = np.asarray(faces, np.int64)
    first_apex = int(faces.max()) + 1
    directed, other = _neighbours(faces)
    own, theirs = np.repeat(owner, 3), owner[other]
    cut_edges = [
        (u, v, a, b)
        for (u, v), a, b in zip(directed.tolist(), own.tolist(), theirs.tolist(), strict=True)
        if a < b
    ]
    clusters = _clusters([(u, v) for u, v, _, _ in cut_edges])
    triangles, owners = [faces], [owner]
    apexes: list[NDArray[np.int64]] = []

    def apex(vertices: set[int]) -> int:
        apexes.append(np.array(sorted(vertices)))
        return first_apex + len(apexes) - 1

    for members in clusters:
        edges = [cut_edges[k] for k in members]
        by_pair: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for u, v, a, b in edges:
            by_pair[a, b].append((u, v))
        hub = apex({w for u, v, _, _ in edges for w in (u, v)})
        for (a, b), arcs in sorted(by_pair.items()):
            cone = _cone(arcs, hub, apex({w for edge in arcs for w in edge}))
            # The skin face of `a` holds the edge (u, v); its cap holds (v, u).
            triangles += [cone[:, [1, 0, 2]], cone]
            owners += [np.full(len(cone), a), np.full(len(cone), b)]
    return Cuts(np.concatenate(triangles), np.concatenate(owners), tuple(apexes))


def is_closed(faces: NDArray) -> bool:
    """Whether every edge of the faces (f, 3) lies between two faces that turn the same way."""
    there, back = _keys(_edges(faces))
    return len(np.unique(there)) == len(there) and bool((np.sort(there) == np.sort(back)).all())


def _edges(faces: NDArray) -> NDArray[np.int64]:
    """Directed edges (3 f, 2), those of a face after one another."""
    return np.asarray(faces, np.int64)[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)


def _keys(edges: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each directed edge, and that of the same edge the other way round."""
    base = int(edges.max(initial=0)) + 1
    return edges[:, 0] * base + edges[:, 1], edges[:, 1] * base + edges[:, 0]


def _neighbours(faces: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Directed edges (3 f, 2), and for each the face on its other side (3 f,)."""
    if not is_closed(faces):
        raise ValueError(
            "masses: expected a closed skin, every edge between two faces; found an open edge"
        )
    edges = _edges(faces)
    there, back = _keys(edges)
    order = np.argsort(there)
    return edges, order[np.searchsorted(there, back, sorter=order)] // 3


def _clusters(edges: list[tuple[int, int]]) -> list[list[int]]:
    """Edges that hang together, as lists of positions in `edges`."""
    parent: dict[int, int] = {}

    def root(vertex: int) -> int:
        while parent.setdefault(vertex, vertex) != vertex:
            parent[vertex] = vertex = parent[parent[vertex]]
        return vertex

    for u, v in edges:
        parent[root(u)] = root(v)
    groups: dict[int, list[int]] = defaultdict(list)
    for k, (u, _) in enumerate(edges):
        groups[root(u)].append(k)
    return list(groups.values())


def _cone(arcs: list[tuple[int, int]], hub: int, tip: int) -> NDArray[np.int64]:
    """Triangles (u, v, tip) over the arcs between two bodies, closed through `hub`.

    Where three bodies meet, an arc between two of them ends; lines to the hub, the same for all
    arcs that end there, close it.
    """
    balance: dict[int, int] = defaultdict(int)
    for u, v in arcs:
        balance[u] -= 1
        balance[v] += 1
    loop = list(arcs)
    for vertex, excess in sorted(balance.items()):
        loop += [(vertex, hub)] * max(excess, 0) + [(hub, vertex)] * max(-excess, 0)
    return np.array([(u, v, tip) for u, v in loop], np.int64)


def segments(subject: Subject, cut: Cuts) -> Segments:
    """Mass properties of one person at rest.

    A piece that is no solid (extreme shapes turn a thin one inside out) counts for its parent and
    leaves its own body without mass, so nothing is lost.
    """
    apexes = [subject.vertices[members].mean(0) for members in cut.apexes]
    points = np.concatenate((subject.vertices, np.reshape(apexes, (-1, 3))))
    volumes, first, second = _moments(points[cut.triangles], cut.owners)
    for body in reversed(range(1, NUM_JOINTS)):
        if not _is_solid(volumes[body], first[body], second[body]):
            for moment in (volumes, first, second):
                moment[PARENTS[body]] += moment[body]
                moment[body] = 0.0
    density = np.array([DENSITIES[name] for name in JOINT_NAMES])
    filled = volumes > 0
    safe = np.where(filled, volumes, 1.0)[:, None]
    centres = np.where(filled[:, None], first / safe, subject.joints)
    about_centre = second - volumes[:, None, None] * centres[:, :, None] * centres[:, None, :]
    turned = subject.orientations.transpose(0, 2, 1) @ about_centre @ subject.orientations
    trace = np.trace(turned, axis1=1, axis2=2)[:, None, None]
    own = np.einsum("jab,ja->jb", subject.orientations, centres - subject.joints)
    return Segments(
        volumes=volumes,
        masses=density * volumes,
        centres=own,
        inertias=density[:, None, None] * (trace * np.eye(3) - turned),
    )


def without_mass() -> Segments:
    """Bodies of no mass: for a skin that encloses no volume."""
    vectors = np.zeros((NUM_JOINTS, 3))
    numbers = np.zeros(NUM_JOINTS)
    return Segments(numbers, numbers, vectors, np.zeros((NUM_JOINTS, 3, 3)))


def _is_solid(volume: float, first: NDArray, second: NDArray) -> bool:
    """Whether the moments are those of a body: positive volume and spread in all directions."""
    if volume <= 0:
        return False
    centre = first / volume
    spread = np.linalg.eigvalsh(second - volume * np.outer(centre, centre))
    return bool(spread[0] > 0)


def _moments(
    corners: NDArray, owners: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Volume (24,), first (24, 3) and second (24, 3, 3) moments of closed triangle meshes.

    Sums over the tetrahedra that the triangles (m, 3, 3) span with the origin; owners: (m,).
    """
    order = np.argsort(owners, kind="stable")
    x, y, z = np.ascontiguousarray(corners[order].transpose(2, 1, 0))  # each (3, m)
    six = (
        x[0] * (y[1] * z[2] - z[1] * y[2])
        + y[0] * (z[1] * x[2] - x[1] * z[2])
        + z[0] * (x[1] * y[2] - y[1] * x[2])
    )
    totals = [part.sum(0) for part in (x, y, z)]
    rows = [six / 6, *(six * total / 24 for total in totals)]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    parts = (x, y, z)
    for a, b in pairs:
        rows.append(six / 120 * (totals[a] * totals[b] + (parts[a] * parts[b]).sum(0)))
    sums = [np.bincount(owners[order], row, NUM_JOINTS) for row in rows]
    found = np.stack(sums, 1, dtype=np.float64)
    second = np.empty((NUM_JOINTS, 3, 3))
    for k, (a, b) in enumerate(pairs):
        second[:, a, b] = second[:, b, a] = found[:, 4 + k]
    return found[:, 0].copy(), found[:, 1:4].copy(), second
