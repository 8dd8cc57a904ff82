"""The `default` joint limits: human, symmetric, and wide enough for what people do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skel_fit import pose_table as table
from skel_fit.default_body import default_body_directory
from skel_fit.fit import fit_skel
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.recipe import FitConfig

MOTION = Path(__file__).parents[1] / "pipeline" / "demo_motion.npz"
DEFAULT = table.limits("default")
PUBLISHED = table.limits("published")
ELEVATION = [table.POSE_NAMES.index(f"scapula_elevation_{side}") for side in "rl"]
LIMITED = np.arange(3, table.NUM_POSES)


def row(name: str) -> np.ndarray:
    """(2,) default range of one angle, rad."""
    return DEFAULT[table.POSE_NAMES.index(name)]


def test_every_body_angle_is_limited_and_every_limit_has_a_source():
    assert np.isinf(DEFAULT[:3]).all()
    assert np.isfinite(DEFAULT[LIMITED]).all()
    assert (DEFAULT[LIMITED, 0] < DEFAULT[LIMITED, 1]).all()
    rows = table.LIMIT_TABLES["default"]
    assert set(rows) == set(table.POSE_NAMES[3:])
    for name, limit in rows.items():
        assert len(limit.source) > 20, f"{name} says no source"


def test_default_contains_rest_strictly():
    assert (DEFAULT[:, 0] < 0).all() and (DEFAULT[:, 1] > 0).all()


def test_default_contains_the_published_ranges_except_the_contradictory_pair():
    others = np.setdiff1d(LIMITED, ELEVATION)
    assert (DEFAULT[others, 0] <= PUBLISHED[others, 0]).all()
    assert (DEFAULT[others, 1] >= PUBLISHED[others, 1]).all()
    np.testing.assert_array_equal(DEFAULT[ELEVATION], [[-0.1, 0.4], [-0.4, 0.1]])


@given(st.integers(0, 2**32 - 1))
def test_mirrored_pose_is_inside_exactly_when_the_pose_is(seed: int):
    draw = np.random.default_rng(seed)
    span = DEFAULT[3:, 1] - DEFAULT[3:, 0]
    poses = np.zeros(46)
    poses[3:] = DEFAULT[3:, 0] + span * draw.uniform(-0.02, 1.02, 43)
    mirrored = poses[table.MIRROR_PERMUTATION] * table.MIRROR_SIGNS
    inside = (poses >= DEFAULT[:, 0]) & (poses <= DEFAULT[:, 1])
    inside_mirrored = (mirrored >= DEFAULT[:, 0]) & (mirrored <= DEFAULT[:, 1])
    np.testing.assert_array_equal(inside_mirrored, inside[table.MIRROR_PERMUTATION])


@pytest.mark.parametrize("side", ["r", "l"])
def test_hinges_are_anatomical(side: str):
    assert -0.2 <= row(f"knee_angle_{side}")[0] <= 0.0 and 2.6 <= row(f"knee_angle_{side}")[1] < 3
    assert -0.2 <= row(f"elbow_flexion_{side}")[0] <= 0.0
    assert 2.4 <= row(f"elbow_flexion_{side}")[1] < 2.9
    assert np.abs(row(f"pro_sup_{side}")).max() < 1.6  # no forearm turned beyond a right angle
    assert np.abs(row(f"wrist_deviation_{side}")).max() < 0.8


# What people reach, in degrees (clinical and sports literature as named in the table), signs for
# the right side: squat, front split, side split, seated turnout, half pointe, pointe, turned head.
@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("hip_flexion_r", 140),
        ("hip_flexion_r", -40),
        ("hip_adduction_r", -85),
        ("hip_rotation_r", -80),
        ("hip_rotation_r", 60),
        ("knee_angle_r", 157),
        ("ankle_angle_r", -77),
        ("ankle_angle_r", 40),
        ("mtp_angle_r", -85),
        ("lumbar_extension", -55),
        ("head_twist", 78),
        ("head_extension", 65),
        ("shoulder_r_z", 178),
        ("shoulder_r_x", -100),
        ("elbow_flexion_r", 150),
        ("pro_sup_r", -85),
    ],
)
def test_dance_and_yoga_fit_inside(name: str, degrees: float):
    mirror = table.POSE_NAMES[table.MIRROR_PERMUTATION[table.POSE_NAMES.index(name)]]
    sign = table.MIRROR_SIGNS[table.POSE_NAMES.index(name)]
    for angle, value in ((name, degrees), (mirror, sign * degrees)):
        low, high = np.rad2deg(row(angle))
        assert low <= value <= high


# Where a bone must be able to point, as whole joint rotations of the model (body frame: x left,
# y up, z forward).
@pytest.mark.parametrize(
    ("joint", "angles", "points_to"),
    [
        ("femur_r", {"hip_flexion_r": 2.4}, (0.0, 0.74, 0.68)),  # squat: knee at the chest
        ("femur_r", {"hip_adduction_r": -1.5}, (-1.0, 0.0, 0.0)),  # side split
        ("femur_r", {"hip_flexion_r": -0.7}, (0.0, -0.76, -0.64)),  # back leg of a front split
        ("humerus_r", {"shoulder_r_x": 1.57}, (0.0, -1.0, 0.0)),  # arm down
        ("humerus_r", {"shoulder_r_x": -1.57}, (0.0, 1.0, 0.0)),  # arm up sideways
        ("humerus_r", {"shoulder_r_x": 1.57, "shoulder_r_z": 1.57}, (0.0, 0.0, 1.0)),  # forwards
        ("humerus_r", {"shoulder_r_x": 1.57, "shoulder_r_z": 3.1}, (0.0, 1.0, 0.0)),  # up, in front
        ("humerus_r", {"shoulder_r_y": 1.57}, (0.0, 0.0, 1.0)),  # forwards from T
    ],
)
def test_signs_of_hip_and_shoulder_limits(golden_skel64, joint, angles, points_to):
    """The ranges are only right if the signs are: the limb points where the angle says."""
    poses = torch.zeros(1, 46, dtype=torch.float64)
    for name, value in angles.items():
        low, high = row(name)
        assert low <= value <= high
        poses[0, table.POSE_NAMES.index(name)] = value
    k = table.JOINT_NAMES.index(joint)
    local = golden_skel64.joint_rotations(poses)[0, k]
    # bone axes: x forward, y up, z right; the right limb at rest hangs (-y) or points right (+z)
    at_rest = torch.tensor([0.0, -1, 0] if joint == "femur_r" else [0.0, 0, 1]).double()
    x, y, z = (local @ at_rest).tolist()
    np.testing.assert_allclose((-z, y, x), points_to, atol=0.09)


def test_real_motion_meets_fewer_limits_than_with_the_published_table():
    models = default_body_directory()
    skel, smpl = load_skel(models, "male"), load_smpl(models, "male")
    with np.load(MOTION) as motion:
        poses = torch.as_tensor(motion["poses"][::14].astype(np.float64))
    betas = torch.as_tensor(np.random.default_rng(5).normal(size=(len(poses), 10)))
    fits = {
        name: fit_skel(skel, smpl, poses, betas, torch.zeros(len(poses), 3), FitConfig(limits=name))
        for name in ("default", "published")
    }
    others = np.setdiff1d(LIMITED, ELEVATION)
    hits = {name: int(fit.active_limits[:, others].sum()) for name, fit in fits.items()}
    error = {name: float(fit.vertex_error_mean.mean()) for name, fit in fits.items()}
    assert hits["published"] > 0 and hits["default"] <= hits["published"] / 2
    assert error["default"] < error["published"]
    for name, fit in fits.items():
        table_limits = torch.as_tensor(table.limits(name))
        poses = fit.poses.double()
        assert ((poses >= table_limits[:, 0]) & (poses <= table_limits[:, 1])).all()
