"""`hmr-skel video`: people followed, left and right in order, smooth motion, resumed runs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pipeline.errors import OutputError
from skel_fit.default_body import default_body_directory
from skel_fit.keypoint_fit import Cameras, Problem
from skel_fit.model_files import load_skel
from stages.cli import run
from stages.photo import videos
from stages.photo.coupling import minimised, smoothed
from stages.photo.detector import Detection
from stages.photo.fitting import POINTS, Fitter, Lens, Marks, fit_config
from stages.photo.frames import FilmWriter, VideoReader
from stages.photo.landmarks import Landmarks, Region
from stages.photo.motion import MIRROR, exchanged, fit_motion, shape_of, swaps
from stages.photo.people import Finder, Sighting
from stages.photo.tracking import State, Track, Tracker
from tests.photo_pictures import runners

FRAMES = 20


def crop_of(row: int, side: int = 320) -> np.ndarray:
    """A runner in the middle of a square, BGR."""
    people = runners()
    picture = people.picture(row)[..., ::-1]
    half = 130.0 * people.columns["scale"][row]
    shift = half - people.columns["center"][row]
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]]) * (side / (2 * half))
    return cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)


def panned(picture: np.ndarray, frame: int) -> np.ndarray:
    matrix = np.array([[1.0, 0.0, 2.0 * frame - FRAMES], [0.0, 1.0, 0.5 * frame]])
    size = picture.shape[1::-1]
    return cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE)


def write_clip(path: Path, pictures: list[np.ndarray]) -> Path:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (width, height))
    assert writer.isOpened()
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runner who slides by, 20 frames."""
    picture = crop_of(1)
    pictures = [panned(picture, frame) for frame in range(FRAMES)]
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.avi", pictures)


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder()


@pytest.fixture(scope="module")
def fitter() -> Fitter:
    return Fitter(load_skel(default_body_directory(), "male"))


# ---- left and right, smoothing ------------------------------------------------------------------


def walking(frames: int = 40) -> Marks:
    """A sketch of somebody walking past, seen from three quarters."""
    time = np.arange(frames) / 10.0
    world = np.zeros((frames, 33, 3))
    heights = {
        0: -0.7,
        11: -0.5,
        13: -0.25,
        15: 0.0,
        23: 0.0,
        25: 0.42,
        27: 0.85,
        29: 0.9,
        31: 0.92,
    }
    for k, y in heights.items():
        for side, point in ((1.0, k), (-1.0, MIRROR[k])):
            swing = 0.25 * np.sin(3 * time) * side * (abs(y) if k > 11 else 0.0)
            world[:, point, 1] = y
            world[:, point, 0] = 0.17 * side * 0.7 * (k > 0) + 0.7 * swing
            world[:, point, 2] = 0.17 * side * 0.7 * (k > 0) - 0.7 * swing
    pixels = world[..., :2] * 150.0 + np.stack([200 + 20 * time, 200 + 0 * time], -1)[:, None]
    others = [k for k in range(33) if k not in heights and MIRROR[k] not in heights]
    pixels[:, others] = -1000.0  # the sketch has no hands and no ears: outside the picture
    return Marks(pixels, np.ones((frames, 33)), world, (480, 640))


def test_exchanged_twice_is_as_before() -> None:
    marks = walking()
    rows = np.arange(40) % 3 == 0
    once = exchanged(marks, rows)
    assert not np.allclose(once.pixels[rows], marks.pixels[rows])
    np.testing.assert_array_equal(once.pixels[~rows], marks.pixels[~rows])
    again = exchanged(once, rows)
    for name in ("pixels", "world", "visibility"):
        np.testing.assert_array_equal(getattr(again, name), getattr(marks, name))


@pytest.mark.parametrize("wrong", [[(12, 25)], [(0, 6), (30, 40)], [(5, 6)], []])
def test_swapped_frames_are_found_and_nothing_else(wrong: list[tuple[int, int]]) -> None:
    rows = np.zeros(40, bool)
    for first, last in wrong:
        rows[first:last] = True
    marks = walking()
    noise = np.random.default_rng(0).normal(size=marks.pixels.shape) * 2.0
    seen = exchanged(replace(marks, pixels=marks.pixels + noise), rows)
    np.testing.assert_array_equal(swaps(seen), rows)


