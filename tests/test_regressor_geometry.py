"""Pose representation, cameras, crops, mirror and roll (docs/reference/regressor.md)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skel_fit import anatomy, joint_limits
from stages.regressor.data import crops
from stages.regressor.network import camera, representation
from stages.regressor.network.camera import intrinsics
from stages.regressor.network.mean_parameters import POSES, mean_parameters

ANGLES = st.lists(st.floats(-1, 1), min_size=46, max_size=46)


def within_limits(shares: list[float]) -> torch.Tensor:
    """Angles (1, 46) inside the published limits, the pelvis in its principal range."""
    low, high = joint_limits.limits("published").T.copy()
    low[:3], high[:3] = (-3.1, -math.pi / 2, -3.1), (3.1, math.pi / 2, 3.1)
    share = (np.array(shares) + 1) / 2
    return torch.from_numpy(low + (high - low) * share)[None]


# ---- representation -----------------------------------------------------------------------------


@given(ANGLES)
def test_encode_then_decode_gives_the_angles_back(shares: list[float]) -> None:
    poses = within_limits(shares)
    code = representation.encode(poses)
    turns = representation.pose_rotations(poses)
    assert (representation.pose_rotations(representation.decode(code)) - turns).abs().max() < 1e-9
    assert (representation.rotations(code) - turns).abs().max() < 1e-9
    unused = np.setdiff1d(np.arange(144), representation.MEANINGFUL)
    assert len(unused) == 56 and (code[:, unused] == 0).all()
    # Away from the singularity (middle angles of pelvis and shoulders) the angles are unique.
    if all(abs(float(poses[0, k])) < 1.5 for k in (1, 30, 40)):
        assert (representation.decode(code) - poses).abs().max() < 1e-9
        single = representation.decode(representation.encode(poses.float()))
        assert (single - poses).abs().max() < 1e-3


def test_rotations_are_those_of_the_body_model(golden_skel64) -> None:
    poses = torch.randn(20, 46, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(
        representation.pose_rotations(poses), golden_skel64.joint_rotations(poses), atol=1e-12
    )


def test_mean_pose_is_encoded_as_published() -> None:
    mean = mean_parameters()
    assert torch.allclose(
        mean.code[:6], torch.tensor([-1.0, 0, 0, 0, -1, 0]), atol=1e-6
    )  # 3.2, last line
    decoded = representation.decode(mean.code[None])[0]
    # pelvis tilt pi may come back as -pi
    assert (torch.remainder(decoded - torch.tensor(POSES) + 1, 2 * math.pi) - 1).abs().max() < 1e-5
    hinge = mean.code.view(24, 6)[2, :2]  # right knee
    assert torch.allclose(hinge, torch.tensor([math.cos(POSES[6]), -math.sin(POSES[6])]))
    assert mean.camera.tolist() == pytest.approx([0.9, 0, 0])


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=144, max_size=144))
def test_any_numbers_decode_to_finite_angles_of_the_same_rotation(numbers: list[float]) -> None:
    code = torch.tensor([numbers], dtype=torch.float64, requires_grad=True)
    angles = representation.decode(code)
    turns = representation.rotations(code)
    assert torch.isfinite(angles).all() and torch.isfinite(turns).all()
    (angles.sum() + turns.sum()).backward()
    assert torch.isfinite(code.grad).all()
    grid = code.detach().view(24, 6)
    first, second = grid[:, :3], grid[:, 3:]
    proper = torch.linalg.cross(first, second).norm(dim=1) > 1e-3
    ball = [j for j in anatomy.BALL_JOINTS if proper[j]]
    again = representation.pose_rotations(angles)
    for j in ball:
        assert (again[0, j] - turns[0, j]).abs().max() < 1e-6


@pytest.mark.parametrize("away", [0.0, 1e-9, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("lock", [math.pi / 2, -math.pi / 2])
def test_gimbal_lock_keeps_the_rotation_and_finite_gradients(lock: float, away: float) -> None:
    angle = lock * (1 - away)
    poses = torch.randn(8, 46, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    poses[:, [1, 4, 18, 30, 40]] = angle
    code = representation.encode(poses).requires_grad_()
    decoded = representation.decode(code)
    before, after = (representation.pose_rotations(q) for q in (poses, decoded))
    assert (before - after).abs().max() < 1e-8
    decoded.sum().backward()
    assert torch.isfinite(code.grad).all()
    # In float32 rounding may push a sine over 1, and the outer angles are read from rounding: the
    # rotation is right all the same.
    single = representation.decode(representation.encode(poses.float()))
    assert (before - representation.pose_rotations(single)).abs().max() < 1e-5


def test_rotations_have_bounded_gradients_where_the_angles_have_not() -> None:
    """regressor.md#d26: at the singularity dq/dd explodes (1116 at 1.5699), dR/dd does not."""
    poses = torch.zeros(1, 46, dtype=torch.float64)
    poses[0, 1] = 1.5699
    code = representation.encode(poses)

    def largest(function) -> float:  # type: ignore[no-untyped-def]
        return float(torch.autograd.functional.jacobian(function, code).abs().max())

    assert largest(lambda d: representation.decode(d)[:, :3]) > 1000
    assert largest(lambda d: representation.rotations(d)[:, 0]) < 3


