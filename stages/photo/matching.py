"""Who is who: people followed in several synchronous videos, brought together by where their
landmarks' rays meet; and what to say of cameras whose rays never do.

Compared are places on the body's midline, which an exchange of left and right leaves where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.triangulation import projected, triangulate
from stages.photo.camera_files import CalibratedCamera
from stages.photo.views import arrays_of

_PARTS = ("shoulder", "hip", "knee", "ankle")
_MIDDLES = [[k for k, name in enumerate(BLAZEPOSE_NAMES) if name.endswith(part)] for part in _PARTS]
MOST_AWAY = 0.03
"""Share of a person's size by which two views of the same person miss each other, at most."""
_LEAST_EXPLAINED = 0.6
_SAME_PLACE, _PASSES = 0.08, 2
_FRAMES, _LEAST = 40, 5
_MOST_TOGETHER = 0.1
"""Share of frames in which two tracks of one view may be there at once and yet be one person."""


@dataclass(frozen=True)
class Track:
    """Somebody who is followed in one view. frames (m,), pixels (m, 33, 2) undistorted."""

    view: int
    number: int
    frames: np.ndarray
    pixels: np.ndarray

    @property
    def size(self) -> float:
        return max(float(np.median(np.ptp(self.pixels, axis=1).max(-1))), 1.0)

    def middles(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), 5, 2) places on the midline."""
        own = self.pixels[rows]
        return np.stack([own[:, 0], *(own[:, pair].mean(1) for pair in _MIDDLES)], 1)


def missed(one: Track, other: Track, cameras: Sequence[CalibratedCamera]) -> float:
    """How far two tracks of different views miss each other, as a share of their sizes: the median
    over frames and places; infinite where they share too few frames or meet behind a camera."""
    shared = np.intersect1d(one.frames, other.frames)
    if len(shared) < _LEAST:
        return float("inf")
    shared = shared[np.unique(np.linspace(0, len(shared) - 1, _FRAMES).astype(int))]
    pixels = np.stack(
        [track.middles(np.searchsorted(track.frames, shared)) for track in (one, other)], 2
    ).reshape(-1, 2, 2)
    inner, outer = arrays_of([cameras[one.view], cameras[other.view]])
    sizes = np.array([one.size, other.size])
    sigmas = np.broadcast_to(0.05 * sizes, (len(pixels), 2))
    met = triangulate(pixels, np.ones((len(pixels), 2)), sigmas, inner, outer)
    away = (met.distances / sizes).mean(1)
    if np.isfinite(away).mean() < 0.5:
        return float("inf")
    return float(np.nanmedian(away))


def same_people(tracks: Sequence[Track], cameras: Sequence[CalibratedCamera]) -> list[list[Track]]:
    """Tracks that are one person each, those in many frames first. Nobody is two people in a view
    at a time; two groups are joined while they miss each other by less than `MOST_AWAY` on
    average, the nearest first."""
    away = misses(tracks, cameras)
    groups = [[k] for k in range(len(tracks))]
    while True:
        best, pair = MOST_AWAY, None
        for a, b in combinations(range(len(groups)), 2):
            if _together(tracks, groups[a] + groups[b]):
                continue
            own = [away[i, j] for i in groups[a] for j in groups[b] if np.isfinite(away[i, j])]
            if own and float(np.mean(own)) < best:
                best, pair = float(np.mean(own)), (a, b)
        if pair is None:
            break
        groups[pair[0]] += groups.pop(pair[1])
    found = [[tracks[k] for k in sorted(group)] for group in groups]
    return sorted(found, key=lambda group: -sum(len(track.frames) for track in group))


def frame_by_frame(
    people: Sequence[Sequence[Track]], cameras: Sequence[CalibratedCamera], frames: int
) -> list[np.ndarray]:
    """(frames, V) for each person: the number of the track that is the person in a view and frame,
    -1: none. A track that goes over from one person to another is taken apart.

    Where two other views see a person, they say where in the next view; of the tracks there the
    nearest is taken, if it is nearer than `_SAME_PLACE`. Elsewhere tracks stay with their person.
    """
    tracks = [track for person in people for track in person]
    tables = [_Table.of(track, frames) for track in tracks]
    owned: list[np.ndarray] = []
    first = 0
    for person in people:
        own = np.full((frames, len(cameras)), -1)
        for k in range(first, first + len(person)):
            own[tracks[k].frames, tracks[k].view] = k
        owned.append(own)
        first += len(person)
    for _ in range(_PASSES):
        owned = _placed_again(owned, tracks, tables, cameras)
    return owned


@dataclass(frozen=True)
class _Table:
    """A track over all frames: places (n, 5, 2), NaN where it is not there."""

    places: np.ndarray
    there: np.ndarray

    @staticmethod
    def of(track: Track, frames: int) -> _Table:
        places = np.full((frames, len(_MIDDLES) + 1, 2), np.nan)
        places[track.frames] = track.middles(np.arange(len(track.frames)))
        there = np.zeros(frames, bool)
        there[track.frames] = True
        return _Table(places, there)


def _placed_again(
    owned: Sequence[np.ndarray], tracks: Sequence[Track], tables: Sequence[_Table],
    cameras: Sequence[CalibratedCamera],
) -> list[np.ndarray]:  # fmt: skip
    found = [own.copy() for own in owned]
    for view in range(len(cameras)):
        here = [k for k, track in enumerate(tracks) if track.view == view]
        expected = [_expected(own, view, tracks, tables, cameras) for own in owned]
        away = np.full((len(owned), len(here), len(owned[0])), np.inf)
        for p, places in enumerate(expected):
            for row, k in enumerate(here):
                far = np.linalg.norm(tables[k].places - places, axis=-1) / tracks[k].size
                good = np.isfinite(far).all(1)
                away[p, row, good] = np.median(far[good], axis=1)
        known = [np.isfinite(places).all((1, 2)) for places in expected]
        for t in range(len(owned[0])):
            if any(k[t] for k in known):
                _share_out(found, view, t, here, tables, away[:, :, t], [k[t] for k in known])
    return found


def _share_out(
    found: Sequence[np.ndarray], view: int, t: int, here: Sequence[int], tables: Sequence[_Table],
    away: np.ndarray, known: Sequence[np.bool_],
) -> None:  # fmt: skip
    """Who is which track of a view in a frame, the nearest first; who is nowhere near a track stays
    with the own one, unless it is another's."""
    free = {row for row, k in enumerate(here) if tables[k].there[t]}
    unplaced = {p for p in range(len(found)) if known[p]}
    taken: set[int] = set()
    for flat in np.argsort(away, axis=None, kind="stable"):
        p, row = divmod(int(flat), away.shape[1])
        if not away[p, row] < _SAME_PLACE:
            break
        if p in unplaced and row in free:
            found[p][t, view] = here[row]
            taken.add(here[row])
            unplaced.discard(p)
            free.discard(row)
    for p in range(len(found)):
        if (p in unplaced or not known[p]) and found[p][t, view] in taken:
            found[p][t, view] = -1


