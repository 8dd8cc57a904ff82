"""Boxes of the people in pictures, from JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.paths import check_regular


@dataclass(frozen=True)
class Box:
    """A person's box in a picture, pixels: left, top, right, bottom."""

    image: Path
    left: float
    top: float
    right: float
    bottom: float

    @property
    def center(self) -> np.ndarray:
        return np.array([(self.left + self.right) / 2, (self.top + self.bottom) / 2])

    @property
    def size(self) -> np.ndarray:
        return np.array([self.right - self.left, self.bottom - self.top])


def find_boxes(
    images: Sequence[Path], sizes: Mapping[Path, tuple[int, int]], file: Path | None
) -> list[Box]:
    """Checked boxes of all pictures, in the order of the pictures.

    sizes: height and width, pixels, of those that can be read; the others get no boxes. file: JSON
    `{image: [[left, top, right, bottom], ...]}` or CSV with a header `image,left,top,right,bottom`,
    an image by its path as given or by its bare name; None: each picture is one person's box.

    Raises:
        InputError: not readable, an unknown picture, a box that is empty or outside its picture.
    """
    if file is None:
        return [whole_picture(image, sizes[image]) for image in images if image in sizes]
    given = _read_boxes(file)
    result = []
    named = _Names(images, file)
    for name, corners in given.items():
        image = named(name)
        if image not in sizes:
            continue
        height, width = sizes[image]
        for number, corner in enumerate(corners):
            box = Box(image, *corner)
            inside = (
                np.isfinite(corner).all() and box.left < min(box.right, width)
                and box.top < min(box.bottom, height) and box.right > 0 and box.bottom > 0
                and min(box.size) >= 1
            )  # fmt: skip
            if not inside:
                raise InputError(
                    f"{file}: box {number} of {name}: {list(corner)} is empty or outside the "
                    f"picture of {width} x {height} pixels; expected left, top, right, bottom"
                )
            result.append(box)
    if not any(given.values()):
        raise InputError(f"{file}: holds no boxes")
    order = {image: k for k, image in enumerate(images)}
    return sorted(result, key=lambda box: order[box.image])


def whole_picture(image: Path, size: tuple[int, int]) -> Box:
    """The box of a picture of `size`, height and width."""
    return Box(image, 0, 0, size[1], size[0])


class _Names:
    """The picture that a boxes file means: by its path as given, else by its bare name."""

    def __init__(self, images: Sequence[Path], file: Path) -> None:
        self._file = file
        self._paths = set(images)
        self._bare: dict[str, list[Path]] = {}
        for image in images:
            self._bare.setdefault(image.name, []).append(image)

    def __call__(self, name: str) -> Path:
        if Path(name) in self._paths:
            return Path(name)
        found = self._bare.get(name, [])
        if not found:
            raise InputError(
                f"{self._file}: image {name!r} is not among the pictures given; write the paths as "
                "they are on the command line, or bare file names"
            )
        if len(found) > 1:
            raise InputError(
                f"{self._file}: image {name!r} may be {found[0]} or {found[1]}; write the paths as "
                "they are given on the command line"
            )
        return found[0]


def _read_boxes(file: Path) -> dict[str, list[tuple[float, ...]]]:
    text = read_file(file).decode("utf-8", "replace")
    result: dict[str, list[tuple[float, ...]]] = {}
    try:
        if file.suffix.lower() == ".csv":
            for row in csv.DictReader(io.StringIO(text)):
                corners = tuple(float(row[k]) for k in ("left", "top", "right", "bottom"))
                result.setdefault(row["image"], []).append(corners)
        else:
            for name, rows in json.loads(text).items():
                result[str(name)] = [tuple(map(float, row)) for row in rows]
                if any(len(row) != 4 for row in result[str(name)]):
                    raise ValueError(f"a box of {name} has not four numbers")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: not readable as boxes ({' '.join(str(error).split())}); expected JSON "
            '{"image": [[left, top, right, bottom], ...]} or CSV with the header '
            "image,left,top,right,bottom"
        ) from error
    return result


def read_file(path: Path, first: int = -1) -> bytes:
    """The bytes of a file, or its first ones, or InputError."""
    check_regular(path)
    try:
        with path.open("rb") as stream:
            return stream.read(first)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
