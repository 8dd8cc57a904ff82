"""Rotations with finite gradients everywhere.

Column vectors, right-handed, radians. All functions are batched over leading dimensions, keep the
device and dtype of their input and contain no data-dependent branch.
"""

import torch
from torch import Tensor

# Below this square of the angle the Taylor series are exact to float64 rounding.
_SERIES_BELOW = 1e-4


def _sinc_of_square(square: Tensor) -> Tensor:
    """sin(x) / x as a smooth function of x^2."""
    small = square < _SERIES_BELOW
    x = torch.where(small, torch.ones_like(square), square).sqrt()
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42))
    return torch.where(small, series, torch.sin(x) / x)


def sinc(angle: Tensor) -> Tensor:
    """sin(angle) / angle, 1 at zero, any shape; derivatives are exact and finite at zero."""
    return _sinc_of_square(angle * angle)


def skew(vector: Tensor) -> Tensor:
    """Cross-product matrices [v] of vectors: (..., 3) -> (..., 3, 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula: axis-angle vectors (..., 3), radians -> matrices (..., 3, 3)."""
    square = (axis_angle * axis_angle).sum(-1)[..., None, None]
    cross = skew(axis_angle)
    half = _sinc_of_square(square / 4)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + _sinc_of_square(square) * cross + 0.5 * half * half * (cross @ cross)


def rotation_about_axis(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations by `angle` (...), radians, about unit `axis` (..., 3) -> (..., 3, 3)."""
    cross = skew(axis)
    sine = torch.sin(angle)[..., None, None]
    half = torch.sin(angle / 2)[..., None, None]
    eye = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return eye + sine * cross + 2 * half * half * (cross @ cross)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Logarithm of rotation matrices (..., 3, 3) -> axis-angle (..., 3), norm in [0, pi].

    Through the quaternion of the largest component, so it is accurate next to 0 and to pi.
    """
    m = matrix
    m00, m01, m02 = m[..., 0, 0], m[..., 0, 1], m[..., 0, 2]
    m10, m11, m12 = m[..., 1, 0], m[..., 1, 1], m[..., 1, 2]
    m20, m21, m22 = m[..., 2, 0], m[..., 2, 1], m[..., 2, 2]
    # Row k of this symmetric matrix is 4 q_k (w, x, y, z).
    wx, wy, wz = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m01 + m10, m02 + m20, m12 + m21
    rows = torch.stack(
        (
            torch.stack((1 + m00 + m11 + m22, wx, wy, wz), -1),
            torch.stack((wx, 1 + m00 - m11 - m22, xy, xz), -1),
            torch.stack((wy, xy, 1 - m00 + m11 - m22, yz), -1),
            torch.stack((wz, xz, yz, 1 - m00 - m11 + m22), -1),
        ),
        -2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quaternion = torch.take_along_dim(rows, best[..., None, None], -2).squeeze(-2)
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, v = quaternion[..., :1], quaternion[..., 1:]
    square = (v * v).sum(-1, keepdim=True)
    tiny = square < 1e-16
    sine = torch.where(tiny, torch.ones_like(square), square).sqrt()
    scale = torch.where(tiny, 2 / w.clamp(min=0.5), 2 * torch.atan2(sine, w) / sine)
    return scale * v
