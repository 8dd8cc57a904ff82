"""Every rotation mapping, once.

Right-handed, radians, column vectors: R (..., 3, 3) turns v into R v, and R1 R2 turns by R2 first.
*Axis-angle* (..., 3): unit axis times angle. *Euler angles* (a, b, c) of an order (i, j, k) of the
coordinate axes 0, 1, 2: R = R_i(a) R_j(b) R_k(c). *6D* (..., 6): the first two rows of R, one after
the other. *Quaternions* are scipy's business.

All functions are batched over leading dimensions, keep device and dtype, have no data-dependent
branch and finite gradients everywhere. The compiled twins of what the solver needs have the same
names in `solver.numba_kinematics`.
"""

import math

import torch
from torch import Tensor

# Below this square of the angle the Taylor series are exact to float64 rounding.
_SERIES_BELOW = 1e-4
# Below this cosine of the middle Euler angle only the sum or difference of the others is defined.
_GIMBAL_COSINE = 1e-7
_TINY = 1e-12


# ---- numbers with finite derivatives ------------------------------------------------------------


def _sinc_of_square(square: Tensor) -> Tensor:
    """sin(x) / x as a smooth function of x^2."""
    small = square < _SERIES_BELOW
    x = torch.where(small, torch.ones_like(square), square).sqrt()
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42))
    return torch.where(small, series, torch.sin(x) / x)


def sinc(angle: Tensor) -> Tensor:
    """sin(angle) / angle, 1 at zero, any shape; derivatives are exact and finite at zero."""
    return _sinc_of_square(angle * angle)


def sinc_slope(angle: Tensor) -> Tensor:
    """Derivative of `sinc`, any shape."""
    square = angle * angle
    small = square < 4 * _SERIES_BELOW
    x = torch.where(small, torch.ones_like(angle), angle)
    series = angle * (-1 / 3 + square / 30 - square * square / 840)
    return torch.where(small, series, (x * torch.cos(x) - torch.sin(x)) / (x * x))


def safe_norm(vector: Tensor) -> Tensor:
    """Length over the last dimension; the gradient at zero is zero instead of NaN."""
    square = (vector * vector).sum(-1)
    zero = square == 0
    return torch.where(zero, square, torch.where(zero, torch.ones_like(square), square).sqrt())


