"""The 44 keypoints of a SKEL body, without posing the skin.

Source: reference/regressor.md 5.1, evaluation.md 2.1 and 2.5. A keypoint is a weighted mean of skin
vertices, a vertex a weighted mean of bone transforms, and a rest vertex linear in the betas and the
corrective features; so a keypoint is, exactly,

    sum over bones k of  G_k (m_jk - w_jk J_k) + w_jk p_k,    m_jk = m0 + M_beta beta + M_f f

with G_k, p_k, J_k the rotation, position and rest position of bone k. The matrices are summed up
once over the vertices; only (keypoint, bone) pairs that touch are kept. Nothing of the size of the
skin is left in the inner loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from skel_fit.model_files import load_joint_regressor
from skel_fit.skel import NUM_VERTICES, SKEL

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
#: Left-right mirror of the keypoints.
MIRROR: tuple[int, ...] = (
    0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20, 21,
    30, 29, 28, 27, 26, 25, 36, 35, 34, 33, 32, 31, 37, 38, 39, 40, 41, 42, 43,
)  # fmt: skip
#: Limbs between keypoints, for pictures.
LIMBS: tuple[tuple[int, int], ...] = (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11),
    (8, 12), (12, 13), (13, 14), (11, 22), (11, 24), (14, 19), (14, 21), (0, 15), (0, 16),
    (15, 17), (16, 18),
)  # fmt: skip

# OpenPose order as indices into 24 SMPL joints followed by 11 vertices.
_OPENPOSE = (
    24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
)  # fmt: skip
# nose, right eye, left eye, right ear, left ear, left big toe, small toe, heel, right likewise.
_VERTICES = (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787)
# SKEL joint for each of the 24 SMPL joints (evaluation.md 2.5); only those with a twin are used.
_SKEL_FOR_SMPL = (
    0, 6, 1, 11, 7, 2, 11, 8, 3, 12, 10, 5, 12, 19, 14, 13, 20, 15, 21, 16, 23, 18, 23, 18,
)  # fmt: skip
MIX_FILE = "J_regressor_SKEL_mix_MALE.pkl"
EXTRA_FILES = ("SMPL_to_J19.pkl", "SMPL_TO_J19.pkl")
_FOLDERS = ("", "data", "regressors", "smpl", "skel")


def find_regressor(models: Path, names: tuple[str, ...]) -> Path:
    """The first of `names` in the models folder or its usual subfolders. Raises InputError."""
    for folder in _FOLDERS:
        for name in names:
            if (path := models / folder / name).is_file():
                return path
    raise InputError(
        f"{models}: joint regressor {names[0]} is missing; it comes with the SKEL-CF or HSMR "
        "downloads, copy it there"
    )


def keypoint_matrix(models: Path) -> np.ndarray:
    """The 44 keypoints as weights of the skin, (44, 6890) float64.

    models: folder with `J_regressor_SKEL_mix_MALE.pkl` (24 rows) and `SMPL_to_J19.pkl` (19 rows).
    Raises InputError: one is missing. ModelFileError: one is not a joint regressor.
    """
    mixed = load_joint_regressor(find_regressor(models, (MIX_FILE,)), 24)
    extra = load_joint_regressor(find_regressor(models, EXTRA_FILES), 19)
    points = np.zeros((len(_VERTICES), NUM_VERTICES))
    points[np.arange(len(_VERTICES)), _VERTICES] = 1.0
    return np.concatenate((np.concatenate((mixed, points))[list(_OPENPOSE)], extra))


@dataclass(frozen=True)
class PosedKeypoints:
    """Keypoints (B, 44, 3) and SKEL joints (B, 24, 3): root near the origin, camera-frame axes."""

    keypoints: Tensor
    joints: Tensor


class KeypointBody(nn.Module):
    """SKEL reduced to its keypoints; exact, float32 or float64 as the given SKEL.

    skel: the body model (kept, for shape and rest joints; its buffers never enter a checkpoint).
    weights: (K, 6890) keypoints as weights of the skin.
    """

    def __init__(self, skel: SKEL, weights: np.ndarray) -> None:
        super().__init__()
        self.skel = skel
        weights = torch.as_tensor(weights, dtype=torch.float64)
        skin = skel.skin_weights.double().cpu()
        touching = (weights.abs() @ skin.abs()) > 0
        point, bone = touching.nonzero(as_tuple=True)
        shares = weights[point] * skin[:, bone].t()  # (P, 6890)
        gather = torch.zeros(len(weights), len(point), dtype=torch.float64)
        gather[point, torch.arange(len(point))] = 1.0
        for name, value in (
            ("_gather", gather),
            ("_share", shares.sum(1)),
            ("_rest", shares @ skel.template.double().cpu()),
            ("_by_shape", self._moments(shares, skel.shapedirs)),
            ("_by_feature", self._moments(shares, skel.posedirs)),
        ):
            self.register_buffer(name, value.to(skel.dtype), persistent=False)
        self.register_buffer("_bone", bone, persistent=False)

    @staticmethod
    def _moments(shares: Tensor, directions: Tensor) -> Tensor:
        """(P, 6890) and (6890, 3, n) -> (3 P, n)."""
        directions = directions.double().cpu()
        return (shares @ directions.flatten(1)).view(-1, directions.shape[-1])

    def forward(
        self, poses: Tensor, betas: Tensor, rotations: Tensor | None = None
    ) -> PosedKeypoints:
        """Pose the keypoints, root near the origin (no translation).

        poses: (B, 46) radians; betas: (B, 10); rotations: (B, 24, 3, 3) joint rotations Rp_j to
        use instead of those of `poses` (which then only bend the spine and slide the scapulae).
        """
        with torch.autocast(poses.device.type, enabled=False):
            identity = self.skel.shape(betas)
            turns = self.skel.joint_rotations(poses) if rotations is None else rotations
            local = identity.bases @ turns @ identity.bases.transpose(-1, -2)
            world, positions = self._chain(local, self.skel.local_translations(poses, identity))
            features = self.skel.pose_features(local)
            rest = betas @ self._by_shape.t() + features @ self._by_feature.t()
            rest = self._rest + rest.view(len(betas), -1, 3)
            share = self._share[:, None]
            arm = rest - share * identity.joints[:, self._bone]
            moved = (world[:, self._bone] @ arm[..., None]).squeeze(-1)
            pairs = moved + share * positions[:, self._bone]
            return PosedKeypoints(self._gather @ pairs, positions)

    def _chain(self, local: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """World rotations and positions of the bones from local rotations and offsets."""
        turns, places = [local[:, 0]], [steps[:, 0]]
        for joint, parent in enumerate(self.skel.parents[1:], start=1):
            turns.append(turns[parent] @ local[:, joint])
            places.append(places[parent] + (turns[parent] @ steps[:, joint, :, None]).squeeze(-1))
        return torch.stack(turns, 1), torch.stack(places, 1)