def test_a_little_that_speaks_for_an_exchange_does_not_exchange_the_rest() -> None:
    """From frame 25 on both sides almost lie over each other, a little more as if exchanged."""
    marks = walking()
    rows = np.arange(40) >= 25
    other, share = exchanged(marks, rows), 0.51 * rows[:, None, None]
    found = replace(
        marks,
        pixels=(1 - share) * marks.pixels + share * other.pixels,
        world=(1 - share) * marks.world + share * other.world,
    )
    assert not swaps(found).any()


def test_smoothing_is_the_least_of_its_sum() -> None:
    random = np.random.default_rng(1)
    n, m, stiffness = 9, 3, 5.0
    values = random.normal(size=(n, m))
    roots = random.normal(size=(n, m, m))
    precisions = roots @ roots.swapaxes(1, 2)
    precisions[4] = 0.0  # a frame that says nothing
    found = smoothed(values, precisions, stiffness)
    second = np.diff(np.eye(n), 2, axis=0)
    dense = stiffness * np.kron(second.T @ second, np.eye(m))
    for t in range(n):
        dense[t * m : (t + 1) * m, t * m : (t + 1) * m] += precisions[t]
    right = np.einsum("tij,tj->ti", precisions, values).reshape(-1)
    np.testing.assert_allclose(found.reshape(-1), np.linalg.solve(dense, right), atol=1e-5)


def test_a_motion_goes_through_its_gaps(fitter: Fitter) -> None:
    marks, lens = walking(), Lens.of((480, 640), 600.0)
    seen = np.ones(40, bool)
    seen[[10, 11, 12]] = False
    rows = np.zeros(40, bool)
    rows[20:26] = True
    given = exchanged(marks, rows)
    broken = replace(given, pixels=np.where(seen[:, None, None], given.pixels, 0.0))
    betas = shape_of(fitter, marks, lens)
    motion = fit_motion(fitter, broken, seen, lens, 10.0, betas)
    whole = fit_motion(fitter, marks, np.ones(40, bool), lens, 10.0, betas)
    np.testing.assert_array_equal(motion.swapped, rows)
    assert not motion.believed[[10, 11, 12]].any() and np.isfinite(motion.poses).all()
    assert np.abs(motion.poses - whole.poses).max() < 0.35
    assert np.abs(motion.trans - whole.trans).max() < 0.15
    told = [status for status, _ in videos.statuses(motion, 5)]
    assert told[10:13] == ["interpolated"] * 3 and told.count("interpolated") == 3
    assert [status for status, _ in videos.statuses(motion, 1)][11] == "refused"


def test_a_motion_is_the_least_of_all_its_frames_together(fitter: Fitter) -> None:
    """The whole objective falls, and falls no more in any direction; frames left out follow."""
    marks, lens = walking(12), Lens.of((480, 640), None)
    fit = fitter.with_betas(marks, lens, np.zeros((12, 10)))
    problem = Problem.of(
        fitter.skel, POINTS, marks.pixels, marks.weights, Cameras(lens.cam_int), None,
        marks.places(lens.cam_int), fitter.prior, fit_config(fit_betas=False),
    )  # fmt: skip
    at = np.concatenate([fit.poses, fit.trans, fit.betas], 1)
    used, stiffness, rows = np.arange(12) != 5, 3000.0, np.arange(12)
    jolted = at.copy()
    jolted[5, :49] += 0.3

    def whole(here: np.ndarray) -> float:
        energies = problem.search(here, 0).energies.sum(1)
        bends = np.diff(here[:, :49], 2, axis=0)
        return float(energies[used].sum() + stiffness * (bends**2).sum())

    found, cost = minimised(problem, jolted, rows, 12, used, stiffness)
    least = whole(found)
    assert least < 0.9 * whole(at) < whole(jolted) and cost.max() < 2 * fit.cost.max() + 1
    low, high = problem.beliefs.lower[:49], problem.beliefs.upper[:49]
    assert (found[:, :49] >= low).all() and (found[:, :49] <= high).all()
    random = np.random.default_rng(4)
    for size in (1e-2, 1e-3):
        for _ in range(40):
            other = found.copy()
            other[:, :49] = (other[:, :49] + size * random.normal(size=(12, 49))).clip(low, high)
            assert whole(other) > least - 1e-3 * least
    np.testing.assert_array_equal(found[:, 49:], at[:, 49:])


