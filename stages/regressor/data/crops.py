"""From a row and its picture to the network's input, and what augmentation does to the geometry.

Source: docs/reference/regressor.md#crop, #flip, #roll. A flip mirrors about the principal point and
a roll turns about it; both are exact under perspective and leave the intrinsics as they are. The
flipped, rolled picture is never made: one affine map goes from the stored pixels to the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from torch import Tensor

from stages.regressor.config import Strict
from stages.regressor.data.images import decode

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32) * 255
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32) * 255
_BLANK = 128  # grey level of the constant picture of the control


class CropRule(Strict):
    """How the network sees a person.

    grow_to_aspect: enlarge the box to 192:256 before squaring it; corners: sub-pixel affine or
    whole pixels; conditioning: box side that the network is told, of the crop or of the annotation;
    pixels: as `DataConfig.pixels`.
    """

    grow_to_aspect: bool
    corners: Literal["subpixel", "integer"]
    conditioning: Literal["crop", "annotation"]
    pixels: Literal["continuous", "published"] = "continuous"


@dataclass(frozen=True)
class Crop:
    """A square window on a picture that may be flipped, then rolled, about its principal point.

    center: (2,) pixels of the turned picture; side: pixels; principal: (2,) pixels; flip; roll:
    radians, positive turns x towards y (clockwise as seen); size: pixels of the crop; pixels: how
    the picture is sampled, `integer`: the published cut at whole pixels.
    """

    center: np.ndarray
    side: float
    principal: np.ndarray
    size: int
    flip: bool = False
    roll: float = 0.0
    pixels: Literal["continuous", "published", "integer"] = "continuous"

    @property
    def width(self) -> int:
        """Columns of the crop that the network sees, in its middle."""
        return self.size * 3 // 4

    @property
    def turn(self) -> np.ndarray:
        """(2, 3) stored pixels -> pixels of the turned picture."""
        c, s = np.cos(self.roll), np.sin(self.roll)
        linear = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if self.flip else 1.0, 1.0])
        shift = self.principal - linear @ self.principal
        return np.concatenate((linear, shift[:, None]), 1)

    @property
    def affine(self) -> np.ndarray:
        """(2, 3) pixels of the turned picture -> crop pixels."""
        scale = self.size / self.side
        shift = self.size / 2 - scale * self.center
        return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(2, 3) map of points (..., 2)."""
    return points @ affine[:, :2].T + affine[:, 2]


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The (2, 3) map that applies `inner`, then `outer`."""
    square = np.concatenate((inner, [[0.0, 0.0, 1.0]]))
    return outer @ square


def reduction(crop: Crop) -> int:
    """How many times smaller (1, 2, 4, 8) a picture may be decoded without losing crop pixels."""
    factor = crop.side / crop.size
    return next((r for r in (8, 4, 2) if factor >= r), 1)


def cut(data: bytes, name: str, crop: Crop, *, turned: bool = False) -> np.ndarray:
    """The part of the crop that the network sees, (size, width, 3) uint8 RGB.

    Outside the picture: black. turned: the crop is of the upright picture (`decode`). Large crops
    are read from a reduced decoding, which averages pixels instead of skipping them.
    """
    if crop.pixels != "continuous":
        picture = decode(data, name, turned=turned)
        return (_published if crop.pixels == "published" else _integer)(picture, crop)
    reduce = reduction(crop)
    picture = decode(data, name, reduce, turned=turned)
    whole = _seen_affine(crop)
    whole[:, :2] *= reduce
    return _warped(picture, whole, crop)


def cut_again(picture: np.ndarray, window: Crop, crop: Crop) -> np.ndarray:
    """As `cut`, from what `cut` gave for `window`, neither flipped nor rolled; sampled twice."""
    square = np.concatenate((_seen_affine(window), [[0.0, 0.0, 1.0]]))
    return _warped(picture, compose(_seen_affine(crop), np.linalg.inv(square)[:2]), crop)


def _seen_affine(crop: Crop) -> np.ndarray:
    """(2, 3) stored pixels -> pixels of what the network sees."""
    whole = compose(crop.affine, crop.turn)
    whole[0, 2] -= (crop.size - crop.width) / 2
    return whole


def _warped(picture: np.ndarray, whole: np.ndarray, crop: Crop) -> np.ndarray:
    """whole: (2, 3) pixels of the picture -> pixels of what the network sees."""
    whole = whole.copy()
    # OpenCV counts from pixel centres, our coordinates from pixel corners.
    whole[:, 2] += whole[:, :2].sum(1) * 0.5 - 0.5
    return cv2.warpAffine(
        np.ascontiguousarray(picture), whole, (crop.width, crop.size),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0,
    )  # fmt: skip


def _published(picture: np.ndarray, crop: Crop) -> np.ndarray:
    """The public code's warp (docs/reference/checkpoints.md#pixels): indices are pixel centres on
    both sides, the map comes from three points in float32, columns are cut afterwards.
    """
    half, out = np.float32(crop.side / 2), crop.size / 2
    middle = crop.center.astype(np.float32)
    if crop.flip or crop.roll:
        matrix = compose(crop.affine, crop.turn)
    else:
        source = middle + np.array([(0, 0), (0, half), (half, 0)], np.float32)
        target = np.array([(out, out), (out, 2 * out), (2 * out, out)], np.float32)
        matrix = cv2.getAffineTransform(source, target)
    square = cv2.warpAffine(
        np.ascontiguousarray(picture), matrix, (crop.size, crop.size),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0,
    )  # fmt: skip
    return _seen(square, crop)


def _integer(picture: np.ndarray, crop: Crop) -> np.ndarray:
    """The published cut at whole pixels, truncated towards zero, then scaled; zeros outside."""
    low, high = ((crop.center + sign * crop.side / 2).astype(int) for sign in (-1, 1))
    high = np.maximum(high, low + 1)
    whole = np.zeros((high[1] - low[1], high[0] - low[0], 3), np.uint8)
    height, width = picture.shape[:2]
    begin, end = np.maximum(low, 0), np.minimum(high, (width, height))
    if (begin < end).all():
        whole[begin[1] - low[1] : end[1] - low[1], begin[0] - low[0] : end[0] - low[0]] = picture[
            begin[1] : end[1], begin[0] : end[0]
        ]
    return _seen(cv2.resize(whole, (crop.size, crop.size), interpolation=cv2.INTER_LINEAR), crop)


def _seen(square: np.ndarray, crop: Crop) -> np.ndarray:
    margin = (crop.size - crop.width) // 2
    return np.ascontiguousarray(square[:, margin : margin + crop.width])


def blank(crop: Crop) -> np.ndarray:
    """The constant picture of the control, in place of `cut`."""
    return np.full((crop.size, crop.width, 3), _BLANK, np.uint8)


def normalise(picture: np.ndarray, factors: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W) float32 in ImageNet units; channel factors are applied first."""
    values = picture.astype(np.float32)
    if factors is not None:
        values = np.clip(values * factors.astype(np.float32), 0, 255)
    return np.ascontiguousarray(((values - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1))


def seen_picture(image: Tensor) -> np.ndarray:
    """Normalised network input (3, H, W) -> (H, W, 3) uint8 RGB."""
    values = image.float().cpu().numpy().transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
    return values.clip(0, 255).round().astype(np.uint8)
