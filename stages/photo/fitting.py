"""From landmarks of people to SKEL bodies: what counts how much, height, and what is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from skel_fit.anatomy import JOINTS
from skel_fit.body_points import BodyPoints, blazepose_points
from skel_fit.joint_limits import limits
from skel_fit.keypoint_fit import (
    ASSUMED_FOCAL,
    Cameras,
    KeypointFit,
    KeypointFitConfig,
    Places,
    Start,
    fit_skel_to_keypoints,
)
from skel_fit.pose_prior import PosePrior, pose_prior
from skel_fit.rotations import minimal_rotation
from skel_fit.skel import SKEL
from stages.photo.landmarks import Landmarks

POINTS: BodyPoints = blazepose_points()
_TORSO = list(POINTS.torso)
_LEAST_WEIGHT = 0.05
_START_WEIGHT = 1e-3
"""Of the torso's 3D points that the picture does not show: enough to start from."""
MOST_COST, MOST_COST_AGAIN = 1.5, 0.8
"""Robust squared standard deviations a point above which a body is not believed. Renders that are
right cost 0.2, 1 at most; what is none, or is turned round, 0.8 to 4. Again: of somebody who is
only seen in a further search; these are many looks with many false alarms."""
CLEAR_COST = 0.4
"""Up to which nobody looks for a better way to see the same person."""
_QUICK = 6
"""Steps that find where a body is, before its shape is fixed."""
LEAST_SEEN = 12
"""Landmarks with a weight that must lie in the picture."""
_LEAST_SD, _EXPECTED_COST = 1.15, 0.2
"""Standard deviations of a fit to a network's landmarks are this many times what the fit says, and
grow with the square root of its cost from there on: landmarks err together, and where a body fits
them badly they err more. Measured on rendered pictures (docs/benchmarks.md#photographs)."""
_ROOM = np.minimum(np.ptp(limits("default"), axis=1), 2.0 * np.pi) / np.sqrt(12.0)
"""rad; the standard deviation of an angle that may be anything within its limits."""
SPAN = 0.1
"""m, each axis: how far upper arms and forearms of the network are from the true ones. Less than
what the picture and the prior leave open (docs/photo.md#spans)."""
HEIGHTS = (0.4, 2.6)
"""Metres that a person may be tall."""


@dataclass(frozen=True)
class Marks:
    """Landmarks of n people or frames: pixels (n, 33, 2), visibility (n, 33) 0 to 1, world
    (n, 33, 3) metres from the middle of the hips; size: height and width of the picture, px."""

    pixels: np.ndarray
    visibility: np.ndarray
    world: np.ndarray
    size: tuple[int, int]

    @staticmethod
    def of(people: Sequence[Landmarks], size: tuple[int, int]) -> Marks:
        return Marks(
            np.array([p.pixels for p in people]).reshape(-1, 33, 2),
            np.array([p.visibility for p in people]).reshape(-1, 33),
            np.array([p.world for p in people]).reshape(-1, 33, 3),
            size,
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def rows(self, index: np.ndarray | slice) -> Marks:
        return Marks(self.pixels[index], self.visibility[index], self.world[index], self.size)

    @property
    def inside(self) -> np.ndarray:
        """(n, 33) bool: in the picture."""
        height, width = self.size
        return np.asarray(((self.pixels >= 0) & (self.pixels < (width, height))).all(-1))

    @property
    def weights(self) -> np.ndarray:
        """(n, 33) how much each counts: its visibility; nothing outside the picture, where the
        network has only guessed."""
        return np.where(self.inside, self.visibility.clip(_LEAST_WEIGHT, 1.0), 0.0)

    def places(self, cam_int: np.ndarray) -> Places:
        """The world landmarks as soft 3D points in the frame of a camera (3, 3); the torso's in any
        case, for the start."""
        weights = self.weights
        weights[:, _TORSO] = np.maximum(weights[:, _TORSO], _START_WEIGHT)
        return Places(self.world @ self.turns(cam_int).swapaxes(-1, -2), weights)

    def turns(self, cam_int: np.ndarray) -> np.ndarray:
        """(n, 3, 3) the camera's axis -> the ray to the middle of each one's hips, to and fro about
        the picture's vertical. The network sees a cut-out, so its depth is along that ray, wherever
        the person stands; up and down it is better as it is (docs/benchmarks.md#train-actors)."""
        hips = self.pixels[:, _TORSO[:2]].mean(1).clip(0, self.size[::-1])
        rays = np.column_stack([hips, np.ones(len(hips))]) @ np.linalg.inv(cam_int).T
        rays[:, 1] = 0.0
        axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(rays), 3)
        return minimal_rotation(axis, torch.as_tensor(rays)).numpy()

    def seen(self) -> np.ndarray:
        """(n,) landmarks that count and lie in the picture."""
        counted: np.ndarray = (self.inside & (POINTS.weights > 0)).sum(1)
        return counted


@dataclass(frozen=True)
class Lens:
    """A pinhole camera. cam_int: (3, 3) px; source: where the focal length is from, in words."""

    cam_int: np.ndarray
    source: str

    @staticmethod
    def of(size: tuple[int, int], focal: float | None) -> Lens:
        """Of a picture of height and width; focal: px, None: assumed."""
        cameras = Cameras.assumed(size[1], size[0]).intrinsics
        if focal is None:
            return Lens(cameras, f"assumed: {ASSUMED_FOCAL:g} of the picture's diagonal")
        cam_int = cameras.copy()
        cam_int[0, 0] = cam_int[1, 1] = focal
        return Lens(cam_int, "given")

    @property
    def focal(self) -> float:
        return float(self.cam_int[0, 0])


