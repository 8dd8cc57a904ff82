"""What `fit_skel` takes: tensors or numpy arrays, poses as vectors or matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from skel_fit.rotations import matrix_to_axis_angle

Numbers = Tensor | np.ndarray
POSE_SHAPES = ((72,), (24, 3), (24, 3, 3))
"""Shapes of one SMPL pose: axis-angle, flat or by joint, or rotation matrices."""
_ORTHONORMAL = 1e-3
"""Largest entry of R^T R - I of a matrix that still is a rotation (float16 rounding)."""


def smpl_inputs(
    poses: Numbers, betas: Numbers, transl: Numbers
) -> tuple[tuple[Tensor, Tensor, Tensor], bool]:
    """Poses (n, 72) axis-angle rad, betas (n, 10), transl (n, 3) m as tensors, and whether they
    came as numpy arrays.

    poses: (n, 72), (n, 24, 3) or rotation matrices (n, 24, 3, 3), the global orientation first.
    NaN passes: such rows are rejected later. Raises ValueError in one line for another kind or
    shape, a missing translation, or a matrix that is no rotation.
    """
    given = {"poses": poses, "betas": betas, "transl": transl}
    tensors = {name: _tensor(name, values) for name, values in given.items()}
    arrays = [name for name, values in given.items() if isinstance(values, np.ndarray)]
    if len(arrays) not in (0, len(given)):
        others = [name for name in given if name not in arrays]
        raise ValueError(
            f"{', '.join(arrays)} numpy, {', '.join(others)} torch: give all as one kind"
        )
    shape = tuple(tensors["poses"].shape)
    if shape[1:] not in POSE_SHAPES:
        raise ValueError(
            f"poses: expected (n, 72), (n, 24, 3) or rotation matrices (n, 24, 3, 3), found {shape}"
        )
    for name, width in (("betas", 10), ("transl", 3)):
        found = tuple(tensors[name].shape)
        if len(found) != 2 or found[1] != width:
            raise ValueError(f"{name}: expected (n, {width}), found {found}")
        if found[0] != shape[0]:
            raise ValueError(f"{name}: {found[0]} rows, but poses has {shape[0]}")
    vectors = _vectors(tensors["poses"])
    return (vectors, tensors["betas"], tensors["transl"]), bool(arrays)


def _tensor(name: str, values: object) -> Tensor:
    if values is None:
        hint = "; zeros of (n, 3) put every body at the origin" if name == "transl" else ""
        raise ValueError(f"{name} is missing{hint}")
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return torch.from_numpy(values.astype(np.float64))
    if isinstance(values, Tensor) and not (values.is_complex() or values.dtype == torch.bool):
        return values.detach()
    kind = getattr(values, "dtype", type(values).__name__)
    raise ValueError(f"{name}: expected a tensor or a numpy array of numbers, found {kind}")


def _vectors(poses: Tensor) -> Tensor:
    """(n, 72) axis-angle."""
    if poses.ndim < 4:
        return poses.reshape(poses.shape[0], 72)
    matrices = poses.double()
    off = (matrices.transpose(2, 3) @ matrices - torch.eye(3).to(matrices)).abs().amax(dim=(2, 3))
    wrong = (off > _ORTHONORMAL) | (torch.linalg.det(matrices) < 0.0)
    if wrong.any():
        row, joint = torch.nonzero(wrong)[0].tolist()
        raise ValueError(f"poses: row {row}, joint {joint} is no rotation matrix")
    return matrix_to_axis_angle(matrices).reshape(poses.shape[0], 72)


__all__ = ["POSE_SHAPES", "Numbers", "smpl_inputs"]
