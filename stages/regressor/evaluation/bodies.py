"""Posed bodies and their points under an evaluation, float64.

Source: docs/reference/evaluation.md#precision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skel_fit.keypoints import JOINT_POINTS, MIX_FILES
from skel_fit.models import BodyModels

_FILES = {
    "h36m_17": ("J_regressor_h36m.npy",),
    "smpl_male_24": ("J_regressor_SMPL_MALE.pkl",),
    "skel_mix_24": MIX_FILES,
}


class EvaluationBodies(BodyModels):
    """Body models and joint regressors of a folder as an evaluation needs them, float64."""

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        super().__init__(directory, device)
        self._points: dict[str, Tensor] = {}

    def matrix(self, name: str) -> Tensor:
        """A point set (see `protocols.POINT_SETS`) as weights of the skin, (K, 6890)."""
        if name not in self._points:
            self._points[name] = self._weights(name).to(self.device)
        return self._points[name]

    def _weights(self, name: str) -> Tensor:
        if name == "smpl_neutral_24":
            return self.model("smpl", "neutral").J_regressor
        if name == "keypoints_44":
            return torch.as_tensor(self.keypoint_matrix())
        if name == "smpl_keypoints_44":
            return torch.as_tensor(self.smpl_keypoint_matrix())
        return torch.as_tensor(self.regressor(_FILES[name], int(name.rpartition("_")[2])))

    def smpl_keypoints(self, vertices: Tensor, posed_joints: Tensor) -> Tensor:
        """(B, 44, 3) keypoints of SMPL bodies: its own joints, vertices, rows of SMPL_to_J19."""
        found = self.points("smpl_keypoints_44", vertices, None)
        found[:, list(JOINT_POINTS)] = posed_joints[:, list(JOINT_POINTS.values())]
        return found

    def points(self, name: str, vertices: Tensor, posed_joints: Tensor | None) -> Tensor:
        """(B, K, 3) points of a set, from vertices (B, 6890, 3) or the model's own joints."""
        if name == "posed_joints":
            assert posed_joints is not None
            return posed_joints
        weights = self.matrix(name)
        # Matrix by matrix: folding the batch into one product would tie rows together.
        return torch.bmm(weights.expand(len(vertices), *weights.shape), vertices)

    def smpl(
        self, genders: np.ndarray, poses: np.ndarray, betas: np.ndarray, transl: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Vertices (B, 6890, 3) and posed joints (B, 24, 3) of SMPL rows of mixed genders."""

        def pose(gender: str, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
            turns, shape, shift = (self._tensor(x[chosen]) for x in (poses, betas, transl))
            posed = self.model("smpl", gender)(
                betas=shape, global_orient=turns[:, :3], body_pose=turns[:, 3:], transl=shift
            )
            return posed.vertices, posed.joints[:, :24]

        return self._by_gender(genders, pose)

    def skel(
        self, genders: np.ndarray, poses: Tensor, betas: Tensor, transl: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Skin (B, 6890, 3) and joints (B, 24, 3) of SKEL rows of mixed genders."""

        def pose(gender: str, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
            rows = torch.as_tensor(chosen, device=self.device)
            values = (x.to(self.device, torch.float64)[rows] for x in (poses, betas, transl))
            posed = self.model("skel", gender)(*values)
            return posed.skin_vertices, posed.joints

        return self._by_gender(genders, pose)

    def _by_gender(
        self, genders: np.ndarray, pose: Callable[[str, np.ndarray], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        vertices = torch.empty(len(genders), 6890, 3, dtype=torch.float64, device=self.device)
        joints = torch.empty(len(genders), 24, 3, dtype=torch.float64, device=self.device)
        for gender in sorted(set(genders.tolist())):
            chosen = np.flatnonzero(genders == gender)
            rows = torch.as_tensor(chosen, device=self.device)
            vertices[rows], joints[rows] = pose(gender, chosen)
        return vertices, joints

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=self.device)