class Fitter:
    """Fits one SKEL model to landmarks. height: metres that everybody is tall, None: as it fits."""

    def __init__(
        self, skel: SKEL, prior: PosePrior | None = None, height: float | None = None
    ) -> None:
        self.skel = skel
        self.prior = prior or pose_prior("wide")
        self.height = height
        self._stature = _stature_of(skel)

    def stature(self, betas: np.ndarray) -> np.ndarray:
        """(n,) metres from sole to crown of shapes (n, 10) at rest."""
        level, slope = self._stature
        return level + betas @ slope

    def fit(
        self, marks: Marks, lens: Lens, start: Start | None = None, *, uncertainty: bool = True
    ) -> KeypointFit:
        """Fit every row; start: where the search begins, else the world landmarks' torso."""
        found = self._fit(marks, lens, start, uncertainty=uncertainty)
        if self.height is None:
            return found
        return self.with_shape(marks, lens, found, self.tall(found.betas, self.height))

    def tall(self, betas: np.ndarray, height: float) -> np.ndarray:
        """The nearest shapes (n, 10) of a height."""
        level, slope = self._stature
        missing = height - (level + betas @ slope)
        return betas + missing[:, None] * slope / (slope @ slope)

    def with_shape(
        self, marks: Marks, lens: Lens, found: KeypointFit, betas: np.ndarray
    ) -> KeypointFit:
        """Fits again from `found` with given shapes (n or 1, 10)."""
        betas = np.broadcast_to(betas, found.betas.shape)
        nearer = (self.stature(betas) / self.stature(found.betas))[:, None]
        start = Start(found.poses, betas.copy(), found.trans * nearer)
        return self._fit(marks, lens, start, fit_betas=False)

    def with_betas(self, marks: Marks, lens: Lens, betas: np.ndarray) -> KeypointFit:
        """Fits every row with a given shape (n, 10): a few steps with a free one for the start."""
        quick = fit_config(steps=_QUICK)
        begun = self._fit(marks, lens, None, uncertainty=False, config=quick)
        return self.with_shape(marks, lens, begun, betas)

    def _fit(
        self, marks: Marks, lens: Lens, start: Start | None, *, fit_betas: bool = True,
        uncertainty: bool = True, config: KeypointFitConfig | None = None,
    ) -> KeypointFit:  # fmt: skip
        found = fit_skel_to_keypoints(
            self.skel, POINTS, marks.pixels, marks.weights, Cameras(lens.cam_int),
            places=marks.places(lens.cam_int), start=start, prior=self.prior,
            config=config or fit_config(fit_betas=fit_betas), uncertainty=uncertainty,
        )  # fmt: skip
        return replace(found, sd=honest_sd(found.sd, found.cost))


def fit_config(**options: Any) -> KeypointFitConfig:
    """How landmarks of one camera are fitted."""
    return KeypointFitConfig(sigma_span=SPAN, **options)


def honest_sd(sd: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Standard deviations (n, 46) of fits of a cost (n,), as errors on pictures are."""
    times = _LEAST_SD * np.sqrt(np.maximum(cost / _EXPECTED_COST, 1.0))
    wide: np.ndarray = np.minimum(sd * times[:, None], _ROOM)
    return wide


def refusals(fit: KeypointFit, marks: Marks, costs: Sequence[float]) -> list[str]:
    """Why each body is not believed, with the numbers; "" where it is. costs: what each may
    cost."""
    reasons = []
    for status, cost, seen, most in zip(fit.status, fit.cost, marks.seen(), costs, strict=True):
        if status.is_rejected:
            reasons.append(f"no body: {status.reason}")
        elif seen < LEAST_SEEN:
            reasons.append(
                f"too little of a person: {seen} landmarks in the picture, expected {LEAST_SEEN} "
                "or more"
            )
        elif not cost <= most:
            reasons.append(f"no body fits: cost {cost:.2f} a landmark, expected {most:g} or less")
        else:
            reasons.append("")
    return reasons


def shown_bones(marks: Marks) -> np.ndarray:
    """(n, 24) bool: a landmark in the picture rides on the bone or on one that hangs on it; the
    other bones follow the prior alone."""
    return (marks.weights > 0) @ _carried()


@cache
def _carried() -> np.ndarray:
    """(33, 24) bool: the bone of each landmark that counts, and those that it hangs on."""
    carried = np.zeros((len(POINTS), len(JOINTS)), bool)
    for point in range(len(POINTS)):
        if POINTS.weights[point] == 0:
            continue
        bone = int(POINTS.bone[point])
        while bone >= 0:
            carried[point, bone] = True
            bone = JOINTS[bone].parent
    return carried


def _stature_of(skel: SKEL) -> tuple[float, np.ndarray]:
    template = skel.template.double().cpu().numpy()
    slopes = skel.shapedirs.double().cpu().numpy()
    top, sole = template[:, 1].argmax(), template[:, 1].argmin()
    return float(template[top, 1] - template[sole, 1]), slopes[top, 1] - slopes[sole, 1]
