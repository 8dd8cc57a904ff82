"""Pictures of rows: SMPL target, SKEL skin, skeleton inside translucent skin, distances as colour.

Frames and units as in `stages.drawing.render`: camera frame, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skel_fit.models import BodyModels
from stages.drawing.render import (
    BONE_COLOR,
    SKIN_COLOR,
    TARGET_COLOR,
    Camera,
    Light,
    Mesh,
    render,
    render_translucent,
)

BACKGROUND = (0.93, 0.935, 0.94)
MARGIN = 1.10
"""Side of a picture over the larger side of the body's box."""
TOO_CLOSE = 0.3
"""Metres; a body nearer to the camera (labels without translation) is drawn by a camera of ours."""
_OWN_FOCAL, _OWN_DISTANCE = 1200.0, 4.0
_FAR_FOCAL, _FAR_DISTANCE = 1500.0, 6.0

# Distance in metres -> colour; flat beyond the last. Also the legend of the pages.
ERROR_COLORS: tuple[tuple[float, tuple[float, float, float]], ...] = (
    (0.000, (0.82, 0.86, 0.92)),
    (0.010, (0.99, 0.93, 0.68)),
    (0.025, (0.98, 0.68, 0.32)),
    (0.040, (0.85, 0.27, 0.20)),
    (0.060, (0.45, 0.05, 0.15)),
)


@dataclass(frozen=True)
class Person:
    """One row.

    Attributes:
        row: its number, for captions.
        skel: (46,) poses, (10,) betas, (3,) transl of the SKEL body.
        skel_gender: male or female.
        smpl: (72,) poses, (10,) betas, (3,) transl of the SMPL target; None when unknown.
        smpl_gender: neutral, male or female.
        cam_int: (3, 3) pixels; None: a camera of ours.
        y_up: the axes are not a camera's, y is up: pictures turn the body.
    """

    row: int
    skel: tuple[NDArray, NDArray, NDArray]
    skel_gender: str
    smpl: tuple[NDArray, NDArray, NDArray] | None
    smpl_gender: str
    cam_int: NDArray | None
    y_up: bool = False


@dataclass(frozen=True)
class BodyMeshes:
    """The meshes of one row in front of one camera.

    Attributes:
        target: (6890, 3) SMPL vertices or None.
        skin: (6890, 3) SKEL skin.
        bones: (Nk, 3) SKEL skeleton.
        faces, bone_faces: triangles of skin (SMPL and SKEL share them) and of the skeleton.
        cam_int: (3, 3), pixels.
    """

    target: NDArray | None
    skin: NDArray
    bones: NDArray
    faces: NDArray
    bone_faces: NDArray
    cam_int: NDArray

    def distances(self) -> NDArray | None:
        """(6890,) distance of each skin vertex to the target, metres."""
        return None if self.target is None else np.linalg.norm(self.skin - self.target, axis=1)

    def window(self) -> tuple[float, float, float]:
        """Left, top and side (pixels) of the square that holds target and skin."""
        points = self.skin if self.target is None else np.concatenate([self.skin, self.target])
        return _window(self.cam_int, points)

    def turned(self, degrees: float) -> BodyMeshes:
        """The same bodies turned about the vertical through the middle of the skin."""
        middle = (self.skin.min(axis=0) + self.skin.max(axis=0)) / 2
        matrix = _about_vertical(degrees)

        def turn(points: NDArray) -> NDArray:
            return (points - middle) @ matrix.T + middle

        target = None if self.target is None else turn(self.target)
        return BodyMeshes(
            target, turn(self.skin), turn(self.bones), self.faces, self.bone_faces, self.cam_int
        )


