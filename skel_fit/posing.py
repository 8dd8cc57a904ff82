"""Posed bones for the forward pass on a CPU, and their gradient by the poses.

What torch does in some three hundred small operations, each of which costs more to start than to
do, is one pass of compiled code, in float64 (`numba_kinematics`). `SKEL` decides who does it (not
where gradients of the shape are asked for); its own operations are the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        return cls(*(torch.empty(shape, dtype=torch.float32) for shape in shapes))


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


Twin = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""The same in torch: from poses, what `PosedBones` has."""


def posed_bones(
    skeleton: Skeleton[np.ndarray],
    sources: np.ndarray,
    apose_rot: np.ndarray,
    poses: Tensor,
    shape: Tensor | RestBones,
    twin: Twin,
) -> PosedBones:
    """Bones of poses (B, 46) rad, with gradients by the poses.

    sources: (S,) joints of the corrective features; apose_rot: (24, 3, 3) float64; shape: betas
    (B or 1, 10), which then follow the features in `moving`, or rest skeletons; twin: for second
    derivatives.
    """
    betas = shape if isinstance(shape, Tensor) else None
    rest = RestBones.of_betas(skeleton, shape) if isinstance(shape, Tensor) else shape
    return PosedBones(*_Posed.apply(poses, betas, _Bones(skeleton, sources, apose_rot, rest), twin))


@dataclass(frozen=True)
class _Bones:
    """What stays the same from one pose to the next."""

    skeleton: Skeleton[np.ndarray]
    sources: np.ndarray  # (S,)
    apose_rot: np.ndarray  # (24, 3, 3)
    rest: RestBones

    def over(self, kernel: Any, poses: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        """A kernel over all rows. poses: (B, 46); arrays: (B, ...) each."""
        parts = (self.rest.joints, self.rest.frames, self.rest.lengths)

        def work(rows: slice) -> None:
            own = rows if len(self.rest.joints) > 1 else slice(None)
            kernel(
                self.skeleton, self.sources, self.apose_rot, poses[rows],
                *(part[own] for part in parts), *(array[rows] for array in arrays),
            )  # fmt: skip

        blocks = [slice(start, start + _BLOCK) for start in range(0, len(poses), _BLOCK)]
        with rows_over_threads():
            for _ in each(work, blocks, torch.device("cpu")):
                pass


class _Posed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, poses: Tensor, betas: Tensor | None, bones: _Bones, twin: Twin
    ) -> tuple[Tensor, ...]:
        width = 9 * len(bones.sources)
        out = PosedBones.empty(len(poses), width + (0 if betas is None else betas.shape[1]))
        if betas is not None:
            out.moving[:, width:] = betas
        found = (out.positions, out.orientations, out.affine, out.moving)
        arrays = [part.numpy() for part in found]
        bones.over(_kernels().pose_frames, _double(poses), arrays)
        ctx.save_for_backward(poses)
        ctx.bones, ctx.twin = bones, twin
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (poses,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            (slope,) = torch.autograd.grad(ctx.twin(poses), poses, grads, create_graph=True)
            return slope, None, None, None
        slope = torch.empty_like(poses)
        arrays = [np.ascontiguousarray(grad.numpy()) for grad in grads]
        kernel = _kernels().pose_frames_gradients
        ctx.bones.over(kernel, _double(poses), [*arrays, slope.numpy()])
        return slope, None, None, None


def _double(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().double().numpy())


def _kernels() -> Any:
    from skel_fit import numba_kinematics  # numba is loaded where it is used

    return numba_kinematics
