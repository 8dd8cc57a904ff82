"""Vertex order: the numbers of `tables.LANDMARKS` get the vertices that lie where SMPL has them."""

from __future__ import annotations

import numpy as np

from skel_fit.anatomy import LANDMARKS

from .makehuman import Rig
from .topology import Topology


class _Finder:
    """Picks vertices of the neutral template (6890, 3), each at most once."""

    def __init__(self, template: np.ndarray, mirror: np.ndarray) -> None:
        self.template, self.mirror = template, mirror
        self.middle = mirror == np.arange(len(mirror))
        self.found: dict[str, int] = {}

    def furthest(self, where: np.ndarray, direction: tuple[float, float, float]) -> int:
        """The free vertex of the mask `where` that lies furthest along `direction`."""
        free = where.copy()
        free[list(self.found.values())] = False
        if not free.any():
            raise RuntimeError("no vertex left for a landmark")
        along = self.template @ np.array(direction, float)
        return int(np.where(free, along, -np.inf).argmax())

    def near(self, where: np.ndarray, axis: int, value: float, width: float) -> np.ndarray:
        """Part of the mask within `width` of `value` along `axis`."""
        return where & (abs(self.template[:, axis] - value) < width)

    def both(self, name: str, left: int) -> None:
        self.found[f"left_{name}"] = left
        self.found[f"right_{name}"] = int(self.mirror[left])


def find_landmarks(
    template: np.ndarray, weights: np.ndarray, joints: np.ndarray, rig: Rig, topology: Topology
) -> dict[str, int]:
    """Landmark name -> vertex of the unordered mesh.

    template (6890, 3), weights (6890, 24), joints (24, 3): the neutral SMPL side.
    """
    find = _Finder(template, topology.mirror)
    head = (weights[:, 15] > 0.7) & ~topology.internal
    face = find.found["nose"] = find.furthest(head & find.middle, (0, 0, 1))
    nose = template[face]

    eye = np.linalg.norm(template - nose - np.array([0.033, 0.033, -0.03]), axis=1)
    find.both("eye", int(np.where(head, eye, np.inf).argmin()))
    find.both("ear", find.furthest(find.near(head, 1, nose[1], 0.05), (1, 0, 0)))
    for number, finger in enumerate(("thumb", "index", "middle", "ring", "pinky"), start=1):
        tip = rig.part((f"finger{number}-3.L",), topology.keep) > 0.6
        find.both(finger, find.furthest(tip, (1, 0, 0.6 if finger == "thumb" else 0)))
    big = rig.part(("toe1-2.L",), topology.keep) > 0.5
    small = rig.part(("toe5-3.L",), topology.keep) > 0.5
    find.both("big_toe", find.furthest(big, (0, 0, 1)))
    find.both("small_toe", find.furthest(small, (0.3, 0, 1)))
    find.both("heel", find.furthest(weights[:, 7] > 0.5, (0, -0.3, -1)))

    middle = head & find.middle
    find.found["head_top"] = find.furthest(middle, (0, 1, 0))
    brow = find.near(middle, 1, nose[1] + 0.045, 0.02)
    find.found["face_front"] = find.furthest(brow, (0, 0, 1))
    find.found["skull_back"] = find.furthest(find.near(middle, 1, nose[1], 0.03), (0, 0, -1))
    temple = find.near(find.near(head, 1, nose[1] + 0.06, 0.02), 2,
                       float(np.median(template[head, 2])), 0.05)  # fmt: skip
    find.both("temple", find.furthest(temple, (1, 0, 0)))

    hand = weights[:, 21] + weights[:, 23] > 0.9
    wrist, knuckles = joints[21], joints[23]
    find.found["right_wrist_top"] = find.furthest(find.near(hand, 0, wrist[0], 0.015), (0, 1, 0))
    fingertip = np.linalg.norm(template - template[find.found["right_middle"]], axis=1)
    fingertip[list(find.found.values())] = np.inf
    find.found["right_middle_end"] = int(fingertip.argmin())
    # Back and palm at the middle of the hand, away from the thumb.
    slab = find.near(find.near(hand, 0, knuckles[0], 0.02), 2, knuckles[2], 0.03)
    find.found["right_hand_back"] = find.furthest(slab, (0, 1, 0))
    find.found["right_hand_palm"] = find.furthest(slab, (0, -1, 0))

    chest = joints[9][1] + 0.10
    level = find.near(find.middle, 1, chest, 0.03)
    find.found["thorax_back"] = find.furthest(level, (0, 0, -1))
    find.found["breastbone"] = find.furthest(level, (0, 0, 1))
    upper = find.near(find.middle, 1, chest + 0.07, 0.03)
    find.found["breastbone_upper"] = find.furthest(upper, (0, 0, 1))
    return find.found


def vertex_order(landmarks: dict[str, int], count: int) -> np.ndarray:
    """(count,) `order[new] = old`: landmarks at their numbers, the others in their old order."""
    if set(landmarks) != set(LANDMARKS) or len(set(landmarks.values())) != len(landmarks):
        raise RuntimeError("landmarks are missing or share a vertex")
    order = np.full(count, -1)
    for name, number in LANDMARKS.items():
        order[number] = landmarks[name]
    order[order < 0] = np.setdiff1d(np.arange(count), list(landmarks.values()))
    return order
