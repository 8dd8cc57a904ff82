"""SKEL to points in pictures: kernels against the dense twin, exact recovery, independence, and
where the points are attached."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from skel_fit import load_skel
from skel_fit.anatomy import JOINT_NAMES, MIRROR_PERMUTATION, MIRROR_SIGNS, POSE_NAMES
from skel_fit.body_points import BLAZEPOSE_NAMES, BodyPoints, blazepose_points, label_points
from skel_fit.default_body import default_body_directory
from skel_fit.dense_keypoints import DensePoints
from skel_fit.joint_limits import limits
from skel_fit.keypoint_fit import (
    Cameras,
    KeypointFit,
    KeypointFitConfig,
    Places,
    Problem,
    Start,
    fit_skel_to_keypoints,
)
from skel_fit.keypoints import keypoint_matrix
from skel_fit.pose_prior import PosePrior, pose_prior

ROWS = 40
POINTS = blazepose_points()
PLAIN = blazepose_points(shifted=False)
LENS = np.array([[900.0, 3.0, 480.0], [0.0, 880.0, 350.0], [0.0, 0.0, 1.0]])
FACING_CAMERA = np.array([0.0, 0.0, np.pi])


@functools.cache
def body():
    return load_skel(default_body_directory(), "male", dtype=torch.float64)


@functools.cache
def people() -> np.ndarray:
    """(n, 59) bodies before a camera: poses drawn from the prior, facing everywhere."""
    random, prior, (low, high) = np.random.default_rng(3), pose_prior("motion"), limits("default").T
    at = np.zeros((ROWS, 59))
    drawn = random.multivariate_normal(prior.mean, prior.covariance, ROWS)
    at[:, 3:46] = np.clip(drawn, low[3:] + 0.02, high[3:] - 0.02)
    at[:, :3] = [0.0, np.pi, 0.0]
    at[:, :3] += random.normal(size=(ROWS, 3)) * [0.15, 0.1, 1.0]
    at[:, 46:49] = random.normal(size=(ROWS, 3)) * [0.3, 0.2, 0.4] + [0.0, 0.0, 4.0]
    at[:, 49:] = random.normal(size=(ROWS, 10)) * 0.5
    return at


def dense(problem: Problem, points: BodyPoints = POINTS) -> DensePoints:
    return DensePoints(body(), points, problem)


def problem_of(pixels, weights, cameras, places=None, prior=None, **changes) -> Problem:
    return Problem.of(
        body(), POINTS, pixels, weights, cameras, None, places, prior or pose_prior("motion"),
        KeypointFitConfig(**changes),
    )  # fmt: skip


@functools.cache
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 33, 3) of the people and their pixels (n, 33, 2), from the dense twin."""
    nothing = problem_of(np.zeros((ROWS, 33, 2)), np.ones((ROWS, 33)), Cameras(LENS))
    places = dense(nothing).places(torch.as_tensor(people())).numpy()
    return places, project(places, LENS)


def project(places: np.ndarray, lens: np.ndarray) -> np.ndarray:
    flat = places @ lens.T
    return flat[..., :2] / flat[..., 2:]


def two_cameras() -> tuple[Cameras, np.ndarray]:
    """A camera in front and one at the side, and what they see of the people."""
    side = np.array([[0.0, 0.0, -1.0, 4.0], [0.0, 1.0, 0.0, 0.1], [1.0, 0.0, 0.0, 4.0]])
    outer = np.stack([np.eye(3, 4), side])
    places, front = truth()
    beside = project(places @ side[:, :3].T + side[:, 3], LENS)
    return Cameras(np.stack([LENS, LENS]), outer), np.stack([front, beside], axis=1)


def relative_places(random: np.random.Generator) -> Places:
    places, _ = truth()
    moved = places - places[:, 23:25].mean(1, keepdims=True)
    weights = random.uniform(0.2, 1.0, (ROWS, 33)) * (random.random((ROWS, 33)) < 0.8)
    return Places(moved + random.normal(size=places.shape) * 0.04, weights)


