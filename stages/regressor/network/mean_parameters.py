"""The mean pose, shape and camera that every prediction starts from.

Source: docs/reference/regressor.md#mean-parameters (46 + 10 + 3 numbers as facts). The camera frame
is used, so the pelvis tilt is pi: upright, facing the camera.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stages.regressor.network.representation import encode

POSES = (
    3.141593, 0.0, 0.0,
    0.258202, -0.007054, -0.087582, 0.473133, 0.179696, -0.088877, 0.168587,
    0.218106, -0.042617, -0.025765, 0.400466, 0.223503, -0.128167, 0.097408,
    0.007973, -0.175706, 0.012776, -0.005013, -0.013977, -0.025101, 0.033428, -0.070455, 0.011787,
    0.117108, 0.220404, -0.152904, 0.810892, -0.150455, 0.326355,
    0.876925, 0.002892, 0.009306, -0.135727,
    -0.072228, -0.209054, -0.201032, -0.791686, 0.084718, 0.390352,
    0.903589, -0.023678, -0.029803, -0.188568,
)  # fmt: skip
BETAS = (
    0.072176, 0.498677, 0.403012, -0.009203, 0.259845,
    -0.651564, 0.303990, -0.518016, 0.477567, 0.217723,
)  # fmt: skip
CAMERA = (0.9, 0.0, 0.0)
Pose = Literal["rotations", "angles"]
"""What a head reads out: the pose representation, or the angles themselves (Euler target)."""


class Parameters(NamedTuple):
    """What the network estimates. Leading dimensions are free.

    code: (..., 144) pose representation, or (..., 46) angles inside a head of angles; betas:
    (..., 10); camera: (..., 3) crop camera s, tx, ty.
    """

    code: Tensor
    betas: Tensor
    camera: Tensor


def mean_parameters(pose: Pose = "rotations") -> Parameters:
    """The mean as float32 tensors: code (144,), or (46,) of a head of angles; betas (10,), camera
    (3,)."""
    code = torch.tensor([POSES], dtype=torch.float64)[0]
    if pose == "rotations":
        code = encode(code[None])[0]
    return Parameters(code.float(), torch.tensor(BETAS), torch.tensor(CAMERA))
