"""Bodies of other topologies, made from the stand-in: free, small, exact maps known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skel_fit.bodies.surface_map import SurfaceMap

SMPLX_VERTICES, SMPLX_FACES = 10475, 20908
MHR_VERTICES = 18439
_LICENCE = "none: made by a test"


@dataclass(frozen=True)
class FakeBody:
    """A body whose first vertices are the stand-in's, all of them permuted.

    corners: (V, 3) vertices of the stand-in, in the order of this body, whose mean each vertex is.
    """

    name: str
    corners: np.ndarray
    faces: np.ndarray
    map: SurfaceMap

    def carried(self, values: np.ndarray) -> np.ndarray:
        """What belongs to the stand-in's vertices (6890, ...), as of this body's (V, ...)."""
        return values[self.corners].mean(axis=1)

    def vertices(self, meshes: np.ndarray) -> np.ndarray:
        """Meshes (n, 6890, 3) as (n, V, 3) of this body."""
        return np.stack([self.carried(mesh) for mesh in meshes])


def fake_body(name: str, faces: np.ndarray, vertices: int, seed: int) -> FakeBody:
    """The stand-in with centres of triangles (SMPL-X) or points on edges (MHR) up to `vertices`."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.arange(6890)[:, None], 3, axis=1)
    extra = faces[: vertices - 6890].copy()
    if name == "mhr":
        edges = np.unique(np.sort(np.concatenate((faces[:, :2], faces[:, 1:])), axis=1), axis=0)
        extra = edges[: vertices - 6890][:, [0, 0, 1]]
    order = rng.permutation(vertices)
    corners = np.concatenate((own, extra))[order]
    place = np.empty(vertices, np.int64)
    place[order] = np.arange(vertices)
    rows = SMPLX_FACES if name == "smplx" else 2 * vertices
    triangles = place[np.resize(faces, (rows, 3))]
    found = SurfaceMap.of(
        np.repeat(place[:6890, None], 3, axis=1),
        np.tile((1.0, 0.0, 0.0), (6890, 1)),
        source=name,
        source_vertices=vertices,
        source_faces=triangles,
        target_faces=faces,
        licence=_LICENCE,
    )
    return FakeBody(name, corners, triangles, found)


def fake_bodies(faces: np.ndarray) -> dict[str, FakeBody]:
    """A fake SMPL-X and a fake MHR, with as many vertices as theirs; faces: of the stand-in."""
    return {
        "smplx": fake_body("smplx", faces, SMPLX_VERTICES, 1),
        "mhr": fake_body("mhr", faces, MHR_VERTICES, 2),
    }


def fake_smplx_arrays(smpl: dict, body: FakeBody, gender: str) -> dict[str, np.ndarray]:
    """A file of SMPL-X in the official members: 55 joints, those of fingers, jaw and eyes at the
    hand's or head's joint and without weights; ten shape directions of 400 are not zero."""
    joints = np.concatenate((np.arange(22), np.full(3, 15), np.full(15, 20), np.full(15, 21)))
    tree = np.zeros((2, 55), np.int64)
    tree[0] = joints
    tree[0, :22] = smpl["kintree_table"][0, :22]
    tree[0, 0] = 4294967295
    tree[1] = np.arange(55)
    weights = np.zeros((6890, 55))
    own = np.asarray(smpl["weights"])
    weights[:, :22] = own[:, :22]
    weights[:, 25], weights[:, 40] = own[:, 22], own[:, 23]
    shapes = np.zeros((SMPLX_VERTICES, 3, 400))
    shapes[:, :, :10] = body.carried(np.asarray(smpl["shapedirs"])[:, :, :10])
    correctives = np.zeros((SMPLX_VERTICES, 3, 486))
    posed = body.carried(np.asarray(smpl["posedirs"]))
    correctives[:, :, : 21 * 9] = posed[:, :, : 21 * 9]
    correctives[:, :, 24 * 9 : 25 * 9] = posed[:, :, 21 * 9 : 22 * 9]
    correctives[:, :, 39 * 9 : 40 * 9] = posed[:, :, 22 * 9 :]
    regressor = np.zeros((55, SMPLX_VERTICES))
    theirs = np.asarray(smpl["J_regressor"].todense() if hasattr(smpl["J_regressor"], "todense")
                        else smpl["J_regressor"])  # fmt: skip
    rows = np.concatenate((np.arange(22), np.full(3, 15), np.full(15, 22), np.full(15, 23)))
    regressor[:, body.map.columns[:, 0]] = theirs[rows]
    return {
        "v_template": body.carried(np.asarray(smpl["v_template"])),
        "shapedirs": shapes,
        "posedirs": correctives,
        "J_regressor": regressor,
        "weights": body.carried(weights),
        "kintree_table": tree,
        "f": body.faces.astype(np.uint32),
        "hands_meanl": np.full(45, 0.1),
        "hands_meanr": np.full(45, -0.1),
        "gender": np.array(gender),
        "standin": np.array("made by a test"),
    }
