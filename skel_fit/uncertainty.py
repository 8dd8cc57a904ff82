"""How sure is each angle: standard deviations at the optimum. Derivation: docs/solver.md.

What is left between two skins is no independent noise: neighbouring vertices are displaced alike,
and alike in every pose. So a *calibration* measures residual fields of a model pair on rows of its
own, and a row's angles are as sure as such fields, riding on its bones, would leave them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from smplx import SMPL
from torch import Tensor

from skel_fit.calibration import OBSERVED, Calibration
from skel_fit.crew import each, rows_over_threads
from skel_fit.fit import FitResult, fit_skel, solver_of
from skel_fit.kinematics import Bones, Identity
from skel_fit.recipe import FitConfig
from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.skel import SKEL
from skel_fit.solver.blocks import padded
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_torch import TorchKernels
from skel_fit.solver.pattern import pattern_of
from skel_fit.solver.sandwich import RIDGE, Fields, Sandwich, sandwich, scores, wrenches

FIELDS = 24
"""Fields that a calibration keeps: 99 % of the variance that all of them give the angles."""
_REFERENCE_ROWS = 40
_ENOUGH = 2 * FIELDS


class AngleUncertainty(NamedTuple):
    """Of n rows."""

    sd: Tensor  # (n,46) float32 rad; NaN where it is not known
    observed: Tensor  # (n,46) int8, a value of `OBSERVED`


def calibrate(
    skel: SKEL, smpl: SMPL, poses: Tensor, betas: Tensor, config: FitConfig | None = None
) -> Calibration:
    """Measure the residual fields of a model pair on rows of its own.

    poses: (n, 72) SMPL axis-angle, rad; betas: (n, 10). The rows should move as the data do, each
    with its own shape; a thousand are plenty. Raises ValueError where shapes do not fit and where
    fewer than 48 rows can be fitted.
    """
    config = config or FitConfig()
    still = torch.zeros(poses.shape[0], 3, dtype=torch.float64)
    fit = fit_skel(skel, smpl, poses, betas, still, config)
    fitted = torch.tensor([not status.is_rejected for status in fit.status])
    rows = torch.nonzero(fitted)[:, 0].to(skel.device)
    if rows.numel() < _ENOUGH:
        raise ValueError(f"{rows.numel()} rows can be fitted; a calibration needs {_ENOUGH}")
    fit = fit.take(rows)
    poses, betas = (t.detach().to(skel.device, torch.float64)[rows] for t in (poses, betas))
    solver = solver_of(skel, smpl, config)
    with rows_over_threads():
        measured, pulls, squares = _residual_fields(solver, fit, poses, betas)
        flat = torch.cat([measured.flatten(1), pulls], dim=1)
        kept = _principal_fields(solver, flat, fit)
    return Calibration(
        kept[:, :144].view(-1, 24, 6).float().cpu().numpy(),
        kept[:, 144:].float().cpu().numpy(),
        float(squares.mean()) / skel.template.shape[0],
        rows.numel(),
        config.resolved_recipe().root_is_free,
    )


def angle_uncertainty(
    skel: SKEL,
    smpl: SMPL | None,
    fit: FitResult,
    config: FitConfig | None = None,
    calibration: Calibration | None = None,
    solver: Solver | None = None,
) -> AngleUncertainty:
    """Standard deviation of every angle of a fit, and what it rests on.

    solver: that the fit was made with, where it is not that of the pair.

    fit: of `fit_skel` or `fit_sequence` with this pair and `config` (smpl None: of
    `fit_skel_to_vertices`); a frame of a sequence is judged on its own. sd is NaN in rejected rows,
    for a frozen root, and where there is no calibration or one of another treatment of the root. It
    is at most that of an angle that may be anywhere inside its limits. A row depends on no other.
    """
    config, fit = config or FitConfig(), fit.tensors()
    solver = solver_of(skel, smpl, config) if solver is None else solver
    if calibration is not None and (
        calibration.root_is_free != config.resolved_recipe().root_is_free
    ):
        calibration = None
    n, device = fit.poses.shape[0], solver.device
    sd = torch.full((n, 46), torch.nan, dtype=torch.float32, device=device)
    observed = torch.full((n, 46), OBSERVED["unknown"], dtype=torch.int8, device=device)
    rows = torch.nonzero(torch.isfinite(fit.vertex_error_mean))[:, 0]
    if not rows.numel():
        return AngleUncertainty(sd, observed)
    free = torch.as_tensor(solver.plans[-1].tables.free[:46]).to(device)
    widest = torch.as_tensor(largest_sd(solver.lower[:46], solver.upper[:46])).to(device)
    parts = _sandwiches(solver, fit.take(rows), calibration)
    variance, share = (torch.cat(part)[:, :46] for part in zip(*parts, strict=True))
    # in a lock a variance that nothing bounds is below 0 or NaN by rounding
    deviation = torch.where(variance >= 0.0, variance.sqrt(), torch.inf)
    wide = deviation >= widest
    found = torch.where((share > 0.5) & ~wide, OBSERVED["data"], OBSERVED["prior"])
    found = torch.where(fit.active_limits[rows], OBSERVED["limit"], found)
    observed[rows] = torch.where(free, found, OBSERVED["label"]).to(torch.int8)
    if calibration is not None:
        known = torch.minimum(deviation, widest)
        sd[rows] = torch.where(free, known, torch.nan).float()
    return AngleUncertainty(sd, observed)


def largest_sd(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Standard deviation, rad, of angles that are uniform inside their limits, a turn at most."""
    return np.minimum(upper - lower, 2.0 * math.pi) / math.sqrt(12.0)