def safe_atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 with value and gradient 0 next to the origin, where the true gradient has no bound."""
    lost = y * y + x * x < _TINY * _TINY
    return torch.atan2(
        torch.where(lost, torch.zeros_like(y), y), torch.where(lost, torch.ones_like(x), x)
    )


def wrap_angle(angle: Tensor) -> Tensor:
    """The same angle without whole turns, in (-pi, pi]."""
    turn = 2.0 * math.pi
    return angle - turn * torch.ceil((angle - math.pi) / turn)


# ---- vectors and matrices -----------------------------------------------------------------------


def skew(vector: Tensor) -> Tensor:
    """Cross-product matrices [v] of vectors: (..., 3) -> (..., 3, 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


def axial(matrix: Tensor) -> Tensor:
    """The vector a with [a] = M - M^T: (..., 3, 3) -> (..., 3). For rotations 2 sin(angle) axis."""
    m = matrix
    pairs = ((2, 1), (0, 2), (1, 0))
    return torch.stack([m[..., i, j] - m[..., j, i] for i, j in pairs], -1)


def _eye_like(vector: Tensor) -> Tensor:
    return torch.eye(3, dtype=vector.dtype, device=vector.device)


# ---- axis-angle and single axes -----------------------------------------------------------------


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula: axis-angle vectors (..., 3) -> matrices (..., 3, 3)."""
    square = (axis_angle * axis_angle).sum(-1)[..., None, None]
    cross = skew(axis_angle)
    half = _sinc_of_square(square / 4)
    return (
        _eye_like(axis_angle)
        + _sinc_of_square(square) * cross
        + 0.5 * half * half * (cross @ cross)
    )


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


def rotation_about_axis(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations by `angle` (...) about unit `axis` (..., 3), broadcast -> (..., 3, 3)."""
    cross = skew(axis)
    sine = torch.sin(angle)[..., None, None]
    half = torch.sin(angle / 2)[..., None, None]
    return _eye_like(axis) + sine * cross + 2 * half * half * (cross @ cross)


def rotation_of_cosine_sine(axis: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotations about unit `axis` (..., 3) by angles (...) given as cosine and sine, broadcast."""
    outer = axis[..., :, None] * axis[..., None, :]
    return (
        outer
        + cosine[..., None, None] * (_eye_like(axis) - outer)
        + sine[..., None, None] * skew(axis)
    )


def angle_about_axis(matrix: Tensor, axis: Tensor) -> Tensor:
    """The angle about unit `axis` (3,) that comes nearest to matrices (..., 3, 3) -> (...)."""
    cosine = matrix.diagonal(dim1=-2, dim2=-1).sum(-1) - ((matrix @ axis) * axis).sum(-1)
    return torch.atan2((axial(matrix) * axis).sum(-1), cosine)


def rotation_angle(matrix: Tensor) -> Tensor:
    """Angle of rotations (..., 3, 3), in [0, pi] (the geodesic distance of A and B is that of
    A^T B); accurate next to 0 and to pi."""
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(safe_norm(axial(matrix)), trace - 1.0)


# ---- Euler angles -------------------------------------------------------------------------------


def euler_from_matrix(matrix: Tensor, order: tuple[int, int, int] | Tensor) -> Tensor:
    """Euler angles (a, b, c) with R_i(a) R_j(b) R_k(c) = matrix.

    matrix: (..., 3, 3) with one order (i, j, k), all different; or (..., n, 3, 3) with an order
    for each of the n, (n, 3). Returns (..., 3): b in [-pi/2, pi/2], a and c in (-pi, pi]; at gimbal
    lock c is 0. a is what remains after c: together they are right also next to the lock, where
    each by itself is read from rounding.
    """
    i: int | Tensor
    j: int | Tensor
    k: int | Tensor
    parity: float | Tensor
    members: tuple[Tensor, ...]
    if isinstance(order, Tensor):
        i, j, k = order.unbind(-1)
        members = (torch.arange(len(order), device=matrix.device),)
        parity = torch.where((j - i) % 3 == 1, 1.0, -1.0).to(matrix.dtype)
    else:
        i, j, k = order
        members = ()
        parity = 1.0 if (j - i) % 3 == 1 else -1.0

    def entry(row: Tensor | int, column: Tensor | int) -> Tensor:
        return matrix[(..., *members, row, column)]

    cosine = safe_norm(torch.stack((entry(i, i), entry(i, j)), -1))
    middle = safe_atan2((parity * entry(i, k)).clamp(-1, 1), cosine)
    inner = safe_atan2(-parity * entry(i, j), entry(i, i))
    inner = torch.where(cosine > _GIMBAL_COSINE, inner, torch.zeros_like(inner))
    c, s = torch.cos(inner), parity * torch.sin(inner)
    sine = parity * (s * entry(k, i) + c * entry(k, j))
    outer = safe_atan2(sine, s * entry(j, i) + c * entry(j, j))
    return torch.stack((outer, middle, inner), -1)


# ---- nearest and smallest rotations -------------------------------------------------------------


def gram_schmidt(rows: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) whose first two rows come from 6D numbers (..., 6).

    Degenerate input (zero or parallel rows) gives finite values and gradients, not a rotation.
    """
    first, second = rows[..., :3], rows[..., 3:]
    b1 = unit(first)
    b2 = unit(second - (b1 * second).sum(-1, keepdim=True) * b1)
    return torch.stack((b1, b2, torch.linalg.cross(b1, b2)), -2)


def unit(vector: Tensor) -> Tensor:
    """Vectors (..., n) of length 1; one that is next to zero stays short."""
    square = (vector * vector).sum(-1, keepdim=True).clamp(min=_TINY * _TINY)
    return vector / square.sqrt()


def nearest_rotation(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation R that maximises trace(R^T M) (Kabsch), never a reflection.

    matrix: M (..., 3, 3); for M = sum target source^T it is the R with R source nearest to target.
    Returns R and the singular values (..., 3), the smallest one negative where the best orthogonal
    matrix is a reflection. Gradients as those of an SVD.
    """
    u, s, vh = torch.linalg.svd(matrix)
    # det is +-1 up to rounding; `< 0` rather than sign() so that no rounding can yield rank 2.
    flip = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(s)
    signs = torch.stack((torch.ones_like(flip), torch.ones_like(flip), flip), -1)
    return (u * signs[..., None, :]) @ vh, s * signs


def minimal_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotation from the direction of `source` (..., 3) to that of `target` (..., 3).

    Returns (..., 3, 3). As published
    (docs/reference/skel-model.md#bone-orientation): identity for exactly parallel and exactly
    opposite vectors, the zero matrix where a vector has length zero.
    """
    source_length, target_length = safe_norm(source), safe_norm(target)
    defined = (source_length > 0) & (target_length > 0)
    a = source / torch.where(source_length > 0, source_length, 1.0)[..., None]
    b = target / torch.where(target_length > 0, target_length, 1.0)[..., None]
    v = torch.linalg.cross(a, b)
    cosine = (a * b).sum(-1)
    # (1 - c) / s^2 = 1 / (1 + c); the first form is the accurate one for obtuse angles.
    acute = cosine > 0
    square = (v * v).sum(-1).clamp(min=1e-30)
    obtuse_factor = (1 - cosine) / torch.where(acute, torch.ones_like(square), square)
    acute_factor = 1 / torch.where(acute, 1 + cosine, torch.ones_like(cosine))
    factor = torch.where(acute, acute_factor, obtuse_factor)[..., None, None]
    cross = skew(v)
    return (_eye_like(v) + cross + factor * (cross @ cross)) * defined[..., None, None]
