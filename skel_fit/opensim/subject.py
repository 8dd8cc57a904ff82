"""One person of a SKEL model as numbers that a text writer needs: numpy, float64, body frame."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skel_fit.anatomy import PARENTS
from skel_fit.opensim.angles import RootFrame
from skel_fit.opensim.paths import Path, path
from skel_fit.skel import SKEL

#: From the axes of the data to OpenSim's ground (x forward, y up, z right). `camera`: x right,
#: y down, z away from the camera, so that a person who looks into it looks along ground x;
#: `y-up`: the body frame itself (x left, z forward); `z-up`: as motion capture archives.
GROUNDS: dict[str, NDArray[np.float64]] = {
    "camera": np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]),
    "y-up": np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
    "z-up": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    "none": np.eye(3),
}


@dataclass(frozen=True)
class Subject:
    """One shape of a SKEL model, at rest in the body frame, metres.

    Attributes:
        betas: (10,). gender: of the model.
        vertices: (6890, 3) rest skin. joints: (24, 3) rest joints.
        orientations: (24, 3, 3) K_i. apose: (24, 3, 3) Ra_i.
        bone_scale: (24, 3) size of the bones, in bone space.
        spine_lengths: (3,), scapula_extents: (2,), see `paths`.
        corrected_left_ankle: as the SKEL model.
    """

    betas: NDArray[np.float64]
    gender: str
    vertices: NDArray[np.float64]
    joints: NDArray[np.float64]
    orientations: NDArray[np.float64]
    apose: NDArray[np.float64]
    bone_scale: NDArray[np.float64]
    spine_lengths: NDArray[np.float64]
    scapula_extents: NDArray[np.float64]
    corrected_left_ankle: bool

    def joint_frame(self, joint: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where a joint sits on its parent body: position (3,), orientation (3, 3).

        Not for the pelvis, whose parent is the ground.
        """
        parent = PARENTS[joint]
        to_parent = self.orientations[parent].T
        position = to_parent @ (self.joints[joint] - self.joints[parent])
        return position, to_parent @ self.orientations[joint] @ self.apose[joint].T

    def in_body(self, body: int, points: NDArray) -> NDArray[np.float64]:
        """Points (n, 3) of the rest pose in the axes of a body, joint at the origin."""
        return (points - self.joints[body]) @ self.orientations[body]

    def path(self, joint: int) -> Path | None:
        """Translation of a joint with its angles."""
        return path(joint, self.spine_lengths, self.scapula_extents)

    def root(self, ground: NDArray) -> RootFrame:
        """The pelvis in ground; ground: (3, 3) of `GROUNDS` or another rotation."""
        return RootFrame(ground, self.orientations[0], self.apose[0], self.joints[0])


def subjects(skel: SKEL, betas: Tensor) -> list[Subject]:
    """The people of `betas` (n, 10)."""
    with torch.no_grad():
        identity = skel.shape(betas.to(dtype=skel.dtype, device=skel.device))
        scale = _numpy(skel.bone_scale(identity))
    parts = [
        _numpy(part)
        for part in (
            identity.betas,
            identity.vertices,
            identity.joints,
            identity.orientations,
            identity.spine_lengths,
            identity.scapula_extents,
        )
    ]
    apose = np.stack([_orthonormal(part) for part in _numpy(skel.apose_rot)])
    return [
        Subject(
            betas=own,
            gender=skel.gender,
            vertices=vertices,
            joints=joints,
            orientations=np.stack([_orthonormal(part) for part in orientations]),
            apose=apose,
            bone_scale=scale[k],
            spine_lengths=spine,
            scapula_extents=extents,
            corrected_left_ankle=skel.corrected_left_ankle,
        )
        for k, (own, vertices, joints, orientations, spine, extents) in enumerate(
            zip(*parts, strict=True)
        )
    ]


def body_frames(skel: SKEL, poses: Tensor, betas: Tensor, trans: Tensor) -> tuple[NDArray, NDArray]:
    """Posed body frames of our own model, axes of the data: (n, 24, 3) and (n, 24, 3, 3)."""
    with torch.no_grad():
        identity = skel.shape(betas)
        rotations, positions, _ = skel.bone_transforms(poses, identity)
        return (
            _numpy(positions + trans[:, None]),
            _numpy(rotations @ identity.orientations),
        )


def skin_points(
    skel: SKEL, poses: Tensor, betas: Tensor, trans: Tensor, vertices: NDArray
) -> NDArray[np.float64]:
    """Some vertices of the posed skin without the others: (n, len(vertices), 3), axes of the data.

    poses: (n, 46); betas: (n or 1, 10); trans: (n, 3); vertices: indices.
    """
    chosen = torch.as_tensor(np.asarray(vertices), device=skel.device)
    with torch.no_grad():
        identity = skel.shape(betas)
        rotations, positions, local = skel.bone_transforms(poses, identity)
        directions = skel.posedirs[chosen].flatten(0, 1)
        offsets = skel.pose_features(local) @ directions.T
        points = identity.vertices[:, chosen] + offsets.view(len(poses), len(chosen), 3)
        shift = positions - (rotations @ identity.joints[..., None]).squeeze(-1)
        blended = torch.einsum("vj,njab->nvab", skel.skin_weights[chosen], rotations)
        moved = torch.einsum("nvab,nvb->nva", blended, points)
        moved = moved + torch.einsum("vj,nja->nva", skel.skin_weights[chosen], shift)
        return _numpy(moved + trans[:, None])


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _orthonormal(matrix: NDArray) -> NDArray[np.float64]:
    """The nearest rotation: a file's float32 matrices are rotations to seven digits only."""
    u, _, vh = np.linalg.svd(matrix)
    return u @ vh
