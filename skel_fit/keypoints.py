"""The 44 keypoints: names, mirror, limbs, what each is on SMPL and SKEL; those of SMPL, posed.

Source: docs/reference/evaluation.md#keypoints-44: 25 OpenPose points (joints and vertices by
number), then 19 rows of SMPL_to_J19.pkl; #skel-keypoints: on SKEL the joints are rows of a
regressor too. `keypoint_body` poses those of SKEL with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skel_fit.anatomy import LANDMARKS, SMPL_PARENTS
from skel_fit.errors import ModelFileError

NUM_KEYPOINTS = 44
ROOT_KEYPOINT = 39  # pelvis (MPII): 3D keypoints are compared relative to it
NAMES: tuple[str, ...] = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow",
    "left wrist", "mid hip", "right hip", "right knee", "right ankle", "left hip", "left knee",
    "left ankle", "right eye", "left eye", "right ear", "left ear", "left big toe",
    "left small toe", "left heel", "right big toe", "right small toe", "right heel",
    "right ankle (LSP)", "right knee (LSP)", "right hip (LSP)", "left hip (LSP)",
    "left knee (LSP)", "left ankle (LSP)", "right wrist (LSP)", "right elbow (LSP)",
    "right shoulder (LSP)", "left shoulder (LSP)", "left elbow (LSP)", "left wrist (LSP)",
    "neck (LSP)", "head top (LSP)", "pelvis (MPII)", "thorax (MPII)", "spine (H36M)",
    "jaw (H36M)", "head (H36M)",
)  # fmt: skip


def _mirror() -> tuple[int, ...]:
    other = {"left": "right", "right": "left"}
    return tuple(
        NAMES.index(" ".join(other.get(word, word) for word in name.split())) for name in NAMES
    )


#: Left-right mirror of the keypoints.
MIRROR: tuple[int, ...] = _mirror()
#: Limbs between keypoints, for pictures.
LIMBS: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11),
    (8, 12), (12, 13), (13, 14), (11, 22), (11, 24), (14, 19), (14, 21), (0, 15), (0, 16),
    (15, 17), (16, 18),
)  # fmt: skip

# What each OpenPose point is: an SMPL joint, or a vertex by its name among the landmarks.
_OPENPOSE: tuple[int | str, ...] = (
    "nose", 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, "right_eye", "left_eye", "right_ear",
    "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe",
    "right_heel",
)  # fmt: skip
#: Keypoints that are joints of SMPL -> which of the 24.
JOINT_POINTS: dict[int, int] = {k: v for k, v in enumerate(_OPENPOSE) if isinstance(v, int)}
MIX_FILES = ("J_regressor_SKEL_mix_MALE.pkl",)
EXTRA_FILES = ("SMPL_to_J19.pkl", "SMPL_TO_J19.pkl")
_FOLDERS = ("", "data", "regressors", "smpl", "skel")
_BLOCK = 64  # rows of one forward pass


def find_regressor(models: Path, names: tuple[str, ...]) -> Path:
    """The first of `names` in the models folder or its usual subfolders. Raises ModelFileError."""
    for folder in _FOLDERS:
        for name in names:
            if (path := models / folder / name).is_file():
                return path
    raise ModelFileError(
        f"{models}: joint regressor {names[0]} is missing; it comes with the SKEL-CF or HSMR "
        "downloads, copy it there; 'hmr-skel default-body --out DIR' writes one for the "
        "licence-free body"
    )


def keypoint_matrix(models: Path, joints: np.ndarray | None = None) -> np.ndarray:
    """The 44 keypoints as weights of the skin, (44, 6890) float64.

    models: folder with `SMPL_to_J19.pkl` (19 rows) and, where `joints` is None,
    `J_regressor_SKEL_mix_MALE.pkl`; joints: (24, 6890) weights of the SMPL joints.
    Raises ModelFileError: a file is missing or no joint regressor.
    """
    from skel_fit.model_files import load_joint_regressor

    if joints is None:
        joints = load_joint_regressor(find_regressor(models, MIX_FILES), 24)
    rows = np.zeros((NUM_KEYPOINTS, joints.shape[1]))
    for row, what in zip(rows, _OPENPOSE, strict=False):
        if isinstance(what, str):
            row[LANDMARKS[what]] = 1.0
        else:
            row[:] = joints[what]
    rows[len(_OPENPOSE) :] = load_joint_regressor(find_regressor(models, EXTRA_FILES), 19)
    return rows


def smpl_keypoint_matrix(models: Path) -> np.ndarray:
    """The keypoints as weights of SMPL's skin, (44, 6890) float64. Posed joints move with their
    bone, not with the skin: rows of `JOINT_POINTS` are empty. Raises as `keypoint_matrix`."""
    from skel_fit.skel import NUM_VERTICES

    return keypoint_matrix(models, np.zeros((24, NUM_VERTICES)))


@dataclass(frozen=True)
class SmplKeypoints:
    """The part of an SMPL model that its 44 keypoints need; float64, no torch in the loop.

    Only the vertices behind a keypoint are posed. Work is done in blocks of one size, so that a
    row's result does not depend on the others.
    """

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
    def load(cls, models_dir: Path, gender: str) -> SmplKeypoints:
        """From SMPL_<GENDER> and SMPL_to_J19.pkl in `models_dir`. gender: neutral, male, female.

        Raises ModelFileError: one of the two is broken or missing.
        """
        import torch

        from skel_fit.model_files import load_smpl

        smpl = load_smpl(models_dir, gender, dtype=torch.float64)
        rows = smpl_keypoint_matrix(models_dir)
        joint_points = np.array(list(JOINT_POINTS))
        vertex_points = np.setdiff1d(np.arange(NUM_KEYPOINTS), joint_points)
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
            joint_numbers=np.array(list(JOINT_POINTS.values())),
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
        import torch

        from skel_fit.kinematics import chain, rest_offsets
        from skel_fit.rotations import axis_angle_to_matrix

        rest = self.joint_template + np.einsum("jck,nk->njc", self.joint_directions, betas)
        vectors, joints = torch.as_tensor(poses), torch.as_tensor(rest)
        local = axis_angle_to_matrix(vectors.view(-1, 24, 3))
        world, placed = chain(local, rest_offsets(joints, SMPL_PARENTS), SMPL_PARENTS)
        return placed.numpy(), local.numpy(), world.numpy(), rest

    def _keypoints(self, poses: np.ndarray, betas: np.ndarray) -> np.ndarray:
        joints, local, world, rest = self._transforms(poses, betas)
        n = len(poses)
        feature = (local[:, 1:] - np.eye(3)).reshape(n, 207)
        shaped = self.template + np.einsum("vck,nk->nvc", self.directions, betas)
        shaped = shaped + (feature @ self.correctives).reshape(n, -1, 3)
        offset = joints - (world @ rest[..., None])[..., 0]
        turn = (self.weights @ world.reshape(n, 24, 9)).reshape(n, -1, 3, 3)
        vertices = (turn @ shaped[..., None])[..., 0] + self.weights @ offset
        points = np.empty((n, NUM_KEYPOINTS, 3))
        points[:, self.joint_points] = joints[:, self.joint_numbers]
        points[:, self.vertex_points] = self.regressor @ vertices
        return points
