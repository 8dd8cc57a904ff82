"""One body fitted to all views of a person: one shape, every frame, then all frames together.

Everything here is in a world whose y points up, since angles of the pelvis lock where it does not
(docs/sequences.md); `Axes` says how it lies in the world of the calibration file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.keypoint_fit import (
    Cameras,
    KeypointFit,
    KeypointFitConfig,
    Places,
    Problem,
    Start,
    fit_skel_to_keypoints,
)
from skel_fit.root import root_angles, root_rotation
from skel_fit.skel import SKEL
from stages.photo.fitting import POINTS, Fitter
from stages.photo.motion import (
    STIFFNESS_OF_SEVERAL,
    Motion,
    Part,
    by_windows,
    coupled,
    nothing_seen,
    turns_of,
)
from stages.photo.views import LIMBS, SIGMA, Ordered, Views, arrays_of

_TORSO = list(POINTS.torso)
_START_WEIGHT = 1e-3
"""Of the torso's 3D points: enough to start from."""
_SHAPE_FRAMES, _QUICK = 60, 8
MOST_COST = 6.0
"""Robust squared standard deviations (`SIGMA`) a landmark above which a body is not believed. One
view of four that fails wholly costs 5, and the other three are still right."""
UPS = {
    "z": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "y": np.eye(3),
    "y-down": np.diag([1.0, -1.0, -1.0]),
}
"""Which way is up in the world of a calibration → rotation from there to a world with y up."""


@dataclass(frozen=True)
class Axes:
    """up: of `UPS`; stated: by the user, else seen in the people."""

    up: str
    stated: bool

    @property
    def turn(self) -> np.ndarray:
        """(3, 3) from the calibration's world to the body's, y up."""
        return UPS[self.up]


@dataclass(frozen=True)
class Shared:
    """A person over consecutive frames, seen by several cameras.

    motion: y up, metres; its marks are those of the first camera. views: in order, cameras in the
    file's world. sides: (n, V) exchanged, and put right.
    """

    motion: Motion
    views: Views
    sides: np.ndarray
    astray: np.ndarray
    axes: Axes


def up_of(views: Sequence[Views]) -> str:
    """The axis along which people stand, of `UPS`: the median way from ankles to shoulders."""
    ways = []
    for each in views:
        joints = each.joints().points.reshape(len(each), len(LIMBS), 3)
        ways.append(_middle(joints, "shoulder") - _middle(joints, "ankle"))
    way = np.nanmedian(np.concatenate(ways), axis=0)
    sizes = {"z": way[2], "y": way[1], "y-down": -way[1]}
    return max(sizes, key=lambda name: sizes[name])


def _middle(joints: np.ndarray, name: str) -> np.ndarray:
    rows = [k for k, limb in enumerate(LIMBS) if BLAZEPOSE_NAMES[limb].endswith(name)]
    middle: np.ndarray = joints[:, rows].mean(1)
    return middle


