"""`fit_skel_to_surface`: SKEL to the surfaces of any mapped body."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skel_fit.bodies.identity_shapes import IdentityShapes
from skel_fit.bodies.source_body import SourceRoot
from skel_fit.bodies.surface_map import SurfaceMap
from skel_fit.bodies.weights import surface_weights
from skel_fit.crew import rows_over_threads
from skel_fit.fit import FitResult, RootOf, fit_placed, solver_of
from skel_fit.inputs import Numbers
from skel_fit.recipe import FitConfig
from skel_fit.root import root_angles, root_rotation
from skel_fit.skel import SKEL
from skel_fit.solver.engine import Solver
from skel_fit.solver.surfaces import Meshes, PlacedSurfaces, place_surfaces, rest_pelvis

_HANDS = (22, 23)
_FINGER = 0.03
"""Share of a finger's joint in a vertex from which on it counts nothing."""


def map_weights(
    skel: SKEL, surface_map: SurfaceMap, mask_weights: np.ndarray | None = None
) -> np.ndarray:
    """(6890,) how much each vertex counts: `surface_weights`, how good the map is there, and, where
    the source has mask weights (V, 24), how much of it are its own fingers."""
    weights = surface_weights(skel) * surface_map.vertex_weight
    if mask_weights is not None:
        fingers = surface_map.carried(mask_weights)[:, list(_HANDS)].sum(axis=1)
        weights *= np.clip(1.0 - fingers / _FINGER, 0.0, 1.0)
    return weights


def surface_solver(
    skel: SKEL,
    surface_map: SurfaceMap,
    config: FitConfig,
    mask_weights: np.ndarray | None = None,
    vertex_weights: np.ndarray | None = None,
) -> Solver:
    """The solver of `fit_skel_to_surface` for these."""
    weights = vertex_weights
    if weights is None:
        weights = map_weights(skel, surface_map, mask_weights)
    masks = None if mask_weights is None else surface_map.carried(mask_weights)
    return solver_of(skel, None, config, weights, masks)


def stated_translation(
    skel: SKEL, root: SourceRoot, betas: Tensor, offsets: Tensor, moved: Tensor | float = 0.0
) -> Tensor:
    """SKEL's trans (n,3) where its pelvis is tied to that of the source: its v = R (y - J) + J +
    trans is the source's v = R (y + offset - P) + p. moved: (n,3) m beside that, root frame."""
    pelvis = rest_pelvis(skel, betas)
    arm = pelvis + offsets - root.pelvis + moved
    return root.position + (root.orient @ arm[:, :, None])[:, :, 0] - pelvis


@rows_over_threads()
def fit_skel_to_surface(
    skel: SKEL,
    surfaces: Numbers,
    surface_map: SurfaceMap,
    identity: np.ndarray,
    shapes: IdentityShapes,
    config: FitConfig | None = None,
    *,
    root: SourceRoot | None = None,
    mask_weights: np.ndarray | None = None,
    vertex_weights: np.ndarray | None = None,
) -> FitResult:
    """Fit SKEL to posed surfaces of another body.

    surfaces: (n, V, 3) m of the map's source; identity: (n,) int64, each with a shape in `shapes`,
    which is taken as it is; root: what the source states of its root, float64: a recipe that
    freezes it ('hierarchical') keeps that; None: bare vertices, for which the recipe must free it
    ('surface', the default then). mask_weights: (V, 24) of the source (`SourceBody.mask_weights`),
    for recipes with vertex masks, and to know its fingers. vertex_weights: (6890,); None:
    `map_weights`. Rows with vertices that are not finite are rejected. Errors are of all vertices.
    numpy arrays give numpy columns.

    Raises ValueError: shapes that do not fit; a map of another topology; a root that is stated and
    freed without a bound, or neither stated nor freed.
    """
    config = config or FitConfig(recipe="surface" if root is None else "hierarchical")
    rows = placed_rows(
        skel, surfaces, surface_map, identity, shapes, config, root=root,
        mask_weights=mask_weights, vertex_weights=vertex_weights,
    )  # fmt: skip
    found = fit_placed(rows.solver, rows.placed, rows.betas, config, rows.root_of)
    return found.numpy() if isinstance(surfaces, np.ndarray) else found


class PlacedRows(NamedTuple):
    """What a fit to surfaces needs: n rows in their root frames."""

    solver: Solver
    placed: PlacedSurfaces
    betas: Tensor  # (n,10) float64
    root_of: RootOf


def placed_rows(
    skel: SKEL,
    surfaces: Numbers,
    surface_map: SurfaceMap,
    identity: np.ndarray,
    shapes: IdentityShapes,
    config: FitConfig,
    *,
    root: SourceRoot | None = None,
    mask_weights: np.ndarray | None = None,
    vertex_weights: np.ndarray | None = None,
) -> PlacedRows:
    """Rows of `fit_skel_to_surface`, which says what the options are, before the fit."""
    surface_map.check_target(skel)
    device = skel.template.device
    meshes = _meshes(surfaces, surface_map, device)
    places = shapes.places(np.asarray(identity, np.int64))
    betas = torch.as_tensor(shapes.betas[places], device=device)
    recipe = config.resolved_recipe()
    if recipe.root_is_free and recipe.root_trust is None:
        weights = vertex_weights
        if weights is None:
            weights = map_weights(skel, surface_map, mask_weights)
        solver = solver_of(skel, None, config, weights)
        placed = place_surfaces(skel, solver, meshes, betas)
        return PlacedRows(solver, placed, betas, partial(placed.roots, skel))
    if root is None:
        raise ValueError(
            f"recipe {config.recipe!r} keeps the root of the source, which states none; bare "
            "vertices need recipe 'surface'"
        )
    solver = surface_solver(skel, surface_map, config, mask_weights, vertex_weights)
    offsets = torch.as_tensor(shapes.offsets[places], device=device)
    return _rooted(skel, meshes, betas, offsets, root, solver)


def _meshes(surfaces: Numbers, surface_map: SurfaceMap, device: torch.device) -> Meshes:
    """The surfaces with the map, nothing mapped yet. Raises ValueError for another topology."""
    given = torch.as_tensor(surfaces).detach().to(device).contiguous()
    if given.dtype not in (torch.float32, torch.float64):
        given = given.double()
    surface_map.check_shape(tuple(given.shape))
    return Meshes(given, surface_map.columns, surface_map.weights)


def _rooted(
    skel: SKEL, meshes: Meshes, betas: Tensor, offsets: Tensor, root: SourceRoot, solver: Solver
) -> PlacedRows:
    """Rows in the root frame that the source states; root angles and translation from it."""
    root = SourceRoot(*(part.to(betas) for part in root))
    placed = place_surfaces(skel, solver, meshes, betas)
    placed = placed.in_frame(root.orient, root.position, root.pelvis - offsets)

    def roots(rows: Tensor, poses: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
        some = SourceRoot(*(part[rows] for part in root))
        turned = some.orient @ root_rotation(skel, poses[:, :3])
        trans = stated_translation(skel, some, shapes, offsets[rows], poses[:, 46:49])
        return root_angles(skel, turned), trans

    return PlacedRows(solver, placed, betas, roots)
