"""Mesh and camera to picture: a z-buffer rasteriser in numba; one thread, no GPU, no GL library.

Frames and units. Vertices are in the camera frame (x right, y down, z forward), metres. `cam_int`
is a 3x3 pinhole matrix in pixels. Image coordinates are continuous: pixel (row i, column j) covers
[j, j+1) x [i, i+1) and is sampled at its centre (j + 0.5, i + 0.5), so a principal point at the
image centre is (width / 2, height / 2), as in the label files (label-formats.md#camerahmr).

The work has two halves, so that the inner loop stays small: `rasterise` finds, for every pixel,
the nearest face, its depth and the barycentric coordinates; `shade` then lights every covered
pixel once. Everything is deterministic: plain IEEE arithmetic (no fast-math, no threads), and of
two surfaces at the same depth the face with the lower number wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.drawing import raster as loops

NEAR = 0.05
"""Default near plane, metres: what is nearer to the camera is cut off."""

Color = tuple[float, float, float]
SKIN_COLOR: Color = (0.87, 0.72, 0.63)
TARGET_COLOR: Color = (0.56, 0.69, 0.85)
BONE_COLOR: Color = (0.96, 0.95, 0.91)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera and its picture.

    Attributes:
        cam_int: (3, 3) intrinsics, pixels; last row 0 0 1.
        height: picture height, pixels.
        width: picture width, pixels.
    """

    cam_int: NDArray[np.float64]
    height: int
    width: int

    def __post_init__(self) -> None:
        cam_int = np.array(self.cam_int, dtype=np.float64)
        if cam_int.shape != (3, 3) or not np.isfinite(cam_int).all():
            raise ValueError(f"cam_int must be a finite (3, 3) matrix, got {self.cam_int!r}")
        if not np.array_equal(cam_int[2], (0.0, 0.0, 1.0)) or cam_int[1, 0] != 0.0:
            raise ValueError(
                f"cam_int must be upper triangular with last row 0 0 1, got {cam_int.tolist()}"
            )
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"the picture needs at least one pixel, got {self.height} x {self.width}"
            )
        cam_int.setflags(write=False)
        object.__setattr__(self, "cam_int", cam_int)

    def scaled(self, factor: float) -> Camera:
        """The same view with `factor` times as many pixels along each side (rounded to whole
        pixels).
        """
        cam_int = self.cam_int.copy()
        cam_int[:2] *= factor
        return Camera(cam_int, round(self.height * factor), round(self.width * factor))

    def cropped(self, left: float, top: float, side: float, size: int) -> Camera:
        """The square window [left, left + side) x [top, top + side) (pixels), resampled to
        `size` x `size` pixels.
        """
        factor = size / side
        cam_int = self.cam_int.copy()
        cam_int[0, 2] -= left
        cam_int[1, 2] -= top
        cam_int[:2] *= factor
        return Camera(cam_int, size, size)

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Image coordinates (..., 2), pixels, of points (..., 3) in the camera frame, metres, z
        > 0.
        """
        points = np.asarray(points, dtype=np.float64)
        flat = points[..., :2] / points[..., 2:]
        return flat @ self.cam_int[:2, :2].T + self.cam_int[:2, 2]


@dataclass(frozen=True)
class Light:
    """A key light far away, a fill light at the camera and an even ambient term.

    Attributes:
        direction: towards the key light, camera frame, any length.
        key, fill, ambient: strengths; a white surface facing both lights gets their sum
            (clipped to 1).
    """

    direction: Color = (-0.45, -0.75, -0.75)
    key: float = 0.60
    fill: float = 0.36
    ambient: float = 0.17


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with colours.

    Attributes:
        vertices: (V, 3) camera frame, metres.
        faces: (F, 3) vertex numbers, counter-clockwise seen from outside.
        colors: one colour (3,), or one per vertex (V, 3), or one per face (F, 3); RGB in [0, 1].
    """

    vertices: NDArray[np.floating]
    faces: NDArray[np.integer]
    colors: ArrayLike = SKIN_COLOR


