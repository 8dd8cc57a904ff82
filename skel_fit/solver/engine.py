"""The reduced solver: blocks of constant size through stages and rounds. Theory: docs/solver.md.

Fitting happens in the frame of the SMPL root: both bodies lose their global orientation and turn
about their own pelvis, which changes no distance between them and keeps the numbers small.

A row's result never depends on its neighbours: matrix products run at one block size (short blocks
are padded by repeating a row), everything else is per row, and rows leave a block only between
rounds of a fixed schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit import anatomy, joint_limits
from skel_fit.recipe import FitConfig, Stage
from skel_fit.shape import shape_transfer
from skel_fit.solver import tables
from skel_fit.solver.tables import (
    LANES,
    PARAMETERS,
    Identity,
    SearchState,
    StageTables,
    VertexSet,
)

ROUNDS_IN_BLOCK = 2
"""Rounds of the last stage before unfinished rows are regrouped, and between regroupings."""
STARTS = ("mapped", "other_branches", "relaxed")
_WORSE = 1e-5
_SHAPE_STEP = 0.25  # vertices are almost linear in betas: a large step loses no accuracy
_SHAPE_PRIOR = 1e-8  # m^2 per squared coefficient: keeps directions that the mesh does not show


@dataclass(frozen=True)
class StagePlan:
    """A stage bound to a model pair."""

    stage: Stage
    tables: StageTables
    vertices: VertexSet


class Goal(NamedTuple):
    """What rows are fitted to, in the root frame."""

    targets: Tensor  # (V,3,n) surface, m, of the fit's dtype
    rotations: Tensor  # (n,24,3,3) world rotation that each SKEL bone should start from, float64


GoalOf = Callable[[Tensor], Goal]
"""The goal of the listed rows."""


class Block(NamedTuple):
    """Rows under way with what does not change while they are fitted."""

    rows: Tensor  # (n,) row numbers
    shape: Identity
    targets: Tensor  # (V,3,n) SMPL surface in the root frame, m
    joint_targets: Tensor  # (n,24,3) anatomical joints regressed from it
    rotations: Tensor  # (n,24,3,3) wanted world rotations

    def select(self, index: Tensor) -> Block:
        """Some rows of the block."""
        return Block(
            self.rows[index],
            self.shape.rows(index),
            self.targets[:, :, index].contiguous(),
            self.joint_targets[index],
            self.rotations[index],
        )

    @staticmethod
    def join(blocks: list[Block]) -> Block:
        """One block after the other."""
        return Block(
            torch.cat([b.rows for b in blocks]),
            Identity(*(torch.cat(parts) for parts in zip(*(b.shape for b in blocks), strict=True))),
            torch.cat([b.targets for b in blocks], dim=2),
            torch.cat([b.joint_targets for b in blocks]),
            torch.cat([b.rotations for b in blocks]),
        )


class Solution(NamedTuple):
    """Fits of n rows in the root frame, float64, metres and radians."""

    poses: Tensor  # (n,49)
    energy: Tensor  # (n,) objective of the last stage
    error_mean: Tensor  # (n,)
    error_max: Tensor  # (n,)
    region_errors: Tensor  # (regions, n)
    iterations: Tensor  # (n,) Levenberg-Marquardt steps
    settled: Tensor  # (n,) bool
    start: Tensor  # (n,) index into STARTS

    @staticmethod
    def empty(n: int, device: torch.device) -> Solution:
        """Nothing known yet: NaN."""
        nan = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
        count = torch.zeros(n, dtype=torch.int64, device=device)
        return Solution(
            poses=nan[:, None].repeat(1, PARAMETERS),
            energy=torch.full_like(nan, torch.inf),
            error_mean=nan.clone(),
            error_max=nan.clone(),
            region_errors=nan.repeat(len(anatomy.REGIONS), 1),
            iterations=count,
            settled=count.bool(),
            start=count.clone(),
        )

    def put(self, rows: Tensor, found: Solution, take: Tensor) -> None:
        """Take over the found rows where `take` says so."""
        for name, mine, theirs in zip(self._fields, self, found, strict=True):
            if name == "region_errors":
                mine[:, rows[take]] = theirs[:, take]
            else:
                mine[rows[take]] = theirs[take]


class Solver:
    """Fits SKEL to surfaces: of one SMPL model, or (smpl None) bare meshes. Make it once, use it
    for many rows."""

    def __init__(
        self, skel: torch.nn.Module, smpl: torch.nn.Module | None, config: FitConfig
    ) -> None:
        self.config = config
        self.device = skel.template.device
        self.dtype = getattr(torch, config.dtype)
        self.numpy_dtype = np.dtype(config.dtype)
        self.skinning = tables.sparse_weights(tables.numpy_of(skel.skin_weights), self.numpy_dtype)
        self.region = tables.regions(skel)
        counts = np.bincount(self.region, minlength=len(anatomy.REGIONS))
        self.region_counts = torch.as_tensor(counts, device=self.device)[:, None]
        smpl_weights, self.smpl_tree = None, None
        if smpl is not None:
            smpl_weights = tables.numpy_of(smpl.lbs_weights)
            self.smpl_tree = tables.smpl_tables(smpl)
            self.smpl_skinning = tables.sparse_weights(smpl_weights, self.numpy_dtype)
            self.smpl_basis = self._smpl_basis(smpl)
            self.shape_transfer = tuple(
                part.to(self.device, torch.float64) for part in shape_transfer(skel, smpl)
            )
        self.joint_regressor = skel.joint_regressor.to(self.device, self.dtype)
        self.lower, self.upper = self._limits()
        self.skeleton = tables.skeleton_tables(skel)
        self.kernels = _kernels(config, self)(
            self.skeleton, self.smpl_tree, self.dtype, self.device
        )
        self.plans = self._plans(skel, smpl_weights)
        # wide enough for the matrix products, small enough for the processor's cache
        self.block = config.block_size or (64 if self.device.type == "cpu" else 2048)
        self.width = -(-self.block // LANES) * LANES

    def without_limits(self) -> Solver:
        """The same solver with every angle free; shares all tables."""
        free = copy.copy(self)
        free.config = self.config.model_copy(update={"limits": "none"})
        free.lower, free.upper = free._limits()
        free.plans = [
            replace(plan, tables=plan.tables._replace(lower=free.lower, upper=free.upper))
            for plan in self.plans
        ]
        return free

    def _smpl_basis(self, smpl: torch.nn.Module) -> Tensor:
        basis = tables.basis_matrix(
            tables.numpy_of(smpl.v_template),
            tables.numpy_of(smpl.shapedirs)[:, :, :10],
            tables.numpy_of(smpl.posedirs).T,
        )
        return torch.as_tensor(basis, dtype=self.dtype).to(self.device)

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        table = joint_limits.limits(self.config.limits)
        free = np.full(PARAMETERS - 46, np.inf)
        lower = np.concatenate([table[:, 0], -free])
        upper = np.concatenate([table[:, 1], free])
        # results are stored as float32: round the limits inwards so that they hold there too
        lower32, upper32 = lower.astype(np.float32), upper.astype(np.float32)
        lower32 = np.where(lower32 < lower, np.nextafter(lower32, np.float32(np.inf)), lower32)
        upper32 = np.where(upper32 > upper, np.nextafter(upper32, np.float32(-np.inf)), upper32)
        return lower32.astype(np.float64), upper32.astype(np.float64)

    def _plans(self, skel: torch.nn.Module, smpl_weights: np.ndarray | None) -> list[StagePlan]:
        prior = np.zeros(PARAMETERS)
        prior[list(anatomy.SPINE_DOFS)] = self.config.prior_spine
        prior[list(anatomy.SCAPULA_DOFS)] = self.config.prior_scapula
        plans: list[StagePlan] = []
        for stage in self.config.resolved_recipe().stages:
            mask = np.ones(skel.template.shape[0], bool)
            if stage.vertices is not None:
                if smpl_weights is None:
                    raise ValueError(f"stage {stage.name}: its vertex mask needs an SMPL model")
                mask = stage.vertices.select(smpl_weights)
            chosen = np.nonzero(mask)[0][:: stage.stride]
            if chosen.size == 0:
                raise ValueError(f"stage {stage.name}: its vertex mask selects no vertex")
            same = [p.vertices for p in plans if np.array_equal(p.vertices.indices, chosen)]
            vertices = (
                same[0]
                if same
                else tables.vertex_set(skel, chosen, np.ones(chosen.size), self.dtype, self.device)
            )
            joint_masses = np.zeros(24)
            joint_masses[list(stage.joints)] = stage.joint_weight / 72.0
            plans.append(
                StagePlan(
                    stage,
                    StageTables(
                        stage.free_parameters(),
                        self.lower,
                        self.upper,
                        prior,
                        joint_masses,
                        vertices.pair_first,
                        vertices.pair_second,
                    ),
                    vertices,
                )
            )
        return plans

    # --- public ----------------------------------------------------------------------------

    def solve(self, goal: GoalOf, betas: Tensor) -> Solution:
        """Fit n rows to their goals; betas (n,10) of SKEL, float64."""
        n = betas.shape[0]
        solution = Solution.empty(n, self.device)
        if n == 0:
            return solution
        everything = torch.arange(n, device=self.device)
        self._solve_from(0, everything, goal, betas, solution)
        if self.config.restarts:
            for start in range(1, len(STARTS)):
                suspects = self._suspects(solution)
                if suspects.numel():
                    self._solve_from(start, suspects, goal, betas, solution)
        return solution

    def refine(self, goal: GoalOf, betas: Tensor, poses: Tensor) -> Solution:
        """Fit n rows from given poses (n,49) instead of the usual starts, last stage only.

        betas: (n,10) of SKEL, float64. `start` of the solution says nothing.
        """
        solution = Solution.empty(poses.shape[0], self.device)
        waiting: list[tuple[Block, SearchState]] = []
        rows = torch.arange(poses.shape[0], device=self.device)
        for part in rows.split(self.block):
            index = padded(part, self.width)
            targets, rotations = goal(index)
            shape, joints = self.kernels.identity(betas[index]), self._joint_targets(targets)
            block = Block(index, shape, targets, joints, rotations)
            state, real = SearchState.begin(poses[index]), rows[: part.numel()]
            unfinished = self._last_stage(block, state, real, 0, solution, rounds_done=0)
            if unfinished is not None:
                waiting.append(unfinished)
        self._finish(waiting, 0, solution)
        return solution

    def smpl_goal(self, poses: Tensor, betas: Tensor) -> GoalOf:
        """The surfaces of SMPL poses (n,72) and betas (n,10), float64."""
        source = torch.as_tensor(self.skeleton.start_source, device=self.device)

        def goal(rows: Tensor) -> Goal:
            _, rotations, transforms, features = self.kernels.pose_smpl(poses[rows], betas[rows])
            points = (self.smpl_basis @ features).view(-1, 3, rows.numel())
            targets = self.kernels.skin(self.smpl_skinning, transforms, points)
            return Goal(targets, rotations[:, source])

        return goal

    def pelvis_difference(self, smpl_betas: Tensor, skel_betas: Tensor) -> Tensor:
        """J0_smpl(smpl_betas) - J0_skel(skel_betas), (n,3) m."""
        joints = []
        for tree, betas in ((self.smpl_tree, smpl_betas), (self.skeleton, skel_betas)):
            template = torch.as_tensor(tree.joint_template[0], device=self.device)
            directions = torch.as_tensor(tree.joint_directions[0], device=self.device)
            joints.append(template + (directions * betas[:, None, :]).sum(dim=2))
        return joints[0] - joints[1]

    def _suspects(self, solution: Solution) -> Tensor:
        """Rows whose residual or limits suggest another basin."""
        active = self.active_limits(solution.poses).sum(dim=1)
        error = solution.error_mean
        stuck = (error > 0.03) | ((error > 0.02) & (active >= 3)) | ~solution.settled
        return torch.nonzero(stuck)[:, 0]

    def active_limits(self, poses: Tensor) -> Tensor:
        """(n,46) bool: angles on a limit."""
        lower = torch.as_tensor(self.lower[:46], device=self.device)
        upper = torch.as_tensor(self.upper[:46], device=self.device)
        return (poses[:, :46] <= lower + 1e-9) | (poses[:, :46] >= upper - 1e-9)

    def refit_shape(self, goal: GoalOf, betas: Tensor, solution: Solution) -> Tensor:
        """Gauss-Newton step of the shape (n,10) at fixed SKEL poses, drawn to the given betas."""
        out = betas.clone()
        everything = torch.arange(betas.shape[0], device=self.device)
        for part in everything.split(self.block):
            index = padded(part, self.width)
            targets = goal(index).targets
            start, pose = betas[index], solution.poses[index]
            base = self._skin_of(pose, start)
            columns = []
            for k in range(start.shape[1]):
                moved = start.clone()
                moved[:, k] += _SHAPE_STEP
                columns.append((self._skin_of(pose, moved) - base) / _SHAPE_STEP)
            jacobian = torch.stack(columns).flatten(1, 2).permute(2, 0, 1).double()
            residual = (targets - base).flatten(0, 1).T[:, :, None].double()
            normal = jacobian @ jacobian.transpose(1, 2) / base.shape[0]
            normal += _SHAPE_PRIOR * torch.eye(start.shape[1], device=self.device)
            step = torch.linalg.solve(normal, jacobian @ residual / base.shape[0])
            out[part] = (start + step[:, :, 0])[: part.numel()]
        return out

    def _skin_of(self, poses: Tensor, betas: Tensor) -> Tensor:
        transforms, points = self._evaluate(
            self.plans[-1].vertices, poses, self.kernels.identity(betas)
        )
        return self.kernels.skin(self.skinning, transforms, points)

    def surface(self, goal: GoalOf, n: int) -> Tensor:
        """Surfaces (n,V,3) of the goals of n rows, root frame, m."""
        parts = []
        for part in torch.arange(n, device=self.device).split(self.width):
            targets = goal(padded(part, self.width)).targets
            parts.append(targets[:, :, : part.numel()].permute(2, 0, 1))
        return torch.cat(parts)

    # --- one start -------------------------------------------------------------------------

    def _solve_from(
        self,
        start: int,
        rows: Tensor,
        goal: GoalOf,
        betas: Tensor,
        solution: Solution,
    ) -> None:
        """Solve the rows from one start and take over what is better."""
        waiting: list[tuple[Block, SearchState]] = []
        for part in rows.split(self.block):
            index = padded(part, self.width)
            targets, rotations = goal(index)
            joints = self._joint_targets(targets)
            shape = self.kernels.identity(betas[index])
            block = Block(index, shape, targets, joints, rotations)
            state = SearchState.begin(self._start(start, block))
            for plan in self.plans[:-1]:
                state = self._coarse_stage(plan, block, state)
            real = torch.arange(part.numel(), device=self.device)
            unfinished = self._last_stage(block, state, real, start, solution, rounds_done=0)
            if unfinished is not None:
                waiting.append(unfinished)
        self._finish(waiting, start, solution)

    def _joint_targets(self, targets: Tensor) -> Tensor:
        """Anatomical joints (n,24,3) regressed from the surface, where a stage asks for them."""
        count, _, n = targets.shape
        if not any(plan.tables.joint_masses.any() for plan in self.plans):
            return torch.zeros(n, 24, 3, dtype=torch.float64, device=self.device)
        joints = self.joint_regressor @ targets.view(count, 3 * n)
        return joints.view(24, 3, n).permute(2, 0, 1).to(torch.float64).contiguous()

    def _start(self, start: int, block: Block) -> Tensor:
        lower = torch.as_tensor(self.lower, device=self.device)
        upper = torch.as_tensor(self.upper, device=self.device)
        branch = torch.zeros(24, dtype=torch.int64, device=self.device)
        if start == 1:
            branch[:] = 1
        if start == 2:
            lower, upper = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
        poses = self.kernels.start(block.rotations, block.shape, lower, upper, branch)
        if start == 2:
            # halfway between rest and the unbounded start, back inside the limits
            poses = torch.minimum(
                torch.maximum(0.5 * poses, torch.as_tensor(self.lower, device=self.device)),
                torch.as_tensor(self.upper, device=self.device),
            )
        return poses

    def _evaluate(
        self, vertices: VertexSet, poses: Tensor, shape: Identity
    ) -> tuple[Tensor, Tensor]:
        transforms, features = self.kernels.pose_bones(poses, shape)
        return transforms, (vertices.basis @ features).view(-1, 3, poses.shape[0])

    def _round(
        self,
        plan: StagePlan,
        block: Block,
        state: SearchState,
        pair_moments: Tensor,
        evaluated: tuple[Tensor, Tensor],
        targets: Tensor,
        active: Tensor,
        tolerance: float,
    ) -> None:
        transforms, points = evaluated
        energy, moments, pull = self.kernels.residual_moments(
            plan.vertices, transforms, points, targets
        )
        corrective = plan.vertices.pose_basis.T @ pull.view(-1, pull.shape[2])
        self.kernels.minimise(
            plan.tables,
            block.shape,
            pair_moments,
            block.joint_targets,
            (energy, moments, corrective),
            active,
            self.config.steps or plan.stage.steps,
            0.2 * tolerance,
            state,
        )

    def _tolerance(self, plan: StagePlan) -> float:
        return self.config.tolerance or plan.stage.tolerance

    def _pair_moments(self, plan: StagePlan, shape: Identity) -> Tensor:
        products = tables.shape_products(shape.betas)
        return (products @ plan.vertices.moment_basis).view(products.shape[0], -1, 10)

    def _coarse_stage(self, plan: StagePlan, block: Block, state: SearchState) -> SearchState:
        """A stage whose residual nobody reports: rounds until each row's steps are small."""
        state = SearchState.begin(state.poses)._replace(steps=state.steps)
        targets = block.targets[plan.vertices.rows]
        pair_moments = self._pair_moments(plan, block.shape)
        active = torch.ones(block.rows.numel(), dtype=torch.bool, device=self.device)
        tolerance = self._tolerance(plan)
        for _ in range(plan.stage.rounds):
            evaluated = self._evaluate(plan.vertices, state.poses, block.shape)
            self._round(plan, block, state, pair_moments, evaluated, targets, active, tolerance)
            active = active & (state.step_size > tolerance) & (state.failures < 3)
            if self.device.type == "cpu" and not active.any():
                break
        return state

    def _last_stage(
        self,
        block: Block,
        state: SearchState,
        real: Tensor,
        start: int,
        solution: Solution,
        rounds_done: int,
    ) -> tuple[Block, SearchState] | None:
        """A few rounds of the last stage. Settled rows go to the solution; the others come back."""
        plan = self.plans[-1]
        tolerance = self._tolerance(plan)
        if rounds_done == 0:
            state = SearchState.begin(state.poses)._replace(steps=state.steps)
        pair_moments = self._pair_moments(plan, block.shape)
        active = torch.zeros(block.rows.numel(), dtype=torch.bool, device=self.device)
        active[real] = True
        for turn in range(ROUNDS_IN_BLOCK + 1):
            evaluated = self._evaluate(plan.vertices, state.poses, block.shape)
            if turn > 0:
                active = self._settle(plan, block, state, evaluated, active, start, solution)
                if turn == ROUNDS_IN_BLOCK or not active.any():
                    break
            self._round(
                plan, block, state, pair_moments, evaluated, block.targets, active, tolerance
            )
            # candidates that keep getting worse: at the optimum to rounding, so judge the best
            stuck = active & (state.failures >= 3)
            state.poses[stuck] = state.best_poses[stuck]
            state.step_size[stuck] = 0.0
        left = torch.nonzero(active)[:, 0]
        if not left.numel():
            return None
        return block.select(left), state.rows(left)

    def _settle(
        self,
        plan: StagePlan,
        block: Block,
        state: SearchState,
        evaluated: tuple[Tensor, Tensor],
        active: Tensor,
        start: int,
        solution: Solution,
        force: bool = False,
    ) -> Tensor:
        """Judge the candidates; converged rows that are no worse than their best are done."""
        transforms, points = evaluated
        squares, totals, largest = self.kernels.judge(
            self.skinning, self.region, transforms, points, block.targets
        )
        count = points.shape[0]
        energy = squares / count + self.kernels.extra_energy(
            plan.tables, block.shape, block.joint_targets, state.poses
        )
        small = (state.step_size < self._tolerance(plan)) & (
            energy <= state.best_energy * (1.0 + _WORSE) + 1e-13
        )
        done = active & (small | force)
        found = Solution(
            state.poses,
            energy,
            totals.sum(dim=0) / count,
            largest,
            totals / self.region_counts,
            state.steps,
            small,
            torch.full_like(state.steps, start),
        )
        better = done & (energy < solution.energy[block.rows])
        solution.put(block.rows, found, torch.nonzero(better)[:, 0])
        return active & ~done

    def _finish(
        self, waiting: list[tuple[Block, SearchState]], start: int, solution: Solution
    ) -> None:
        """Regroup unfinished rows into full blocks until all are settled or out of rounds."""
        rounds_done = ROUNDS_IN_BLOCK
        while waiting:
            block = Block.join([b for b, _ in waiting])
            state = SearchState(
                *(torch.cat(parts) for parts in zip(*(s for _, s in waiting), strict=True))
            )
            waiting = []
            last = rounds_done >= self.plans[-1].stage.rounds
            for part in torch.arange(block.rows.numel(), device=self.device).split(self.block):
                index = padded(part, self.width)
                some, search = block.select(index), state.rows(index)
                real = torch.arange(part.numel(), device=self.device)
                if last:
                    self._give_up(some, search, real, start, solution)
                    continue
                unfinished = self._last_stage(some, search, real, start, solution, rounds_done)
                if unfinished is not None:
                    waiting.append(unfinished)
            rounds_done += ROUNDS_IN_BLOCK

    def _give_up(
        self, block: Block, state: SearchState, real: Tensor, start: int, solution: Solution
    ) -> None:
        """Out of rounds: report the best pose found, not settled."""
        state.poses[:] = state.best_poses
        state.step_size[:] = torch.inf
        active = torch.zeros(block.rows.numel(), dtype=torch.bool, device=self.device)
        active[real] = True
        evaluated = self._evaluate(self.plans[-1].vertices, state.poses, block.shape)
        self._settle(self.plans[-1], block, state, evaluated, active, start, solution, force=True)


def padded(index: Tensor, width: int) -> Tensor:
    """The index, filled up to `width` by repeating its first entry."""
    return torch.cat([index, index[:1].expand(width - index.numel())])


def _kernels(config: FitConfig, solver: Solver) -> type:
    """numba on a CPU where it is installed, else plain torch."""
    wanted = config.kernels
    if wanted == "numba" and solver.device.type != "cpu":
        raise ValueError("kernels='numba' run on a CPU only; use 'auto' or 'torch' on a GPU")
    if wanted != "torch" and solver.device.type == "cpu":
        try:
            from skel_fit.solver.kernels_numba import NumbaKernels

            return NumbaKernels
        except ImportError:
            if wanted == "numba":
                raise
    from skel_fit.solver.kernels_torch import TorchKernels

    return TorchKernels
