"""Do 90 % intervals of angles hold the truth in 90 % of rows, and what do they cost?

    python -m benchmarks.intervals [--rows 320] [--json FILE]

Truth: SKEL meshes at the poses of fits, displaced by the residual field of *another* row, in axes
of the body. The calibration comes from the first two thirds of the committed motion; truths and
fields from its last third, from extreme poses, and one from each. Second calibration: the one that
comes along (of all of that motion). Bars: 85 to 95 % of all angles, no angle below 75 %, 10 % of a
fit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Pair, conditions, markdown_conditions, markdown_table, set_threads
from benchmarks.poses import extreme
from pipeline.calibration import Sample, free_motion
from skel_fit.anatomy import POSE_NAMES
from skel_fit.calibration import Calibration, read_calibrations
from skel_fit.default_body import STANDIN_CALIBRATION
from skel_fit.fit import FitResult, fit_skel, solver_of
from skel_fit.recipe import FitConfig
from skel_fit.skel import SKEL
from skel_fit.solver.blocks import Goal
from skel_fit.solver.engine import Solver
from skel_fit.uncertainty import angle_uncertainty, calibrate

NINETY = 1.6448536
POOLED, WORST, COST = (0.85, 0.95), 0.75, 0.10


@dataclass(frozen=True)
class Measured:
    """Fits of rows: root-frame poses (n,49), betas (n,10), fields (n,V,3) m in axes of the body."""

    poses: Tensor
    betas: Tensor
    fields: Tensor


def blended(skel: SKEL, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Skin (n,V,3) at poses (n,49) is `skel`'s; here bone rotations (n,24,3,3) and their blend
    (n,V,3,3)."""
    rotations = skel.bone_transforms(
        poses[:, :46], skel.shape(torch.zeros(len(poses), 10).to(poses))
    )[0]
    return rotations, torch.einsum("vk,nkij->nvij", skel.skin_weights.to(poses), rotations)


def measured(pair: Pair, sample: Sample) -> Measured:
    """Fit rows and keep what is left."""
    poses, betas = torch.as_tensor(sample.poses), torch.as_tensor(sample.betas)
    poses = poses.clone()
    poses[:, :3] = 0.0
    still = torch.zeros(len(poses), 3, dtype=torch.float64)
    fit = fit_skel(pair.skel, pair.smpl, poses, betas, still)
    at = torch.nn.functional.pad(fit.poses[:, 3:], (3, 3))
    solver = solver_of(pair.skel, pair.smpl, FitConfig())
    targets = solver.surface(solver.smpl_goal(poses, betas), len(poses))
    fields = []
    for part in torch.arange(len(poses)).split(64):
        skin = pair.skel(at[part, :46], betas[part].float(), at[part, 46:]).skin_vertices
        _, turn = blended(pair.skel, at[part])
        fields.append(torch.einsum("nvij,nvi->nvj", turn, targets[part] - skin))
    return Measured(at.double(), betas, torch.cat(fields))


def fitted_again(pair: Pair, solver: Solver, truth: Measured, fields: Tensor) -> Tensor:
    """Poses (n,49) found on the truth's meshes displaced by the fields."""
    targets, starts = [], []
    for part in torch.arange(len(fields)).split(64):
        at = truth.poses[part].float()
        skin = pair.skel(at[:, :46], truth.betas[part].float(), at[:, 46:]).skin_vertices
        rotations, turn = blended(pair.skel, at)
        targets.append(skin + torch.einsum("nvij,nvj->nvi", turn, fields[part]))
        starts.append(rotations.double())
    surface, start = torch.cat(targets), torch.cat(starts)

    def goal(rows: Tensor) -> Goal:
        return Goal(surface[rows].permute(1, 2, 0).contiguous(), start[rows])

    return solver.solve(goal, truth.betas).poses


def as_result(like: FitResult, poses: Tensor, truth: Measured, solver: Solver) -> FitResult:
    """Poses (n,49) as the result of a fit."""
    from dataclasses import replace

    return replace(
        like.take(torch.arange(len(poses)) % len(like.poses)),
        poses=poses[:, :46].float(),
        betas=truth.betas.float(),
        trans=poses[:, 46:].float(),
        active_limits=solver.active_limits(poses),
    )


