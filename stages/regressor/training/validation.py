"""Scores of a network on a held-out split while it trains; `stages/evaluate.py` has the protocols.

Same metrics as the evaluation (`metrics.py`), on the 44 keypoints relative to the pelvis (39).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from skel_fit.keypoints import ROOT_KEYPOINT
from stages.regressor.config import Recipe
from stages.regressor.data.loader import CropDataset, Key, batches
from stages.regressor.data.rows import TrainingRows
from stages.regressor.evaluation.metrics import aligned_point_error, point_error
from stages.regressor.network import representation
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.model import Regressor
from stages.regressor.network.view import View, crop_keypoints
from stages.regressor.training.bodies import RunBodies
from stages.regressor.training.distributed import Process
from stages.regressor.training.losses import Labels

_BATCH = 64
_MAX_WORKERS = 4
_FEW_ROWS = 1000


@dataclass(frozen=True)
class Scores:
    """mpjpe, pa_mpjpe: millimetres; keypoints_2d: mean distance, percent of the box; rows."""

    mpjpe: float
    pa_mpjpe: float
    keypoints_2d: float
    rows: int

    def value(self, name: str) -> float:
        """The score that the recipe selects by; lower is better."""
        return getattr(self, name)


@torch.no_grad()
def mean_pose_scores(train: TrainingRows, held: TrainingRows, bodies: RunBodies) -> Scores | None:
    """What one pose and shape for every picture scores on `held`, the mean of `train`: each angle
    on the circle; 2D is not scored. At most `_FEW_ROWS` of `held`, evenly chosen; None: no rows.
    """
    if not len(train) or not len(held):
        return None
    device = next(bodies.buffers()).device

    def tensors(rows: TrainingRows, k: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.as_tensor(x[k], device=device) for x in (rows.poses, rows.betas, rows.female)
        )

    poses = np.arctan2(np.sin(train.poses).mean(0), np.cos(train.poses).mean(0))
    same = train.female == (bodies.gender == "female")
    betas = train.betas[same].mean(0) if same.any() else np.zeros(train.betas.shape[1])
    mean = torch.tensor(np.concatenate((poses, betas)), dtype=torch.float32, device=device)[None]
    found = bodies.own(mean[:, : len(poses)], mean[:, len(poses) :]).keypoints.double()
    found = found - found[:, ROOT_KEYPOINT, None]
    chosen = np.linspace(0, len(held) - 1, min(len(held), _FEW_ROWS)).astype(int)
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(chosen), _BATCH):
        points, _ = bodies.keypoints(*tensors(held, chosen[start : start + _BATCH]))
        wanted = (points - points[:, ROOT_KEYPOINT, None]).double()
        same_for_all = found.expand_as(wanted)
        errors = point_error(same_for_all, wanted), aligned_point_error(same_for_all, wanted)
        sums += torch.stack([error.sum() for error in errors]).cpu()
    mpjpe, pa_mpjpe = (float(x) / len(chosen) for x in sums)
    return Scores(mpjpe, pa_mpjpe, math.nan, rows=len(chosen))


@torch.no_grad()
def validate(
    network: Regressor | nn.Module, dataset: CropDataset, bodies: RunBodies, recipe: Recipe,
    process: Process,
) -> Scores:  # fmt: skip
    """Score `network` (in evaluation mode) on the un-augmented rows of `dataset`."""
    mine = range(process.rank, len(dataset), process.world)
    keys: list[list[Key]] = [
        [(0, k) for k in mine[start : start + _BATCH]] for start in range(0, len(mine), _BATCH)
    ]
    sums = torch.zeros(4, dtype=torch.float64)
    few = len(mine) < _FEW_ROWS  # starting processes would take longer
    workers = 0 if few else min(recipe.train.workers, _MAX_WORKERS)
    for batch in batches(dataset, keys, workers):
        batch = batch.to(process.device)
        labels = bodies.labels(batch)
        with autocast(process.device, recipe):
            estimates = network(batch.image, batch.conditioning)
        sums += _scores(estimates.final, labels, batch.view, bodies, recipe).cpu()
    totals = process.sum(sums.to(torch.float64)).cpu()
    count = max(float(totals[3]), 1.0)
    mpjpe, pa_mpjpe, keypoints_2d = (float(x) / count for x in totals[:3])
    return Scores(mpjpe, pa_mpjpe, keypoints_2d, rows=int(totals[3]))


def autocast(device: torch.device, recipe: Recipe) -> torch.autocast:
    """The context for network layers under the recipe's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16")


def _scores(
    final: Parameters, labels: Labels, view: View, bodies: RunBodies, recipe: Recipe
) -> torch.Tensor:
    """Sums of the three scores and the number of rows, (4,) float64."""
    angles = representation.decode(final.code)
    turns = representation.rotations(final.code)
    points = bodies.own(angles, final.betas, turns).keypoints
    found, wanted = (
        (x - x[:, ROOT_KEYPOINT, None]).double() for x in (points, labels.keypoints_3d)
    )
    seen = crop_keypoints(recipe.model, points, final.camera, view).double()
    confident = labels.keypoints_2d[..., 2] > 0
    away = torch.linalg.vector_norm(seen - labels.keypoints_2d[..., :2].double(), dim=-1)
    mean_away = (away * confident).sum(1) / confident.sum(1).clamp(min=1)
    rows = (point_error(found, wanted), aligned_point_error(found, wanted), 100 * mean_away)
    # A body that is not a number must not hide in a mean, nor stop the run: it scores as lost.
    sums = [torch.nan_to_num(x, nan=1e6, posinf=1e6).sum() for x in rows]
    return torch.stack([*sums, sums[0].new_tensor(len(angles))])
