"""The 33 landmarks of one person: the square that is looked at, the network, its answer in pixels.

Source: docs/reference/blazepose.md#landmarks. Pixels are continuous: pixel (i, j) covers
[j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from skel_fit.body_points import BLAZEPOSE_NAMES
from stages.photo.networks import Network

SIDE = 256
"""Of the network's input, pixels."""
COUNT = 33
_ROOM = 1.25
"""Side of the region over twice the distance from the hips to the point that says the size."""
_CELLS, _WINDOW, _LEAST_HEAT = 64, 3, 0.5
_SWAY = 0.35
"""rad by which a region is turned to and fro for further looks."""
_ALIASED = 2.0
"""Picture pixels a crop pixel from which the picture is made smaller first."""


def _mirror() -> np.ndarray:
    def other(name: str) -> str:
        words = {"left": "right", "right": "left"}
        return " ".join(words.get(word, word) for word in name.split())

    return np.array([BLAZEPOSE_NAMES.index(other(name)) for name in BLAZEPOSE_NAMES])


MIRROR = _mirror()
"""The landmark on the other side of each."""


@dataclass(frozen=True)
class Region:
    """A turned square of the picture. center: (2,) px; side: px; turn: rad, x towards y."""

    center: np.ndarray
    side: float
    turn: float

    @staticmethod
    def around(hips: np.ndarray, top: np.ndarray) -> Region:
        """The square of a person from the middle of the hips (2,) and the point above it that says
        how long and how turned the body is."""
        along = np.asarray(top, np.float64) - hips
        turn = math.pi / 2 - math.atan2(-along[1], along[0])
        turn = (turn + math.pi) % (2 * math.pi) - math.pi
        return Region(np.asarray(hips, np.float64), 2 * _ROOM * float(np.hypot(*along)), turn)

    @property
    def rotation(self) -> np.ndarray:
        """(2, 2) directions of the square -> directions of the picture."""
        c, s = math.cos(self.turn), math.sin(self.turn)
        return np.array([[c, -s], [s, c]])

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) of the network's input, px of it, in the picture."""
        return (points - SIDE / 2) * (self.side / SIDE) @ self.rotation.T + self.center

    @property
    def box(self) -> np.ndarray:
        """(4,) left, top, right, bottom of the upright square of the same size and middle."""
        return np.concatenate([self.center - self.side / 2, self.center + self.side / 2])

    @property
    def usable(self) -> bool:
        return bool(np.isfinite(self.center).all()) and 2.0 <= self.side < 1e6


@dataclass(frozen=True)
class Landmarks:
    """One person's landmarks, in the order of `skel_fit.body_points.BLAZEPOSE_NAMES`.

    pixels: (33, 2); visibility: (33,) 0 to 1; world: (33, 3) metres from the middle of the hips,
    axes as the camera's (x right, y down, z forward), scale and depth weak; flag: 0 to 1, that it
    is a person; region: that was looked at; next: where the person is by these landmarks.
    """

    pixels: np.ndarray
    visibility: np.ndarray
    world: np.ndarray
    flag: float
    region: Region
    next: Region

    @property
    def box(self) -> np.ndarray:
        """(4,) left, top, right, bottom of the landmarks, px."""
        return np.concatenate([self.pixels.min(0), self.pixels.max(0)])

    @property
    def size(self) -> float:
        """Longer side of the box of the landmarks, px."""
        return max(float(np.ptp(self.pixels, axis=0).max()), 1.0)


