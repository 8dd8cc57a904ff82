"""`hmr-skel photo`: bodies of people in photographs, and a line for everything that is none."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import InputError
from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.joint_limits import limits as joint_limits
from skel_fit.keypoint_fit import (
    Cameras,
    KeypointFit,
    Start,
    fit_skel_to_keypoints,
)
from skel_fit.model_files import load_skel
from stages.cli import run
from stages.photo.fitting import (
    MOST_COST,
    POINTS,
    Fitter,
    Lens,
    Marks,
    fit_config,
    honest_sd,
    refusals,
    shown_bones,
)
from stages.photo.landmarks import Landmarks, Region
from stages.photo.people import Finder, Sighting
from stages.photo.photographs import Photographs, limits
from stages.regressor.data.images import decode
from tests.photo_pictures import SHARED, runners

SIZE = (480, 640)
LENS = Lens.of(SIZE, 700.0).cam_int


@pytest.fixture(scope="module")
def fitter() -> Fitter:
    return Fitter(load_skel(default_body_directory(), "male"))


@pytest.fixture(scope="module")
def marks(fitter: Fitter) -> Marks:
    """The points of a standing body, seen exactly."""
    nobody = Marks(np.zeros((1, 33, 2)), np.ones((1, 33)), np.zeros((1, 33, 3)), SIZE)
    at_rest = fitter.fit(_standing(nobody), Lens.of(SIZE, 700.0))
    pixels = at_rest.points[..., :2] / at_rest.points[..., 2:] * 700.0 + (320, 240)
    middle = at_rest.points[:, [23, 24]].mean(1, keepdims=True)
    return Marks(pixels, np.ones((1, 33)), at_rest.points - middle, SIZE)


def _standing(marks: Marks) -> Marks:
    """Somebody who faces the camera, arms hanging, sketched in metres."""
    world = np.zeros((33, 3))
    for k, (x, y) in {
        11: (0.18, -0.5), 13: (0.22, -0.22), 15: (0.24, 0.02), 23: (0.1, 0.0), 25: (0.1, 0.42),
        27: (0.1, 0.84), 29: (0.1, 0.9), 31: (0.12, 0.92), 0: (0.0, -0.72), 2: (0.03, -0.76),
        7: (0.08, -0.74), 17: (0.25, 0.1), 19: (0.24, 0.1), 21: (0.22, 0.06),
    }.items():  # fmt: skip
        world[k] = (x, y, 0.0)
        twin = k + 1 if k >= 7 else {0: 0, 2: 5}[k]
        if twin != k:
            world[twin] = (-x, y, 0.0)
    pixels = world[:, :2] / 4.0 * 700.0 + (320, 240)
    return Marks(pixels[None], marks.visibility, world[None], marks.size)


def test_height_is_kept_and_moves_the_person(fitter: Fitter, marks: Marks) -> None:
    lens = Lens.of(SIZE, 700.0)
    free = fitter.fit(marks, lens)
    tall, small = (Fitter(fitter.skel, height=h).fit(marks, lens) for h in (1.95, 1.55))
    assert fitter.stature(tall.betas)[0] == pytest.approx(1.95, abs=1e-6)
    assert fitter.stature(small.betas)[0] == pytest.approx(1.55, abs=1e-6)
    ratio = tall.trans[0, 2] / small.trans[0, 2]
    assert ratio == pytest.approx(1.95 / 1.55, rel=0.03)  # twice as tall is twice as far
    assert np.abs(tall.poses - free.poses)[0, 3:].max() < 0.25


def test_what_is_outside_counts_nothing_and_is_drawn_as_unseen(
    fitter: Fitter, marks: Marks
) -> None:
    cut = Marks(marks.pixels + np.array([0.0, 175.0]), marks.visibility, marks.world, SIZE)
    gone = ~cut.inside[0]
    assert gone[[25, 27, 29, 31]].all() and not gone[[11, 13]].any()
    assert (cut.weights[0][gone] == 0).all() and (cut.places(LENS).weights[0][gone] < 0.01).all()
    wild = cut.pixels.copy()
    wild[0, gone] += 3000.0
    lens = Lens.of(SIZE, 700.0)
    one, other = (fitter.fit(Marks(p, cut.visibility, cut.world, SIZE), lens)
                  for p in (cut.pixels, wild))  # fmt: skip
    np.testing.assert_array_equal(one.poses, other.poses)
    knee = POSE_NAMES.index("knee_angle_r")
    assert not one.observed[0, knee] and fitter.fit(marks, lens).observed[0, knee]
    shown = dict(zip(JOINT_NAMES, shown_bones(cut)[0], strict=True))
    assert shown["humerus_r"] and shown["head"] and not shown["tibia_r"] and not shown["toes_l"]
    assert shown_bones(marks).all()


def test_bodies_that_do_not_fit_are_refused_with_the_number(fitter: Fitter, marks: Marks) -> None:
    lens = Lens.of(SIZE, 700.0)
    random = np.random.default_rng(0)
    shuffled = Marks(marks.pixels[:, random.permutation(33)], marks.visibility, marks.world, SIZE)
    few = Marks(marks.pixels + np.array([0.0, 330.0]), marks.visibility, marks.world, SIZE)
    for seen, reason in ((marks, ""), (shuffled, "no body fits: cost"), (few, "too little of a")):
        (said,) = refusals(fitter.fit(seen, lens), seen, [MOST_COST])
        assert said.startswith(reason) and bool(said) == bool(reason)


def test_who_is_seen_in_a_further_search_must_fit_better(fitter: Fitter, marks: Marks) -> None:
    looked = Landmarks(
        marks.pixels[0], marks.visibility[0], marks.world[0], 0.99,
        *(2 * [Region(np.array([320.0, 240.0]), 300.0, 0.0)]),
    )  # fmt: skip
    first = Sighting(0.9, looked)
    allowed = limits([first, replace(first, again=True), replace(first, again=True, tile=2)])
    assert allowed == [1.5, 0.8, 0.8]
    three = marks.rows(np.array([0, 0, 0]))
    fit = replace(fitter.fit(three, Lens.of(SIZE, 700.0)), cost=np.full(3, 0.85))
    refused = "no body fits: cost 0.85 a landmark, expected 0.8 or less"
    assert refusals(fit, three, allowed) == ["", refused, refused]


def test_the_body_that_is_written_is_the_one_that_is_judged(
    fitter: Fitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landmarks that are steadied into what no body fits, and a worse body from a network."""
    picture, finder = runners().picture(1), Finder()
    whole = finder.detector.search
    monkeypatch.setattr(finder.detector, "search", lambda seen: itertools.islice(whole(seen), 1))
    (taken,) = Photographs(fitter, finder).people(picture, None)
    assert not taken.reason

    class Worse(Photographs):
        def _from_network(self, fit: KeypointFit, *_: object) -> KeypointFit:
            return replace(fit, cost=np.full_like(fit.cost, 1.52))

    (worse,) = Worse(fitter, finder, network=lambda *_: (np.zeros(0), np.zeros(0))).people(
        picture, None
    )
    assert worse.reason == "no body fits: cost 1.52 a landmark, expected 1.5 or less"

    def shuffled(_: np.ndarray, found: Landmarks) -> Landmarks:
        return replace(found, pixels=np.random.default_rng(0).permutation(found.pixels))

    monkeypatch.setattr(finder.landmarker, "steadied", shuffled)
    (refused,) = Photographs(fitter, finder).people(picture, None)
    assert refused.reason.startswith("no body fits: cost")


