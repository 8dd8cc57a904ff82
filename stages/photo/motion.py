"""Landmarks of one person through time → one smooth motion: left and right put in order, one shape,
frames fitted one by one, then coupled by how sure each is. Method: docs/photo.md#video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from skel_fit.anatomy import NUM_POSES
from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.keypoint_fit import Cameras, KeypointFit, Problem
from skel_fit.solver.branches import continuous_root
from stages.photo.coupling import COUNT, minimised, smoothed
from stages.photo.fitting import MOST_COST, POINTS, Fitter, Lens, Marks, fit_config, refusals
from stages.photo.landmarks import MIRROR

STIFFNESS, STIFFNESS_OF_SEVERAL = 3000.0, 1000.0
"""Squared standard deviations for a second difference of 1 rad or m, at 30 frames a second: of one
camera, whose frames err in depth; of several."""
_STRAINED = 2.0
"""Times the cost up to which a frame is believed alone that it may cost as a part of the motion."""
_WINDOW, _OVERLAP = 256, 48
"""Frames smoothed together, and how many more on either side are looked at."""
_SHAPE_FRAMES = 120
"""Frames that the shape is taken from, at most."""
_DEPTH_WEIGHT, _FARTHEST, _BIAS = 0.5, 0.3, 1e-3
"""Of depth beside the picture; the farthest step that counts, over a person's size; the cost of a
frame that is exchanged: networks are mostly right, and what was mistaken where left and right could
not be told apart would stay so for the rest."""
_BODY = [k for k, name in enumerate(BLAZEPOSE_NAMES) if POINTS.weights[k] == 1.0 and k < 29]


@dataclass(frozen=True)
class Motion:
    """One person over consecutive frames; metres, radians, camera frame; smoothed.

    seen: the frame has landmarks; believed: and a body that fits them, the others lie between
    such frames; swapped: left and right were exchanged in the frame, and put right; turns: rad, how
    far the root turned since the frame before, before smoothing; marks: in order.
    """

    poses: np.ndarray  # (n, 46)
    betas: np.ndarray  # (10,)
    trans: np.ndarray  # (n, 3)
    sd: np.ndarray  # (n, 46) of the frame alone
    observed: np.ndarray  # (n, 46)
    cost: np.ndarray  # (n,)
    seen: np.ndarray  # (n,) bool
    believed: np.ndarray  # (n,) bool
    swapped: np.ndarray  # (n,) bool
    turns: np.ndarray  # (n,)
    marks: Marks


def exchanged(marks: Marks, rows: np.ndarray) -> Marks:
    """Left and right of the rows (n,) bool exchanged: the body then faces the other way, so depth
    changes its sign."""
    pixels, visibility, world = marks.pixels.copy(), marks.visibility.copy(), marks.world.copy()
    pixels[rows] = pixels[rows][:, MIRROR]
    visibility[rows] = visibility[rows][:, MIRROR]
    world[rows] = world[rows][:, MIRROR] * (1.0, 1.0, -1.0)
    return replace(marks, pixels=pixels, visibility=visibility, world=world)


def swaps(marks: Marks) -> np.ndarray:
    """(n,) bool: frames in which left and right of the whole body are exchanged.

    The order that moves the body least from frame to frame, in the picture and in depth; what most
    frames say is taken for right. A video that is wrong throughout cannot be told so.
    """
    n = len(marks)
    if n < 2:
        return np.zeros(n, bool)
    other = exchanged(marks, np.ones(n, bool))
    places = np.stack([_places(marks), _places(other)])  # (2, n, K, 3)
    cost, came = np.zeros(2), np.zeros((n, 2), int)
    for t in range(1, n):
        steps = np.linalg.norm(places[:, None, t] - places[None, :, t - 1], axis=-1)
        total = cost[None] + np.minimum(steps, _FARTHEST).mean(-1)
        came[t] = total.argmin(1)
        cost = total.min(1) + np.array([0.0, _BIAS])
    state = np.zeros(n, int)
    state[-1] = int(cost.argmin())
    for t in range(n - 1, 0, -1):
        state[t - 1] = came[t, state[t]]
    found: np.ndarray = state.astype(bool)
    return ~found if found.mean() > 0.5 else found


def _places(marks: Marks) -> np.ndarray:
    """(n, K, 3) landmarks of trunk and limbs, over the person's size."""
    pixels, depth = marks.pixels[:, _BODY], marks.world[:, _BODY, 2:]
    size = np.median(np.ptp(marks.pixels, axis=1).max(-1))
    return np.concatenate([pixels / size, _DEPTH_WEIGHT * depth / 1.7], -1)


def fit_motion(
    fitter: Fitter, marks: Marks, seen: np.ndarray, lens: Lens, rate: float, betas: np.ndarray,
    told: Callable[[int], None] = lambda frames: None,
) -> Motion:  # fmt: skip
    """Fit consecutive frames of one person of shape betas (10,). seen (n,) bool: frames with
    landmarks, the first and the last among them; told: of frames done."""
    n, rows = len(marks), np.flatnonzero(seen)
    swapped = np.zeros(n, bool)
    swapped[rows] = swaps(marks.rows(rows))
    marks = exchanged(marks, swapped)

    def window(frames: slice) -> Part:
        return _window(fitter, marks.rows(frames), seen[frames], lens, rate, betas)

    whole = by_windows(n, window, told)
    return Motion(
        whole.poses, betas, whole.trans, whole.sd, whole.observed, whole.cost, seen,
        whole.believed, swapped, turns_of(whole.alone, rows), marks,
    )  # fmt: skip


