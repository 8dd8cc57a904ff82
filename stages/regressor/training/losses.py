"""The training loss, row by row.

Source: docs/reference/regressor.md#losses, with the switches of #defects and #improvements. Sums
over keypoints and coordinates, means over rows; all geometry in float32. The body model is run once
for all supervised predictions together, reduced to its keypoints (`keypoint_body.KeypointBody`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skel_fit import anatomy, joint_limits
from skel_fit.anatomy import NUM_JOINTS
from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import NUM_KEYPOINTS, ROOT_KEYPOINT
from skel_fit.rotations import wrap_angle
from stages.regressor.config import LossConfig, ModelConfig
from stages.regressor.network import representation
from stages.regressor.network.heads import Estimates
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.model import heatmap_grid
from stages.regressor.network.view import View, crop_keypoints

_TINY = 1e-6
_FREE_POSES = 3  # the pelvis has no limits


class Labels(NamedTuple):
    """What a batch should come out as.

    keypoints_2d: (B, 44, 3) crop coordinates and confidence; keypoints_3d: (B, 44, 3) metres, root
    near the origin, camera-frame axes; poses: (B, 46); betas: (B, 10) of the network's gender;
    weight: (B,) of everything that comes from the fit (3D, pose, shape); flipped: (B,) bool.
    """

    keypoints_2d: Tensor
    keypoints_3d: Tensor
    poses: Tensor
    betas: Tensor
    weight: Tensor
    flipped: Tensor


@dataclass(frozen=True)
class LossTerms:
    """rows: (B,) loss of each row; terms: name -> mean over the batch, weighted, detached."""

    rows: Tensor
    terms: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        return self.rows.mean()


class Loss(nn.Module):
    """`loss(estimates, labels, view) -> LossTerms`. Has buffers (the body model), no parameters."""

    limits: Tensor
    periodic: Tensor

    def __init__(self, config: LossConfig, model: ModelConfig, body: KeypointBody) -> None:
        super().__init__()
        self.config, self.model, self.body = config, model, body
        limits = torch.tensor(joint_limits.limits(config.limits), dtype=torch.float32)
        self.register_buffer("limits", limits, persistent=False)
        periodic = torch.tensor(anatomy.PERIODIC)
        self.register_buffer("periodic", periodic, persistent=False)

    def forward(self, estimates: Estimates, labels: Labels, view: View) -> LossTerms:
        config = self.config
        parts: dict[str, Tensor] = {}
        stages = self._supervised(estimates)
        for name, value in self._full(stages, labels, view).items():
            weights = torch.tensor([w for w, _ in stages], device=value.device)[:, None]
            parts[name] = (weights * value).sum(0)
        layers, keep = estimates.layers, self._kept_joints(labels)
        if config.layer_pose != "none" and config.layer_pose_weight:
            error = _layer_pose(config.layer_pose, layers.code, labels.poses, keep)
            parts["layer_pose"] = config.layer_pose_weight * labels.weight * error.sum(0)
        # The last layer has these two from the full loss.
        if config.layer_camera and len(layers.camera) > 1:
            seen = crop_keypoints(self.model, labels.keypoints_3d, layers.camera[:-1], view)
            error = _weighted_l1(seen, labels.keypoints_2d).sum(0)
            parts["layer_camera"] = config.layer_camera * labels.weight * error
        if config.layer_betas and len(layers.betas) > 1:
            error = (layers.betas[:-1] - labels.betas).abs().sum((0, -1))
            parts["layer_betas"] = config.layer_betas * labels.weight * error
        return _terms(parts | self._looked(estimates, labels))

    def looked(self, estimates: Estimates, labels: Labels) -> LossTerms:
        """The loss of what is found in pictures, alone (`train.look_first`)."""
        return _terms(self._looked(estimates, labels))

    def _looked(self, estimates: Estimates, labels: Labels) -> dict[str, Tensor]:
        config, found = self.config, estimates.found
        parts: dict[str, Tensor] = {}
        if config.heatmaps and estimates.heatmaps is not None:
            parts["heatmaps"] = config.heatmaps * _heatmap_error(
                estimates.heatmaps, labels.keypoints_2d, heatmap_grid(self.model)
            )
        if config.found_keypoints and found is not None:
            away = _weighted_l1(found[..., :2], labels.keypoints_2d)
            parts["found_keypoints"] = config.found_keypoints * away / NUM_KEYPOINTS
        if config.found_depths and found is not None:
            away = (found[..., 3] - depths(labels.keypoints_3d)).abs().mean(-1)
            parts["found_depths"] = config.found_depths * labels.weight * away
        return parts

    def _supervised(self, estimates: Estimates) -> list[tuple[float, Parameters]]:
        """Weight and prediction of every stage that has the full loss."""
        count = len(estimates.layers.code)
        chosen = range(count) if self.config.all_layers else range(count - 1, count)
        stages = [(1.0, Parameters(*(x[k] for x in estimates.layers))) for k in chosen]
        if estimates.coarse is not None and self.config.coarse:
            stages.append((self.config.coarse, estimates.coarse))
        return stages

    def _full(
        self, stages: list[tuple[float, Parameters]], labels: Labels, view: View
    ) -> dict[str, Tensor]:
        """The terms of L_skel, each (stages, B)."""
        config = self.config
        count, batch = len(stages), len(labels.poses)
        stacked = Parameters(*(torch.cat(x) for x in zip(*(p for _, p in stages), strict=True)))
        angles = representation.decode(stacked.code)
        turns = (
            representation.rotations(stacked.code)
            if config.rotations == "from_code"
            else representation.pose_rotations(angles)
        )
        points = self.body(angles, stacked.betas, turns).keypoints.view(count, batch, -1, 3)
        turns = turns.view(count, batch, NUM_JOINTS, 3, 3)
        betas = stacked.betas.view(count, batch, -1)
        seen = crop_keypoints(self.model, points, stacked.camera.view(count, batch, 3), view)
        if config.pose == "angles":
            turn_error = self._angle_error(angles.view(count, batch, -1), labels.poses)
        else:
            wanted = representation.pose_rotations(labels.poses)
            turn_error = self._distance(turns - wanted).sum((-1, -2))
        turn_error = turn_error * self._kept_joints(labels)
        rooted = points - points[:, :, ROOT_KEYPOINT, None]
        target = labels.keypoints_3d - labels.keypoints_3d[:, ROOT_KEYPOINT, None]
        terms = {
            "keypoints_2d": config.keypoints_2d * _weighted_l1(seen, labels.keypoints_2d),
            "keypoints_3d": config.keypoints_3d * labels.weight
            * (rooted - target).abs().sum((-1, -2)),
            "betas": config.betas * labels.weight * self._distance(betas - labels.betas).sum(-1),
            "body": config.body * labels.weight * turn_error[..., 1:].sum(-1),
            "orientation": config.orientation * labels.weight * turn_error[..., 0],
        }  # fmt: skip
        if config.limits != "none" and config.limits_weight:
            terms["limits"] = config.limits_weight * self._beyond(angles).view(count, batch)
        return terms

    def _angle_error(self, angles: Tensor, wanted: Tensor) -> Tensor:
        """(stages, B, 24): distances of the angles of each joint, the shorter way round."""
        error = self._distance(wrap_angle(angles - wanted))
        return torch.stack([error[..., list(dofs)].sum(-1) for dofs in anatomy.DOFS], -1)

    def _kept_joints(self, labels: Labels) -> Tensor:
        """(B, 24): 0 for the ankles of flipped rows where they are masked, else 1."""
        keep = labels.poses.new_ones(len(labels.poses), NUM_JOINTS)
        if self.config.mask_flipped_ankles:
            keep[:, list(anatomy.ANKLE_JOINTS)] -= labels.flipped[:, None].float()
        return keep

    def _distance(self, difference: Tensor) -> Tensor:
        return difference.abs() if self.config.parameters == "l1" else difference.square()

    def _beyond(self, angles: Tensor) -> Tensor:
        """Mean excess over the limits and the dead zone, radians: (B, 46) -> (B,)."""
        low, high = self.limits[_FREE_POSES:].unbind(-1)
        tolerance = self.config.limits_tolerance
        angles = angles[:, _FREE_POSES:]
        periodic = self.periodic[_FREE_POSES:]
        return joint_limits.excess(angles, low - tolerance, high + tolerance, periodic).mean(-1)


def depths(keypoints: Tensor) -> Tensor:
    """How far keypoints (B, 44, 3), camera-frame axes, are behind the pelvis, metres: (B, 44)."""
    away = keypoints[..., 2]
    return away - away[:, ROOT_KEYPOINT, None]


def _terms(parts: dict[str, Tensor]) -> LossTerms:
    rows = torch.stack(list(parts.values())).sum(0)
    return LossTerms(rows, {name: part.detach().mean() for name, part in parts.items()})


def _weighted_l1(seen: Tensor, labels: Tensor) -> Tensor:
    """sum_j c_j |seen_j - label_j|_1: (..., B, 44, 2) and (B, 44, 3) -> (..., B).

    A label without confidence may hold anything, also NaN.
    """
    confidence = labels[..., 2]
    target = torch.where(confidence[..., None] > 0, labels[..., :2], 0.0)
    return (confidence * (seen - target).abs().sum(-1)).sum(-1)


def _heatmap_error(logits: Tensor, keypoints: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cross-entropy of heatmaps, mean over keypoints: (B, N, 44), (B, 44, 3) -> (B,).

    The target of a keypoint is bilinear in the centres of the tokens' cells; keypoints without
    confidence or outside the part of the crop that the network sees do not count.
    """
    height, width = grid
    x, y, confidence = keypoints.unbind(-1)
    column, row = (x / 0.75 + 0.5) * width - 0.5, (y + 0.5) * height - 0.5
    inside = (column >= -0.5) & (column < width - 0.5) & (row >= -0.5) & (row < height - 0.5)
    counted = inside & (confidence > 0)
    weights = [
        (1 - (where[..., None] - torch.arange(size, device=x.device)).abs()).clamp(min=0)
        for where, size in ((row, height), (column, width))
    ]
    target = (weights[0][..., :, None] * weights[1][..., None, :]).flatten(-2)
    target = target / target.sum(-1, keepdim=True).clamp(min=_TINY)
    error = -(target * logits.log_softmax(1).transpose(1, 2)).sum(-1)
    return torch.where(counted, error, 0.0).mean(-1)


