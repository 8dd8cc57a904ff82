"""Which map a body has: the users' beside their models, else the free ones that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from skel_fit.bodies.surface_map import TARGET_VERTICES, SurfaceMap
from skel_fit.errors import ModelFileError

if TYPE_CHECKING:
    from skel_fit.skel import SKEL

FOLDER = "maps"
"""Of the users' maps, in their models folder."""
SHIPPED = Path(__file__).parent / "maps"
SMPL_MESH = "smpl_mesh"
"""Bare meshes of SMPL: labels called `smpl` are its parameters."""
OWN_TOPOLOGY = ("smpl", SMPL_MESH, "smplh", "skel")
"""Bodies that have SKEL's own vertices and triangles."""


def map_files(models: Path) -> list[Path]:
    """Files of maps: those of a models folder, then the shipped ones."""
    return [path for folder in (models / FOLDER, SHIPPED) for path in sorted(folder.glob("*.npz"))]


def find_map(models: Path, body: str, skel: SKEL) -> tuple[str, SurfaceMap]:
    """File name and map from a body to the triangles of this SKEL.

    Raises ModelFileError: there is none, or a file of the folder is no map.
    """
    faces = skel.faces.cpu().numpy()
    others = []
    for path in map_files(models):
        found = SurfaceMap.read(path)
        if found.source != body:
            continue
        try:
            found.check_target(skel)
        except ValueError:
            others.append(path)
            continue
        return path.name, found
    if body in OWN_TOPOLOGY:
        return "", SurfaceMap.same_topology(faces, body)
    mine = "the licence-free stand-in" if skel.standin else "the licensed SKEL"
    which = f"; {others[0]} is one of {body} for another body" if others else ""
    raise ModelFileError(
        f"{models / FOLDER}: no map from '{body}' to {mine} ({TARGET_VERTICES} vertices){which}; "
        "hmr-skel maps add FILE makes one of a correspondence file, hmr-skel maps list shows those "
        "that there are"
    )
