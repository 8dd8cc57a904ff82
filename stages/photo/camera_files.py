"""Calibration files of cameras: Qualisys (.qca.txt) and OpenCV as Pose2Sim writes it (.toml).

A file is data from anywhere: nothing in it is guessed, and what is not read is refused by a line.
Conventions: docs/photo.md#calibration. Files count pixels from their centres; ours are continuous
(pixel (i, j) covers [j, j + 1) x [i, i + 1)), so principal points move by half a pixel.
"""

from __future__ import annotations

import math
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import InputError
from pipeline.paths import check_regular

_MOST_BYTES, _MOST_CAMERAS, _MOST_PIXELS = 4_000_000, 64, 65_536
_SUBPIXELS = 64.0
"""Parts of a pixel in which Qualisys counts."""
_QUALISYS_AXES = np.diag([1.0, -1.0, -1.0])
_SAME_SIZE = 0.02
"""How far, as a share, a video may differ from the size that its camera was calibrated at: some
encoders cut a few columns off."""
_ROTATION_SLACK = 1e-3


@dataclass(frozen=True)
class CalibratedCamera:
    """A camera of a calibration file.

    size: height and width of its pictures, px; cam_int: (3, 3) px; distortion: (4,) or (5,) of
    OpenCV, k1 k2 p1 p2 (k3); turn (3, 3), shift (3,): x = turn X + shift from the file's world,
    metres, to the camera (x right, y down, z forward).
    """

    name: str
    size: tuple[int, int]
    cam_int: np.ndarray
    distortion: np.ndarray
    turn: np.ndarray
    shift: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        """(3,) metres, in the world."""
        place: np.ndarray = -self.turn.T @ self.shift
        return place

    def undistorted(self, pixels: np.ndarray) -> np.ndarray:
        """Where a pinhole camera would have seen what was seen at pixels (..., 2)."""
        if not self.distortion.any() or not pixels.size:
            return pixels.copy()
        flat = np.ascontiguousarray(pixels.reshape(-1, 1, 2), np.float64)
        moved = cv2.undistortPoints(flat, self.cam_int, self.distortion, P=self.cam_int)
        return moved.reshape(pixels.shape)


