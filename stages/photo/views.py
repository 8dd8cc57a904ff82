"""One person in several synchronous views: left and right put in order by where the views' rays
meet, who is who in the other views, and whether the cameras agree. Method: docs/photo.md#cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.camera_adjustment import Adjusted, adjust_cameras
from skel_fit.keypoint_fit import Cameras
from skel_fit.triangulation import Triangulated, triangulate
from stages.photo.camera_files import CalibratedCamera
from stages.photo.fitting import Marks
from stages.photo.motion import exchanged

LIMBS = [
    k for k, name in enumerate(BLAZEPOSE_NAMES)
    if name.split()[-1] in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
]  # fmt: skip
"""The twelve joints of the limbs: what every view sees best."""
SIGMA = 0.015
"""Standard deviation of a landmark in one view, as a share of the person's size there."""
_ASTRAY = 0.06
"""Share of the person's size by which the joints of a view that has failed are off."""
_MOST_EXCHANGED = 2
_ADJUST_FRAMES = 100
_FARTHEST, _BY_MOTION, _EXCHANGED = 0.3, 60.0, 0.5
"""Metres a joint moves between two frames, at most; what a metre, and an exchange, costs beside
squared standard deviations."""


@dataclass(frozen=True)
class Views:
    """Landmarks of one person in V views over n frames, undistorted.

    marks: of each view, n frames; seen: (n, V) bool, the view has landmarks of the person there.
    """

    cameras: tuple[CalibratedCamera, ...]
    marks: tuple[Marks, ...]
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def some(self) -> np.ndarray:
        """(n,) bool: frames that any camera sees."""
        return np.asarray(self.seen.any(axis=1))

    @property
    def pixels(self) -> np.ndarray:
        """(n, V, 33, 2)."""
        return np.stack([marks.pixels for marks in self.marks], 1)

    @property
    def weights(self) -> np.ndarray:
        """(n, V, 33)."""
        own = np.stack([marks.weights for marks in self.marks], 1)
        return np.where(self.seen[..., None], own, 0.0)

    @property
    def sizes(self) -> np.ndarray:
        """(n, V) px of the person in the pictures; 1 where the view sees nobody."""
        extent = np.ptp(self.pixels, axis=2).max(-1)
        return np.where(self.seen, np.maximum(extent, 1.0), 1.0)

    @property
    def pinholes(self) -> Cameras:
        """For `fit_skel_to_keypoints`."""
        return Cameras(*arrays_of(self.cameras))

    def rows(self, index: np.ndarray | slice) -> Views:
        return Views(
            self.cameras, tuple(marks.rows(index) for marks in self.marks), self.seen[index]
        )

    def exchanged(self, wrong: np.ndarray) -> Views:
        """Left and right exchanged where wrong (n, V)."""
        marks = tuple(exchanged(m, wrong[:, v]) for v, m in enumerate(self.marks))
        return replace(self, marks=marks)

    def joints(self) -> Triangulated:
        """The twelve joints of `LIMBS` of all frames, n * 12 points, frame by frame."""
        return _joints(
            self.pixels[:, :, LIMBS], self.weights[:, :, LIMBS], self.sizes, self.cameras
        )


def arrays_of(cameras: Sequence[CalibratedCamera]) -> tuple[np.ndarray, np.ndarray]:
    """cam_int (V, 3, 3) and world → camera (V, 3, 4)."""
    inner = np.stack([camera.cam_int for camera in cameras])
    outer = np.stack([np.column_stack([camera.turn, camera.shift]) for camera in cameras])
    return inner, outer


def _joints(
    pixels: np.ndarray, weights: np.ndarray, sizes: np.ndarray,
    cameras: Sequence[CalibratedCamera],
) -> Triangulated:  # fmt: skip
    n, views, count = weights.shape
    flat = pixels.swapaxes(1, 2).reshape(n * count, views, 2)
    sigmas = np.repeat(SIGMA * sizes, count, axis=0)
    return triangulate(
        flat, weights.swapaxes(1, 2).reshape(n * count, views), sigmas, *arrays_of(cameras)
    )


# ---- left and right ------------------------------------------------------------------------------


def patterns(views: int) -> np.ndarray:
    """(P, V) bool: which views may be the other way round at once. The first: none."""
    rows: list[tuple[int, ...]] = [()]
    for count in range(1, min(_MOST_EXCHANGED, views - 1) + 1):
        rows += list(combinations(range(views), count))
    found = np.zeros((len(rows), views), bool)
    for row, chosen in enumerate(rows):
        found[row, list(chosen)] = True
    return found


