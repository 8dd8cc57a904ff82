"""Shapes of people who are given as other bodies: betas of SKEL, one set for each identity.

Shape decides more than any correspondence: betas 0 in place of a person's own move joint angles by
degrees. So each identity gets one shape before its rows are fitted, from its rest mesh where the
body has one, else from some of its posed meshes, and all its rows share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skel_fit.anatomy import NUM_BETAS
from skel_fit.bodies.identity_shapes import GENDERS, IdentityShapes
from skel_fit.bodies.weights import surface_weights
from skel_fit.crew import rows_over_threads
from skel_fit.fit import solver_of
from skel_fit.inputs import Numbers
from skel_fit.recipe import FitConfig
from skel_fit.skel import SKEL
from skel_fit.solver.joint_shape import solve_with_shapes
from skel_fit.solver.surfaces import Meshes, place_surfaces

MOST_MESHES = 16
"""Posed meshes of an identity that its shape is found from, at most."""
UNKNOWN = "unknown"
"""Gender of an identity for which both SKEL bodies are tried."""


@rows_over_threads()
def fit_identity(
    skels: Mapping[str, SKEL],
    meshes: Numbers,
    identity: np.ndarray,
    genders: np.ndarray,
    *,
    at_rest: bool,
    config: FitConfig | None = None,
    vertex_weights: np.ndarray | Mapping[str, np.ndarray] | None = None,
) -> IdentityShapes:
    """The shape of each identity from its meshes.

    skels: by gender; meshes: (m, 6890, 3), metres, in SKEL's topology, finite; identity:
    (m,) int64; genders: (m,) male, female or unknown (both are tried, the nearer one is taken);
    at_rest: one rest mesh for each identity, whose offset is kept; vertex_weights: (6890,), also by
    the gender of SKEL; None: those of `surface_weights`. An identity's shape depends on its own
    meshes alone. Raises ValueError where shapes do not fit.
    """
    identity = np.asarray(identity, np.int64)
    genders, meshes = np.asarray(genders), torch.as_tensor(meshes)
    if meshes.ndim != 3 or len(meshes) != len(identity) or len(genders) != len(identity):
        raise ValueError(
            f"meshes {tuple(meshes.shape)}, identity {identity.shape}, genders {genders.shape}: "
            "expected (m, 6890, 3), (m,) and (m,)"
        )
    names, first, counts = np.unique(identity, return_index=True, return_counts=True)
    if at_rest and (counts != 1).any():
        raise ValueError("rest meshes: expected one for each identity")
    if not (genders == genders[first][np.searchsorted(names, identity)]).all():
        raise ValueError("meshes of one identity with different genders")
    k = len(names)
    errors, betas = np.full((k, 2), -1.0), np.zeros((2, k, NUM_BETAS))
    offsets, rounds = np.zeros((2, k, 3)), np.zeros((2, k), np.int64)
    for index, gender in enumerate(GENDERS):
        rows = np.flatnonzero((genders == gender) | (genders == UNKNOWN))
        if not len(rows):
            continue
        skel = skels[gender]
        weights = vertex_weights[gender] if isinstance(vertex_weights, Mapping) else vertex_weights
        found = _shaped(skel, meshes[rows], identity[rows], config, weights)
        own, start, place = np.unique(identity[rows], return_index=True, return_inverse=True)
        at = np.searchsorted(names, own)
        sums = np.bincount(place, found.error) / np.bincount(place)
        errors[at, index] = sums
        betas[index, at] = found.betas[start]
        rounds[index, at] = found.rounds[start]
        if at_rest:
            offsets[index, at] = found.trans[start]
    tried = np.where(errors < 0.0, np.inf, errors)
    chosen = tried.argmin(axis=1)
    everyone = np.arange(k)
    return IdentityShapes(
        names=names,
        genders=np.asarray(GENDERS)[chosen],
        betas=betas[chosen, everyone],
        offsets=offsets[chosen, everyone],
        errors=errors,
        meshes=counts.astype(np.int64),
        rounds=rounds[chosen, everyone],
    )


@dataclass(frozen=True)
class _Shaped:
    betas: np.ndarray  # (m,10)
    trans: np.ndarray  # (m,3)
    error: np.ndarray  # (m,)
    rounds: np.ndarray  # (m,)


def _shaped(
    skel: SKEL,
    meshes: Tensor,
    identity: np.ndarray,
    config: FitConfig | None,
    vertex_weights: np.ndarray | None,
) -> _Shaped:
    """Shapes of one gender's meshes, the root free."""
    options = (config or FitConfig()).model_copy(update={"recipe": "surface", "betas": "copy"})
    weights = surface_weights(skel) if vertex_weights is None else vertex_weights
    solver = solver_of(skel, None, options, weights)
    meshes = meshes.to(skel.template.device, torch.float64)
    mean = torch.zeros(len(meshes), NUM_BETAS, dtype=torch.float64, device=meshes.device)
    placed = place_surfaces(skel, solver, Meshes.same(meshes.contiguous()), mean)
    people = torch.as_tensor(identity, device=meshes.device)
    found = solve_with_shapes(solver, placed.goal(solver), mean, people)
    everything = torch.arange(len(meshes), device=meshes.device)
    _, trans = placed.roots(skel, everything, found.solution.poses, found.betas)
    return _Shaped(
        *(
            part.cpu().numpy()
            for part in (found.betas, trans, found.solution.error_mean, found.rounds)
        )
    )
