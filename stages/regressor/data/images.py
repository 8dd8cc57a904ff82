"""Pictures of the rows, from folders or tar files.

Names come from label files and are untrusted: none leaves its root. Tar files are indexed once and
read at the member's offset, without unpacking; links inside a tar are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from pipeline.errors import InputError
from pipeline.paths import Root, stays_inside
from stages.regressor.data.tar_index import TarIndex

_REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8}  # fmt: skip
_JPEG = b"\xff\xd8"
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 65536
# Pictures larger than this (pixels) are refused, PNG and JPEG before anything decodes them: a
# hundred kilobytes may say that they are a picture of gigabytes.
_MAX_SIDE, _MOST_PIXELS = 30_000, 1 << 28


class ImageSource(Protocol):
    """Bytes of pictures by name."""

    place: str

    def has(self, names: Sequence[str]) -> np.ndarray:
        """(n,) bool: which pictures exist; without reading them."""
        ...

    def read(self, name: str, first: int | None = None) -> bytes:
        """The encoded picture, or its first bytes; `InputError` when it is missing."""
        ...


class FolderImages:
    """Pictures below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._inside = Root(root)
        self.place = str(root)

    def has(self, names: Sequence[str]) -> np.ndarray:
        folders: dict[str, set[str]] = {}
        found = np.zeros(len(names), bool)
        for k, name in enumerate(names):
            if not stays_inside(name):
                continue
            parent, _, base = name.rpartition("/")
            if parent not in folders:
                folders[parent] = self._list(parent)
            found[k] = base in folders[parent]
        return found

    def _list(self, folder: str) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self.root / folder)}
        except OSError:
            return set()

    def read(self, name: str, first: int | None = None) -> bytes:
        path = self.root / name
        if not self._inside.holds(name):
            raise InputError(f"{self.place}: image name {name!r} leads out of the folder")
        try:
            with path.open("rb") as stream:
                return stream.read(-1 if first is None else first)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


class TarImages:
    """Pictures inside uncompressed tar files; the first file that has a name wins."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.place = str(paths[0]) if len(paths) == 1 else f"{len(paths)} tar files"
        self._paths = tuple(paths)
        self._streams: dict[tuple[int, int], int] = {}
        self.index = TarIndex.of(paths)

    def has(self, names: Sequence[str]) -> np.ndarray:
        return np.array([self.index.find(name) is not None for name in names], bool)

    def read(self, name: str, first: int | None = None) -> bytes:
        found = self.index.find(name)
        if found is None:
            raise InputError(f"{self.place}: no member {name!r}")
        number, offset, size = found
        size = size if first is None else min(size, first)
        data = os.pread(self._descriptor(number), size, offset)
        if len(data) != size:
            raise InputError(f"{self._paths[number]}: cut short in member {name!r}")
        return data

    def _descriptor(self, number: int) -> int:
        """One descriptor per file and process; pread needs no position, so forks may share it."""
        key = (os.getpid(), number)
        if key not in self._streams:
            self._streams[key] = os.open(self._paths[number], os.O_RDONLY)
        return self._streams[key]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_streams": {}}


class FolderAndTars:
    """A folder that has tar files beside pictures: a picture of the folder wins."""

    def __init__(self, folder: FolderImages, tars: TarImages) -> None:
        self._folder, self._tars = folder, tars
        self.place = f"{folder.place} and {tars.place} in it"

    def has(self, names: Sequence[str]) -> np.ndarray:
        return self._folder.has(names) | self._tars.has(names)

    def read(self, name: str, first: int | None = None) -> bytes:
        packed = self._tars.has([name])[0] and not (self._folder.root / name).is_file()
        return (self._tars if packed else self._folder).read(name, first)


def open_images(root: Path) -> ImageSource:
    """A folder of pictures, of tar files or of both, or one tar file.

    Raises:
        InputError: neither.
    """
    if root.is_file():
        return TarImages([root])
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder or tar file; give the pictures' place with --images"
        )
    folder, tars = FolderImages(root), sorted(root.glob("*.tar"))
    if not tars:
        return folder
    packed = TarImages(tars)
    only_tars = all(entry.name.endswith(".tar") for entry in os.scandir(root))
    return packed if only_tars else FolderAndTars(folder, packed)


def picture_size(images: ImageSource, name: str) -> tuple[int, int]:
    """Width and height of the stored pixels; only the head of a PNG or JPEG file is read.

    Raises:
        InputError: missing, or not a picture.
    """
    for first in (_HEAD, None):
        if size := _size_in_head(images.read(name, first)):
            return size
    height, width = decode(images.read(name), name).shape[:2]
    return width, height


def _size_in_head(data: bytes) -> tuple[int, int] | None:
    """From a PNG's first chunk or a JPEG's frame header; None: not there, or another format."""
    if data[:8] == _PNG and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    at = 2
    while data[:2] == _JPEG and at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if kind in _JPEG_FRAMES:
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        at += 2 + length
    return None


def _check_size(width: int, height: int, name: str) -> None:
    if max(width, height) > _MAX_SIDE or width * height > _MOST_PIXELS:
        raise InputError(
            f"image {name}: {width} x {height} pixels, expected sides up to {_MAX_SIDE:,} and "
            f"{_MOST_PIXELS >> 20} megapixels; make it smaller or leave it out"
        )


def decode(data: bytes, name: str, reduce: int = 1, *, turned: bool = False) -> np.ndarray:
    """An encoded picture as (H, W, 3) uint8 RGB, `reduce` (1, 2, 4, 8) times smaller.

    Pixel (i, j) of the result covers `reduce` x `reduce` pixels of the picture. turned: upright, as
    its EXIF orientation says; labels' coordinates are those of the stored pixels
    (docs/reference/checkpoints.md#exif).

    Raises:
        InputError: not a picture that OpenCV reads.
    """
    if size := _size_in_head(data):
        _check_size(*size, name)
    flag = _REDUCED[reduce] if data[:2] == _JPEG else cv2.IMREAD_COLOR
    try:
        flag |= 0 if turned else cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        picture = None
    if picture is None:
        raise InputError(f"image {name}: damaged or not a picture; repair it or leave it out")
    _check_size(picture.shape[1], picture.shape[0], name)
    if reduce > 1 and data[:2] != _JPEG:
        size = tuple(-(-side // reduce) for side in picture.shape[1::-1])
        padded = cv2.copyMakeBorder(
            picture, 0, size[1] * reduce - picture.shape[0],
            0, size[0] * reduce - picture.shape[1], cv2.BORDER_REPLICATE,
        )  # fmt: skip
        picture = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
    return picture[..., ::-1]