def by_windows(
    n: int, window: Callable[[slice], Part], told: Callable[[int], None] = lambda frames: None
) -> Part:
    """Frames fitted a window at a time, so that memory does not grow with the video."""
    inner: list[Part] = []
    for done in range(0, n, _WINDOW):
        end = min(done + _WINDOW, n)
        first = max(done - _OVERLAP, 0)
        inner.append(window(slice(first, min(end + _OVERLAP, n))).rows(done - first, end - first))
        told(end - done)
    return Part.joined(inner)


def turns_of(alone: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n,) rad by which the root of poses (n, 46) turned since the row of `rows` before."""
    turns = np.zeros(len(alone))
    steps = np.diff(alone[rows, :3], axis=0)
    turns[rows[1:]] = np.abs((steps + np.pi) % (2 * np.pi) - np.pi).max(1)
    return turns


def shape_of(fitter: Fitter, marks: Marks, lens: Lens) -> np.ndarray:
    """(10,) the median shape of frames spread over a motion, of the given height if there is
    one."""
    rows = np.unique(np.linspace(0, len(marks) - 1, _SHAPE_FRAMES).astype(int))
    free = Fitter(fitter.skel, fitter.prior).fit(marks.rows(rows), lens, uncertainty=False)
    good = np.isfinite(free.cost)
    betas = np.median(free.betas[good], axis=0) if good.any() else np.zeros(10)
    if fitter.height is not None:
        betas = fitter.tall(betas[None], fitter.height)[0]
    return betas


@dataclass(frozen=True)
class Part:
    """Consecutive frames, smoothed; alone: poses as each frame has them; as `Motion` otherwise."""

    poses: np.ndarray
    trans: np.ndarray
    alone: np.ndarray
    sd: np.ndarray
    cost: np.ndarray
    observed: np.ndarray
    believed: np.ndarray

    def rows(self, first: int, end: int) -> Part:
        return Part(*(getattr(self, each.name)[first:end] for each in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Part]) -> Part:
        columns = [each.name for each in fields(Part)]
        return Part(*(np.concatenate([getattr(p, name) for p in parts]) for name in columns))


def _window(
    fitter: Fitter, marks: Marks, seen: np.ndarray, lens: Lens, rate: float, betas: np.ndarray
) -> Part:
    rows = np.flatnonzero(seen)
    if not len(rows):
        return nothing_seen(len(marks))
    own = marks.rows(rows)
    fit = fitter.with_betas(own, lens, np.tile(betas, (len(rows), 1)))
    good = np.array([not reason for reason in refusals(fit, own, [MOST_COST] * len(rows))])
    problem = Problem.of(
        fitter.skel, POINTS, own.pixels, own.weights, Cameras(lens.cam_int), None,
        own.places(lens.cam_int), fitter.prior, fit_config(fit_betas=False),
    )  # fmt: skip
    return coupled(fit, problem, good, seen, rate, MOST_COST)


def nothing_seen(n: int) -> Part:
    empty, nobody = np.zeros((n, NUM_POSES)), np.full((n, NUM_POSES), np.nan)
    none = empty.astype(bool)
    return Part(empty, np.zeros((n, 3)), empty, nobody, nobody[:, 0], none, none[:, 0])


def coupled(
    fit: KeypointFit, problem: Problem, good: np.ndarray, seen: np.ndarray, rate: float,
    most: float, stiffness: float = STIFFNESS,
) -> Part:  # fmt: skip
    """Frames fitted as one motion. fit: of the frames that are seen (n,) bool, each alone, which
    `problem` says; good: of these, which are believed; most: what those may cost;
    stiffness: at 30 frames a second.

    Starts from the fits as their precisions smooth them. Frames that the motion cannot follow are
    left out, those that it explains are taken in, and all are fitted once more.
    """
    n, rows = len(seen), np.flatnonzero(seen)
    stiffness *= (rate / 30.0) ** 4
    alone = np.nan_to_num(np.concatenate([fit.poses, fit.trans, fit.betas], 1))
    alone[:, :3] = continuous_root(alone[:, :3])
    at = np.zeros((n, alone.shape[1]))
    at[:, COUNT:] = alone[0, COUNT:]
    at[:, :COUNT] = _smoothed(problem, alone, rows, n, good, stiffness)
    for _ in range(2):
        at, cost = minimised(problem, at, rows, n, good, stiffness)
        good = cost <= _STRAINED * most
    nobody = np.full((n, NUM_POSES), np.nan)
    own, sd, costs = nobody.copy(), nobody.copy(), nobody[:, 0].copy()
    observed, believed = np.zeros((n, NUM_POSES), bool), np.zeros(n, bool)
    own[rows], sd[rows], costs[rows], observed[rows] = fit.poses, fit.sd, fit.cost, fit.observed
    believed[rows] = good
    return Part(at[:, :NUM_POSES], at[:, NUM_POSES:COUNT], own, sd, costs, observed, believed)


def _smoothed(
    problem: Problem, alone: np.ndarray, rows: np.ndarray, n: int, good: np.ndarray,
    stiffness: float,
) -> np.ndarray:  # fmt: skip
    """(n, COUNT) unknowns of all frames by those of the good rows, each as sure as it is."""
    hessians = problem.search(alone, 0, derivatives=True).hessians[:, :COUNT, :COUNT].copy()
    hessians[~good | ~np.isfinite(hessians).all((1, 2))] = 0.0
    matrices, targets = np.zeros((n, COUNT, COUNT)), np.zeros((n, COUNT))
    matrices[rows], targets[rows] = hessians, alone[:, :COUNT]
    return smoothed(targets, matrices, stiffness)
