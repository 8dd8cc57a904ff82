"""Labels without pictures for the lifter: bodies put together from training rows, seen by cameras
of training rows, with keypoints as uncertain as a backbone's.

A row is a function of (seed, step, place in the batch). Its pose: the angles of a training row,
with limbs and spine of other rows, some of them mirrored, and angles moved inside the limits; its
body turned about its own spine and tilted; betas and camera of other rows; its box around its
keypoints as those of training rows are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit import joint_limits
from skel_fit.keypoints import NUM_KEYPOINTS
from skel_fit.rotations import axis_angle_to_matrix
from stages.regressor.config import Recipe
from stages.regressor.data.rows import TrainingRows
from stages.regressor.network import representation
from stages.regressor.network.camera import ASPECT, project, to_crop
from stages.regressor.network.model import Regressor
from stages.regressor.network.view import View
from stages.regressor.training.bodies import RunBodies
from stages.regressor.training.losses import Labels, Loss, LossTerms, depths

#: Angles that change hands together: legs, spine, arms.
_PARTS = (range(3, 10), range(10, 17), range(17, 26), range(26, 36), range(36, 46))
_FREE = 3  # the pelvis turns freely
_MIRRORED = 0.5  # share of rows, of limbs taken from elsewhere
_MIXED = 0.5  # share of rows with limbs of others; of their limbs, too
_MOVED = 0.2  # standard deviation of the spread of angles, radians
_YAWED = 0.75  # share of rows turned about the spine, any angle
_TILT = 0.15  # standard deviation, radians
_TUMBLED = 0.15  # share of rows turned any way
_DEPTH = 0.15  # of the logarithm of the distance
_BETAS = 0.3  # standard deviation
_SPREAD = 0.02  # of a heatmap whose keypoint is certain, share of the crop
_KEYPOINT_SPREAD, _ROW_SPREAD = 0.5, 0.5  # of logarithms of the noise
_LOST_NOISE = 0.12  # of a keypoint that says next to nothing, share of the crop
_LOST_DEPTH = 0.3  # and of its depth, metres
_BATCH = 1024
_WARMUP = 0.05
_CLIP = 1.0
_LEAST_EXTENT = 1.0  # pixels


class Sample(NamedTuple):
    """Generated rows. keypoints: as `Estimates.found` has them; view; labels."""

    keypoints: Tensor
    view: View
    labels: Labels

    def part(self, rank: int, world: int) -> Sample:
        """Every world-th row."""
        return Sample(
            self.keypoints[rank::world],
            View(*(x[rank::world] for x in self.view)),
            Labels(*(x[rank::world] for x in self.labels)),
        )


class Generator:
    """`drawn(step)`: rows of the recipe's kind. rows: of the training set."""

    def __init__(self, recipe: Recipe, rows: TrainingRows, bodies: RunBodies) -> None:
        self.recipe, self.bodies = recipe, bodies
        device = next(bodies.buffers()).device

        def tensor(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self._poses = tensor(rows.poses)
        self._betas = self._own_betas(rows, device)
        self._cameras = tensor(rows.cam_int)
        self._places = self._roots(tensor(rows.trans))
        center, side = tensor(rows.box_center), tensor(rows.box_side)
        self._boxes = self._boxes_around_bodies(center, side)
        limits = torch.tensor(joint_limits.limits("default"), dtype=torch.float32, device=device)
        self._low, self._high = limits.unbind(-1)

    @torch.no_grad()
    def _own_betas(self, rows: TrainingRows, device: torch.device) -> Tensor:
        """(N, 10) of the network's gender."""
        found = []
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            chosen = (torch.tensor(x[part], device=device)
                      for x in (rows.poses, rows.betas, rows.female))  # fmt: skip
            found.append(self.bodies.keypoints(*chosen)[1])
        return torch.cat(found)

    @torch.no_grad()
    def _roots(self, trans: Tensor) -> Tensor:
        """(N, 3) where the roots are in the camera frame, metres."""
        return trans + self.bodies.own.skel.shape(self._betas).joints[:, 0]

    @torch.no_grad()
    def _boxes_around_bodies(self, center: Tensor, side: Tensor) -> Tensor:
        """(N, 3) of the boxes: side as a multiple of the larger extent of the keypoints, and where
        the centre is from the middle between them, in sides."""
        found = []
        for start in range(0, len(side), _BATCH):
            part = slice(start, start + _BATCH)
            body = self.bodies.own(self._poses[part], self._betas[part])
            points = body.keypoints - body.joints[:, :1] + self._places[part, None]
            low, high = _corners(project(points, self._cameras[part]))
            ratio = side[part] / (high - low).amax(1).clamp(min=_LEAST_EXTENT)
            away = (center[part] - (high + low) / 2) / side[part, None]
            found.append(torch.cat((ratio[:, None], away), 1))
        return torch.cat(found)

    @torch.no_grad()
    def drawn(self, count: int, seed: Sequence[int]) -> Sample:
        """`count` rows; a function of `seed`."""
        draw = _Draw(seed, self._poses.device, len(self._poses))
        poses = self._pose(count, draw)
        betas = self._betas[draw.rows(count)] + _BETAS * draw.normal(count, 10)
        body = self.bodies.own(poses, betas)
        points = body.keypoints - body.joints[:, :1]
        source = draw.rows(count)
        distance = torch.exp(_DEPTH * draw.normal(count, 1))
        cam_int = self._cameras[source]
        pixels = project(points + (self._places[source] * distance)[:, None], cam_int)
        view = self._view(pixels, cam_int, draw)
        seen = to_crop(pixels, view.affine, self.recipe.model.crop_size)
        ones = torch.ones(count, NUM_KEYPOINTS, 1, device=seen.device)
        root = self.bodies.own.skel.shape(betas).joints[:, :1]
        labels = Labels(
            keypoints_2d=torch.cat((seen, ones), -1),
            keypoints_3d=points + root,
            poses=poses,
            betas=betas,
            weight=torch.ones(count, device=seen.device),
            flipped=torch.zeros(count, dtype=torch.bool, device=seen.device),
        )
        return Sample(self._found(seen, depths(points), draw), view, labels)

    def _pose(self, count: int, draw: _Draw) -> Tensor:
        poses = self._mirrored(self._poses[draw.rows(count)], draw)
        mixed = draw.share(count, 1) < _MIXED
        for part in _PARTS:
            other = self._mirrored(self._poses[draw.rows(count)], draw)
            taken = mixed & (draw.share(count, 1) < _MIXED)
            within = slice(part.start, part.stop)
            poses[:, within] = torch.where(taken, other[:, within], poses[:, within])
        moved = poses + _MOVED * draw.normal(count, 1) * draw.normal(*poses.shape)
        # A real pose beyond a limit is still a real pose: it widens its own range.
        moved = moved.clamp(torch.minimum(self._low, poses), torch.maximum(self._high, poses))
        moved[:, :_FREE] = poses[:, :_FREE]
        return self._turned(moved, draw)

    def _mirrored(self, poses: Tensor, draw: _Draw) -> Tensor:
        chosen = draw.share(len(poses), 1) < _MIRRORED
        return torch.where(chosen, representation.mirror_poses(poses), poses)

    def _turned(self, poses: Tensor, draw: _Draw) -> Tensor:
        """About the spine (y of the body's own frame), then a little about any axis."""
        skel, count = self.bodies.own.skel, len(poses)
        frame = skel.per_joint_rot[0] @ skel.apose_rot[0].T
        body = frame @ representation.pose_rotations(poses)[:, 0] @ frame.T
        angle = math.pi * (2 * draw.share(count, 1) - 1) * (draw.share(count, 1) < _YAWED)
        yaw = axis_angle_to_matrix(angle * angle.new_tensor([[0.0, 1.0, 0.0]]))
        tumbled = draw.share(count, 1) < _TUMBLED
        spread = torch.where(tumbled, 2.0, _TILT)
        tilt = axis_angle_to_matrix(spread * draw.normal(count, 3))
        turn = tilt @ body @ yaw @ body.transpose(1, 2)
        return representation.turn_root(poses, turn, frame)

    def _view(self, pixels: Tensor, cam_int: Tensor, draw: _Draw) -> View:
        count, augment = len(pixels), self.recipe.data.augment
        low, high = _corners(pixels)
        box = self._boxes[draw.rows(count)]
        side = (high - low).amax(1) * box[:, 0]
        center = (high + low) / 2 + box[:, 1:] * side[:, None]
        jitter = draw.normal(count, 3).clamp(-1, 1)
        center = center + augment.shift * side[:, None] * jitter[:, 1:]
        side = side * (1 + augment.scale * jitter[:, 0])
        size = self.recipe.model.crop_size
        scale = size / side
        affine = torch.zeros(count, 2, 3, device=pixels.device)
        affine[:, 0, 0] = affine[:, 1, 1] = scale
        affine[:, :, 2] = size / 2 - scale[:, None] * center
        return View(center, side, cam_int, affine)

    def _found(self, seen: Tensor, depth: Tensor, draw: _Draw) -> Tensor:
        """What a network would find of keypoints (B, 44, 2), crop coordinates, and their depths
        (B, 44): `Estimates.found`."""
        config, count = self.recipe.generated, len(seen)
        varied = torch.exp(
            _KEYPOINT_SPREAD * draw.normal(count, NUM_KEYPOINTS, 1)
            + _ROW_SPREAD * draw.normal(count, 1, 1)
        )
        lost = draw.share(count, NUM_KEYPOINTS, 1) < config.lost
        deviation = torch.where(lost, _LOST_NOISE, config.noise * varied)
        found = seen + deviation * draw.normal(*seen.shape)
        edge = found.new_tensor((0.5 / ASPECT, 0.5))
        found = torch.maximum(torch.minimum(found, edge), -edge)
        parts = [found, (deviation.square() * 2 + _SPREAD**2).sqrt()]
        if self.recipe.model.lifter is not None and self.recipe.model.lifter.depths:
            deviation = torch.where(lost, _LOST_DEPTH, config.depth_noise * varied)
            parts.append(depth[..., None] + deviation * draw.normal(*deviation.shape))
        return torch.cat(parts, -1)


def teach_lifter(network: Regressor, loss: Loss, generator: Generator, recipe: Recipe) -> None:
    """The lifter and its read-out alone, on generated labels, `generated.steps` long."""
    config = recipe.generated
    read_out = network.head.get_submodule("coarse_read_out")
    parts = (network.lifter.keypoints, network.lifter.blocks, network.lifter.norm, read_out)
    taught = [parameter for part in parts for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(
        taught, lr=config.rate, weight_decay=recipe.optimiser.weight_decay
    )
    warm = max(1, round(_WARMUP * config.steps))
    for step in range(config.steps):
        share = 0.5 * (1 + math.cos(math.pi * max(step - warm, 0) / max(config.steps - warm, 1)))
        for group in optimiser.param_groups:
            group["lr"] = config.rate * min((step + 1) / warm, share)
        sample = generator.drawn(config.batch_size, (recipe.train.seed, 0, step))
        optimiser.zero_grad(set_to_none=True)
        generated_loss(network, loss, sample).total.backward()
        torch.nn.utils.clip_grad_norm_(taught, _CLIP)
        optimiser.step()


def generated_loss(network: Regressor, loss: Loss, sample: Sample) -> LossTerms:
    """The loss of the lifter on generated rows."""
    estimates = network.lifted(sample.keypoints, sample.view.conditioning)
    return loss(estimates, sample.labels, sample.view)


class _Draw:
    """Random numbers of one batch. rows: how many there are to choose from."""

    def __init__(self, seed: Sequence[int], device: torch.device, rows: int) -> None:
        # On the CPU, so that every device draws the same.
        number = int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> 1)
        self._random = torch.Generator().manual_seed(number)
        self._device, self._rows = device, rows

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random).to(self._device)

    def share(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random).to(self._device)

    def rows(self, count: int) -> Tensor:
        return torch.randint(self._rows, (count,), generator=self._random).to(self._device)


def _corners(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Left top and right bottom (B, 2) of points (B, K, 2)."""
    return pixels.amin(1), pixels.amax(1)