# ---- mirror and roll ----------------------------------------------------------------------------


@given(ANGLES)
def test_mirroring_is_an_involution_and_mirrors_every_joint_but_the_ankles(
    shares: list[float],
) -> None:
    poses = within_limits(shares)
    mirrored = representation.mirror_poses(poses)
    assert torch.equal(representation.mirror_poses(mirrored), poses)
    turns, others = (representation.pose_rotations(q)[0] for q in (poses, mirrored))
    partner = [0, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 11, 12, 13, 19, 20, 21, 22, 23, 14, 15, 16, 17, 18]
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    wanted = flip @ turns[partner] @ flip
    error = (others - wanted).abs().amax((1, 2))
    rest = [j for j in range(24) if j not in anatomy.ANKLE_JOINTS]
    # The stored toe axes are mirrored to 4e-6 only.
    assert error[rest].max() < 1e-5
    assert error[list(anatomy.ANKLE_JOINTS)].max() < math.radians(18)


@given(ANGLES, st.floats(-math.pi, math.pi))
def test_a_roll_turns_the_camera_frame_orientation(shares: list[float], angle: float) -> None:
    poses = within_limits(shares)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[[c, -s, 0], [s, c, 0], [0, 0, 1]]], dtype=torch.float64)
    rolled = representation.turn_root(poses, turn)
    frame = torch.tensor(representation.NOMINAL_ROOT_FRAME, dtype=torch.float64)

    def orientation(q: torch.Tensor) -> torch.Tensor:
        return frame @ representation.pose_rotations(q)[:, 0] @ frame.T

    assert (orientation(rolled) - turn @ orientation(poses)).abs().max() < 1e-8
    assert torch.equal(rolled[:, 3:], poses[:, 3:])


# ---- cameras ------------------------------------------------------------------------------------


def test_the_camera_vector_of_the_reference() -> None:
    """Test vector of 1.4."""
    center, side = torch.tensor([[1400.0, 420.0]]), torch.tensor([500.0])
    cam_int = torch.tensor([intrinsics(1500, 1920, 1080)])
    crop_camera = torch.tensor([[0.9, 0.05, -0.1]])
    conditioning = camera.box_conditioning(center, side, cam_int)
    assert conditioning[0].tolist() == pytest.approx([0.293333, -0.08, 0.333333], abs=1e-6)
    translation = camera.full_image_translation(crop_camera, center, side, cam_int)
    assert translation[0].tolist() == pytest.approx([2.005556, -0.633333, 6.666667], abs=1e-6)
    affine = torch.tensor(
        crops.Crop(np.array([1400, 420]), 500, np.array([960, 540]), 256).affine
    ).float()
    pixel = camera.project(translation[:, None], cam_int)
    seen = camera.to_crop(pixel, affine[None], 256)
    assert seen[0, 0].tolist() == pytest.approx([0.0225, -0.045], abs=1e-5)


@given(
    st.floats(0.2, 3), st.floats(-1, 1), st.floats(-1, 1), st.floats(50, 900),
    st.floats(0, 1920), st.floats(0, 1080), st.floats(300, 4000),
)  # fmt: skip
def test_the_origin_lands_where_the_crop_camera_says(
    s: float, tx: float, ty: float, side: float, cx: float, cy: float, focal: float
) -> None:
    """regressor.md#camera: a point at the origin projects to (s tx / 2, s ty / 2) of the crop,
    exactly."""
    double = torch.float64
    cam_int = torch.tensor([intrinsics(focal, 1920, 1080)], dtype=double)
    center = torch.tensor([[cx, cy]], dtype=double)
    translation = camera.full_image_translation(
        torch.tensor([[s, tx, ty]], dtype=double), center, torch.tensor([side], dtype=double),
        cam_int,
    )  # fmt: skip
    affine = crops.Crop(np.array([cx, cy]), side, np.array([960.0, 540.0]), 256).affine
    pixel = camera.project(translation[:, None], cam_int)
    seen = camera.to_crop(pixel, torch.from_numpy(affine)[None], 256)[0, 0]
    assert seen.tolist() == pytest.approx([s * tx / 2, s * ty / 2], abs=1e-9)


