"""The skeleton of a SKEL as constant tables, for compiled kinematics (`numba_kinematics`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple

import numpy as np
import torch

from skel_fit import anatomy, kinematics
from skel_fit.kinematics import Array

if TYPE_CHECKING:
    from skel_fit.skel import SKEL


class Skeleton(NamedTuple, Generic[Array]):
    """What kinematics needs of SKEL, as float64 and int64 arrays
    (docs/reference/skel-model.md)."""

    parents: Array  # (24,)
    first_parameter: Array  # (25,)
    joint_of_parameter: Array  # (49,)
    axes: Array  # (46, 3) signed
    joint_template: Array  # (24, 3) rest joints at betas 0
    joint_directions: Array  # (24, 3, K)
    aligned: Array  # (24,) bool: orientation depends on shape
    bone_sum: Array  # (24, 24) which offsets make the bone direction
    bone_source: Array  # (24, 3) template bone direction, body frame
    rest_frames: Array  # (24, 3, 3) per_joint_rot Ra^T
    feature_source: Array  # (23,) SKEL joint of SMPL joint 1..23, -1: identity
    feature_of_joint: Array  # (24,) its inverse, -1: none
    start_source: Array  # (24,) SMPL joint whose rotation starts the bone
    euler: Array  # (24, 3) coordinate axes, last angle first
    euler_sign: Array  # (24, 3)


def skeleton_tables(skel: SKEL) -> Skeleton[np.ndarray]:
    """Kinematic tables of a loaded `SKEL`."""
    template, directions = numpy_of(skel.template), numpy_of(skel.shapedirs)
    regressor = numpy_of(skel.joint_regressor)
    base, apose = numpy_of(skel.per_joint_rot), numpy_of(skel.apose_rot)
    offsets = numpy_of(skel.apose_trans)
    parents = np.asarray(skel.parents, np.int64)
    axes = numpy_of(skel.axes)
    aligned = np.ones(24, bool)
    aligned[list(kinematics.FIXED_ORIENTATION)] = False
    first, euler, signs = _parameter_tables(axes)
    feature_source = np.asarray(anatomy.POSE_FEATURE_SOURCES, np.int64)
    feature_of_joint = np.full(24, -1, np.int64)
    for feature, joint in enumerate(feature_source):
        if joint >= 0:
            feature_of_joint[joint] = feature
    return Skeleton(
        parents=parents,
        first_parameter=first,
        joint_of_parameter=np.concatenate([np.repeat(np.arange(24), np.diff(first)), [0, 0, 0]]),
        axes=axes,
        joint_template=regressor @ template,
        joint_directions=np.einsum("jv,vck->jck", regressor, directions),
        aligned=aligned,
        bone_sum=kinematics.BONE_SUM.astype(np.int64),
        bone_source=kinematics.bone_directions(base, offsets),
        rest_frames=base @ apose.transpose(0, 2, 1),
        feature_source=feature_source,
        feature_of_joint=feature_of_joint,
        start_source=np.asarray(anatomy.START_SMPL_JOINT, np.int64),
        euler=euler,
        euler_sign=signs,
    )


def _parameter_tables(axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """first_parameter (25,), euler (24,3) and euler_sign (24,3) from the joint of each angle."""
    counts = np.bincount(np.asarray(anatomy.JOINT_OF_DOF), minlength=24)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    euler, signs = np.zeros((24, 3), np.int64), np.ones((24, 3))
    for j in range(24):
        if counts[j] == 1:
            continue
        used = axes[first[j] : first[j + 1]][::-1]
        coordinates = list(np.argmax(np.abs(used), axis=1))
        directions = [float(np.sign(axis[c])) for axis, c in zip(used, coordinates, strict=True)]
        if counts[j] == 2:  # the missing middle axis
            coordinates.insert(1, 3 - sum(coordinates))
            directions.insert(1, 1.0)
        euler[j], signs[j] = coordinates, directions
    return first, euler, signs


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    """float64 copy on the host."""
    return np.asarray(tensor.detach().cpu().to(torch.float64))
