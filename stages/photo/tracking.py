"""The same people from frame to frame: regions that follow their landmarks, detection where nobody
is followed, and identities by the overlap of regions.

A person is detected once and then looked for where the landmarks of the last frame say
(docs/reference/blazepose.md#region); the detector runs again after a loss and every second or so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stages.photo.detector import overlaps
from stages.photo.landmarks import Region
from stages.photo.people import Finder, Sighting, once, same

LEAST_FLAG = 0.5
"""What the landmarks of a followed person must say; below it the person is lost."""
_EVERY, _ALONE, _AGAIN = 30, 5, 60
"""Frames between two detections: while people are followed, and where nobody is; between two
further searches, each of which takes as long as some twenty frames."""
_OVERLAP = 0.3
_REMEMBERED = 60
"""Frames for which a lost person's region waits for the same person."""


@dataclass(frozen=True)
class Track:
    """A person who is followed. score: of the last detection; lost: frames without landmarks."""

    number: int
    region: Region
    score: float
    lost: int = 0


@dataclass(frozen=True)
class State:
    """All that following needs to go on: a video can be stopped and continued at any frame.

    since: frames since the last detection; looked: since the last further search.
    """

    tracks: tuple[Track, ...] = ()
    seen: int = 0
    since: int = _EVERY
    looked: int = _AGAIN

    def packed(self) -> np.ndarray:
        """As rows of numbers, the first: seen, since, looked."""
        rows: list[list[float]] = [[self.seen, self.since, self.looked, 0, 0, 0, 0]]
        rows += [
            [t.number, *t.region.center, t.region.side, t.region.turn, t.score, t.lost]
            for t in self.tracks
        ]
        return np.array(rows, np.float64)

    @staticmethod
    def unpacked(rows: np.ndarray) -> State:
        tracks = tuple(
            Track(
                int(r[0]), Region(r[1:3].copy(), float(r[3]), float(r[4])), float(r[5]), int(r[6])
            )
            for r in rows[1:]
        )
        return State(tracks, *(int(x) for x in rows[0, :3]))


@dataclass(frozen=True)
class Followed:
    """Somebody in a frame. number: who it is, throughout the video; detected: in this frame."""

    number: int
    sighting: Sighting
    detected: bool


class Tracker:
    """Follows people. Each step depends on the frame and the state before it alone."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def step(self, picture: np.ndarray, state: State) -> tuple[list[Followed], State]:
        """People of the next frame (H, W, 3) uint8 RGB, and the state behind it."""
        found, lost = self._follow(picture, state)
        since, looked, seen = state.since + 1, state.looked + 1, state.seen
        missed = any(track.lost == 1 for track in lost)
        if missed or since >= (_EVERY if found else _ALONE):
            again = not found and looked >= _AGAIN
            new = self._new(picture, found, again=again)
            since, looked = 0, 0 if again else looked
            for sighting in new:
                number = _remembered(sighting, lost)
                if number is None:
                    number, seen = seen, seen + 1
                lost = [track for track in lost if track.number != number]
                found.append(Followed(number, sighting, True))
        found.sort(key=lambda f: f.number)
        tracks = [Track(f.number, f.sighting.landmarks.next, f.sighting.score) for f in found]
        tracks += [track for track in lost if track.lost <= _REMEMBERED]
        return found, State(tuple(tracks), seen, since, looked)

    def _follow(self, picture: np.ndarray, state: State) -> tuple[list[Followed], list[Track]]:
        """Who is where the last frame says, and who is not."""
        found: list[Followed] = []
        lost: list[Track] = []
        for track in state.tracks:
            if track.lost or not track.region.usable:
                lost.append(replace(track, lost=track.lost + 1))
                continue
            marks = self._finder.landmarker(picture, track.region)
            twice = any(same(marks, other.sighting.landmarks) for other in found)
            if marks.flag >= LEAST_FLAG and marks.next.usable and not twice:
                found.append(Followed(track.number, Sighting(track.score, marks), False))
            elif not twice:
                lost.append(replace(track, lost=1))
        return found, lost

    def _new(self, picture: np.ndarray, found: list[Followed], *, again: bool) -> list[Sighting]:
        """People who are detected and not followed yet; again: in further searches as well."""
        people: list[Sighting] = []
        for level, detections in enumerate(self._finder.detector.search(picture)):
            seen = [self._finder.look(picture, d, again=level > 0).gated() for d in detections]
            people = once([person for person in [*people, *seen] if not person.refusal])
            if people or not again:
                break
        return [
            person for person in people
            if not any(_near(person, other.sighting.landmarks.region) for other in found)
            and not any(same(person.landmarks, other.sighting.landmarks) for other in found)
        ]  # fmt: skip


def _near(person: Sighting, region: Region) -> bool:
    shared = overlaps(person.landmarks.region.box, region.box[None])[0]
    return bool(shared > _OVERLAP)


def _remembered(person: Sighting, lost: list[Track]) -> int | None:
    """Number of a lost person who was about here."""
    candidates = [track for track in lost if _near(person, track.region)]
    return min(candidates, key=lambda track: track.lost).number if candidates else None
