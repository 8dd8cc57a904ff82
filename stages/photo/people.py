"""Everybody in a picture: detected, with landmarks, each once; and what is taken for a person."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.photo.detector import LEAST_SCORE, Detection, Detector, overlaps
from stages.photo.landmarks import Landmarker, Landmarks, Region
from stages.regressor.data.boxes import Box

LEAST_FLAG, LEAST_FLAG_AGAIN, LEAST_FLAG_UNFITTED = 0.8, 0.95, 0.98
"""What the landmark network must say of a person: in the first search; in further ones, which are
many looks with many false alarms; there, in small tiles or where no fit judges next."""
_SAME = 0.15
"""Mean distance of two people's landmarks, over their size, below which they are one."""
_SHARED = 0.3
"""Overlap of the boxes of somebody's landmarks with those of a second search from which it found
the same person."""
_PASSES = 3
BOX = 1.2
"""Side of a network's box over the extent of the landmarks, as in its training labels."""
LEAST_SIDE = 16
"""Pixels; smaller pictures show nobody."""


@dataclass(frozen=True)
class Sighting:
    """What may be a person in a picture. score: of the detection; tile: as the detection's; cost:
    of the body that fits, infinite: unknown; clear: as the verdict's; again: seen in a further
    search, because nobody was clear; refusal: why it is not taken for a person, with the numbers,
    "": it is."""

    score: float
    landmarks: Landmarks
    tile: int = 0
    cost: float = math.inf
    clear: bool = False
    again: bool = False
    refusal: str = ""

    def gated(self, *, fitted: bool = False) -> Sighting:
        """The same with what score and flag say against it; fitted: a fit judges next."""
        flag, least = self.landmarks.flag, LEAST_FLAG
        if self.again or self.tile:
            least = LEAST_FLAG_AGAIN if fitted and self.tile <= 1 else LEAST_FLAG_UNFITTED
        refusal = ""
        if self.score < LEAST_SCORE:
            refusal = f"detector {self.score:.2f}, expected {LEAST_SCORE:g} or more"
        elif not flag >= least:
            refusal = f"landmarks {flag:.3f}, expected {least:g} or more"
        return replace(self, refusal=refusal and f"not a person: {refusal}")


class Verdict(NamedTuple):
    """What a fit says of a sighting. refusal: as the sighting's; clear: no better way to see the
    same person needs to be looked for."""

    refusal: str
    cost: float
    clear: bool


Judge = Callable[[Sequence[Sighting]], Sequence[Verdict]]


class Finder:
    """Finds people in pictures. Not for several threads at once."""

    def __init__(self) -> None:
        self.detector = Detector()
        self.landmarker = Landmarker()

    def find(self, picture: np.ndarray, judge: Judge | None = None) -> list[Sighting]:
        """Everybody in a picture (H, W, 3) uint8 RGB, from left to right, refused ones too.

        The picture is turned, and tiles are looked at, where nobody else is taken for a person.
        With a judge, who is asked of those whom score and flag let pass, after their landmarks are
        steadied, the search goes on until somebody is clear; of several ways to see the same person
        the one of least cost is kept.
        """
        if min(picture.shape[:2]) < LEAST_SIDE:
            return []
        fitted = judge is not None
        people: list[Sighting] = []
        for level, found in enumerate(self.detector.search(picture)):
            seen = [
                self.look(picture, each, again=level > 0).gated(fitted=fitted) for each in found
            ]
            if fitted:
                seen = [self._steadied(picture, person) for person in seen]
            fresh, clear = judged(seen, judge)
            people = once([*people, *fresh])
            if clear:
                break
        return sorted(alone(people), key=lambda p: float(p.landmarks.pixels[:, 0].mean()))

    def look(self, picture: np.ndarray, found: Detection, *, again: bool = False) -> Sighting:
        """The landmarks of somebody detected."""
        region = Region.around(found.hips, found.top)
        marks = self.landmarker(picture, region, passes=_PASSES)
        return Sighting(found.score, marks, found.tile, again=again)

    def _steadied(self, picture: np.ndarray, person: Sighting) -> Sighting:
        """The same; of whoever passes, with the landmarks of six looks. On what is no person they
        differ, so that no body fits their medians: that tells more than one look's flag."""
        if person.refusal:
            return person
        return replace(person, landmarks=self.landmarker.steadied(picture, person.landmarks))


def judged(people: Sequence[Sighting], judge: Judge | None) -> tuple[list[Sighting], bool]:
    """The same people with what `judge` says of those who passed so far, and whether anybody is
    clear; without a judge whoever passed is."""
    passed = [person for person in people if not person.refusal]
    if judge is None or not passed:
        return list(people), bool(passed)
    verdicts = judge(passed)
    each = iter(verdicts)
    known = []
    for person in people:
        if not person.refusal:
            said = next(each)
            person = replace(person, refusal=said.refusal, cost=said.cost, clear=said.clear)
        known.append(person)
    return known, any(said.clear for said in verdicts)


def alone(people: Sequence[Sighting]) -> list[Sighting]:
    """The same; who is only seen in a further search, and not clear, is not taken beside somebody
    who fits better: such searches have many false alarms."""
    best = min((person.cost for person in people if not person.refusal), default=math.inf)
    return [
        replace(person, refusal=f"unclear: cost {person.cost:.1f}, beside somebody of {best:.1f}")
        if not person.refusal and person.again and not person.clear and person.cost > best
        else person
        for person in people
    ]


def once(people: Sequence[Sighting]) -> list[Sighting]:
    """Without those that are somebody already seen; who passed, then who fits best, then the
    surest, is kept."""
    kept: list[Sighting] = []
    for person in sorted(
        people, key=lambda p: (bool(p.refusal), p.cost, -p.score * p.landmarks.flag)
    ):
        if not any(_one(person, other) for other in kept):
            kept.append(person)
    return kept


def _one(person: Sighting, other: Sighting) -> bool:
    if same(person.landmarks, other.landmarks):
        return True
    if not (person.again or other.again):
        return False
    return bool(overlaps(person.landmarks.box, other.landmarks.box[None])[0] > _SHARED)


def same(one: Landmarks, other: Landmarks) -> bool:
    """Two sets of landmarks are of one person."""
    away = float(np.linalg.norm(one.pixels - other.pixels, axis=1).mean())
    return away < _SAME * max(one.size, other.size)


def boxes(image: Path, people: Sequence[Sighting]) -> list[Box]:
    """Boxes of those who are taken for people, as networks are trained on: the extent of the
    landmarks and a fifth more."""
    found = []
    for person in people:
        if not person.refusal:
            low, high = person.landmarks.pixels.min(0), person.landmarks.pixels.max(0)
            room = (high - low) * (BOX - 1.0) / 2
            found.append(Box(image, *(low - room).tolist(), *(high + room).tolist()))
    return found
