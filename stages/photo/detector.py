"""Where people are in a picture: the detection network, its anchors, and what it says of each.

Source: docs/reference/blazepose.md#detector. Pixels are continuous: pixel (i, j) covers
[j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stages.photo.networks import Network

SIDE = 224
"""Of the network's input, pixels."""
LEAST_SCORE = 0.5
_SAME = 0.3
"""Overlap (intersection over union) above which two boxes are of one face."""
TILES = (0.6, 0.4)
"""Sides of tiles, as shares of the picture's longer side; from one to the next it is half of it."""
_GRIDS = ((28, 2), (14, 2), (7, 6))  # cells along a side, anchors a cell


@dataclass(frozen=True)
class Detection:
    """A person. score: 0 to 1; face: left, top, right, bottom, px; hips, top: (2,) px, the middle
    of the hips and a point that says how long and how turned the body is; tile: 0 found in the
    whole picture, 1 or 2 in a tile, by its size in `TILES`."""

    score: float
    face: np.ndarray
    hips: np.ndarray
    top: np.ndarray
    tile: int = 0


class Detector:
    """Finds people. Not for several threads at once."""

    def __init__(self) -> None:
        self._network = Network("pose_detection")
        self._anchors = anchors()

    def search(self, picture: np.ndarray, least: float = LEAST_SCORE) -> Iterator[list[Detection]]:
        """People in a picture (H, W, 3) uint8 RGB, the surest of each look first: in the whole
        picture; in the picture lying on its sides and standing on its head, because the network
        knows hardly anybody upside down; in overlapping tiles of it, in which small people are
        larger, turned likewise; in smaller tiles. Each is looked at when it is asked for."""
        yield self.look(picture, least)
        yield self._turned(picture, least, (1, 2, 3))
        for tile, share in enumerate(TILES, 1):
            windows = tiles(picture.shape[:2], share)
            yield [
                replace(found, tile=tile)
                for turns in ((0, 1, 2, 3) if tile == 1 else (0,))
                for found in once([
                    each for window in windows
                    for each in self._turned(picture, least, (turns,), window)
                ])
            ]  # fmt: skip

    def _turned(
        self, picture: np.ndarray, least: float, turns: Sequence[int],
        window: tuple[int, int, int, int] | None = None,
    ) -> list[Detection]:  # fmt: skip
        """People in a picture, or a window of it, turned by quarters of a circle."""
        left, top, right, bottom = window or (0, 0, picture.shape[1], picture.shape[0])
        part = picture[top:bottom, left:right]
        corner, size = np.array([left, top], float), part.shape[:2]
        found = []
        for turn in turns:
            for each in self.look(np.ascontiguousarray(np.rot90(part, turn)), least):
                points = np.stack([each.face[:2], each.face[2:], each.hips, each.top])
                points = turned_back(points, turn, size) + corner
                low, high = points[:2].min(0), points[:2].max(0)
                found.append(
                    Detection(each.score, np.concatenate([low, high]), points[2], points[3])
                )
        return found

    def look(self, picture: np.ndarray, least: float) -> list[Detection]:
        """People in a picture, once each, the surest first."""
        square, scale, shift = letterbox(picture)
        outputs = self._network(square[None])
        with np.errstate(over="ignore"):
            scores = 1.0 / (1.0 + np.exp(-outputs["Identity_1"][0, :, 0].clip(-100.0, 100.0)))
        kept = np.flatnonzero(scores >= least)
        if not kept.size:
            return []
        raw = outputs["Identity"][0, kept].astype(np.float64) / SIDE
        centre, centres = self._anchors[kept], np.tile(self._anchors[kept], 2)
        middle, size = raw[:, :2] + centre, raw[:, 2:4]
        boxes = np.concatenate([middle - size / 2, middle + size / 2], 1)
        rows = np.concatenate([boxes, raw[:, 4:8] + centres], 1)
        rows = (rows * SIDE - np.tile(shift, 4)) / np.tile(scale, 4)
        return [_detection(s, r) for s, r in merged(scores[kept].astype(np.float64), rows)]


def turned_back(points: np.ndarray, turns: int, size: tuple[int, int]) -> np.ndarray:
    """Places (n, 2) px in a picture of height and width `size`, from those in the same picture
    after `np.rot90(picture, turns)`."""
    height, width = size
    x, y = points.T
    where = ((x, y), (width - y, x), (width - x, height - y), (y, height - x))[turns % 4]
    return np.stack(where, axis=1)


def once(found: Sequence[Detection]) -> list[Detection]:
    """Detections that overlap as one."""
    rows = np.array([_row(each) for each in found]).reshape(-1, 8)
    scores = np.array([each.score for each in found])
    return [_detection(score, row) for score, row in merged(scores, rows)]


def anchors() -> np.ndarray:
    """(2254, 2) centres of the anchors as shares of the input's side."""
    found = []
    for cells, each in _GRIDS:
        along = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
        found.append(np.repeat(grid, each, axis=0))
    return np.concatenate(found)


def letterbox(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(224, 224, 3) float32 in [-1, 1] with the whole picture in its middle, black around it; scale
    and shift (2,): pixels of the input = scale * pixels of the picture + shift."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    size = max(round(SIDE * width / longer), 1), max(round(SIDE * height / longer), 1)
    how = cv2.INTER_AREA if longer > SIDE else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(picture), size, interpolation=how)
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square = np.zeros((SIDE, SIDE, 3), np.uint8)
    square[top : top + size[1], left : left + size[0]] = small
    scale = np.array([size[0] / width, size[1] / height])
    return square.astype(np.float32) / np.float32(127.5) - 1, scale, np.array([left, top], float)


def merged(scores: np.ndarray, rows: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Rows (n, 8) that start with a box, one for each group of boxes that overlap: their mean by
    score, under the best score of the group, the surest first."""
    left = np.argsort(-scores, kind="stable")
    while left.size:
        same = overlaps(rows[left[0], :4], rows[left, :4]) > _SAME
        same[0] = True
        group = left[same]
        weights = scores[group, None]
        yield float(scores[left[0]]), (weights * rows[group]).sum(0) / weights.sum()
        left = left[~same]


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of a box (4,) with boxes (n, 4): left, top, right, bottom."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.clip(high - low, 0.0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    total = areas + (box[2:] - box[:2]).prod() - common
    return common / np.maximum(total, 1e-12)


def tiles(size: tuple[int, int], share: float) -> list[tuple[int, int, int, int]]:
    """Overlapping windows (left, top, right, bottom) that cover a picture of height and width, as
    large as a share of its longer side."""
    side = max(round(share * max(size)), 1)

    def starts(length: int) -> list[int]:
        if length <= side:
            return [0]
        count = int(np.ceil(2 * (length - side) / side)) + 1
        return [round(at) for at in np.linspace(0, length - side, count)]

    height, width = size
    return [
        (left, top, min(left + side, width), min(top + side, height))
        for top in starts(height)
        for left in starts(width)
    ]


def _row(found: Detection) -> np.ndarray:
    return np.concatenate([found.face, found.hips, found.top])


def _detection(score: float, row: np.ndarray) -> Detection:
    return Detection(score, row[:4], row[4:6], row[6:8])
