"""Fit SKEL to points in pictures: the public entry. Method and what not to promise: docs/photo.md.

One view or several, known or assumed focal length, 3D points beside them or not. Rows are solved
one by one, so a row's result depends on no other, nor on block size or number of threads.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from skel_fit.anatomy import NUM_PARAMETERS, NUM_POSES
from skel_fit.body_points import SKIN, BodyPoints
from skel_fit.crew import each, rows_over_threads
from skel_fit.joint_limits import LimitsName, limits
from skel_fit.pose_prior import PosePrior, pose_prior
from skel_fit.skel import SKEL
from skel_fit.skeleton import Skeleton, numpy_of, skeleton_tables
from skel_fit.solver import numba_keypoints as kernels
from skel_fit.status import Status

NO_POINTS = "no_points"
"""Reason of rows with fewer than `FEWEST` points that are seen, or that cannot be placed."""
NON_FINITE = "non_finite_points"
BEHIND = "behind_camera"
FEWEST = 4
NOT_OBSERVED_ABOVE = 0.9
"""Posterior over prior standard deviation above which an angle is not observed."""
ASSUMED_FOCAL = 0.65
"""Of the diagonal: between the main cameras of phones (about 0.6) and a normal lens (1). Bodies are
better with it than with 0.8 or 1, as with 0.5 (docs/benchmarks.md#photographs)."""
_BLOCK = 16
_NEAREST = 0.8
_SETTLE_STEPS = 8


class KeypointFitConfig(BaseModel):
    """Options of a fit to points. Everything here changes results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: LimitsName = "default"
    sigma_2d: float = Field(default=0.02, gt=0.0)
    """Standard deviation of a point, as a share of the person's size in the picture."""
    sigma_3d: float = Field(default=0.25, gt=0.0)
    """Standard deviation of a 3D point, m."""
    sigma_span: float | None = Field(default=None, gt=0.0)
    """Standard deviation of the way from a 3D point to the next one of a limb (`BodyPoints.spans`),
    m; None: ways do not count beside the points."""
    cauchy: float = Field(default=3.0, gt=0.0)
    """Standard deviations from which a point counts less and less."""
    shape_sd: float = Field(default=1.0, gt=0.0)
    """Standard deviation of a beta."""
    fit_betas: bool = True
    """False: the betas stay those of the start."""
    facings: int = Field(default=4, ge=1, le=64)
    """Directions that are tried where nothing says where the torso faces."""
    steps: int = Field(default=40, ge=1, le=1000)
    tolerance: float = Field(default=2e-3, gt=0.0)
    """A row is settled when no unknown moves by more (rad, m), or the objective by as good as
    nothing."""


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of n rows and V views; a leading dimension may be missing.

    intrinsics: (n, V, 3, 3) px, last row 0 0 1; undistort pixels first. extrinsics: (n, V, 3, 4)
    world -> camera, metres; None: the one camera is the world. Camera frame: x right, y down,
    z forward.
    """

    intrinsics: np.ndarray
    extrinsics: np.ndarray | None = None

    @staticmethod
    def assumed(width: float, height: float) -> Cameras:
        """A camera of unknown lens: its focal length is `ASSUMED_FOCAL` of the picture's diagonal
        (75 degrees across it), its centre the picture's."""
        focal = ASSUMED_FOCAL * math.hypot(width, height)
        return Cameras(
            np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
        )


@dataclass(frozen=True)
class Places:
    """3D points (n, K, 3), metres, along the world's axes, with weights (n, K), 0: none.

    relative: their origin is the middle of the hips, wherever that is; else they are in the world.
    """

    points: np.ndarray
    weights: np.ndarray
    relative: bool = True


@dataclass(frozen=True)
class Start:
    """Where the search starts: poses (n, 46) rad, betas (n, 10), trans (n, 3) m."""

    poses: np.ndarray
    betas: np.ndarray
    trans: np.ndarray


@dataclass(frozen=True)
class KeypointFit:
    """Fits of n rows to points; metres, radians, pixels; NaN in rejected rows."""

    poses: np.ndarray  # (n, 46)
    betas: np.ndarray  # (n, 10)
    trans: np.ndarray  # (n, 3) world (or camera) frame
    points: np.ndarray  # (n, K, 3) the points of the body
    sd: np.ndarray  # (n, 46) rad, standard deviation of every angle
    observed: np.ndarray  # (n, 46) bool: the pictures say more about it than the prior
    active_limits: np.ndarray  # (n, 46) bool
    distances: np.ndarray  # (n, V, K) px to the points that are seen; NaN where not
    cost: np.ndarray  # (n,) the robust objective of a unit of weight seen: near 1 or 2 if all fits
    energy: np.ndarray  # (n,) the whole objective, priors in it
    steps: np.ndarray  # (n,) of Levenberg-Marquardt
    facing: np.ndarray  # (n,) which direction won, -1: the torso's was known
    status: list[Status]
    prior: str  # name of the pose prior


def fit_skel_to_keypoints(
    skel: SKEL,
    points: BodyPoints,
    pixels: np.ndarray,
    weights: np.ndarray,
    cameras: Cameras,
    *,
    size: np.ndarray | None = None,
    places: Places | None = None,
    start: Start | None = None,
    prior: PosePrior | None = None,
    config: KeypointFitConfig | None = None,
    uncertainty: bool = True,
) -> KeypointFit:
    """Fit SKEL to points in pictures, row by row.

    pixels: (n, K, 2) or (n, V, K, 2), V views of the same moment; weights: (n, K) or (n, V, K) how
    much each counts beside `points.weights`, 0: not seen; its pixels may then be anything. size:
    (n,) or (n, V) px of the person in the picture, which `config.sigma_2d` is a share of; None: the
    longer side of the points that are seen. places: 3D points, for the start and as a soft target.
    prior: of the pose; None: `pose_prior("wide")`. Without a start the torso is placed from the 3D
    points, else from several views, else `config.facings` directions are tried.

    Rows are rejected (`status`) where fewer than four points are seen, numbers are not finite, or
    points lie behind a camera. Rows run on `torch.get_num_threads()` threads; the bits of a row
    depend on nothing but the row. Raises ValueError where shapes do not fit.
    """
    config = config or KeypointFitConfig()
    prior = prior or pose_prior("wide")
    problem = Problem.of(skel, points, pixels, weights, cameras, size, places, prior, config)
    return problem.fit(start, uncertainty=uncertainty)


class Search(NamedTuple):
    """What a search over n rows found."""

    unknowns: np.ndarray  # (n, 59) angles, translation, betas
    energies: np.ndarray  # (n, 2) of data and priors; infinite behind a camera
    points: np.ndarray  # (n, K, 3)
    parts: np.ndarray  # (n, V, K) robust squared distance of every point seen
    steps: np.ndarray  # (n,)
    settled: np.ndarray  # (n,)
    variances: np.ndarray  # (n, 59) where asked for, else NaN
    gradients: np.ndarray  # (n, 59) half the gradient, where asked for, else no rows
    hessians: np.ndarray  # (n, 59, 59) half the Gauss-Newton matrix, likewise


# ---- the problem ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Rows as the kernels see them."""

    tables: tuple[Skeleton[np.ndarray], kernels.PointTables]
    torso: np.ndarray
    seen: kernels.Seen
    beliefs: kernels.Beliefs
    reasons: list[str]  # why a row is rejected, "" where it is not
    prior: PosePrior
    config: KeypointFitConfig

    @staticmethod
    def of(
        skel: SKEL,
        points: BodyPoints,
        pixels: np.ndarray,
        weights: np.ndarray,
        cameras: Cameras,
        size: np.ndarray | None,
        places: Places | None,
        prior: PosePrior,
        config: KeypointFitConfig,
    ) -> Problem:
        """Checked. Raises ValueError where shapes do not fit."""
        count = len(points)
        pixels = _numbers("pixels", pixels)
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        if pixels.ndim != 4 or pixels.shape[2:] != (count, 2):
            raise ValueError(
                f"pixels: expected (n, {count}, 2) or (n, V, {count}, 2), found {pixels.shape}"
            )
        n, views = pixels.shape[:2]
        weights = _numbers("weights", weights)
        if weights.ndim == 2:
            weights = weights[:, None]
        if weights.shape != (n, views, count):
            raise ValueError(f"weights: expected {(n, views, count)}, found {weights.shape}")
        if (weights < 0).any():
            raise ValueError("weights: expected 0 and more")
        lenses, turns, shifts = _cameras(cameras, n, views)
        spots, spot_weights, relative = _places(places, n, count)
        finite = np.ones(n, bool)
        for values in (weights, lenses, turns, shifts, spot_weights):
            finite &= _finite_rows(values)
        used = np.where(finite[:, None, None], weights, 0.0) * points.weights > 0.0
        finite &= _finite_rows(np.where(used[..., None], pixels, 0.0))
        used_spots = np.where(finite[:, None], spot_weights, 0.0) * points.weights > 0.0
        finite &= _finite_rows(np.where(used_spots[..., None], spots, 0.0))
        sizes = _sizes(size, pixels, used)
        finite &= np.isfinite(sizes).all(1)
        enough = (used.any(1) | used_spots).sum(1) >= FEWEST
        enough &= (used.sum(2) >= 2).any(1) | (used_spots.sum(1) >= FEWEST)
        reasons = [
            NON_FINITE if not good else "" if many else NO_POINTS
            for good, many in zip(finite.tolist(), enough.tolist(), strict=True)
        ]
        good = finite & enough
        spans, span_weights = _spans(points, spots, np.where(used_spots, spot_weights, 0.0), config)
        seen = kernels.Seen(
            _own(np.where(good[:, None, None, None] & used[..., None], pixels, 0.0)),
            _own(np.where(good[:, None, None], weights * points.weights, 0.0)),
            _own(np.where(good[:, None], sizes * config.sigma_2d, 1.0)),
            _own(np.where(good[:, None, None], lenses, 1.0)),
            _own(np.where(good[:, None, None, None], turns, np.eye(3))),
            _own(np.where(good[:, None, None], shifts, 0.0)),
            _own(np.where(good[:, None, None] & used_spots[..., None], spots, 0.0)),
            _own(np.where(good[:, None], spot_weights * points.weights, 0.0)),
            config.sigma_3d,
            relative,
            _own(np.where(good[:, None, None], spans, 0.0)),
            _own(np.where(good[:, None], span_weights, 0.0)),
            config.sigma_span or 1.0,
        )
        return Problem(
            tables_of(skel, points),
            np.array(points.torso, np.int64),
            seen,
            _beliefs(prior, config, n),
            reasons,
            prior,
            config,
        )

    def __len__(self) -> int:
        return len(self.reasons)

    def rows(self, index: np.ndarray | slice) -> Problem:
        """Some rows of it."""
        seen, beliefs = self.seen, self.beliefs
        listed = np.arange(len(self))[index]
        parts: Any = (part[index] if isinstance(part, np.ndarray) else part for part in seen)
        return replace(
            self,
            seen=kernels.Seen(*parts),
            beliefs=beliefs._replace(
                pose_mean=beliefs.pose_mean[index], shape_mean=beliefs.shape_mean[index]
            ),
            reasons=[self.reasons[row] for row in listed],
        )

    def fit(self, start: Start | None, *, uncertainty: bool) -> KeypointFit:
        """`fit_skel_to_keypoints` of these rows."""
        n = len(self)
        with rows_over_threads():
            if start is None:
                at, facing, known = self._starts()
            else:
                at, facing = _unknowns(start, n), np.full(n, -1)
                known = np.where(np.isfinite(at).all(1), 2, 0)
            reasons = [
                reason or (NO_POINTS if not placed else "")
                for reason, placed in zip(self.reasons, known.tolist(), strict=True)
            ]
            good = np.array([not reason for reason in reasons], bool)
            at[~good] = 0.0
            found = self.search(at, self.config.steps, variances=uncertainty)
        behind = good & ~np.isfinite(found.energies[:, 0])
        for row in np.flatnonzero(behind):
            reasons[row] = BEHIND
        return self._result(found, reasons, facing)

    def search(
        self, at: np.ndarray, steps: int, *, variances: bool = False, derivatives: bool = False
    ) -> Search:
        """Fit from unknowns (n, 59), which stay as they are; without steps, judge them."""
        n, views, count = self.seen.weights.shape
        size, kept = kernels.UNKNOWNS, n if derivatives else 0
        out = Search(
            np.array(at, np.float64),
            np.full((n, 2), np.inf),
            np.full((n, count, 3), np.nan),
            np.zeros((n, views, count)),
            np.zeros(n, np.int64),
            np.zeros(n, np.bool_),
            np.full((n, size), np.nan),
            np.full((kept, size), np.nan),
            np.full((kept, size, size), np.nan),
        )

        def work(part: slice) -> None:
            rows = self.rows(part)
            kernels.fit(
                *rows.tables, rows.seen, rows.beliefs, self.config.cauchy, steps,
                self.config.tolerance, variances, *(column[part] for column in out),
            )  # fmt: skip

        _over_blocks(work, n)
        return out

    def costs(self, found: Search) -> np.ndarray:
        """(n,) the robust objective of a unit of weight seen, as `KeypointFit.cost`."""
        weights = self.seen.weights
        with np.errstate(invalid="ignore", divide="ignore"):
            cost: np.ndarray = (weights * found.parts).sum((1, 2)) / weights.sum((1, 2))
        return cost

    def _starts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unknowns (n, 59), which facing won (-1: none was needed), and what is known of the
        torso."""
        facings = self.config.facings
        at, known = self._start_facing(0.0)
        doubtful = np.flatnonzero(known == 1)
        winner = np.where(known == 1, 0, -1)
        if doubtful.size and facings > 1:
            part = self.rows(doubtful)
            best = part.search(at[doubtful], _SETTLE_STEPS)
            found, energy = best.unknowns, best.energies.sum(1)
            for number in range(1, facings):
                tried, _ = part._start_facing(2.0 * math.pi * number / facings)
                other = part.search(tried, _SETTLE_STEPS)
                better = other.energies.sum(1) < energy
                found = np.where(better[:, None], other.unknowns, found)
                energy = np.where(better, other.energies.sum(1), energy)
                winner[doubtful[better]] = number
            at[doubtful] = found
        return at, winner, known

    def _start_facing(self, facing: float) -> tuple[np.ndarray, np.ndarray]:
        n = len(self)
        at, known = np.zeros((n, kernels.UNKNOWNS)), np.zeros(n, np.int64)
        mean = np.zeros((n, kernels.UNKNOWNS))
        mean[:, 3:NUM_POSES] = self.beliefs.pose_mean
        mean = np.clip(mean, self.beliefs.lower, self.beliefs.upper)
        mean[:, NUM_PARAMETERS:] = self.beliefs.shape_mean

        def work(part: slice) -> None:
            rows = self.rows(part)
            kernels.start(
                *rows.tables, rows.seen, self.torso, mean[part], facing, _NEAREST, at[part],
                known[part],
            )  # fmt: skip

        _over_blocks(work, n)
        return at, known

    def _moves_something(self) -> np.ndarray:
        """(n, 46) bool: a point that is seen moves with the angle. A prior with correlations makes
        an angle surer that nothing shows."""
        table = self.tables[1]
        moved = np.zeros((len(table.origin), NUM_POSES), bool)
        for k in range(len(moved)):
            moved[k, table.chain[table.chain_first[k] : table.chain_first[k + 1]]] = True
        seen = np.logical_or((self.seen.weights > 0.0).any(1), self.seen.place_weights > 0.0)
        shown: np.ndarray = np.any(seen[:, :, None] & moved, axis=1)
        return shown

    def _result(self, found: Search, reasons: list[str], facing: np.ndarray) -> KeypointFit:
        at = found.unknowns
        good = np.array([not reason for reason in reasons], bool)
        bad = ~good
        poses, trans = at[:, :NUM_POSES].copy(), at[:, NUM_POSES:NUM_PARAMETERS].copy()
        betas, points = at[:, NUM_PARAMETERS:].copy(), found.points
        lower, upper = self.beliefs.lower[:NUM_POSES], self.beliefs.upper[:NUM_POSES]
        active = ((poses <= lower) | (poses >= upper)) & good[:, None]
        sd = np.sqrt(found.variances[:, :NUM_POSES])
        believed = np.concatenate([np.full(3, np.inf), self.prior.sd])
        observed = (sd < NOT_OBSERVED_ABOVE * believed) & good[:, None] & self._moves_something()
        with np.errstate(invalid="ignore"):
            # an angle is nowhere less sure than anywhere inside its limits
            sd = np.minimum(sd, np.minimum(upper - lower, 2.0 * math.pi) / math.sqrt(12.0))
        parts, weights = found.parts, self.seen.weights
        squared = self.config.cauchy**2
        distances = np.sqrt(squared * np.expm1(parts / squared)) * self.seen.sigmas[..., None]
        distances[weights <= 0.0] = np.nan
        cost = self.costs(found)
        energies = found.energies.sum(1)
        for values in (poses, trans, betas, points, sd, distances, cost, energies):
            values[bad] = np.nan
        status = [
            Status.rejected(reason) if reason else Status.CONVERGED if settled else Status.MAX_ITER
            for reason, settled in zip(reasons, found.settled.tolist(), strict=True)
        ]
        return KeypointFit(
            poses, betas, trans, points, sd, observed, active, distances, cost, energies,
            np.where(good, found.steps, 0), facing, status, self.prior.name,
        )  # fmt: skip


def _over_blocks(work: Callable[[slice], None], n: int) -> None:
    parts = [slice(first, min(first + _BLOCK, n)) for first in range(0, n, _BLOCK)]
    for _ in each(work, parts, torch.device("cpu")):
        pass


def _unknowns(start: Start, n: int) -> np.ndarray:
    parts = []
    for name, width in (("poses", NUM_POSES), ("trans", 3), ("betas", kernels.BETAS)):
        values = _numbers(f"start.{name}", getattr(start, name))
        if values.shape != (n, width):
            raise ValueError(f"start.{name}: expected {(n, width)}, found {values.shape}")
        parts.append(values)
    return np.concatenate(parts, axis=1)


# ---- inputs --------------------------------------------------------------------------------------


def _numbers(name: str, values: object) -> np.ndarray:
    """float64, contiguous. Raises ValueError for anything but numbers."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected numbers, found {array.dtype}")
    return np.ascontiguousarray(array, np.float64)


