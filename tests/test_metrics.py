"""Metrics against numbers worked out by hand, scipy, and their own invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from skel_fit import rotations
from skel_fit.anatomy import POSE_NAMES
from stages.regressor.evaluation import bootstrap, metrics

SEEDS = st.integers(0, 2**32 - 1)


def cloud(*rows) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def random_clouds(seed: int, batch: int = 4, points: int = 14) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, points, 3)))


# --- 3D points -----------------------------------------------------------------------------------


def test_point_error_is_the_mean_distance_in_millimetres():
    predicted = cloud((0, 0, 0), (0, 0, 0), (1, 1, 1))
    target = cloud((0.003, 0.004, 0), (0, 0, 0.012), (1, 1, 1))
    assert metrics.point_error(predicted, target).tolist() == pytest.approx([(5 + 12 + 0) / 3])


def test_the_root_is_the_mean_of_its_points():
    points = cloud((1, 0, 0), (3, 2, 0), (100, 100, 100))
    assert metrics.root_points(points, [0, 1]).tolist() == [[[2, 1, 0]]]


def test_aligned_error_of_a_stretched_cross_by_hand():
    # Cross-covariance diag(2, 4), so R = 1 and s = 6 / 4: every point ends 0.5 m off.
    source = cloud((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0))
    target = cloud((1, 0, 0), (-1, 0, 0), (0, 2, 0), (0, -2, 0))
    fitted = metrics.fit_similarity(source, target)
    assert fitted.scale.item() == pytest.approx(1.5)
    assert metrics.aligned_point_error(source, target).item() == pytest.approx(500)


def test_aligned_error_of_a_mirror_image_by_hand():
    # Cross-covariance diag(-2, 8, 18): the smallest direction is given up, s = (18 + 8 - 2) / 28.
    # Then x is 13/7, y 2/7, z 3/7 off.
    axes = torch.diag(torch.tensor([1.0, 2, 3], dtype=torch.float64))
    source = torch.cat((axes, -axes))[None]
    target = source * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    fitted = metrics.fit_similarity(source, target)
    assert fitted.scale.item() == pytest.approx(6 / 7)
    torch.testing.assert_close(fitted.rotation[0], torch.eye(3, dtype=torch.float64))
    error = metrics.aligned_point_error(source, target).item()
    assert error == pytest.approx(1000 * (13 + 2 + 3) / 21)


@given(SEEDS, st.booleans())
def test_similarity_agrees_with_scipy(seed, mirrored):
    source, target = random_clouds(seed), random_clouds(seed + 1)
    if mirrored:
        target = source * torch.tensor([1.0, 1.0, -1.0]) + 0.1 * target
    fitted = metrics.fit_similarity(source, target)
    for k in range(len(source)):
        p, g = source[k].numpy(), target[k].numpy()
        pc, gc = p - p.mean(0), g - g.mean(0)
        rotation = Rotation.align_vectors(gc, pc)[0].as_matrix()  # never a reflection
        scale = np.trace(rotation @ pc.T @ gc) / (pc**2).sum()
        np.testing.assert_allclose(fitted.rotation[k], rotation, atol=1e-9)
        assert fitted.scale[k].item() == pytest.approx(scale, abs=1e-12)
        np.testing.assert_allclose(
            fitted(source)[k], scale * pc @ rotation.T + g.mean(0), atol=1e-9
        )


@given(SEEDS)
def test_a_moved_turned_and_scaled_copy_aligns_exactly(seed):
    source = random_clouds(seed)
    random = np.random.default_rng(seed)
    turn = torch.from_numpy(Rotation.random(len(source), rng=random).as_matrix())
    scale = torch.from_numpy(random.uniform(0.1, 10, (len(source), 1, 1)))
    shift = torch.from_numpy(random.normal(size=(len(source), 1, 3)))
    copy = scale * source @ turn.transpose(1, 2) + shift
    assert metrics.aligned_point_error(source, copy).max() < 1e-6


@given(SEEDS)
def test_a_mirrored_copy_does_not_align(seed):
    source = random_clouds(seed)
    target = source * torch.tensor([-1.0, 1.0, 1.0])
    fitted = metrics.fit_similarity(source, target)
    torch.testing.assert_close(
        torch.linalg.det(fitted.rotation), torch.ones(len(source), dtype=torch.float64)
    )
    assert metrics.aligned_point_error(source, target).min() > 1


def test_flat_and_collapsed_clouds_stay_finite():
    flat = random_clouds(3)
    flat[..., 2] = 0
    assert metrics.aligned_point_error(flat, flat).max() < 1e-6
    point = torch.ones_like(flat)
    target = random_clouds(4)
    spread = metrics.point_error(target.mean(1, keepdim=True).expand_as(target), target)
    torch.testing.assert_close(metrics.aligned_point_error(point, target), spread)


def test_a_row_does_not_depend_on_its_batch():
    source, target = random_clouds(5, batch=33), random_clouds(6, batch=33)
    together = metrics.aligned_point_error(source, target)
    apart = torch.cat(
        [metrics.aligned_point_error(source[k : k + 1], target[k : k + 1]) for k in range(33)]
    )
    assert torch.equal(together, apart)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 3\) and \(1, 2, 3\)"):
        metrics.point_error(torch.zeros(1, 3, 3), torch.zeros(1, 2, 3))


# --- 2D points -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "expected"), [(5.0, 0.0), (4.999, 100.0)])
def test_pck_threshold_is_strict(shift, expected):
    box = torch.tensor([[80.0, 100.0]], dtype=torch.float64)
    target = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]], dtype=torch.float64)
    predicted = target + torch.tensor([shift, 0.0])
    distance = metrics.box_distance(predicted, target, box.amax(1))
    assert metrics.pck(distance, torch.ones(1, 2, dtype=torch.bool), 0.05) == expected


def test_pck_weighs_keypoints_alike_however_often_they_are_seen():
    distance = torch.tensor([[0.0, 0.0, 9.0], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    visible = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    # First keypoint 1 of 4, second 1 of 1, third never seen.
    assert metrics.pck(distance, visible, 0.1) == pytest.approx((25 + 100) / 2)
    assert math.isnan(metrics.pck(distance, torch.zeros_like(visible), 0.1))


@given(st.floats(1.0, 1.34), SEEDS)
def test_pck_does_not_see_how_much_the_crop_grew(growth, seed):
    random = np.random.default_rng(seed)
    side = torch.from_numpy(random.uniform(50, 500, 5))
    center = torch.from_numpy(random.uniform(0, 500, (5, 1, 2)))
    target = torch.from_numpy(random.uniform(0, 500, (5, 44, 2)))
    predicted = target + torch.from_numpy(random.normal(0, 20, (5, 44, 2)))
    grown = (growth * side)[:, None, None]
    # As the published evaluators do: crop units of the grown box, then the growth multiplied out.
    in_crop = [(x - center) / grown * growth for x in (predicted, target)]
    torch.testing.assert_close(
        metrics.box_distance(predicted, target, side),
        torch.linalg.vector_norm(in_crop[0] - in_crop[1], dim=-1),
    )


def test_keypoint_l2_weighs_by_confidence_and_ignores_unseen_points():
    distance = torch.tensor([[2.0, 1.0, float("nan"), 3.0]])
    confidence = torch.tensor([[0.5, 1.0, 0.0, 0.0]])
    assert metrics.keypoint_l2(distance, confidence).tolist() == [(0.5 * 4 + 1) / 4]


# --- joint limits --------------------------------------------------------------------------------


def pose(**degrees: float) -> torch.Tensor:
    values = torch.zeros(1, 46, dtype=torch.float64)
    for name, value in degrees.items():
        values[0, POSE_NAMES.index(name)] = math.radians(value)
    return values


@pytest.mark.parametrize(
    ("angles", "tolerance", "part", "excess"),
    [
        ({"knee_angle_r": 145.1}, 10, "right_knee", 0.1),
        ({"knee_angle_r": 144.9}, 10, "right_knee", 0),
        ({"knee_angle_l": -30.5}, 30, "left_knee", 0.5),
        ({"knee_angle_l": 20 - 360}, 0, "left_knee", 0),  # wrapped
        ({"elbow_flexion_l": 160}, 20, "left_elbow", 5),
        ({"elbow_flexion_r": -12}, 10, "right_elbow", 2),
        ({"pro_sup_r": 85}, 10, "right_elbow", 7.5),
        ({"pro_sup_r": -80}, 10, "right_elbow", 2.5),
        ({"pro_sup_l": 85}, 10, "left_elbow", 0),  # the published limits are not symmetric
        ({"pro_sup_l": -105}, 10, "left_elbow", 5),
        ({"elbow_flexion_r": 150, "pro_sup_r": 100}, 10, "right_elbow", 22.5),  # the larger one
    ],
)
def test_skel_excess_by_hand(angles, tolerance, part, excess):
    found = torch.rad2deg(metrics.skel_limit_excess(pose(**angles), tolerance))[0]
    expected = [excess if name == part else 0 for name in metrics.PART_NAMES]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


SMPL_JOINTS = {"left_elbow": (18, "YZX"), "right_elbow": (19, "YZX"), "left_knee": (4, "XZY"),
               "right_knee": (5, "XZY")}  # fmt: skip


def smpl_pose(part: str, degrees: tuple[float, float, float]) -> torch.Tensor:
    joint, order = SMPL_JOINTS[part]
    values = np.zeros((1, 69))
    turn = Rotation.from_euler(order, degrees, degrees=True)  # capitals: intrinsic
    values[0, 3 * joint - 3 : 3 * joint] = turn.as_rotvec()
    return torch.from_numpy(values)


@pytest.mark.parametrize(
    ("part", "degrees", "excess"),
    [
        ("left_knee", (145.1, 0, 0), 0.1),
        ("right_knee", (144.9, 9, -9), 0),
        ("right_knee", (50, 14, 0), 4),
        ("left_knee", (50, 0, -16), 6),
        ("left_elbow", (-145.5, 0, 0), 0.5),
        ("left_elbow", (15, 0, 0), 5),
        ("right_elbow", (100, 0, -80), 2.5),
        ("right_elbow", (100, 5, 60), 0),
    ],
)
def test_smpl_excess_by_hand(part, degrees, excess):
    found = torch.rad2deg(metrics.smpl_limit_excess(smpl_pose(part, degrees), 10))[0]
    expected = [excess if name == part else 0 for name in metrics.PART_NAMES]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@given(SEEDS)
def test_rotations_and_angles_agree_with_scipy(seed):
    vectors = np.random.default_rng(seed).normal(0, 2, (8, 3))
    vectors[0] = 0
    matrices = rotations.axis_angle_to_matrix(torch.from_numpy(vectors))
    np.testing.assert_allclose(matrices, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)
    for order in ((0, 2, 1), (1, 2, 0), (0, 1, 2), (2, 1, 0)):
        angles = rotations.euler_from_matrix(matrices, order).numpy()
        axes = "".join("XYZ"[axis] for axis in order)
        back = Rotation.from_euler(axes, angles).as_matrix()
        np.testing.assert_allclose(back, matrices, atol=1e-7)


def test_the_second_euler_solution_helps_only_as_an_option():
    # 170 degrees about z (second axis) is (180, 10, 180) in principal angles: far outside the
    # limits of x and y, while the true second solution (0, 170, 0) is outside in z alone.
    turned = smpl_pose("left_knee", (0, 170, 0))
    principal = torch.rad2deg(metrics.smpl_limit_excess(turned, 0))[0, 2].item()
    best = torch.rad2deg(metrics.smpl_limit_excess(turned, 0, euler="best"))[0, 2].item()
    assert (principal, best) == pytest.approx((180, 170), abs=1e-5)


@given(arrays(np.float64, (5, 69), elements=st.floats(-3, 3)))
def test_the_best_solution_is_never_worse_in_sum(values):
    body = torch.from_numpy(values)
    for part in metrics.SMPL_PARTS:
        first = 3 * (part.joint - 1)
        turn = rotations.axis_angle_to_matrix(body[:, first : first + 3])
        angles = rotations.euler_from_matrix(turn, part.order)
        assert (angles[:, 1].abs() <= math.pi / 2).all()
    none = metrics.smpl_limit_excess(body, 10) == 0
    assert (metrics.smpl_limit_excess(body, 10, euler="best")[none] == 0).all()


@pytest.mark.parametrize(("function", "width"), [("skel", 45), ("smpl", 72)])
def test_poses_of_another_width_are_refused(function, width):
    with pytest.raises(ValueError, match=f"got \\(2, {width}\\)"):
        getattr(metrics, f"{function}_limit_excess")(torch.zeros(2, width), 10)


# --- summaries -----------------------------------------------------------------------------------


def test_estimate_by_hand():
    found = bootstrap.estimate(np.array([1.0, 2.0, 6.0, 100.0]), np.array([1, 1, 1, 0]))
    assert (found.value, found.rows) == (3.0, 3)
    assert 1 <= found.low <= 3 <= found.high <= 6
    hits = np.array([[1, 1], [0, 0], [0, 0], [0, 0]])
    seen = np.array([[1, 1], [1, 0], [1, 0], [1, 0]])
    assert bootstrap.estimate(hits, seen).value == pytest.approx((0.25 + 1) / 2)


def test_estimate_of_little():
    alone = bootstrap.estimate(np.array([7.0]))
    assert alone.value == 7.0
    assert math.isnan(alone.low)
    assert math.isnan(bootstrap.estimate(np.array([1.0, 2.0]), np.zeros(2)).value)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        found = bootstrap.estimate(random.exponential(size=60), resamples=200)
        inside += found.low <= 1.0 <= found.high
    assert 175 <= inside <= 199


def test_frames_of_a_video_do_not_count_as_independent():
    random = np.random.default_rng(0)
    videos = np.repeat(np.arange(20), 50)
    values = random.normal(size=20)[videos] + 0.01 * random.normal(size=1000)
    by_row, by_video = bootstrap.estimate(values), bootstrap.estimate(values, groups=videos)
    assert (by_row.drawn, by_video.drawn) == ("rows", "groups")
    assert by_video.value == pytest.approx(by_row.value)
    assert by_video.high - by_video.low > 4 * (by_row.high - by_row.low)
    assert bootstrap.estimate(values, groups=videos) == by_video  # same draws every time
    assert bootstrap.estimate(values, groups=videos // 5).drawn == "rows"  # 4 videos are too few
