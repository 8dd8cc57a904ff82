"""SMPL-H and SMPL-X from the users' own model files: parameters to surfaces, by linear skinning.

Parameters, all axis-angle in radians and (n, ...): `global_orient` 3, `body_pose` 63, `betas`,
`transl` 3 m; optional `jaw_pose`, `leye_pose`, `reye_pose` 3 each and `expression` (SMPL-X),
`left_hand_pose` and `right_hand_pose` 45 each. What is missing is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from skel_fit.bodies.source_body import Parameters, SourceRoot
from skel_fit.kinematics import chain, pose_features, rest_offsets, skinning_transforms
from skel_fit.model_files import FamilyArrays, load_family
from skel_fit.rotations import axis_angle_to_matrix

Name = Literal["smplh", "smplx"]
FAMILY: tuple[Name, ...] = ("smplh", "smplx")
_BLOCK = 16  # rows at a time, always so many: no row depends on the others
_ARMS_LEFT, _ARMS_RIGHT, _HEAD = 22, 23, 15
_POSE = {
    "smplx": (
        ("global_orient", 1), ("body_pose", 21), ("jaw_pose", 1), ("leye_pose", 1),
        ("reye_pose", 1), ("left_hand_pose", 15), ("right_hand_pose", 15),
    ),
    "smplh": (
        ("global_orient", 1), ("body_pose", 21), ("left_hand_pose", 15), ("right_hand_pose", 15),
    ),
}  # fmt: skip
_HANDS = ("left_hand_pose", "right_hand_pose")
FLAT_HAND = "flat_hand_mean"
"""Parameter (n,) bool: hand poses count from a flat hand (true, also where it is missing), not
from the mean hand of the model file."""


@dataclass(frozen=True)
class FamilyBody:
    """SMPL-H or SMPL-X of one gender."""

    arrays: FamilyArrays
    states_root: bool = True
    has_rest: bool = True

    @staticmethod
    def load(path: Path, name: Name, gender: str) -> FamilyBody:
        """From the file in a models folder. Raises ModelFileError."""
        return FamilyBody(load_family(path, name, gender))

    @property
    def name(self) -> str:
        return self.arrays.name

    @property
    def vertices(self) -> int:
        return len(self.arrays.template)

    @property
    def faces(self) -> np.ndarray:
        return self.arrays.faces

    def mask_weights(self) -> np.ndarray:
        weights = self.arrays.weights
        joints = np.arange(weights.shape[1])
        hands = joints[-30:]
        owner = np.where(joints < 22, joints, _HEAD)
        owner[hands[:15]], owner[hands[15:]] = _ARMS_LEFT, _ARMS_RIGHT
        summed = np.zeros((len(weights), 24))
        for joint in joints:
            summed[:, owner[joint]] += weights[:, joint]
        return summed

    def surface(self, parameters: Parameters) -> Tensor:
        rest, joints = self._shaped(parameters), self._joints(parameters)
        return (
            self._in_blocks(self._posed, self._local(parameters), rest, joints)
            + _tensor(_given(parameters, "transl", 3))[:, None]
        )

    def rest(self, parameters: Parameters) -> Tensor:
        shape = {name: parameters[name] for name in ("betas",)}
        return self._shaped(shape)

    def root(self, parameters: Parameters) -> SourceRoot:
        pelvis = self._joints(parameters)[:, 0]
        orient = axis_angle_to_matrix(_tensor(_given(parameters, "global_orient", 3)))
        return SourceRoot(orient, pelvis, pelvis + _tensor(_given(parameters, "transl", 3)))

    def _local(self, parameters: Parameters) -> Tensor:
        """Local rotations (n, J, 3, 3)."""
        parts = []
        for name, joints in _POSE[self.name]:
            pose = _given(parameters, name, 3 * joints)
            if name in _HANDS and FLAT_HAND in parameters:
                mean = self.arrays.hand_means[_HANDS.index(name)]
                pose = pose + np.where(np.asarray(parameters[FLAT_HAND])[:, None], 0.0, mean)
            parts.append(pose)
        vectors = np.concatenate(parts, axis=1)
        return axis_angle_to_matrix(_tensor(vectors).view(len(vectors), -1, 3))

    def _shape(self, parameters: Parameters) -> tuple[np.ndarray, int, int]:
        """Coefficients (n, B + E) of the shapes and expressions, and how many of each."""
        betas = np.asarray(parameters["betas"], np.float64)
        count, known = betas.shape[1], self.arrays.directions.shape[2]
        if count > known:
            raise ValueError(
                f"betas: {count} numbers a row, the model file {self.arrays.path.name} has {known} "
                "shape directions; name the file of the version that the labels were made with"
            )
        expression = parameters.get("expression")
        if expression is None or not self.arrays.expressions.shape[2]:
            return betas, count, 0
        size = min(expression.shape[1], self.arrays.expressions.shape[2])
        given = np.asarray(expression, np.float64)[:, :size]
        return np.concatenate((betas, given), axis=1), count, size

    def _shaped(self, parameters: Parameters) -> Tensor:
        """Rest vertices (n, V, 3) of the shapes."""
        shape, count, size = self._shape(parameters)
        directions = self._directions[:, :count]
        if size:
            directions = torch.cat((directions, self._expressions[:, :size]), dim=1)

        def shaped(own: Tensor) -> Tensor:
            return self._template + (own @ directions.T).view(len(own), -1, 3)

        return self._in_blocks(shaped, _tensor(shape))

    def _joints(self, parameters: Parameters) -> Tensor:
        """Rest joints (n, J, 3) of the shapes."""
        shape, count, size = self._shape(parameters)
        directions = self._joint_directions[..., :count]
        if size:
            directions = torch.cat((directions, self._joint_expressions[..., :size]), dim=2)
        moved = (directions * _tensor(shape)[:, None, None]).sum(dim=3)
        return self._regressor @ self._template + moved

    def _posed(self, local: Tensor, rest: Tensor, joints: Tensor) -> Tensor:
        parents = self.arrays.parents
        features = pose_features(local, tuple(range(1, len(parents))))
        points = rest + (features @ self._correctives).view_as(rest)
        world, places = chain(local, rest_offsets(joints, parents), parents)
        transforms = skinning_transforms(world, places, joints)
        blended = (self._weights @ transforms.flatten(2)).unflatten(2, (3, 4))
        return (blended[..., :3] @ points[..., None])[..., 0] + blended[..., 3]

    @staticmethod
    def _in_blocks(task: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The task on n > 0 rows, in blocks of one size."""
        parts = []
        for index in torch.arange(len(inputs[0])).split(_BLOCK):
            full = torch.cat([index, index[:1].expand(_BLOCK - len(index))])
            parts.append(task(*(values[full] for values in inputs))[: len(index)])
        return torch.cat(parts)

    @cached_property
    def _template(self) -> Tensor:
        return _tensor(self.arrays.template)

    @cached_property
    def _directions(self) -> Tensor:
        return _tensor(self.arrays.directions).flatten(0, 1)

    @cached_property
    def _expressions(self) -> Tensor:
        return _tensor(self.arrays.expressions).flatten(0, 1)

    @cached_property
    def _joint_directions(self) -> Tensor:
        """(J, 3, B)."""
        return torch.einsum("jv,vck->jck", self._regressor, _tensor(self.arrays.directions))

    @cached_property
    def _joint_expressions(self) -> Tensor:
        """(J, 3, E)."""
        return torch.einsum("jv,vck->jck", self._regressor, _tensor(self.arrays.expressions))

    @cached_property
    def _regressor(self) -> Tensor:
        return _tensor(self.arrays.regressor)

    @cached_property
    def _weights(self) -> Tensor:
        return _tensor(self.arrays.weights)

    @cached_property
    def _correctives(self) -> Tensor:
        """(9 (J - 1), 3 V)."""
        return _tensor(self.arrays.correctives).flatten(0, 1).T.contiguous()


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(values, np.float64))


def _given(parameters: Parameters, name: str, width: int) -> np.ndarray:
    """(n, width) float64; zeros where nothing is given. Raises ValueError for another width."""
    n = len(parameters["betas"])
    if name not in parameters:
        return np.zeros((n, width))
    found = np.asarray(parameters[name], np.float64)
    if found.shape[0] != n or int(np.prod(found.shape[1:])) != width:
        raise ValueError(f"{name}: expected ({n}, {width}), found {found.shape}")
    return found.reshape(n, width)