class TogetherFitter:
    """Fits the bodies of one `Fitter` to several views. axes: of the calibration's world."""

    def __init__(self, fitter: Fitter, axes: Axes) -> None:
        self._fitter, self._axes = fitter, axes

    def fit(
        self, ordered: Ordered, rate: float, betas: np.ndarray,
        told: Callable[[int], None] = lambda frames: None,
    ) -> Shared:  # fmt: skip
        """Consecutive frames of one person of shape betas (10,); the first and the last have
        landmarks."""
        views = ordered.views

        def window(frames: slice) -> Part:
            return self._window(views.rows(frames), rate, betas)

        n, seen = len(views), views.some
        swapped = np.asarray(ordered.sides.any(axis=1))
        whole = by_windows(n, window, told)
        motion = Motion(
            whole.poses, betas, whole.trans, whole.sd, whole.observed, whole.cost, seen,
            whole.believed, swapped, turns_of(whole.alone, np.flatnonzero(seen)),
            views.marks[0],
        )  # fmt: skip
        return Shared(motion, views, ordered.sides, ordered.astray, self._axes)

    def shape(self, views: Views) -> np.ndarray:
        """(10,) the median shape of frames that several cameras see; of the given height."""
        several = np.flatnonzero(views.seen.sum(1) >= 2)
        betas = np.zeros(10)
        if len(several):
            rows = several[np.unique(np.linspace(0, len(several) - 1, _SHAPE_FRAMES).astype(int))]
            found = self._fit(views.rows(rows), None, KeypointFitConfig(sigma_2d=SIGMA), False)
            good = np.isfinite(found.cost)
            betas = np.median(found.betas[good], axis=0) if good.any() else betas
        if self._fitter.height is not None:
            betas = self._fitter.tall(betas[None], self._fitter.height)[0]
        return betas

    def _window(self, views: Views, rate: float, betas: np.ndarray) -> Part:
        seen = views.some
        rows = np.flatnonzero(seen)
        if not len(rows):
            return nothing_seen(len(views))
        own = views.rows(rows)
        quick = KeypointFitConfig(sigma_2d=SIGMA, steps=_QUICK)
        begun = self._fit(own, None, quick, False)
        start = Start(begun.poses, np.tile(betas, (len(rows), 1)), begun.trans)
        config = KeypointFitConfig(sigma_2d=SIGMA, fit_betas=False)
        fit = self._fit(own, start, config, True)
        good = np.array([not reason for reason in refusals(fit)])
        problem = Problem.of(
            self._fitter.skel, POINTS, own.pixels, own.weights, self._cameras(own), None,
            self._places(own), self._fitter.prior, config,
        )  # fmt: skip
        return coupled(fit, problem, good, seen, rate, MOST_COST, STIFFNESS_OF_SEVERAL)

    def _fit(
        self, views: Views, start: Start | None, config: KeypointFitConfig, uncertainty: bool
    ) -> KeypointFit:
        return fit_skel_to_keypoints(
            self._fitter.skel, POINTS, views.pixels, views.weights, self._cameras(views),
            places=self._places(views), start=start, prior=self._fitter.prior, config=config,
            uncertainty=uncertainty,
        )  # fmt: skip

    def _cameras(self, views: Views) -> Cameras:
        inner, outer = arrays_of(views.cameras)
        turned = outer.copy()
        turned[:, :, :3] = outer[:, :, :3] @ self._axes.turn.T
        return Cameras(inner, turned)

    def _places(self, views: Views) -> Places:
        """The torso, for the start: where the rays meet, else as the surest view has it."""
        n = len(views)
        joints = views.joints().points.reshape(n, len(LIMBS), 3)
        points = np.zeros((n, len(POINTS), 3))
        points[:, LIMBS] = joints
        hips = _through(_middle(joints, "hip"))
        weights = views.weights[:, :, LIMBS].sum(-1)
        for row in np.flatnonzero(~np.isfinite(points[:, _TORSO]).all((1, 2))):
            view = int(weights[row].argmax())
            world = views.marks[view].world[row] @ views.cameras[view].turn
            points[row] = world + hips[row]
        counts = np.zeros((n, len(POINTS)))
        counts[:, _TORSO] = _START_WEIGHT
        return Places(np.nan_to_num(points) @ self._axes.turn.T, counts, relative=False)


def _through(points: np.ndarray) -> np.ndarray:
    """Points (n, 3) with gaps filled from the nearest frames; zero where there are none."""
    good = np.flatnonzero(np.isfinite(points).all(1))
    if not len(good):
        return np.zeros_like(points)
    frames = np.arange(len(points))
    return np.stack([np.interp(frames, good, points[good, c]) for c in range(3)], 1)


def refusals(fit: KeypointFit) -> list[str]:
    """Why each frame's body is not believed; "" where it is."""
    return [
        f"no body: {status.reason}" if status.is_rejected
        else f"no body fits: cost {cost:.1f} a landmark" if not cost <= MOST_COST
        else ""
        for status, cost in zip(fit.status, fit.cost, strict=True)
    ]  # fmt: skip


def seen_by_camera(skel: SKEL, shared: Shared, view: int) -> Motion:
    """The motion in the frame of one camera, with what that camera saw."""
    camera, motion = shared.views.cameras[view], shared.motion
    turn = camera.turn @ shared.axes.turn.T
    root = root_rotation(skel, torch.as_tensor(motion.poses[:, :3])).numpy()
    poses = motion.poses.copy()
    poses[:, :3] = root_angles(skel, torch.as_tensor(turn @ root)).numpy()
    pelvis = pelvis_of(skel, motion.betas)
    trans = (motion.trans + pelvis) @ turn.T + camera.shift - pelvis
    return replace(
        motion, poses=poses, trans=trans, marks=shared.views.marks[view],
        seen=shared.views.seen[:, view], swapped=shared.sides[:, view],
    )  # fmt: skip


def pelvis_of(skel: SKEL, betas: np.ndarray) -> np.ndarray:
    """(3,) metres: the joint about which the root turns, at rest."""
    with torch.no_grad():
        identity = skel.shape(torch.as_tensor(betas[None], dtype=skel.dtype))
    pelvis: np.ndarray = identity.joints[0, 0].double().numpy()
    return pelvis
