"""Draw the bones and markers of exported OpenSim models from their files alone.

    python -m tools.opensim_picture FOLDER OUT.png

FOLDER is what `hmr-skel export --format opensim` wrote. Of each of its first people the middle
frame is drawn twice, from the front and from the side: .osim for bodies, scales and marker places,
.mot for the pose, .obj for the bones. Nothing of our own body model is used.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.exporters.opensim import INDEX, read_mot, read_osim
from stages.drawing.render import Camera, Mesh, png_bytes, render

PEOPLE, HEIGHT, WIDTH, VIEWS = 3, 460, 340, (25.0, 115.0)
BONE, MARKER = (0.93, 0.91, 0.86), (0.80, 0.22, 0.20)
_BACKGROUND = (0.16, 0.18, 0.21)


def person(folder: Path, entry: dict) -> Mesh:
    """Posed bones and markers of one entry of the index, in OpenSim's ground."""
    path = folder / entry["osim"]
    model, motion = read_osim(path), read_mot(folder / entry["mot"])
    frame = len(motion.times) // 2
    turns = np.array([model.is_rotational(name) for name in motion.columns])
    row = np.where(turns, np.radians(motion.values[frame]), motion.values[frame])
    columns = dict(zip(motion.columns, row[:, None], strict=True))
    bodies = model.body_frames(columns, 1)
    root = ElementTree.parse(path).getroot()
    parts: list[tuple[NDArray, NDArray, tuple[float, float, float]]] = []
    for body in root.iter("Body"):
        position, axes = (part[0] for part in bodies[body.get("name", "")])
        for mesh in body.iter("Mesh"):
            points, faces = _obj(path.parent / (mesh.findtext("mesh_file") or ""))
            scale = np.array([float(x) for x in (mesh.findtext("scale_factors") or "").split()])
            parts.append(((points * scale) @ axes.T + position, faces, BONE))
    for marker in root.iter("Marker"):
        name = (marker.findtext("socket_parent_frame") or "").rsplit("/", 1)[-1]
        position, axes = (part[0] for part in bodies[name])
        place = np.array([float(x) for x in (marker.findtext("location") or "").split()])
        parts.append((_BALL[0] * 0.009 + axes @ place + position, _BALL[1], MARKER))
    starts = np.cumsum([0, *(len(points) for points, _, _ in parts)])
    return Mesh(
        np.concatenate([points for points, _, _ in parts]),
        np.concatenate([f + s for (_, f, _), s in zip(parts, starts[:-1], strict=True)]),
        np.concatenate([np.tile(color, (len(points), 1)) for points, _, color in parts]),
    )


def _obj(path: Path) -> tuple[NDArray, NDArray]:
    rows = [line.split() for line in path.read_text().splitlines()]
    points = np.array([[float(x) for x in row[1:]] for row in rows if row[0] == "v"])
    return points, np.array([[int(x) for x in row[1:]] for row in rows if row[0] == "f"]) - 1


def _octahedron() -> tuple[NDArray, NDArray]:
    points = np.concatenate((np.eye(3), -np.eye(3)))
    faces = [
        (x, y, z) if (x // 3 + y // 3 + z // 3) % 2 == 0 else (x, z, y)
        for x in (0, 3) for y in (1, 4) for z in (2, 5)
    ]  # fmt: skip
    return points, np.array(faces)


_BALL = _octahedron()


def view(mesh: Mesh, degrees: float) -> NDArray[np.uint8]:
    """A picture from `degrees` to the left of the front (ground x)."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    turn = np.radians(degrees)
    # Looking at the person: the camera's x is to its right, its y down.
    toward = np.array([np.cos(turn), 0.0, -np.sin(turn)])
    axes = np.stack((np.cross((0.0, 1.0, 0.0), toward), (0.0, -1.0, 0.0), -toward))
    points = (mesh.vertices - (low + high) / 2) @ axes.T + np.array([0.0, 0.0, 6.0])
    extent = np.abs(points[:, :2] / points[:, 2:]).max(0) * 1.05
    focal = float((np.array([WIDTH, HEIGHT]) / 2 / extent).min())
    matrix = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1.0]])
    seen = Mesh(points, mesh.faces, mesh.colors)
    return render(seen, Camera(matrix, HEIGHT, WIDTH), background=_BACKGROUND, supersample=3)


def main(folder: Path, out: Path) -> None:
    """Write the picture."""
    entries = json.loads((folder / INDEX).read_text())["files"][:PEOPLE]
    meshes = [person(folder, entry) for entry in entries]
    rows = [np.concatenate([view(mesh, turn) for mesh in meshes], 1) for turn in VIEWS]
    out.write_bytes(png_bytes(np.concatenate(rows)))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tools.opensim_picture FOLDER OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