def _layer_pose(kind: str, code: Tensor, poses: Tensor, keep: Tensor) -> Tensor:
    """Pose-only loss of every layer: code (L, B, 144), poses (B, 46), keep (B, 24) -> (L, B).

    keep: weight of each joint. `well_defined`: L1 on the 88 numbers that mean something: rotations
    of ball joints, unit pairs of hinges, raw angles of hands, as a mean over 216 entries like the
    published form.
    """
    layers, batch = code.shape[:2]
    target = representation.encode(poses)
    grid, wanted = (x.unflatten(-1, (NUM_JOINTS, -1)) for x in (code, target))
    if kind == "raw":
        return ((grid - wanted).abs() * keep[..., None]).mean((-1, -2))
    if kind == "gram_schmidt":
        error = (representation.gram_schmidt(grid) - representation.gram_schmidt(wanted)).abs()
        return (error * keep[..., None, None]).mean((-1, -2, -3))
    ball = list(anatomy.BALL_JOINTS)
    hinges = list(anatomy.HINGE_JOINTS)
    hands = list(anatomy.HAND_JOINTS)
    pairs = representation.unit_pairs(code.flatten(0, 1)).view(layers, batch, -1, 2)
    parts = (
        (representation.gram_schmidt(grid[:, :, ball]).flatten(-2),
         representation.gram_schmidt(wanted[:, ball]).flatten(-2), ball),
        (pairs, representation.unit_pairs(target), hinges),
        (grid[:, :, hands, :2], wanted[:, hands, :2], hands),
    )  # fmt: skip
    sums = [
        ((found - right).abs().sum(-1) * keep[:, joints]).sum(-1) for found, right, joints in parts
    ]
    return (sums[0] + sums[1] + sums[2]) / (9 * NUM_JOINTS)
