"""How spine and scapulae move off their rest place: functions of two angles, as polynomials.

The lumbar, thoracic and neck joints end an arc of constant curvature for bending plus one for
extension; a scapula slides on an ellipsoid-like surface. OpenSim has no joint that does exactly
that, but takes any polynomial of the coordinates as translation of a CustomJoint. The Taylor
polynomial of degree 12 is within 0.1 um for angles up to 60 degrees and within 5 um up to 85.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEGREE = 12
_SPINE = {11: 0, 12: 1, 13: 2}
_SCAPULA_R, _SCAPULA_L = 14, 19


@dataclass(frozen=True)
class Path:
    """Translation of one joint along the three axes of the body frame at rest, metres.

    Attributes:
        dofs: the two pose parameters it depends on.
        coefficients: (3, 13, 13), [k, i, j] of q_first^i q_second^j along axis k; zero above the
            total degree 12.
    """

    dofs: tuple[int, int]
    coefficients: NDArray[np.float64]

    def __call__(self, first: NDArray, second: NDArray) -> NDArray[np.float64]:
        """Value at angles (n,), (n,): (n, 3)."""
        values = [np.polynomial.polynomial.polyval2d(first, second, c) for c in self.coefficients]
        return np.stack(values, -1)


def path(joint: int, spine_lengths: NDArray, scapula_extents: NDArray) -> Path | None:
    """The path of `joint` of one person; None where the joint only turns.

    spine_lengths: (3,) of lumbar, thorax and head; scapula_extents: (2,) width and height, metres.
    """
    if joint in _SPINE:
        segment = _SPINE[joint]
        first = 17 + 3 * segment
        return Path((first, first + 1), _spine(float(spine_lengths[segment])))
    if joint in (_SCAPULA_R, _SCAPULA_L):
        width, height = map(float, scapula_extents)
        left = joint == _SCAPULA_L
        return Path((36, 37) if left else (26, 27), _scapula(width, height, left))
    return None


def _spine(length: float) -> NDArray[np.float64]:
    """x: -X(bending), y: Y(bending) + Y(extension) - 2 length, z: -X(extension).

    X(t) = length (1 - cos t)/t and Y(t) = length sin(t)/t.
    """
    sideways, rise = np.zeros(DEGREE + 1), np.zeros(DEGREE + 1)
    for n in range(1, DEGREE + 1):
        sign = (-1.0) ** (n // 2)
        if n % 2:
            sideways[n] = sign * length / math.factorial(n + 1)
        else:
            rise[n] = sign * length / math.factorial(n + 1)
    result = np.zeros((3, DEGREE + 1, DEGREE + 1))
    result[0, :, 0] = -sideways
    result[1, :, 0] = rise
    result[1, 0, :] = rise
    result[2, 0, :] = -sideways
    return result


def _scapula(width: float, height: float, left: bool) -> NDArray[np.float64]:
    """S(abduction, elevation) - S(0, 0); the left side negates both angles and x.

    S(p, e) = (-width/4 cos(e - 45) cos p, -height/2 sin(e - 45), width/4 sin p).
    """
    cosine = _series_of_cosine(0.0)
    sine = _series_of_cosine(-math.pi / 2)
    shifted_cosine = _series_of_cosine(-math.pi / 4)
    shifted_sine = _series_of_cosine(-3 * math.pi / 4)
    mirror = (-1.0) ** np.arange(DEGREE + 1) if left else np.ones(DEGREE + 1)
    side = 1.0 if left else -1.0
    result = np.zeros((3, DEGREE + 1, DEGREE + 1))
    result[0] = side * width / 4 * np.outer(cosine * mirror, shifted_cosine * mirror)
    result[1, 0] = -height / 2 * shifted_sine * mirror
    result[2, :, 0] = width / 4 * sine * mirror
    result[:, 0, 0] = 0.0
    degree = np.add.outer(np.arange(DEGREE + 1), np.arange(DEGREE + 1))
    return np.where(degree <= DEGREE, result, 0.0)


def _series_of_cosine(phase: float) -> NDArray[np.float64]:
    """Taylor coefficients of cos(x + phase): the n-th derivative is cos(phase + n pi/2)."""
    return np.array(
        [math.cos(phase + n * math.pi / 2) / math.factorial(n) for n in range(DEGREE + 1)]
    )
