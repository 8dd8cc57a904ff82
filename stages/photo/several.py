"""Several synchronous videos in, bodies of the same people out: the work of `hmr-skel video` with
`--calibration`. Every video is followed as one alone, in parts that a rerun goes on with; people
are brought together; one body is fitted to all views of each.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.errors import InputError, UsageError
from pipeline.output_files import write_bytes
from skel_fit.camera_adjustment import Adjusted
from skel_fit.opensim.subject import body_frames
from skel_fit.skel import SKEL
from stages.photo import videos
from stages.photo.camera_files import (
    CalibratedCamera,
    cameras_of,
    check_size,
    read_camera_file,
)
from stages.photo.fitting import Fitter, Lens, Marks
from stages.photo.frames import VideoReader
from stages.photo.matching import Track, disagreement, frame_by_frame, same_people
from stages.photo.people import Finder
from stages.photo.results import csv_of
from stages.photo.together import (
    MOST_COST,
    Axes,
    Shared,
    TogetherFitter,
    seen_by_camera,
    up_of,
)
from stages.photo.views import LIMBS, Ordered, Views, adjusted, in_order

FOLDER = "cameras"
_SAME_RATE = 0.01
ONE_CAMERA = "seen by one camera only"
UNITS = (
    "poses, betas, trans: metres and radians (degrees in CSV), y up: the calibration's world "
    "turned by axes_from_world; joints_world, limb_joints_triangulated_world, cam_ext: the "
    "calibration's world, metres; landmarks: pixels without distortion, and visibility"
)
Told = Callable[[int, str], None]


@dataclass(frozen=True)
class Recording:
    """Videos of the same moments, in the order given, and their cameras. matched: how these were
    found."""

    files: tuple[Path, ...]
    cameras: tuple[CalibratedCamera, ...]
    matched: str
    frames: int
    rate: float

    @staticmethod
    def of(files: Sequence[Path], calibration: Path) -> Recording:
        """Checked. Raises InputError, UsageError: not videos of the same moments by these
        cameras."""
        if len({file.resolve() for file in files}) < len(files):
            raise UsageError("the same video is given twice")
        cameras, matched = cameras_of(read_camera_file(calibration), files, calibration)
        infos = []
        for file, camera in zip(files, cameras, strict=True):
            with videos.check_video(file) as reader:
                check_size(camera, reader.info.size, file, calibration)
                infos.append(reader.info)
        first = infos[0]
        for file, info in zip(files, infos, strict=True):
            if abs(info.rate / first.rate - 1.0) > _SAME_RATE or info.frames != first.frames:
                raise InputError(
                    f"{file}: {info.frames} frames at {info.rate:g} a second, but {files[0]} has "
                    f"{first.frames} at {first.rate:g}; cut the videos to the same moments"
                )
        return Recording(tuple(files), tuple(cameras), matched, first.frames, first.rate)


@dataclass(frozen=True)
class Together:
    """A person of a recording. segments: (first frame, motion); reason: why it is nobody, "" else;
    views: numbers of the cameras that follow the person."""

    number: int
    betas: np.ndarray
    segments: tuple[tuple[int, Shared], ...]
    stature: float
    views: tuple[int, ...]
    reason: str = ""

    def person(self) -> videos.Person:
        """In the body's world, y up."""
        segments = tuple((first, shared.motion) for first, shared in self.segments)
        return videos.Person(self.number, self.betas, segments, self.stature, self.reason)

    def seen_by(self, skel: SKEL, view: int) -> videos.Person:
        """In the frame of one camera."""
        segments = tuple(
            (first, seen_by_camera(skel, shared, view)) for first, shared in self.segments
        )
        return videos.Person(self.number, self.betas, segments, self.stature, self.reason)


def watch(
    recording: Recording, finder: Finder, out: Path, told: Told
) -> tuple[list[videos.Watched], np.ndarray, float, list[str]]:
    """Everybody in every video, from where the last run ended; times (n,) of the frames that all
    have, frames a second, remarks."""
    found: list[videos.Watched] = []
    notes: list[str] = []
    for number, file in enumerate(recording.files, 1):
        parts = videos.Parts(out / FOLDER / str(number), videos.video_key(file))
        with videos.check_video(file) as reader:
            found.append(videos.watch(reader, finder, parts, told))
            if number == 1:
                rate = videos.rate_of(found[0], reader, notes)
    for file, each in zip(recording.files, found, strict=True):
        if each.ended_early:
            notes.append(f"{file}: {each.ended_early}")
    shortest = min(len(each.times) for each in found)
    if any(len(each.times) != shortest for each in found):
        counts = ", ".join(str(len(each.times)) for each in found)
        notes.append(f"the videos have {counts} frames; the first {shortest} are used")
    return found, found[0].times[:shortest], rate, notes