@pytest.mark.parametrize("case", ["one view", "two views", "relative places", "places", "spans"])
def test_objective_and_gradient_are_those_of_the_dense_twin(case):
    """Every unknown, away from the optimum, with points that are not seen and gross errors."""
    random = np.random.default_rng(5)
    cameras, pixels = Cameras(LENS), truth()[1]
    weights = random.uniform(0.2, 1.0, (ROWS, 33)) * (random.random((ROWS, 33)) < 0.9)
    places = None
    if case == "two views":
        cameras, pixels = two_cameras()
        weights = np.stack([weights, weights[::-1]], axis=1)
    elif case in ("relative places", "spans"):
        places = relative_places(random)
    elif case == "places":
        places = Places(truth()[0] + 0.03, np.full((ROWS, 33), 0.5), relative=False)
    pixels = pixels + random.normal(size=pixels.shape) * 8.0
    pixels[:, ..., 7, :] += 300.0
    pixels[weights <= 0.0] = np.nan
    span = 0.08 if case == "spans" else None
    problem = problem_of(pixels, weights, cameras, places, sigma_span=span).rows(slice(2))
    assert (problem.seen.span_weights > 0).any() == (case == "spans")
    at = people()[:2] + random.normal(size=(2, 59)) * 0.08
    mine, twin = problem.search(at, 0, derivatives=True), dense(problem)
    there = torch.as_tensor(at)
    assert np.allclose(mine.points, twin.places(there).numpy(), rtol=0.0, atol=1e-9)
    assert np.allclose(mine.energies.sum(1), twin.objective(there).numpy(), rtol=1e-9)
    gradient = twin.gradient(there).numpy() / 2.0
    assert np.allclose(mine.gradients, gradient, rtol=1e-6, atol=1e-7 * np.abs(gradient).max())
    if case in ("one view", "places"):
        return
    matrix = twin._gauss_newton(there).numpy()
    # the kernel's matrix leaves the pose correctives out
    scale = np.sqrt(np.einsum("nii,njj->nij", matrix, matrix))
    assert np.abs((mine.hessians - matrix) / scale).max() < 0.03
    sure = [46, 47, 48, *range(49, 59)]
    assert np.allclose(mine.hessians[:, sure][:, :, sure], matrix[:, sure][:, :, sure], rtol=1e-3,
                       atol=1e-4 * matrix.max())  # fmt: skip


def test_the_way_of_an_arm_counts_wherever_it_starts():
    """3D points that are off by the same way all along an arm: the arm's own ways are right, and
    with them the elbow is, by hand the objective too."""
    random = np.random.default_rng(8)
    places, pixels = truth()
    hips = places[:, 23:25].mean(1, keepdims=True)
    moved = places - hips
    moved[:, [11, 13, 15]] += [0.0, 0.0, 0.25]
    spots = Places(moved + random.normal(size=moved.shape) * 0.005, np.ones((ROWS, 33)))
    pixels = pixels + random.normal(size=pixels.shape) * 4.0
    ones, elbow = np.ones((ROWS, 33)), POSE_NAMES.index("elbow_flexion_l")
    off = []
    for span in (None, 0.05):
        fit = problem_of(pixels, ones, Cameras(LENS), spots, sigma_span=span).fit(
            None, uncertainty=False
        )
        off.append(np.degrees(np.abs(fit.poses[:, elbow] - people()[:, elbow])).mean())
    assert off[1] < 0.7 * off[0]
    counts = ones.copy()
    counts[:, 11], counts[:, 15] = 0.25, 0.0  # a way counts as much as its lesser end
    spots = Places(spots.points, counts)
    problem = problem_of(pixels, ones, Cameras(LENS), spots, sigma_span=0.05)
    plain = problem_of(pixels, ones, Cameras(LENS), spots)
    more = problem.search(people(), 0).energies[:, 0] - plain.search(people(), 0).energies[:, 0]
    by_hand = np.zeros(ROWS)
    for count, a, b in ((0.25, 11, 13), (1.0, 12, 14), (1.0, 14, 16)):
        miss = (places[:, b] - places[:, a]) - (spots.points[:, b] - spots.points[:, a])
        by_hand += 9.0 * count * np.log1p((miss**2).sum(1) / 0.05**2 / 9.0)
    np.testing.assert_allclose(more, by_hand, rtol=1e-6)