class Poser(BodyModels):
    """Poses rows with the models of a folder; each model is loaded once."""

    def bodies(self, person: Person) -> BodyMeshes:
        """The meshes of one row.

        Raises:
            ModelFileError: a model file is missing or broken.
        """
        skel = self.model("skel", person.skel_gender)
        skin, bones = self._skel(skel, person.skel)
        target = None if person.smpl is None else self._smpl(person)
        if person.y_up:  # half a turn about x: a camera's y is down
            half = np.array([1.0, -1.0, -1.0], dtype=skin.dtype)
            skin, bones = skin * half, bones * half
            target = None if target is None else target * half
        cam_int = person.cam_int
        offset = np.zeros(3)
        points = skin if target is None else np.concatenate([skin, target])
        if cam_int is None or points[:, 2].min() < TOO_CLOSE:
            middle = (skin.min(axis=0) + skin.max(axis=0)) / 2
            offset = np.array([0.0, 0.0, _OWN_DISTANCE]) - middle
            cam_int = _pinhole(_OWN_FOCAL)
        return BodyMeshes(
            target=None if target is None else target + offset,
            skin=skin + offset,
            bones=bones + offset,
            faces=skel.faces.numpy(),
            bone_faces=skel.skeleton_faces.numpy(),
            cam_int=np.asarray(cam_int, dtype=np.float64),
        )

    def _skel(self, skel: Any, values: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
        import torch

        with torch.no_grad():
            output = skel(*(_row_tensor(value) for value in values), skeleton=True)
        return output.skin_vertices[0].numpy(), output.skeleton_vertices[0].numpy()

    def _smpl(self, person: Person) -> NDArray:
        import torch

        assert person.smpl is not None
        poses, betas, transl = (_row_tensor(value) for value in person.smpl)
        with torch.no_grad():
            output = self.model("smpl", person.smpl_gender)(
                betas=betas, global_orient=poses[:, :3], body_pose=poses[:, 3:], transl=transl
            )
        return output.vertices[0].numpy()


def target_picture(bodies: BodyMeshes, size: int) -> NDArray[np.uint8]:
    """The SMPL target, (size, size, 3)."""
    assert bodies.target is not None
    return _draw(bodies, Mesh(bodies.target, bodies.faces, TARGET_COLOR), size)


def skin_picture(bodies: BodyMeshes, size: int) -> NDArray[np.uint8]:
    """The SKEL skin, (size, size, 3)."""
    return _draw(bodies, Mesh(bodies.skin, bodies.faces, SKIN_COLOR), size)


def distance_picture(bodies: BodyMeshes, size: int) -> NDArray[np.uint8]:
    """The SKEL skin coloured by its distance to the target (`ERROR_COLORS`), (size, size, 3)."""
    distances = bodies.distances()
    assert distances is not None
    mesh = Mesh(bodies.skin, bodies.faces, error_colors(distances))
    return _draw(bodies, mesh, size, Light(key=0.35, fill=0.35, ambient=0.40))


def skeleton_picture(bodies: BodyMeshes, size: int) -> NDArray[np.uint8]:
    """The skeleton seen through the SKEL skin, (size, size, 3)."""
    return render_translucent(
        Mesh(bodies.skin, bodies.faces, SKIN_COLOR),
        Mesh(bodies.bones, bodies.bone_faces, BONE_COLOR),
        Camera(bodies.cam_int, 1, 1).cropped(*bodies.window(), size),
        background=BACKGROUND,
        opacity=0.36,
        supersample=2,
    )


def views(
    bodies: BodyMeshes, size: int, *, target: str = "SMPL target", skin: str = "SKEL skin"
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Captioned pictures: target and distances where there is a target, skin, skeleton."""
    drawn = [(skin, skin_picture(bodies, size)), ("skeleton", skeleton_picture(bodies, size))]
    if bodies.target is not None:
        drawn.insert(0, (target, target_picture(bodies, size)))
        drawn.insert(2, ("distance", distance_picture(bodies, size)))
    return drawn


def meshes_picture(
    meshes: Sequence[Mesh], degrees: float, size: int, *, above: bool = False
) -> NDArray[np.uint8]:
    """Meshes of one colour each in one frame, (size, size, 3): turned about the vertical, before a
    camera of ours; above: which looks down on them.
    """
    parts = [np.asarray(mesh.vertices) for mesh in meshes]
    points = np.concatenate(parts)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    turn = (_FROM_ABOVE if above else np.eye(3)) @ _about_vertical(degrees)
    moved = (points - middle) @ turn.T + (0.0, 0.0, _FAR_DISTANCE)
    firsts = np.cumsum([0, *map(len, parts)])
    joined = Mesh(
        moved,
        np.concatenate([np.asarray(m.faces) + k for m, k in zip(meshes, firsts, strict=False)]),
        np.concatenate(
            [np.tile(np.asarray(m.colors), (len(p), 1)) for m, p in zip(meshes, parts, strict=True)]
        ),
    )
    cam_int = _pinhole(_FAR_FOCAL)
    camera = Camera(cam_int, 1, 1).cropped(*_window(cam_int, moved), size)
    return render(joined, camera, background=BACKGROUND, supersample=2)


def error_colors(distances: NDArray) -> NDArray[np.float32]:
    """(V, 3) colours of distances (V,), metres."""
    stops = np.array([stop for stop, _ in ERROR_COLORS])
    table = np.array([color for _, color in ERROR_COLORS])
    channels = [np.interp(distances, stops, table[:, k]) for k in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def side_by_side(pictures: Sequence[NDArray[np.uint8]], gap: int = 0) -> NDArray[np.uint8]:
    """Pictures of one height in a row, `gap` white columns between them."""
    height = pictures[0].shape[0]
    space = np.full((height, gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(parts, axis=1)


def trimmed(drawn: Sequence[NDArray[np.uint8]], margin: int = 8) -> list[NDArray[np.uint8]]:
    """The same columns of all pictures: those in which some picture shows more than background."""
    empty = np.array([round(255 * value) for value in BACKGROUND])
    used = np.logical_or.reduce(
        [(np.abs(picture - empty) > 1).any(axis=(0, 2)) for picture in drawn]
    )
    columns = np.flatnonzero(used)
    if not columns.size:
        return list(drawn)
    window = slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin)
    return [picture[:, window] for picture in drawn]


_FROM_ABOVE = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""y, down, becomes the direction in which the camera looks."""


def _about_vertical(degrees: float) -> NDArray[np.float64]:
    """(3, 3) rotation about y."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _pinhole(focal: float) -> NDArray[np.float64]:
    return np.array([[focal, 0, 0], [0, focal, 0], [0, 0, 1.0]])


def _window(cam_int: NDArray, points: NDArray) -> tuple[float, float, float]:
    """Left, top and side (pixels) of the square, with a margin, that holds all points."""
    uv = Camera(cam_int, 1, 1).project(points)
    low, high = uv.min(axis=0), uv.max(axis=0)
    side = MARGIN * float((high - low).max())
    left, top = (low + high) / 2 - side / 2
    return float(left), float(top), side


def _draw(
    bodies: BodyMeshes, mesh: Mesh, size: int, light: Light | None = None
) -> NDArray[np.uint8]:
    camera = Camera(bodies.cam_int, 1, 1).cropped(*bodies.window(), size)
    return render(mesh, camera, background=BACKGROUND, light=light, supersample=2)


def _row_tensor(value: NDArray) -> Any:
    import torch

    return torch.as_tensor(np.asarray(value, dtype=np.float64)[None])


def legend() -> list[tuple[str, float]]:
    """(CSS colour, millimetres) along `ERROR_COLORS`, for pages with distance pictures."""
    return [
        (f"rgb({', '.join(str(round(255 * c)) for c in color)})", stop * 1000)
        for stop, color in ERROR_COLORS
    ]
