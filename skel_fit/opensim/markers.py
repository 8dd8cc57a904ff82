"""Skin markers of our own choice: a few vertices for each body, far apart and moved by it most.

For each body the candidates are the vertices inside its part of the skin (`masses.owners`) that it
moves most, and among them the markers are chosen by geometry: first the vertex farthest from the
candidates' centre, then always the one farthest from those chosen. The choice depends on the
template only, so all people of a model have the same markers. No published marker set is used.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skel_fit.anatomy import JOINT_NAMES, NUM_JOINTS

#: Markers on every body, unless asked otherwise.
MARKERS_PER_BODY = 3
#: Vertices inside the part of a body that follow it by this weight are candidates ...
_WEIGHT = 0.9
#: ... and where they are fewer than this for each marker, those with the largest weights.
_CANDIDATES_PER_MARKER = 8


@dataclass(frozen=True)
class Markers:
    """names: (m,) `BODY_1` and so on; bodies: (m,) index; vertices: (m,) skin vertex."""

    names: tuple[str, ...]
    bodies: NDArray[np.int64]
    vertices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


def markers(
    template: NDArray,
    skin_weights: NDArray,
    faces: NDArray,
    owner: NDArray,
    per_body: int = MARKERS_PER_BODY,
) -> Markers:
    """Choose the markers of a model.

    template: (v, 3); skin_weights: (v, 24); faces: (f, 3) and owner: (f,) body of each face.
    """
    inside = np.ones((len(template), NUM_JOINTS), bool)
    for body in range(NUM_JOINTS):
        inside[np.unique(faces[owner != body]), body] = False
    names: list[str] = []
    bodies: list[int] = []
    vertices: list[int] = []
    for body in range(NUM_JOINTS):
        # Vertices of the body's own part come first, whatever moves them.
        weight = skin_weights[:, body] + inside[:, body]
        candidates = np.flatnonzero(weight >= 1 + _WEIGHT)
        if len(candidates) < _CANDIDATES_PER_MARKER * per_body:
            order = np.argsort(-weight, kind="stable")
            candidates = np.sort(order[: _CANDIDATES_PER_MARKER * per_body])
        chosen = candidates[_far_apart(template[candidates], per_body)]
        vertices += chosen.tolist()
        bodies += [body] * per_body
        names += [f"{JOINT_NAMES[body]}_{k + 1}" for k in range(per_body)]
    return Markers(tuple(names), np.array(bodies), np.array(vertices))


def _far_apart(points: NDArray, count: int) -> list[int]:
    """Farthest-point sampling of `points` (n, 3)."""
    chosen = [int(np.square(points - points.mean(0)).sum(1).argmax())]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
        chosen.append(int(nearest.argmax()))
    return chosen