@dataclass(frozen=True)
class Raster:
    """What each pixel sees.

    Attributes:
        depth: (H, W) float32 z of the surface, metres; inf where there is none.
        face_ids: (H, W) int32 number of the face; -1 where there is none.
        barycentric: (H, W, 3) float32 weights of the face's three corners, perspective-correct;
            0 where there is none.
    """

    depth: NDArray[np.float32]
    face_ids: NDArray[np.int32]
    barycentric: NDArray[np.float32]

    @property
    def silhouette(self) -> NDArray[np.bool_]:
        """(H, W) bool: covered by the mesh."""
        return self.face_ids >= 0

    def part_ids(self, face_parts: NDArray[np.integer], background: int = -1) -> NDArray[np.int32]:
        """(H, W) int32 part numbers from `face_parts` (F,), the part of every face;
        `background` elsewhere.
        """
        parts = np.asarray(face_parts, dtype=np.int32)
        return np.where(self.silhouette, parts[np.maximum(self.face_ids, 0)], np.int32(background))


def rasterise(
    vertices: ArrayLike, faces: ArrayLike, camera: Camera, *, near: float = NEAR
) -> Raster:
    """Nearest face, depth and barycentric coordinates of every pixel.

    Args:
        vertices: (V, 3) camera frame, metres.
        faces: (F, 3) vertex numbers.
        camera: intrinsics and picture size.
        near: metres; triangles that cross this plane are cut there, not dropped.

    Raises:
        ValueError: wrong shapes, non-finite vertices, vertex numbers out of range.
    """
    vertices, faces = _checked(vertices, faces)
    if not near > 0.0:
        raise ValueError(f"the near plane must lie in front of the camera, got {near}")
    shape = (camera.height, camera.width)
    depth = np.full(shape, np.inf, np.float32)
    face_ids = np.full(shape, -1, np.int32)
    barycentric = np.zeros((*shape, 3), np.float32)
    loops.rasterise(vertices, faces, camera.cam_int, float(near), depth, face_ids, barycentric)
    return Raster(depth, face_ids, barycentric)


