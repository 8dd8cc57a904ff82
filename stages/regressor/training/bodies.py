"""The body models of a run: the network's own, and those that labels of either gender mean.

The network predicts one SKEL (male, as published). Labels of the other gender keep their exact 3D
keypoints, from their own model; their betas are converted by least squares between the two shaped
templates (`transfer`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import MIRROR
from skel_fit.models import BodyModels
from skel_fit.skel import SKEL
from stages.regressor.data.loader import Batch
from stages.regressor.network import representation
from stages.regressor.training.losses import Labels


def shape_map(source: SKEL, target: SKEL) -> tuple[Tensor, Tensor]:
    """Betas of `target` whose rest skin is nearest to that of `source`: betas @ B.T + b.

    Returns B (10, 10) and b (10,), float64.
    """
    own = target.shapedirs.double().flatten(0, 1)
    theirs = source.shapedirs.double().flatten(0, 1)
    shift = (source.template.double() - target.template.double()).reshape(-1, 1)
    solution = torch.linalg.lstsq(own, torch.cat((theirs, shift), 1)).solution
    return solution[:, :-1].contiguous(), solution[:, -1].contiguous()


def flip_rotation(flip: Tensor, roll: Tensor) -> Tensor:
    """What augmentation does to camera-frame points about the root: (B,), (B,) -> (B, 3, 3).

    The mirror x -> -x where `flip`, then a turn about z by `roll` radians (x towards y).
    """
    c, s = torch.cos(roll), torch.sin(roll)
    zero, one = torch.zeros_like(roll), torch.ones_like(roll)
    turn = torch.stack((c, -s, zero, s, c, zero, zero, zero, one), -1).view(-1, 3, 3)
    mirror = torch.stack((torch.where(flip, -one, one), one, one), -1)
    return turn * mirror[:, None, :]


class RunBodies(nn.Module):
    """Keypoint bodies of a run; buffers only, none of them persistent.

    models: folder with the SKEL files and joint regressors; gender: of the network; genders: those
    that labels may have.
    """

    _matrix: Tensor
    _offset: Tensor

    def __init__(self, models: Path, gender: str, genders: tuple[str, ...]) -> None:
        super().__init__()
        held = BodyModels(models)
        weights = held.keypoint_matrix()
        self.gender = gender
        self.own = KeypointBody(held.model("skel", gender, "float32"), weights)
        others = [g for g in genders if g != gender]
        self.other = None
        if others:
            self.other = KeypointBody(held.model("skel", others[0], "float32"), weights)
        if self.other is not None:
            matrix, offset = shape_map(self.other.skel, self.own.skel)
            self.register_buffer("_matrix", matrix.float(), persistent=False)
            self.register_buffer("_offset", offset.float(), persistent=False)

    @property
    def standin(self) -> bool:
        """The models are the licence-free pair."""
        return self.own.skel.standin

    @torch.no_grad()
    def labels(self, batch: Batch) -> Labels:
        """What the network should say about an augmented batch."""
        points, betas = self.keypoints(batch.poses, batch.betas, batch.female)
        turn = flip_rotation(batch.flip, batch.roll)
        mirrored = torch.where(batch.flip[:, None, None], points[:, list(MIRROR)], points)
        root = self.own.skel.shape(betas).joints[:, :1]
        poses = torch.where(
            batch.flip[:, None], representation.mirror_poses(batch.poses), batch.poses
        )
        only_roll = flip_rotation(torch.zeros_like(batch.flip), batch.roll)
        frame = self.own.skel.per_joint_rot[0] @ self.own.skel.apose_rot[0].T
        return Labels(
            keypoints_2d=batch.keypoints,
            keypoints_3d=mirrored @ turn.transpose(1, 2) + root,
            poses=representation.turn_root(poses, only_roll, frame),
            betas=betas,
            weight=batch.weight,
            flipped=batch.flip,
        )

    @torch.no_grad()
    def keypoints(self, poses: Tensor, betas: Tensor, female: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints (B, 44, 3) of labels (B, 46), (B, 10) of SKEL of either gender about their
        root, and betas of the own gender."""
        own = self.own(poses, betas)
        points = own.keypoints - own.joints[:, :1]
        theirs = female != (self.gender == "female")
        if self.other is None:
            return points, betas
        other = self.other(poses, betas)
        points = torch.where(theirs[:, None, None], other.keypoints - other.joints[:, :1], points)
        converted = betas @ self._matrix.T + self._offset
        return points, torch.where(theirs[:, None], converted, betas)
