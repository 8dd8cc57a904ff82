"""The tables of joint limits, what lies outside them, and who says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from skel_fit import anatomy as table
from skel_fit import joint_limits
from skel_fit.default_body import default_body_directory
from skel_fit.fit import fit_skel
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.recipe import FitConfig
from skel_fit.solver import kernels_torch, numba_start

MOTION = Path(__file__).parents[1] / "pipeline" / "demo_motion.npz"
DEFAULT = joint_limits.limits("default")
PUBLISHED = joint_limits.limits("published")
ELEVATION = [table.POSE_NAMES.index(f"scapula_elevation_{side}") for side in "rl"]
LIMITED = np.arange(3, table.NUM_POSES)


def row(name: str) -> np.ndarray:
    """(2,) default range of one angle, rad."""
    return DEFAULT[table.POSE_NAMES.index(name)]


def test_every_body_angle_is_limited_and_every_limit_has_a_source():
    assert np.isinf(DEFAULT[:3]).all()
    assert np.isfinite(DEFAULT[LIMITED]).all()
    assert (DEFAULT[LIMITED, 0] < DEFAULT[LIMITED, 1]).all()
    rows = joint_limits.LIMIT_TABLES["default"]
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
        bounds = torch.as_tensor(joint_limits.limits(name))
        poses = fit.poses.double()
        assert ((poses >= bounds[:, 0]) & (poses <= bounds[:, 1])).all()


def test_published_limits():
    published = joint_limits.limits("published")
    assert published.shape == (46, 2) and published.dtype == np.float64
    limited = np.isfinite(published).all(axis=1)
    assert limited.sum() == 43 and not limited[:3].any()
    assert (published[limited, 0] < published[limited, 1]).all()
    row = dict(zip(table.POSE_NAMES, published.tolist(), strict=True))
    assert row["scapula_elevation_l"] == [-0.4, -0.1]
    assert row["pro_sup_r"] == [-1.178097, 1.178097]
    assert row["pro_sup_l"] == [-1.570796, 1.570796]
    assert row["shoulder_l_x"] == [-3.070796, 1.570796]
    assert row["hip_flexion_l"] == [-0.785398, 2.356194]


def test_default_limits_contain_rest_and_mirror_the_elevation():
    default = joint_limits.limits("default")
    assert (default[:, 0] <= 0).all() and (default[:, 1] >= 0).all()
    right, left = (table.POSE_NAMES.index(f"scapula_elevation_{side}") for side in "rl")
    np.testing.assert_array_equal(default[left], -default[right][::-1])
    assert all(
        limit.source for rows in joint_limits.LIMIT_TABLES.values() for limit in rows.values()
    )


def test_no_limits_and_unknown_limits():
    assert np.isinf(joint_limits.limits("none")).all()
    with pytest.raises(ValueError, match="expected one of published, default, none"):
        joint_limits.limits("wide")


# ---- excess -------------------------------------------------------------------------------------

ANGLES = st.floats(-4 * np.pi, 4 * np.pi)


def outside(angle: float, low: float, high: float, turns: bool = True) -> float:
    found = joint_limits.excess(np.array([angle]), np.array([low]), np.array([high]), turns)
    return float(found[0])


@given(ANGLES, st.floats(-3, 0), st.floats(0, 3))
def test_excess_is_the_published_rule(angle: float, low: float, high: float):
    """Wrapped to [-pi, pi), then the distance to the range (evaluation 1.4)."""
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    assume(np.pi - abs(wrapped) > 1e-6)
    expected = max(0.0, low - wrapped) + max(0.0, wrapped - high)
    assert outside(angle, low, high) == pytest.approx(expected, abs=1e-12)


@given(ANGLES, st.sampled_from(["default", "published"]), st.integers(-2, 2))
def test_a_whole_turn_changes_nothing_but_for_the_bent_spine(angle, name, turns):
    low, high = joint_limits.limits(name).T
    angles = np.full(46, angle)
    here = joint_limits.excess(angles, low, high, table.PERIODIC)
    there = joint_limits.excess(angles + turns * 2 * np.pi, low, high, table.PERIODIC)
    wrapped = np.pi - abs((angle + np.pi) % (2 * np.pi) - np.pi)
    assume(wrapped > 1e-6)
    np.testing.assert_allclose(there[table.PERIODIC], here[table.PERIODIC], atol=1e-11)
    raw = np.maximum(np.maximum(low - angle, angle - high), 0)
    np.testing.assert_array_equal(here[~table.PERIODIC], raw[~table.PERIODIC])


def test_a_range_across_the_seam_holds_both_names_of_an_angle():
    low, high = DEFAULT[table.POSE_NAMES.index("shoulder_r_z")]  # to 180 degrees, rounded up
    assert high > np.pi
    for angle in (float(np.float32(np.pi)), -np.pi, np.pi, high, high - 2 * np.pi):
        assert outside(angle, low, high) == 0
    assert outside(high + 0.01, low, high) > 0


@given(st.lists(ANGLES, min_size=46, max_size=46))
@example(DEFAULT[:, 0].tolist())
@example(DEFAULT[:, 1].tolist())
def test_torch_and_numpy_agree_and_the_gradient_points_out(values):
    low, high = DEFAULT.T
    angles = np.array(values)
    expected = joint_limits.excess(angles, low, high, table.PERIODIC)
    tensors = [torch.tensor(v) for v in (angles, low, high, table.PERIODIC)]
    tensors[0].requires_grad_()
    found = joint_limits.excess(*tensors)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-14)
    found.sum().backward()
    assert (tensors[0].grad[expected == 0] == 0).all()
    assert (tensors[0].grad[expected > 1e-9].abs() == 1).all()


@given(st.floats(-7, 7), st.floats(-3, 0), st.floats(0, 3))
def test_the_solver_counts_the_same_excess(value: float, low: float, high: float):
    assert numba_start.violation(value, low, high) == outside(value, low, high, False) ** 2
    tensors = (torch.tensor([[x]], dtype=torch.float64) for x in (value, low, high))
    assert float(kernels_torch._violation(*tensors)) == outside(value, low, high, False) ** 2
