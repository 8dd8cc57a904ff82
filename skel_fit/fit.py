"""Fit SKEL to SMPL bodies: the public entry. Method: docs/solver.md."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from smplx import SMPL
from torch import Tensor

from skel_fit.anatomy import PERIODIC, REGIONS
from skel_fit.crew import rows_over_threads
from skel_fit.inputs import Numbers, smpl_inputs
from skel_fit.recipe import FitConfig
from skel_fit.rejections import (
    MAX_TRANSLATION,
    NON_FINITE_VERTICES,
    VERTICES_OUT_OF_RANGE,
    smpl_rejections,
)
from skel_fit.root import root_angles, root_from_smpl, root_rotation
from skel_fit.rotations import axis_angle_to_matrix, wrap_angle
from skel_fit.skel import SKEL
from skel_fit.solver.blocks import GoalOf, Solution, padded
from skel_fit.solver.engine import STARTS, Solver
from skel_fit.solver.joint_shape import solve_with_shapes
from skel_fit.solver.plans import VertexSets, checked_weights
from skel_fit.solver.surfaces import Meshes, PlacedSurfaces, place_surfaces
from skel_fit.status import Status, costly_rows, limited_rows


@dataclass(frozen=True)
class FitResult:
    """Fits of n rows; metres and radians; NaN and -1 in rejected rows. Columns are tensors, and
    numpy arrays where a fit was given these.

    Rows are rejected for the reasons of `skel_fit.status`, and for no other.
    """

    poses: Tensor  # (n, 46) SKEL joint angles, rad
    betas: Tensor  # (n, 10) SKEL shape
    trans: Tensor  # (n, 3) m
    vertex_error_mean: Tensor  # (n,) m, over all vertices
    vertex_error_max: Tensor  # (n,) m
    region_errors: dict[str, Tensor]  # lower_body, torso, arms, head -> (n,) m
    active_limits: Tensor  # (n, 46) bool
    iterations: Tensor  # (n,) Levenberg-Marquardt steps of the winning start
    start: Tensor  # (n,) index of the winning start in `STARTS`
    unlimited_error: Tensor  # (n,) m, mean vertex error without limits; NaN where they cost little
    alone_error: Tensor  # (n,) m, mean vertex error of a sequence's frame on its own; else NaN
    status: list[Status]

    STARTS: ClassVar[tuple[str, ...]] = STARTS

    def rows(self, part: slice) -> FitResult:
        """Some rows."""
        return self._made_of([self], lambda columns: columns[0][part])

    def take(self, rows: Tensor) -> FitResult:
        """The listed rows."""
        listed = rows.tolist()
        return self._made_of(
            [self],
            lambda columns: (
                [columns[0][row] for row in listed]
                if isinstance(columns[0], list)
                else columns[0][listed]
            ),
        )

    def put(self, rows: Tensor, found: FitResult) -> FitResult:
        """These rows with the listed ones taken from `found`."""
        listed = rows.tolist()

        def combine(columns: list[Any]) -> Any:
            mine, theirs = columns
            if isinstance(mine, Tensor):
                return mine.index_copy(0, rows, theirs)
            if isinstance(mine, np.ndarray):
                changed = mine.copy()
                changed[listed] = theirs
                return changed
            out = list(mine)
            for row, value in zip(listed, theirs, strict=True):
                out[row] = value
            return out

        return self._made_of([self, found], combine)

    @classmethod
    def joined(cls, parts: list[FitResult]) -> FitResult:
        """The rows of all parts, in order; columns are tensors."""
        return cls._made_of(
            parts,
            lambda columns: (
                torch.cat(columns)
                if isinstance(columns[0], Tensor)
                else [value for column in columns for value in column]
            ),
        )

    def numpy(self) -> FitResult:
        """The same with numpy arrays as columns."""
        return self._made_of(
            [self],
            lambda columns: (
                columns[0].cpu().numpy() if isinstance(columns[0], Tensor) else columns[0]
            ),
        )

    def tensors(self) -> FitResult:
        """The same with tensors as columns, as `fit_skel` made them."""
        return self._made_of(
            [self],
            lambda columns: (
                torch.from_numpy(columns[0]) if isinstance(columns[0], np.ndarray) else columns[0]
            ),
        )

    @staticmethod
    def _made_of(parts: list[FitResult], combine: Callable[[list[Any]], Any]) -> FitResult:
        """Each column from the same column of the parts."""
        columns: dict[str, Any] = {
            field.name: combine([getattr(part, field.name) for part in parts])
            for field in fields(FitResult)
            if field.name != "region_errors"
        }
        regions = {name: combine([part.region_errors[name] for part in parts]) for name in REGIONS}
        return FitResult(region_errors=regions, **columns)


@rows_over_threads()
def fit_skel(
    skel: SKEL,
    smpl: SMPL,
    poses: Numbers,
    betas: Numbers,
    transl: Numbers,
    config: FitConfig | None = None,
    *,
    identity: Tensor | None = None,
    vertex_weights: np.ndarray | None = None,
) -> FitResult:
    """Fit SKEL to posed SMPL bodies.

    poses: SMPL's, global orientation first: axis-angle (n, 72) or (n, 24, 3), rad, or rotation
    matrices (n, 24, 3, 3); betas: (n, 10); transl: (n, 3) m; numpy arrays give numpy columns.
    Root orientation and translation follow in closed form (`skel_fit.root`) unless the
    recipe frees them. A row's result does not depend on the other rows or on the number of threads
    (bit-equal at one `config.block_size` on one device type and library build). On a CPU blocks of
    rows are spread over `torch.get_num_threads()` threads.

    identity: (n,) int64, only with `config.betas` "fit": rows of one number get one shape, and the
    result of a row depends on the rows of its identity. vertex_weights: (6890,) how much each
    vertex counts in every stage; errors are of all vertices all the same. None: all equally.

    Raises ValueError where shapes do not fit or the two models do not belong together.
    """
    config = config or FitConfig()
    _check_models(skel, smpl)
    inputs, as_numpy = smpl_inputs(poses, betas, transl)
    found = _fit_tensors(skel, smpl, inputs, config, identity, vertex_weights)
    return found.numpy() if as_numpy else found


def _fit_tensors(
    skel: SKEL,
    smpl: SMPL,
    inputs: tuple[Tensor, Tensor, Tensor],
    config: FitConfig,
    identity: Tensor | None,
    vertex_weights: np.ndarray | None,
) -> FitResult:
    """`fit_skel` of poses (n,72), betas (n,10) and transl (n,3)."""
    device = skel.template.device
    poses, betas, transl = (t.to(device, torch.float64) for t in inputs)
    reasons = _rejections(poses, betas, transl)
    good = torch.tensor([r == "" for r in reasons], dtype=torch.bool, device=device)
    rows = torch.nonzero(good)[:, 0]
    poses, betas, transl = poses[rows], betas[rows], transl[rows]

    shared = _identity_of(identity, len(reasons), rows, config)
    solver = solver_of(skel, smpl, config, vertex_weights)
    skel_betas = _skel_betas(skel, smpl, betas, solver)
    found = _search(solver, solver.smpl_goal(poses, betas), skel_betas, config, shared)
    root, trans = _in_blocks(
        lambda index: _root(
            skel,
            smpl,
            poses[index],
            betas[index],
            transl[index],
            found.betas[index],
            found.solution.poses[index],
            solver,
        ),
        rows.numel(),
        solver,
    )
    return _result(reasons, rows, found, root, trans, config)


@rows_over_threads()
def fit_skel_to_vertices(
    skel: SKEL,
    vertices: Tensor,
    betas: Tensor,
    config: FitConfig | None = None,
    *,
    identity: Tensor | None = None,
    vertex_weights: np.ndarray | None = None,
) -> FitResult:
    """Fit SKEL to bare meshes of its own topology, root and translation free.

    vertices: (n, 6890, 3) m; betas: (n, 10) of SKEL. The start is the rotation of each bone's own
    vertices (docs/reference/fitting.md#procrustes-start). The recipe must free the root: `surface`
    is the default. identity and vertex_weights: as in `fit_skel`. Raises ValueError where shapes do
    not fit.
    """
    config = config or FitConfig(recipe="surface")
    recipe = config.resolved_recipe()
    if not recipe.root_is_free or recipe.root_trust is not None:
        kept = "bounds" if recipe.root_is_free else "freezes"
        raise ValueError(f"recipe {config.recipe!r} {kept} the root; a bare mesh needs 'surface'")
    expected = (betas.shape[0], *skel.template.shape)
    if tuple(vertices.shape) != expected:
        raise ValueError(f"vertices: expected {expected}, found {tuple(vertices.shape)}")
    device = skel.template.device
    vertices, betas = (t.detach().to(device, torch.float64) for t in (vertices, betas))
    return fit_meshes(
        skel, Meshes.same(vertices.contiguous()), betas, config, vertex_weights, identity
    )


def fit_meshes(
    skel: SKEL,
    meshes: Meshes,
    betas: Tensor,
    config: FitConfig,
    vertex_weights: np.ndarray | None = None,
    identity: Tensor | None = None,
) -> FitResult:
    """`fit_skel_to_vertices` of meshes of any topology that SKEL's vertices are known on, on SKEL's
    device; betas float64."""
    expected = (meshes.source.shape[0], skel.shapedirs.shape[2])
    if tuple(betas.shape) != expected:
        raise ValueError(f"betas: expected {expected}, found {tuple(betas.shape)}")
    solver = solver_of(skel, None, config, vertex_weights)
    placed = place_surfaces(skel, solver, meshes, betas)

    def roots(rows: Tensor, poses: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
        return placed.roots(skel, rows, poses, shapes)

    return fit_placed(solver, placed, betas, config, roots, identity)


RootOf = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Root angles (k,3) and translations (k,3) of SKEL, of these rows (k,) with their solved poses
(k,49) and betas (k,10)."""


def fit_placed(
    solver: Solver,
    placed: PlacedSurfaces,
    betas: Tensor,
    config: FitConfig,
    root_of: RootOf,
    identity: Tensor | None = None,
) -> FitResult:
    """Fit SKEL to placed meshes; betas: (n, 10) of SKEL. Rows that are not finite, and those too
    far away, are rejected."""
    largest = placed.meshes.source.abs().flatten(1).amax(dim=1)
    far = (largest > MAX_TRANSLATION) & torch.isfinite(largest)
    finite = placed.finite & torch.isfinite(betas).all(dim=1)
    reasons = [
        VERTICES_OUT_OF_RANGE if away else "" if good else NON_FINITE_VERTICES
        for good, away in zip(finite.tolist(), far.tolist(), strict=True)
    ]
    rows = (finite & ~far).nonzero()[:, 0]
    shared = _identity_of(identity, len(reasons), rows, config)
    goal = placed.goal(solver)
    found = _search(solver, lambda some: goal(rows[some]), betas[rows], config, shared)
    root, trans = root_of(rows, found.solution.poses, found.betas)
    return _result(reasons, rows, found, root, trans, config)


@dataclass(frozen=True)
class _Found:
    """A search with what limits did to it."""

    solution: Solution
    betas: Tensor
    active: Tensor
    limited: Tensor
    unlimited: Tensor  # m, float32 as it is stored


def _identity_of(identity: Tensor | None, n: int, rows: Tensor, config: FitConfig) -> Tensor | None:
    """Identity of the rows that are fitted. Raises ValueError where it means nothing."""
    if identity is None:
        return None
    if config.betas != "fit":
        raise ValueError(f"identity: rows share a shape with betas='fit', not {config.betas!r}")
    if tuple(identity.shape) != (n,) or identity.dtype != torch.int64:
        raise ValueError(
            f"identity: expected ({n},) int64, found {tuple(identity.shape)} {identity.dtype}"
        )
    return identity.to(rows.device)[rows]


def _search(
    solver: Solver,
    goal: GoalOf,
    betas: Tensor,
    config: FitConfig,
    identity: Tensor | None = None,
) -> _Found:
    """Solve; where limits may cost much, solve again without them to know how much."""
    if config.betas == "fit":
        shaped = solve_with_shapes(solver, goal, betas, identity)
        solution, betas = shaped.solution, shaped.betas
    else:
        solution = solver.solve(goal, betas)
    active = solver.active_limits(solution.poses)
    error, on_limit = solution.error_mean.float(), active.any(dim=1)
    unlimited = torch.full_like(error, torch.nan)
    index = torch.nonzero(costly_rows(config, error.double(), on_limit))[:, 0]
    if index.numel():
        found = solver.without_limits().solve(lambda rows: goal(index[rows]), betas[index])
        # the limited optimum is feasible without limits too
        unlimited[index] = torch.minimum(found.error_mean.float(), error[index])
    limited = limited_rows(config, error.double(), unlimited.double(), on_limit)
    return _Found(solution, betas, active, limited, unlimited)


def _check_models(skel: SKEL, smpl: SMPL) -> None:
    mine, theirs = tuple(skel.template.shape), tuple(smpl.v_template.shape)
    if mine != theirs or not torch.equal(
        skel.faces.cpu(), torch.as_tensor(np.asarray(smpl.faces, dtype=np.int64))
    ):
        raise ValueError(
            f"SKEL and SMPL models do not share one topology: skin {mine} against {theirs}; use a "
            "SKEL file and an SMPL file of 6890 vertices with the same faces"
        )
    if skel.shapedirs.shape[2] != 10 or smpl.shapedirs.shape[2] < 10:
        raise ValueError(
            f"SKEL and SMPL models do not share a shape space: {skel.shapedirs.shape[2]} against "
            f"{smpl.shapedirs.shape[2]} shape directions, 10 wanted"
        )


def _rejections(poses: Tensor, betas: Tensor, transl: Tensor) -> list[str]:
    """Reason per row, '' where it can be fitted."""
    reasons = [""] * poses.shape[0]
    found = smpl_rejections(poses.cpu().numpy(), betas.cpu().numpy(), transl.cpu().numpy())
    for reason, bad in found:
        for row in np.flatnonzero(bad).tolist():
            reasons[row] = reasons[row] or reason
    return reasons


_Key = tuple[int, str, FitConfig, bytes, bytes]
_SOLVERS: weakref.WeakKeyDictionary[SKEL, dict[_Key, Solver]] = weakref.WeakKeyDictionary()
_VERTEX_SETS: weakref.WeakKeyDictionary[SKEL, VertexSets] = weakref.WeakKeyDictionary()
"""Tables that depend on the SKEL side alone: shared by its pairs, gone with the last solver."""


def solver_of(
    skel: SKEL,
    smpl: SMPL | None,
    config: FitConfig,
    vertex_weights: np.ndarray | None = None,
    mask_weights: np.ndarray | None = None,
) -> Solver:
    """The solver of a model pair; its tables take a second to make and are kept with the model.

    mask_weights: as in `Solver.of`.
    """
    made = _SOLVERS.setdefault(skel, {})
    weights = checked_weights(vertex_weights, skel.template.shape[0])
    named = b"" if weights is None else weights.tobytes()
    masks = b"" if mask_weights is None else mask_weights.tobytes()
    key = (id(smpl), str(skel.template.device), config, named, masks)
    if key not in made:
        shared = _VERTEX_SETS.setdefault(skel, weakref.WeakValueDictionary())
        made[key] = Solver.of(skel, smpl, config, weights, mask_weights, shared)
        if smpl is not None:  # ids are reused: forget the solver with its model
            weakref.finalize(smpl, made.pop, key, None)
    return made[key]


def _skel_betas(skel: SKEL, smpl: SMPL, betas: Tensor, solver: Solver) -> Tensor:
    """Shape of the SKEL body: copied within a gender, transferred across (`skel_fit.shape`)."""
    choice = solver.config.betas
    if choice == "copy" or (choice == "auto" and skel.gender == smpl.gender):
        return betas.clone()
    matrix, offset = solver.smpl_side.shape_transfer
    # a product per row: a matrix product would choose its order of summation by the batch size
    return (betas[:, None, :] * matrix).sum(dim=2) + offset


def _in_blocks(
    task: Callable[[Tensor], tuple[Tensor, Tensor]], n: int, solver: Solver
) -> tuple[Tensor, Tensor]:
    """The task over n rows in padded blocks, so that no row depends on how many there are."""
    if n == 0:
        empty = torch.zeros(0, 3, dtype=torch.float64, device=solver.device)
        return empty, empty
    first, second = [], []
    for part in torch.arange(n, device=solver.device).split(solver.width):
        a, b = task(padded(part, solver.width))
        first.append(a[: part.numel()])
        second.append(b[: part.numel()])
    return torch.cat(first), torch.cat(second)


def _root(
    skel: SKEL,
    smpl: SMPL,
    poses: Tensor,
    betas: Tensor,
    transl: Tensor,
    skel_betas: Tensor,
    solved: Tensor,
    solver: Solver,
) -> tuple[Tensor, Tensor]:
    """Root angles (n,3) and trans (n,3): the closed form, moved by what a free root found."""
    pelvis = solver.pelvis_difference(betas, skel_betas)
    orient = poses[:, :3]
    root, trans = root_from_smpl(skel, smpl, orient, betas, transl, pelvis_difference=pelvis)
    if solver.config.resolved_recipe().root_is_free:
        # root frame: v = A (v_c - J_s) + J_s + transl, v_c turned by R_c and moved by t_c
        turn = axis_angle_to_matrix(orient)
        trans = trans + (turn @ solved[:, 46:49, None])[:, :, 0]
        root = root_angles(skel, turn @ root_rotation(skel, solved[:, :3]))
    return root, trans


def _principal(angles: Tensor, config: FitConfig) -> Tensor:
    """Body angles (n,43) without whole turns, where a turn changes nothing."""
    if config.limits != "none":
        return angles
    wrapped = angles.clone()
    columns = np.flatnonzero(PERIODIC[3:])
    wrapped[:, columns] = wrap_angle(wrapped[:, columns])
    return wrapped


def status_of(settled: bool, limited: bool) -> Status:
    """The status of a fitted row."""
    if limited:
        return Status.LIMITED
    return Status.CONVERGED if settled else Status.MAX_ITER


def _result(
    reasons: list[str],
    rows: Tensor,
    found: _Found,
    root: Tensor,
    trans: Tensor,
    config: FitConfig,
) -> FitResult:
    """Spread the fitted rows over all rows; NaN, -1 and a reason elsewhere."""
    n, device, solution = len(reasons), rows.device, found.solution
    poses = torch.cat([root, _principal(solution.poses[:, 3:46], config)], dim=1)

    def spread(values: Tensor) -> Tensor:
        out = torch.full((n, *values.shape[1:]), torch.nan, dtype=torch.float32, device=device)
        out[rows] = values.to(torch.float32)
        return out

    def count(values: Tensor, missing: int) -> Tensor:
        out = torch.full((n, *values.shape[1:]), missing, dtype=values.dtype, device=device)
        out[rows] = values
        return out

    settled, limited = solution.settled.tolist(), found.limited.tolist()
    fitted = (status_of(*flags) for flags in zip(settled, limited, strict=True))
    status = [Status.rejected(reason) if reason else next(fitted) for reason in reasons]
    return FitResult(
        poses=spread(poses),
        betas=spread(found.betas),
        trans=spread(trans),
        vertex_error_mean=spread(solution.error_mean),
        vertex_error_max=spread(solution.error_max),
        region_errors={name: spread(solution.region_errors[k]) for k, name in enumerate(REGIONS)},
        active_limits=count(found.active, 0),
        iterations=count(solution.iterations, -1),
        start=count(solution.start, -1),
        unlimited_error=spread(found.unlimited),
        alone_error=torch.full((n,), torch.nan, dtype=torch.float32, device=device),
        status=status,
    )