def test_the_optimum_is_that_of_the_dense_twin():
    """Where the kernel settles, the twin's own steps find nothing lower and go nowhere."""
    random = np.random.default_rng(6)
    pixels = truth()[1][:2] + random.normal(size=(2, 33, 2)) * 4.0
    problem = problem_of(pixels, np.ones((2, 33)), Cameras(LENS), tolerance=1e-7)
    mine = problem.search(people()[:2] + random.normal(size=(2, 59)) * 0.02, 200)
    assert mine.settled.all() and (mine.steps > 3).all()
    other, energy = dense(problem).minimise(torch.as_tensor(mine.unknowns), steps=1)
    assert np.allclose(mine.energies.sum(1), energy.numpy(), rtol=1e-6)
    assert np.abs(mine.unknowns - other.numpy()).max() < 0.01


def test_recovers_a_body_from_its_own_points():
    """Two cameras and hardly any prior: limbs come back within a millimetre from no start at all;
    one camera: the picture fits to a fraction of a pixel."""
    cameras, pixels = two_cameras()
    loose = PosePrior("loose", pose_prior("motion").mean, 9.0 * np.eye(43))
    fit = fit_skel_to_keypoints(
        body(), POINTS, pixels, np.ones((ROWS, 2, 33)), cameras, prior=loose,
        config=KeypointFitConfig(shape_sd=50.0, sigma_2d=1e-3, steps=200, tolerance=1e-5),
    )  # fmt: skip
    assert all(status == "converged" for status in fit.status)
    assert (fit.facing == -1).all()
    apart = np.linalg.norm(fit.points - truth()[0], axis=2)
    assert np.median(apart) < 5e-4 and np.percentile(apart.max(1), 90) < 5e-3
    single = fit_skel_to_keypoints(
        body(), POINTS, truth()[1], np.ones((ROWS, 33)), Cameras(LENS), prior=loose,
        config=KeypointFitConfig(sigma_2d=1e-3, steps=200),
    )  # fmt: skip
    assert np.nanmedian(single.distances) < 0.5
    assert set(single.facing) > {0, 1}


def columns(fit: KeypointFit) -> list[np.ndarray]:
    return [value for value in vars(fit).values() if isinstance(value, np.ndarray)]


def test_rows_are_independent():
    """Alone, turned round, on one thread or two: the same bits."""
    pixels = truth()[1] + np.random.default_rng(7).normal(size=(ROWS, 33, 2)) * 5.0

    def fitted(rows: np.ndarray) -> KeypointFit:
        lens = np.broadcast_to(LENS, (ROWS, 3, 3))[rows]
        return fit_skel_to_keypoints(
            body(), POINTS, pixels[rows], np.ones((len(rows), 33)), Cameras(lens)
        )

    together, turned = fitted(np.arange(ROWS)), fitted(np.arange(ROWS)[::-1])
    alone = fitted(np.array([17]))
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        other = fitted(np.arange(ROWS))
    finally:
        torch.set_num_threads(threads)
    for mine, back, single, threaded in zip(
        *map(columns, (together, turned, alone, other)), strict=True
    ):
        assert np.array_equal(mine, back[::-1], equal_nan=mine.dtype.kind == "f")
        assert np.array_equal(mine[17:18], single, equal_nan=mine.dtype.kind == "f")
        assert np.array_equal(mine, threaded, equal_nan=mine.dtype.kind == "f")


