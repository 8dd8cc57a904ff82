"""Small rotations and mesh helpers used by several steps of the builder (float64, numpy)."""

from __future__ import annotations

import numpy as np


def axis_angle(axis: np.ndarray | list[float], angle: float) -> np.ndarray:
    """(3, 3) right-handed rotation about `axis` (any length but zero) by `angle` radians."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(3, 3) smallest rotation that turns `start` (3,) into the direction of `end` (3,)."""
    a, b = start / np.linalg.norm(start), end / np.linalg.norm(end)
    x, y, z = np.cross(a, b)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + a @ b)
