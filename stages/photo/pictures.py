"""Bodies, bones and landmarks drawn over photographs and frames."""

from __future__ import annotations

import cv2
import numpy as np

from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.skel import SKEL
from stages.drawing.overlays import SKIN, Posed, draw_body
from stages.drawing.render import BONE_COLOR

_UNSEEN_SKIN, _UNSEEN_BONE = (0.62, 0.62, 0.62), (0.45, 0.45, 0.45)
"""Parts that the picture does not show: they follow the prior."""
_LEFT, _RIGHT, _ACROSS, _OUTSIDE = (40, 200, 90), (250, 120, 40), (230, 230, 230), (150, 150, 150)
_IS_LEFT = tuple("left" in name for name in BLAZEPOSE_NAMES)
_LINES = (
    (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (11, 23), (12, 24), (23, 24), (23, 25),
    (25, 27), (24, 26), (26, 28), (27, 29), (29, 31), (28, 30), (30, 32), (15, 19), (16, 20),
)  # fmt: skip
_DOTS = (0, 2, 5, 7, 8, *range(11, 33))


class Painter:
    """Draws bodies of one SKEL model."""

    def __init__(self, skel: SKEL) -> None:
        self._of_skin = skel.skin_weights.argmax(1).cpu().numpy()
        self._of_bones = skel.skeleton_weights.argmax(1).cpu().numpy()

    def body(
        self, picture: np.ndarray, body: Posed, cam_int: np.ndarray, shown: np.ndarray
    ) -> np.ndarray:
        """A picture (H, W, 3) uint8 RGB with a body over it; shown (24,) bool: bones that the
        picture shows, the others are grey."""
        seen = shown[self._of_skin][:, None]
        inner = shown[self._of_bones][:, None]
        return draw_body(
            picture, body, cam_int,
            skin=np.where(seen, SKIN, _UNSEEN_SKIN),
            bones=np.where(inner, BONE_COLOR, _UNSEEN_BONE),
        )  # fmt: skip


def draw_landmarks(picture: np.ndarray, pixels: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """A copy with landmarks (33, 2): left green, right orange, grey where they do not count."""
    drawn = np.ascontiguousarray(picture).copy()
    width = max(1, round(max(picture.shape) / 600))
    usable = np.isfinite(pixels).all(1) & (np.abs(pixels) < 1e5).all(1)
    places = [tuple(round(float(x)) for x in p) for p in np.nan_to_num(pixels).clip(-1e5, 1e5)]
    for a, b in _LINES:
        if usable[a] and usable[b] and counted[a] and counted[b]:
            color = _ACROSS if _IS_LEFT[a] != _IS_LEFT[b] else _LEFT if _IS_LEFT[a] else _RIGHT
            cv2.line(drawn, places[a], places[b], color, width, cv2.LINE_AA)
    for k in _DOTS:
        if usable[k]:
            color = _OUTSIDE if not counted[k] else _LEFT if _IS_LEFT[k] else _RIGHT
            cv2.circle(drawn, places[k], width + 1, color, -1, cv2.LINE_AA)
    return drawn