def test_limits_priors_and_uncertainty():
    """No angle beyond its limit; a row without pixels for a limb follows the prior there, and says
    that it is not observed; a seen knee is."""
    pixels = truth()[1] + np.random.default_rng(8).normal(size=(ROWS, 33, 2)) * 6.0
    weights = np.ones((ROWS, 33))
    left_arm = [
        BLAZEPOSE_NAMES.index(f"left {n}") for n in ("elbow", "wrist", "pinky", "index", "thumb")
    ]
    weights[:, left_arm] = 0.0
    start = Start(people()[:, :46], people()[:, 49:], people()[:, 46:49])
    prior = pose_prior("motion")
    fit = fit_skel_to_keypoints(
        body(), POINTS, pixels, weights, Cameras(LENS), start=start, prior=prior
    )
    low, high = limits("default").T
    assert (fit.poses >= low).all() and (fit.poses <= high).all()
    assert np.array_equal(fit.active_limits, (fit.poses <= low) | (fit.poses >= high))
    elbow, knee = POSE_NAMES.index("elbow_flexion_l"), POSE_NAMES.index("knee_angle_l")
    assert not fit.observed[:, elbow].any() and fit.observed[:, knee].mean() > 0.9
    ratio = fit.sd[:, 3:] / prior.sd
    assert (ratio < 1.0 + 1e-9).all()
    assert np.median(ratio[:, knee - 3]) < 0.7
    assert np.isnan(fit.distances[:, 0, left_arm]).all()
    assert fit.prior == prior.name
    problem = problem_of(pixels[:2], weights[:2], Cameras(LENS), prior=prior)
    at = np.concatenate([fit.poses, fit.trans, fit.betas], axis=1)[:2]
    inverse = np.linalg.inv(problem.search(at, 0, derivatives=True).hessians)
    expected = np.sqrt(inverse[:, range(46), range(46)])
    widest = np.minimum(high - low, 2 * np.pi) / np.sqrt(12.0)
    assert np.allclose(fit.sd[:2], np.minimum(expected, widest), rtol=1e-6)


def test_a_wide_prior_lets_go_and_the_shape_can_stay():
    pixels = truth()[1]
    start = Start(people()[:, :46], people()[:, 49:], people()[:, 46:49])
    fixed = KeypointFitConfig(fit_betas=False)
    found = {
        name: fit_skel_to_keypoints(
            body(), POINTS, pixels, np.ones((ROWS, 33)), Cameras(LENS), start=start,
            prior=pose_prior(name), config=fixed,
        )
        for name in ("motion", "wide")
    }  # fmt: skip
    for fit in found.values():
        assert np.array_equal(fit.betas, people()[:, 49:])
    assert np.nanmean(found["wide"].distances) < np.nanmean(found["motion"].distances)
    assert found["wide"].prior.startswith("wide-")
    with pytest.raises(ValueError, match="motion, wide or limits"):
        pose_prior("narrow")


# ---- where points are attached -------------------------------------------------------------------


