"""Posed bones for the forward pass on a CPU, where no gradient is asked for.

What torch does in some three hundred small operations, each of which costs more to start than to
do, is one pass of compiled code, in float64 (`numba_kinematics`). `SKEL` decides who does it; its
own operations are the twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from skel_fit.crew import each, rows_over_threads
from skel_fit.skeleton import Skeleton

_BLOCK = 64
"""Rows that one thread poses at a time: a millisecond of work."""


@dataclass(frozen=True)
class PosedBones:
    """Posed bones, body frame, metres, without translation."""

    positions: Tensor  # (B, 24, 3) joints
    orientations: Tensor  # (B, 24, 3, 3) of the bones
    affine: Tensor  # (B, 24, 3, 4) motion of the skin from the rest pose
    moving: Tensor  # (B, F or more) corrective features, R - I joint after joint

    @classmethod
    def empty(cls, batch: int, features: int) -> Self:
        """Room for a result, float32."""
        shapes = ((batch, 24, 3), (batch, 24, 3, 3), (batch, 24, 3, 4), (batch, features))
        return cls(*(torch.empty(shape) for shape in shapes))


@dataclass(frozen=True)
class RestBones:
    """Rest skeletons of B or 1 rows as `numba_kinematics.identity` makes them, float64."""

    joints: np.ndarray  # (B, 24, 3)
    frames: np.ndarray  # (B, 24, 3, 3) Q = K Ra^T
    lengths: np.ndarray  # (B, 5)

    @classmethod
    def of_betas(cls, skeleton: Skeleton[np.ndarray], betas: Tensor) -> Self:
        """betas: (B or 1, 10)."""
        n = len(betas)
        made = cls(np.empty((n, 24, 3)), np.empty((n, 24, 3, 3)), np.empty((n, 5)))
        _kernels().identity(skeleton, _double(betas), made.joints, made.frames, made.lengths)
        return made

    @classmethod
    def of_tensors(cls, joints: Tensor, frames: Tensor, lengths: Tensor) -> Self:
        """Of a shape that torch has made."""
        return cls(_double(joints), _double(frames), _double(lengths))


def posed_bones(
    skeleton: Skeleton[np.ndarray],
    sources: np.ndarray,
    apose_rot: np.ndarray,
    poses: Tensor,
    shape: Tensor | RestBones,
) -> PosedBones:
    """Bones of poses (B, 46) rad.

    sources: (S,) joints of the corrective features; apose_rot: (24, 3, 3) float64; shape: betas
    (B or 1, 10), which then follow the features in `moving`, or rest skeletons.
    """
    betas = shape if isinstance(shape, Tensor) else None
    rest = RestBones.of_betas(skeleton, shape) if isinstance(shape, Tensor) else shape
    angles, width = _double(poses), 9 * len(sources)
    out = PosedBones.empty(len(poses), width + (0 if betas is None else betas.shape[1]))
    if betas is not None:
        out.moving[:, width:] = betas
    arrays = [part.numpy() for part in (out.positions, out.orientations, out.affine, out.moving)]
    parts = (rest.joints, rest.frames, rest.lengths)

    def work(rows: slice) -> None:
        own = rows if len(rest.joints) > 1 else slice(None)
        _kernels().pose_frames(
            skeleton, sources, apose_rot, angles[rows], *(part[own] for part in parts),
            *(array[rows] for array in arrays),
        )  # fmt: skip

    blocks = [slice(start, start + _BLOCK) for start in range(0, len(poses), _BLOCK)]
    with rows_over_threads():
        for _ in each(work, blocks, poses.device):
            pass
    return out


def _double(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().double().numpy())


def _kernels() -> Any:
    from skel_fit import numba_kinematics  # numba is loaded where it is used

    return numba_kinematics