def read_camera_file(path: Path) -> tuple[CalibratedCamera, ...]:
    """The cameras of a file, in its order.

    Raises:
        InputError: absent, of no format that is read, or with numbers that no camera has.
    """
    check_regular(path)
    if not path.is_file():
        raise InputError(f"{path}: no such calibration file")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: larger than {_MOST_BYTES:,} bytes; a calibration is small")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text file ({error.reason})") from None
    read = _qualisys if text.lstrip("\ufeff \t\r\n").startswith("<") else _toml
    try:
        cameras = read(text)
    except _Damaged as error:
        raise InputError(f"{path}: {error}") from None
    names = [camera.name for camera in cameras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: two cameras are named {twice[0]!r}")
    if not 1 <= len(cameras) <= _MOST_CAMERAS:
        raise InputError(f"{path}: {len(cameras)} cameras; expected 1 to {_MOST_CAMERAS}")
    return cameras


def cameras_of(
    cameras: Sequence[CalibratedCamera], videos: Sequence[Path], file: Path
) -> tuple[list[CalibratedCamera], str]:
    """The camera of every video, and how they were matched: by name where every video's name has
    that of one camera in it, else in order.

    Raises:
        InputError: neither is possible.
    """
    found = []
    for video in videos:
        named = [c for c in cameras if c.name.lower() in video.stem.lower()]
        longest = max((len(c.name) for c in named), default=0)
        named = [c for c in named if len(c.name) == longest]  # cam1 is in cam12, too
        if len(named) == 1:
            found.append(named[0])
    if len(found) == len(videos) and len({c.name for c in found}) == len(found):
        return found, "by name"
    if len(cameras) != len(videos):
        names = ", ".join(c.name for c in cameras)
        raise InputError(
            f"{file}: {len(cameras)} cameras ({names}) for {len(videos)} videos; give as many "
            "videos, in the file's order, or name them as the cameras"
        )
    return list(cameras), "in order"


def check_size(camera: CalibratedCamera, size: tuple[int, int], video: Path, file: Path) -> None:
    """Raises InputError where a video of height and width is not what the camera was calibrated
    for."""
    if any(abs(a / b - 1.0) > _SAME_SIZE for a, b in zip(size, camera.size, strict=True)):
        raise InputError(
            f"{video}: frames of {size[1]} x {size[0]}, but {file} has {camera.name} at "
            f"{camera.size[1]} x {camera.size[0]}; give the videos as they were calibrated"
        )


class _Damaged(Exception):
    """What is wrong with a file, in words."""


def _camera(
    name: str, size: Sequence[float], cam_int: np.ndarray, distortion: Sequence[float],
    turn: np.ndarray, shift: np.ndarray,
) -> CalibratedCamera:  # fmt: skip
    """Checked."""
    if not re.fullmatch(r"[^\x00-\x1f/\\]{1,100}", name):
        raise _Damaged(f"camera {name[:40]!r}: expected a name without slashes")
    where = f"camera {name}"
    width, height = (float(x) for x in size)
    if not (1 <= width <= _MOST_PIXELS and 1 <= height <= _MOST_PIXELS):
        raise _Damaged(f"{where}: pictures of {width:g} x {height:g} pixels")
    for what, values in (
        ("intrinsics", cam_int), ("distortion", np.asarray(distortion)), ("rotation", turn),
        ("translation", shift),
    ):  # fmt: skip
        if not np.isfinite(values).all():
            raise _Damaged(f"{where}: {what} that are not finite")
    if not (cam_int[0, 0] > 0 and cam_int[1, 1] > 0):
        raise _Damaged(f"{where}: focal length {cam_int[0, 0]:g}, {cam_int[1, 1]:g}; expected > 0")
    if np.abs(turn @ turn.T - np.eye(3)).max() > _ROTATION_SLACK or np.linalg.det(turn) < 0:
        raise _Damaged(f"{where}: its rotation is none (rows of length 1 at right angles, no "
                       "mirror image)")  # fmt: skip
    moved = cam_int.astype(np.float64)
    moved[:2, 2] += 0.5
    u, _, vt = np.linalg.svd(turn)
    return CalibratedCamera(
        name, (round(height), round(width)), moved, np.asarray(distortion, np.float64), u @ vt,
        np.asarray(shift, np.float64),
    )  # fmt: skip


# ---- Qualisys ------------------------------------------------------------------------------------


def _qualisys(text: str) -> tuple[CalibratedCamera, ...]:
    if re.search(r"<!(DOCTYPE|ENTITY)", text):
        raise _Damaged("has a document type or entities, which no calibration needs")
    try:
        root = ElementTree.fromstring(text.lstrip("\ufeff \t\r\n").encode("utf-8"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _Damaged(f"no XML ({error})") from None
    if root.tag != "calibration":
        raise _Damaged(f"expected <calibration>, found <{root.tag[:40]}>")
    return tuple(_of_qualisys(each) for each in root.findall("cameras/camera")[: _MOST_CAMERAS + 1])


def _of_qualisys(element: ElementTree.Element) -> CalibratedCamera:
    name = element.get("serial", "")
    where = f"camera {name[:40]}"
    if element.get("viewrotation", "0").strip() not in ("", "0"):
        raise _Damaged(f"{where}: viewrotation {element.get('viewrotation')!r} is not read; export "
                       "the calibration of upright videos")  # fmt: skip
    view = element.find("fov_video")
    if view is None:
        view = element.find("fov_marker")
    inner, outer = element.find("intrinsic"), element.find("transform")
    if view is None or inner is None or outer is None:
        raise _Damaged(f"{where}: expected fov_video, transform and intrinsic")
    left, top, right, bottom = _attributes(view, where, "left", "top", "right", "bottom")
    focal = _attributes(inner, where, "focalLengthU", "focalLengthV")
    middle = _attributes(inner, where, "centerPointU", "centerPointV")
    (skew,) = _attributes(inner, where, "skew", default=0.0)
    radial = _attributes(inner, where, "radialDistortion1", "radialDistortion2",
                         "radialDistortion3", default=0.0)  # fmt: skip
    # spelt so by Qualisys
    across = _attributes(inner, where, "tangentalDistortion1", "tangentalDistortion2", default=0.0)
    cells = _attributes(outer, where, *(f"r{i}{j}" for i in "123" for j in "123"))
    turn = _QUALISYS_AXES @ np.array(cells).reshape(3, 3)
    centre = np.array(_attributes(outer, where, "x", "y", "z")) / 1000.0
    cam_int = np.array([
        [focal[0] / _SUBPIXELS, skew / _SUBPIXELS, middle[0] / _SUBPIXELS - left],
        [0.0, focal[1] / _SUBPIXELS, middle[1] / _SUBPIXELS - top],
        [0.0, 0.0, 1.0],
    ])  # fmt: skip
    return _camera(
        name, (right - left + 1, bottom - top + 1), cam_int, [*radial[:2], *across, radial[2]],
        turn, -turn @ centre,
    )  # fmt: skip


def _attributes(
    element: ElementTree.Element, where: str, *names: str, default: float | None = None
) -> list[float]:
    found = []
    for name in names:
        text = element.get(name)
        if text is None and default is not None:
            found.append(default)
            continue
        try:
            found.append(float(text if text is not None else "?"))
        except ValueError:
            said = "is missing" if text is None else f"is {text[:40]!r}, expected a number"
            raise _Damaged(f"{where}: {name} of <{element.tag}> {said}") from None
    return found


# ---- TOML ----------------------------------------------------------------------------------------


def _toml(text: str) -> tuple[CalibratedCamera, ...]:
    try:
        tables = tomllib.loads(text.removeprefix("\ufeff"))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise _Damaged(
            f"neither the XML of Qualisys nor TOML ({said}); expected .qca.txt or .toml"
        ) from None
    cameras = [
        _of_table(key, table) for key, table in tables.items()
        if isinstance(table, dict) and key != "metadata"
    ]  # fmt: skip
    if not cameras:
        raise _Damaged("no tables of cameras ([cam01] with size, matrix, distortions, rotation, "
                       "translation)")  # fmt: skip
    return tuple(cameras)


def _of_table(key: str, table: Mapping[str, Any]) -> CalibratedCamera:
    name = table.get("name", key)
    if not isinstance(name, str):
        raise _Damaged(f"camera {key[:40]}: name: expected text")
    where = f"camera {key[:40]}"
    if table.get("fisheye", False) is not False:
        raise _Damaged(f"{where}: fisheye lenses are not read; undistort the videos first")
    distortion = _numbers(table, "distortions", where, (4,), (5,))
    turn = _numbers(table, "rotation", where, (3,), (3, 3))
    if turn.shape == (3,):
        turn = cv2.Rodrigues(turn)[0] if np.isfinite(turn).all() else np.full((3, 3), math.nan)
    matrix = _numbers(table, "matrix", where, (3, 3))
    if matrix[1, 0] != 0.0 or (matrix[2] != (0.0, 0.0, 1.0)).any():
        raise _Damaged(f"{where}: matrix: expected rows fx s cx, 0 fy cy, 0 0 1")
    return _camera(
        name, _numbers(table, "size", where, (2,)).tolist(), matrix, distortion.tolist(), turn,
        _numbers(table, "translation", where, (3,)),
    )  # fmt: skip


def _numbers(
    table: Mapping[str, Any], key: str, where: str, *shapes: tuple[int, ...]
) -> np.ndarray:
    expected = " or ".join(" x ".join(map(str, shape)) for shape in shapes)
    value = table.get(key)
    flat = value if isinstance(value, list) else []
    flat = [x for row in flat for x in (row if isinstance(row, list) else [row])]
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in flat)
    try:
        array = np.array(value if plain else None, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array(math.nan)
    if not plain or array.shape not in shapes:
        raise _Damaged(f"{where}: {key}: expected {expected} numbers")
    return array