def posed(points: BodyPoints, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, K, 3) and joint centres (n, 24, 3) of mean bodies at poses (n, 46)."""
    at = np.zeros((len(poses), 59))
    at[:, :46], at[:, 48] = poses, 5.0
    problem = Problem.of(
        body(), points, np.zeros((len(poses), len(points), 2)), np.ones((len(poses), len(points))),
        Cameras(LENS), None, None, pose_prior("motion"), KeypointFitConfig(),
    )  # fmt: skip
    identity = body().shape(torch.zeros(len(poses), 10, dtype=torch.float64))
    joints = body().bone_transforms(torch.as_tensor(poses), identity)[1].numpy()
    joints[..., 2] += 5.0
    return problem.search(at, 0).points, joints


_MOVES = {
    "shoulder": "shoulder_{}_x", "elbow": "elbow_flexion_{}", "wrist": "wrist_flexion_{}",
    "hip": "hip_flexion_{}", "knee": "knee_angle_{}", "ankle": "ankle_angle_{}",
    "pinky": "wrist_flexion_{}", "index": "wrist_deviation_{}", "thumb": "pro_sup_{}",
    "heel": "ankle_angle_{}", "foot index": "mtp_angle_{}",
}  # fmt: skip
_CENTRES = {"shoulder": "humerus", "elbow": "ulna", "wrist": "hand", "hip": "femur",
            "knee": "tibia", "ankle": "talus"}  # fmt: skip


@pytest.mark.parametrize("name", BLAZEPOSE_NAMES)
def test_every_point_stays_where_it_belongs_over_the_whole_range(name):
    """Limb joints are the joint's centre however far it bends; every point keeps its distance from
    the bone it is on, also where the network puts it, which is centimetres away."""
    point, (low, high) = BLAZEPOSE_NAMES.index(name), limits("default").T
    side, _, part = name.partition(" ")
    moved = _MOVES.get(part, "head_extension").format(side[0])
    angle = POSE_NAMES.index(moved)
    poses = np.zeros((7, 46))
    poses[:, angle] = np.linspace(low[angle], high[angle], 7)
    points, centres = posed(PLAIN, poses)
    shifted, _ = posed(POINTS, poses)
    away = np.linalg.norm(shifted[:, point] - points[:, point], axis=1)
    assert np.ptp(away) < 1e-6
    assert 0.005 < away.mean() < 0.07 or POINTS.weights[point] == 0
    if part in _CENTRES:
        centre = JOINT_NAMES.index(f"{_CENTRES[part]}_{side[0]}")
        assert np.abs(points[:, point] - centres[:, centre]).max() < 1e-6
        return
    carrier = {"heel": "calcn_", "foot index": "toes_"}.get(
        part, "hand_" if part in _MOVES else "head"
    )
    bone = JOINT_NAMES.index(carrier + side[0] if carrier != "head" else carrier)
    reach = np.linalg.norm(points[:, point] - centres[:, bone], axis=1)
    assert np.ptp(reach) < 1e-6
    assert 0.02 < reach.mean() < 0.25


def test_left_and_right_mirror():
    """The mirror image of a pose has the mirror image of its points, names exchanged."""
    poses = people()[:5, :46].copy()
    poses[:, :3] = 0.0
    # the left ankle's axis is the published one, which is no mirror image
    poses[:, [POSE_NAMES.index(f"ankle_angle_{side}") for side in "lr"]] = 0.0
    mirrored = poses[:, MIRROR_PERMUTATION] * MIRROR_SIGNS
    here, there = posed(POINTS, poses)[0], posed(POINTS, mirrored)[0]
    swap = {"left": "right", "right": "left"}
    order = [
        BLAZEPOSE_NAMES.index(" ".join(swap.get(w, w) for w in name.split()))
        for name in BLAZEPOSE_NAMES
    ]
    assert np.abs(here[:, order] * [-1, 1, 1] - there).max() < 1e-3


def test_label_points_are_those_of_the_labels():
    """On one body the rigid elbow is the joint at any bend; the regressed one leaves it."""
    points = label_points(keypoint_matrix(default_body_directory()))
    assert len(points) == 44 and abs(points.weights.sum() - len(set(points.groups))) < 1e-9
    angle = POSE_NAMES.index("elbow_flexion_r")
    poses = np.zeros((2, 46))
    poses[1, angle] = 2.0
    found, centres = posed(points, poses)
    joint = JOINT_NAMES.index("ulna_r")
    away = np.linalg.norm(found - centres[:, joint, None], axis=2)
    openpose, lsp = points.names.index("right elbow"), points.names.index("right elbow (LSP)")
    assert away[0, openpose] < 0.02 and abs(away[1, openpose] - away[0, openpose]) < 1e-6
    assert away[1, lsp] > 0.06


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_rows_are_rejected_and_change_no_other():
    pixels, weights = truth()[1][:6].copy(), np.ones((6, 33))
    good = fit_skel_to_keypoints(body(), POINTS, pixels, weights, Cameras(LENS))
    pixels[1, 11], weights[2] = np.nan, 0.0
    weights[3, 3:] = 0.0
    pixels[4] = 480.0  # all on one: no distance fits
    fit = fit_skel_to_keypoints(body(), POINTS, pixels, weights, Cameras(LENS))
    bad = ["non_finite_points", "no_points", "no_points", "no_points"]
    assert [s.reason for s in fit.status] == ["", *bad, ""]
    assert np.isnan(fit.poses[1:5]).all() and not fit.observed[1:5].any()
    assert np.array_equal(fit.poses[[0, 5]], good.poses[[0, 5]])
    behind = Start(people()[:6, :46], people()[:6, 49:], -people()[:6, 46:49])
    fit = fit_skel_to_keypoints(
        body(), POINTS, truth()[1][:6], np.ones((6, 33)), Cameras(LENS), start=behind
    )
    assert {s.reason for s in fit.status} == {"behind_camera"}
    empty = fit_skel_to_keypoints(body(), POINTS, pixels[:0], weights[:0], Cameras(LENS))
    assert empty.poses.shape == (0, 46) and empty.status == []


def test_a_camera_is_judged_by_itself():
    """A row without a camera hides nothing of another's: before, NaN let a stretched one pass."""
    outer = np.stack([np.full((3, 4), np.nan), 3.0 * np.eye(3, 4)])[:, None]
    with pytest.raises(ValueError, match="expected rotations"):
        fit_skel_to_keypoints(
            body(), POINTS, truth()[1][:2], np.ones((2, 33)),
            Cameras(np.broadcast_to(LENS, (2, 1, 3, 3)), outer),
        )  # fmt: skip