# --- measuring -----------------------------------------------------------------------------


def _residual_fields(
    solver: Solver, fit: FitResult, poses: Tensor, betas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Wrenches (n,24,6), pulls (n,207) and mean squared distances (n,) of what the fit left."""
    goal, vertices = solver.smpl_goal(poses, betas), solver.plans[-1].vertices
    turns = axis_angle_to_matrix(poses[:, :3])
    kernels = solver.float_kernels()
    parts = []
    for index, at, shape, count in _blocks(solver, fit):
        joints = solver.kernels.pose_smpl(poses[index], betas[index])[0]
        posed = solver.kernels.evaluate(vertices, at, shape)
        # the goal is in the root frame, the fit is not
        pelvis, turn = joints[:, 0], turns[index]
        shift = pelvis - (turn @ pelvis[..., None])[..., 0]
        local = goal(index).targets
        targets = torch.einsum("nij,vjn->vin", turn.to(local.dtype), local) + shift.T.to(local)
        energy, moments, corrective = solver.kernels.evidence(vertices, posed, targets.contiguous())
        made = wrenches(moments.permute(2, 0, 1).double(), kernels.bones(at, shape), shape.joints)
        parts.append((made[:count], corrective.T.double()[:count], energy[:count]))
    found, pulls, energies = (torch.cat(part) for part in zip(*parts, strict=True))
    return found, pulls, energies


def _principal_fields(solver: Solver, flat: Tensor, fit: FitResult) -> Tensor:
    """(K,351) fields whose products stand for the second moment of all fields (n,351), those first
    that move angles most (Nystrom, in units of each angle's standard deviation)."""
    kernels = solver.float_kernels()
    free = torch.as_tensor(solver.plans[-1].tables.free).to(solver.device)
    eye = torch.eye(flat.shape[1], dtype=torch.float64, device=solver.device)
    single = Fields(eye[:, :144].view(-1, 24, 6), eye[:, 144:])
    moment = flat.T @ flat / flat.shape[0]
    chosen = torch.linspace(0, flat.shape[0] - 1, _REFERENCE_ROWS).long().to(solver.device)
    maps = []
    for _, at, shape, count in _blocks(solver, fit.take(chosen)):
        hessian, bones = _curvature(kernels, solver, at, shape)
        for row in range(count):
            own = Bones(*(part[row : row + 1] for part in bones))
            found = scores(kernels, own, single)[0, free]
            matrix = hessian[row, free][:, free]
            matrix = matrix + RIDGE * torch.eye(len(matrix)).to(matrix)
            maps.append(torch.linalg.solve(matrix, found))
    moved = torch.stack(maps)  # (rows, angles, 351)
    total = ((moved @ moment) * moved).sum(dim=2).mean(dim=0).sqrt()
    moved = (moved / total[:, None]).flatten(0, 1)
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.clamp(min=0.0).sqrt()
    _, directions = torch.linalg.eigh(root.T @ (moved.T @ moved) @ root)
    return (root @ directions.flip(1)[:, :FIELDS]).T


# --- judging -------------------------------------------------------------------------------


def _sandwiches(solver: Solver, fit: FitResult, calibration: Calibration | None) -> list[Sandwich]:
    """Block by block. Without a calibration the variance says nothing."""
    nothing = Fields(torch.zeros(1, 24, 6).double(), torch.zeros(1, 207).double())
    fields = calibration.fields(solver.device) if calibration else nothing
    noise = calibration.noise if calibration else 0.0
    by_lane = [part.flatten(1).T.contiguous() for part in fields]
    compiled = not isinstance(solver.kernels, TorchKernels)
    tables, kernels = solver.plans[-1].tables, solver.float_kernels()

    def judged(rows: _Rows) -> Sandwich:
        if compiled:
            found = _compiled(solver, rows.at, rows.shape, by_lane, noise)
        else:
            hessian, bones = _curvature(kernels, solver, rows.at, rows.shape)
            prior, free = (
                torch.as_tensor(t).to(solver.device) for t in (tables.prior, tables.free)
            )
            found = sandwich(hessian, prior, scores(kernels, bones, fields), noise, free)
        return Sandwich(*(part[: rows.real] for part in found))

    with rows_over_threads():
        return list(each(judged, _blocks(solver, fit), solver.device))


def _compiled(
    solver: Solver, at: Tensor, shape: Identity[Tensor], fields: list[Tensor], noise: float
) -> Sandwich:
    from skel_fit.solver import numba_sandwich

    plan = solver.plans[-1]
    out = Sandwich(torch.zeros_like(at), torch.zeros_like(at))
    moments = solver.pair_moments(plan, shape)
    numba_sandwich.sandwich(
        solver.skeleton,
        plan.tables,
        pattern_of(solver.skeleton, plan.tables),
        *(t.numpy() for t in (*shape[1:], moments, at, fields[0].view(24, 6, -1), fields[1])),
        noise,
        RIDGE,
        *(part.numpy() for part in out),
    )
    return out


class _Rows(NamedTuple):
    """A padded block of a fit."""

    numbers: Tensor  # (n,) of the rows
    at: Tensor  # (n,49) poses in the world
    shape: Identity[Tensor]
    real: int  # how many are no padding


def _blocks(solver: Solver, fit: FitResult) -> list[_Rows]:
    """The rows of a fit in blocks."""
    at = torch.cat([fit.poses, fit.trans], dim=1).double()
    blocks = []
    for part in torch.arange(len(at), device=at.device).split(solver.block):
        index = padded(part, solver.width)
        shape = solver.kernels.identity(fit.betas[index].double())
        blocks.append(_Rows(index, at[index], shape, part.numel()))
    return blocks


def _curvature(
    kernels: TorchKernels, solver: Solver, at: Tensor, shape: Identity[Tensor]
) -> tuple[Tensor, Bones]:
    """Gauss-Newton matrices (n,49,49) and kinematics at poses (n,49)."""
    plan, n = solver.plans[-1], at.shape[0]
    nothing = (at.new_zeros(n, 24, 12), at.new_zeros(n, 207))
    _, hessian, bones = kernels.linearise(
        plan.tables, shape, solver.pair_moments(plan, shape), at.new_zeros(n, 24, 3), nothing, at
    )
    return hessian, bones
