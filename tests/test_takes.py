"""The committed takes of other actors: splits, people on a floor, the mapping of a humanoid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pipeline.demo import demo_motion
from pipeline.takes import take, takes
from skel_fit.anatomy import SMPL_PARENTS
from skel_fit.default_body import default_body_directory
from skel_fit.models import BodyModels
from tools.default_body.takes import humanoid_take


@pytest.fixture(scope="module")
def neutral():
    return BodyModels(default_body_directory()).model("smpl", "neutral", "float32")


def test_actors_are_in_one_split_and_activities_of_the_test_are_their_own() -> None:
    known = takes()
    assert len(known) == 7 and sum(t.new for t in known) == 6
    train, test = ([t for t in known if t.split == s] for s in ("train", "test"))
    assert len(train) + len(test) == 7
    for name in ("actor", "activity"):
        assert not {getattr(t, name) for t in train} & {getattr(t, name) for t in test}
    for t in known:
        assert t.poses.shape == (len(t.transl), 72) and t.poses.dtype == np.float64
        assert np.isfinite(t.poses).all() and np.isfinite(t.transl).all()
    slow = take("kick").every(30)
    assert slow.fps == 30 and len(slow.poses) == 150
    np.testing.assert_array_equal(slow.poses[7], take("kick").poses[28])
    assert len(take("backflip").every(30).poses) == 29


def test_people_move_on_a_floor_and_bend_knees_one_way(neutral) -> None:
    for t in takes():
        poses = t.poses.reshape(-1, 24, 3)
        flexion = poses[:, [4, 5], 0]
        assert flexion.min() > -0.35 and flexion.max() > 0.9, t.name
        assert (poses[:, [18, 19], 1] * (1, -1)).max() < 0.4, t.name  # elbows too
        some = slice(None, None, max(len(poses) // 12, 1))
        pose = torch.as_tensor(t.poses[some], dtype=torch.float32)
        with torch.no_grad():
            skin = neutral(global_orient=pose[:, :3], body_pose=pose[:, 3:],
                           betas=torch.zeros(len(pose), 10)).vertices.numpy()  # fmt: skip
        lowest = skin[:, :, 1].min(axis=1) + t.transl[some, 1]
        assert -0.12 < lowest.min() < 0.08 and np.median(lowest) < 0.25, (t.name, lowest)


def test_the_hop_is_the_demo_motion_by_way_of_another_skeleton() -> None:
    """Two mappings that share no code but `rotation_between` find the same limbs."""
    hop, motion = take("hop").every(30).poses.reshape(-1, 24, 3), demo_motion()[37:186]
    ours, theirs = (
        Rotation.from_rotvec(p.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
        for p in (hop[: len(motion)], motion)
    )
    ours, theirs = _globals(ours), _globals(theirs)
    for joint, most in {0: 0.15, 1: 0.2, 2: 0.2, 4: 0.25, 5: 0.25, 16: 0.35, 17: 0.35}.items():
        # the limb's direction: rest directions lie in the second column (legs), the first (arms)
        column = 0 if joint > 15 else 1
        cosine = (ours[:, joint, :, column] * theirs[:, joint, :, column]).sum(axis=1)
        assert np.median(np.arccos(cosine.clip(-1, 1))) < most, joint


def _globals(local: np.ndarray) -> np.ndarray:
    out = local.copy()
    for joint in range(1, 24):
        out[:, joint] = out[:, SMPL_PARENTS[joint]] @ out[:, joint]
    return out


def test_humanoid_with_known_answers() -> None:
    names = ("pelvis", "torso", "head", "right_upper_arm", "right_lower_arm", "right_hand",
             "left_upper_arm", "left_lower_arm", "left_hand", "right_thigh", "right_shin",
             "right_foot", "left_thigh", "left_shin", "left_foot")  # fmt: skip
    parents = np.array([-1, 0, 1, 1, 3, 4, 1, 6, 7, 0, 9, 10, 0, 12, 13])
    offsets = np.zeros((15, 3))
    offsets[[4, 5, 7, 8, 10, 11, 13, 14], 2] = -0.5  # limbs hang
    rest = Rotation.identity(15).as_quat()
    rest[3] = Rotation.from_euler("x", -90, degrees=True).as_quat()
    rest[6] = Rotation.from_euler("x", 90, degrees=True).as_quat()
    joints = np.zeros((24, 3))  # legs straight down, arms straight aside: no turn between rests
    joints[[4, 5], 1], joints[[7, 8], 1] = -0.5, -1.0
    joints[[18, 20, 22], 0] = (0.5, 1.0, 1.2)
    joints[[19, 21, 23], 0] = (-0.5, -1.0, -1.2)
    clip = {"node_names": np.array(names), "parents": parents, "local_translation": offsets,
            "tpose": rest}  # fmt: skip
    moving = np.tile(rest, (4, 1, 1))
    # heading; knee; left arm down by 60 degrees from the T pose; back bent forward
    moving[1, 0] = Rotation.from_euler("z", 0.5).as_quat()
    moving[1, 13] = Rotation.from_euler("y", 0.7).as_quat()
    moving[2, 6] = Rotation.from_euler("x", 30, degrees=True).as_quat()
    moving[3, 1] = Rotation.from_euler("y", 0.6).as_quat()
    clip |= {
        "local_rotations_xyzw": moving,
        "root_translation": np.array([[0, 0, 1.0], [2, 0, 1], [0, 3, 1], [0, 0, 1]]),
    }
    poses, transl = humanoid_take(clip, joints)
    found = {(t, j): v for t in range(4) for j, v in enumerate(poses[t].reshape(24, 3))
             if np.abs(v).max() > 1e-9}  # fmt: skip
    down = -np.radians(60)
    wanted = {
        (1, 0): (0, 0.5, 0), (1, 4): (0.7, 0, 0),
        (2, 13): (0, 0, 0.15 * down), (2, 16): (0, 0, 0.85 * down),
        (3, 3): (0.2, 0, 0), (3, 6): (0.2, 0, 0), (3, 9): (0.2, 0, 0),
    }  # fmt: skip
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=1e-7)
    np.testing.assert_allclose(transl, [[0, 1, 0], [0, 1, 2], [3, 1, 0], [0, 1, 0]], atol=1e-12)
