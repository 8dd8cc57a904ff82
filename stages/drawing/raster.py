"""The loops of the renderer, compiled by numba: `stages.drawing.render` says what goes in and out.

Nothing here checks bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba; keep the machine code on disk when some cache folder is writable,
    else in memory only.
    """
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # numba: "cannot cache function ...: no locator available"
        return numba.njit(function)


@_jit
def rasterise(vertices, faces, cam_int, near, depth, face_ids, barycentric):
    """Nearest face, its depth and barycentric coordinates of every pixel; fills the last three."""
    height, width = depth.shape
    nearest = np.zeros((height, width), np.float32)  # 1 / z, 0: nothing yet
    count = vertices.shape[0]
    u = np.empty(count, np.float64)
    v = np.empty(count, np.float64)
    inverse = np.empty(count, np.float64)
    for i in range(count):
        z = vertices[i, 2]
        inverse[i] = 1.0 / z if z >= near else 0.0
        x = vertices[i, 0] * inverse[i]
        y = vertices[i, 1] * inverse[i]
        u[i] = cam_int[0, 0] * x + cam_int[0, 1] * y + cam_int[0, 2]
        v[i] = cam_int[1, 1] * y + cam_int[1, 2]
    identity = np.eye(3)
    corner = np.zeros((4, 3))
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        behind = (inverse[a] == 0.0) + (inverse[b] == 0.0) + (inverse[c] == 0.0)
        if behind == 0:
            _fill(
                f, u[a], v[a], inverse[a], u[b], v[b], inverse[b], u[c], v[c], inverse[c],
                identity, 0, 1, 2, nearest, depth, face_ids, barycentric,
            )  # fmt: skip
        elif behind < 3:
            corners = _clip(vertices, faces[f], near, corner)
            screen = np.empty((corners, 3))
            for k in range(corners):
                x, y, z = 0.0, 0.0, 0.0
                for m in range(3):
                    x += corner[k, m] * vertices[faces[f, m], 0]
                    y += corner[k, m] * vertices[faces[f, m], 1]
                    z += corner[k, m] * vertices[faces[f, m], 2]
                screen[k, 2] = 1.0 / z
                x *= screen[k, 2]
                y *= screen[k, 2]
                screen[k, 0] = cam_int[0, 0] * x + cam_int[0, 1] * y + cam_int[0, 2]
                screen[k, 1] = cam_int[1, 1] * y + cam_int[1, 2]
            for k in range(1, corners - 1):
                _fill(
                    f, screen[0, 0], screen[0, 1], screen[0, 2],
                    screen[k, 0], screen[k, 1], screen[k, 2],
                    screen[k + 1, 0], screen[k + 1, 1], screen[k + 1, 2],
                    corner, 0, k, k + 1, nearest, depth, face_ids, barycentric,
                )  # fmt: skip


@_jit
def _clip(vertices, face, near, corner):
    """Cut a triangle at z = near; fills `corner` with barycentric coordinates, returns how many
    corners (3 or 4).
    """
    count = 0
    for i in range(3):
        j = (i + 1) % 3
        zi = vertices[face[i], 2]
        zj = vertices[face[j], 2]
        if zi >= near:
            corner[count, :] = 0.0
            corner[count, i] = 1.0
            count += 1
        if (zi >= near) != (zj >= near):
            t = (near - zi) / (zj - zi)
            corner[count, :] = 0.0
            corner[count, i] = 1.0 - t
            corner[count, j] = t
            count += 1
    return count


@_jit
def _fill(
    f, x0, y0, i0, x1, y1, i1, x2, y2, i2, corner, c0, c1, c2, nearest, depth, face_ids, barycentric
):
    """Draw one triangle given in pixels and inverse depths; `corner[c]` are its corners within
    face `f`.
    """
    height, width = depth.shape
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    if area == 0.0:
        return
    # Clamped while still floating point: near the camera coordinates exceed any integer.
    left = int(np.ceil(max(min(x0, x1, x2) - 0.5, 0.0)))
    right = int(np.floor(min(max(x0, x1, x2) - 0.5, width - 1.0)))
    top = int(np.ceil(max(min(y0, y1, y2) - 0.5, 0.0)))
    bottom = int(np.floor(min(max(y0, y1, y2) - 0.5, height - 1.0)))
    sign = 1.0 if area > 0.0 else -1.0
    for y in range(top, bottom + 1):
        py = y + 0.5
        for x in range(left, right + 1):
            px = x + 0.5
            # Each edge by itself, from its two ends: neighbours get exactly opposite values, so
            # no gaps.
            e0 = sign * ((x1 - px) * (y2 - py) - (x2 - px) * (y1 - py))
            e1 = sign * ((x2 - px) * (y0 - py) - (x0 - px) * (y2 - py))
            e2 = sign * ((x0 - px) * (y1 - py) - (x1 - px) * (y0 - py))
            if e0 < 0.0 or e1 < 0.0 or e2 < 0.0:
                continue
            total = e0 + e1 + e2
            if total <= 0.0:
                continue
            w0 = e0 * i0
            w1 = e1 * i1
            w2 = e2 * i2
            weight = w0 + w1 + w2
            if np.float32(weight / total) > nearest[y, x]:
                nearest[y, x] = weight / total
                depth[y, x] = total / weight
                face_ids[y, x] = f
                for k in range(3):
                    barycentric[y, x, k] = (
                        w0 * corner[c0, k] + w1 * corner[c1, k] + w2 * corner[c2, k]
                    ) / weight


