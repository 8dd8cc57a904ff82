"""`SourceBody`: what the fit needs of a body that is not SMPL; bodies of bare vertices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

Parameters = Mapping[str, np.ndarray]
"""Parameters of n rows by name, (n, ...) each."""


class SourceRoot(NamedTuple):
    """The root that a source states, float64: posed = orient (x - pelvis) + position for vertices x
    of its root frame, where the root is not turned and not moved."""

    orient: Tensor  # (n,3,3)
    pelvis: Tensor  # (n,3) m, rest pelvis joint
    position: Tensor  # (n,3) m, the pelvis joint in the world

    def unposed(self, vertices: Tensor) -> Tensor:
        """Posed vertices (n,V,3) in the root frame."""
        return (vertices - self.position[:, None]) @ self.orient + self.pelvis[:, None]

    def turned(self, turn: Tensor) -> SourceRoot:
        """The same bodies in other axes: `turn` (3,3) for all, or (n,3,4) a rotation and a shift
        in metres a row."""
        turn = turn.to(self.orient)
        rotation = turn[..., :3]
        position = (rotation @ self.position[:, :, None])[:, :, 0]
        if turn.ndim == 3:
            position = position + turn[:, :, 3]
        return SourceRoot(rotation @ self.orient, self.pelvis, position)


class SourceBody(Protocol):
    """A body model, or bare meshes, whose surface a `SurfaceMap` carries to SKEL's topology.

    name: as maps call it. vertices: how many. faces: (F, 3), None where nobody knows them.
    states_root: whether its parameters say where the pelvis is and how it is turned.
    has_rest: whether it knows a rest mesh of a shape.
    """

    @property
    def name(self) -> str: ...
    @property
    def vertices(self) -> int: ...
    @property
    def faces(self) -> np.ndarray | None: ...
    @property
    def states_root(self) -> bool: ...
    @property
    def has_rest(self) -> bool: ...

    def surface(self, parameters: Parameters) -> Tensor:
        """Posed vertices (n, V, 3), metres, in the frame of the parameters: float64, or bare
        vertices of the type that they are stored in."""

    def rest(self, parameters: Parameters) -> Tensor:
        """Vertices (n, V, 3) of the shapes in the rest pose. Raises ValueError: it has none."""

    def root(self, parameters: Parameters) -> SourceRoot:
        """Raises ValueError where `states_root` is false."""

    def mask_weights(self) -> np.ndarray | None:
        """(V, 24) skinning weights summed up by SMPL's joints, for recipes with vertex masks; None:
        it has none."""


@dataclass(frozen=True)
class MeshBody:
    """Bare vertices: parameter `vertices` (n, V, 3), metres."""

    name: str
    vertices: int
    faces: np.ndarray | None = None
    states_root: bool = False
    has_rest: bool = False

    def surface(self, parameters: Parameters) -> Tensor:
        found = np.asarray(parameters["vertices"])
        if found.shape[1:] != (self.vertices, 3):
            raise ValueError(
                f"vertices of shape {found.shape}; {self.name} has (n, {self.vertices}, 3)"
            )
        return torch.as_tensor(found)

    def rest(self, parameters: Parameters) -> Tensor:
        raise ValueError(f"{self.name}: bare vertices know no rest pose")

    def root(self, parameters: Parameters) -> SourceRoot:
        raise ValueError(f"{self.name}: bare vertices state no root")

    def mask_weights(self) -> None:
        return None
