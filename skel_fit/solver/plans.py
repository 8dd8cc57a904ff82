"""Recipes bound to a model pair: which parameters, vertices, limits and priors a stage has."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import numpy as np
import torch
from smplx import SMPL
from torch import Tensor

from skel_fit import anatomy, joint_limits
from skel_fit.anatomy import NUM_PARAMETERS
from skel_fit.recipe import FitConfig, Stage
from skel_fit.shape import shape_transfer
from skel_fit.skel import SKEL
from skel_fit.skeleton import numpy_of
from skel_fit.solver import tables
from skel_fit.solver.tables import Skin, SmplTree, StageTables, VertexSet


@dataclass(frozen=True)
class StagePlan:
    """A stage bound to a model pair."""

    stage: Stage
    tables: StageTables[np.ndarray]
    vertices: VertexSet


@dataclass(frozen=True)
class SmplSide(Skin):
    """What the solver needs of an SMPL model."""

    tree: SmplTree[np.ndarray]
    shape_transfer: tuple[Tensor, Tensor]  # B (10,10), b (10,) of `skel_fit.shape`

    @staticmethod
    def of(skel: SKEL, smpl: SMPL, dtype: torch.dtype) -> SmplSide:
        """Tables of a loaded model, on SKEL's device."""
        matrix, offset = shape_transfer(skel, smpl)
        basis = tables.basis_matrix(
            numpy_of(smpl.v_template),
            numpy_of(smpl.shapedirs)[:, :, :10],
            numpy_of(smpl.posedirs).T,
        )
        return SmplSide(
            tables.sparse_weights(numpy_of(smpl.lbs_weights), dtype),
            torch.as_tensor(basis, dtype=dtype).to(skel.device),
            np.arange(basis.shape[1]),
            tables.smpl_tables(smpl),
            (matrix.to(skel.device, torch.float64), offset.to(skel.device, torch.float64)),
        )


def bounds(config: FitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds (49,): the joint limits, and the trust region of the root."""
    lower, upper = stored_limits(config.limits)
    trust = config.resolved_recipe().root_trust
    if trust is not None:
        for part, size in ((slice(0, 3), trust.rotation), (slice(46, 49), trust.translation)):
            lower[part], upper[part] = -size, size
    return lower, upper


def stored_limits(name: joint_limits.LimitsName) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits (49,), rounded inwards: results are stored as float32, and the limits
    hold there too."""
    table = joint_limits.limits(name)
    free = np.full(NUM_PARAMETERS - 46, np.inf)
    lower = np.concatenate([table[:, 0], -free])
    upper = np.concatenate([table[:, 1], free])
    lower32, upper32 = lower.astype(np.float32), upper.astype(np.float32)
    lower32 = np.where(lower32 < lower, np.nextafter(lower32, np.float32(np.inf)), lower32)
    upper32 = np.where(upper32 > upper, np.nextafter(upper32, np.float32(-np.inf)), upper32)
    return lower32.astype(np.float64), upper32.astype(np.float64)


LEAST_WEIGHT = 1e-6
"""Share of the heaviest vertex that a weight of 0 still has: kernels divide by it."""


def checked_weights(weights: np.ndarray | None, count: int) -> np.ndarray | None:
    """Vertex weights (V,), the heaviest 1; None where all are equal, which is no weighting.

    Raises ValueError for another shape, weights that are negative or not finite, or all 0.
    """
    if weights is None:
        return None
    weights = np.asarray(weights, np.float64)
    if weights.shape != (count,):
        raise ValueError(f"vertex_weights: expected ({count},), found {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0.0 or weights.max() <= 0.0:
        raise ValueError(
            "vertex_weights: expected finite numbers of at least 0, one above 0, found "
            f"{weights.min():g} to {weights.max():g}"
        )
    if weights.min() == weights.max():
        return None
    return np.maximum(weights / weights.max(), LEAST_WEIGHT)


VertexSets = MutableMapping[tuple[str, bytes, bytes], VertexSet]
"""Tables of one SKEL model that were made: by dtype and device, vertices, masses."""


def stage_plans(
    skel: SKEL,
    smpl: SMPL | None,
    config: FitConfig,
    weights: np.ndarray | None = None,
    mask_weights: np.ndarray | None = None,
    made: VertexSets | None = None,
) -> tuple[StagePlan, ...]:
    """The stages of the recipe; stages that look at the same vertices share their tables.

    weights: (V,) of `checked_weights`, in every stage. mask_weights: (V,24) of SMPL's joints, for
    masks without `smpl`. made: tables of `skel` that are there, to which those made here are added.
    """
    made = {} if made is None else made
    smpl_weights = mask_weights if smpl is None else numpy_of(smpl.lbs_weights)
    lower, upper = bounds(config)
    prior = np.zeros(NUM_PARAMETERS)
    prior[list(anatomy.SPINE_DOFS)] = config.prior_spine
    prior[list(anatomy.SCAPULA_DOFS)] = config.prior_scapula
    dtype = getattr(torch, config.dtype)
    masses = np.ones(skel.template.shape[0]) if weights is None else weights
    plans: list[StagePlan] = []
    for stage in config.resolved_recipe().stages:
        seen = _seen_vertices(stage, smpl_weights, skel.template.shape[0])
        chosen = seen[:: stage.stride]
        own = _gathered(skel, seen, chosen, masses) if stage.represents else masses[chosen]
        key = (f"{dtype} {skel.device}", chosen.tobytes(), own.tobytes())
        vertices = made.get(key)
        if vertices is None:
            vertices = tables.vertex_set(skel, chosen, own, dtype, skel.device)
            made[key] = vertices
        joint_masses = np.zeros(24)
        joint_masses[list(stage.joints)] = stage.joint_weight / 72.0
        bound = StageTables(
            free=stage.free_parameters(),
            lower=lower,
            upper=upper,
            prior=prior,
            joint_masses=joint_masses,
            pair_first=vertices.pair_first,
            pair_second=vertices.pair_second,
        )
        plans.append(StagePlan(stage, bound, vertices))
    return tuple(plans)


_PER_WEIGHT = 0.05
"""m: how far apart two vertices of different bones, or with the mass of one vertex between them,
seem, so that each stands for its own kind."""


def _gathered(skel: SKEL, seen: np.ndarray, chosen: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Masses (c,) of the chosen vertices with those of all seen ones that are nearest to them in
    rest pose. What counts nothing stands for nobody."""
    from scipy.spatial import cKDTree  # slow to import, for few recipes

    template, weights = numpy_of(skel.template), numpy_of(skel.skin_weights)
    kind = np.concatenate((weights, masses[:, None]), axis=1)
    places = np.concatenate((template, _PER_WEIGHT * kind), axis=1)
    counts = np.flatnonzero(masses[chosen] > LEAST_WEIGHT)
    found = np.full(len(chosen), LEAST_WEIGHT)
    if len(counts):
        _, nearest = cKDTree(places[chosen[counts]]).query(places[seen])
        found[counts] += np.bincount(nearest, masses[seen], minlength=len(counts))
    return found


def _seen_vertices(stage: Stage, smpl_weights: np.ndarray | None, count: int) -> np.ndarray:
    """Numbers of the vertices that a stage's mask leaves."""
    mask = np.ones(count, bool)
    if stage.vertices is not None:
        if smpl_weights is None:
            raise ValueError(f"stage {stage.name}: its vertex mask needs an SMPL model")
        mask = stage.vertices.select(smpl_weights)
    seen = np.nonzero(mask)[0]
    if seen.size == 0:
        raise ValueError(f"stage {stage.name}: its vertex mask selects no vertex")
    return seen
