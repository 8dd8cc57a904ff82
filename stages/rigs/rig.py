"""A moving SKEL body as a tree of 24 joints with surfaces bound to them.

The rest pose is SKEL's zero pose of the mean shape of the frames; every joint's rest frame is
parallel to the body's axes (x left, y up, z forward), so that a local rotation is SKEL's R_i.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from skel_fit.skel import SKEL
from stages.drawing.viewer.bodies import Parameters, skel_surfaces
from stages.drawing.viewer.encoding import Surface, whole


@dataclass(frozen=True)
class Rig:
    """A body in motion; world axes are those of the frames unless it has been `turned`.

    parents: (24,) -1 for the root; rest: (24, 3) joints of the rest pose; rotations: (F, 24, 3, 3)
    and positions: (F, 24, 3) of the joints in the world; skin, bones: surfaces in the same world;
    rate: frames a second.
    """

    parents: tuple[int, ...]
    rest: NDArray[np.float64]
    rotations: NDArray[np.float64]
    positions: NDArray[np.float64]
    skin: Surface
    bones: Surface
    rate: float

    def __len__(self) -> int:
        return len(self.rotations)

    def local(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rotations (F, 24, 3, 3) and translations (F, 24, 3) of each joint in its parent; the
        root's are those in the world."""
        rotations, translations = self.rotations.copy(), self.positions.copy()
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                back = self.rotations[:, parent].transpose(0, 2, 1)
                rotations[:, joint] = back @ self.rotations[:, joint]
                step = self.positions[:, joint] - self.positions[:, parent]
                translations[:, joint] = np.einsum("fij,fj->fi", back, step)
        return rotations, translations

    def turned(self, turn: NDArray[np.float64]) -> Rig:
        """The same motion seen in axes turned by the rotation `turn` (3, 3)."""

        def moved(surface: Surface) -> Surface:
            return replace(
                surface,
                vertices=(whole(surface.vertices) @ turn.T).astype(np.float32),
                rotations=turn @ surface.rotations,
                translations=surface.translations @ turn.T,
            )

        return replace(
            self,
            rotations=turn @ self.rotations,
            positions=self.positions @ turn.T,
            skin=moved(self.skin),
            bones=moved(self.bones),
        )


def rig_of(models: dict[str, SKEL], given: Parameters, rate: float) -> Rig:
    """Pose a body over time. models: SKEL by gender, float64."""
    skin, bones = (
        replace(surface, vertices=whole(surface.vertices))
        for surface in skel_surfaces(models, given)
    )
    model = models[given.genders[0]]
    betas = torch.as_tensor(given.betas.mean(axis=0, keepdims=True), dtype=model.template.dtype)
    with torch.no_grad():
        rest = model.shape(betas).joints[0].numpy().astype(np.float64)
    # A joint's place follows from its bone's transform: it is where the rest joint goes, except
    # that spine and scapula also shift; the transforms hold that shift.
    positions = np.einsum("fkij,kj->fki", skin.rotations, rest) + skin.translations
    parents = tuple(-1 if k == 0 else int(p) for k, p in enumerate(model.parents))
    return Rig(parents, rest, skin.rotations, positions, skin, bones, rate)


def strongest(weights: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """The `most` largest weights of each vertex, the rest left out, rows summing to one."""
    result = np.zeros_like(weights)
    rows = np.arange(len(weights))[:, None]
    chosen = np.argsort(-weights, axis=1, kind="stable")[:, :most]
    result[rows, chosen] = weights[rows, chosen]
    return result / result.sum(axis=1, keepdims=True)
