"""The published way to fit SKEL to SMPL, for comparison: one autograd L-BFGS over a whole batch.

Written from docs/reference/fitting.md#published-recipe (stages, masks, weights, objective; of
#skel-cf-variant: 30 iterations a step, one shape per frame), on our own SKEL module with the
shape-dependent part computed once, so an evaluation here is cheaper than the original's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from benchmarks.poses import Frames
from skel_fit.root import root_from_smpl
from skel_fit.rotations import axis_angle_to_matrix, euler_from_matrix
from skel_fit.skel import SKEL, SkelIdentity

Root = Literal["released", "exact"]
"""released: copied Euler angles and translation, repaired by stage 0, root free again in stage 3.
exact: rotation and translation in closed form and frozen, stage 0 left out."""
STEPS_PER_STAGE = 10


@dataclass(frozen=True)
class PublishedStage:
    """One stage (fitting.md#published-stages). Masks name SMPL joints (skin weight above 0.5) and
    SKEL joints."""

    name: str
    moves_translation: bool
    frozen: tuple[int, ...]  # pose parameters held at their value at the start of the stage
    only: tuple[int, ...]  # if given, the only ones that move
    smpl_joints: tuple[int, ...]  # vertices with such a weight; empty: all
    invert: bool
    joints_left_out: tuple[int, ...]
    learning_rate: float
    tolerance: float
    vertex_weight: float
    joint_weight: float
    pose_weight: float


_ROOT = (0, 1, 2)
STAGES = (
    PublishedStage(
        "root_only", True, (), _ROOT, (0, 3), False, (), 1.0, 1e-4, 300.0, 0.0, 0.0
    ),
    PublishedStage(
        "fixed_upper_limbs", False, (*_ROOT, 19), (), (0, 1, 2, 3, 6, 9, 12, 15, 16, 17), False,
        (3, 4, 5, 8, 9, 10, 18, 23), 0.1, 1e-7, 600.0, 500.0, 1e-4,
    ),
    PublishedStage(
        "fixed_root", False, _ROOT, (), (1, 2, 16, 17), True, (), 0.1, 1e-7, 600.0, 1000.0, 1e-4
    ),
    PublishedStage(
        "free", False, (), (), (), False, tuple(j for j in range(24) if j not in (14, 19)),
        0.1, 1e-7, 600.0, 1000.0, 1e-4,
    ),
)  # fmt: skip


@dataclass
class PublishedFit:
    """One batch under way. `run` advances it; the other fields are its result at any time."""

    skel: SKEL
    smpl: torch.nn.Module
    frames: Frames
    root: Root = "released"
    iterations: int = 30
    """L-BFGS iterations of one step; there are STEPS_PER_STAGE steps a stage."""
    steps: int = STEPS_PER_STAGE
    evaluations: int = 0
    poses: Tensor = field(init=False)  # (n, 46)
    trans: Tensor = field(init=False)  # (n, 3)

    def __post_init__(self) -> None:
        frames, skel = self.frames, self.skel
        poses, transl = frames.poses.float(), frames.transl.float()
        self.betas = frames.betas.float()
        with torch.no_grad():
            self.targets = self.smpl(
                betas=self.betas,
                global_orient=poses[:, :3],
                body_pose=poses[:, 3:],
                transl=transl,
            ).vertices
            self.joint_targets = skel.joint_regressor @ self.targets
            self.identity: SkelIdentity = skel.shape(self.betas)
        self.poses = torch.zeros(len(frames), 46)
        if self.root == "exact":
            root, trans = root_from_smpl(skel, self.smpl, poses[:, :3], self.betas, transl)
            self.poses[:, :3], self.trans = root, trans.clone()
        else:
            self.poses[:, :3], self.trans = released_root(poses[:, :3]), transl.clone()
        self.dominant = self.smpl.lbs_weights > 0.5

    def run(self) -> Iterator[str]:
        """The stages; yields the stage's name after every optimiser step."""
        for stage in STAGES[1:] if self.root == "exact" else STAGES:
            yield from self._stage(stage)

    def _stage(self, stage: PublishedStage) -> Iterator[str]:
        start = self.poses.clone()
        moving = self._moving(stage)
        vertices = torch.ones(self.targets.shape[1])
        if stage.smpl_joints:
            chosen = self.dominant[:, list(stage.smpl_joints)].any(dim=1)
            vertices = (~chosen if stage.invert else chosen).float()
        joints = torch.ones(24)
        joints[list(stage.joints_left_out)] = 0.0
        poses = self.poses.clone().requires_grad_(True)
        trans = self.trans.clone().requires_grad_(stage.moves_translation)
        optimiser = torch.optim.LBFGS(
            [trans, poses] if stage.moves_translation else [poses],
            lr=stage.learning_rate,
            max_iter=self.iterations,
            tolerance_change=stage.tolerance,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            used = poses * moving + start * (1.0 - moving)
            energy = self._energy(stage, used, trans, vertices, joints)
            energy.backward()
            self.evaluations += 1
            return energy

        for _ in range(self.steps):
            optimiser.step(closure)
            with torch.no_grad():
                self.poses = (poses * moving + start * (1.0 - moving)).detach().clone()
                self.trans = trans.detach().clone()
            yield stage.name

    def _moving(self, stage: PublishedStage) -> Tensor:
        moving = torch.ones(46)
        if stage.only:
            moving = torch.zeros(46)
            moving[list(stage.only)] = 1.0
        moving[list(stage.frozen)] = 0.0
        if self.root == "exact":
            moving[:3] = 0.0
        return moving

    def _energy(
        self, stage: PublishedStage, poses: Tensor, trans: Tensor, vertices: Tensor, joints: Tensor
    ) -> Tensor:
        """6.3 with F = B: vertex term, joint term over all 72 numbers, spectral norm of the pose
        matrix (a QUIRK of the original, which couples the rows of a batch)."""
        out = self.skel(poses, trans=trans, identity=self.identity)
        apart = (out.skin_vertices - self.targets).square().sum(dim=2)
        energy = stage.vertex_weight * (apart * vertices).sum() / (vertices.sum() * len(poses))
        if stage.joint_weight:
            missed = (out.joints - self.joint_targets) * joints[:, None]
            energy = energy + stage.joint_weight * missed.square().mean()
        if stage.pose_weight:
            norm = torch.linalg.matrix_norm(poses[:, 3:], ord=2)
            energy = energy + stage.pose_weight * norm
        return energy


def released_root(global_orient: Tensor) -> Tensor:
    """(-w_x, e_y, e_z): Euler angles of R = Rx(e_x) Ry(e_y) Rz(e_z), the first one overwritten."""
    turn = axis_angle_to_matrix(global_orient.double())
    angles = euler_from_matrix(turn, (0, 1, 2))
    root = torch.cat((-global_orient[:, :1].double(), angles[:, 1:]), dim=1)
    return root.to(global_orient.dtype)