def test_depth_is_along_the_ray_to_the_person(marks: Marks) -> None:
    """A person at the picture's edge is seen from the side: what the network calls away is."""
    middle, right = np.full((1, 33, 2), (320.0, 240.0)), np.array([1.0, 0.0])
    np.testing.assert_allclose(replace(marks, pixels=middle).turns(LENS)[0], np.eye(3), atol=1e-9)
    aside = replace(marks, pixels=middle + 300.0 * right)
    angle = np.arctan(300.0 / 700.0)
    away = np.zeros((1, 33, 3))
    away[0, 13] = (0.0, 0.0, 1.0)
    turned = replace(aside, world=away).places(LENS).points[0, 13]
    np.testing.assert_allclose(turned, [np.sin(angle), 0.0, np.cos(angle)], atol=1e-9)
    above = replace(marks, pixels=middle - 200.0 * right[::-1])
    np.testing.assert_allclose(above.turns(LENS)[0], np.eye(3), atol=1e-9)
    outside = replace(marks, pixels=middle + 1e9 * right)  # a guess: no farther than the edge
    np.testing.assert_allclose(
        outside.turns(LENS)[0, 0, 2], np.sin(np.arctan(320.0 / 700.0)), atol=1e-9
    )


def test_a_forearm_that_the_network_sees_in_front_bends_the_elbow(
    fitter: Fitter, marks: Marks
) -> None:
    """More than its places alone would."""
    world = marks.world.copy()
    world[0, [15, 17, 19, 21], 2] -= 0.2
    ahead, lens = replace(marks, world=world), Lens(LENS, "known")
    found = fitter.fit(ahead, lens, uncertainty=False)
    plain = fit_skel_to_keypoints(
        fitter.skel, POINTS, ahead.pixels, ahead.weights, Cameras(LENS), places=ahead.places(LENS),
        start=Start(found.poses, found.betas, found.trans), prior=fitter.prior, uncertainty=False,
    )  # fmt: skip
    depths = [fit.points[0, 15, 2] - fit.points[0, 13, 2] for fit in (found, plain)]
    assert depths[0] < depths[1] - 0.01


