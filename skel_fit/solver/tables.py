"""Constant tables of the reduced solver, made once for a (SKEL, SMPL) pair.

A *vertex set* is the part of the skin that a stage looks at, with everything that depends on it:
sparse weights, the shape-and-pose basis, vertex masses and the moment basis of docs/solver.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple

import numpy as np
import torch
from smplx import SMPL

from skel_fit import anatomy
from skel_fit.kinematics import Array
from skel_fit.skel import SKEL
from skel_fit.skeleton import numpy_of

LANES = 16
"""Rows that the vertex kernels treat side by side; block sizes are padded to a multiple of it."""

_DAMPING = 1e-4
"""Of a search's first step."""


class SmplTree(NamedTuple, Generic[Array]):
    """What kinematics needs of SMPL."""

    parents: Array  # (24,)
    joint_template: Array  # (24, 3)
    joint_directions: Array  # (24, 3, K)


class StageTables(NamedTuple, Generic[Array]):
    """What the inner solver needs of a stage (see `recipe.Stage`)."""

    free: Array  # (49,) bool
    lower: Array  # (49,)
    upper: Array  # (49,)
    prior: Array  # (49,) m^2/rad^2
    joint_masses: Array  # (24,)
    pair_first: Array  # (P,) bones that share vertices, first <= second
    pair_second: Array  # (P,)


class SparseWeights(NamedTuple, Generic[Array]):
    """Skinning weights row by row: bones[first[v]:first[v+1]] and weights[...]."""

    first: Array  # (V+1,)
    bones: Array
    weights: Array


class SearchState(NamedTuple, Generic[Array]):
    """Where each row's search stands, float64. `poses` is the candidate, best_* the best so far."""

    poses: Array  # (n, 49)
    best_poses: Array  # (n, 49)
    best_energy: Array  # (n,) m^2, vertex + joint + prior terms
    best_moments: Array  # (n, 24, 12)
    best_corrective: Array  # (n, 207)
    damping: Array  # (n,)
    failures: Array  # (n,) int64 candidates that were worse than the best
    step_size: Array  # (n,) rad (m for the translation)
    steps: Array  # (n,) int64 Levenberg-Marquardt steps done

    @staticmethod
    def begin(poses: torch.Tensor) -> SearchState[torch.Tensor]:
        """A search that starts at poses (n,49)."""
        n, one = poses.shape[0], poses.new_zeros(poses.shape[0])
        count = torch.zeros(n, dtype=torch.int64, device=poses.device)
        return SearchState(
            poses=poses.clone(),
            best_poses=poses.clone(),
            best_energy=one + torch.inf,
            best_moments=poses.new_zeros(n, 24, 12),
            best_corrective=poses.new_zeros(n, 207),
            damping=one + _DAMPING,
            failures=count,
            step_size=one.clone(),
            steps=count.clone(),
        )

    def restart(self) -> None:
        """Forget what is known of the objective, which is another one from here on: the next
        candidate is the best."""
        parts: Any = self
        parts.best_energy.fill_(torch.inf)
        parts.damping.fill_(_DAMPING)
        parts.failures.zero_()

    def unsettled(self, active: torch.Tensor, tolerance: float) -> torch.Tensor:
        """(n,) bool: active rows that moved by more than the tolerance, not failed thrice."""
        parts: Any = self
        found: torch.Tensor = active & (parts.step_size > tolerance) & (parts.failures < 3)
        return found

    def rows(self, index: torch.Tensor) -> SearchState[Array]:
        """A copy of some rows."""
        parts: Any = self
        return SearchState(*(part[index] for part in parts))


class Chain(NamedTuple):
    """Frames of a block-tridiagonal system, eliminated one after the other (`eliminate` of the
    kernels), float64."""

    factors: np.ndarray  # (n,f,f) upper Cholesky factors U
    sides: np.ndarray  # (n,f,f) U^-T times the block beside
    values: np.ndarray  # (n,f) U^-T times the right side


@dataclass(frozen=True)
class Skin:
    """V vertices that bones, shape and correctives move; dtype of the fit, on the fit's device."""

    skinning: SparseWeights[np.ndarray]
    basis: torch.Tensor  # (3V, 1+K+207): x + o = basis @ [1, betas, features]
    lines: np.ndarray  # (C,) columns of the basis whose feature is not 0 in all poses

    @cached_property
    def packed(self) -> np.ndarray:
        """(3V, C) those columns, on the host."""
        return np.ascontiguousarray(self.basis.cpu().numpy()[:, self.lines])


@dataclass(frozen=True)
class VertexSet(Skin):
    """A part of SKEL's skin with its tables."""

    indices: np.ndarray  # (V,) vertex ids
    rows: torch.Tensor  # (V,) the same on the fit's device
    masses: np.ndarray  # (V,) sum 1
    pair_first: np.ndarray
    pair_second: np.ndarray
    moment_basis: torch.Tensor  # (S, P*10), S = (K+1)(K+2)/2

    @cached_property
    def alike(self) -> bool:
        """Whether all vertices count the same."""
        return bool((self.masses == self.masses[0]).all())

    @property
    def pose_basis(self) -> torch.Tensor:
        """(3V, 207) the pose-corrective part of `basis`."""
        return self.basis[:, -207:]


