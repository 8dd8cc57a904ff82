"""Everybody in a picture: detected, with landmarks, each once; and what is taken for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.photo.detector import LEAST_SCORE, Detection, Detector
from stages.photo.landmarks import Landmarker, Landmarks, Region

LEAST_FLAG = 0.8
"""What the landmark network must say of a person. It gave a bollard 0.99: `fitting.GATES`."""
MOST_COST = 4.0
"""Most that a fit may cost for a body to be believed."""
_SAME = 0.15
"""Mean distance of two people's landmarks, over their size, below which they are one."""
_PASSES = 3
LEAST_SIDE = 16
"""Pixels; smaller pictures show nobody."""


@dataclass(frozen=True)
class Sighting:
    """A person in a picture. score: of the detection."""

    score: float
    landmarks: Landmarks

    def refusal(self) -> str | None:
        """Why it is not taken for a person, with the numbers; None: it is."""
        if self.score < LEAST_SCORE:
            return f"not a person: detector {self.score:.2f}, expected {LEAST_SCORE:g} or more"
        if self.landmarks.flag < LEAST_FLAG:
            return (
                f"not a person: landmarks {self.landmarks.flag:.2f}, expected {LEAST_FLAG:g} "
                "or more"
            )
        return None


class Finder:
    """Finds people in pictures. Not for several threads at once."""

    def __init__(self) -> None:
        self.detector = Detector()
        self.landmarker = Landmarker()

    def find(self, picture: np.ndarray) -> list[Sighting]:
        """Everybody in a picture (H, W, 3) uint8 RGB, from left to right, refused ones too."""
        if min(picture.shape[:2]) < LEAST_SIDE:
            return []
        people: list[Sighting] = []
        for found in self.detector.search(picture):
            people = once([*people, *(self.look(picture, each) for each in found)])
            if any(person.refusal() is None for person in people):
                break
        return sorted(people, key=lambda person: float(person.landmarks.pixels[:, 0].mean()))

    def look(self, picture: np.ndarray, found: Detection) -> Sighting:
        """The landmarks of somebody detected."""
        region = Region.around(found.hips, found.top)
        return Sighting(found.score, self.landmarker(picture, region, passes=_PASSES))


def once(people: Sequence[Sighting]) -> list[Sighting]:
    """Without those that are somebody already seen, the surest kept."""
    kept: list[Sighting] = []
    for person in sorted(people, key=lambda p: -p.score * p.landmarks.flag):
        if not any(same(person.landmarks, other.landmarks) for other in kept):
            kept.append(person)
    return kept


def same(one: Landmarks, other: Landmarks) -> bool:
    """Two sets of landmarks are of one person."""
    away = float(np.linalg.norm(one.pixels - other.pixels, axis=1).mean())
    return away < _SAME * max(one.size, other.size)
