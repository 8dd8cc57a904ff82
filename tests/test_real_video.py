"""A real man before four cameras, where somebody has Pose2Sim's wheel: `benchmarks/real_video.py`.

    HMR_SKEL_POSE2SIM_WHEEL=pose2sim-0.10.49-py3-none-any.whl pytest tests/test_real_video.py

Some minutes. Skipped without the wheel, which is not ours to ship.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_video
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from stages.photo.people import Finder
from stages.photo.views import in_order

WHEEL = os.environ.get("HMR_SKEL_POSE2SIM_WHEEL")
pytestmark = pytest.mark.skipif(
    not WHEEL, reason="HMR_SKEL_POSE2SIM_WHEEL does not name the wheel of pose2sim 0.10.49"
)


@pytest.fixture(scope="module")
def man(tmp_path_factory: pytest.TempPathFactory) -> real_video.Seen:
    folder = real_video.unpacked(tmp_path_factory.mktemp("real"), Path(str(WHEEL)))
    return real_video.seen_man(folder, Finder())


@pytest.fixture(scope="module")
def skel():
    return load_skel(default_body_directory(), "male")


def cells(table: list[list[str]], name: str) -> dict[str, float]:
    row = next(row for row in table if row[0] == name)
    numbers = [float(cell.split("/")[0]) for cell in row[1 : 7 + 1]]
    return dict(zip(("rows", "pa", "median", "hips", "knee", "hip", "elbow"), numbers, strict=True))


def test_the_calibration_is_read_as_it_was_meant(man: real_video.Seen) -> None:
    (given, _), (better, share) = man.pixels["given"], man.pixels["adjusted"]
    assert np.nanmedian(given) <= 12.0
    assert np.nanmedian(better) <= 7.5 and 100 * np.nanmedian(share) <= 1.0
    ordered = in_order(man.views).views
    turned = [
        replace(c, turn=np.diag([1.0, -1.0, -1.0]) @ c.turn) for c in ordered.cameras
    ]  # the convention without its flip: nothing meets
    met = replace(ordered, cameras=tuple(turned)).joints()
    assert np.isnan(met.points).any(1).mean() > 0.9 or np.nanmedian(met.distances) > 50
    assert 30 <= man.sides[:, 1].sum() <= 40
    assert man.sides[:, [0, 2, 3]].sum() == 0


def test_one_camera(man: real_video.Seen, skel) -> None:
    table, exchanged = real_video.one_camera(man, skel)
    video, own = cells(table, "video, wide, true focal"), cells(table, "landmarks' own 3D")
    assert video["pa"] <= 75 and video["pa"] <= own["pa"] - 8
    assert video["knee"] <= 9 and video["hip"] <= 8
    wrong, repaired, flagged = (int(cell) for cell in exchanged[1][1:4])
    assert repaired + flagged >= 0.8 * wrong


def test_four_cameras(man: real_video.Seen, skel) -> None:
    table = real_video.several_cameras(man, skel)
    for name in ("as given, wide", "adjusted, wide"):
        found = cells(table, name)
        assert found["pa"] <= 25 and found["elbow"] <= 6 and found["hip"] <= 5


def test_two_people_keep_their_numbers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = real_video.unpacked(tmp_path_factory.mktemp("two"), Path(str(WHEEL)))
    for row in real_video.tracking(folder, Finder()):
        frames, numbers, people = row[1], row[2].split(", "), row[3].split(", ")
        assert people == [frames, frames] or sum(map(int, people)) >= int(frames)
        assert len(numbers) <= 2