def sparse_weights(weights: np.ndarray, dtype: torch.dtype) -> SparseWeights[np.ndarray]:
    """Sparse rows of a dense (V, 24) weight matrix; every row has at least one entry."""
    rows, bones = np.nonzero(weights)
    counts = np.bincount(rows, minlength=weights.shape[0])
    if (counts == 0).any():
        raise ValueError(f"vertex {int(np.argmin(counts))} has no skinning weight")
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return SparseWeights(first, bones.astype(np.int64), weights[rows, bones].astype(_numpy(dtype)))


def smpl_tables(smpl: SMPL) -> SmplTree[np.ndarray]:
    """Kinematic tables of a loaded smplx SMPL layer (first 10 betas)."""
    template, directions = numpy_of(smpl.v_template), numpy_of(smpl.shapedirs)[:, :, :10]
    regressor = numpy_of(smpl.J_regressor)
    parents = numpy_of(smpl.parents).astype(np.int64)
    parents[0] = -1
    return SmplTree(
        parents=parents,
        joint_template=regressor @ template,
        joint_directions=np.einsum("jv,vck->jck", regressor, directions),
    )


def basis_matrix(template: np.ndarray, shapedirs: np.ndarray, posedirs: np.ndarray) -> np.ndarray:
    """(3V, 1+K+207) matrix that maps [1, betas, features] to shaped vertices with correctives."""
    count = template.shape[0]
    return np.concatenate(
        [
            template.reshape(-1, 1),
            shapedirs.reshape(3 * count, -1),
            posedirs.reshape(3 * count, -1),
        ],
        axis=1,
    )


def vertex_set(
    skel: SKEL,
    indices: np.ndarray,
    masses: np.ndarray,
    dtype: torch.dtype,
    device: torch.device,
) -> VertexSet:
    """Tables of the given vertices with the given masses (any positive scale)."""
    weights = numpy_of(skel.skin_weights)[indices]
    template, shapedirs = numpy_of(skel.template)[indices], numpy_of(skel.shapedirs)[indices]
    posedirs = numpy_of(skel.posedirs)[indices]
    masses = masses / masses.sum()
    first, second, moments = moment_basis(weights, masses, template, shapedirs)
    basis = basis_matrix(template, shapedirs, posedirs)
    moving = np.repeat(np.asarray(anatomy.POSE_FEATURE_SOURCES) >= 0, 9)
    shaping = np.ones(basis.shape[1] - moving.size, bool)
    return VertexSet(
        skinning=sparse_weights(weights, dtype),
        basis=torch.as_tensor(basis, dtype=dtype).to(device),
        lines=np.flatnonzero(np.concatenate([shaping, moving])),
        indices=indices,
        rows=torch.as_tensor(indices).to(device),
        masses=masses.astype(_numpy(dtype)),
        pair_first=first,
        pair_second=second,
        moment_basis=torch.as_tensor(moments, dtype=torch.float64).to(device),
    )


def shape_products(betas: torch.Tensor) -> torch.Tensor:
    """(n, S) products b_a b_c, a <= c, of b = [1, betas]: the coordinates of `moment_basis`."""
    b = torch.cat([torch.ones_like(betas[:, :1]), betas], dim=1)
    rows, columns = torch.triu_indices(b.shape[1], b.shape[1], device=b.device)
    return b[:, rows] * b[:, columns]


def moment_basis(
    weights: np.ndarray, masses: np.ndarray, template: np.ndarray, shapedirs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of bones that share vertices and the moments M_kl as a quadratic form of the shape.

    M_kl(betas) = sum_v m w_vk w_vl [x;1][x;1]^T with x = template + shapedirs betas; returned as
    (S, P*10): for each product of `shape_products` the ten numbers xx xy xz x1 yy yz y1 zz z1 11.
    """
    size = shapedirs.shape[2] + 1
    components = np.zeros((size, template.shape[0], 4))  # x as a linear form of [1, betas]
    components[0, :, :3], components[0, :, 3] = template, 1.0
    components[1:, :, :3] = shapedirs.transpose(2, 0, 1)
    shared = (weights > 0).T.astype(float) @ (weights > 0)
    first, second = np.nonzero(np.triu(shared))
    diagonal = np.arange(24)
    missing = np.setdiff1d(diagonal, first[first == second])
    first, second = np.concatenate([first, missing]), np.concatenate([second, missing])
    rows, columns = np.triu_indices(size)
    packed_rows, packed_columns = np.triu_indices(4)
    out = np.zeros((rows.size, first.size, 10))
    for n, (k, l) in enumerate(zip(first, second, strict=True)):
        shared_mass = masses * weights[:, k] * weights[:, l]
        used = np.nonzero(shared_mass)[0]
        if used.size == 0:
            continue
        flat = components[:, used].transpose(1, 0, 2).reshape(used.size, -1)
        gram = (flat * shared_mass[used, None]).T @ flat
        gram = gram.reshape(size, 4, size, 4).transpose(0, 2, 1, 3)
        symmetric = gram + gram.transpose(1, 0, 2, 3)  # both orders of a product of two shapes
        symmetric[np.arange(size), np.arange(size)] /= 2.0
        out[:, n] = symmetric[rows, columns][:, packed_rows, packed_columns]
    return first.astype(np.int64), second.astype(np.int64), out.reshape(rows.size, -1)


def regions(skel: SKEL) -> np.ndarray:
    """(6890,) index into REGIONS of each vertex, by its heaviest bone."""
    return np.asarray(anatomy.REGION_OF_JOINT, np.int64)[numpy_of(skel.skin_weights).argmax(axis=1)]


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32
