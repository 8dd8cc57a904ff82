"""The reduced solver: blocks of constant size through stages and rounds. Theory: docs/solver.md.

Fitting happens in the frame of the SMPL root: both bodies lose their global orientation and turn
about their own pelvis, which changes no distance between them and keeps the numbers small.

A row's result never depends on its neighbours: matrix products run at one block size (short blocks
are padded by repeating a row), everything else is per row, and rows leave a block only between
rounds of a fixed schedule.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from smplx import SMPL
from torch import Tensor

from skel_fit.anatomy import POSE_NAMES, REGIONS
from skel_fit.crew import each
from skel_fit.kinematics import Identity
from skel_fit.recipe import FitConfig
from skel_fit.skel import SKEL
from skel_fit.skeleton import Skeleton, skeleton_tables
from skel_fit.solver import tables
from skel_fit.solver.blocks import Block, Ended, Goal, GoalOf, Outcome, Posed, Solution, padded
from skel_fit.solver.graphs import Graphs
from skel_fit.solver.plans import (
    SmplSide,
    StagePlan,
    VertexSets,
    bounds,
    checked_weights,
    stage_plans,
)
from skel_fit.solver.tables import (
    LANES,
    SearchState,
    SmplTree,
)

if TYPE_CHECKING:
    from skel_fit.solver.kernels_numba import NumbaKernels
    from skel_fit.solver.kernels_torch import TorchKernels

    Kernels = NumbaKernels | TorchKernels  # TritonKernels are TorchKernels

ROUNDS_IN_BLOCK = 2
"""Rounds of the last stage before unfinished rows are regrouped, and between regroupings."""
STARTS = ("mapped", "limbs_turned", "spine_straight", "limbs_turned_back")
_TURNED = {"hip_rotation_r": -1.2, "hip_rotation_l": 1.2, "shoulder_r_z": -1.2, "shoulder_l_z": 1.2}
"""rad, added: thighs and upper arms turned about their length, so that hinges held by their limit
bend another way; one side in, the other out."""
_BENT = dict.fromkeys(("knee_angle_r", "knee_angle_l", "elbow_flexion_r", "elbow_flexion_l"), 0.7)
_SPINE = (
    "lumbar_bending", "lumbar_extension", "lumbar_twist",
    "thorax_bending", "thorax_extension", "thorax_twist",
)  # fmt: skip
_FURTHER_STARTS: dict[int, dict[str, float]] = {
    1: _TURNED | _BENT,
    2: dict.fromkeys(_SPINE, 0.0),
    3: {name: -angle for name, angle in _TURNED.items()} | _BENT,
}
"""What a further start changes in the best pose so far: angles that are set, and `_TURNED`."""
_WORSE = 1e-5


@dataclass(frozen=True)
class Solver:
    """Fits SKEL to surfaces: of one SMPL model, or (smpl None) bare meshes. Make it once, use it
    for many rows."""

    config: FitConfig
    dtype: torch.dtype
    device: torch.device
    skeleton: Skeleton[np.ndarray]
    region: np.ndarray  # (V,) index into REGIONS
    region_counts: Tensor  # (regions, 1) vertices
    joint_regressor: Tensor  # (24, V)
    smpl: SmplSide | None
    kernels: Kernels
    plans: tuple[StagePlan, ...]
    block: int  # rows worked on together
    width: int  # rows that a short block is filled up to
    graphs: Graphs | None  # recorded blocks, on a GPU with the Triton kernels
    weights: np.ndarray | None = None  # (V,) of the vertices, heaviest 1; None: all equal

    @staticmethod
    def of(
        skel: SKEL,
        smpl: SMPL | None,
        config: FitConfig,
        vertex_weights: np.ndarray | None = None,
        mask_weights: np.ndarray | None = None,
        made: VertexSets | None = None,
    ) -> Solver:
        """Tables and kernels of a model pair (they take a second to make).

        vertex_weights: (V,) how much each vertex counts (`plans.checked_weights`). mask_weights:
        (V,24) skinning weights of SMPL's joints for the stages' masks, where there is no `smpl`.
        made: tables of `skel` that other pairs with it have made already (`plans.stage_plans`).
        """
        weights = checked_weights(vertex_weights, skel.template.shape[0])
        device, dtype = skel.device, getattr(torch, config.dtype)
        side = None if smpl is None else SmplSide.of(skel, smpl, dtype)
        skeleton, region = skeleton_tables(skel), tables.regions(skel)
        counts = np.bincount(region, minlength=len(REGIONS))
        kernels = _kernels(config, device)
        # wide enough for the matrix products, small enough for the processor's cache
        block = config.rows_of_block(device.type)
        return Solver(
            config=config,
            dtype=dtype,
            device=device,
            skeleton=skeleton,
            region=region,
            region_counts=torch.as_tensor(counts, device=device)[:, None],
            joint_regressor=skel.joint_regressor.to(device, dtype),
            smpl=side,
            kernels=kernels(skeleton, None if side is None else side.tree, dtype, device),
            plans=stage_plans(skel, smpl, config, weights, mask_weights, made),
            block=block,
            width=-(-block // LANES) * LANES,
            graphs=Graphs() if kernels.records and device.type == "cuda" else None,
            weights=weights,
        )

    def without_limits(self) -> Solver:
        """The same solver without joint limits; shares all tables, and is made once."""
        return self._unlimited

    @cached_property
    def _unlimited(self) -> Solver:
        config = self.config.model_copy(update={"limits": "none"})
        lower, upper = bounds(config)
        return replace(
            self,
            config=config,
            plans=tuple(
                replace(plan, tables=plan.tables._replace(lower=lower, upper=upper))
                for plan in self.plans
            ),
            graphs=None if self.graphs is None else Graphs(),  # limits are recorded with them
        )

    def narrow(self) -> Solver:
        """The same solver for a few rows at a time: the narrowest block, always the same."""
        return replace(self, block=LANES, width=LANES, graphs=None)

    @property
    def lower(self) -> np.ndarray:
        """(49,) joint limits, and the trust region of the root."""
        return self.plans[-1].tables.lower

    @property
    def upper(self) -> np.ndarray:
        """(49,) joint limits, and the trust region of the root."""
        return self.plans[-1].tables.upper

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """`lower` and `upper` on the device, uploaded once."""
        low, high = (
            torch.as_tensor(limit, device=self.device) for limit in (self.lower, self.upper)
        )
        return low, high

    def float_kernels(self) -> TorchKernels:
        """Kernels in plain torch, also where others fit: they say more than these compute."""
        from skel_fit.solver.kernels_torch import TorchKernels

        if isinstance(self.kernels, TorchKernels):
            return self.kernels
        return TorchKernels(self.skeleton, None, self.dtype, self.device)

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

        def fit(part: Tensor) -> Outcome:
            block = self._block(goal, betas, part)
            state = SearchState.begin(poses[block.rows])
            ended = self._run(self._last_stage, block, state, self._real(part), 0)
            return Outcome.of(block, part.numel(), ended)

        everything = torch.arange(poses.shape[0], device=self.device)
        waiting = self._gather(fit, everything.split(self.block), solution)
        self._finish(waiting, 0, solution)
        return solution

    def smpl_goal(self, poses: Tensor, betas: Tensor) -> GoalOf:
        """The surfaces of SMPL poses (n,72) and betas (n,10), float64."""
        source = torch.as_tensor(self.skeleton.start_source, device=self.device)
        side = self.smpl_side

        def goal(rows: Tensor) -> Goal:
            _, rotations, transforms, features = self.kernels.pose_smpl(poses[rows], betas[rows])
            targets = self.kernels.skinned(side, Posed(transforms, features))
            return Goal(targets, rotations[:, source])

        return goal

    @property
    def smpl_side(self) -> SmplSide:
        """The SMPL model's tables. Raises ValueError for a solver of bare meshes."""
        if self.smpl is None:
            raise ValueError("this solver was made for bare meshes, without an SMPL model")
        return self.smpl

    def pelvis_difference(self, smpl_betas: Tensor, skel_betas: Tensor) -> Tensor:
        """J0_smpl(smpl_betas) - J0_skel(skel_betas), (n,3) m."""
        joints = []
        sides: tuple[tuple[SmplTree[np.ndarray] | Skeleton[np.ndarray], Tensor], ...] = (
            (self.smpl_side.tree, smpl_betas),
            (self.skeleton, skel_betas),
        )
        for tree, betas in sides:
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
        """(n,46) bool: angles on a joint limit."""
        lower = torch.as_tensor(self.lower[:46], device=self.device)
        upper = torch.as_tensor(self.upper[:46], device=self.device)
        active = (poses[:, :46] <= lower + 1e-9) | (poses[:, :46] >= upper - 1e-9)
        active[:, :3] = False  # what bounds a root is no joint
        return active

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

        def fit(part: Tensor) -> Outcome:
            block = self._block(goal, betas, part)
            begin = self._start(start, block, before[block.rows])
            ended = self._run(self._all_stages, block, self._real(part), begin, start)
            return Outcome.of(block, part.numel(), ended)

        before = solution.poses.clone()
        waiting = self._gather(fit, rows.split(self.block), solution)
        self._finish(waiting, start, solution)

    def _run(self, work: Callable[..., Ended], *given: Any) -> Ended:
        """The work on these tensors, from the start given last; recorded where graphs are kept."""
        if self.graphs is None:
            return work(*given)
        *tensors, start = given
        name = (work.__name__, start)
        return self.graphs.run(name, lambda *inputs: work(*inputs, start), *tensors)

    def _real(self, part: Tensor) -> Tensor:
        """(width,) bool: rows of a block that are not there to fill it up."""
        return torch.arange(self.width, device=self.device) < part.numel()

    def _gather(
        self, fit: Callable[[Tensor], Outcome], parts: Sequence[Tensor], solution: Solution
    ) -> list[tuple[Block, SearchState[Tensor]]]:
        """Fit the parts, on a CPU several at once; what is settled goes to the solution where that
        improves it, the rest is given back in order."""
        waiting = []
        for outcome in each(fit, parts, self.device):
            solution.improve(outcome.rows, outcome.found)
            if outcome.left is not None:
                waiting.append(outcome.left)
        return waiting

    def _all_stages(self, block: Block, real: Tensor, poses: Tensor, start: int) -> Ended:
        """A block from one start, at poses (n,49), through the coarse stages and the first rounds
        of the last."""
        state = SearchState.begin(poses)
        for plan in self.plans[:-1]:
            state = self._coarse_stage(plan, block, state, real)
        state.restart()
        return self._last_stage(block, state, real, start)

    def _block(self, goal: GoalOf, betas: Tensor, rows: Tensor) -> Block:
        index = padded(rows, self.width)
        targets, rotations = goal(index)
        shape = self.kernels.identity(betas[index])
        return Block(index, shape, targets, self.joint_targets(targets), rotations)

    def joint_targets(self, targets: Tensor) -> Tensor:
        """Anatomical joints (n,24,3) regressed from the surface, where a stage asks for them."""
        count, _, n = targets.shape
        if not any(plan.tables.joint_masses.any() for plan in self.plans):
            return torch.zeros(n, 24, 3, dtype=torch.float64, device=self.device)
        joints = self.joint_regressor @ targets.view(count, 3 * n)
        return joints.view(24, 3, n).permute(2, 0, 1).to(torch.float64).contiguous()

    def _start(self, start: int, block: Block, before: Tensor) -> Tensor:
        """Poses (n,49) to start from; before (n,49): the best found so far, for further starts."""
        low, high = self.bounds
        branch = torch.zeros(24, dtype=torch.int64, device=self.device)
        mapped = self.kernels.start(block.rotations, block.shape, low, high, branch)
        if start == 0:
            return mapped
        poses = torch.where(torch.isfinite(before), before, mapped)
        for name, angle in _FURTHER_STARTS[start].items():
            column = POSE_NAMES.index(name)
            turned = poses[:, column] + angle if name in _TURNED else angle
            poses[:, column] = turned
        return torch.minimum(torch.maximum(poses, low), high)

    def _round(
        self,
        plan: StagePlan,
        block: Block,
        state: SearchState[Tensor],
        pair_moments: Tensor,
        posed: Posed,
        targets: Tensor,
        active: Tensor,
        tolerance: float,
    ) -> None:
        """A round for the active rows."""
        self.kernels.minimise(
            plan.tables,
            block.shape,
            pair_moments,
            block.joint_targets,
            self.kernels.evidence(plan.vertices, posed, targets, active),
            active,
            self.config.steps or plan.stage.steps,
            0.2 * tolerance,
            state,
        )

    def tolerance(self, plan: StagePlan) -> float:
        """Largest parameter change after which a row of the stage is settled."""
        return self.config.tolerance or plan.stage.tolerance

    def pair_moments(self, plan: StagePlan, shape: Identity[Tensor]) -> Tensor:
        """(n,P,10) moments of the stage's pairs of bones."""
        products = tables.shape_products(shape.betas)
        return (products @ plan.vertices.moment_basis).view(products.shape[0], -1, 10)

    def _coarse_stage(
        self, plan: StagePlan, block: Block, state: SearchState[Tensor], real: Tensor
    ) -> SearchState:
        """A stage whose residual nobody reports: rounds until each row's steps are small."""
        state.restart()
        targets = block.targets[plan.vertices.rows]
        pair_moments, active = self.pair_moments(plan, block.shape), real
        tolerance = self.tolerance(plan)
        for _ in range(plan.stage.rounds):
            posed = self.kernels.evaluate(plan.vertices, state.poses, block.shape)
            self._round(plan, block, state, pair_moments, posed, targets, active, tolerance)
            active = self.kernels.unsettled(state, active, tolerance)
            if self.kernels.host_decides and not active.any():
                break
        return state

    def _last_stage(
        self, block: Block, state: SearchState[Tensor], real: Tensor, start: int
    ) -> Ended:
        """A few rounds of the last stage for the rows that `real` (width,) names."""
        plan = self.plans[-1]
        tolerance = self.tolerance(plan)
        pair_moments = self.pair_moments(plan, block.shape)
        active, found = real, Solution.empty(real.numel(), self.device)
        for turn in range(ROUNDS_IN_BLOCK + 1):
            posed = self.kernels.evaluate(plan.vertices, state.poses, block.shape)
            if turn > 0:
                found, active = self._settle(plan, block, state, posed, active, start, found)
                if turn == ROUNDS_IN_BLOCK or (self.kernels.host_decides and not active.any()):
                    break
            self._round(plan, block, state, pair_moments, posed, block.targets, active, tolerance)
            # candidates that keep getting worse: at the optimum to rounding, so judge the best
            stuck = active & (state.failures >= 3)
            state.poses.copy_(torch.where(stuck[:, None], state.best_poses, state.poses))
            state.step_size.masked_fill_(stuck, 0.0)
        return Ended(found, active, state)

    def _settle(
        self,
        plan: StagePlan,
        block: Block,
        state: SearchState[Tensor],
        posed: Posed,
        active: Tensor,
        start: int,
        found: Solution,
        force: bool = False,
    ) -> tuple[Solution, Tensor]:
        """Judge the candidates that hardly moved, or all; those that are no worse than their best
        are done."""
        near = state.step_size < self.tolerance(plan)
        asked = active if force else active & near
        energy, totals, largest = self.kernels.judged(
            plan.vertices, self.region, posed, block.targets, asked
        )
        energy = energy + self.kernels.extra_energy(
            plan.tables, block.shape, block.joint_targets, state.poses
        )
        small = near & (energy <= state.best_energy * (1.0 + _WORSE) + 1e-13)
        done = active & (small | force)
        judged = Solution(
            state.poses,
            energy,
            totals.sum(dim=0) / len(self.region),
            largest,
            totals / self.region_counts,
            state.steps,
            small,
            torch.full_like(state.steps, start),
        )
        return found.where(done, judged), active & ~done

    def _finish(
        self, waiting: list[tuple[Block, SearchState[Tensor]]], start: int, solution: Solution
    ) -> None:
        """Regroup unfinished rows into full blocks until all are settled or out of rounds."""
        rounds_done = ROUNDS_IN_BLOCK
        while waiting:
            block = Block.join([b for b, _ in waiting])
            state = SearchState(
                *(torch.cat(parts) for parts in zip(*(s for _, s in waiting), strict=True))
            )
            last = rounds_done >= self.plans[-1].stage.rounds
            work = self._give_up if last else self._last_stage

            def fit(
                part: Tensor,
                block: Block = block,
                state: SearchState[Tensor] = state,
                work: Callable[[Block, SearchState[Tensor], Tensor, int], Ended] = work,
            ) -> Outcome:
                index = padded(part, self.width)
                some, search = block.select(index), state.rows(index)
                ended = self._run(work, some, search, self._real(part), start)
                return Outcome.of(some, part.numel(), ended)

            everything = torch.arange(block.rows.numel(), device=self.device)
            waiting = self._gather(fit, everything.split(self.block), solution)
            rounds_done += ROUNDS_IN_BLOCK

    def _give_up(self, block: Block, state: SearchState[Tensor], real: Tensor, start: int) -> Ended:
        """Out of rounds: report the best pose found, not settled."""
        state.poses[:] = state.best_poses
        state.step_size[:] = torch.inf
        plan, found = self.plans[-1], Solution.empty(real.numel(), self.device)
        posed = self.kernels.evaluate(plan.vertices, state.poses, block.shape)
        found, active = self._settle(plan, block, state, posed, real, start, found, force=True)
        return Ended(found, active, state)


