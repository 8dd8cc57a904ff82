"""The demo subset: real format, human poses, splits that do not touch, the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pipeline.demo import (
    GENDER_PAIRS,
    ROWS,
    demo_columns,
    mirror_poses,
    npz_bytes,
    segments,
    write_demo,
)
from pipeline.errors import InputError
from pipeline.readers import open_source
from pipeline.readers.pickles import load_pickle
from skel_fit import load_smpl
from skel_fit.default_body import default_body_directory
from skel_fit.errors import ModelFileError

MOTION = Path(__file__).parents[1] / "pipeline" / "demo_motion.npz"
# evaluation.md#keypoints-44: the 25 OpenPose points among the 45 joints of the smplx package.
OPENPOSE = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32,
            33, 34]  # fmt: skip
MIRROR_44 = [0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20,
             21, 30, 29, 28, 27, 26, 25, 36, 35, 34, 33, 32, 31, 37, 38, 39, 40, 41, 42,
             43]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> Path:
    return default_body_directory()


@pytest.fixture(scope="module")
def path(models: Path, tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "demo-release.npz", models)


@pytest.fixture(scope="module")
def rows(path: Path):
    source = open_source(path, smpl_gender="column", skel_gender="column")
    source.check()
    return source.read(0, source.rows)


def test_size_and_acceptance(rows) -> None:
    assert len(rows.source_row) == ROWS >= 2000
    assert (rows.reasons == "").all()
    assert len(set(rows.fields["imgname"].tolist())) == ROWS
    assert np.abs(rows.betas).max() <= 2.5 and rows.betas.std() > 0.8
    kinds, counts = np.unique(rows.fields["pose_source"], return_counts=True)
    assert kinds.tolist() == ["mirrored", "real", "sampled"]
    assert counts[0] == counts[1] >= 500


def test_gender_pairs(rows) -> None:
    for smpl, skel, share in GENDER_PAIRS:
        found = ((rows.smpl_gender == smpl) & (rows.skel_gender == skel)).mean()
        assert found == pytest.approx(share, abs=1e-3)
    assert sum(share for *_, share in GENDER_PAIRS) == pytest.approx(1)


def test_splits_do_not_touch(rows) -> None:
    frame, split, segment = (rows.fields[name] for name in ("frame", "split", "segment"))
    assert set(split.tolist()) == {"train", "validation", "test"}
    for number, (first, last) in enumerate(segments()):
        inside = segment == number
        assert inside.any() and len(set(split[inside].tolist())) == 1
        assert first <= frame[inside].min() and frame[inside].max() < last
    for name in ("train", "validation", "test"):
        own, others = frame[split == name], frame[split != name]
        assert np.abs(own[:, None] - others[None]).min() > 9  # 0.3 s at 30 fps
    assert 0.5 < (split == "train").mean() < 0.8


def test_real_rows_are_the_motion(rows) -> None:
    with np.load(MOTION) as file:
        motion = file["poses"].astype(np.float64).reshape(-1, 24, 3)
    poses, kind, frame = (
        rows.poses.reshape(-1, 24, 3),
        rows.fields["pose_source"],
        rows.fields["frame"],
    )
    real, mirrored = kind == "real", kind == "mirrored"
    np.testing.assert_allclose(poses[real][:, 1:], motion[frame[real]][:, 1:], atol=1e-8)
    np.testing.assert_allclose(
        mirror_poses(poses[mirrored])[:, 1:], motion[frame[mirrored]][:, 1:], atol=1e-8
    )
    # The camera turns the person about the vertical, up or down and a little aside: upright
    # stays upright.
    world = Rotation.from_rotvec(motion[frame[real], 0]).as_matrix()[:, :, 1]
    camera = Rotation.from_rotvec(poses[real][:, 0]).as_matrix()[:, :, 1]
    tilt = np.degrees(np.arccos(np.clip((camera * (world * (0, -1, 0))).sum(1), -1, 1)))
    assert np.percentile(tilt, 99) < 60
    facing = Rotation.from_rotvec(poses[:, 0]).as_matrix()[:, :, 2]
    heading = np.arctan2(facing[:, 0], -facing[:, 2])
    assert np.histogram(heading, 8, (-np.pi, np.pi))[0].min() > ROWS / 8 / 2


def test_sampled_poses_stay_human(rows) -> None:
    """Near a real pose, knees and elbows as hinges inside their range, spine and neck in theirs."""
    with np.load(MOTION) as file:
        motion = file["poses"].astype(np.float64).reshape(-1, 24, 3)
    chosen = rows.fields["pose_source"] == "sampled"
    poses = rows.poses.reshape(-1, 24, 3)[chosen]
    base = motion[rows.fields["frame"][chosen]]
    flipped = mirror_poses(base)
    near = [
        (Rotation.from_rotvec(poses[:, 1:].reshape(-1, 3)).inv()
         * Rotation.from_rotvec(other[:, 1:].reshape(-1, 3))).magnitude().reshape(-1, 23)
        for other in (base, flipped)
    ]  # fmt: skip
    mirrored = near[0].sum(1) > near[1].sum(1)
    assert 0.4 < mirrored.mean() < 0.6
    base = np.where(mirrored[:, None, None], flipped, base)
    near = np.where(mirrored[:, None], near[1], near[0])
    assert near.max() < 1.2 and np.median(near.max(1)) > 0.15
    # Hinges keep their axis and do not bend backwards more than the real pose does.
    for joint in (4, 5, 18, 19):
        bent = np.linalg.norm(base[:, joint], axis=1) > 0.06
        across = np.cross(poses[bent, joint], base[bent, joint])
        assert np.linalg.norm(across, axis=1).max() < 1e-6
        assert (np.linalg.norm(poses[:, joint], axis=1) <= 2.4 + 1e-6).all()
    for joint in (4, 5):
        assert (poses[:, joint, 0] >= np.minimum(base[:, joint, 0], 0) - 1e-6).all()
    # Joints that a body hardly moves by itself stay as they are.
    for joint in (10, 11, 22, 23):
        np.testing.assert_allclose(poses[:, joint], base[:, joint], atol=1e-8)
    for joint in (3, 6, 9):
        assert (np.abs(poses[:, joint]) <= np.maximum(np.abs(base[:, joint]), 0.5) + 1e-6).all()


@pytest.mark.parametrize("gender", ["neutral", "male", "female"])
def test_keypoints_are_projections_of_the_body(rows, models: Path, gender: str) -> None:
    """Against smplx itself, all 6890 vertices."""
    chosen = np.flatnonzero(rows.smpl_gender == gender)[::40]
    smpl = load_smpl(models, gender, dtype=torch.float64)
    out = smpl(
        betas=torch.tensor(rows.betas[chosen]),
        global_orient=torch.tensor(rows.poses[chosen, :3]),
        body_pose=torch.tensor(rows.poses[chosen, 3:]),
        transl=torch.tensor(rows.transl[chosen]),
    )
    extra = load_pickle((models / "SMPL_to_J19.pkl").read_bytes())
    vertices, joints = out.vertices.numpy(), out.joints.numpy()
    points = np.concatenate([joints[:, OPENPOSE], extra @ vertices], axis=1)
    pixels = np.einsum("nab,nkb->nka", rows.fields["cam_int"][chosen], points)
    pixels = pixels[:, :, :2] / pixels[:, :, 2:]
    stored = rows.fields["gtkps"][chosen]
    seen = stored[:, :, 2] > 0
    assert np.abs(pixels - stored[:, :, :2])[seen].max() < 1e-3
    assert not stored[~seen].any() and 0.05 < (~seen).mean() < 0.15
    size = rows.fields["image_size"][chosen][:, None]
    assert ((pixels > 0) & (pixels < size)).all()
    assert points[:, :, 2].min() >= 0.9
    # Left is left: the left hip is on the right of a person who shows their front.
    front = Rotation.from_rotvec(rows.poses[chosen, :3]).as_matrix()[:, 2, 2] < -0.5
    assert (pixels[front, 12, 0] > pixels[front, 9, 0]).all()


def test_boxes_and_cameras(rows) -> None:
    keypoints, fields = rows.fields["gtkps"], rows.fields
    seen = keypoints[:, :, 2:] > 0
    low = np.where(seen, keypoints[:, :, :2], np.inf).min(1)
    high = np.where(seen, keypoints[:, :, :2], -np.inf).max(1)
    np.testing.assert_allclose(fields["center"], (low + high) / 2, atol=1e-3)
    np.testing.assert_allclose(fields["scale"] * 200, 1.2 * (high - low).max(1), atol=1e-3)
    cam_int, size = fields["cam_int"], fields["image_size"]
    np.testing.assert_array_equal(cam_int[:, :2, 2], size / 2)
    np.testing.assert_array_equal(cam_int[:, 0, 0], cam_int[:, 1, 1])
    fov = np.degrees(2 * np.arctan(size[:, 1] / 2 / cam_int[:, 0, 0]))
    assert fov.min() >= 25 - 1e-3 and fov.max() <= 100 + 1e-3 and np.ptp(fov) > 70
    assert len(np.unique(size, axis=0)) >= 5


def test_mirrored_keypoints_mirror(models: Path) -> None:
    """The body, the mirroring of poses and the order of the 44 points agree on left and right."""
    from skel_fit.keypoints import SmplKeypoints

    body = SmplKeypoints.load(models, "neutral")
    random = np.random.default_rng(0)
    poses = random.normal(0, 0.3, (5, 24, 3))
    points = body.keypoints(poses, np.zeros((5, 10)))
    mirrored = body.keypoints(mirror_poses(poses), np.zeros((5, 10)))
    np.testing.assert_allclose(mirrored, points[:, MIRROR_44] * (-1, 1, 1), atol=2e-3)


def test_the_same_bytes(path: Path, models: Path, tmp_path: Path) -> None:
    """In another process with other settings of the environment."""
    code = "import sys; from pipeline.demo import write_demo; write_demo(sys.argv[1], sys.argv[2])"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "2"}
    again = tmp_path / "again.npz"
    subprocess.run([sys.executable, "-c", code, again, models], check=True, env=environment)
    assert again.read_bytes() == path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.npz"]


def test_other_sizes_and_seeds(models: Path) -> None:
    small = demo_columns(models, rows=60)
    assert all(len(values) == 60 for values in small.values())
    large = demo_columns(models, rows=4000, seed=3)
    assert len(np.unique(large["frame"])) == 540
    assert (large["pose_source"] == "real").sum() == 540
    assert npz_bytes(demo_columns(models, rows=60, seed=1)) != npz_bytes(small)
    with pytest.raises(InputError, match="at least 60"):
        demo_columns(models, rows=10)


def test_models_without_extra_joints(tmp_path: Path, models: Path) -> None:
    for file in models.glob("SMPL_*.pkl"):
        if file.name != "SMPL_to_J19.pkl":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ModelFileError, match=r"SMPL_to_J19\.pkl is missing.*default-body"):
        write_demo(tmp_path / "demo.npz", tmp_path)
    assert not (tmp_path / "demo.npz").exists()


@pytest.mark.parametrize("rows", [64, 240])
def test_small_demos_are_made_too(tmp_path, rows):
    """Few rows leave no sampled pose open after the first tries."""
    path = write_demo(tmp_path / "demo.npz", default_body_directory(), rows=rows)
    with np.load(path) as file:
        assert len(file["pose_cam"]) == rows
        assert np.isfinite(file["pose_cam"]).all()
