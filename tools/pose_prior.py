"""Makes `skel_fit/pose_prior.npz`, the pose prior of fits to points, from the committed motion.

    python -m tools.pose_prior

Train split alone: the train segments of the demo motion and the takes of the other train actors,
each person's frames counted alike, converted to SKEL on the male stand-in and mirrored.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from pipeline.demo import SPLITS, demo_motion, segments
from pipeline.takes import takes
from skel_fit import FitConfig, fit_skel, load_skel, load_smpl
from skel_fit.default_body import default_body_directory
from skel_fit.pose_prior import PRIOR_FILE, PosePrior, pose_prior, write_pose_prior

FRAMES = 240
"""Of each take, evenly spaced."""


def train_motion() -> dict[str, np.ndarray]:
    """Take -> SMPL poses (f, 72), rad. The hop is left out: it holds frames of the demo's test."""
    train = [
        demo_motion()[slice(*bounds)]
        for bounds, split in zip(segments(), SPLITS, strict=True)
        if split == "train"
    ]
    found = {"demo": np.concatenate(train).reshape(-1, 72)}
    return found | {t.name: t.poses for t in takes() if t.split == "train" and t.new}


def spread_over(poses: np.ndarray) -> np.ndarray:
    """`FRAMES` of them; a short take is repeated."""
    return poses[np.linspace(0, len(poses) - 1, FRAMES).round().astype(int)]


def main() -> int:
    folder = default_body_directory()
    skel, smpl = load_skel(folder, "male"), load_smpl(folder, "neutral")
    fitted = []
    for name, poses in train_motion().items():
        chosen = torch.as_tensor(spread_over(poses), dtype=torch.float64).reshape(-1, 72)
        still = torch.zeros(len(chosen), 10, dtype=torch.float64)
        fit = fit_skel(skel, smpl, chosen, still, still[:, :3], FitConfig())
        good = [not status.is_rejected for status in fit.status]
        fitted.append(fit.poses.numpy()[good])
        print(f"{name}: {len(poses)} frames, {sum(good)} used")
    write_pose_prior(PRIOR_FILE, PosePrior.of_poses(np.concatenate(fitted), "motion"))
    print(f"{PRIOR_FILE}: {PRIOR_FILE.stat().st_size} bytes, {pose_prior('motion').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