def wrong_sides(views: Views) -> np.ndarray:
    """(n, V) bool: where left and right of the whole body are exchanged.

    Of all patterns the sequence that costs least: rays that do not meet, joints that move, and
    exchanges. Rays alone cannot tell who is right where two views contradict each other; how the
    joints move can. Views that are all wrong together cannot be told.
    """
    n, count = len(views), len(LIMBS)
    tried = patterns(len(views.cameras))
    costs, places = np.zeros((n, len(tried))), np.zeros((n, len(tried), count, 3))
    for p, pattern in enumerate(tried):
        turned = views.exchanged(np.broadcast_to(pattern, views.seen.shape) & views.seen)
        met = turned.joints()
        costs[:, p] = met.cost.reshape(n, count).sum(1)
        costs[:, p] += _EXCHANGED * (pattern & views.seen).sum(1)
        places[:, p] = met.points.reshape(n, count, 3)
    return tried[_cheapest(costs, places)] & views.seen


def _cheapest(costs: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) the state of each frame: least sum of costs (n, P) and motion of places (n, P, K, 3)."""
    n, states = costs.shape
    came = np.zeros((n, states), int)
    total = costs[0].copy()
    for t in range(1, n):
        steps = np.linalg.norm(places[t, :, None] - places[t - 1, None], axis=-1)
        moved = np.minimum(np.nan_to_num(steps, nan=0.0), _FARTHEST).sum(-1)
        through = total[None] + _BY_MOTION * moved
        came[t] = through.argmin(1)
        total = through.min(1) + costs[t]
    state = np.zeros(n, int)
    state[-1] = int(total.argmin())
    for t in range(n - 1, 0, -1):
        state[t - 1] = came[t, state[t]]
    return state


def astray(views: Views) -> np.ndarray:
    """(n, V) bool: views of which most joints are not where two others and more say."""
    n, count, number = len(views), len(LIMBS), len(views.cameras)
    away = views.joints().distances.reshape(n, count, number)
    middle = np.median(np.where(np.isfinite(away), away, 0.0), axis=1) / views.sizes
    several = views.seen.sum(1, keepdims=True) >= 3
    worst = middle == middle.max(1, keepdims=True)
    return np.asarray(several & worst & (middle > _ASTRAY))


@dataclass(frozen=True)
class Ordered:
    """views: left and right in order, without the views that are astray; sides, astray: (n, V)
    bool, which were exchanged and which are left out."""

    views: Views
    sides: np.ndarray
    astray: np.ndarray

    def rows(self, index: np.ndarray | slice) -> Ordered:
        return Ordered(self.views.rows(index), self.sides[index], self.astray[index])

    @property
    def frames_of_two(self) -> int:
        """Frames that two cameras and more see."""
        return int((self.views.seen.sum(1) >= 2).sum())


def in_order(views: Views) -> Ordered:
    """A person's landmarks as all views together tell them."""
    sides = wrong_sides(views)
    lost = astray(views.exchanged(sides))
    ordered = views.exchanged(sides & ~lost)
    return Ordered(replace(ordered, seen=ordered.seen & ~lost), sides & ~lost, lost)


# ---- do the cameras agree? -----------------------------------------------------------------------


def adjusted(
    people: Sequence[Views],
) -> tuple[tuple[CalibratedCamera, ...], Adjusted]:
    """Cameras adjusted by the joints of people, in order, in frames spread over the video.

    Raises ValueError: too few joints are seen by two cameras.
    """
    cameras = people[0].cameras
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for views in people:
        rows = np.unique(np.linspace(0, len(views) - 1, _ADJUST_FRAMES).astype(int))
        some = views.rows(rows)
        shape = (len(some) * len(LIMBS), len(cameras))
        parts.append((
            some.pixels[:, :, LIMBS].swapaxes(1, 2).reshape(*shape, 2),
            some.weights[:, :, LIMBS].swapaxes(1, 2).reshape(shape),
            np.repeat(SIGMA * some.sizes, len(LIMBS), axis=0),
        ))  # fmt: skip
    pixels, weights, sigmas = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = adjust_cameras(pixels, weights, sigmas, *arrays_of(cameras))
    moved = tuple(
        replace(camera, turn=outer[:, :3], shift=outer[:, 3])
        for camera, outer in zip(cameras, found.outer, strict=True)
    )
    return moved, found
