"""`hmr-skel video CAM1 CAM2 ... --calibration FILE`: who is who, one body for all views, files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from skel_fit.opensim.subject import body_frames
from stages.cli import run
from stages.photo import several, videos
from stages.photo.fitting import Fitter
from stages.photo.frames import VideoReader
from stages.photo.matching import Track, disagreement, frame_by_frame, same_people
from stages.photo.together import Axes, TogetherFitter, seen_by_camera, up_of
from stages.photo.views import LIMBS, in_order
from tests.camera_rings import (
    Y_UP,
    motion,
    points_of,
    ring,
    seen_by,
    skel,
    write_clips,
    write_qualisys,
    write_toml,
)

FRAMES = 8


@pytest.fixture(scope="module")
def world() -> np.ndarray:
    """(24, 33, 3) landmarks of a moving body in the ring's world, z up."""
    return points_of(*motion()) @ Y_UP


# ---- who is who ----------------------------------------------------------------------------------


def tracks(cameras, people: list[np.ndarray]) -> list[Track]:
    """People (n, 33, 3) followed in every view, in another order in each."""
    found = []
    for view, _ in enumerate(cameras):
        for number in range(len(people)):
            points = people[(number + view) % len(people)]
            marks = seen_by(cameras, points, noise=2.0, seed=view).marks[view]
            found.append(Track(view, number, np.arange(len(points)), marks.pixels))
    return found


def test_two_people_are_told_apart(world: np.ndarray) -> None:
    cameras = ring(3)
    found = tracks(cameras, [world, world + np.array([0.3, 0.7, 0.0])])
    people = same_people(found, cameras)
    assert disagreement(found, people, cameras) == ""
    assert [{(t.view, t.number) for t in person} for person in people] == [
        {(0, 0), (1, 1), (2, 0)}, {(0, 1), (1, 0), (2, 1)},
    ]  # fmt: skip


def test_somebody_who_was_lost_is_the_same_person(world: np.ndarray) -> None:
    cameras = ring(3)
    whole = tracks(cameras, [world])
    first = replace(whole[1], frames=whole[1].frames[:10], pixels=whole[1].pixels[:10])
    again = replace(whole[1], number=5, frames=whole[1].frames[12:], pixels=whole[1].pixels[12:])
    assert len(same_people([whole[0], first, again, whole[2]], cameras)) == 1


def test_a_track_that_goes_over_to_somebody_else_is_taken_apart(world: np.ndarray) -> None:
    cameras = ring(4)
    one, other, *_ = found = tracks(cameras, [world, world + np.array([0.3, 0.7, 0.0])])
    both = replace(one, pixels=np.concatenate([one.pixels[:14], other.pixels[14:]]))
    people = same_people([both, *found[2:]], cameras)
    owned = frame_by_frame(people, cameras, len(world))
    order = [track for person in people for track in person]
    first = [
        next(p for p, own in enumerate(owned) if (own[t, 0] >= 0) and order[own[t, 0]] is both)
        for t in range(len(world))
    ]
    assert first == [first[0]] * 14 + [1 - first[0]] * 10
    assert all((own[:, 1:] >= 0).all() for own in owned)
    # and it is the person whom the other views show: view 1 counts them the other way round
    mine = owned[first[0]]
    assert {order[k].number for k in mine[:, 1]} == {1}


def test_cameras_in_another_order_are_refused(world: np.ndarray) -> None:
    cameras = ring(4)
    # a regular ring looks the same from the next camera
    cameras[1] = replace(cameras[1], cam_int=cameras[1].cam_int * [[1.4], [1.4], [1.0]])
    cameras[2] = replace(cameras[2], shift=cameras[2].shift + np.array([0.5, 0.3, 0.8]))
    cameras[3] = replace(cameras[3], shift=cameras[3].shift + np.array([-0.2, 0.6, 0.2]))
    found = tracks(cameras, [world])
    for order in ((0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0), (1, 2, 3, 0)):
        given = [cameras[k] for k in order]
        said = disagreement(found, same_people(found, given), given)
        assert (said == "") == (order == (0, 1, 2, 3)), order


FLIP = np.diag([1.0, -1.0, -1.0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda c: replace(c, turn=c.turn.T, shift=c.centre), "camera to world"),
        (lambda c: replace(c, shift=c.centre), "cameras' places"),
        (lambda c: replace(c, turn=FLIP @ c.turn, shift=FLIP @ c.shift), "y and z of the cameras"),
        (
            lambda c: replace(
                c, turn=FLIP @ (FLIP @ c.turn).T, shift=-FLIP @ (FLIP @ c.turn).T @ c.centre
            ),
            "by columns",
        ),
    ],
)
def test_another_convention_is_refused_and_named(world: np.ndarray, wrong, said: str) -> None:
    found = tracks(ring(), [world])
    given = [wrong(camera) for camera in ring()]
    told = disagreement(found, same_people(found, given), given)
    assert told.startswith("the cameras do not agree with the videos") and "\n" not in told
    assert said in told.partition("they would agree with")[2]


