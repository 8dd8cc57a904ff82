"""Readers of evaluation files on format-faithful fixtures; the MOYO-HARD builder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.regressor.data.images import open_images
from stages.regressor.evaluation.eval_readers import read_eval_rows
from stages.regressor.evaluation.label_files import read_camerahmr, read_hmr2, read_moyo
from stages.regressor.evaluation.moyo_hard import (
    MOYO_HARD_ROWS,
    MOYO_HARD_SEQUENCES,
    ROUNDINGS,
    build_moyo_hard,
    middle_half,
    select_moyo_hard,
)
from stages.regressor.evaluation.protocols import load_protocol

ROWS = 6


def write(path: Path, members: dict) -> Path:
    np.savez(path, **members)  # pickles object arrays, as the published files have them
    return path


def hmr2(**changes) -> dict:
    """`h36m_val_p2.npz`: bytes names, boxes in pixels, 3D truth in the extra keypoints."""
    random = np.random.default_rng(0)
    members = {
        "imgname": np.array([f"S9/{k:06d}.jpg" for k in range(ROWS)], "S40"),
        "center": random.uniform(200, 800, (ROWS, 2)),
        "scale": random.uniform(150, 400, (ROWS, 1)),
        "extra_keypoints_2d": random.uniform(0, 900, (ROWS, 19, 3)),
        "extra_keypoints_3d": random.normal(0, 0.5, (ROWS, 19, 4)),
        "part": random.uniform(0, 900, (ROWS, 24, 3)),
        **changes,
    }
    return {name: value for name, value in members.items() if value is not None}


def camerahmr(**changes) -> dict:
    """`3dpw_test.npz` of CameraHMR: SMPL in the camera frame, boxes in 200 pixels."""
    random = np.random.default_rng(1)
    members = {
        "imgname": np.array([f"downtown_{k // 3}/image_{k:05d}.jpg" for k in range(ROWS)]),
        "center": random.uniform(200, 800, (ROWS, 2)),
        "scale": random.uniform(0.8, 2.0, ROWS),
        "pose_cam": random.normal(0, 0.3, (ROWS, 72)),
        "shape": random.normal(0, 1, (ROWS, 10)).clip(-2, 2),
        "gender": np.array(["m", "f", "male", "female", "neutral", "?"]),
        "cam_int": np.tile([[1500.0, 0, 960], [0, 1500.0, 540], [0, 0, 1]], (ROWS, 1, 1)),
        **changes,
    }
    return {name: value for name, value in members.items() if value is not None}


def moyo(frames: dict[str, int] | None = None, cameras=("YOGI_Cam_01", "YOGI_Cam_02"), **changes):
    """`moyo_v2.npz`: SMPL in a 0-d object array, boxes (w, h) in pixels."""
    random = np.random.default_rng(2)
    images, names = [], []
    for name, count in (frames or {"pose_a": 4, "pose_b": 2}).items():
        for camera in cameras:
            images += [f"{name}/{camera}/{camera}_{k:05d}.jpg" for k in range(count)]
            names += [name] * count
    n = len(images)
    members = {
        "names": np.array(names),
        "img_paths": np.array(images),
        "centers": random.uniform(800, 1200, (n, 2)),
        "scales": random.uniform(300, 900, (n, 2)),
        "genders": np.array(["neutral"] * n, object),
        "smpl": np.array(
            {
                "global_orient": random.normal(size=(n, 3)).astype(np.float32),
                "body_pose": random.normal(0, 0.3, (n, 69)).astype(np.float32),
                "betas": random.normal(size=(n, 10)).clip(-2, 2).astype(np.float32),
            },
            object,
        ),
        "extra_info": np.array({"dataset_name": "MoYo"}, object),
        **changes,
    }
    return {name: value for name, value in members.items() if value is not None}


# --- HMR2 ----------------------------------------------------------------------------------------


def test_hmr2_file(tmp_path):
    members = hmr2()
    rows = read_hmr2(write(tmp_path / "h36m_val_p2.npz", members), scale_unit="px")
    assert rows.name.tolist()[1] == "S9/000001.jpg"
    np.testing.assert_array_equal(rows.box, np.repeat(members["scale"], 2, 1))
    np.testing.assert_array_equal(rows.keypoints_3d[:, 25:], members["extra_keypoints_3d"][..., :3])
    np.testing.assert_array_equal(rows.keypoints_2d[:, 25:], members["extra_keypoints_2d"])
    assert np.isnan(rows.keypoints_3d[:, :25]).all()  # not there, so nothing may rest on it
    assert (rows.keypoints_2d[:, :25, 2] == 0).all()
    assert np.isnan(rows.cam_int).all()
    assert (rows.reason == "").all()
    assert rows.poses is None


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, 2)])
def test_scale_of_any_rank(tmp_path, shape):
    scale = np.random.default_rng(0).uniform(150, 400, shape)
    rows = read_hmr2(write(tmp_path / "a.npz", hmr2(scale=scale)), scale_unit="px")
    expected = np.broadcast_to(scale.reshape(ROWS, -1), (ROWS, 2))
    np.testing.assert_array_equal(rows.box, expected)


def test_names_stored_as_objects(tmp_path):
    names = np.array([f"{k}.jpg" for k in range(ROWS)], object)
    rows = read_hmr2(write(tmp_path / "a.npz", hmr2(imgname=names)), scale_unit="px")
    assert rows.name.tolist() == names.tolist()


def test_truth_that_is_not_finite_is_skipped_only_where_it_is_compared(tmp_path):
    protocol = load_protocol("h36m-p2")
    points = hmr2()["extra_keypoints_3d"]
    points[1, 43 - 25, 0] = np.nan  # compared
    points[2, 39 - 25, 1] = np.inf  # the root
    points[3, 42 - 25, 0] = np.nan  # neither
    path = write(tmp_path / "a.npz", hmr2(extra_keypoints_3d=points))
    reason = read_eval_rows(protocol, path).reason
    assert reason.tolist() == ["", "non_finite_keypoints", "non_finite_keypoints", "", "", ""]


def test_a_file_of_the_other_flavour_is_refused(tmp_path):
    path = write(tmp_path / "3dpw_test.npz", camerahmr(scale=np.full(ROWS, 250.0)))
    with pytest.raises(InputError, match=r"3dpw_test.npz: no 3D keypoints.*hmr2 flavour"):
        read_eval_rows(load_protocol("3dpw-hmr2"), path)
    path = write(tmp_path / "3dpw_test.npz", hmr2(scale=np.full(ROWS, 1.5)))
    with pytest.raises(InputError, match=r"no SMPL poses.*camerahmr flavour"):
        read_eval_rows(load_protocol("3dpw-chmr"), path)


# --- CameraHMR -----------------------------------------------------------------------------------


def test_camerahmr_file(tmp_path):
    members = camerahmr()
    rows = read_camerahmr(write(tmp_path / "3dpw_test.npz", members), scale_unit="200px")
    np.testing.assert_allclose(rows.box, np.repeat(200 * members["scale"][:, None], 2, 1))
    np.testing.assert_array_equal(rows.poses, members["pose_cam"])
    np.testing.assert_array_equal(rows.betas, members["shape"])
    np.testing.assert_array_equal(rows.cam_int, members["cam_int"])
    assert rows.gender.tolist() == ["male", "female", "male", "female", "neutral", ""]
    assert rows.sequence.tolist() == ["downtown_0"] * 3 + ["downtown_1"] * 3


def test_camerahmr_variants(tmp_path):
    wide = camerahmr(
        gender=None, cam_int=None, gtkps=np.ones((ROWS, 49, 2)),
        pose_cam=np.zeros((ROWS, 24, 3), np.float32), shape=np.zeros((ROWS, 11)),
    )  # fmt: skip
    rows = read_camerahmr(write(tmp_path / "a.npz", wide), scale_unit="200px")
    assert rows.gender.tolist() == [""] * ROWS
    assert rows.poses.shape == (ROWS, 72)
    assert rows.betas.shape == (ROWS, 10)
    assert rows.keypoints_2d.shape == (ROWS, 44, 3)
    assert (rows.keypoints_2d == 1).all()


def test_rows_that_cannot_be_right_are_skipped_with_a_reason(tmp_path):
    members = camerahmr()
    members["pose_cam"][0, 7] = np.nan
    members["shape"][1, 2] = np.inf
    members["scale"][2] = 0.01
    members["center"][3, 0] = np.inf
    members["imgname"][4] = "../../etc/passwd"
    members["cam_int"][5] = 0  # the published evaluations do not read it
    rows = read_camerahmr(write(tmp_path / "a.npz", members), scale_unit="200px")
    assert rows.reason.tolist() == [
        "non_finite_pose", "non_finite_betas", "box_too_small", "non_finite_box",
        "image_path_escapes", "",
    ]  # fmt: skip
    assert np.isnan(rows.cam_int[5]).all()


def test_every_finite_body_is_evaluated(tmp_path):
    """The published evaluators keep shapes that no conversion would take."""
    members, yoga = camerahmr(), moyo()
    members["shape"][1, 2] = 9
    members["pose_cam"][2, :3] = (0, 14, 0)  # more than two turns
    yoga["smpl"].item()["betas"][3, 0] = -7
    rows = read_camerahmr(write(tmp_path / "a.npz", members), scale_unit="200px")
    assert (rows.reason == "").all()
    rows = read_moyo(write(tmp_path / "b.npz", yoga), scale_unit="px")
    assert (rows.reason == "").all()


def test_keypoints_that_are_not_finite_are_skipped_only_where_they_count(tmp_path):
    points = np.ones((ROWS, 44, 3))
    points[1, 4, 0] = np.nan
    points[2, 5] = (np.nan, np.nan, 0)  # not annotated
    points[3, 6, 2] = np.nan
    path = write(tmp_path / "a.npz", camerahmr(gtkps=points))
    assert (read_eval_rows(load_protocol("emdb"), path).reason == "").all()
    coco = load_protocol("coco")
    source = coco.source.model_copy(update={"format": "camerahmr", "scale_unit": "200px"})
    reason = read_eval_rows(coco.model_copy(update={"source": source}), path).reason
    assert reason.tolist() == ["", "non_finite_keypoints", "", "non_finite_keypoints", "", ""]


@pytest.mark.parametrize(
    ("read", "members", "unit", "other"),
    [(read_hmr2, hmr2, "200px", "px"), (read_camerahmr, camerahmr, "px", "200px"),
     (read_moyo, moyo, "200px", "px")],
)  # fmt: skip
def test_boxes_in_the_wrong_unit_refuse_the_file(tmp_path, read, members, unit, other):
    path = write(tmp_path / "labels.npz", members())
    with pytest.raises(InputError, match=rf"labels.npz.*units of {unit}.*probably {other}"):
        read(path, scale_unit=unit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose_cam": np.zeros((ROWS, 66))}, "'pose_cam': expected 72 values"),
        ({"shape": np.zeros((ROWS, 9))}, "'shape': expected 10 betas"),
        ({"shape": None}, "'shape' is missing"),
        ({"center": np.zeros((ROWS, 3))}, "'center': expected shape"),
        ({"center": np.zeros((ROWS - 1, 2))}, "'center': expected numbers for 6 rows"),
        ({"scale": np.zeros((ROWS, 3))}, "'scale': expected one or two numbers"),
        ({"imgname": None}, "'imgname' is missing"),
        ({"imgname": np.zeros(ROWS)}, "'imgname': expected one text"),
        ({"gtkps": np.zeros((ROWS, 17, 3))}, "'gtkps': expected"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path, changes, message):
    path = write(tmp_path / "a.npz", camerahmr(**changes))
    with pytest.raises(InputError, match=message) as caught:
        read_camerahmr(path, scale_unit="200px")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("member", ["smpl", "img_paths"])
def test_pickles_are_read_as_data_and_never_run(tmp_path, member):
    marker = tmp_path / "ran"
    evil = np.array({"betas": Hostile(marker)}, object)
    if member == "img_paths":
        evil = np.array([Hostile(marker)] * 12, object)
    path = write(tmp_path / "moyo.npz", moyo(**{member: evil}))
    with pytest.raises(InputError, match=member):
        read_moyo(path, scale_unit="px")
    assert not marker.exists()


# --- MOYO ----------------------------------------------------------------------------------------


def test_moyo_file(tmp_path):
    members = moyo()
    rows = read_moyo(write(tmp_path / "moyo_v2.npz", members), scale_unit="px")
    smpl = members["smpl"].item()
    np.testing.assert_array_equal(rows.poses[:, :3], smpl["global_orient"])
    np.testing.assert_array_equal(rows.poses[:, 3:], smpl["body_pose"])
    np.testing.assert_array_equal(rows.box, members["scales"])
    assert rows.sequence.tolist() == members["names"].tolist()
    assert rows.name[0] == "pose_a/YOGI_Cam_01/YOGI_Cam_01_00000.jpg"


@pytest.mark.parametrize(
    ("smpl", "message"),
    [
        (np.array({"global_orient": np.zeros((12, 3))}, object), "entry 'body_pose' is missing"),
        (np.array([1, 2], object), "expected a dict"),
        (np.array({"global_orient": np.zeros((12, 3)), "body_pose": np.zeros((12, 63)),
                   "betas": np.zeros((12, 10))}, object), r"'body_pose': expected \(12, 69\)"),
    ],
)  # fmt: skip
def test_moyo_without_a_usable_body_is_refused(tmp_path, smpl, message):
    with pytest.raises(InputError, match=message):
        read_moyo(write(tmp_path / "moyo.npz", moyo(smpl=smpl)), scale_unit="px")


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (8, {"floor": (2, 6), "ceil": (2, 6), "nearest": (2, 6), "slice": (2, 6)}),
        (9, {"floor": (2, 7), "ceil": (3, 6), "nearest": (2, 7), "slice": (2, 6)}),
        (10, {"floor": (2, 8), "ceil": (3, 7), "nearest": (3, 7), "slice": (2, 7)}),
        (11, {"floor": (2, 9), "ceil": (3, 8), "nearest": (3, 8), "slice": (2, 8)}),
        (1, {"floor": (0, 1), "ceil": (1, 1), "nearest": (0, 1), "slice": (0, 0)}),
    ],
)
def test_middle_half_by_hand(frames, expected):
    assert {how: middle_half(frames, how) for how in ROUNDINGS} == expected


@given(st.integers(0, 10_000), st.sampled_from(ROUNDINGS))
def test_middle_half_is_about_half(frames, rounding):
    start, stop = middle_half(frames, rounding)
    assert 0 <= start <= stop <= frames
    assert abs((stop - start) - frames / 2) <= 2
    if rounding != "slice" and stop > start:
        assert start == frames - stop  # the same off either end


@given(st.permutations(range(22)), st.sampled_from(ROUNDINGS))
def test_moyo_hard_does_not_depend_on_row_order(order, rounding):
    members = moyo({"a": 7, "b": 4})
    names, images = members["names"][list(order)], members["img_paths"][list(order)]
    built = select_moyo_hard(
        names.tolist(), images.tolist(), camera="YOGI_Cam_02", rounding=rounding
    )
    start, stop = middle_half(7, rounding)
    expected = [f"a/YOGI_Cam_02/YOGI_Cam_02_{k:05d}.jpg" for k in range(start, stop)]
    assert images[built.rows].tolist()[: len(expected)] == expected
    assert len(built.rows) == built.counts[rounding]


def test_frames_are_ordered_by_number_not_by_text():
    images = [f"a/cam/{k}.jpg" for k in (10, 9, 8, 7, 11, 12, 13, 100)]
    built = select_moyo_hard(["a"] * 8, images, camera="cam", rounding="floor")
    assert [images[row] for row in built.rows] == [f"a/cam/{k}.jpg" for k in (9, 10, 11, 12)]


def test_built_moyo_hard_is_a_moyo_file(tmp_path):
    members = moyo({"pose_a": 8, "pose_b": 5})
    source = write(tmp_path / "moyo_v2.npz", members)
    target = tmp_path / "new" / "moyo_hard.npz"
    built = build_moyo_hard(source, target, expected_rows=None)
    assert built.counts["floor"] == 4 + 3
    rows = read_moyo(target, scale_unit="px")
    whole = read_moyo(source, scale_unit="px")
    assert all("/YOGI_Cam_01/" in name for name in rows.name)
    assert rows.name.tolist() == whole.name[built.rows].tolist()
    np.testing.assert_array_equal(rows.poses, whole.poses[built.rows])
    with np.load(target, allow_pickle=True) as file:
        assert set(file.files) == set(members)
        assert file["extra_info"].item() == {"dataset_name": "MoYo"}
        assert file["smpl"].item()["betas"].dtype == np.float32
        assert file["genders"].tolist() == ["neutral"] * 7
    first = target.read_bytes()
    build_moyo_hard(source, target, expected_rows=None)
    assert target.read_bytes() == first


def test_the_published_count_is_the_check(tmp_path):
    # 28 videos of 670 frames and one of 633: 28 * 336 + 317 = 9,725 when cuts are rounded down.
    frames = {f"video_{k:02d}": 670 for k in range(MOYO_HARD_SEQUENCES)}
    frames["video_00"] = 633
    source = write(tmp_path / "moyo_v2.npz", moyo(frames, cameras=("YOGI_Cam_01",)))
    target = tmp_path / "moyo_hard.npz"
    with pytest.raises(InputError, match=r"expected 9725 of 29; roundings give floor 9725, ceil "):
        build_moyo_hard(source, target, rounding="ceil")
    assert not target.exists()
    built = build_moyo_hard(source, target)
    assert (len(built.rows), built.sequences) == (MOYO_HARD_ROWS, MOYO_HARD_SEQUENCES)


def test_another_camera_folder_is_an_option(tmp_path):
    source = write(tmp_path / "moyo_v2.npz", moyo())
    with pytest.raises(InputError, match=r"no image of camera 'Cam_1'.*YOGI_Cam_01, YOGI_Cam_02"):
        build_moyo_hard(source, tmp_path / "out.npz", camera="Cam_1", expected_rows=None)
    with pytest.raises(InputError, match="expected <sequence>/<camera>/<frame>"):
        select_moyo_hard(["a"], ["frame.jpg"], camera="x", rounding="floor")


# --- images ---------------------------------------------------------------------------------------


def test_a_folder_may_hold_pictures_and_tars(tmp_path):
    (tmp_path / "a").mkdir()
    for name, content in (("packed.jpg", b"packed"), ("a/both.jpg", b"in the tar")):
        (tmp_path / name).write_bytes(content)
    with tarfile.open(tmp_path / "part.tar", "w") as archive:
        for name in ("packed.jpg", "a/both.jpg"):
            archive.add(tmp_path / name, name)
    (tmp_path / "packed.jpg").unlink()
    (tmp_path / "a" / "both.jpg").write_bytes(b"in the folder")
    (tmp_path / "a" / "loose.jpg").write_bytes(b"loose")
    images = open_images(tmp_path)
    names = ["packed.jpg", "a/both.jpg", "a/loose.jpg", "none.jpg"]
    assert images.has(names).tolist() == [True, True, True, False]
    assert [images.read(name) for name in names[:3]] == [b"packed", b"in the folder", b"loose"]
    assert images.read("packed.jpg", 3) == b"pac" and images.read("a/loose.jpg", 3) == b"loo"
    with pytest.raises(InputError, match="none"):
        images.read("none.jpg")
