"""People in pictures: networks, detector, landmarks, and who is taken for a person."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import InputError, UsageError
from stages.photo import networks
from stages.photo.detector import anchors, letterbox, merged, tiles, turned_back
from stages.photo.landmarks import MIRROR, SIDE, Region, cut, refined
from stages.photo.networks import Network
from stages.photo.people import Finder, Sighting, Verdict, alone, once, same
from tests.photo_pictures import Rendered, runners


@pytest.fixture(scope="module")
def people() -> Rendered:
    return runners()


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder()


# ---- the networks -------------------------------------------------------------------------------


def test_a_changed_network_is_refused(tmp_path: Path) -> None:
    original = Path(networks.__file__).with_name("networks") / "pose_detection.tflite"
    copy = tmp_path / original.name
    shutil.copy(original, copy)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(InputError, match=r"not the network that belongs here .*install hmr-skel"):
        Network("pose_detection", tmp_path)
    copy.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Network("pose_detection", tmp_path)


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.delitem(sys.modules, "ai_edge_litert.interpreter", raising=False)
    with pytest.raises(UsageError, match=r"not installed; pip install 'hmr-skel\[photo\]'"):
        Network("pose_detection")


def test_the_runtime_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    Network("pose_detection")
    assert capfd.readouterr() == ("", "")


# ---- geometry -----------------------------------------------------------------------------------


def test_anchors_are_those_of_the_outputs() -> None:
    found = anchors()
    assert found.shape == (2254, 2)
    np.testing.assert_allclose(
        found[[0, 1, 2, -1]] * 28, [[0.5] * 2, [0.5] * 2, [1.5, 0.5], [26] * 2]
    )


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (100, 80), (1, 700)])
def test_a_letterbox_says_where_each_pixel_went(size: tuple[int, int]) -> None:
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: (height + 1) // 2, : (width + 1) // 2] = 255
    square, scale, shift = letterbox(picture)
    assert square.shape == (224, 224, 3) and square.min() >= -1 and square.max() <= 1
    middle = scale * (width / 4, height / 4) + shift
    assert square[int(middle[1]), int(middle[0]), 0] > 0.9
    if min(size) > 1:
        other = scale * (width * 0.8, height * 0.8) + shift
        assert square[int(other[1]), int(other[0]), 0] == -1


@pytest.mark.parametrize("size", [(480, 640), (1920, 1080), (37, 1000), (5, 5)])
@pytest.mark.parametrize("share", [0.6, 0.4])
def test_tiles_cover_the_picture_and_half_of_their_neighbour(
    size: tuple[int, int], share: float
) -> None:
    seen = np.zeros(size, int)
    for left, top, right, bottom in tiles(size, share):
        assert right - left <= round(share * max(size)) and right > left and bottom > top
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1


def test_boxes_that_overlap_are_one_and_others_are_not() -> None:
    rows = np.zeros((3, 8))
    rows[:, :4] = [[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10]]
    (first, row), (second, other) = merged(np.array([0.6, 0.9, 0.7]), rows)
    assert (first, second) == (0.9, 0.7)
    np.testing.assert_allclose(row[:4], [0.6, 0, 10.6, 10])
    np.testing.assert_allclose(other[:4], rows[2, :4])


@pytest.mark.parametrize("direction", [(0, -1), (1, 0), (0, 1), (-1, 0), (0.6, -0.8)])
def test_a_region_turns_with_the_person(direction: tuple[float, float]) -> None:
    hips, along = np.array([200.0, 100.0]), np.array(direction)
    region = Region.around(hips, hips + 40 * along)
    assert region.side == pytest.approx(100)
    middle, up = region.pixels(np.array([[SIDE / 2, SIDE / 2], [SIDE / 2, 0]]))
    np.testing.assert_allclose(middle, hips, atol=1e-9)
    np.testing.assert_allclose(up, hips + 50 * along, atol=1e-9)  # the top is where the head is


@pytest.mark.parametrize("side", [120.0, 400.0, 900.0])
def test_a_crop_shows_what_its_map_says(side: float) -> None:
    """Each pixel of the picture is its own place, and so is each pixel of the crop."""
    rows, columns = np.mgrid[0:700, 0:1000]
    picture = np.zeros((700, 1000, 3), np.float32)
    picture[..., 0], picture[..., 1], picture[..., 2] = columns / 1000, rows / 700, 1
    region = Region(np.array([480.0, 350.0]), side, 0.4)
    crop = cut((picture * 255).round().astype(np.uint8), region)
    grid = np.stack(np.meshgrid(np.arange(5, 250, 20), np.arange(5, 250, 20)), -1).reshape(-1, 2)
    place = region.pixels(grid + 0.5)
    inside = ((place > 8) & (place < (992, 692))).all(1)
    assert inside.sum() > 50
    found = crop[grid[inside, 1], grid[inside, 0]]
    # a pixel's value is its index, half a pixel less than its middle, in steps of 4 px
    np.testing.assert_allclose(found[:, 0] * 1000 + 0.5, place[inside, 0], atol=5.0)
    np.testing.assert_allclose(found[:, 1] * 700 + 0.5, place[inside, 1], atol=4.0)
    away = found[:, 0] * 1000 + 0.5 - place[inside, 0]
    assert abs(away.mean()) < 0.4
    assert cut(picture.astype(np.uint8), Region(np.array([-900.0, 0.0]), 100.0, 0.0)).max() == 0


def test_heat_moves_a_point_and_cold_does_not() -> None:
    heat = np.full((64, 64, 39), -20.0, np.float32)
    heat[10, 21, 0] = 5.0
    heat[20, 20, 1] = -1.0  # weaker than a half
    points = np.full((39, 2), 82.0)
    points[0] = [82.0, 44.0]
    points[2] = [-30.0, 999.0]
    moved = refined(points, heat)
    np.testing.assert_allclose(moved[0], [84.0, 40.0], atol=1e-3)
    np.testing.assert_array_equal(moved[1:], points[1:])


# ---- people -------------------------------------------------------------------------------------


def test_people_are_found_where_the_label_has_them(people: Rendered, finder: Finder) -> None:
    errors = []
    for row in range(len(people)):
        found = [p for p in finder.find(people.picture(row)) if not p.refusal]
        assert found
        errors.append(min((people.errors(row, p.landmarks.pixels) for p in found), key=np.nanmean))
    assert np.nanmedian(errors) < 0.03 and np.nanmean(np.array(errors) < 0.05) > 0.85


def test_two_people_are_two_from_left_to_right(people: Rendered, finder: Finder) -> None:
    parts = []
    for row in (0, 1):
        picture = people.picture(row)
        middle = people.columns["center"][row]
        half = 120.0 * people.columns["scale"][row]
        matrix = np.array([[1, 0, half - middle[0]], [0, 1, half - middle[1]]]) * (200 / half)
        parts.append(cv2.warpAffine(picture, matrix, (400, 400), borderMode=cv2.BORDER_REPLICATE))
    found = [p for p in finder.find(np.concatenate(parts, 1)) if not p.refusal]
    assert len(found) == 2
    left, right = (person.landmarks.pixels[:, 0] for person in found)
    assert left.max() < 420 and right.min() > 380


def test_a_small_person_is_found_in_a_tile(people: Rendered, finder: Finder) -> None:
    small = cv2.resize(people.picture(1), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    wide = np.full((1000, 1000, 3), 90, np.uint8)
    wide[650 : 650 + len(small), 600 : 600 + small.shape[1]] = small
    assert not finder.detector.look(wide, 0.5)
    found = [p for p in finder.find(wide) if not p.refusal]
    assert len(found) == 1
    own = (found[0].landmarks.pixels - (600, 650)) * 2
    assert np.nanmedian(people.errors(1, own)) < 0.04


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((1, 900, 3), np.uint8),
        np.zeros((480, 640, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8),
    ],
    ids=["one pixel", "a line", "black", "noise"],
)
def test_nobody_is_nobody(picture: np.ndarray, finder: Finder) -> None:
    assert [p for p in finder.find(picture) if not p.refusal] == []


def test_a_refusal_has_the_numbers(people: Rendered, finder: Finder) -> None:
    sure = finder.find(people.picture(0))[0]
    assert sure.gated().refusal == ""
    assert "detector 0.31" in replace(sure, score=0.31).gated().refusal
    marks = replace(sure.landmarks, flag=0.9)
    doubtful = replace(sure, landmarks=marks)
    assert doubtful.gated().refusal == ""
    in_tile = replace(doubtful, tile=1)
    refusal = "not a person: landmarks 0.900, expected "
    assert in_tile.gated().refusal == f"{refusal}0.98 or more"
    assert in_tile.gated(fitted=True).refusal == f"{refusal}0.95 or more"
    again = replace(doubtful, again=True)
    assert again.gated().refusal == f"{refusal}0.98 or more"
    assert again.gated(fitted=True).refusal == f"{refusal}0.95 or more"
    marks = replace(marks, flag=0.96)
    assert replace(again, landmarks=marks).gated(fitted=True).refusal == ""


def test_who_is_judged_to_be_nobody_lets_the_search_go_on(people: Rendered, finder: Finder) -> None:
    asked: list[int] = []

    def judge(seen: Sequence[Sighting]) -> list[Verdict]:
        asked.append(len(seen))
        said = Verdict("a bollard", 3.0, False) if len(asked) == 1 else Verdict("", 0.2, True)
        return [said] * len(seen)

    found = finder.find(people.picture(0), judge)
    assert asked[0] == 1 and len(asked) > 1
    taken = [person for person in found if not person.refusal]
    assert taken and all(person.again for person in taken)


def test_who_is_seen_twice_is_kept_once(people: Rendered, finder: Finder) -> None:
    person = finder.find(people.picture(0))[0]
    marks = person.landmarks
    near = replace(marks, pixels=marks.pixels + 0.05 * marks.size)
    far = replace(marks, pixels=marks.pixels + 0.5 * marks.size)
    assert same(marks, near) and not same(marks, far)
    weaker = Sighting(0.6, near)
    assert once([weaker, person, Sighting(0.7, far)]) == [person, Sighting(0.7, far)]
    # of a further search whoever is at the same place is the same, and the better fit is kept
    upside_down = replace(marks, pixels=2 * marks.pixels.mean(0) - marks.pixels)
    better = Sighting(0.6, upside_down, cost=0.3, again=True)
    worse = replace(person, cost=1.2)
    assert not same(marks, upside_down)
    assert once([worse, better]) == [better]
    assert len(once([worse, replace(better, again=False)])) == 2


def test_who_is_unclear_in_a_further_search_is_not_taken_beside_a_better_one(
    people: Rendered, finder: Finder
) -> None:
    seen = Sighting(0.9, finder.find(people.picture(0))[0].landmarks, cost=0.3, clear=True)
    unclear = replace(seen, cost=1.0, clear=False, again=True)
    first, second = alone([seen, unclear])
    assert not first.refusal and second.refusal == "unclear: cost 1.0, beside somebody of 0.3"
    kept = [[unclear], [seen, replace(unclear, again=False)], [seen, replace(unclear, clear=True)]]
    assert not any(person.refusal for group in kept for person in alone(group))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_second_look_is_at_the_picture_turned(
    people: Rendered, finder: Finder, turns: int
) -> None:
    """It sees a lying picture as it stands, and says where that is in the lying one."""
    picture = people.picture(0)
    (upright,) = finder.detector.look(picture, 0.5)
    lying = np.ascontiguousarray(np.rot90(picture, turns))
    _, again = itertools.islice(finder.detector.search(lying), 2)
    (same_one,) = [found for found in again if found.score == upright.score]
    for ours, theirs in ((upright.hips, same_one.hips), (upright.top, same_one.top)):
        place = turned_back(theirs[None], turns, (picture.shape[0], picture.shape[1]))[0]
        np.testing.assert_allclose(place, ours, atol=1e-6)


@pytest.mark.parametrize("turns", range(4))
def test_places_are_turned_back_as_pictures_are(turns: int) -> None:
    picture = np.zeros((40, 70), np.uint8)
    picture[10, 55] = 1
    row, column = np.argwhere(np.rot90(picture, turns))[0]
    place = turned_back(np.array([[column + 0.5, row + 0.5]]), turns, (40, 70))
    np.testing.assert_allclose(place, [[55.5, 10.5]])


def test_steadied_landmarks_of_a_mirrored_picture_are_the_mirror_image(
    people: Rendered, finder: Finder
) -> None:
    picture = people.picture(0)
    seen = finder.find(picture)[0].landmarks
    steady = finder.landmarker.steadied(picture, seen)
    assert np.nanmedian(people.errors(0, steady.pixels)) < 0.03
    width = picture.shape[1]
    other_side = Region(
        np.array([width - seen.region.center[0], seen.region.center[1]]), seen.region.side,
        -seen.region.turn,
    )  # fmt: skip
    mirrored = finder.landmarker.steadied(
        np.ascontiguousarray(picture[:, ::-1]), replace(seen, region=other_side)
    )
    pixels = mirrored.pixels[MIRROR]
    pixels[:, 0] = width - pixels[:, 0]
    assert np.abs(pixels - steady.pixels).max() < 0.02 * seen.size
    np.testing.assert_allclose(mirrored.world[MIRROR] * (-1, 1, 1), steady.world, atol=0.03)
