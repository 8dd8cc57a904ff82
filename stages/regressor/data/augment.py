"""Random changes of a training row: box, flip, roll, cuts to body parts, image defects.

Source: docs/reference/regressor.md#augmentation. Every draw comes from a generator seeded by (seed,
epoch, row), so a row looks the same in any worker, order or resumed run. Image defects are written
anew on the crop (the public recipe applies a library's on the whole picture); kinds and weights are
its.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stages.regressor.config import AugmentConfig

Picture = np.ndarray  # (H, W, 3) uint8 RGB


@dataclass(frozen=True)
class Change:
    """What happens to the geometry and the colours of a row."""

    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    flip: bool = False
    roll: float = 0.0
    factors: np.ndarray | None = None
    box: tuple[np.ndarray, float] | None = None  # centre and side after a cut to a body part


def draw(config: AugmentConfig, keypoints: np.ndarray, random: np.random.Generator) -> Change:
    """Draw the changes of one row; keypoints (44, 3): pixels and confidence."""
    box = None
    if random.random() < config.extreme_crop:
        box = extreme_crop(keypoints, random)
    jitter = random.normal(size=3).clip(-1, 1)
    rolled = random.random() < config.roll_probability
    turn = float(np.clip(random.normal(), -2, 2)) if rolled else 0.0
    change = Change(
        scale=1 + config.scale * jitter[0],
        shift=(config.shift * jitter[1], config.shift * jitter[2]),
        flip=bool(random.random() < config.flip),
        roll=float(np.radians(config.roll) * turn),
        factors=random.uniform(1 - config.color, 1 + config.color, 3),
        box=box,
    )
    # Drawn last and only where asked for, so that other recipes draw what they drew before.
    if config.any_roll and random.random() < config.any_roll:
        change = replace(change, roll=float(random.uniform(-np.pi, np.pi)))
    return change


def focal_factor(config: AugmentConfig, random: np.random.Generator) -> float:
    """What to multiply the focal length by that the network is told (regressor.md#d13); positive.

    To be drawn last of all, so that no other draw of the row depends on it.
    """
    return 1 + config.focal * float(np.clip(random.normal(), -1, 1))


# ---- cuts to body parts -------------------------------------------------------------------------


def _ids(openpose: str, extra: str) -> tuple[int, ...]:
    def listed(text: str) -> list[int]:
        spans = [tuple(map(int, part.split("-"))) for part in text.split(",")]
        return [k for span in spans for k in range(span[0], span[-1] + 1)]

    return (*listed(openpose), *(25 + k for k in listed(extra)))


@dataclass(frozen=True)
class _Cut:
    margin: float
    removed: tuple[int, ...]


_CUTS: dict[str, _Cut] = {
    "hips": _Cut(1.1, _ids("10,11,13,14,19-24", "0,1,4,5")),
    "shoulders": _Cut(1.2, _ids("3,4,6-14,19-24", "0-7,10,11,14-16")),
    "head": _Cut(1.3, _ids("3,4,6-14,19-24", "0-11,14-16")),
    "torso": _Cut(1.1, _ids("0,3,4,6,7,10,11,13-24", "0,1,4-7,10,11,13,17,18")),
    "right arm": _Cut(1.1, _ids("0,1,5-24", "0-5,9-18")),
    "left arm": _Cut(1.1, _ids("0-4,8-24", "0-8,12-18")),
    "legs": _Cut(1.1, _ids("0-7,15-18", "6-13,15-18")),
    "right leg": _Cut(1.1, _ids("0-8,12-21", "3-18")),
    "left leg": _Cut(1.1, _ids("0-11,15-18,22-24", "0-2,6-18")),
}
_WHOLE = {"hips": 0.2, "shoulders": 0.1, "head": 0.1, "torso": 0.1, "right arm": 0.1,
          "left arm": 0.1, "legs": 0.1, "right leg": 0.1, "left leg": 0.1}  # fmt: skip
_UPPER = {name: 0.2 for name in ("shoulders", "head", "torso", "right arm", "left arm")}
# Shoulders, elbows, wrists, knees, ankles, right and left: OpenPose point and its extra copy.
_LIMB_POINTS = ((2, 33), (3, 32), (4, 31), (5, 34), (6, 35), (7, 36), (10, 26), (11, 25),
                (13, 29), (14, 30))  # fmt: skip
_LEG_POINTS = (10, 26, 11, 25, 13, 29, 14, 30)
_HEAD_AND_SHOULDERS = (0, 1, 2, 5, 15, 16, 17, 18, 33, 34, 37, 38, 42, 43)
_BOX_MARGIN = 1.2
_MIN_SIDE = 4.0


def extreme_crop(
    keypoints: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """Centre (2,) and side of a box around a random body part, pixels; None where none applies."""
    seen = keypoints[:, 2] > 0
    if all(seen[list(pair)].any() for pair in _LIMB_POINTS):
        kinds = _WHOLE
    elif not seen[list(_LEG_POINTS)].any() and seen[list(_HEAD_AND_SHOULDERS)].sum() >= 2:
        kinds = _UPPER
    else:
        return None
    kind = _CUTS[str(random.choice(list(kinds), p=list(kinds.values())))]
    kept = seen.copy()
    kept[list(kind.removed)] = False
    if not kept.any():
        return None
    low, high = keypoints[kept, :2].min(0), keypoints[kept, :2].max(0)
    side = float((high - low).max()) * _BOX_MARGIN * kind.margin
    return ((low + high) / 2, side) if side >= _MIN_SIDE else None


# ---- image defects ------------------------------------------------------------------------------


def photometric(picture: Picture, config: AugmentConfig, random: np.random.Generator) -> Picture:
    """Each of two groups of defects with its probability, one defect of the group."""
    for group in (_weathers(config.snow), _COLOURS):
        if random.random() < config.photometric:
            weights = np.array([weight for weight, _ in group])
            _, defect = group[random.choice(len(group), p=weights / weights.sum())]
            picture = defect(picture, random)
    return picture


def _downscale(picture: Picture, random: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    factor = random.uniform(0.5, 0.9)
    small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _jpeg(picture: Picture, random: np.random.Generator) -> Picture:
    quality = int(random.integers(20, 101))
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def _rain(picture: Picture, random: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    rainy = picture.copy()
    slant = int(random.integers(-4, 5))
    length = max(height // 12, 2)
    for x, y in random.integers(0, (width, height), size=(height // 3, 2)):
        end = (int(x) + slant, int(y) + length)
        cv2.line(rainy, (int(x), int(y)), end, (200, 200, 200), 1)
    return cv2.blur(rainy, (3, 3))


def _motion_blur(picture: Picture, random: np.random.Generator) -> Picture:
    size = int(random.choice((3, 5, 7, 9, 11, 13, 15)))
    angle = random.uniform(0, np.pi)
    reach = np.array((np.cos(angle), np.sin(angle))) * (size // 2)
    kernel = np.zeros((size, size), np.float32)
    middle = size // 2
    start, end = np.rint(middle - reach).astype(int), np.rint(middle + reach).astype(int)
    cv2.line(kernel, tuple(map(int, start)), tuple(map(int, end)), 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def _blur(picture: Picture, random: np.random.Generator) -> Picture:
    size = int(random.integers(3, 11))
    return cv2.blur(picture, (size, size))


def _snow(picture: Picture, random: np.random.Generator) -> Picture:
    hls = cv2.cvtColor(picture, cv2.COLOR_RGB2HLS).astype(np.float32)
    covered = hls[..., 1] < random.uniform(0.2, 0.4) * 255 / 2 + 255 / 3
    hls[..., 1] = np.clip(np.where(covered, hls[..., 1] * 1.5, hls[..., 1]), 0, 255)
    return cv2.cvtColor(hls.astype(np.uint8), cv2.COLOR_HLS2RGB)


def _clahe(picture: Picture, random: np.random.Generator) -> Picture:
    lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(random.uniform(1, 11), (10, 10))
    lab[..., 0] = equaliser.apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def _grey(picture: Picture, random: np.random.Generator) -> Picture:
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)


def _brightness(picture: Picture, random: np.random.Generator) -> Picture:
    contrast, brightness = 1 + random.uniform(-0.2, 0.2), 255 * random.uniform(-0.2, 0.2)
    return np.clip(picture * np.float32(contrast) + brightness, 0, 255).astype(np.uint8)


def _noise(picture: Picture, random: np.random.Generator) -> Picture:
    factors = random.uniform(0.5, 1.5, picture.shape).astype(np.float32)
    return np.clip(picture * factors, 0, 255).astype(np.uint8)


def _hue(picture: Picture, random: np.random.Generator) -> Picture:
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + random.integers(-20, 21)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] + random.integers(-30, 31), 0, 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + random.integers(-20, 21), 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def _posterise(picture: Picture, random: np.random.Generator) -> Picture:
    return picture & np.uint8(0xF0)


def _gamma(picture: Picture, random: np.random.Generator) -> Picture:
    table = (np.arange(256) / 255) ** (random.uniform(80, 200) / 100) * 255
    return cv2.LUT(picture, table.astype(np.uint8))


def _equalise(picture: Picture, random: np.random.Generator) -> Picture:
    return np.stack([cv2.equalizeHist(np.ascontiguousarray(picture[..., k])) for k in range(3)], 2)


_Defect = Callable[[Picture, np.random.Generator], Picture]
_COLOURS: tuple[tuple[float, _Defect], ...] = (
    (0.2, _clahe), (0.2, _grey), (0.2, _brightness), (0.2, _noise), (0.2, _hue),
    (0.1, _posterise), (0.1, _gamma), (0.1, _equalise),
)  # fmt: skip


def _weathers(snow: float) -> tuple[tuple[float, _Defect], ...]:
    return ((0.1, _downscale), (0.1, _jpeg), (0.1, _rain), (0.2, _motion_blur), (0.1, _blur),
            (snow, _snow))  # fmt: skip
