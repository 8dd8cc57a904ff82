"""Shapes of people who are given as other bodies: betas of SKEL, one set for each identity.

Shape decides more than any correspondence: betas 0 in place of a person's own move joint angles by
degrees. So each identity gets one shape before its rows are fitted, from its rest mesh where the
body has one, else from some of its posed meshes, and all its rows share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skel_fit.bodies.weights import surface_weights
from skel_fit.errors import ModelFileError
from skel_fit.fit import solver_of
from skel_fit.recipe import FitConfig
from skel_fit.skel import NUM_BETAS, SKEL
from skel_fit.solver.crew import rows_over_threads
from skel_fit.solver.joint_shape import solve_with_shapes
from skel_fit.solver.surfaces import place_surfaces
from skel_fit.strict_npz import DAMAGE, read_strict, write_strict

MOST_MESHES = 16
"""Posed meshes of an identity that its shape is found from, at most."""
GENDERS = ("male", "female")
UNKNOWN = "unknown"
"""Gender of an identity for which both SKEL bodies are tried."""
_LARGEST = 1 << 30
_KINDS = {
    "names": ("<i8", (None,)),
    "genders": ("U", (None,)),
    "betas": ("<f8", (None, NUM_BETAS)),
    "offsets": ("<f8", (None, 3)),
    "errors": ("<f8", (None, 2)),
    "meshes": ("<i8", (None,)),
    "rounds": ("<i8", (None,)),
}


@dataclass(frozen=True)
class IdentityShapes:
    """Shapes of k identities, in the order of their numbers.

    names: (k,) int64, rising; genders: (k,) text, male or female: the SKEL body that is nearer, or
    the one that was asked for; betas: (k, 10) float64 of it; offsets: (k, 3) m, SKEL's translation
    on the rest mesh of the source, 0 for posed meshes; errors: (k, 2) m, mean vertex error of the
    shape on its own meshes for male and female, -1 for a gender that was not tried; meshes: (k,)
    how many meshes each rests on; rounds: (k,) accepted steps.
    """

    names: np.ndarray
    genders: np.ndarray
    betas: np.ndarray
    offsets: np.ndarray
    errors: np.ndarray
    meshes: np.ndarray
    rounds: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.names)
        if any(len(getattr(self, part.name)) != count for part in fields(self)):
            raise ValueError("shapes of identities with columns of different lengths")
        if (np.diff(self.names) <= 0).any():
            raise ValueError("numbers of identities that do not rise")
        if not np.isin(self.genders, GENDERS).all():
            raise ValueError("a gender that is not male or female")

    @property
    def error(self) -> np.ndarray:
        """(k,) m: mean vertex error of the chosen gender."""
        return self.errors[np.arange(len(self.names)), (self.genders == "female").astype(int)]

    def places(self, identity: np.ndarray) -> np.ndarray:
        """(n,) where each identity stands. Raises ValueError for one without a shape."""
        found = np.searchsorted(self.names, identity)
        inside = np.minimum(found, max(len(self.names) - 1, 0))
        if not len(self.names) or not np.array_equal(self.names[inside], identity):
            raise ValueError("rows of an identity that has no shape")
        return inside

    def known(self, identity: np.ndarray) -> np.ndarray:
        """(n,) bool: which identities have a shape."""
        return np.isin(identity, self.names)

    @staticmethod
    def empty() -> IdentityShapes:
        """Of nobody."""
        none = np.zeros(0, np.int64)
        return IdentityShapes(
            none, np.zeros(0, "<U6"), np.zeros((0, NUM_BETAS)), np.zeros((0, 3)),
            np.zeros((0, 2)), none, none,
        )  # fmt: skip

    @staticmethod
    def joined(parts: list[IdentityShapes]) -> IdentityShapes:
        """Parts one after the other, in the order of numbers."""
        columns = {
            part.name: np.concatenate([getattr(own, part.name) for own in parts])
            for part in fields(IdentityShapes)
        }
        order = np.argsort(columns["names"], kind="stable")
        return IdentityShapes(**{name: values[order] for name, values in columns.items()})

    def digest(self) -> str:
        """SHA-256 of the content."""
        digest = hashlib.sha256()
        for part in fields(self):
            values = getattr(self, part.name)
            kind = "<U6" if part.name == "genders" else values.dtype.str
            data = np.ascontiguousarray(values, kind).tobytes()
            digest.update(f"{part.name} {kind} {values.shape}\n".encode() + data)
        return digest.hexdigest()

    def take(self, places: np.ndarray) -> IdentityShapes:
        """Some identities."""
        return IdentityShapes(**{p.name: getattr(self, p.name)[places] for p in fields(self)})

    def write(self, path: Path) -> None:
        """Write as npz, whole or not at all; same shapes, same bytes. Raises OSError."""
        content = {part.name: getattr(self, part.name) for part in fields(self)}
        write_strict(path, content | {"genders": self.genders.astype("<U6")})

    @staticmethod
    def read(path: Path) -> IdentityShapes:
        """Read what `write` wrote, of anybody. Raises ModelFileError."""
        try:
            return IdentityShapes(**read_strict(path, _KINDS, _LARGEST))
        except DAMAGE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            raise ModelFileError(
                f"{path}: no shapes of identities of hmr-skel, or damaged ({reason}); remove it "
                "and convert again"
            ) from error


@rows_over_threads()
def fit_identity(
    skels: Mapping[str, SKEL],
    meshes: Tensor,
    identity: np.ndarray,
    genders: np.ndarray,
    *,
    at_rest: bool,
    config: FitConfig | None = None,
    vertex_weights: np.ndarray | None = None,
) -> IdentityShapes:
    """The shape of each identity from its meshes.

    skels: by gender; meshes: (m, 6890, 3) float64, metres, in SKEL's topology, finite; identity:
    (m,) int64; genders: (m,) male, female or unknown (both are tried, the nearer one is taken);
    at_rest: one rest mesh for each identity, whose offset is kept; vertex_weights: (6890,), None:
    those of `surface_weights`. An identity's shape depends on its own meshes alone. Raises
    ValueError where shapes do not fit.
    """
    identity = np.asarray(identity, np.int64)
    genders = np.asarray(genders)
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
        found = _shaped(skel, meshes[rows], identity[rows], config, vertex_weights)
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
    placed = place_surfaces(skel, meshes, mean)
    people = torch.as_tensor(identity, device=meshes.device)
    found = solve_with_shapes(solver, placed.goal(solver.dtype), mean, people)
    _, trans = placed.roots(skel, found.solution.poses, mean, found.betas)
    return _Shaped(
        *(
            part.cpu().numpy()
            for part in (found.betas, trans, found.solution.error_mean, found.rounds)
        )
    )
