"""SKEL and SMPL bodies as moving surfaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skel_fit import kinematics
from skel_fit.anatomy import SMPL_PARENTS
from skel_fit.rotations import axis_angle_to_matrix
from skel_fit.skel import SKEL
from stages.drawing.viewer.encoding import Surface, thinned

MOST_BONE_VERTICES = 36_000
"""A finer bone mesh is thinned: a page shall stay small."""
_CHUNK = 16


class PosedFrames:
    """Vertices (F, V, 3) float32 that are posed when they are asked for, a few frames at a time:
    those of all frames would be half a megabyte each. Reading on through the frames poses each
    once.

    blocks: rows of frames that are posed together; pose: number of a block -> its vertices.
    """

    def __init__(
        self, blocks: Sequence[NDArray[np.int64]], count: int, pose: Callable[[int], NDArray]
    ) -> None:
        frames = sum(len(rows) for rows in blocks)
        self.shape: tuple[int, ...] = (frames, count, 3)
        self._block, self._place = np.empty((2, frames), np.int64)
        for number, rows in enumerate(blocks):
            self._block[rows], self._place[rows] = number, np.arange(len(rows))
        self._pose = pose
        self._held: tuple[int, NDArray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frame: int, /) -> NDArray[np.float32]:
        block = int(self._block[frame])
        if self._held[0] != block:
            self._held = block, self._pose(block)
        return np.asarray(self._held[1][self._place[frame]], np.float32)


@dataclass(frozen=True)
class Parameters:
    """Poses (F, 46 or 72) radians, betas (F, 10) and translations (F, 3) metres of F frames, and
    the gender of each frame's model."""

    poses: NDArray[np.floating]
    betas: NDArray[np.floating]
    transl: NDArray[np.floating]
    genders: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.poses)


def skel_surfaces(models: dict[str, SKEL], given: Parameters) -> list[Surface]:
    """Skin and bones.

    models: by gender. Raises ValueError if frames of two genders have bone meshes that differ.
    """
    first = models[given.genders[0]]
    if any(
        model.skeleton_faces.shape != first.skeleton_faces.shape
        or bool((model.skeleton_faces != first.skeleton_faces).any())
        for model in models.values()
    ):
        raise ValueError("male and female bone meshes differ; view rows of one gender at a time")
    frames, parts = len(given), _parts(given.genders)
    rotations, translations = np.empty((frames, 24, 3, 3)), np.empty((frames, 24, 3))
    for gender, rows in parts:
        model = models[gender]
        poses, betas, transl = _tensors(given, rows, model.template)
        with torch.no_grad():
            identity = model.shape(betas)
            turned, positions, _ = model.bone_transforms(poses, identity)
            places = positions + transl[:, None]
            affine = kinematics.skinning_transforms(turned, places, identity.joints)
        rotations[rows], translations[rows] = affine[..., :3].numpy(), affine[..., 3].numpy()

    def posed(block: int, *, skeleton: bool) -> NDArray:
        gender, rows = parts[block]
        model = models[gender]
        with torch.no_grad():
            output = model(*_tensors(given, rows, model.template), skeleton=skeleton)
        vertices = output.skeleton_vertices if skeleton else output.skin_vertices
        found: NDArray = vertices.numpy()
        return found

    def bones_of(block: int) -> NDArray:
        return posed(block, skeleton=True)[:, kept]

    blocks = [rows for _, rows in parts]
    weights = first.skeleton_weights.numpy()
    kept, faces = thinned(
        posed(0, skeleton=True)[0], first.skeleton_faces.numpy(), weights.argmax(axis=1),
        MOST_BONE_VERTICES,
    )  # fmt: skip
    skin = PosedFrames(blocks, len(first.template), lambda block: posed(block, skeleton=False))
    bones = PosedFrames(blocks, len(kept), bones_of)
    return [
        Surface("skin", skin, rotations, translations, first.skin_weights.numpy(),
                first.faces.numpy()),
        Surface("bones", bones, rotations, translations, weights[kept], faces),
    ]  # fmt: skip


def smpl_surface(models: dict[str, Any], given: Parameters) -> Surface:
    """The target.

    models: SMPL models by gender.
    """
    first = models[given.genders[0]]
    frames = len(given)
    vertices = np.empty((frames, first.v_template.shape[0], 3), np.float32)
    rotations, translations = np.empty((frames, 24, 3, 3)), np.empty((frames, 24, 3))
    for gender, rows in _parts(given.genders):
        model = models[gender]
        poses, betas, transl = _tensors(given, rows, model.v_template)
        with torch.no_grad():
            posed = model(
                betas=betas, global_orient=poses[:, :3], body_pose=poses[:, 3:], transl=transl
            )
            rest = model(
                betas=betas,
                global_orient=torch.zeros_like(poses[:, :3]),
                body_pose=torch.zeros_like(poses[:, 3:]),
            )
        resting = rest.joints[:, :24]
        local = axis_angle_to_matrix(poses.view(-1, 24, 3))
        offsets = kinematics.rest_offsets(resting, SMPL_PARENTS)
        turned, joints = kinematics.chain(local, offsets, SMPL_PARENTS)
        affine = kinematics.skinning_transforms(turned, joints + transl[:, None], resting)
        vertices[rows] = posed.vertices.numpy()
        rotations[rows], translations[rows] = affine[..., :3].numpy(), affine[..., 3].numpy()
    faces = np.asarray(first.faces, dtype=np.int64)
    return Surface("target", vertices, rotations, translations, first.lbs_weights.numpy(), faces)


def _parts(genders: Sequence[str]) -> list[tuple[str, NDArray[np.int64]]]:
    """Frames of one gender, a few at a time."""
    found = []
    for gender in sorted(set(genders)):
        rows = np.flatnonzero(np.array(genders) == gender)
        found += [(gender, rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
    return found


def _tensors(given: Parameters, rows: NDArray, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = (given.poses[rows], given.betas[rows], given.transl[rows])
    poses, betas, transl = (torch.as_tensor(np.asarray(v), dtype=like.dtype) for v in values)
    return poses, betas, transl