def _kernels(config: FitConfig, device: torch.device) -> type[Kernels]:
    """numba on a CPU and Triton on a GPU where they are installed, else plain torch.

    Raises ValueError or ImportError, in one line, where the wanted kernels cannot run.
    """
    wanted = config.kernels
    if wanted == "numba" and device.type != "cpu":
        raise ValueError("kernels='numba' run on a CPU only; use 'auto' or 'torch' on a GPU")
    if wanted == "triton" and device.type == "cpu" and not _interpreted():
        raise ValueError(
            "kernels='triton' run on a GPU (or, for tests, on a CPU with TRITON_INTERPRET=1 in the "
            "environment); use 'auto' on a CPU"
        )
    name = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch")
    name = name if wanted == "auto" else wanted
    try:
        return _kernels_named(name)
    except ImportError as error:
        price, remedy = _WITHOUT[name]
        if wanted != "auto":
            raise ImportError(f"kernels={name!r}: {error}; {remedy}") from error
        warnings.warn(
            f"{name} cannot be imported ({error}): plain torch fits instead, {price}; {remedy}",
            stacklevel=2,
        )
    return _kernels_named("torch")


_WITHOUT = {
    "numba": ("at some twentieth of the rate", "pip install numba"),
    "triton": ("in thousands of launches a block instead of one", "pip install 'hmr-skel[gpu]'"),
}
"""What plain torch costs in place of these kernels, and what to do."""


def _kernels_named(name: str) -> type[Kernels]:
    """Imported only where they are used."""
    if name == "numba":
        from skel_fit.solver.kernels_numba import NumbaKernels

        return NumbaKernels
    if name == "triton":
        from skel_fit.solver.kernels_triton import TritonKernels

        return TritonKernels
    from skel_fit.solver.kernels_torch import TorchKernels

    return TorchKernels


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") == "1"
