"""Everybody in a picture: detected, with landmarks, each once; and what is taken for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.photo.detector import LEAST_SCORE, Detection, Detector
from stages.photo.landmarks import Landmarker, Landmarks, Region
from stages.regressor.data.boxes import Box

LEAST_FLAG, LEAST_FLAG_IN_TILE = 0.8, 0.98
"""What the landmark network must say of a person. Tiles are many, and so are their false alarms."""
_SAME = 0.15
"""Mean distance of two people's landmarks, over their size, below which they are one."""
_PASSES = 3
BOX = 1.2
"""Side of a network's box over the extent of the landmarks, as in its training labels."""
LEAST_SIDE = 16
"""Pixels; smaller pictures show nobody."""


@dataclass(frozen=True)
class Sighting:
    """What may be a person in a picture. score: of the detection; tile: found in a part of the
    picture only; refusal: why it is not taken for a person, with the numbers, "": it is."""

    score: float
    landmarks: Landmarks
    tile: bool = False
    refusal: str = ""

    def gated(self) -> Sighting:
        """The same with what score and flag say against it."""
        flag, least = self.landmarks.flag, LEAST_FLAG_IN_TILE if self.tile else LEAST_FLAG
        refusal = ""
        if self.score < LEAST_SCORE:
            refusal = f"detector {self.score:.2f}, expected {LEAST_SCORE:g} or more"
        elif not flag >= least:
            refusal = f"landmarks {flag:.2f}, expected {least:g} or more"
        return replace(self, refusal=refusal and f"not a person: {refusal}")


Judge = Callable[[Sequence[Sighting]], Sequence[str]]
"""Further reasons against sightings, "" where there are none."""


class Finder:
    """Finds people in pictures. Not for several threads at once."""

    def __init__(self) -> None:
        self.detector = Detector()
        self.landmarker = Landmarker()

    def find(self, picture: np.ndarray, judge: Judge | None = None) -> list[Sighting]:
        """Everybody in a picture (H, W, 3) uint8 RGB, from left to right, refused ones too.

        Tiles are looked at where nobody else is taken for a person. judge: asked of those whom
        score and flag let pass.
        """
        if min(picture.shape[:2]) < LEAST_SIDE:
            return []
        people: list[Sighting] = []
        for level, found in enumerate(self.detector.search(picture)):
            seen = [self.look(picture, each, tile=level > 0).gated() for each in found]
            people = once([*people, *judged(seen, judge)])
            if any(not person.refusal for person in people):
                break
        return sorted(people, key=lambda person: float(person.landmarks.pixels[:, 0].mean()))

    def look(self, picture: np.ndarray, found: Detection, *, tile: bool = False) -> Sighting:
        """The landmarks of somebody detected."""
        region = Region.around(found.hips, found.top)
        return Sighting(found.score, self.landmarker(picture, region, passes=_PASSES), tile)


def judged(people: Sequence[Sighting], judge: Judge | None) -> list[Sighting]:
    """The same people with what `judge` says against those who passed so far."""
    passed = [person for person in people if not person.refusal]
    reasons = iter(judge(passed) if judge is not None and passed else [""] * len(passed))
    return [p if p.refusal else replace(p, refusal=next(reasons)) for p in people]


def once(people: Sequence[Sighting]) -> list[Sighting]:
    """Without those that are somebody already seen; who passed, then the surest, is kept."""
    kept: list[Sighting] = []
    for person in sorted(people, key=lambda p: (bool(p.refusal), -p.score * p.landmarks.flag)):
        if not any(same(person.landmarks, other.landmarks) for other in kept):
            kept.append(person)
    return kept


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