def people_of(
    recording: Recording, watched: Sequence[videos.Watched], frames: int, calibration: Path,
    notes: list[str],
) -> list[list[Track]]:  # fmt: skip
    """Tracks that are one person each; a remark on a camera that shows none of them.

    Raises InputError: the cameras do not agree with the videos.
    """
    tracks = []
    for view, (camera, each) in enumerate(zip(recording.cameras, watched, strict=True)):
        for number, columns in sorted(each.people.items()):
            own = columns["frame"].astype(int)
            kept = own < frames
            if kept.any():
                pixels = camera.undistorted(columns["pixels"][kept])
                tracks.append(Track(view, number, own[kept], pixels))
    people = same_people(tracks, recording.cameras)
    problem = disagreement(tracks, people, recording.cameras)
    if problem:
        raise InputError(f"{calibration}: {problem}")
    matched = {
        track.view for person in people if len({t.view for t in person}) > 1 for track in person
    }
    for view in sorted({track.view for track in tracks} - matched):
        if matched:
            notes.append(
                f"camera {view + 1} ({recording.cameras[view].name}): nobody whom it shows is "
                "where the other cameras see people; check its calibration"
            )
    return people


def views_of(
    own: np.ndarray, tracks: Sequence[Track], recording: Recording,
    watched: Sequence[videos.Watched],
) -> Views:  # fmt: skip
    """A person in all views, all frames of the recording. own: (n, V) as of `frame_by_frame`."""
    frames, count = own.shape
    marks = []
    for view in range(count):
        pixels, visibility = np.zeros((frames, 33, 2)), np.zeros((frames, 33))
        world = np.zeros((frames, 33, 3))
        for k in (k for k in np.unique(own[:, view]) if k >= 0):
            track = tracks[k]
            rows = np.flatnonzero(own[track.frames, view] == k)
            places, columns = track.frames[rows], watched[view].people[track.number]
            pixels[places] = track.pixels[rows]
            visibility[places], world[places] = columns["visibility"][rows], columns["world"][rows]
        marks.append(Marks(pixels, visibility, world, watched[view].size))
    return Views(recording.cameras, tuple(marks), own >= 0)


@dataclass(frozen=True)
class Fitted:
    """people; cameras: that were used, adjusted or as given; axes; adjustment: None, not asked
    for; off: px, median and 90 % of the joints' distances to where they were seen."""

    people: list[Together]
    cameras: tuple[CalibratedCamera, ...]
    axes: Axes
    adjustment: Adjusted | None
    off: tuple[float, float]


def fit_people(
    people: Sequence[Sequence[Track]], recording: Recording, watched: Sequence[videos.Watched],
    frames: int, rate: float, fitter: Fitter, up: str | None, refine: bool, told: Told,
) -> Fitted:  # fmt: skip
    """Bodies of everybody whom two cameras follow for some time. up: of `together.UPS`, None: as
    people stand.

    Raises InputError: cameras to be refined of which nobody shows enough.
    """
    least = videos.least_frames(rate, frames)
    long = [p for p in people if len(np.unique(np.concatenate([t.frames for t in p]))) >= least]
    tracks = [track for person in long for track in person]
    owned = frame_by_frame(long, recording.cameras, frames) if long else []
    owned = [own for own in owned if (own >= 0).any(1).sum() >= least]
    seen = [views_of(own, tracks, recording, watched) for own in owned]
    ordered = [in_order(views) for views in seen]
    several = [each.views for each in ordered if each.frames_of_two >= least]
    cameras, adjustment = recording.cameras, None
    axes, off = Axes(up or "z", up is not None), (float("nan"), float("nan"))
    if several:
        if refine:
            try:
                cameras, adjustment = adjusted(several)
            except ValueError as error:
                raise InputError(f"--refine-cameras: {error}") from error
        several = [replace(views, cameras=cameras) for views in several]
        if up is None:
            axes = Axes(up_of(several), False)
        away = np.concatenate([views.joints().distances.ravel() for views in several])
        off = float(np.nanmedian(away)), float(np.nanpercentile(away, 90))
    together = TogetherFitter(fitter, axes)
    found: list[Together] = []
    for own, each in zip(owned, ordered, strict=True):
        numbers = tuple(int(view) + 1 for view in np.flatnonzero((own >= 0).any(0)))
        if each.frames_of_two < least:
            nobody = np.zeros(10), (), float("nan")
            found.append(Together(len(found), *nobody, numbers, ONE_CAMERA))
            continue
        placed = replace(each, views=replace(each.views, cameras=cameras))
        found.append(_fitted(len(found), placed, numbers, together, fitter, rate, told))
    return Fitted(found, cameras, axes, adjustment, off)


