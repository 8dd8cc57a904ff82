"""Posed bodies and their points under an evaluation, float64.

Source: docs/reference/evaluation.md#precision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.provenance import file_record
from skel_fit.keypoints import EXTRA_FILES, MIX_FILES, find_regressor, keypoint_matrix
from skel_fit.model_files import load_joint_regressor, load_skel, load_smpl

_FILES = {
    "h36m_17": ("J_regressor_h36m.npy",),
    "smpl_male_24": ("J_regressor_SMPL_MALE.pkl",),
    "skel_mix_24": MIX_FILES,
}


class EvaluationBodies:
    """Body models and joint regressors of a folder, loaded when first used, float64.

    Raises ModelFileError or InputError for a missing or broken file.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.device = torch.device(device)
        self._models: dict[tuple[str, str], Any] = {}
        self._matrices: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}

    def model(self, kind: str, gender: str) -> Any:
        """A `smpl` or `skel` model."""
        if (kind, gender) not in self._models:
            load = load_skel if kind == "skel" else load_smpl
            model = load(self.folder, gender, dtype=torch.float64).to(self.device)
            self._models[kind, gender] = model
            self._files[model.path.name] = model.path
        return self._models[kind, gender]

    def matrix(self, name: str) -> Tensor:
        """A point set (see `protocols.POINT_SETS`) as weights of the skin, (K, 6890)."""
        if name not in self._matrices:
            self._matrices[name] = self._load(name).to(self.device)
        return self._matrices[name]

    def _load(self, name: str) -> Tensor:
        if name == "smpl_neutral_24":
            return self.model("smpl", "neutral").J_regressor
        if name == "keypoints_44":
            for names in (MIX_FILES, EXTRA_FILES):
                self._remember(find_regressor(self.folder, names))
            return torch.as_tensor(keypoint_matrix(self.folder))
        path = find_regressor(self.folder, _FILES[name])
        self._remember(path)
        return torch.as_tensor(load_joint_regressor(path, int(name.rpartition("_")[2])))

    def _remember(self, path: Path) -> None:
        self._files[path.name] = path

    def points(self, name: str, vertices: Tensor, posed_joints: Tensor | None) -> Tensor:
        """(B, K, 3) points of a set, from vertices (B, 6890, 3) or the model's own joints."""
        if name == "posed_joints":
            assert posed_joints is not None
            return posed_joints
        weights = self.matrix(name)
        # Matrix by matrix: folding the batch into one product would tie rows together.
        return torch.bmm(weights.expand(len(vertices), *weights.shape), vertices)

    @property
    def standin(self) -> bool:
        """Any loaded model is the licence-free stand-in."""
        return any(model.standin for model in self._models.values())

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that was used."""
        return {name: file_record(path).sha256 for name, path in sorted(self._files.items())}

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