def test_focal_from_the_field_of_view() -> None:
    assert camera.focal_from_fov(0.7, 1080) == pytest.approx(1479.34, abs=0.005)


def test_crop_camera_of_the_baseline() -> None:
    translation = camera.crop_translation(torch.tensor([[0.9, 0.1, -0.2]]))
    assert translation[0].tolist() == pytest.approx([0.1, -0.2, 2 * 5000 / (256 * 0.9)], rel=1e-6)
    seen = camera.project_in_crop(translation)[0]
    assert seen.tolist() == pytest.approx([0.9 * 0.1 / 2, -0.9 * 0.2 / 2], rel=1e-5)


def test_boxes_grow_to_what_the_network_sees() -> None:
    """label-formats.md#crop: ratio 192 : 256, then squared."""
    assert camera.grown_side(100, 300, enlarge=True) == 300
    assert camera.grown_side(300, 300, enlarge=True) == pytest.approx(400)
    assert camera.grown_side(300, 300, enlarge=False) == 300
    side = camera.grown_side(500, 200, enlarge=True)
    assert side * 0.75 >= 500 - 1e-9  # the centre 3/4 of the columns hold the whole box


# ---- crops --------------------------------------------------------------------------------------


def dots(size: tuple[int, int], places: np.ndarray) -> np.ndarray:
    """A black picture with a bright blob at each place (continuous pixels)."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    picture = np.zeros(size)
    for px, py in places:
        picture += np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 3.0**2))
    return np.repeat((picture.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, 2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("roll", [0.0, 0.6])
@pytest.mark.parametrize("side", [150.0, 420.0])
def test_pixels_go_where_the_keypoints_go(flip: bool, roll: float, side: float) -> None:
    """One map for picture and labels: a blob is found at its mapped place."""
    from stages.drawing.render import png_bytes

    place = np.array([[330.0, 190.0]])
    principal = np.array([300.0, 200.0])
    picture = dots((400, 600), place)
    turned = crops.Crop(place[0], side, principal, 128, flip, roll)
    center = crops.apply(turned.turn, place[0]) + np.array([side * 0.08, -side * 0.2])
    crop = crops.Crop(center, side, principal, 128, flip, roll)
    cut = crops.cut(png_bytes(picture), "dots", crop)[..., 0].astype(float)
    assert cut.shape == (128, 96)
    y, x = np.mgrid[0:128, 0:96] + 0.5
    found = np.array([(x * cut).sum(), (y * cut).sum()]) / cut.sum()
    wanted = crops.apply(crops.compose(crop.affine, crop.turn), place)[0] - (16, 0)
    assert np.abs(found - wanted).max() < 0.25
    # The conventions of regressor.md#roll: a flip mirrors x about the principal point, a roll keeps
    # distances.
    moved = crops.apply(crop.turn, place)[0]
    offset = (place[0] - principal) * ((-1 if flip else 1), 1)
    angle = math.atan2(*(moved - principal)[::-1]) - math.atan2(*offset[::-1])
    assert math.remainder(angle - roll, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_a_rolled_and_flipped_view_is_the_view_of_the_rolled_and_flipped_body() -> None:
    """regressor.md#roll: exact under full perspective, far off the axis, with unchanged
    intrinsics."""
    random = np.random.default_rng(0)
    cam_int = np.array(intrinsics(900.0, 1200, 800))
    points = random.normal(size=(44, 3)) * 0.4 + (1.2, -0.5, 4.0)
    crop = crops.Crop(np.array([800.0, 300.0]), 300, cam_int[:2, 2], 256, True, 0.44)
    c, s = math.cos(0.44), math.sin(0.44)
    moved = (points * (-1, 1, 1)) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T

    def project(x: np.ndarray) -> np.ndarray:
        return (x @ cam_int.T)[:, :2] / x[:, 2:]

    assert np.abs(crops.apply(crop.turn, project(points)) - project(moved)).max() < 1e-9


def test_outside_is_black_before_normalisation() -> None:
    from stages.drawing.render import png_bytes

    white = np.full((50, 50, 3), 255, np.uint8)
    crop = crops.Crop(np.array([0.0, 0.0]), 64, np.array([25.0, 25.0]), 128)
    cut = crops.cut(png_bytes(white), "white", crop)
    assert cut[0, 0].tolist() == [0, 0, 0] and cut[100, 90].tolist() == [255, 255, 255]
    values = crops.normalise(cut)
    assert values[:, 0, 0].tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-5
    )
    assert values[:, 100, 90].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rel=1e-5
    )