def _expected(
    own: np.ndarray, view: int, tracks: Sequence[Track], tables: Sequence[_Table],
    cameras: Sequence[CalibratedCamera],
) -> np.ndarray:  # fmt: skip
    """(n, 5, 2) px: where the other views say that a person is in a view; NaN where fewer than two
    see the person."""
    n, views = own.shape
    places = np.full((n, views, len(_MIDDLES) + 1, 2), np.nan)
    sizes = np.ones((n, views))
    for v in range(views):
        for k in (k for k in np.unique(own[:, v]) if k >= 0):
            rows = own[:, v] == k
            places[rows, v] = tables[k].places[rows]
            sizes[rows, v] = tracks[k].size
    places[:, view] = np.nan
    flat = places.swapaxes(1, 2).reshape(-1, views, 2)
    weights = np.isfinite(flat).all(-1).astype(float)
    inner, outer = arrays_of(cameras)
    sigmas = 0.03 * np.repeat(sizes, len(_MIDDLES) + 1, axis=0)
    met = triangulate(flat, weights, sigmas, inner, outer)
    seen, depth = projected(
        np.nan_to_num(met.points), inner[view : view + 1], outer[view : view + 1]
    )
    good = np.isfinite(met.points).all(1) & (depth[:, 0] > 0.1)
    return np.where(good[:, None], seen[:, 0], np.nan).reshape(n, -1, 2)


