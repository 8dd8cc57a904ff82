"""The same people from frame to frame: regions that follow their landmarks, detection where nobody
is followed, and identities by the overlap of regions.

A person is detected once and then looked for where the landmarks of the last frame say
(docs/reference/blazepose.md#region); the detector runs again after a loss, in every frame until
somebody is found, and every second or so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stages.photo.detector import overlaps
from stages.photo.landmarks import Landmarks, Region
from stages.photo.people import LEAST_FLAG as PERSON
from stages.photo.people import Finder, Sighting, once, same

LEAST_FLAG = 0.5
"""What the landmarks of a followed person must say; below it further looks are taken."""
_WEAK_FLAG, _STEADY, _WEAK_FRAMES = 0.05, 0.05, 45
"""A flag that is enough where a second look puts the landmarks in the same places (mean distance
over the person's size), for so many frames in a row: on people who bend or lie the flag falls,
while the landmarks stay right; where nobody is, they differ from look to look."""
_LOOKS = 3
_EVERY, _AGAIN_FIRST, _AGAIN = 30, 4, 60
"""Frames between two detections while people are followed (where nobody is: in every frame, which
takes less time than following); between two further searches, the first after a loss and at most.
Each takes as long as some twenty frames: the wait doubles with every one of them, and falls by a
frame with every frame in which somebody is followed."""
_OVERLAP = 0.3
_REMEMBERED, _RETRIED = 60, 15
"""Frames for which a lost person's region waits for the same person, and is itself looked at."""


@dataclass(frozen=True)
class Track:
    """A person who is followed. score: of the last detection; lost: frames without landmarks;
    weak: frames in a row with a flag that was not enough by itself."""

    number: int
    region: Region
    score: float
    lost: int = 0
    weak: int = 0


@dataclass(frozen=True)
class State:
    """All that following needs to go on: a video can be stopped and continued at any frame.

    since: frames since the last detection; looked: since the last further search; wait: until the
    next one.
    """

    tracks: tuple[Track, ...] = ()
    seen: int = 0
    since: int = _EVERY
    looked: int = _AGAIN
    wait: int = _AGAIN

    def packed(self) -> np.ndarray:
        """As rows of numbers, the first: seen, since, looked, wait."""
        rows: list[list[float]] = [
            [self.seen, self.since, self.looked, self.wait, 0, 0, 0, 0],
            *([t.number, *t.region.center, t.region.side, t.region.turn, t.score, t.lost, t.weak]
              for t in self.tracks),
        ]  # fmt: skip
        return np.array(rows, np.float64)

    @staticmethod
    def unpacked(rows: np.ndarray) -> State:
        tracks = tuple(
            Track(
                int(r[0]), Region(r[1:3].copy(), float(r[3]), float(r[4])), float(r[5]),
                int(r[6]), int(r[7]),
            )
            for r in rows[1:]
        )  # fmt: skip
        return State(tracks, *(int(x) for x in rows[0, :4]))


@dataclass(frozen=True)
class Followed:
    """Somebody in a frame. number: who it is, throughout the video; detected: in this frame;
    weak: as the track's."""

    number: int
    sighting: Sighting
    detected: bool
    weak: int = 0


class Tracker:
    """Follows people. Each step depends on the frame and the state before it alone."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def step(self, picture: np.ndarray, state: State) -> tuple[list[Followed], State]:
        """People of the next frame (H, W, 3) uint8 RGB, and the state behind it."""
        found, lost = self._follow(picture, state)
        since, looked, seen = state.since + 1, state.looked + 1, state.seen
        wait = max(state.wait - 1, _AGAIN_FIRST) if found else state.wait
        missed = any(track.lost == 1 for track in lost)
        if missed or not found or since >= _EVERY:
            again = not found and looked >= wait
            new = self._new(picture, found, again=again)
            since = 0
            if again:
                looked, wait = 0, min(2 * wait, _AGAIN)
            known = _remembered(new, lost)
            for sighting, number in zip(new, known, strict=True):
                if number is None:
                    number, seen = seen, seen + 1
                lost = [track for track in lost if track.number != number]
                found.append(Followed(number, sighting, True))
        found.sort(key=lambda f: f.number)
        tracks = [
            Track(f.number, f.sighting.landmarks.next, f.sighting.score, weak=f.weak) for f in found
        ]
        tracks += [track for track in lost if track.lost <= _REMEMBERED]
        return found, State(tuple(tracks), seen, since, looked, wait)

    def _follow(self, picture: np.ndarray, state: State) -> tuple[list[Followed], list[Track]]:
        """Who is where the last frame says, and who is not."""
        found: list[Followed] = []
        lost: list[Track] = []
        for track in sorted(state.tracks, key=lambda track: track.lost):
            gone = replace(track, lost=track.lost + 1, weak=0)
            if track.lost > _RETRIED or not track.region.usable:
                lost.append(gone)
                continue
            marks, weak = self._followed(picture, track)
            twice = marks is not None and any(
                same(marks, other.sighting.landmarks) for other in found
            )
            if marks is None or (twice and track.lost):
                lost.append(gone)
            elif not twice:
                found.append(Followed(track.number, Sighting(track.score, marks), False, weak))
        return found, lost

    def _followed(self, picture: np.ndarray, track: Track) -> tuple[Landmarks | None, int]:
        """The landmarks of a track's person, None: lost; and `Track.weak`."""
        if track.lost:  # as of somebody who is detected
            again = self._finder.landmarker(picture, track.region, passes=_LOOKS)
            return (again if again.flag >= PERSON and again.next.usable else None), 0
        looks = [self._finder.landmarker(picture, track.region)]
        while looks[-1].flag < LEAST_FLAG and looks[-1].next.usable and len(looks) < _LOOKS:
            looks.append(self._finder.landmarker(picture, looks[-1].next))
        marks = max((look for look in looks if look.next.usable), key=lambda look: look.flag,
                    default=None)  # fmt: skip
        if marks is None or marks.flag >= LEAST_FLAG:
            return marks, 0
        steady = all(_away(look, marks) < _STEADY for look in looks)
        weak = track.weak + 1
        followed = steady and marks.flag >= _WEAK_FLAG and weak <= _WEAK_FRAMES
        return (marks if followed else None), weak

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


def _away(one: Landmarks, other: Landmarks) -> float:
    """Mean distance of two looks' landmarks, over the person's size."""
    away: float = np.linalg.norm(one.pixels - other.pixels, axis=1).mean() / other.size
    return away


def _near(person: Sighting, region: Region) -> bool:
    shared = overlaps(person.landmarks.region.box, region.box[None])[0]
    return bool(shared > _OVERLAP)


def _remembered(people: list[Sighting], lost: list[Track]) -> list[int | None]:
    """Numbers of lost people who were about here: those who overlap most first, each once."""
    numbers: list[int | None] = [None] * len(people)
    pairs = [
        (-float(shared), track.lost, k, track.number)
        for k, person in enumerate(people)
        for track in lost
        if (shared := overlaps(person.landmarks.region.box, track.region.box[None])[0]) > _OVERLAP
    ]
    taken: set[int] = set()
    for _, _, k, number in sorted(pairs):
        if numbers[k] is None and number not in taken:
            numbers[k] = number
            taken.add(number)
    return numbers