def test_an_assumed_lens_says_so() -> None:
    assert Lens.of((300, 400), None).focal == 0.65 * 500.0
    assert Lens.of((300, 400), None).source.startswith("assumed")
    given = Lens.of((300, 400), 900.0)
    assert (given.focal, given.source) == (900.0, "given")
    np.testing.assert_array_equal(given.cam_int[:2, 2], [200.0, 150.0])


def test_marks_come_from_landmarks() -> None:
    region = Region(np.zeros(2), 1.0, 0.0)
    one = Landmarks(np.ones((33, 2)), np.ones(33), np.ones((33, 3)), 1.0, region, region)
    assert len(Marks.of([one, one], SIZE)) == 2 and len(Marks.of([], SIZE)) == 0


# ---- the verb -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, one of them lying in the file as cameras store it, and what is nobody."""
    root = tmp_path_factory.mktemp("photographs")
    people = runners()
    shutil.copy(people.path(1), root / "runner.jpg")
    picture = cv2.imread(str(people.path(1)))
    lying = cv2.imencode(".jpg", cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (root / "turned.jpg").write_bytes(lying[:2] + turned + lying[2:])
    cv2.imwrite(str(root / "black.png"), np.zeros((200, 300, 3), np.uint8))
    cv2.imwrite(str(root / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    (root / "broken.jpg").write_bytes((root / "runner.jpg").read_bytes()[:700])
    (root / "text.png").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    out = tmp_path_factory.mktemp("results") / "out"
    arguments = ["photo", str(folder), "--out", str(out), "--models", "default-body", "--quiet"]
    return out, run(arguments)


def test_every_picture_has_a_status(folder: Path, out: tuple[Path, int]) -> None:
    made, code = out
    told = json.loads((made / "people.json").read_text())["pictures"]
    found = {Path(name).name: each["status"] for name, each in told.items()}
    assert code == 3  # two cannot be read
    assert found == {
        "runner.jpg": "fitted", "turned.jpg": "fitted", "black.png": "no person",
        "dot.png": "no person", "broken.jpg": found["broken.jpg"], "text.png": "unreadable",
    }  # fmt: skip
    assert found["broken.jpg"] in ("unreadable", "no person")
    assert "too small" in told[str(folder / "dot.png")]["line"]
    assert "damaged or not a picture" in told[str(folder / "text.png")]["line"]
    assert {p.name for p in made.glob("*.overlay.png")} == {
        "runner.overlay.png", "turned.overlay.png",
    }  # fmt: skip


def test_the_body_lies_on_the_person(out: tuple[Path, int]) -> None:
    people = runners()
    with np.load(out[0] / "people.npz") as file:
        names = [Path(name).name for name in file["image"].tolist()]
        row = names.index("runner.jpg")
        assert file["status"][row] == "fitted"
        places, lens = file["points"][row], file["cam_int"][row]
        turned = file["points"][names.index("turned.jpg")]
        poses, sd = file["poses"], file["poses_sd"]
    pixels = places[:, :2] / places[:, 2:] * lens[0, 0] + lens[:2, 2]
    assert np.nanmedian(people.errors(1, pixels)) < 0.035
    assert np.linalg.norm(places - turned, axis=1)[list(SHARED)].mean() < 0.1  # EXIF was heeded
    assert np.isfinite(poses[row]).all() and (sd[row] > 0).all()


def test_tables_say_the_same_in_degrees(out: tuple[Path, int]) -> None:
    with np.load(out[0] / "people.npz") as file:
        poses, observed, sd = file["poses"], file["observed"], file["poses_sd"]
    with (out[0] / "people.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    told = json.loads((out[0] / "people.json").read_text())["people"]
    assert len(lines) == len(told) == len(poses)
    for k, name in enumerate(POSE_NAMES):
        for row, line in enumerate(lines):
            if line["status"] != "fitted":
                assert line[f"{name}_deg"] == ""
                continue
            assert float(line[f"{name}_deg"]) == pytest.approx(np.degrees(poses[row, k]), abs=1e-2)
            assert float(line[f"{name}_sd_deg"]) == pytest.approx(np.degrees(sd[row, k]), abs=1e-2)
            assert line[f"{name}_observed"] == str(int(observed[row, k]))
            assert told[row]["angles"][name]["observed"] == bool(observed[row, k])
    knee = told[0]["angles"]["knee_angle_r"]
    assert knee["observed"] and 0 < knee["sd"] < 30


def test_the_overlay_shows_a_body_where_the_person_is(folder: Path, out: tuple[Path, int]) -> None:
    before = cv2.imread(str(folder / "runner.jpg")).astype(int)
    after = cv2.imread(str(out[0] / "runner.overlay.png")).astype(int)
    changed = np.abs(before - after).max(2) > 12
    rows, columns = np.nonzero(changed)
    people = runners()
    middle, half = people.columns["center"][1], 100 * people.columns["scale"][1]
    assert 0.02 < changed.mean() < 0.3
    assert abs(np.array([columns.mean(), rows.mean()]) - middle).max() < 0.2 * half
    assert (out[0] / "runner.0.glb").stat().st_size > 100_000
    assert (out[0] / "runner.views.png").is_file()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--focal", "-3"], "--focal -3: expected pixels"),
        (["--height", "17"], "--height 17: expected metres, 0.4 to 2.6"),
        (["--save", "pdf"], "--save pdf: expected some of npz"),
        (["--models", "nowhere"], "nowhere: no such folder"),
        (["--checkpoint", "none.pt"], "none.pt"),
        (["--device", "cuda"], "--device cuda: of the network only"),
    ],
)
def test_refusals_are_one_line(
    folder: Path, tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["photo", str(folder / "runner.jpg"), "--out", str(tmp_path / "out"), *more])
    said = capsys.readouterr().err.strip()
    assert code in (2, 5) and told in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"n\xe4me\xff.jpg")
    name.write_bytes(b"no picture")
    assert run(["photo", str(name), "--out", str(tmp_path / "out"), "--quiet"]) == 3
    told = json.loads((tmp_path / "out" / "people.json").read_bytes().decode())["pictures"]
    assert told[str(name)]["status"] == "unreadable"


def test_a_picture_of_gigabytes_is_refused_by_its_head() -> None:
    head = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + 2 * (29_999).to_bytes(4)
    with pytest.raises(InputError, match=r"bomb.png: 29999 x 29999 pixels, expected .* megapixels"):
        decode(head + bytes(80), "bomb.png")
    long = np.zeros((1, 30_001, 3), np.uint8)
    with pytest.raises(InputError, match="30001 x 1 pixels"):
        decode(cv2.imencode(".bmp", long)[1].tobytes(), "long.bmp")


def test_nothing_is_written_over_a_picture_that_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(runners().path(0), tmp_path / "a.overlay.png")
    assert run(["photo", str(tmp_path / "a.overlay.png"), "--out", str(tmp_path)]) == 2
    assert "is read here and is not written over" in capsys.readouterr().err


def test_intervals_grow_where_a_body_fits_badly() -> None:
    sd = np.full((3, 46), 0.1)
    wide = honest_sd(sd, np.array([0.05, 0.2, 0.8]))
    knee = POSE_NAMES.index("knee_angle_r")
    assert wide[0, knee] == wide[1, knee] > sd[1, knee]
    assert wide[2, knee] == pytest.approx(2 * wide[1, knee])
    low, high = joint_limits("default").T
    assert (honest_sd(10 * sd, np.ones(3))[:, 3:] <= ((high - low) / np.sqrt(12))[3:]).all()


def test_a_fit_to_landmarks_says_what_pictures_say(fitter: Fitter, marks: Marks) -> None:
    """`Fitter` corrects the fit's own standard deviations, with and without a given shape."""
    lens = Lens.of(SIZE, 700.0)
    off = replace(marks, pixels=marks.pixels + np.random.default_rng(0).normal(size=(1, 33, 2)) * 9)
    free = fitter.fit(off, lens)
    held = fitter.with_betas(off, lens, np.zeros((1, 10)))
    for found, fit_betas in ((free, True), (held, False)):
        plain = fit_skel_to_keypoints(
            fitter.skel, POINTS, off.pixels, off.weights, Cameras(lens.cam_int),
            places=off.places(lens.cam_int),
            start=Start(found.poses, found.betas, found.trans), prior=fitter.prior,
            config=fit_config(fit_betas=fit_betas),
        )  # fmt: skip
        np.testing.assert_allclose(found.sd, honest_sd(plain.sd, plain.cost), rtol=0.05)
        assert np.median(found.sd / plain.sd) > 1.1