def test_a_view_of_one_point_does_not_outweigh_the_others():
    """Nor is the person as small as what that view sees."""
    cameras, pixels = two_cameras()
    weights = np.ones((ROWS, 2, 33))
    weights[:, 1, 1:] = 0.0
    pixels = pixels.copy()
    pixels[:, 1, 0] += 6.0
    start = Start(people()[:, :46], people()[:, 49:], people()[:, 46:49])
    fit = fit_skel_to_keypoints(body(), POINTS, pixels, weights, cameras, start=start)
    seen = project(fit.points, LENS)
    assert np.linalg.norm(seen - pixels[:, 0], axis=-1).max() < 6.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixels": np.zeros((2, 32, 2))}, r"pixels: expected \(n, 33, 2\)"),
        ({"weights": np.ones((2, 32))}, r"weights: expected \(2, 1, 33\)"),
        ({"weights": -np.ones((2, 33))}, "weights: expected 0 and more"),
        ({"weights": np.full((2, 33), "a")}, "weights: expected numbers"),
        ({"pixels": np.zeros((2, 2, 33, 2)), "weights": np.ones((2, 2, 33))}, "2 views need one"),
        ({"cameras": Cameras(np.eye(3) * [-1, 1, 1])}, "focal lengths above 0"),
        ({"cameras": Cameras(np.ones((3, 3)))}, "rows fx s cx"),
        ({"cameras": Cameras(LENS, np.ones((3, 4)))}, "expected rotations"),
        ({"cameras": Cameras(np.broadcast_to(LENS, (5, 1, 3, 3)))}, "intrinsics: expected"),
        ({"size": np.ones(3)}, r"size: expected \(2,\)"),
        ({"places": Places(np.zeros((2, 3)), np.ones((2, 33)))}, "places.points: expected"),
        ({"start": Start(np.zeros((2, 45)), np.zeros((2, 10)), np.zeros((2, 3)))}, "start.poses"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_in_one_line(change, said):
    given = {"pixels": np.zeros((2, 33, 2)), "weights": np.ones((2, 33)), "cameras": Cameras(LENS)}
    given |= change
    pixels, weights, cameras = (given.pop(name) for name in ("pixels", "weights", "cameras"))
    with pytest.raises(ValueError, match=said):
        fit_skel_to_keypoints(body(), POINTS, pixels, weights, cameras, **given)


def test_points_and_priors_are_checked():
    with pytest.raises(ValueError, match="sum 1"):
        BodyPoints(("a",), np.zeros((1, 6890)), np.zeros((1, 24)), np.zeros((1, 3)), np.array([2]),
                   np.ones(1), np.zeros(1, np.int64), (0, 0, 0, 0))  # fmt: skip
    with pytest.raises(ValueError, match="spans"):
        replace(POINTS, spans=np.array([[11, 33]]))
    with pytest.raises(ValueError, match="not positive"):
        PosePrior("flat", np.zeros(43), np.zeros((43, 43)))
    with pytest.raises(ValueError, match="expected"):
        PosePrior("short", np.zeros(40), np.eye(43))
