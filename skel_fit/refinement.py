"""Refinement of SKEL labels by the keypoints of their pictures, and when to believe it.

A fit to keypoints always comes nearer to them: that it does says nothing. So a refined label is
taken only where it predicts keypoints that it has not seen: the body is fitted three times more,
each time without a third of the places of the body, and judged there against the stored label
(docs/photo.md#refinement).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from skel_fit.anatomy import PERIODIC
from skel_fit.body_points import BodyPoints
from skel_fit.joint_limits import excess, limits
from skel_fit.keypoint_fit import (
    Cameras,
    KeypointFit,
    KeypointFitConfig,
    Problem,
    Start,
    fit_skel_to_keypoints,
)
from skel_fit.pose_prior import ANGLES, PosePrior, pose_prior
from skel_fit.skel import SKEL

FOLDS = 3
Acceptance = Literal["held-out", "published"]
_CHI2_95 = 59.30
"""95 % of chi-squared with 43 degrees of freedom."""
_LARGEST_BETA = 3.0
_PUBLISHED_BETA = 2.0
_LIMIT_SLACK = 1e-6
OUTCOMES = ("refined", "no better", "worse limits", "unlikely pose", "unlikely shape", "not fitted")
"""What became of a label: `refined`, or why the stored one stays."""


@dataclass(frozen=True)
class RefineConfig:
    """How labels are refined; everything here changes results.

    gain: share by which the error on held-out keypoints must fall. near: rad, standard deviation of
    an angle around the body that the search starts from, beside the pose prior. sigma_2d: of a
    keypoint, as a share of the person's size. seed: of the folds. acceptance: `published` takes
    every fit with betas below 2, which is what HSMR's test amounts to; it makes good labels worse
    (docs/photo.md#refinement).
    """

    gain: float = 0.1
    near: float = 0.35
    sigma_2d: float = 0.02
    steps: int = 25
    seed: int = 0
    acceptance: Acceptance = "held-out"

    def __post_init__(self) -> None:
        if not 0.0 <= self.gain < 1.0:
            raise ValueError(f"gain: expected 0 or more, below 1; found {self.gain}")
        if not (self.near > 0.0 and self.sigma_2d > 0.0 and self.steps > 0):
            raise ValueError("near, sigma_2d and steps: expected more than 0")
        if self.acceptance not in ("held-out", "published"):
            raise ValueError(f"acceptance: expected held-out or published; found {self.acceptance}")


@dataclass(frozen=True)
class Refinement:
    """Of n labels. poses, betas, trans: the refined label where it was taken, else the stored one,
    to the bit."""

    poses: np.ndarray  # (n, 46) rad
    betas: np.ndarray  # (n, 10)
    trans: np.ndarray  # (n, 3) m
    accepted: np.ndarray  # (n,) bool
    outcome: list[str]  # of `OUTCOMES`
    stored_error: np.ndarray  # (n,) held-out error of the stored label, sd^2 of a point
    refined_error: np.ndarray  # (n,) and of bodies that have not seen these points
    refined: KeypointFit  # the fit to all keypoints, taken or not
    prior: str


def refine_labels(
    skel: SKEL,
    points: BodyPoints,
    stored: Start,
    pixels: np.ndarray,
    weights: np.ndarray,
    cameras: Cameras,
    config: RefineConfig | None = None,
    prior: PosePrior | None = None,
    start: Start | None = None,
) -> Refinement:
    """Refine labels by one picture's keypoints each, row by row.

    stored: the labels, camera frame; pixels (n, K, 2) and weights (n, K), 0: not seen; prior: None:
    `pose_prior("wide")`. start: bodies to fit instead, e.g. a network's estimates; the stored ones
    are then what they have to beat. Rows that cannot be fitted keep their label. Folds are the same
    for every row and a matter of `config.seed`, so a row depends on no other. Raises ValueError
    where shapes do not fit.
    """
    config = config or RefineConfig()
    prior = prior or pose_prior("wide")
    options = KeypointFitConfig(sigma_2d=config.sigma_2d, steps=config.steps)
    stored = Start(*(np.asarray(v, np.float64) for v in (stored.poses, stored.betas, stored.trans)))
    weights = np.asarray(weights, np.float64)
    sizes = _sizes(np.asarray(pixels, np.float64), weights)
    begin = stored if start is None else Start(*(np.asarray(v, np.float64) for v in (
        start.poses, start.betas, start.trans)))  # fmt: skip
    near = _nearby(prior, begin.poses, config.near)

    def fitted(seen: np.ndarray, uncertainty: bool) -> KeypointFit:
        return fit_skel_to_keypoints(
            skel, points, pixels, seen, cameras, size=sizes, start=begin, prior=near,
            config=options, uncertainty=uncertainty,
        )  # fmt: skip

    whole = fitted(weights, True)
    # judged by distance alone: a problem of all keypoints, asked for bodies as they are
    judge = Problem.of(skel, points, pixels, weights, cameras, sizes, None, near, options)
    before = _errors(judge, stored)
    after = np.full_like(before, np.nan)
    for left_out in folds(points, config.seed):
        part = fitted(np.where(left_out, 0.0, weights), False)
        errors = _errors(judge, Start(part.poses, part.betas, part.trans))
        after[:, left_out] = errors[:, left_out]
    return _decided(stored, whole, before, after, judge.seen.weights[:, 0], prior, config)


def folds(points: BodyPoints, seed: int) -> list[np.ndarray]:
    """Masks (K,) that leave out a third of the places each; points of one place stay together."""
    places = np.unique(points.groups)
    order = np.random.default_rng(seed).permutation(places)
    return [np.isin(points.groups, order[number::FOLDS]) for number in range(FOLDS)]


def _nearby(prior: PosePrior, poses: np.ndarray, sd: float) -> PosePrior:
    """The pose prior times a Gaussian around each stored pose."""
    precision = prior.precision
    both = precision + np.eye(ANGLES) / sd**2
    covariance = np.linalg.inv(both)
    away = np.where(np.isfinite(poses[:, 3:]), poses[:, 3:], prior.mean) - prior.mean
    # a sum per row: a matrix product would choose its order of summation by the number of rows
    mean = prior.mean + (away[:, None, :] * (covariance / sd**2)).sum(2)
    return PosePrior(prior.name, mean, (covariance + covariance.T) / 2.0)


def _sizes(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) px, longer side of what is seen: the same with points left out."""
    used = (weights > 0.0) & np.isfinite(pixels).all(-1)
    low = np.where(used[..., None], pixels, np.inf).min(1)
    high = np.where(used[..., None], pixels, -np.inf).max(1)
    return np.where(used.any(1), np.maximum((high - low).max(-1), 1.0), 1.0)


def _errors(judge: Problem, bodies: Start) -> np.ndarray:
    """(n, K) robust squared distance of every keypoint seen; NaN where a body cannot be judged."""
    at = np.concatenate([bodies.poses, bodies.trans, bodies.betas], axis=1)
    good = np.isfinite(at).all(1) & np.array([not reason for reason in judge.reasons], bool)
    found = judge.search(np.where(good[:, None], at, 0.0), 0)
    parts = found.parts[:, 0]
    parts[~(good & np.isfinite(found.energies[:, 0]))] = np.nan
    return parts


def _decided(
    stored: Start,
    whole: KeypointFit,
    before: np.ndarray,
    after: np.ndarray,
    weights: np.ndarray,
    prior: PosePrior,
    config: RefineConfig,
) -> Refinement:
    total = np.maximum(weights.sum(1), 1e-12)
    stored_error = (weights * before).sum(1) / total
    refined_error = (weights * after).sum(1) / total
    fits = np.isfinite(whole.poses).all(1)
    worse_limits = _worse(_beyond_limits(whole.poses), _beyond_limits(stored.poses), 0.0)
    distance, known = prior.squared_distance(whole.poses), prior.squared_distance(stored.poses)
    unlikely_pose = _worse(distance, known, _CHI2_95)
    largest, stored_largest = (np.abs(betas).max(1) for betas in (whole.betas, stored.betas))
    unlikely_shape = _worse(largest, stored_largest, _LARGEST_BETA)
    with np.errstate(invalid="ignore"):
        better = refined_error < (1.0 - config.gain) * stored_error
    outcome = np.full(len(fits), "refined", "U14")
    checks: tuple[tuple[str, np.ndarray], ...]
    if config.acceptance == "published":
        checks = (("unlikely shape", ~(largest < _PUBLISHED_BETA)), ("not fitted", ~fits))
    else:
        checks = (
            ("unlikely shape", unlikely_shape),
            ("unlikely pose", unlikely_pose),
            ("worse limits", worse_limits),
            ("no better", ~better),
            ("not fitted", ~fits),
        )
    for name, failed in checks:
        outcome[failed] = name
    accepted = outcome == "refined"
    taken = accepted[:, None]
    return Refinement(
        np.where(taken, whole.poses, stored.poses),
        np.where(taken, whole.betas, stored.betas),
        np.where(taken, whole.trans, stored.trans),
        accepted,
        outcome.tolist(),
        stored_error,
        refined_error,
        whole,
        prior.name,
    )


def _worse(now: np.ndarray, before: np.ndarray, allowed: float) -> np.ndarray:
    """Beyond what is allowed, and further than before."""
    with np.errstate(invalid="ignore"):
        return (now > allowed + _LIMIT_SLACK) & ~(now <= before)


def _beyond_limits(poses: np.ndarray) -> np.ndarray:
    """(n,) rad, sum of what angles are beyond their limits."""
    low, high = limits("default").T
    total: np.ndarray = excess(poses, low, high, PERIODIC)[:, 3:].sum(1)
    return total


__all__ = ["OUTCOMES", "RefineConfig", "Refinement", "folds", "refine_labels"]
