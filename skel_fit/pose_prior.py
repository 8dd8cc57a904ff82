"""How people hold themselves: a Gaussian over the 43 angles that are not the root's.

The one that comes along is made by `tools/pose_prior.py` from the committed motion, converted to
SKEL, people of the train split alone. A fit says which one it used (`PosePrior.name`).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from skel_fit.anatomy import MIRROR_PERMUTATION, MIRROR_SIGNS, NUM_POSES
from skel_fit.atomic import whole_file
from skel_fit.joint_limits import limits

ANGLES = NUM_POSES - 3
PRIOR_FILE = Path(__file__).with_name("pose_prior.npz")
WIDE = 2.0
"""Times the standard deviations of the motion: for people who do something else."""
_OWN_SHARE, _FLOOR = 0.1, 0.05
"""Of an angle's own variance, without those of the others; rad added to each."""
PriorName = Literal["motion", "wide", "limits"]


@dataclass(frozen=True)
class PosePrior:
    """mean (43,) rad and covariance (43, 43) rad^2 of `POSE_NAMES[3:]`; name says which it is.

    mean (n, 43) gives every row its own.
    """

    name: str
    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        for name, value, shape in (
            ("mean", self.mean.shape[-1:], (ANGLES,)),
            ("covariance", self.covariance.shape, (ANGLES, ANGLES)),
        ):
            if value != shape:
                raise ValueError(f"PosePrior.{name}: expected {shape}, found {value}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("PosePrior: numbers that are not finite")
        if np.linalg.eigvalsh(self.covariance)[0] <= 0.0:
            raise ValueError("PosePrior.covariance: not positive")

    @property
    def precision(self) -> np.ndarray:
        """(43, 43) rad^-2."""
        inverse: np.ndarray = np.linalg.inv(self.covariance)
        return (inverse + inverse.T) / 2.0

    @property
    def sd(self) -> np.ndarray:
        """(43,) rad."""
        return np.sqrt(np.diagonal(self.covariance))

    def widened(self, factor: float, name: str) -> PosePrior:
        """The same with all standard deviations times `factor`."""
        return PosePrior(name, self.mean, self.covariance * factor**2)

    def squared_distance(self, poses: np.ndarray) -> np.ndarray:
        """(n,) Mahalanobis of poses (n, 46): chi-squared with 43 degrees of freedom."""
        away = np.asarray(poses, np.float64)[:, 3:] - self.mean
        # an element at a time: a matrix product's order of sums would depend on n
        return ((away[:, :, None] * self.precision).sum(1) * away).sum(1)

    @staticmethod
    def of_poses(poses: np.ndarray, name: str) -> PosePrior:
        """The Gaussian of poses (n, 46) rad and their mirror images.

        A tenth of the covariance is diagonal, and every angle has 0.05 rad more: what few people
        did not do is not impossible.
        """
        poses = np.asarray(poses, np.float64)
        both = np.concatenate([poses, poses[:, MIRROR_PERMUTATION] * MIRROR_SIGNS])[:, 3:]
        covariance = np.cov(both.T, bias=True)
        own = np.diag(np.diagonal(covariance))
        covariance = (1.0 - _OWN_SHARE) * covariance + _OWN_SHARE * own + _FLOOR**2 * np.eye(ANGLES)
        return PosePrior(name, both.mean(0), covariance)


def pose_prior(name: PriorName) -> PosePrior:
    """A prior by its name.

    `motion`: of the committed motion. `wide`: the same with twice its standard deviations, for
    people who do something else. `limits`: every angle on its own, around the motion's mean, its
    standard deviation a quarter of its range in `default` limits. Raises ValueError.
    """
    if name == "motion":
        return _of_motion()
    if name == "wide":
        return _of_motion().widened(WIDE, _of_motion().name.replace("motion", "wide"))
    if name == "limits":
        low, high = limits("default")[3:].T
        return PosePrior("limits", _of_motion().mean, np.diag(((high - low) / 4.0) ** 2))
    raise ValueError(f"pose prior: expected motion, wide or limits; found {name!r}")


@cache
def _of_motion() -> PosePrior:
    with np.load(PRIOR_FILE, allow_pickle=False) as file:
        mean, covariance = file["mean"], file["covariance"]
    digest = hashlib.sha256(mean.tobytes() + covariance.tobytes()).hexdigest()
    return PosePrior(f"motion-{digest[:8]}", mean, covariance)


def write_pose_prior(path: Path, prior: PosePrior) -> None:
    """Write mean and covariance, atomically, the same bytes for the same numbers."""
    packed = io.BytesIO()
    # rounded: libraries that differ in the last bit write the same file
    mean, covariance = prior.mean.round(5), prior.covariance.round(7)
    np.savez(packed, allow_pickle=False, mean=mean, covariance=covariance)
    with whole_file(path) as stream:
        stream.write(packed.getvalue())