# ---- one body ------------------------------------------------------------------------------------


def test_one_body_fits_all_views_with_a_view_exchanged_and_one_astray(world: np.ndarray) -> None:
    cameras = ring()
    views = seen_by(cameras, world, noise=3.0)
    wrong = np.zeros(views.seen.shape, bool)
    wrong[5:15, 2] = True
    views = views.exchanged(wrong)
    views.marks[0].pixels[18] += 90.0  # a landmark failure
    views.seen[20:22, 1] = False
    assert up_of([views]) == "z"
    axes = Axes("z", False)
    together = TogetherFitter(Fitter(skel()), axes)
    ordered = in_order(views)
    np.testing.assert_array_equal(ordered.sides, wrong)
    assert np.argwhere(ordered.astray).tolist() == [[18, 0]]
    shared = together.fit(ordered, 25.0, together.shape(ordered.views))
    found = shared.motion
    assert found.believed.all() and found.sd[:, 3:].min() > 0
    poses, betas, trans = motion()
    mine = points_of(found.poses, found.betas, found.trans)[:, LIMBS]
    truth = points_of(poses, betas, trans)[:, LIMBS]
    away = np.linalg.norm(mine - truth, axis=-1)
    assert away.mean() < 0.012 and away.max() < 0.06
    knees = np.abs(found.poses[:, [6, 13]] - poses[:, [6, 13]])
    assert np.degrees(np.median(knees)) < 3
    # in the frame of a camera it is the same body
    own = seen_by_camera(skel(), shared, 2)

    def joints(m):
        values = (torch.as_tensor(v, dtype=skel().dtype)
                  for v in (m.poses, np.tile(m.betas, (len(m.poses), 1)), m.trans))  # fmt: skip
        return body_frames(skel(), *values)[0]

    inside = (joints(found) @ axes.turn) @ cameras[2].turn.T + cameras[2].shift
    np.testing.assert_allclose(joints(own), inside, atol=1e-4)
    np.testing.assert_array_equal(own.swapped, wrong[:, 2])


# ---- the verb ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of a rendered stand-in, and their calibration in both formats."""
    folder, cameras = tmp_path_factory.mktemp("clips"), ring(3)
    write_clips(folder, cameras, FRAMES)
    write_qualisys(folder / "cameras.qca.txt", cameras)
    write_toml(folder / "cameras.toml", cameras)
    return folder