def _own(values: np.ndarray) -> np.ndarray:
    """A writable copy in C order: another order, or a read-only view, which numpy gives of a single
    row, is another type to the compiler, and a minute of it."""
    return np.array(values, np.float64, order="C")


def _finite_rows(values: np.ndarray) -> np.ndarray:
    """(n,) bool."""
    found: np.ndarray = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return found


def _cameras(cameras: Cameras, n: int, views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inner = _spread("cameras.intrinsics", cameras.intrinsics, (3, 3), n, views)
    if cameras.extrinsics is None:
        if views > 1:
            raise ValueError(f"cameras.extrinsics: {views} views need one each")
        outer = np.broadcast_to(np.eye(3, 4), (n, 1, 3, 4))
    else:
        outer = _spread("cameras.extrinsics", cameras.extrinsics, (3, 4), n, views)
    with np.errstate(invalid="ignore"):
        if (inner[..., 0, 0] <= 0).any() or (inner[..., 1, 1] <= 0).any():
            raise ValueError("cameras.intrinsics: expected focal lengths above 0, px")
        if (np.abs(inner[..., 2, :] - [0, 0, 1]) > 1e-9).any() or (inner[..., 1, 0] != 0).any():
            raise ValueError("cameras.intrinsics: expected rows fx s cx, 0 fy cy, 0 0 1")
        turns = outer[..., :3]
        off = np.abs(np.swapaxes(turns, -1, -2) @ turns - np.eye(3))
        if (off > 1e-3).any() or (np.linalg.det(turns) < 0).any():
            raise ValueError("cameras.extrinsics: expected rotations in [..., :3]")
    lenses = np.stack(
        [inner[..., 0, 0], inner[..., 1, 1], inner[..., 0, 2], inner[..., 1, 2], inner[..., 0, 1]],
        axis=-1,
    )
    return lenses, np.ascontiguousarray(turns), np.ascontiguousarray(outer[..., 3])


def _spread(name: str, values: object, shape: tuple[int, ...], n: int, views: int) -> np.ndarray:
    array = _numbers(name, values)
    if array.shape[-2:] != shape or array.ndim > 4:
        raise ValueError(f"{name}: expected (n, V, {shape[0]}, {shape[1]}), found {array.shape}")
    if array.ndim == 3:  # (n, ...) of one view, or (V, ...) of all rows
        array = array[:, None] if views == 1 and len(array) == n else array[None]
    try:
        return np.broadcast_to(array, (n, views, *shape))
    except ValueError:
        raise ValueError(f"{name}: expected {(n, views, *shape)}, found {array.shape}") from None


def _places(places: Places | None, n: int, count: int) -> tuple[np.ndarray, np.ndarray, bool]:
    if places is None:
        return np.zeros((n, count, 3)), np.zeros((n, count)), True
    points = _numbers("places.points", places.points)
    weights = _numbers("places.weights", places.weights)
    for name, found, expected in (
        ("points", points.shape, (n, count, 3)),
        ("weights", weights.shape, (n, count)),
    ):
        if found != expected:
            raise ValueError(f"places.{name}: expected {expected}, found {found}")
    if (weights < 0).any():
        raise ValueError("places.weights: expected 0 and more")
    return points, weights, places.relative


def _spans(
    points: BodyPoints, spots: np.ndarray, weights: np.ndarray, config: KeypointFitConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Ways (n, S, 3) from point to point of 3D points (n, K, 3), and what they count (n, S): as
    much as the lesser of both ends; nothing where one is not there."""
    first, last = points.spans.T
    least = np.minimum(weights[:, first], weights[:, last]) * (config.sigma_span is not None)
    ways = np.where(least[..., None] > 0.0, spots[:, last] - spots[:, first], 0.0)
    return ways, least


_ENOUGH = 8


def _sizes(size: np.ndarray | None, pixels: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(n, V) px; 1 where a view sees nothing. A few points say nothing of a person's size: a view
    of fewer than `_ENOUGH` has that of the largest view, where that one has enough."""
    n, views = pixels.shape[:2]
    if size is not None:
        sizes = _numbers("size", size)
        sizes = sizes[:, None] if sizes.ndim == 1 else sizes
        if sizes.shape not in ((n, 1), (n, views)):
            raise ValueError(f"size: expected {(n,)} or {(n, views)}, found {sizes.shape}")
        sizes = np.broadcast_to(sizes, (n, views)).copy()
        sizes[~(sizes > 0)] = np.nan
    else:
        low = np.where(used[..., None], pixels, np.inf).min(2)
        high = np.where(used[..., None], pixels, -np.inf).max(2)
        with np.errstate(invalid="ignore"):
            sizes = np.maximum((high - low).max(-1), 1.0)
        enough = used.sum(2) >= _ENOUGH
        largest = np.where(enough, sizes, 0.0).max(1, keepdims=True)
        sizes = np.where(~enough & (largest > 0), largest, sizes)
    sizes[~used.any(2)] = 1.0
    return sizes


def _beliefs(prior: PosePrior, config: KeypointFitConfig, n: int) -> kernels.Beliefs:
    unknowns = kernels.UNKNOWNS
    lower, upper = np.full(unknowns, -np.inf), np.full(unknowns, np.inf)
    lower[:NUM_POSES], upper[:NUM_POSES] = limits(config.limits).T
    free = np.ones(unknowns, np.bool_)
    free[NUM_PARAMETERS:] = config.fit_betas
    mean = np.asarray(prior.mean, np.float64)
    if mean.ndim == 2 and len(mean) != n:
        raise ValueError(f"prior.mean: {len(mean)} rows, but pixels has {n}")
    return kernels.Beliefs(
        lower,
        upper,
        free,
        _own(np.broadcast_to(mean, (n, mean.shape[-1]))),
        _own(prior.precision),
        np.zeros((n, kernels.BETAS)),
        1.0 / config.shape_sd**2,
    )


# ---- tables --------------------------------------------------------------------------------------

_TABLES: weakref.WeakKeyDictionary[
    SKEL, dict[bytes, tuple[Skeleton[np.ndarray], kernels.PointTables]]
] = weakref.WeakKeyDictionary()


def tables_of(skel: SKEL, points: BodyPoints) -> tuple[Skeleton[np.ndarray], kernels.PointTables]:
    """Constant tables of a body and its points, kept with the model."""
    made = _TABLES.setdefault(skel, {})
    key = b"".join(
        part.tobytes()
        for part in (
            points.skin,
            points.joints,
            points.shifts,
            points.bone,
            points.origin,
            points.spans,
        )
    )
    key = str(hash(key)).encode()
    if key not in made:
        skeleton = skeleton_tables(skel)
        made[key] = skeleton, _point_tables(skel, skeleton, points)
    return made[key]


def _point_tables(
    skel: SKEL, skeleton: Skeleton[np.ndarray], points: BodyPoints
) -> kernels.PointTables:
    skin, template = numpy_of(skel.skin_weights), numpy_of(skel.template)
    shapedirs, posedirs = numpy_of(skel.shapedirs), numpy_of(skel.posedirs)
    joints, joint_slopes = skeleton.joint_template, skeleton.joint_directions
    first, pairs = [0], []
    correctives: list[np.ndarray] = []
    for k in range(len(points)):
        for bone, share, rest, by_shape, by_feature in _pairs_of(
            points, k, skin, template, shapedirs, posedirs, joints, joint_slopes
        ):
            row = -1
            if by_feature is not None:
                row = len(correctives)
                correctives.append(by_feature)
            pairs.append((bone, share, rest, by_shape, row))
        first.append(len(pairs))
    chains = [_chain(skeleton, {pair[0] for pair in pairs[a:b]})
              for a, b in pairwise(first)]  # fmt: skip
    directions = np.einsum(
        "jk,kcb->jcb",
        skeleton.bone_sum.astype(float),
        np.stack(
            [
                joint_slopes[j] - (joint_slopes[p] if p >= 0 else 0.0)
                for j, p in enumerate(skeleton.parents)
            ]
        ),
    )
    return kernels.PointTables(
        np.array(first, np.int64),
        np.array([pair[0] for pair in pairs], np.int64),
        np.array([pair[1] for pair in pairs]),
        np.array([pair[2] for pair in pairs]).reshape(-1, 3),
        np.array([pair[3] for pair in pairs]).reshape(-1, 3, kernels.BETAS),
        np.array([pair[4] for pair in pairs], np.int64),
        np.array(correctives).reshape(-1, 3, 207),
        np.cumsum([0, *map(len, chains)]).astype(np.int64),
        np.array([d for chain in chains for d in chain], np.int64),
        points.origin,
        directions,
        points.spans,
    )


def _pairs_of(
    points: BodyPoints,
    k: int,
    skin: np.ndarray,
    template: np.ndarray,
    shapedirs: np.ndarray,
    posedirs: np.ndarray,
    joints: np.ndarray,
    joint_slopes: np.ndarray,
) -> Iterator[tuple[int, float, np.ndarray, np.ndarray, np.ndarray | None]]:
    """(bone, share, rest place and its derivatives seen from the bone's joint) of a point."""
    used = np.flatnonzero(points.skin[k])
    share = points.skin[k, used]
    if points.bone[k] != SKIN:
        bone = int(points.bone[k])
        rest = share @ template[used] + points.joints[k] @ joints - joints[bone]
        rest = rest + points.shifts[k]
        by_shape = np.einsum("v,vcb->cb", share, shapedirs[used])
        by_shape += np.einsum("j,jcb->cb", points.joints[k], joint_slopes) - joint_slopes[bone]
        yield bone, 1.0, rest, by_shape, None
        return
    for bone in np.flatnonzero(skin[used].any(0)).tolist():
        weights = share * skin[used, bone]
        total = float(weights.sum())
        yield (
            bone,
            total,
            weights @ template[used] - total * joints[bone],
            np.einsum("v,vcb->cb", weights, shapedirs[used]) - total * joint_slopes[bone],
            np.einsum("v,vcf->cf", weights, posedirs[used]),
        )


def _chain(skeleton: Skeleton[np.ndarray], bones: set[int]) -> list[int]:
    """Angles that move any of the bones."""
    moving: set[int] = set()
    for bone in bones:
        while bone >= 0:
            moving.add(bone)
            bone = int(skeleton.parents[bone])
    return [d for d in range(NUM_POSES) if int(skeleton.joint_of_parameter[d]) in moving]


__all__ = [
    "Cameras",
    "KeypointFit",
    "KeypointFitConfig",
    "Places",
    "Start",
    "fit_skel_to_keypoints",
]
