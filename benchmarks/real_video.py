"""A real man before four calibrated cameras: agreement with landmarks triangulated from all four.

    python -m benchmarks.real_video DIR [--wheel FILE] [--part one|several|tracking|all]

The videos are Pose2Sim's demo (BSD-3-Clause), members of its wheel, which is downloaded by pip if
it is not given, checked by digest, unpacked below DIR and never installed. No frame of it belongs
into the repository or a document. What is measured is agreement with BlazePose's landmarks seen by
four cameras, not accuracy: nobody measured the man. How the reference is made and what each line
means: docs/photo.md#real-people.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import conditions, markdown_conditions, markdown_table
from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.keypoint_fit import Cameras, KeypointFitConfig, Problem
from skel_fit.model_files import load_skel
from skel_fit.pose_prior import pose_prior
from skel_fit.triangulation import projected
from stages.photo import videos
from stages.photo.camera_files import CalibratedCamera, read_camera_file
from stages.photo.fitting import POINTS, Fitter, Lens, Marks
from stages.photo.matching import Track, frame_by_frame, same_people
from stages.photo.people import Finder
from stages.photo.together import Axes, TogetherFitter, up_of
from stages.photo.views import LIMBS, Views, adjusted, arrays_of, in_order, wrong_sides
from stages.regressor.evaluation.metrics import aligned_point_error

VERSION = "0.10.49"
WHEEL = f"pose2sim-{VERSION}-py3-none-any.whl"
SHA256 = "403e0dc4065898ba6a595e72a8970950310979253d60e24c2e00b16b36bf21e1"
SINGLE, MULTI = "Pose2Sim/Demo_SinglePerson", "Pose2Sim/Demo_MultiPerson"
CALIBRATION = f"{SINGLE}/calibration/Calib.qca.txt"
SCORED = slice(0, None, 5)
"""Frames that single pictures are fitted in."""
_PLACE = {BLAZEPOSE_NAMES[k]: row for row, k in enumerate(LIMBS)}
ANGLES = {
    "knee": ("hip", "knee", "ankle"),
    "hip": ("shoulder", "hip", "knee"),
    "elbow": ("shoulder", "elbow", "wrist"),
}
"""Angles between three joints: no anatomical angles, but the same of every set of joints."""


def unpacked(folder: Path, wheel: Path | None) -> Path:
    """The two demos below a folder. Raises SystemExit: it is another wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    if wheel is None:
        wheel = folder / WHEEL
        if not wheel.is_file():
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--no-deps", f"pose2sim=={VERSION}",
                 "--dest", str(folder)], check=True,
            )  # fmt: skip
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{wheel}: SHA-256 {found}, expected {SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        for demo in (SINGLE, MULTI):
            for camera in range(1, 5):
                archive.extract(f"{demo}/videos/cam0{camera}.mp4", folder)
        archive.extract(CALIBRATION, folder)
    return folder


@dataclass(frozen=True)
class Seen:
    """The man in four videos. watched: by the one-camera path; views: undistorted, as seen; sides:
    (n, 4) exchanged views by all four; truth: (n, 12, 3) metres, in the world of `cameras`."""

    watched: list[videos.Watched]
    rates: list[float]
    views: Views
    sides: np.ndarray
    cameras: tuple[CalibratedCamera, ...]
    truth: np.ndarray
    pixels: dict[str, np.ndarray]


def watched(folder: Path, demo: str, finder: Finder) -> tuple[list[videos.Watched], list[float]]:
    found, rates = [], []
    for camera in range(1, 5):
        file = folder / demo / "videos" / f"cam0{camera}.mp4"
        with videos.check_video(file) as reader:
            parts = videos.Parts(folder / "watched" / Path(demo).name / str(camera),
                                 videos.video_key(file))  # fmt: skip
            found.append(videos.watch(reader, finder, parts, lambda n, s: None))
            rates.append(videos.rate_of(found[-1], reader, []))
    return found, rates


def seen_man(folder: Path, finder: Finder) -> Seen:
    found, rates = watched(folder, SINGLE, finder)
    given = read_camera_file(folder / CALIBRATION)
    frames = len(found[0].times)
    marks, seen = [], np.zeros((frames, 4), bool)
    for v, (camera, video) in enumerate(zip(given, found, strict=True)):
        number = max(video.people, key=lambda n: len(video.people[n]["frame"]))
        own = video.people[number]
        rows = own["frame"].astype(int)
        seen[rows, v] = True
        spread = [
            np.zeros((frames, *own[name].shape[1:])) for name in ("pixels", "visibility", "world")
        ]
        for whole, name in zip(spread, ("pixels", "visibility", "world"), strict=True):
            whole[rows] = own[name]
        marks.append(Marks(camera.undistorted(spread[0]), spread[1], spread[2], video.size))
    views = Views(given, tuple(marks), seen)
    sides = wrong_sides(views)
    ordered = views.exchanged(sides)
    cameras, _ = adjusted([ordered])
    better = replace(ordered, cameras=cameras)
    pixels = {}
    for name, some in (("given", ordered), ("adjusted", better)):
        met = some.joints()
        pixels[name] = np.stack([met.distances, met.distances / np.repeat(some.sizes, 12, 0)])
    truth = better.joints().points.reshape(frames, 12, 3)
    return Seen(found, rates, views, sides, cameras, truth, pixels)


def angle(joints: np.ndarray, names: tuple[str, str, str], side: str) -> np.ndarray:
    """(n,) degrees between three of the joints (n, 12, 3)."""
    a, b, c = (joints[:, _PLACE[f"{side} {name}"]] for name in names)
    one, other = a - b, c - b
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def scores(joints: np.ndarray, truth: np.ndarray) -> list[str]:
    """PA mean, median, hip-centred mm; median and 90 % of each angle's error."""
    pa = aligned_point_error(torch.as_tensor(joints), torch.as_tensor(truth)).numpy()
    hips = [_PLACE["left hip"], _PLACE["right hip"]]
    centred = [x - x[:, hips].mean(1, keepdims=True) for x in (joints, truth)]
    away = 1000.0 * np.linalg.norm(centred[0] - centred[1], axis=-1).mean(-1)
    cells = [str(len(joints)), f"{pa.mean():.1f}", f"{np.median(pa):.1f}", f"{away.mean():.0f}"]
    for names in ANGLES.values():
        error = np.concatenate(
            [np.abs(angle(joints, names, s) - angle(truth, names, s)) for s in ("left", "right")]
        )
        cells.append(f"{np.median(error):.1f} / {np.percentile(error, 90):.0f}")
    return cells


def world_of(camera: CalibratedCamera, joints: np.ndarray) -> np.ndarray:
    """Joints of a camera's frame in the world."""
    return (joints - camera.shift) @ camera.turn


def body_points(
    fitter: Fitter, poses: np.ndarray, betas: np.ndarray, trans: np.ndarray
) -> np.ndarray:
    """(n, 12, 3) the joints of bodies (n, 46), (n, 10), (n, 3)."""
    n = len(poses)
    nothing = np.ones((n, len(POINTS), 2)), np.ones((n, len(POINTS)))
    lens = Cameras.assumed(100, 100)
    problem = Problem.of(
        fitter.skel, POINTS, *nothing, lens, None, None, fitter.prior, KeypointFitConfig()
    )
    away = np.array([0.0, 0.0, 10.0])  # points behind the camera are not looked at
    at = np.concatenate([poses, trans + away, np.broadcast_to(betas, (n, 10))], 1)
    return problem.search(at, 0).points[:, LIMBS] - away

    return KeypointFitConfig()


HEADS = ["one camera", "rows", "PA mean mm", "median", "hip-centred", *(f"{a} deg" for a in ANGLES)]


def one_camera(man: Seen, skel_model) -> tuple[list[list[str]], list[list[str]]]:
    """Single pictures, and the `video` path, camera by camera; exchanged frames of each."""
    table = []
    rows = np.arange(len(man.truth))[SCORED]
    for prior in ("motion", "wide"):
        fitter = Fitter(skel_model, pose_prior(prior))
        for focal in ("true", "assumed"):
            found: list[np.ndarray] = []
            landmarks: list[np.ndarray] = []
            wanted: list[np.ndarray] = []
            for v, camera in enumerate(man.cameras):
                kept = rows[man.views.seen[rows, v] & ~man.sides[rows, v]]
                marks = man.views.marks[v].rows(kept)
                lens = Lens.of(marks.size, None)
                if focal == "true":
                    lens = Lens(camera.cam_int, "calibrated")
                fit = fitter.fit(marks, lens, uncertainty=False)
                found.append(world_of(camera, fit.points[:, LIMBS]))
                landmarks.append(world_of(camera, marks.world[:, LIMBS]))
                wanted.append(man.truth[kept])
            truth = np.concatenate(wanted)
            if prior == "motion" and focal == "true":
                table.append(["landmarks' own 3D", *scores(np.concatenate(landmarks), truth)])
            table.append(
                [f"pictures, {prior}, {focal} focal", *scores(np.concatenate(found), truth)]
            )
    fitter = Fitter(skel_model)
    for focal in ("true", "assumed"):
        found, wanted, lines = [], [], []
        for v, camera in enumerate(man.cameras):
            watched_here = man.watched[v]
            lens = Lens.of(watched_here.size, None)
            if focal == "true":
                lens = Lens(camera.cam_int, "calibrated")
            people = videos.fit_people(watched_here, fitter, lens, man.rates[v], lambda n, s: None)
            person = max(people, key=lambda p: sum(len(m.poses) for _, m in p.segments))
            for first, motion in person.segments:
                own = np.arange(first, first + len(motion.poses))
                joints = body_points(fitter, motion.poses, person.betas, motion.trans)
                unswapped = ~man.sides[own, v] & motion.believed
                found.append(world_of(camera, joints)[unswapped])
                wanted.append(man.truth[own][unswapped])
                wrong = man.sides[own, v]
                said = np.array([
                    status != videos.FITTED or "doubtful" in reason
                    for status, reason in videos.statuses(motion, round(0.5 * man.rates[v]))
                ])  # fmt: skip
                lines.append([
                    f"camera {v + 1}", str(int(wrong.sum())),
                    str(int((wrong & motion.swapped).sum())),
                    str(int((wrong & ~motion.swapped & said).sum())),
                    str(int((~wrong & motion.swapped).sum())),
                ])  # fmt: skip
        table.append(
            [f"video, wide, {focal} focal", *scores(np.concatenate(found), np.concatenate(wanted))]
        )
    return table, lines


EXCHANGED = ["video", "frames exchanged", "repaired", "flagged", "exchanged by mistake"]
TRACKED = [
    "two people", "frames", "frames of each number", "frames of each person, all views",
    "numbers of two people",
]  # fmt: skip
SEVERAL = ["several cameras", *HEADS[1:], "absolute mm", "px", "% of his size", "s of CPU"]


def several_cameras(man: Seen, skel_model) -> list[list[str]]:
    """One body in all four views. Exchanged sides are left in: the fit finds them."""
    table = []
    for name, cameras in (("as given", man.views.cameras), ("adjusted", man.cameras)):
        for prior, chosen in (
            ("motion", (0, 1, 2, 3)), ("wide", (0, 1, 2, 3)), ("wide", (0, 2)), ("wide", (1, 3)),
        ):  # fmt: skip
            fitter = Fitter(skel_model, pose_prior(prior))
            used = tuple(cameras[view] for view in chosen)
            marks = tuple(man.views.marks[view] for view in chosen)
            views = Views(used, marks, man.views.seen[:, list(chosen)])
            began = time.process_time()
            ordered = in_order(views)
            together = TogetherFitter(fitter, Axes(up_of([ordered.views]), False))
            shared = together.fit(ordered, man.rates[0], together.shape(ordered.views))
            spent = time.process_time() - began
            motion = shared.motion
            joints = body_points(fitter, motion.poses, motion.betas, motion.trans)
            joints = joints @ shared.axes.turn
            inner, outer = arrays_of(used)
            found, _ = projected(joints.reshape(-1, 3), inner, outer)
            seen = shared.views.pixels[:, :, LIMBS].swapaxes(1, 2).reshape(found.shape)
            off = np.linalg.norm(found - seen, axis=-1).reshape(len(joints), len(LIMBS), -1)
            off = np.where(shared.views.seen[:, None], off, np.nan)
            away = 1000.0 * np.linalg.norm(joints - man.truth, axis=-1).mean()
            share = 100 * np.nanmedian(off / shared.views.sizes[:, None])
            table.append([
                f"{name}, {prior}" + _only(chosen), *scores(joints, man.truth), f"{away:.0f}",
                f"{np.nanmedian(off):.1f}", f"{share:.2f}", f"{spent:.1f}",
            ])  # fmt: skip
    return table


def _only(chosen: tuple[int, ...]) -> str:
    return "" if len(chosen) == 4 else f", cameras {chosen[0] + 1} and {chosen[1] + 1} only"


def tracking(folder: Path, finder: Finder) -> list[list[str]]:
    """Two people before the same cameras: who is followed, and who is who."""
    found, _ = watched(folder, MULTI, finder)
    cameras = read_camera_file(folder / CALIBRATION)
    tracks = [
        Track(view, number, own["frame"].astype(int), camera.undistorted(own["pixels"]))
        for view, (camera, video) in enumerate(zip(cameras, found, strict=True))
        for number, own in sorted(video.people.items())
    ]
    people = same_people(tracks, cameras)
    frames = len(found[0].times)
    owned = frame_by_frame(people, cameras, frames)
    ordered = [track for person in people for track in person]
    table = []
    for view, video in enumerate(found):
        counts = [len(own["frame"]) for _, own in sorted(video.people.items())]
        own = [str(int((each[:, view] >= 0).sum())) for each in owned]
        over = sum(
            len({p for p, each in enumerate(owned) if (each[:, view] == k).any()}) > 1
            for k, track in enumerate(ordered) if track.view == view
        )  # fmt: skip
        table.append([
            f"camera {view + 1}", str(len(video.times)), ", ".join(map(str, counts)),
            ", ".join(own), str(over),
        ])  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--part", choices=("one", "several", "tracking", "all"), default="all")
    given = parser.parse_args()
    folder = unpacked(given.folder, given.wheel)
    print(markdown_conditions(conditions()))
    began = time.process_time()
    man = seen_man(folder, Finder())
    skel = load_skel(default_body_directory(), "male")
    print(f"{time.process_time() - began:.0f} s of CPU for following the man in four videos\n")
    lines = [
        [name, f"{np.nanmedian(px):.1f}", f"{np.nanpercentile(px, 90):.1f}",
         f"{100 * np.nanmedian(share):.2f}"]
        for name, (px, share) in man.pixels.items()
    ]  # fmt: skip
    print(markdown_table(["cameras", "median px", "90 %", "% of his size"], lines))
    if given.part in ("one", "all"):
        table, exchanged = one_camera(man, skel)
        print("\n" + markdown_table(HEADS, table))
        print("\n" + markdown_table(EXCHANGED, exchanged))
    if given.part in ("several", "all"):
        print("\n" + markdown_table(SEVERAL, several_cameras(man, skel)))
    if given.part in ("tracking", "all"):
        print("\n" + markdown_table(TRACKED, tracking(folder, Finder())))


if __name__ == "__main__":
    main()