def _fitted(
    number: int, ordered: Ordered, cameras: tuple[int, ...], together: TogetherFitter,
    fitter: Fitter, rate: float, told: Told,
) -> Together:  # fmt: skip
    betas = together.shape(ordered.views)
    rows = np.flatnonzero(ordered.views.some)
    segments = []
    for part in videos.segments_of(rows, round(videos.GAP * rate)):
        first, last = int(rows[part.start]), int(rows[part.stop - 1])
        shared = together.fit(
            ordered.rows(slice(first, last + 1)), rate, betas,
            lambda n: told(n, f"person {number}"),
        )  # fmt: skip
        segments.append((first, shared))
    cost = float(np.nanmedian(np.concatenate([each.motion.cost for _, each in segments])))
    reason = "" if cost <= MOST_COST else (
        f"no body fits: median cost {cost:.1f} a landmark, expected {MOST_COST:g} or less"
    )  # fmt: skip
    stature = float(fitter.stature(betas[None])[0])
    return Together(number, betas, tuple(segments), stature, cameras, reason)


class Straight(VideoReader):
    """A video without its camera's distortion."""

    def __init__(self, path: Path, camera: CalibratedCamera) -> None:
        super().__init__(path)
        self._maps = None
        if camera.distortion.any():
            # OpenCV counts from pixel centres, our coordinates from pixel corners.
            inner = camera.cam_int - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
            self._maps = cv2.initUndistortRectifyMap(
                inner, camera.distortion, np.eye(3), inner, self.info.size[::-1], cv2.CV_16SC2
            )

    def frames(self, start: int = 0) -> Iterator[tuple[int, float, np.ndarray]]:
        for number, seconds, picture in super().frames(start):
            if self._maps is not None:
                picture = cv2.remap(picture, *self._maps, interpolation=cv2.INTER_LINEAR)
            yield number, seconds, picture


def film_names(count: int) -> list[str]:
    return [f"film-{view + 1}.webm" for view in range(count)]


def write_film(
    recording: Recording, fitted: Fitted, view: int, path: Path, fitter: Fitter, rate: float,
    side: int, codec: str, told: Told,
) -> None:  # fmt: skip
    """The film of one camera: everybody over its frames, without its distortion."""
    camera = fitted.cameras[view]
    people = [person.seen_by(fitter.skel, view) for person in fitted.people if not person.reason]
    with Straight(recording.files[view], camera) as reader:
        videos.write_film(
            reader, path, people, fitter, Lens(camera.cam_int, "calibrated"),
            rate, side, codec, told,
        )  # fmt: skip


def told_of_cameras(recording: Recording, fitted: Fitted) -> dict[str, Any]:
    """What the record says of cameras and axes."""
    adjustment = fitted.adjustment
    cameras = []
    for view, (file, given) in enumerate(zip(recording.files, recording.cameras, strict=True)):
        used = fitted.cameras[view]
        told: dict[str, Any] = {
            "number": view + 1, "video": file.name, "camera": given.name,
            "size": [given.size[1], given.size[0]], "cam_int": used.cam_int.round(4).tolist(),
            "distortion": given.distortion.tolist(), "turn": used.turn.round(8).tolist(),
            "shift_m": used.shift.round(6).tolist(),
        }  # fmt: skip
        if adjustment is not None:
            told["turned_deg"] = round(float(np.degrees(adjustment.turned[view])), 3)
            told["moved_m"] = round(float(adjustment.moved[view]), 4)
        cameras.append(told)
    finite = bool(np.isfinite(fitted.off[0]))
    return {
        "cameras": cameras,
        "matched": recording.matched,
        "joints_off_px": {"median": round(fitted.off[0], 2), "p90": round(fitted.off[1], 2)}
        if finite else None,
        "adjusted": None if adjustment is None else {
            "before_px": round(float(np.nanmedian(adjustment.before.distances)), 2),
            "after_px": round(float(np.nanmedian(adjustment.after.distances)), 2),
        },
        "axes": {
            "up_in_calibration": fitted.axes.up, "stated": fitted.axes.stated,
            "axes_from_world": fitted.axes.turn.tolist(),
        },
    }  # fmt: skip


