"""The 44 keypoints of a posed SMPL body, float64, without torch in the loop.

Source: reference/evaluation.md 2.1: 25 OpenPose points (joints and vertices by number), then 19
rows of SMPL_to_J19.pkl. Only the vertices behind a keypoint are posed. Work is done in blocks of
one size, so that a row's result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.errors import InputError
from skel_fit.anatomy import SMPL_PARENTS

# What each OpenPose point is: a vertex number, or joint j written as -j - 1.
_OPENPOSE = (332, -13, -18, -20, -22, -17, -19, -21, -1, -3, -6, -9, -2, -5, -8, 6260, 2800, 4071,
             583, 3216, 3226, 3387, 6617, 6624, 6787)  # fmt: skip
EXTRA_REGRESSOR = "SMPL_to_J19.pkl"
_BLOCK = 64  # rows of one forward pass


@dataclass(frozen=True)
class KeypointBody:
    """The part of an SMPL model that its 44 keypoints need."""

    joint_template: np.ndarray
    joint_directions: np.ndarray  # (24, 3, 10)
    template: np.ndarray  # (v, 3)
    directions: np.ndarray  # (v, 3, 10)
    correctives: np.ndarray  # (207, v * 3)
    weights: np.ndarray  # (v, 24)
    regressor: np.ndarray  # (keypoints made of vertices, v)
    joint_points: np.ndarray  # which keypoints are joints
    joint_numbers: np.ndarray  # and which joints
    vertex_points: np.ndarray  # which keypoints are made of vertices

    @classmethod
    def load(cls, models_dir: Path, gender: str) -> KeypointBody:
        """From SMPL_<GENDER> and SMPL_to_J19.pkl in `models_dir`. gender: neutral, male, female.

        Raises InputError: no SMPL_to_J19.pkl. ModelFileError: it is broken, or the SMPL model is
        broken or missing.
        """
        import torch

        from skel_fit.model_files import load_smpl

        smpl = load_smpl(models_dir, gender, dtype=torch.float64)
        extra = _extra_regressor(models_dir)
        rows = np.zeros((44, smpl.v_template.shape[0]))
        for point, vertex in enumerate(_OPENPOSE):
            if vertex >= 0:
                rows[point, vertex] = 1
        rows[25:] = extra
        joint_points = np.array([k for k, v in enumerate(_OPENPOSE) if v < 0])
        vertex_points = np.setdiff1d(np.arange(44), joint_points)
        used = np.flatnonzero(rows.any(0))
        regressor, directions = smpl.J_regressor.numpy(), smpl.shapedirs.numpy()[:, :, :10]
        template = smpl.v_template.numpy()
        return cls(
            joint_template=regressor @ template,
            joint_directions=np.einsum("jv,vck->jck", regressor, directions),
            template=template[used],
            directions=directions[used],
            correctives=smpl.posedirs.numpy().reshape(207, -1, 3)[:, used].reshape(207, -1),
            weights=smpl.lbs_weights.numpy()[used],
            regressor=rows[vertex_points][:, used],
            joint_points=joint_points,
            joint_numbers=np.array([-v - 1 for v in _OPENPOSE if v < 0]),
            vertex_points=vertex_points,
        )

    def joints(self, poses: np.ndarray, betas: np.ndarray) -> np.ndarray:
        """(n, 24, 3) joints from poses (n, 24, 3) and betas (n, 10)."""
        return self._in_blocks(lambda p, b: self._transforms(p, b)[0], poses, betas)

    def keypoints(self, poses: np.ndarray, betas: np.ndarray) -> np.ndarray:
        """(n, 44, 3) keypoints, metres."""
        return self._in_blocks(self._keypoints, poses, betas)

    def _in_blocks(
        self, function: Callable[..., np.ndarray], poses: np.ndarray, betas: np.ndarray
    ) -> np.ndarray:
        parts = []
        for start in range(0, max(len(poses), 1), _BLOCK):
            block, shape = poses[start : start + _BLOCK], betas[start : start + _BLOCK]
            fill = ((0, _BLOCK - len(block)), (0, 0))
            padded = function(np.pad(block, (*fill, (0, 0))), np.pad(shape, fill))
            parts.append(padded[: len(block)])
        return np.concatenate(parts)

    def _transforms(
        self, poses: np.ndarray, betas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Posed joints, joint rotations, global rotations, rest joints."""
        rest = self.joint_template + np.einsum("jck,nk->njc", self.joint_directions, betas)
        local = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
        world, joints = local.copy(), rest.copy()
        for joint in range(1, 24):
            parent = SMPL_PARENTS[joint]
            world[:, joint] = world[:, parent] @ local[:, joint]
            bone = (rest[:, joint] - rest[:, parent])[..., None]
            joints[:, joint] = joints[:, parent] + (world[:, parent] @ bone)[..., 0]
        return joints, local, world, rest

    def _keypoints(self, poses: np.ndarray, betas: np.ndarray) -> np.ndarray:
        joints, local, world, rest = self._transforms(poses, betas)
        n = len(poses)
        feature = (local[:, 1:] - np.eye(3)).reshape(n, 207)
        shaped = self.template + np.einsum("vck,nk->nvc", self.directions, betas)
        shaped = shaped + (feature @ self.correctives).reshape(n, -1, 3)
        offset = joints - (world @ rest[..., None])[..., 0]
        turn = (self.weights @ world.reshape(n, 24, 9)).reshape(n, -1, 3, 3)
        vertices = (turn @ shaped[..., None])[..., 0] + self.weights @ offset
        points = np.empty((n, 44, 3))
        points[:, self.joint_points] = joints[:, self.joint_numbers]
        points[:, self.vertex_points] = self.regressor @ vertices
        return points


def _extra_regressor(models_dir: Path) -> np.ndarray:
    """(19, 6890) of SMPL_to_J19.pkl."""
    from skel_fit.model_files import load_joint_regressor

    path = models_dir / EXTRA_REGRESSOR
    if not path.is_file():
        raise InputError(
            f"{path}: missing; the 19 extra joints of the 44 keypoints are in it; "
            "'hmr-skel default-body --out DIR' writes one with them"
        )
    return load_joint_regressor(path, 19)