def coverage(
    pair: Pair, result: FitResult, truth: Measured, calibration: Calibration
) -> tuple[float, float, str, float, float]:
    """Pooled, worst, which, of angles on a limit, median sd in degrees."""
    found = angle_uncertainty(pair.skel, pair.smpl, result, None, calibration)
    sd = found.sd[:, 3:].double()
    inside = (result.poses[:, 3:].double() - truth.poses[:, 3:46]).abs() <= NINETY * sd
    each = inside.double().mean(dim=0)
    worst = int(each.argmin())
    limit = result.active_limits[:, 3:]
    return (
        float(inside.double().mean()),
        float(each[worst]),
        POSE_NAMES[3 + worst],
        float(inside[limit].double().mean()),
        float(np.degrees(sd.median())),
    )


def cost(pair: Pair, sample: Sample, calibration: Calibration) -> float:
    """CPU time of the standard deviations over that of the fit, median of five pairs."""
    poses, betas = torch.as_tensor(sample.poses), torch.as_tensor(sample.betas)
    still = torch.zeros(len(poses), 3, dtype=torch.float64)
    shares = []
    for _ in range(6):
        began = time.process_time()
        fit = fit_skel(pair.skel, pair.smpl, poses, betas, still)
        fitted = time.process_time()
        angle_uncertainty(pair.skel, pair.smpl, fit, None, calibration)
        shares.append((time.process_time() - fitted) / (fitted - began))
    return statistics.median(shares[1:])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_threads(1)
    told = conditions(threads=1, rows=given.rows)
    pair = Pair.default()
    solver = solver_of(pair.skel, pair.smpl, FitConfig())
    motion = free_motion(1200)
    first, last = slice(0, 800), np.linspace(830, 1199, given.rows).astype(int)
    early = calibrate(
        pair.skel,
        pair.smpl,
        torch.as_tensor(motion.poses[first]),
        torch.as_tensor(motion.betas[first]),
    )
    calibrations = {
        "first two thirds": early,
        "comes along": read_calibrations(STANDIN_CALIBRATION).pairs["male", "male"],
    }
    frames = extreme(given.rows, 5)
    later = Sample(motion.poses[last], motion.betas[last])
    sets = {
        "motion": measured(pair, later),
        "extreme": measured(pair, Sample(frames.poses.numpy(), frames.betas.numpy())),
    }
    like = fit_skel(
        pair.skel, pair.smpl, torch.as_tensor(later.poses[:64]), torch.as_tensor(later.betas[:64]),
        torch.zeros(64, 3, dtype=torch.float64),
    )  # fmt: skip
    draw = np.random.default_rng(0)
    rows = []
    for truth_name, truth in sets.items():
        for field_name, source in sets.items():
            other = torch.as_tensor(np.roll(draw.permutation(given.rows), 1))
            poses = fitted_again(pair, solver, truth, source.fields[other])
            result = as_result(like, poses, truth, solver)
            for name, calibration in calibrations.items():
                pooled, worst, which, limit, sd = coverage(pair, result, truth, calibration)
                met = POOLED[0] <= pooled <= POOLED[1] and worst >= WORST
                rows.append((truth_name, field_name, name, f"{pooled:.1%}", f"{worst:.1%}", which,
                             f"{limit:.1%}", sd, "yes" if met else "**no**"))  # fmt: skip
    share = cost(pair, later, early)
    head = ("truth", "fields", "calibration", "pooled", "worst angle", "which", "on a limit",
            "median sd, deg", "met")  # fmt: skip
    print("## Intervals: `python -m benchmarks.intervals`\n\n" + markdown_conditions(told) + "\n")
    print(markdown_table(head, rows))
    print(f"\nStandard deviations cost {share:.1%} of a fit (bar {COST:.0%}).")
    if given.json:
        given.json.write_text(json.dumps({"conditions": told, "rows": rows, "cost": share}) + "\n")


if __name__ == "__main__":
    main()