def misses(tracks: Sequence[Track], cameras: Sequence[CalibratedCamera]) -> np.ndarray:
    """(T, T) `missed` of all pairs of different views; infinite in the others."""
    away = np.full((len(tracks), len(tracks)), np.inf)
    for a, b in combinations(range(len(tracks)), 2):
        if tracks[a].view != tracks[b].view:
            away[a, b] = away[b, a] = missed(tracks[a], tracks[b], cameras)
    return away


def _together(tracks: Sequence[Track], group: Sequence[int]) -> bool:
    """Whether two tracks of one view are there at the same time."""
    for a, b in combinations(group, 2):
        if tracks[a].view == tracks[b].view:
            shared = len(np.intersect1d(tracks[a].frames, tracks[b].frames))
            least = min(len(tracks[a].frames), len(tracks[b].frames))
            if shared > _MOST_TOGETHER * least:
                return True
    return False


def disagreement(
    tracks: Sequence[Track], people: Sequence[Sequence[Track]], cameras: Sequence[CalibratedCamera]
) -> str:
    """Why `people` cannot be right, "" where they can: as many people as the fullest view shows
    would have to be most of what all views show.

    Names the reading of the file that would fit, if one does.
    """
    share = _explained(tracks, people)
    if share >= _LEAST_EXPLAINED:
        return ""
    said = (
        "the cameras do not agree with the videos: where two views' rays should meet they miss by "
        f"more than {100 * MOST_AWAY:.0f} % of a person's size, and only {100 * share:.0f} % of "
        "what is seen would be the same people"
    )
    for name, changed in _readings(cameras).items():
        if _explained(tracks, same_people(tracks, changed)) >= _LEAST_EXPLAINED:
            return f"{said}; they would agree with {name}"
    return f"{said}; is it the calibration of these videos, in this order, of the same moments?"


def _explained(tracks: Sequence[Track], people: Sequence[Sequence[Track]]) -> float:
    """Share of the frames of all tracks that the largest people have, as many as the fullest view
    shows at once; 1 where no two views show anybody at the same time."""
    overlap = any(
        a.view != b.view and len(np.intersect1d(a.frames, b.frames)) >= _LEAST
        for a, b in combinations(tracks, 2)
    )
    if not overlap:
        return 1.0
    most = 1
    for view in {track.view for track in tracks}:
        frames = np.concatenate([track.frames for track in tracks if track.view == view])
        counts = np.bincount(frames)
        most = max(most, int(np.percentile(counts[counts > 0], 90)))
    own = sum(len(track.frames) for person in people[:most] for track in person)
    return own / sum(len(track.frames) for track in tracks)


def _readings(
    cameras: Sequence[CalibratedCamera],
) -> Mapping[str, list[CalibratedCamera]]:
    """Other conventions that a file may have been written in."""
    axes = np.diag([1.0, -1.0, -1.0])
    inverted = [replace(c, turn=c.turn.T, shift=c.centre) for c in cameras]
    centred = [replace(c, shift=-c.turn @ c.shift) for c in cameras]
    flipped = [replace(c, turn=axes @ c.turn, shift=axes @ c.shift) for c in cameras]
    columns = [axes @ c.turn.T @ axes for c in cameras]
    turned = [
        replace(c, turn=turn, shift=-turn @ c.centre)
        for c, turn in zip(cameras, columns, strict=True)
    ]
    return {
        "rotation and translation inverted (camera to world, expected world to camera)": inverted,
        "translations taken as the cameras' places (expected t = -R C)": centred,
        "y and z of the cameras turned round (expected y down, z forward)": flipped,
        "rotation matrices by columns (expected by rows)": turned,
        "the videos in the opposite order": list(reversed(cameras)),
    }
