"""The 44 keypoints of a SKEL body, without posing the skin.

Source: docs/reference/evaluation.md#skel-keypoints. A keypoint is a weighted mean of skin
vertices, a vertex a weighted mean of bone transforms, and a rest vertex linear in the betas and the
corrective features; so a keypoint is, exactly,

    sum over bones k of  G_k (m_jk - w_jk J_k) + w_jk p_k,    m_jk = m0 + M_beta beta + M_f f

with G_k, p_k, J_k the rotation, position and rest position of bone k. The matrices are summed up
once over the vertices; only (keypoint, bone) pairs that touch are kept. Nothing of the size of the
skin is left in the inner loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from skel_fit.skel import SKEL


@dataclass(frozen=True)
class PosedKeypoints:
    """Keypoints (B, 44, 3) and SKEL joints (B, 24, 3): root near the origin, camera-frame axes."""

    keypoints: Tensor
    joints: Tensor


class KeypointBody(nn.Module):
    """SKEL reduced to its keypoints; exact, float32 or float64 as the given SKEL.

    skel: the body model (kept, for shape and rest joints; its buffers never enter a checkpoint).
    weights: (K, 6890) keypoints as weights of the skin (`keypoints.keypoint_matrix`).
    """

    _gather: Tensor
    _share: Tensor
    _rest: Tensor
    _by_shape: Tensor
    _by_feature: Tensor
    _bone: Tensor

    def __init__(self, skel: SKEL, weights: np.ndarray) -> None:
        super().__init__()
        self.skel = skel
        shares_of_skin = torch.as_tensor(weights, dtype=torch.float64)
        skin = skel.skin_weights.double().cpu()
        touching = (shares_of_skin.abs() @ skin.abs()) > 0
        point, bone = touching.nonzero(as_tuple=True)
        shares = shares_of_skin[point] * skin[:, bone].t()  # (P, 6890)
        gather = torch.zeros(len(shares_of_skin), len(point), dtype=torch.float64)
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
            world, positions, local = self.skel.bone_transforms(poses, identity, rotations)
            features = self.skel.pose_features(local)
            rest = betas @ self._by_shape.t() + features @ self._by_feature.t()
            rest = self._rest + rest.view(len(betas), -1, 3)
            share = self._share[:, None]
            arm = rest - share * identity.joints[:, self._bone]
            moved = (world[:, self._bone] @ arm[..., None]).squeeze(-1)
            pairs = moved + share * positions[:, self._bone]
            return PosedKeypoints(self._gather @ pairs, positions)