# ---- following ----------------------------------------------------------------------------------


def test_two_people_keep_their_numbers_and_a_lost_one_comes_back(finder: Finder) -> None:
    one, other = crop_of(0), crop_of(1)
    nobody = np.full_like(one, 128)
    tracker, state, seen = Tracker(finder), State(), []
    for frame in range(9):
        left = nobody if frame in (3, 4) else panned(one, frame)
        picture = np.concatenate([left, panned(other, frame)], 1)[..., ::-1]
        found, state = tracker.step(np.ascontiguousarray(picture), state)
        again = State.unpacked(state.packed())
        np.testing.assert_array_equal(again.packed(), state.packed())
        state = replace(again, since=99 if frame == 5 else again.since)  # time to look again
        seen.append({f.number: f.sighting.landmarks.pixels[:, 0].mean() for f in found})
    assert set(seen[0]) == set(seen[-1]) == {0, 1}
    left, right = sorted(seen[0], key=lambda number: seen[0][number])
    assert set(seen[3]) == set(seen[4]) == {right}
    for each in seen:
        assert all((x < 320) == (number == left) for number, x in each.items())


def test_nobody_is_followed_who_is_only_seen_in_a_further_search_and_unsure(
    finder: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And such searches, which take as long as some twenty frames, are not made in every frame."""
    picture = np.ascontiguousarray(crop_of(0)[..., ::-1])
    found = finder.detector.look(picture, 0.5)
    look, searches = finder.look, list[int]()

    def unsure(*of: object, **how: object) -> Sighting:
        seen = look(*of, **how)  # type: ignore[arg-type]
        return replace(seen, landmarks=replace(seen.landmarks, flag=0.9))

    def search(_: np.ndarray) -> Iterator[list[Detection]]:
        yield found if first else []
        searches.append(1)
        yield found

    monkeypatch.setattr(finder, "look", unsure)
    monkeypatch.setattr(finder.detector, "search", search)
    state = State()
    first = False
    for _ in range(60):
        people, state = Tracker(finder).step(picture, state)
        assert not people
    assert len(searches) == 1
    first = True
    people, _ = Tracker(finder).step(picture, replace(state, since=99))
    assert len(people) == 1


class Looks:
    """A landmarker that answers with flags one after the other, the places moved by `shaken` px."""

    def __init__(self, flags: list[float], shaken: float) -> None:
        self.flags, self.shaken, self.count = flags, shaken, 0
        pixels = np.random.default_rng(2).uniform(100, 200, (33, 2))
        region = Region(np.array([150.0, 150.0]), 120.0, 0.0)
        self.marks = Landmarks(pixels, np.ones(33), np.zeros((33, 3)), 0.0, region, region)

    def __call__(self, picture: np.ndarray, region: Region, passes: int = 1) -> Landmarks:
        flag = self.flags[min(self.count, len(self.flags) - 1)]
        self.count += 1
        moved = self.marks.pixels + self.shaken * (self.count % 2)
        return replace(self.marks, pixels=moved, flag=flag)


@pytest.mark.parametrize(
    ("flags", "shaken", "frames"),
    [([0.3], 1.0, 45), ([0.3], 20.0, 0), ([0.01], 0.0, 0), ([0.3, 0.2, 0.7], 20.0, 60)],
    ids=["places stay", "places differ", "hardly anybody", "a further look is sure"],
)
def test_who_bends_is_followed_as_long_as_looks_agree(
    flags: list[float], shaken: float, frames: int
) -> None:
    """The flag falls on people who bend or lie, while the landmarks stay right."""
    looks = Looks(flags, shaken)
    finder = SimpleNamespace(landmarker=looks, detector=SimpleNamespace(search=lambda _: iter([])))
    state = State((Track(0, looks.marks.region, 0.9),), 1, since=0)
    count = 0
    for _ in range(60):
        if len(flags) > 1:
            looks.count = 0
        found, state = Tracker(finder).step(np.zeros((300, 300, 3), np.uint8), state)  # type: ignore[arg-type]
        if not found:
            break
        count += 1
    assert count == frames


def test_of_two_who_appear_the_lost_one_is_who_is_where_it_was() -> None:
    """Whoever is detected first: both are about there."""
    looks = Looks([0.0], 0.0)
    there = looks.marks.region
    beside = replace(there, center=there.center + np.array([30.0, 0.0]))
    pictures = {
        name: Sighting(0.9, replace(looks.marks, pixels=looks.marks.pixels + away, region=region))
        for name, away, region in (("beside", 300.0, beside), ("same", 0.0, there))
    }
    for order in (("beside", "same"), ("same", "beside")):
        found = [Detection(0.9, np.zeros(4), np.zeros(2), np.zeros(2)) for _ in order]
        people = iter([pictures[name] for name in order])

        def look(*_: object, again: bool, people: Iterator[Sighting] = people) -> Sighting:
            sighting = next(people)
            return replace(sighting, landmarks=replace(sighting.landmarks, flag=0.9))

        finder = SimpleNamespace(
            landmarker=looks, look=look,
            detector=SimpleNamespace(search=lambda _, found=found: iter([found])),
        )  # fmt: skip
        state = State((Track(0, there, 0.9),), 1, since=0)
        seen, _ = Tracker(finder).step(np.zeros((300, 300, 3), np.uint8), state)  # type: ignore[arg-type]
        numbers = {each.number: each.sighting.landmarks.region for each in seen}
        assert numbers[0] is there and numbers[1] is beside


def test_who_is_lost_is_looked_for_at_once_and_searches_wait_longer_and_longer() -> None:
    looks = Looks([0.0], 0.0)
    further: list[int] = []
    detected: list[int] = []
    frame = 0

    def search(_: np.ndarray) -> Iterator[list[Detection]]:
        detected.append(frame)
        yield []
        further.append(frame)
        yield []

    finder = SimpleNamespace(landmarker=looks, detector=SimpleNamespace(search=search))
    state = State((Track(0, looks.marks.region, 0.9),), 1, since=0, wait=4)
    for frame in range(200):
        if frame == 10:  # where the person was last, as of somebody who is detected
            assert looks.count >= 10
        people, state = Tracker(finder).step(np.zeros((300, 300, 3), np.uint8), state)  # type: ignore[arg-type]
        assert not people
    assert detected == list(range(200))
    assert further == [0, 8, 24, 56, 116, 176]
    held = State((Track(0, looks.marks.region, 0.9, lost=3),), 1)
    looks.flags = [0.9]
    people, _ = Tracker(finder).step(np.zeros((300, 300, 3), np.uint8), held)  # type: ignore[arg-type]
    assert [each.number for each in people] == [0]


# ---- files that are read ------------------------------------------------------------------------


def test_frames_have_numbers_and_times(clip: Path) -> None:
    with VideoReader(clip) as reader:
        assert reader.info.size == (320, 320) and reader.info.rate == pytest.approx(25)
        whole = list(reader.frames())
    assert [number for number, _, _ in whole] == list(range(FRAMES))
    assert np.diff([seconds for _, seconds, _ in whole]) == pytest.approx(0.04, abs=2e-3)
    with VideoReader(clip) as reader:
        number, _, picture = next(reader.frames(7))
    assert number == 7
    np.testing.assert_array_equal(picture, whole[7][2])


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such video"), (b"", "not a video"), (b"no video at all", "not a video")],
)
def test_what_is_no_video_is_one_line(
    content: bytes | None, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    assert run(["video", str(path), "--out", str(tmp_path / "out")]) == 5
    said = capfd.readouterr().err.strip()
    assert told in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenCV crashes on it."""
    path = tmp_path / os.fsdecode(b"v\xefd.mp4")
    path.write_bytes(b"no video")
    assert run(["video", str(path), "--out", str(tmp_path / "out")]) == 5
    assert "is not UTF-8; rename it" in capsys.readouterr().err
    with pytest.raises(OutputError, match="choose another --out"):
        FilmWriter(path.with_suffix(".webm"), 25.0, (32, 32), "vp8")


# ---- the verb -----------------------------------------------------------------------------------


def command(clip: Path, out: Path, *more: str) -> int:
    arguments = ["video", str(clip), "--out", str(out), "--models", "default-body", "--quiet"]
    return run([*arguments, *more])


@pytest.fixture(scope="module")
def made(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("video") / "out"
    assert command(clip, out) == 0
    return out


def test_everything_is_written_and_every_frame_has_a_status(made: Path) -> None:
    record = json.loads((made / "video.json").read_text())
    assert record["frames"] == FRAMES and record["rate"] == pytest.approx(25)
    assert len(record["people"]) == 1 and record["people"][0]["exchanged_frames"] == 0
    with (made / "frames.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["frame"]) for line in lines] == list(range(FRAMES))
    assert {line["status"] for line in lines} <= {"fitted", "no person"}
    assert sum(line["status"] == "fitted" for line in lines) >= FRAMES - 1
    files = {path.name for path in (made / "person-0.opensim").iterdir()}
    assert {"person-0.osim", "person-0.mot", "person-0.trc", "index.json"} <= files
    assert b"<html" in (made / "person-0.html").read_bytes()[:300].lower()


def test_one_shape_and_a_smooth_slide(made: Path) -> None:
    with np.load(made / "person-0.npz", allow_pickle=False) as file:
        betas, trans, poses = file["betas"], file["trans"], file["poses"]
        seconds, sd = file["seconds"], file["poses_sd"]
    assert (betas == betas[0]).all()
    steps = np.diff(trans[:, 0])
    assert (steps > 0).all() and steps.std() < 0.5 * steps.mean()  # he slides to the right
    assert np.abs(np.diff(poses[:, 3:], axis=0)).max() < np.radians(6)  # and holds still
    assert (np.diff(seconds) > 0).all() and (sd > 0).all()
    with (made / "person-0.csv").open() as stream:
        lines = [line for line in csv.DictReader(stream) if line["status"] == "fitted"]
    knee = [float(line["knee_angle_r_deg"]) for line in lines]
    np.testing.assert_allclose(knee, np.degrees(poses[:, 6]), atol=1e-2)


def test_the_film_shows_him_in_every_frame(made: Path, clip: Path) -> None:
    with VideoReader(made / "film.webm") as film, VideoReader(clip) as original:
        pairs = list(zip(film.frames(), original.frames(), strict=True))
    assert len(pairs) == FRAMES
    for (_, _, drawn), (_, _, before) in pairs[2:]:
        changed = np.abs(drawn.astype(int) - before).max(2) > 60
        assert 0.01 < changed.mean() < 0.5


def test_a_stopped_run_goes_on_to_the_same_bytes(
    made: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "_PART", 6)
    whole = tmp_path / "whole"
    assert command(clip, whole, "--save", "csv") == 0
    parts = sorted((whole / "landmarks").glob("part-*.npz"))
    assert len(parts) == 4
    before = {path.name: path.read_bytes() for path in (*parts, whole / "person-0.csv")}
    assert before["person-0.csv"] == (made / "person-0.csv").read_bytes()
    for path in parts[2:]:
        path.unlink()
    assert command(clip, whole, "--save", "csv") == 0
    after = {path.name: path.read_bytes() for path in (*parts, whole / "person-0.csv")}
    assert after == before


def test_another_video_is_not_gone_on_with(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = write_clip(tmp_path / "black.avi", [np.zeros((64, 96, 3), np.uint8)] * 8)
    assert command(black, made) == 4
    assert "landmarks of another video" in capsys.readouterr().err
    assert command(black, tmp_path / "out") == 0
    assert "no person found in 8 frames" in capsys.readouterr().out
    assert (
        not list((tmp_path / "out").glob("person-*")) and not (tmp_path / "out/film.webm").exists()
    )


def test_a_video_that_breaks_off_says_so(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.avi"
    data = clip.read_bytes()
    broken.write_bytes(data[: len(data) * 6 // 10])
    assert command(broken, tmp_path / "out", "--save", "csv") == 3
    assert f"promises {FRAMES} frames and breaks off after" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/video.json").read_text())["ended_early"]


def test_a_damaged_part_is_named(clip: Path, tmp_path: Path, capsys) -> None:
    assert command(clip, tmp_path, "--save", "csv") == 0
    part = tmp_path / "landmarks" / "part-000000.npz"
    part.write_bytes(part.read_bytes()[:500])
    assert command(clip, tmp_path, "--save", "csv") == 5
    assert "part-000000.npz: damaged" in capsys.readouterr().err