def shade(
    raster: Raster, mesh: Mesh, light: Light | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Light every covered pixel with interpolated normals (both sides of a surface are lit).

    Args:
        raster: of the same mesh.
        mesh: vertices, faces and colours.
        light: defaults to `Light()`.

    Returns:
        rgb: (H, W, 3) float32 in [0, 1], 0 where nothing is seen.
        facing: (H, W) float32, |cos| of the angle between surface and line of sight, 0 where
            nothing is seen.
    """
    light = light or Light()
    vertices, faces = _checked(mesh.vertices, mesh.faces)
    colors, by_face = _checked_colors(mesh.colors, len(vertices), len(faces))
    direction = np.asarray(light.direction, dtype=np.float64)
    direction = direction / np.linalg.norm(direction)
    strengths = np.array([light.key, light.fill, light.ambient], dtype=np.float64)
    rgb = np.zeros((*raster.face_ids.shape, 3), np.float32)
    facing = np.zeros(raster.face_ids.shape, np.float32)
    normals = loops.vertex_normals(vertices, faces)
    loops.shade(
        vertices, faces, normals, colors, by_face, direction, strengths,
        raster.face_ids, raster.barycentric, rgb, facing,
    )  # fmt: skip
    return rgb, facing


def vertex_normals(vertices: ArrayLike, faces: ArrayLike) -> NDArray[np.float64]:
    """(V, 3) unit normals, area-weighted means over the faces around each vertex; 0 for a
    vertex without area.
    """
    return loops.vertex_normals(*_checked(vertices, faces))


def render(
    mesh: Mesh,
    camera: Camera,
    *,
    background: ArrayLike = (1.0, 1.0, 1.0),
    light: Light | None = None,
    supersample: int = 1,
    near: float = NEAR,
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 RGB of one mesh.

    Args:
        mesh: what to draw.
        camera: intrinsics and picture size.
        background: one colour (3,) in [0, 1], or a picture (H, W, 3), uint8 or float in [0, 1].
        light: defaults to `Light()`.
        supersample: samples along each pixel side (2: four a pixel).
        near: near plane, metres.
    """
    fine = camera.scaled(_checked_factor(supersample))
    raster = rasterise(mesh.vertices, mesh.faces, fine, near=near)
    rgb, _ = shade(raster, mesh, light)
    return _over_background(
        rgb, raster.silhouette.astype(np.float32), camera, background, supersample
    )


def render_translucent(
    skin: Mesh,
    bones: Mesh,
    camera: Camera,
    *,
    background: ArrayLike = (1.0, 1.0, 1.0),
    opacity: float = 0.30,
    rim: float = 0.75,
    light: Light | None = None,
    supersample: int = 1,
    near: float = NEAR,
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 RGB of `bones` seen through `skin`.

    A bone that pokes out of the skin is drawn on top of it, unblended, so that the picture
    shows the fault.

    Args:
        skin: its front surface is blended over what lies behind.
        bones: drawn solid.
        camera, background, light, supersample, near: as in `render`.
        opacity: of skin seen head-on, 0 to 1.
        rim: of skin seen edge-on, 0 to 1; gives the body its outline.
    """
    fine = camera.scaled(_checked_factor(supersample))
    inner, outer = (rasterise(mesh.vertices, mesh.faces, fine, near=near) for mesh in (bones, skin))
    bone_rgb, _ = shade(inner, bones, light)
    skin_rgb, facing = shade(outer, skin, light)
    alpha = opacity + (rim - opacity) * (1.0 - facing) ** 3
    in_front = outer.silhouette & (outer.depth <= inner.depth)
    alpha = np.where(in_front, alpha, np.float32(0.0)).astype(np.float32)
    # Premultiplied colours: background shows by 1 - coverage.
    coverage = alpha + (1.0 - alpha) * inner.silhouette
    rgb = skin_rgb * alpha[..., None] + bone_rgb * (1.0 - alpha[..., None])
    return _over_background(rgb, coverage, camera, background, supersample)


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """A (H, W, 3) uint8 RGB picture as the bytes of a PNG file."""
    ok, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not ok:
        raise ValueError(f"cannot encode a picture of shape {picture.shape}, {picture.dtype}")
    return data.tobytes()


def _checked(vertices: ArrayLike, faces: ArrayLike) -> tuple[NDArray, NDArray]:
    vertices = np.ascontiguousarray(vertices, dtype=np.float64)
    faces = np.ascontiguousarray(faces, dtype=np.int32)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices must be (V, 3), got {vertices.shape}")
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces must be (F, 3), got {faces.shape}")
    if not np.isfinite(vertices).all():
        raise ValueError("vertices hold non-finite values; a rejected row cannot be drawn")
    # The kernels do not check bounds.
    if faces.size and not (faces.min() >= 0 and faces.max() < len(vertices)):
        raise ValueError(f"faces name vertices outside 0..{len(vertices) - 1}")
    return vertices, faces


def _checked_colors(
    colors: ArrayLike, vertex_count: int, face_count: int
) -> tuple[NDArray[np.float32], bool]:
    colors = np.ascontiguousarray(colors, dtype=np.float32)
    if colors.shape == (3,):
        return np.ascontiguousarray(np.broadcast_to(colors, (vertex_count, 3))), False
    if colors.shape == (vertex_count, 3):
        return colors, False
    if colors.shape == (face_count, 3):
        return colors, True
    raise ValueError(
        f"colors must be (3,), ({vertex_count}, 3) or ({face_count}, 3), got {colors.shape}"
    )


def _checked_factor(supersample: int) -> int:
    if supersample < 1 or supersample != int(supersample):
        raise ValueError(f"supersample must be a whole number of at least 1, got {supersample}")
    return int(supersample)


def _over_background(
    rgb: NDArray[np.float32],
    coverage: NDArray[np.float32],
    camera: Camera,
    background: ArrayLike,
    supersample: int,
) -> NDArray[np.uint8]:
    """Blend a premultiplied picture over the background, average the samples, round to uint8."""
    shape = (camera.height, camera.width, 3)
    behind = np.asarray(background)
    behind = (
        behind.astype(np.float32) / 255 if behind.dtype == np.uint8 else behind.astype(np.float32)
    )
    if behind.shape not in ((3,), shape):
        raise ValueError(f"the background must be (3,) or {shape}, got {behind.shape}")
    picture = np.empty(shape, np.uint8)
    loops.resolve(
        np.ascontiguousarray(rgb, dtype=np.float32),
        np.ascontiguousarray(coverage, dtype=np.float32),
        np.ascontiguousarray(np.broadcast_to(behind, shape)),
        supersample,
        picture,
    )
    return picture
