"""Several calibrated cameras: their files, where rays meet, exchanged sides, adjusted cameras."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from skel_fit.triangulation import projected, triangulate
from stages.photo.camera_files import cameras_of, check_size, read_camera_file
from stages.photo.views import LIMBS, Views, adjusted, arrays_of, wrong_sides
from tests.camera_rings import (
    HEIGHT,
    WIDTH,
    Y_UP,
    motion,
    points_of,
    ring,
    seen_by,
    write_qualisys,
    write_toml,
)


@pytest.fixture(scope="module")
def world() -> np.ndarray:
    """(24, 33, 3) landmarks of a moving body in the ring's world."""
    return points_of(*motion()) @ Y_UP


@pytest.fixture(scope="module")
def views(world: np.ndarray) -> Views:
    return seen_by(ring(), world, noise=2.0)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_qualisys, write_toml])
def test_both_formats_say_the_same_cameras(tmp_path: Path, write) -> None:
    cameras = [replace(c, distortion=np.array([-0.05, 0.1, 1e-3, 2e-3, 0])) for c in ring()]
    found = read_camera_file(write(tmp_path / "calibration", cameras))
    assert [c.name for c in found] == [c.name for c in cameras]
    for one, other in zip(found, cameras, strict=True):
        assert one.size == other.size == (HEIGHT, WIDTH)
        np.testing.assert_allclose(one.cam_int, other.cam_int, atol=1e-6)
        np.testing.assert_allclose(one.turn, other.turn, atol=1e-9)
        np.testing.assert_allclose(one.shift, other.shift, atol=1e-9)
        np.testing.assert_allclose(one.distortion[:4], other.distortion[:4])


def test_distortion_is_taken_away() -> None:
    camera = replace(ring()[0], distortion=np.array([-0.2, 0.05, 1e-3, -2e-3, 0.0]))
    x, y = 0.3, -0.4  # OpenCV's model, written down again
    r2 = x * x + y * y
    radial = 1 - 0.2 * r2 + 0.05 * r2**2
    seen = np.array([
        x * radial + 2 * 1e-3 * x * y - 2e-3 * (r2 + 2 * x * x),
        y * radial + 1e-3 * (r2 + 2 * y * y) - 2 * 2e-3 * x * y,
    ])  # fmt: skip
    pixels = seen * np.diag(camera.cam_int)[:2] + camera.cam_int[:2, 2]
    straight = np.array([x, y]) * np.diag(camera.cam_int)[:2] + camera.cam_int[:2, 2]
    np.testing.assert_allclose(camera.undistorted(pixels[None])[0], straight, atol=0.05)


QCA = (
    ("<calibration", "<!DOCTYPE x [<!ENTITY a 'b'>]><calibration", "document type"),
    ("</cameras>", "", "no XML"),
    ("<calibration", "<other", "no XML"),
    ('serial="cam1"', 'serial="../x"', "name without slashes"),
    ('serial="cam1"', 'serial="cam2"', "two cameras are named 'cam2'"),
    ('viewrotation="0"', 'viewrotation="90"', "viewrotation '90'"),
    ('r11="', 'r11="9" q="', "its rotation is none"),
    ('r11="', 'r11="x', "r11 of <transform> is 'x"),
    ("<transform r11", "<transform q11", "r11 of <transform> is missing"),
    ('focalLengthU="', 'focalLengthU="-', "focal length"),
    ('focalLengthU="', 'focalLengthU="nan" q="', "not finite"),
    ('right="499"', 'right="-7"', "pictures of -6 x 600"),
    ("fov_video", "fov", "expected fov_video, transform and intrinsic"),
)
TOML = (
    ("fisheye = false", "fisheye = true", "fisheye lenses"),
    ("rotation = [", "rotation = [nan, ", "expected 3 or 3 x 3 numbers"),
    ("translation = [", "translation = [inf] #", "expected 3 numbers"),
    ("matrix = [[", "matrix = [[[", "expected .qca.txt or .toml"),
    ("distortions = [", "distortions = ['a', ", "expected 4 or 5 numbers"),
    ("size = [ 500.0", "size = [ 5e9", "pictures of 5e+09"),
    ("size = [ 500.0", "size = [ true", "expected 2 numbers"),
    ("[cam1]\n", "[cam1]\nfisheye = 0\n", "expected .qca.txt or .toml"),
    ("[cam1]", "[" * 3000, "expected .qca.txt or .toml"),
    ("[cam1]", "a = " + "[" * 100_000, "expected .qca.txt or .toml"),
    ("[cam1]", "[cam9", "expected .qca.txt or .toml"),
)