def told_of(person: Together, counts: dict[str, int]) -> dict[str, Any]:
    """What the record says of a person."""
    shared = [each for _, each in person.segments]
    return {
        "person": person.number,
        "reason": person.reason,
        "cameras": list(person.views),
        "stature_m": round(person.stature, 4) if shared else None,
        "betas": person.betas.round(5).tolist() if shared else None,
        "frames": counts,
        "exchanged_views": sum(int(each.sides.sum()) for each in shared),
        "left_out_views": sum(int(each.astray.sum()) for each in shared),
    }


def write_person(
    out: Path, person: Together, names: str, fitter: Fitter, times: np.ndarray, rate: float,
    save: frozenset[str],
) -> dict[str, int]:  # fmt: skip
    """`person-N.npz` (frames with a body), `person-N.csv` (all frames); how often each status.
    names: of the videos."""
    lens = Lens(np.full((3, 3), np.nan), "calibrated")
    gap = round(videos.GAP * rate)
    pairs = list(videos.rows_of(person.person(), names, lens, gap))
    frames = np.array([frame for frame, _ in pairs], int)
    rows = [row for _, row in pairs]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    if not rows:
        return counts
    shared = [each for _, each in person.segments]
    seen = np.concatenate([each.views.seen for each in shared])
    sides = np.concatenate([each.sides for each in shared])
    astray = np.concatenate([each.astray for each in shared])
    if "csv" in save:
        extra: dict[str, Sequence[Any]] = {
            "frame": frames.tolist(),
            "seconds": [f"{times[frame]:.4f}" for frame in frames],
            "views": seen.sum(1).tolist(),
            "exchanged_views": [_numbers(row) for row in sides],
            "left_out_views": [_numbers(row) for row in astray],
        }
        write_bytes(out / f"person-{person.number}.csv", csv_of(rows, extra))
    kept = np.flatnonzero([np.isfinite(row["poses"]).all() for row in rows])
    if "npz" in save and len(kept):
        columns: dict[str, Any] = {
            name: np.array([rows[k][name] for k in kept])
            for name in ("status", "reason", "poses", "poses_sd", "observed", "betas", "trans",
                         "cost")
        }  # fmt: skip
        pixels = np.concatenate([each.views.pixels for each in shared])
        visibility = np.concatenate(
            [np.stack([m.visibility for m in each.views.marks], 1) for each in shared]
        )
        met = np.concatenate([
            each.views.joints().points.reshape(-1, len(LIMBS), 3) for each in shared
        ])  # fmt: skip
        axes, cameras = shared[0].axes, shared[0].views.cameras
        columns |= {
            "frame": frames[kept], "seconds": times[frames[kept]], "rate": np.array(rate),
            "landmarks": np.concatenate([pixels, visibility[..., None]], -1)[kept],
            "seen": seen[kept], "exchanged": sides[kept], "left_out": astray[kept],
            "joints_world": joints_of(fitter.skel, columns) @ axes.turn,
            "limb_joints_triangulated_world": met[kept],
            "cam_int": np.stack([c.cam_int for c in cameras]),
            "distortion": np.stack([_five(c.distortion) for c in cameras]),
            "cam_ext": np.stack([np.column_stack([c.turn, c.shift]) for c in cameras]),
            "axes_from_world": axes.turn,
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **columns)
        write_bytes(out / f"person-{person.number}.npz", buffer.getvalue())
    return counts


def _numbers(row: np.ndarray) -> str:
    return " ".join(str(view + 1) for view in np.flatnonzero(row))


def _five(distortion: np.ndarray) -> np.ndarray:
    return np.concatenate([distortion, np.zeros(5 - len(distortion))])


def joints_of(skel: SKEL, columns: dict[str, np.ndarray]) -> np.ndarray:
    """(n, 24, 3) joints of poses, betas, trans."""
    kind = skel.template.dtype
    poses, betas, trans = (
        torch.as_tensor(columns[name], dtype=kind) for name in ("poses", "betas", "trans")
    )
    return body_frames(skel, poses, betas, trans)[0]
