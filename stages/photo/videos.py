"""A video in, moving SKEL bodies out: the work of `hmr-skel video`.

Three passes over the file: people are followed, a part of the frames at a time, and every part is
kept, so that a rerun goes on where the last one ended; everybody is fitted from these parts; the
film is drawn. Pictures are never kept; a frame of a person costs some kilobytes of numbers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.errors import InputError, PlanMismatch
from pipeline.output_files import canonical_json, read_json, write_bytes, write_json
from pipeline.provenance import file_record
from skel_fit.joint_limits import limits
from skel_fit.strict_npz import DAMAGE, Kind, read_strict
from stages.drawing.overlays import pose_bodies
from stages.photo.fitting import MOST_COST, Fitter, Lens, Marks, shown_bones
from stages.photo.frames import FilmWriter, VideoReader
from stages.photo.motion import Motion, fit_motion, shape_of
from stages.photo.networks import DIGESTS
from stages.photo.people import Finder
from stages.photo.pictures import Painter, draw_landmarks
from stages.photo.results import FITTED, REFUSED, Row, csv_of
from stages.photo.tracking import State, Tracker

FOLDER, RECORD = "landmarks", "video.json"
FILM, FRAMES = "film.webm", "frames.csv"
INTERPOLATED, NOBODY = "interpolated", "no person"
VERSION = 3
"""Of the way people are followed: parts of another version are not gone on with."""
_PART = 128  # frames
GAP = 0.5
"""Seconds without landmarks, or a believed body, that are interpolated; longer ones divide."""
_LEAST_SECONDS, _LEAST_FRAMES = 0.4, 5
_DRAWN = 16
_RATE_SLACK = 0.05
ON_LIMIT = 1e-6
Told = Callable[[int, str], None]


@dataclass(frozen=True)
class Person:
    """Everything of one person. frames: numbers of the frames; segments: motions that follow each
    other, each with the place of its first frame among the frames of the video; reason: why it is
    nobody, "" else."""

    number: int
    betas: np.ndarray
    segments: tuple[tuple[int, Motion], ...]
    stature: float
    reason: str = ""


@dataclass
class Watched:
    """What following people left. times: (n,) seconds of the frames; people: number → frames,
    pixels, visibility, world, flag, score, as columns."""

    times: np.ndarray
    people: dict[int, dict[str, np.ndarray]]
    ended_early: str = ""
    size: tuple[int, int] = (0, 0)


class Parts:
    """The kept parts of a video in a folder."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder / FOLDER, key

    def open(self) -> None:
        """Make the folder, or make sure that it is of the same video."""
        record = self._folder / RECORD
        if record.is_file():
            if read_json(record).get("key") != self._key:
                raise PlanMismatch(
                    f"{self._folder}: landmarks of another video, or of another version; choose "
                    "another --out or remove the folder"
                )
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(record, {"key": self._key, "version": VERSION})

    def done(self) -> list[Path]:
        """The parts that are there, without a gap."""
        found: list[Path] = []
        while (path := self._path(len(found))).is_file():
            found.append(path)
        return found

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.npz"

    def read(self, number: int) -> dict[str, np.ndarray]:
        path = self._path(number)
        try:
            return read_strict(path, _COLUMNS, _LARGEST)
        except DAMAGE as error:
            raise InputError(
                f"{path}: damaged ({' '.join(str(error).split())}); remove {path.parent} and run "
                "again"
            ) from error

    def write(self, number: int, columns: dict[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        named: dict[str, Any] = dict(columns)
        np.savez(buffer, **named)
        write_bytes(self._path(number), buffer.getvalue())


_LARGEST = 1 << 30
_COLUMNS: dict[str, Kind] = {
    "first": ("int64", ()), "last": ("bool", ()), "times": ("float64", (None,)),
    "state": ("float64", (None, 8)), "frame": ("float64", (None,)),
    "number": ("float64", (None,)), "pixels": ("float64", (None, 33, 2)),
    "visibility": ("float64", (None, 33)), "world": ("float64", (None, 33, 3)),
    "flag": ("float64", (None,)), "score": ("float64", (None,)),
}  # fmt: skip
_PEOPLE = ("frame", "number", "pixels", "visibility", "world", "flag", "score")


def video_key(path: Path) -> str:
    """What the landmarks of a video depend on, as a digest."""
    content = {"sha256": file_record(path).sha256, "networks": dict(DIGESTS), "version": VERSION}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def watch(reader: VideoReader, finder: Finder, parts: Parts, told: Told) -> Watched:
    """Follow everybody through the video, from where the last run ended."""
    parts.open()
    known = len(parts.done())
    state, start, ended = State(), 0, False
    if known:
        last = parts.read(known - 1)
        state = State.unpacked(last["state"])
        start = int(last["first"]) + len(last["times"])
        ended = bool(last["last"])
    told(start, "")
    if not ended:
        _watch_on(reader, Tracker(finder), parts, known, start, state, told)
    return _joined(parts, reader)


def _watch_on(
    reader: VideoReader, tracker: Tracker, parts: Parts, known: int, start: int, state: State,
    told: Told,
) -> None:  # fmt: skip
    times: list[float] = []
    rows: list[dict[str, Any]] = []
    first, number = start, known

    def keep(last: bool) -> None:
        nothing = {
            "frame": (0,), "number": (0,), "pixels": (0, 33, 2), "visibility": (0, 33),
            "world": (0, 33, 3), "flag": (0,), "score": (0,),
        }  # fmt: skip
        columns = {
            name: np.array([row[name] for row in rows], np.float64) if rows else np.zeros(shape)
            for name, shape in nothing.items()
        }
        parts.write(number, {
            "first": np.array(first), "times": np.array(times, np.float64), "last": np.array(last),
            "state": state.packed(), **columns,
        })  # fmt: skip

    for frame, seconds, picture in reader.frames(start):
        found, state = tracker.step(picture, state)
        times.append(seconds)
        for each in found:
            marks = each.sighting.landmarks
            rows.append({
                "frame": frame, "number": each.number, "pixels": marks.pixels,
                "visibility": marks.visibility, "world": marks.world, "flag": marks.flag,
                "score": each.sighting.score,
            })  # fmt: skip
        told(1, f"{len(found)} people")
        if len(times) == _PART:
            keep(False)
            first, number, times, rows = first + _PART, number + 1, [], []
    keep(True)


def _joined(parts: Parts, reader: VideoReader) -> Watched:
    times: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _PEOPLE}
    for number in range(len(parts.done())):
        part = parts.read(number)
        times.append(part["times"])
        for name, values in columns.items():
            values.append(part[name])
    whole = {name: np.concatenate(values) for name, values in columns.items()}
    numbers = whole.pop("number").astype(int)
    people = {
        int(n): {name: values[numbers == n] for name, values in whole.items()}
        for n in np.unique(numbers)
    }
    joined = np.concatenate(times)
    promised, early = reader.info.frames, ""
    if promised and len(joined) < 0.98 * promised - 2:
        early = f"the file promises {promised} frames and breaks off after {len(joined)}"
    return Watched(joined, people, early, reader.info.size)


def rate_of(watched: Watched, reader: VideoReader, notes: list[str]) -> float:
    """Frames a second, as the file says, or by its time stamps; a varying rate is noted."""
    steps = np.diff(watched.times)
    steps = steps[steps > 0]
    if not len(steps):
        return reader.info.rate
    middle = float(np.median(steps))
    if np.percentile(steps, 95) > 1.5 * middle:
        notes.append("the frame rate varies: smoothing takes frames as equally far apart")
    stated = reader.info.rate
    near = reader.info.rate_known and abs(middle * stated - 1.0) < _RATE_SLACK
    return stated if near else 1.0 / middle  # time stamps may be whole milliseconds


def fit_people(
    watched: Watched, fitter: Fitter, lens: Lens, rate: float, told: Told
) -> list[Person]:
    """Bodies of everybody who is followed for some time."""
    people: list[Person] = []
    for _, columns in sorted(watched.people.items()):
        frames = columns["frame"].astype(int)
        least = least_frames(rate, len(watched.times))
        marks = Marks(columns["pixels"], columns["visibility"], columns["world"], watched.size)
        if len(frames) < least:
            continue
        betas = shape_of(fitter, marks, lens)
        segments = []
        for part in segments_of(frames, round(GAP * rate)):
            first, last = int(frames[part.start]), int(frames[part.stop - 1])
            places = frames[part] - first
            count = last - first + 1
            pixels, visibility, world = (
                _spread(values[part], places, count)
                for values in (marks.pixels, marks.visibility, marks.world)
            )
            spread = Marks(pixels, visibility, world, marks.size)
            seen = np.zeros(last - first + 1, bool)
            seen[places] = True
            segments.append(
                (first, fit_motion(fitter, spread, seen, lens, rate, betas,
                                   lambda n: told(n, f"person {len(people)}")))
            )  # fmt: skip
        cost = float(np.nanmedian(np.concatenate([m.cost for _, m in segments])))
        reason = (
            ""
            if cost <= MOST_COST
            else (
                f"no body fits: median cost {cost:.1f} a landmark, expected {MOST_COST:g} or less"
            )
        )
        stature = float(fitter.stature(betas[None])[0])
        people.append(Person(len(people), betas, tuple(segments), stature, reason))
    return people


def least_frames(rate: float, frames: int) -> int:
    """How many frames of a video somebody must be in; shorter appearances are nobody's."""
    return max(_LEAST_FRAMES, min(round(_LEAST_SECONDS * rate), frames // 2))


def segments_of(frames: np.ndarray, gap: int) -> list[slice]:
    """Runs of frames with gaps no longer than `gap`."""
    cuts = np.flatnonzero(np.diff(frames) > gap + 1) + 1
    ends = [0, *cuts.tolist(), len(frames)]
    return [slice(a, b) for a, b in pairwise(ends)]


def _spread(values: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros((count, *values.shape[1:]))
    out[places] = values
    return out


def statuses(motion: Motion, gap: int) -> list[tuple[str, str]]:
    """Status and reason of every frame of a motion."""
    n = len(motion.poses)
    good = np.flatnonzero(motion.believed)
    found = []
    for t in range(n):
        if motion.believed[t]:
            reason = "left and right exchanged, put right" if motion.swapped[t] else ""
            if motion.turns[t] > 1.0:
                reason = f"{reason}; " * bool(reason) + (
                    f"turns by {np.degrees(motion.turns[t]):.0f} degrees in a frame: doubtful"
                )
            found.append((FITTED, reason))
            continue
        k = int(np.searchsorted(good, t))
        inside = 0 < k < len(good) and good[k] - good[k - 1] <= gap + 1
        why = "no landmarks" if not motion.seen[t] else "its own body is not believed"
        found.append((INTERPOLATED, why) if inside else (REFUSED, why))
    return found


def rows_of(person: Person, name: str, lens: Lens, gap: int) -> Iterator[tuple[int, Row]]:
    """(frame, row) of every frame of a person."""
    low, high = limits("default").T
    for first, motion in person.segments:
        for t, (status, reason) in enumerate(statuses(motion, gap)):
            good = status in (FITTED, INTERPOLATED) and not person.reason
            nothing = np.full(46, np.nan)
            poses = motion.poses[t] if good else nothing
            yield (
                first + t,
                {
                    "image": name,
                    "person": person.number,
                    "status": status if not person.reason else REFUSED,
                    "reason": person.reason or reason,
                    "score": np.nan,
                    "flag": np.nan,
                    "cost": motion.cost[t],
                    "cam_int": lens.cam_int,
                    "poses": poses,
                    "poses_sd": motion.sd[t] if good else nothing,
                    "observed": motion.observed[t],
                    "on_limit": (poses <= low + ON_LIMIT) | (poses >= high - ON_LIMIT),
                    "betas": person.betas if good else np.full(10, np.nan),
                    "trans": motion.trans[t] if good else np.full(3, np.nan),
                    "stature": person.stature,
                    "landmarks": np.column_stack(
                        [motion.marks.pixels[t], motion.marks.visibility[t]]
                    ),
                },
            )


@dataclass
class Result:
    """What a video came to. notes: remarks for the user; film: whether one was drawn."""

    people: list[Person] = field(default_factory=list)
    frames: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rate: float = 0.0


def write_film(
    reader: VideoReader, path: Path, people: Sequence[Person], fitter: Fitter, lens: Lens,
    rate: float, side: int, codec: str, told: Told,
) -> None:  # fmt: skip
    """Draw everybody over the frames, as a film whose longer side has at most `side` pixels."""
    painter, gap = Painter(fitter.skel), round(GAP * rate)
    shown = {
        (person.number, first): (motion, statuses(motion, gap), shown_bones(motion.marks))
        for person in people if not person.reason
        for first, motion in person.segments
    }  # fmt: skip
    height, width = reader.info.size
    factor = min(side / max(height, width), 1.0)
    size = max(round(height * factor / 2) * 2, 2), max(round(width * factor / 2) * 2, 2)
    film = FilmWriter(path, rate, size, codec)
    try:
        block: list[tuple[int, np.ndarray]] = []
        for number, _, picture in reader.frames():
            block.append((number, picture))
            if len(block) == _DRAWN:
                _draw(block, people, shown, painter, fitter, lens, film, size)
                told(len(block), "")
                block = []
        _draw(block, people, shown, painter, fitter, lens, film, size)
        told(len(block), "")
        film.finish()
    except BaseException:
        film.abandon()
        raise


def _draw(
    block: list[tuple[int, np.ndarray]], people: Sequence[Person], shown: Any, painter: Painter,
    fitter: Fitter, lens: Lens, film: FilmWriter, size: tuple[int, int],
) -> None:  # fmt: skip
    wanted = []  # (place in the block, person, motion, t)
    for place, (number, _) in enumerate(block):
        for (who, first), (motion, status, bones) in shown.items():
            t = number - first
            if 0 <= t < len(status) and status[t][0] != REFUSED:
                wanted.append((place, who, motion, t, bones))
    kind = fitter.skel.template.dtype
    bodies = []
    if wanted:
        betas = {person.number: person.betas for person in people}
        bodies = pose_bodies(
            fitter.skel,
            torch.as_tensor(np.stack([m.poses[t] for _, _, m, t, _ in wanted]), dtype=kind),
            torch.as_tensor(np.stack([betas[who] for _, who, _, _, _ in wanted]), dtype=kind),
            torch.as_tensor(np.stack([m.trans[t] for _, _, m, t, _ in wanted]), dtype=kind),
        )
    for place, (_, picture) in enumerate(block):
        scale = np.array([size[1] / picture.shape[1], size[0] / picture.shape[0]])
        if picture.shape[:2] != size:
            picture = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
        cam_int = np.diag([*scale, 1.0]) @ lens.cam_int
        mine = [k for k, item in enumerate(wanted) if item[0] == place]
        for k in sorted(mine, key=lambda k: -float(wanted[k][2].trans[wanted[k][3], 2])):
            _, _, _, t, bones = wanted[k]
            picture = painter.body(picture, bodies[k], cam_int, bones[t])
        for k in mine:
            _, _, motion, t, _ = wanted[k]
            if motion.seen[t]:
                counted = motion.marks.rows(slice(t, t + 1)).weights[0] > 0
                picture = draw_landmarks(picture, motion.marks.pixels[t] * scale, counted)
        film.write(picture)


def write_person(
    out: Path, person: Person, name: str, lens: Lens, times: np.ndarray, rate: float,
    save: frozenset[str],
) -> dict[str, int]:  # fmt: skip
    """`person-N.npz` (frames with a body), `person-N.csv` (all frames); how often each status."""
    pairs = list(rows_of(person, name, lens, round(GAP * rate)))
    frames, rows = [frame for frame, _ in pairs], [row for _, row in pairs]
    if "csv" in save:
        extra: dict[str, Sequence[Any]] = {
            "frame": frames,
            "seconds": [f"{times[frame]:.4f}" for frame in frames],
        }
        write_bytes(out / f"person-{person.number}.csv", csv_of(rows, extra))
    kept = [k for k, row in enumerate(rows) if np.isfinite(row["poses"]).all()]
    if "npz" in save and kept:
        buffer = io.BytesIO()
        columns: dict[str, Any] = {
            column: np.array([rows[k][column] for k in kept])
            for column in ("status", "reason", "poses", "poses_sd", "observed", "betas", "trans",
                           "landmarks", "cost")
        }  # fmt: skip
        columns |= {
            "frame": np.array(frames)[kept], "seconds": times[np.array(frames)[kept]],
            "rate": np.array(rate), "cam_int": lens.cam_int,
            "swapped": np.concatenate([m.swapped for _, m in person.segments])[kept],
        }  # fmt: skip
        np.savez_compressed(buffer, **columns)
        write_bytes(out / f"person-{person.number}.npz", buffer.getvalue())
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return counts


def frames_csv(people: Sequence[Person], times: np.ndarray, rate: float) -> bytes:
    """A line a frame: time, status, numbers of the people with a body there."""
    bodies: list[list[int]] = [[] for _ in times]
    doubts: list[bool] = [False for _ in times]
    for person in people:
        for first, motion in person.segments:
            for t, (status, _) in enumerate(statuses(motion, round(GAP * rate))):
                if status == REFUSED or person.reason:
                    doubts[first + t] = True
                else:
                    bodies[first + t].append(person.number)
    lines = ["frame,seconds,status,people"]
    for frame, seconds in enumerate(times):
        status = FITTED if bodies[frame] else REFUSED if doubts[frame] else NOBODY
        lines.append(f"{frame},{seconds:.4f},{status},{' '.join(map(str, bodies[frame]))}")
    return ("\n".join(lines) + "\n").encode()


def check_video(path: Path) -> VideoReader:
    """Open a video. Raises InputError."""
    reader = VideoReader(path)
    if min(reader.info.size) < 16:
        raise InputError(f"{path}: frames of {reader.info.size[1]} x {reader.info.size[0]} pixels")
    return reader