def command(clips: Path, out: Path, *more: str, calibration: str = "cameras.toml") -> int:
    files = [str(clips / f"cam{k}.avi") for k in (1, 2, 3)]
    return run([
        "video", *files, "--calibration", str(clips / calibration), "--out", str(out),
        "--models", "default-body", "--quiet", *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def made(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("video") / "out"
    assert command(clips, out, "--save", "npz,csv,film,opensim", "--film-side", "240") == 0
    return out


def test_the_body_stands_where_it_stood(made: Path) -> None:
    record = json.loads((made / "video.json").read_text())
    assert record["axes"]["up_in_calibration"] == "z" and not record["axes"]["stated"]
    assert [c["camera"] for c in record["cameras"]] == ["cam1", "cam2", "cam3"]
    assert record["joints_off_px"]["median"] < 5
    with np.load(made / "person-0.npz", allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    assert len(columns["poses"]) == FRAMES and (columns["betas"] == columns["betas"][0]).all()
    poses, betas, trans = motion(FRAMES)
    true = several.joints_of(
        skel(), {"poses": poses, "betas": np.tile(betas, (FRAMES, 1)), "trans": trans}
    )
    away = np.linalg.norm(columns["joints_world"] - true @ Y_UP, axis=-1)
    assert away.mean() < 0.04  # renders: the networks' hips are not SKEL's
    np.testing.assert_array_equal(columns["axes_from_world"], Y_UP)
    outer = np.stack([np.column_stack([c.turn, c.shift]) for c in ring(3)])
    np.testing.assert_allclose(columns["cam_ext"], outer, atol=1e-6)


def test_every_frame_has_a_status_and_every_camera_a_film(made: Path) -> None:
    with (made / "frames.csv").open() as stream:
        assert [line["status"] for line in csv.DictReader(stream)] == ["fitted"] * FRAMES
    with (made / "person-0.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["views"] for line in lines] == ["3"] * FRAMES
    for name in several.film_names(3):
        with VideoReader(made / name) as film:
            assert len(list(film.frames())) == FRAMES
    index = json.loads((made / "person-0.opensim/index.json").read_text())
    assert index["axes"] == "y-up"
    text = (made / "person-0.opensim/person-0.mot").read_text().split("endheader\n")[1]
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert 0.7 < float(rows[0]["pelvis_ty"]) < 1.2  # metres above the ring's floor


def test_a_stopped_run_goes_on_to_the_same_bytes(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(videos, "_PART", 3)
    assert command(clips, tmp_path, "--save", "csv", "--refine-cameras") == 0
    assert "cameras adjusted by the people's joints:" in capsys.readouterr().out
    names = ("person-0.csv", "frames.csv", "video.json")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    parts = sorted((tmp_path / "cameras" / "2" / "landmarks").glob("part-*.npz"))
    assert len(parts) == 3
    for path in (*parts[1:], *(tmp_path / name for name in names)):
        path.unlink()
    assert command(clips, tmp_path, "--save", "csv", "--refine-cameras") == 0
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_the_other_format_and_damage_are_told(
    clips: Path, made: Path, tmp_path: Path, capsys
) -> None:
    """Both with the landmarks that are there already."""
    wrong = tmp_path / "wrong.toml"
    write_toml(wrong, [replace(c, turn=c.turn.T, shift=c.centre) for c in ring(3)])
    assert command(clips, made, "--save", "csv", calibration=str(wrong)) == 5
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"hmr-skel: {wrong}: the cameras do not agree")
    assert len(said.splitlines()) == 1 and "camera to world" in said
    lower = ring(3)
    lower[0] = replace(lower[0], shift=lower[0].shift + np.array([0.0, 1.0, 0.0]))
    write_toml(wrong, lower)
    assert command(clips, made, "--save", "csv", calibration=str(wrong)) == 0
    told = capsys.readouterr()
    assert "person 0 (cameras 2 3): 8 frames fitted" in told.out
    assert "camera 1 (cam1): nobody whom it shows" in told.err
    assert command(clips, made, "--save", "csv") == 0
    before = (made / "person-0.csv").read_text()
    assert command(clips, made, "--save", "csv", calibration="cameras.qca.txt") == 0
    after = (made / "person-0.csv").read_text()
    lines = [list(csv.DictReader(text.splitlines())) for text in (before, after)]
    for one, other in zip(*lines, strict=True):
        assert float(one["knee_angle_r_deg"]) == pytest.approx(
            float(other["knee_angle_r_deg"]), abs=0.05
        )


def test_what_cannot_be_is_one_line(clips: Path, tmp_path: Path, capsys) -> None:
    one, two = str(clips / "cam1.avi"), str(clips / "cam2.avi")
    cut = write_clips(tmp_path, ring(3)[1:2], 5)[0]
    toml = str(clips / "cameras.toml")
    out = ["--out", str(tmp_path / "out")]
    for arguments, code, said in (
        ([one, two], 2, "2 videos need --calibration"),
        ([one, "--calibration", toml], 2, "expected two videos or more"),
        ([one, "--up", "z"], 2, "--refine-cameras and --up need --calibration"),
        ([one, two, "--calibration", toml, "--focal", "900"], 2, "the calibration says it"),
        ([one, one, "--calibration", toml], 2, "the same video is given twice"),
        ([one, two, "--calibration", two], 5, "no text file"),
        ([one, str(cut), "--calibration", toml], 5, "cut the videos to the same moments"),
    ):
        assert run(["video", *arguments, *out]) == code
        told = capsys.readouterr().err.strip()
        assert said in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nobody_in_any_view_is_said(tmp_path: Path, capsys) -> None:
    cameras = [replace(camera, size=(64, 96)) for camera in ring(2)]
    files = [str(write_frames(tmp_path / f"{c.name}.avi", np.zeros((64, 96, 3)))) for c in cameras]
    toml = str(write_toml(tmp_path / "c.toml", cameras))
    out = tmp_path / "out"
    arguments = ["video", *files, "--calibration", toml, "--out", str(out), "--quiet"]
    assert run([*arguments, "--models", "default-body"]) == 0
    assert "no person found in 4 frames of 2 cameras" in capsys.readouterr().out
    assert "no person" in (out / "frames.csv").read_text() and not list(out.glob("person-*"))


def test_films_are_straight(tmp_path: Path) -> None:
    camera = replace(ring(1)[0], distortion=np.array([-0.3, 0.1, 0.0, 0.0, 0.0]))
    picture = np.zeros((*camera.size, 3))
    picture[60:64, 80:84] = 255  # its middle: (82, 62) from the corner
    path = write_frames(tmp_path / "dot.avi", picture)
    with several.Straight(path, camera) as reader:
        _, _, straight = next(reader.frames())
    rows, columns = np.nonzero(straight.max(2) > 128)
    middle = np.array([columns.mean(), rows.mean()]) + 0.5
    wanted = camera.undistorted(np.array([82.0, 62.0]))
    assert np.linalg.norm(wanted - (82, 62)) > 10
    np.testing.assert_allclose(middle, wanted, atol=1.0)


def write_frames(path: Path, picture: np.ndarray, count: int = 4) -> Path:
    """The same picture again and again."""
    size = picture.shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, size)
    for _ in range(count):
        writer.write(picture.astype(np.uint8))
    writer.release()
    return path