@_jit
def vertex_normals(vertices, faces):
    """(V, 3) unit normals, area-weighted; 0 for a vertex without area."""
    normals = np.zeros_like(vertices)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        vx = vertices[c, 0] - vertices[a, 0]
        vy = vertices[c, 1] - vertices[a, 1]
        vz = vertices[c, 2] - vertices[a, 2]
        nx = uy * vz - uz * vy
        ny = uz * vx - ux * vz
        nz = ux * vy - uy * vx
        for i in (a, b, c):
            normals[i, 0] += nx
            normals[i, 1] += ny
            normals[i, 2] += nz
    for i in range(normals.shape[0]):
        length = np.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2)
        if length > 0.0:
            normals[i, 0] /= length
            normals[i, 1] /= length
            normals[i, 2] /= length
    return normals


@_jit
def shade(
    vertices,
    faces,
    normals,
    colors,
    by_face,
    direction,
    strengths,
    face_ids,
    barycentric,
    rgb,
    facing,
):
    """Light every covered pixel once; fills `rgb` and `facing`."""
    height, width = face_ids.shape
    for y in range(height):
        for x in range(width):
            f = face_ids[y, x]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            q0, q1, q2 = barycentric[y, x, 0], barycentric[y, x, 1], barycentric[y, x, 2]
            # Line of sight at the pixel, and whether it meets the outside of the face.
            sx = q0 * vertices[a, 0] + q1 * vertices[b, 0] + q2 * vertices[c, 0]
            sy = q0 * vertices[a, 1] + q1 * vertices[b, 1] + q2 * vertices[c, 1]
            sz = q0 * vertices[a, 2] + q1 * vertices[b, 2] + q2 * vertices[c, 2]
            far = np.sqrt(sx * sx + sy * sy + sz * sz)
            ux = vertices[b, 0] - vertices[a, 0]
            uy = vertices[b, 1] - vertices[a, 1]
            uz = vertices[b, 2] - vertices[a, 2]
            vx = vertices[c, 0] - vertices[a, 0]
            vy = vertices[c, 1] - vertices[a, 1]
            vz = vertices[c, 2] - vertices[a, 2]
            away = (
                (uy * vz - uz * vy) * sx + (uz * vx - ux * vz) * sy + (ux * vy - uy * vx) * sz
            ) > 0.0
            nx = q0 * normals[a, 0] + q1 * normals[b, 0] + q2 * normals[c, 0]
            ny = q0 * normals[a, 1] + q1 * normals[b, 1] + q2 * normals[c, 1]
            nz = q0 * normals[a, 2] + q1 * normals[b, 2] + q2 * normals[c, 2]
            length = np.sqrt(nx * nx + ny * ny + nz * nz)
            if length > 0.0:
                scale = -1.0 / length if away else 1.0 / length
                nx *= scale
                ny *= scale
                nz *= scale
            front = min(max(-(nx * sx + ny * sy + nz * sz) / far, 0.0), 1.0)
            key = max(nx * direction[0] + ny * direction[1] + nz * direction[2], 0.0)
            level = strengths[0] * key + strengths[1] * front + strengths[2]
            facing[y, x] = front
            for k in range(3):
                if by_face:
                    base = colors[f, k]
                else:
                    base = q0 * colors[a, k] + q1 * colors[b, k] + q2 * colors[c, k]
                rgb[y, x, k] = min(max(level * base, 0.0), 1.0)


@_jit
def resolve(rgb, coverage, background, factor, picture):
    """Average the samples over the background into `picture`, uint8."""
    height, width, _ = picture.shape
    share = 1.0 / (factor * factor)
    for y in range(height):
        for x in range(width):
            red, green, blue, covered = 0.0, 0.0, 0.0, 0.0
            for j in range(y * factor, (y + 1) * factor):
                for i in range(x * factor, (x + 1) * factor):
                    red += rgb[j, i, 0]
                    green += rgb[j, i, 1]
                    blue += rgb[j, i, 2]
                    covered += coverage[j, i]
            rest = 1.0 - covered * share
            picture[y, x, 0] = _to_byte(red * share + rest * background[y, x, 0])
            picture[y, x, 1] = _to_byte(green * share + rest * background[y, x, 1])
            picture[y, x, 2] = _to_byte(blue * share + rest * background[y, x, 2])


@_jit
def _to_byte(value):
    return np.uint8(min(max(value, 0.0), 1.0) * 255.0 + 0.5)