class Landmarker:
    """Finds landmarks in a region. Not for several threads at once."""

    def __init__(self) -> None:
        self._network = Network("pose_landmark_full")

    def __call__(self, picture: np.ndarray, region: Region, passes: int = 1) -> Landmarks:
        """Landmarks in a region of a picture (H, W, 3) uint8 RGB.

        passes: looks; each further one looks where the one before found the person.
        """
        found = self._look(picture, region)
        for _ in range(passes - 1):
            if not found.next.usable:
                break
            found = self._look(picture, found.next)
        return found

    def steadied(self, picture: np.ndarray, found: Landmarks) -> Landmarks:
        """The medians of six looks at a person's region: as it is and turned to and fro, each as
        seen and in a mirror. Single looks slip now and then, hardly ever the same way."""
        region = found.region
        looks = [
            self._look(picture, replace(region, turn=region.turn + turn), mirrored=mirrored)
            for turn in (0.0, -_SWAY, _SWAY)
            for mirrored in (False, True)
        ]
        return replace(
            found,
            pixels=np.median([look.pixels for look in looks], axis=0),
            visibility=np.median([look.visibility for look in looks], axis=0),
            world=np.median([look.world for look in looks], axis=0),
        )

    def _look(self, picture: np.ndarray, region: Region, *, mirrored: bool = False) -> Landmarks:
        square = cut(picture, region)
        if mirrored:
            square = np.ascontiguousarray(square[:, ::-1])
        outputs = self._network(square[None])
        rows = outputs["Identity"].reshape(39, 5).astype(np.float64)
        points = refined(rows[:, :2], outputs["Identity_3"][0])
        world = outputs["Identity_4"].reshape(39, 3)[:COUNT].astype(np.float64)
        if mirrored:
            points[:, 0] = SIDE - points[:, 0]
            world[:, 0] = -world[:, 0]
            points[:COUNT], world = points[MIRROR], world[MIRROR]
            rows[:COUNT] = rows[MIRROR]
        pixels = region.pixels(points)
        world[:, :2] = world[:, :2] @ region.rotation.T
        return Landmarks(
            pixels[:COUNT],
            _sigmoid(rows[:COUNT, 3]),
            world,
            float(outputs["Identity_1"].reshape(())),
            region,
            Region.around(pixels[33], pixels[34]),
        )


def cut(picture: np.ndarray, region: Region) -> np.ndarray:
    """(256, 256, 3) float32 in [0, 1]: the region, black outside the picture."""
    linear = region.rotation * (region.side / SIDE)
    shift = region.center - linear @ (SIDE / 2, SIDE / 2)
    # The part that is needed, made smaller so that no pixel of it is skipped.
    reach = region.side * 0.5 * (abs(linear[0]).sum() / (region.side / SIDE)) + 2.0
    height, width = picture.shape[:2]
    low = np.clip(np.floor(region.center - reach), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(region.center + reach), 0, (width, height)).astype(int)
    if (high <= low).any():
        return np.zeros((SIDE, SIDE, 3), np.float32)
    part = picture[low[1] : high[1], low[0] : high[0]]
    shift = shift - low
    if region.side > _ALIASED * SIDE:
        factor = SIDE / region.side
        size = np.maximum(np.rint((high - low) * factor), 1).astype(int)
        scale = size / (high - low)
        part = cv2.resize(
            np.ascontiguousarray(part), (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA
        )
        linear, shift = scale[:, None] * linear, scale * shift
    # OpenCV counts from pixel centres, our coordinates from pixel corners.
    shift = shift + linear.sum(1) * 0.5 - 0.5
    square = cv2.warpAffine(
        np.ascontiguousarray(part), np.column_stack([linear, shift]), (SIDE, SIDE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )  # fmt: skip
    return square.astype(np.float32) / np.float32(255)


def refined(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Points (39, 2), px of the input, moved to the middle of the heat around them where there is
    any; heat: (64, 64, 39) logits."""
    moved = points.copy()
    cell = points * (_CELLS / SIDE)
    for k, (x, y) in enumerate(cell):
        if not (0 <= x < _CELLS and 0 <= y < _CELLS):
            continue
        column, row = int(x), int(y)
        columns = slice(max(column - _WINDOW, 0), min(column + _WINDOW + 1, _CELLS))
        rows = slice(max(row - _WINDOW, 0), min(row + _WINDOW + 1, _CELLS))
        weights = _sigmoid(heat[rows, columns, k].astype(np.float64))
        if weights.max() < _LEAST_HEAT:
            continue
        total = weights.sum()
        across, down = np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop)
        middle = (weights.sum(0) @ across) / total, (weights.sum(1) @ down) / total
        moved[k] = np.array(middle) * (SIDE / _CELLS)
    return moved


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1.0 / (1.0 + np.exp(-np.clip(values, -100.0, 100.0)))
    return result