@pytest.mark.parametrize(
    ("write", "old", "new", "said"),
    [(write_qualisys, *case) for case in QCA] + [(write_toml, *case) for case in TOML],
)
def test_damaged_calibrations_are_refused_by_a_line(
    tmp_path: Path, write, old: str, new: str, said: str
) -> None:
    path = write(tmp_path / "calibration", ring(2))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_camera_file(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, said in ((b"\xff\xfe\x00", "no text file"), (b"", "no tables of cameras"),
                          (b"[metadata]\nerror = 0.0", "no tables of cameras"),
                          (b"<calibration/>", "0 cameras")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_camera_file(path)
    with pytest.raises(InputError, match="no such calibration"):
        read_camera_file(tmp_path / "none")


def test_cameras_go_to_videos_by_name_else_in_order() -> None:
    cameras = [replace(c, name=n) for c, n in zip(ring(), ("cam1", "cam12", "x", "y"), strict=True)]
    named = [Path("walk_cam12.mp4"), Path("walk_CAM1.mp4")]
    found, how = cameras_of(cameras, named, Path("c"))
    assert ([c.name for c in found], how) == (["cam12", "cam1"], "by name")
    plain = [Path(f"{k}.mp4") for k in range(4)]
    found, how = cameras_of(cameras, plain, Path("c"))
    assert ([c.name for c in found], how) == (["cam1", "cam12", "x", "y"], "in order")
    with pytest.raises(InputError, match="4 cameras"):
        cameras_of(cameras, plain[:3], Path("c"))


def test_a_video_of_another_size_is_refused() -> None:
    camera = ring()[0]
    check_size(camera, (HEIGHT, WIDTH - 4), Path("v"), Path("c"))
    with pytest.raises(InputError, match="frames of 250 x 300"):
        check_size(camera, (HEIGHT // 2, WIDTH // 2), Path("v"), Path("c"))


# ---- where rays meet -----------------------------------------------------------------------------


def test_points_are_where_they_were() -> None:
    cam_int, outer = arrays_of(ring())
    points = np.random.default_rng(0).uniform(0.2, 1.4, (50, 3)) - [0.8, 0.8, 0.0]
    pixels, depth = projected(points, cam_int, outer)
    assert (depth > 0).all()
    camera = ring()[2]  # one of them by hand
    inside = camera.turn @ points[7] + camera.shift
    flat = camera.cam_int @ inside
    np.testing.assert_allclose(pixels[7, 2], flat[:2] / flat[2])
    weights, sigmas = np.ones((50, 4)), np.full((50, 4), 5.0)
    found = triangulate(pixels, weights, sigmas, cam_int, outer)
    np.testing.assert_allclose(found.points, points, atol=1e-6)
    pixels[:, 1] += 200.0  # one view is far off
    found = triangulate(pixels, weights, sigmas, cam_int, outer)
    assert np.median(np.linalg.norm(found.points - points, axis=1)) < 0.005
    weights[:, 1:] = 0.0
    found = triangulate(pixels, weights, sigmas, cam_int, outer)
    assert np.isnan(found.points).all() and not found.cost.any()


# ---- exchanged sides -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_exchanged_views_are_found(world: np.ndarray, count: int) -> None:
    views = seen_by(ring(count), world, noise=2.0)
    wrong = np.zeros(views.seen.shape, bool)
    wrong[8:17, 1] = True
    wrong[15:17, 0] |= count == 4
    assert (wrong_sides(views.exchanged(wrong)) == wrong).all()
    assert not wrong_sides(views).any()


# ---- adjusted cameras ----------------------------------------------------------------------------


def test_cameras_are_adjusted_to_what_they_see(views: Views, world: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    given = []
    for camera in views.cameras:
        turn = _small_turn(0.02 * rng.normal(size=3)) @ camera.turn
        given.append(replace(camera, turn=turn, shift=camera.shift + 0.03 * rng.normal(size=3)))
    cameras, found = adjusted([replace(views, cameras=tuple(given))])
    better = replace(views, cameras=cameras)
    before, after = (np.nanmedian(m.distances) for m in (found.before, found.after))
    assert before > 4.0 and after < 2.5  # the landmarks' noise is 2 px a coordinate
    shape = better.joints().points.reshape(-1, 12, 3)
    truth = world[:, LIMBS]
    for points in (shape, truth):  # distances between joints do not depend on where the world is
        assert np.isfinite(points).all()
    errors = np.linalg.norm(shape[:, :, None] - shape[:, None], axis=-1)
    errors -= np.linalg.norm(truth[:, :, None] - truth[:, None], axis=-1)
    assert np.abs(errors).mean() < 0.012
    centres = np.stack([c.centre for c in better.cameras])
    wanted = np.stack([c.centre for c in given])
    np.testing.assert_allclose(centres.mean(0), wanted.mean(0), atol=1e-9)
    assert np.abs(shape - truth).mean() < 0.06  # and the world is where the given cameras say


def _small_turn(axis: np.ndarray) -> np.ndarray:
    x, y, z = axis
    u, _, vt = np.linalg.svd(np.eye(3) + np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    return u @ vt


def test_too_few_points_adjust_nothing(views: Views) -> None:
    with pytest.raises(ValueError, match="seen by two cameras"):
        adjusted([views.rows(slice(0, 1))])
