"""`fit_surface_sequence`: SKEL to one moving body of another topology; method: docs/sequences.md.

Unlike with SMPL, a root may be free: that of bare meshes. Each frame then has the root frame that
its pelvis shows, and SKEL's root moves in it as the other angles do, in the smoothing too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import JOINTS
from skel_fit.bodies.identity_shapes import IdentityShapes
from skel_fit.bodies.source_body import SourceRoot
from skel_fit.bodies.surface_fit import PlacedRows, fit_skel_to_surface, placed_rows
from skel_fit.bodies.surface_map import SurfaceMap
from skel_fit.crew import rows_over_threads
from skel_fit.fit import FitResult
from skel_fit.inputs import Numbers
from skel_fit.recipe import FitConfig, SequenceConfig
from skel_fit.root import root_angles, root_rotation
from skel_fit.sequence import (
    Progress,
    coupled_frames,
    displacement_weights,
    frames_alone,
    largest_turns,
)
from skel_fit.skel import SKEL
from skel_fit.solver.smoothing import SequenceProblem
from skel_fit.solver.surfaces import PlacedSurfaces, rest_pelvis

_PARENTS = [joint.parent for joint in JOINTS]


@rows_over_threads()
def fit_surface_sequence(
    skel: SKEL,
    surfaces: Numbers,
    surface_map: SurfaceMap,
    identity: int,
    shapes: IdentityShapes,
    config: FitConfig | None = None,
    smoothing: SequenceConfig | None = None,
    *,
    root: SourceRoot | None = None,
    mask_weights: np.ndarray | None = None,
    vertex_weights: np.ndarray | None = None,
    progress: Progress = lambda share: None,
) -> FitResult:
    """Fit SKEL to consecutive frames of one body that is not SMPL.

    surfaces: (T, V, 3) m of the map's source; identity: whose shape of `shapes` all frames have;
    the other options as in `fit_skel_to_surface`, what is done over time as in `fit_sequence`.
    Frames that are not finite are stepped over. numpy arrays give numpy columns.

    Raises ValueError where `fit_skel_to_surface` does, and where the config fits betas.
    """
    config = config or FitConfig(recipe="surface" if root is None else "hierarchical")
    smoothing = smoothing or SequenceConfig()
    if config.betas == "fit":
        raise ValueError("betas 'fit': the frames of a body have the shape of its identity")
    count = len(surfaces)
    people = np.full(count, identity, np.int64)
    weights = {"mask_weights": mask_weights, "vertex_weights": vertex_weights}

    def fitted(part: slice) -> FitResult:
        some = None if root is None else SourceRoot(*(values[part] for values in root))
        given = torch.as_tensor(surfaces[part])
        return fit_skel_to_surface(
            skel, given, surface_map, people[part], shapes, config, root=some, **weights
        )

    result = frames_alone(fitted, count, config, progress)
    result = replace(result, alone_error=result.vertex_error_mean)
    good = torch.tensor([not s.is_rejected for s in result.status], device=result.poses.device)
    frames = torch.nonzero(good)[:, 0]
    if frames.numel():
        rows = placed_rows(
            skel, surfaces, surface_map, people, shapes, config, root=root, **weights
        )
        run = _coupled(skel, rows, result.take(frames), frames, config, smoothing, progress)
        result = result.put(frames, run)
    progress(1.0)
    return result.numpy() if isinstance(surfaces, np.ndarray) else result


def _coupled(
    skel: SKEL,
    rows: PlacedRows,
    run: FitResult,
    frames: Tensor,
    config: FitConfig,
    smoothing: SequenceConfig,
    progress: Callable[[float], None],
) -> FitResult:
    """The frames that can be fitted, coupled; run: each on its own."""
    placed, betas = rows.placed, rows.betas[frames[0]]
    goal = placed.goal(rows.solver)
    steps = largest_turns(_local(placed.rotations[frames]))
    problem = SequenceProblem(
        rows.solver,
        lambda some: goal(frames[some]),
        betas,
        placed.orient[frames],
        displacement_weights(smoothing, steps),
    )
    free = config.resolved_recipe().root_is_free
    root = _FreeRoot(skel, placed, frames, betas) if free else None
    return coupled_frames(problem, run, steps, smoothing, progress, root)


def _local(rotations: Tensor) -> Tensor:
    """Bones (n,23,3,3) turned against their parents; rotations (n,24,3,3) in one frame a row."""
    parents = rotations[:, _PARENTS[1:]]
    return parents.transpose(2, 3) @ rotations[:, 1:]


@dataclass(frozen=True)
class _FreeRoot:
    """`MovingRoot` of placed meshes: their rows `frames` (n,), with the betas (10,) of all."""

    skel: SKEL
    placed: PlacedSurfaces
    frames: Tensor
    betas: Tensor

    def local(self, run: FitResult) -> Tensor:
        placed, rows = self.placed, self.frames
        back = placed.orient[rows].transpose(1, 2)
        poses, trans = run.poses.double(), run.trans.double()
        turned = root_angles(self.skel, back @ root_rotation(self.skel, poses[:, :3]))
        pelvis = rest_pelvis(self.skel, self.betas[None])
        arm = (back @ (trans + pelvis - placed.seen[rows])[:, :, None])[:, :, 0]
        moved = arm + placed.home[rows] - pelvis
        return torch.cat([turned, poses[:, 3:], moved], dim=1)

    def world(self, frames: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.frames[frames]
        return self.placed.roots(self.skel, rows, poses, self.betas.expand(len(rows), -1))
