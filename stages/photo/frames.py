"""Frames of video files, read and written one after the other."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from pipeline.errors import InputError, OutputError
from pipeline.paths import check_regular
from stages.terminal import unheard

_RATE = 30.0
CODECS = {"vp8": "VP80", "vp9": "VP90"}
_WAITING = 4
"""Frames that wait to be encoded."""
_MOST_PIXELS = 8192 * 8192
# Read by OpenCV with the first video: what FFmpeg remarks of damaged frames is no line of ours.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself. frames: 0 where it does not say; rate: frames a second."""

    size: tuple[int, int]  # height, width
    frames: int
    rate: float
    rate_known: bool


class VideoReader:
    """A video file, upright as its rotation says.

    Raises:
        InputError: absent, or nothing that OpenCV reads as a video.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        if not path.is_file():
            raise InputError(f"{path}: no such video")
        if not _nameable(path):
            raise InputError(f"{path}: its name is not UTF-8; rename it")
        self.path = path
        with unheard():
            self._stream = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
            ok, first = self._stream.read() if self._stream.isOpened() else (False, None)
        if not ok or first is None:
            raise InputError(
                f"{path}: not a video that can be read here (damaged, or no codec for it); "
                "convert it, e.g. ffmpeg -i FILE -c:v libvpx-vp9 FILE.webm"
            )
        if first.shape[0] * first.shape[1] > _MOST_PIXELS:
            raise InputError(f"{path}: frames of {first.shape[1]} x {first.shape[0]} are too large")
        count = int(max(self._stream.get(cv2.CAP_PROP_FRAME_COUNT), 0))
        rate = float(self._stream.get(cv2.CAP_PROP_FPS))
        known = bool(np.isfinite(rate) and 0.5 <= rate <= 1000)
        self.info = VideoInfo(
            (first.shape[0], first.shape[1]), count, rate if known else _RATE, known
        )
        self._first: np.ndarray | None = first

    def frames(self, start: int = 0) -> Iterator[tuple[int, float, np.ndarray]]:
        """(number, seconds, (H, W, 3) uint8 RGB) of the frames from `start` on. Once a reader."""
        number, last = 0, -1.0
        while True:
            if self._first is not None:
                frame, self._first = self._first, None
            else:
                if number < start:
                    if not self._stream.grab():
                        return
                    number += 1
                    continue
                ok, frame = self._stream.read()
                if not ok:
                    return
            if number >= start:
                seconds = self._stream.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
                if not seconds > last:  # no time stamps: by the rate
                    seconds = number / self.info.rate
                last = seconds
                if frame.shape[:2] != self.info.size:
                    frame = cv2.resize(frame, self.info.size[::-1])
                yield number, seconds, np.ascontiguousarray(frame[..., ::-1])
            number += 1

    def close(self) -> None:
        self._stream.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _nameable(path: Path) -> bool:
    """OpenCV crashes on names that are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


class FilmWriter:
    """A film (.webm) under a temporary name until `finish`; a thread of its own encodes.

    codec: of `CODECS`. OpenCV passes encoders no settings, and VP9 then takes six times VP8's time.

    Raises:
        OutputError: OpenCV has no encoder here, or the folder cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int], codec: str) -> None:
        if not _nameable(path):
            raise OutputError(f"{path}: its name is not UTF-8; choose another --out")
        self.path = path
        self._temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        with unheard():  # the tag in WebM is remarked upon, and is right
            self._writer = cv2.VideoWriter(
                str(self._temporary), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODECS[codec]), rate,
                size[::-1],
            )  # fmt: skip
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        if not self._writer.isOpened():
            raise OutputError(
                f"{path}: OpenCV cannot write {codec} films here; --save without film"
            )

    def write(self, picture: np.ndarray) -> None:
        """One frame (H, W, 3) uint8 RGB."""
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        frame = np.ascontiguousarray(picture[..., ::-1])
        self._waiting.append(self._thread.submit(self._encode, frame))

    def _encode(self, frame: np.ndarray) -> None:
        self._writer.write(frame)

    def finish(self) -> None:
        self._thread.shutdown()
        self._writer.release()
        self._temporary.replace(self.path)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._thread.shutdown(cancel_futures=True)
        self._writer.release()
        self._temporary.unlink(missing_ok=True)
