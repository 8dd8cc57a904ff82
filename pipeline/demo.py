"""The demo subset: committed real motion as a CameraHMR label file, `demo-release.npz`.

Source: CMU motion capture 01_01 (`demo_motion.npz`, see NOTICE; mapped to SMPL rotations as in
docs/reference/default-body.md#motion). Keys: docs/reference/label-formats.md#camerahmr; the 44
keypoints: docs/reference/evaluation.md#keypoints-44, exact projections without noise.

Rows are real frames, the same mirrored, and poses sampled around them; `pose_source` says which.
The motion is cut into segments, each wholly in train, validation or test, with frames left out
between them, so that no row of one split has a neighbour in another. Every number is rounded (poses
to 1e-8 rad, pixels to 1e-4) before it is used further: libraries that differ in the last bit write
the same bytes. More rows may come from the takes of other actors (`pipeline/takes.py`): split by
actor, those of the test in a split of their own, `test-actors`.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.output_files import write_bytes
from pipeline.readers.npz import NpzFile
from pipeline.takes import takes as committed_takes
from skel_fit.anatomy import SMPL_MIRROR
from skel_fit.keypoints import SmplKeypoints

ROWS = 2400
SEED = 20240
SPLITS = ("train", "train", "validation", "train", "train", "test") * 2
"""Split of each segment, in the order of the motion."""
SEGMENT_FRAMES, GAP_FRAMES = 45, 12  # at 30 fps; 0.4 s between neighbours of different splits

GENDER_PAIRS = (
    ("male", "male", 0.3),
    ("female", "female", 0.3),
    ("neutral", "male", 0.2),
    ("neutral", "female", 0.2),
)
"""(gender of the label, gender of the SKEL wanted, share of the rows)."""

MOTION = Path(__file__).with_name("demo_motion.npz")
_IMAGE_SIZES = ((640, 480), (480, 640), (1280, 720), (1920, 1080), (720, 1280), (1024, 1024))
_NEAREST = 1.0  # metres from the camera to the first keypoint
_MARGIN = 0.04  # of the image, free of keypoints


@dataclass(frozen=True)
class _Ball:
    """How far a joint is moved at random (standard deviation, radians per axis) and may go.

    low, high: rotation vector of the left joint, radians; right joints are mirrored.
    """

    spread: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class _Hinge:
    """A joint that only turns about the axis it has; `axis` where it does not turn."""

    spread: float
    low: float
    high: float
    axis: tuple[float, float, float]


_SPINE = _Ball(0.04, (-0.3, -0.35, -0.3), (0.5, 0.35, 0.3))
_NECK = _Ball(0.06, (-0.5, -0.6, -0.4), (0.5, 0.6, 0.4))
# Ranges of motion of healthy adults in textbooks, seen from the SMPL rest pose (T pose).
_JOINTS: dict[int, _Ball | _Hinge] = {
    1: _Ball(0.12, (-2.0, -0.6, -0.4), (0.4, 0.6, 0.8)),
    3: _SPINE,
    4: _Hinge(0.15, 0.0, 2.3, (1.0, 0.0, 0.0)),
    6: _SPINE,
    7: _Ball(0.06, (-0.5, -0.3, -0.3), (0.7, 0.3, 0.3)),
    9: _SPINE,
    12: _NECK,
    13: _Ball(0.04, (-0.2, -0.3, -0.3), (0.2, 0.3, 0.4)),
    15: _NECK,
    16: _Ball(0.15, (-1.2, -1.8, -1.5), (1.2, 0.8, 1.2)),
    18: _Hinge(0.2, 0.0, 2.4, (0.0, -1.0, 0.0)),
    20: _Ball(0.08, (-0.7, -0.4, -1.0), (0.7, 0.4, 1.0)),
}
# (point, segment from, segment to, metres): a sampled pose keeps these apart as far, or as far as
# the real one does: hands and elbows from the trunk and the thighs, the legs from each other.
_CLEARANCE = (
    (20, 0, 12, 0.19), (21, 0, 12, 0.19), (18, 3, 12, 0.17), (19, 3, 12, 0.17),
    (20, 1, 4, 0.14), (21, 2, 5, 0.14), (20, 2, 5, 0.14), (21, 1, 4, 0.14),
    (20, 19, 21, 0.10), (21, 18, 20, 0.10), (20, 12, 15, 0.16), (21, 12, 15, 0.16),
    (4, 2, 5, 0.13), (5, 1, 4, 0.13), (7, 5, 8, 0.12), (8, 4, 7, 0.12),
)  # fmt: skip
_TRIES = 8


def write_demo(
    path: str | Path, models_dir: str | Path, *, rows: int = ROWS, seed: int = SEED, takes: int = 0
) -> Path:
    """Write the demo labels to `path`, uncompressed, atomically, the same bytes for the same
    models, rows, seed and takes.

    models_dir: SMPL_{NEUTRAL,MALE,FEMALE} and SMPL_to_J19.pkl, e.g. `default_body_directory()`.
    rows: at least 60. A third each real, mirrored and sampled; from 1,620 on all 540 frames are
    there once as they are and once mirrored, and the rest is sampled around them.
    takes: so many more rows, likewise, from the new takes of other actors; none or at least 60.
    Columns: those of CameraHMR (imgname, center, scale, pose_cam, shape, trans_cam, cam_int,
    gtkps), gender and skel_gender (body of the label, body wanted), pose_source (real, mirrored,
    sampled), segment, split, frame (of the motion, 30 fps), image_size (width, height). With takes
    also take, actor, activity; there `frame` counts at the take's rate and every take is a segment.

    Raises ModelFileError: a model file is missing or broken. OutputError: `path` cannot be written.
    """
    path = Path(path)
    write_bytes(path, npz_bytes(demo_columns(models_dir, rows=rows, seed=seed, takes=takes)))
    return path


def check_demo(path: str | Path, *, rows: int = ROWS, seed: int = SEED, takes: int = 0) -> None:
    """Refuse a label file that `write_demo` made with other rows, takes or another seed.

    Which frames are there, and as what, is the first that is drawn from the seed: it is drawn
    again, without models, and compared. The other columns are not looked at.

    Raises InputError: of other rows, takes or another seed, damaged, or no demo labels.
    """
    try:
        file = NpzFile(Path(path))
        found = {name: file.whole(name) for name in _DRAWN_FIRST if name in file.members}
    except InputError as error:
        raise InputError(f"{error}; or remove the file: it is made anew") from error
    chosen = [_choose_rows(rows, np.random.default_rng(seed))]
    if takes:
        chosen.append(_choose_take_rows(takes, _take_random(seed)))
    expected = _joined(chosen)
    complete = len(found) == len(_DRAWN_FIRST)
    if complete and all(np.array_equal(found[name], expected[name]) for name in _DRAWN_FIRST):
        return
    if not complete:
        reason = "no generated labels"
    elif (count := found["frame"].size) != rows + takes:
        reason = f"{count} rows"
    else:
        reason = "made from another seed, or by another version"
    more = f" and {takes} of other actors" if takes else ""
    raise InputError(
        f"{path}: {reason}; the manifest wants {rows} rows of seed {seed}{more}: remove the file "
        "and it is made anew, or give the manifest the file's rows and seed, or another source.path"
    )


_DRAWN_FIRST = ("frame", "pose_source")


def demo_columns(
    models_dir: str | Path, *, rows: int = ROWS, seed: int = SEED, takes: int = 0
) -> dict[str, np.ndarray]:
    """The columns of `write_demo` in memory, (rows + takes, ...) each."""
    for name, count, least in (("rows", rows, 60), ("takes", takes, 60 if takes else 0)):
        if count < least:
            raise InputError(f"demo: {count} {name} asked for, expected at least 60")
    bodies = {gender: SmplKeypoints.load(Path(models_dir), gender) for gender in _label_genders()}
    random = np.random.default_rng(seed)
    chosen = _choose_rows(rows, random)
    columns = _drawn(chosen, demo_motion()[chosen["frame"]], bodies, random)
    if takes:
        # a stream of its own: the rows of the demo motion are what they are without
        random = _take_random(seed)
        more = _choose_take_rows(takes, random)
        drawn = _drawn(more, _take_poses(more), bodies, random)
        columns = _joined([columns, drawn]) | {
            name: np.concatenate([np.full(rows, value), more[name]])
            for name, value in _DEMO_TAKE.items()
        }
    split = columns["split"]
    names = [f"demo/{split[i]}/{i:07d}.jpg" for i in range(rows + takes)]
    columns["imgname"] = np.array(names)
    return {name: columns[name] for name in (*_ORDER, *(_DEMO_TAKE if takes else ()))}


def _drawn(
    columns: dict[str, np.ndarray],
    base: np.ndarray,
    bodies: dict[str, SmplKeypoints],
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The chosen rows with all that is drawn for them, around their base poses (rows, 24, 3)."""
    columns = dict(columns)
    world = _poses(columns["pose_source"], base, bodies["neutral"], random)
    columns["shape"] = np.clip(random.normal(size=(len(base), 10)), -2.5, 2.5).round(6)
    _choose_genders(columns, random)
    columns["pose_cam"] = _to_camera(world, random)
    points = _keypoints(bodies, columns)
    _choose_cameras(columns, points, random)
    _project(columns, points, random)
    return columns


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of all parts, in order: the columns that the first has."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_ORDER = ("imgname", "center", "scale", "pose_cam", "shape", "trans_cam", "cam_int", "gtkps",
          "gender", "skel_gender", "pose_source", "segment", "split", "frame",
          "image_size")  # fmt: skip
_DEMO_TAKE = {"take": "01_01", "actor": "01", "activity": "jumps, turns"}


def npz_bytes(columns: dict[str, np.ndarray]) -> bytes:
    """An uncompressed npz file without time stamps: same arrays, same bytes, can be mapped."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, values in columns.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(values), version=(1, 0))
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


# ---- which rows ---------------------------------------------------------------------------------


def segments() -> list[tuple[int, int]]:
    """First and last + 1 frame of each segment of the motion."""
    step = SEGMENT_FRAMES + GAP_FRAMES
    return [(k * step, k * step + SEGMENT_FRAMES) for k in range(len(SPLITS))]


def _choose_rows(rows: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    frames = np.concatenate([np.arange(*bounds) for bounds in segments()])
    count = min(len(frames), rows // 3)
    kept = frames[np.linspace(0, len(frames) - 1, count).astype(int)]
    more = np.sort(random.choice(frames, rows - 2 * count))
    frame = np.concatenate([kept, kept, more])
    kinds = ("real",) * count + ("mirrored",) * count + ("sampled",) * len(more)
    order = np.argsort(frame, kind="stable")
    segment = frame[order] // (SEGMENT_FRAMES + GAP_FRAMES)
    return {
        "frame": frame[order].astype(np.int32),
        "pose_source": np.array(kinds)[order],
        "segment": segment.astype(np.int32),
        "split": np.array(SPLITS)[segment],
    }


TAKE_FPS = 30
"""Rows come from the takes at this rate: nearer frames hardly differ."""


def _take_random(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 1])


def _choose_take_rows(rows: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """As `_choose_rows`, from the new takes, with the take of each row."""
    known = [(number, take) for number, take in enumerate(committed_takes()) if take.new]
    each = [take.frames_at(TAKE_FPS) for _, take in known]
    number = np.repeat([number for number, _ in known], [len(frames) for frames in each])
    frames = np.concatenate(each)
    count = min(len(frames), rows // 3)
    kept = np.linspace(0, len(frames) - 1, count).astype(int)
    more = random.choice(len(frames), rows - 2 * count)
    kinds = np.array(("real",) * count + ("mirrored",) * count + ("sampled",) * len(more))
    chosen = np.concatenate([kept, kept, more])
    order = np.argsort(chosen, kind="stable")
    chosen, kinds = chosen[order], kinds[order]
    of = [committed_takes()[k] for k in number[chosen]]
    return {
        "frame": frames[chosen].astype(np.int32),
        "pose_source": kinds,
        "segment": (len(SPLITS) + number[chosen]).astype(np.int32),
        "split": np.array([TAKE_SPLITS[take.split] for take in of]),
        "take": np.array([take.name for take in of]),
        "actor": np.array([take.actor for take in of]),
        "activity": np.array([take.activity for take in of]),
    }


TAKE_SPLITS = {"train": "train", "test": "test-actors"}
"""Split of the rows of a take by the split of its actor: the demo's own test split stays apart."""


def _take_poses(columns: dict[str, np.ndarray]) -> np.ndarray:
    """(rows, 24, 3) rotation vectors of the frames chosen, y up."""
    known = {take.name: take.poses for take in committed_takes()}
    pairs = zip(columns["take"].tolist(), columns["frame"].tolist(), strict=True)
    return np.stack([known[name][frame] for name, frame in pairs]).reshape(-1, 24, 3).round(8)


def _label_genders() -> list[str]:
    return sorted({pair[0] for pair in GENDER_PAIRS})


def _choose_genders(columns: dict[str, np.ndarray], random: np.random.Generator) -> None:
    rows = len(columns["frame"])
    ends = np.rint(np.cumsum([pair[2] for pair in GENDER_PAIRS]) * rows).astype(int)
    pair = random.permutation(np.searchsorted(ends, np.arange(rows), side="right"))
    columns["gender"] = np.array([pair[0] for pair in GENDER_PAIRS])[pair]
    columns["skel_gender"] = np.array([pair[1] for pair in GENDER_PAIRS])[pair]


# ---- poses --------------------------------------------------------------------------------------


@cache
def demo_motion() -> np.ndarray:
    """(frames, 24, 3) float64 SMPL rotation vectors of the committed motion, y up."""
    with np.load(MOTION) as file:
        return file["poses"].astype(np.float64).reshape(-1, 24, 3)


def mirror_poses(poses: np.ndarray) -> np.ndarray:
    """(n, 24, 3) rotation vectors seen in a mirror: left and right swapped, x kept."""
    return poses[:, SMPL_MIRROR] * (1.0, -1.0, -1.0)


def _poses(
    source: np.ndarray, base: np.ndarray, body: SmplKeypoints, random: np.random.Generator
) -> np.ndarray:
    """(rows, 24, 3) rotation vectors, world frame (y up), around base poses of the same shape."""
    poses = base.copy()
    sampled = np.flatnonzero(source == "sampled")
    flipped = np.concatenate(
        [np.flatnonzero(source == "mirrored"), sampled[random.random(len(sampled)) < 0.5]]
    )
    poses[flipped] = mirror_poses(poses[flipped])
    poses[sampled] = _sample(poses[sampled], body, random)
    return poses


def _sample(base: np.ndarray, body: SmplKeypoints, random: np.random.Generator) -> np.ndarray:
    """Poses around `base` (n, 24, 3): inside the ranges of motion, limbs outside the body.

    What collides is drawn again with less spread; after the last try it stays as the base pose.
    """
    result, open_rows = base.copy(), np.arange(len(base))
    needed = np.minimum(_distances(body, base) - 0.005, [c[3] for c in _CLEARANCE])
    for attempt in range(_TRIES):
        if not open_rows.size:
            break
        noise = random.normal(size=(len(base), 24, 3)) * 0.8**attempt
        drawn = _perturb(base[open_rows], noise[open_rows])
        free = (_distances(body, drawn) >= needed[open_rows]).all(1)
        result[open_rows[free]] = drawn[free]
        open_rows = open_rows[~free]
    return result


def _perturb(base: np.ndarray, noise: np.ndarray) -> np.ndarray:
    drawn = base.copy()
    for left, rule in _JOINTS.items():
        for joint in sorted({left, SMPL_MIRROR[left]}):
            flip = np.array((1.0, -1.0, -1.0)) if joint != left else np.ones(3)
            start = base[:, joint] * flip
            if isinstance(rule, _Hinge):
                moved = _turn_hinge(start, noise[:, joint], rule)
            else:
                moved = _turn_ball(start, noise[:, joint], rule)
            drawn[:, joint] = moved * flip
    return drawn


def _turn_ball(start: np.ndarray, noise: np.ndarray, rule: _Ball) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    turned = (Rotation.from_rotvec(start) * Rotation.from_rotvec(noise * rule.spread)).as_rotvec()
    # A real pose beyond a limit is still a real pose: it widens its own range.
    return np.clip(turned, np.minimum(rule.low, start), np.maximum(rule.high, start))


def _turn_hinge(start: np.ndarray, noise: np.ndarray, rule: _Hinge) -> np.ndarray:
    angle = np.linalg.norm(start, axis=1, keepdims=True)
    axis = np.where(angle > 0.05, start / np.maximum(angle, 1e-9), rule.axis)
    # Bending backwards is a negative angle about the axis that bends forwards.
    sign = np.where((axis * rule.axis).sum(1, keepdims=True) < -0.2, -1.0, 1.0)
    axis, angle = axis * sign, angle * sign
    wanted = angle + noise[:, :1] * rule.spread
    return axis * np.clip(wanted, np.minimum(rule.low, angle), np.maximum(rule.high, angle))


def _distances(body: SmplKeypoints, poses: np.ndarray) -> np.ndarray:
    """(n, clearances) metres from point to segment, mean body."""
    joints = body.joints(poses, np.zeros((len(poses), 10)))
    result = []
    for point, start, end, _ in _CLEARANCE:
        along = joints[:, end] - joints[:, start]
        to = joints[:, point] - joints[:, start]
        share = ((to * along).sum(1) / (along * along).sum(1)).clip(0, 1)
        result.append(np.linalg.norm(to - share[:, None] * along, axis=1))
    return np.stack(result, axis=1)


def _to_camera(world: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(n, 72) poses in a camera that stands around the person and looks up or down a little."""
    from scipy.spatial.transform import Rotation

    n = len(world)
    yaw = random.uniform(-np.pi, np.pi, n)
    pitch = np.radians(random.normal(8, 10, n).clip(-15, 40))  # more cameras above than below
    roll = np.radians(random.normal(0, 3, n).clip(-9, 9))
    # Turn the person, then the camera; the half turn makes y point down and z away from it.
    turn = Rotation.from_euler("ZXY", np.stack([roll, np.pi + pitch, yaw], axis=1))
    root = (turn * Rotation.from_rotvec(world[:, 0])).as_rotvec()
    return np.concatenate([root, world[:, 1:].reshape(n, 69)], axis=1).round(8)


# ---- cameras ------------------------------------------------------------------------------------


def _choose_cameras(
    columns: dict[str, np.ndarray], points: np.ndarray, random: np.random.Generator
) -> None:
    """Image size, focal length, and a translation that puts all keypoints inside the image."""
    n = len(points)
    size = np.array(_IMAGE_SIZES)[random.integers(len(_IMAGE_SIZES), size=n)]
    focal = size[:, 1] / (2 * np.tan(np.radians(random.uniform(25, 100, n)) / 2))
    focal = focal.round(3)
    share = random.uniform(0.25, 0.85, n)  # of the image that the person fills
    place = random.uniform(0, 1, (n, 2))
    cam_int = np.zeros((n, 3, 3))
    cam_int[:, 0, 0] = cam_int[:, 1, 1] = focal
    cam_int[:, :2, 2] = size / 2
    cam_int[:, 2, 2] = 1
    columns["cam_int"], columns["image_size"] = cam_int, size.astype(np.int32)
    columns["trans_cam"] = np.stack(
        [_place(points[i], size[i], focal[i], share[i], place[i]) for i in range(n)]
    )


def _place(
    points: np.ndarray, size: np.ndarray, focal: float, share: float, place: np.ndarray
) -> np.ndarray:
    """Translation (3,) for keypoints (44, 3) around the origin, metres."""
    margin = _MARGIN * size
    extent = np.ptp(points[:, :2], axis=0)
    middle = (points.max(0) + points.min(0)) / 2
    depth = (focal * extent / (share * (size - 2 * margin))).max() - middle[2]
    depth = max(depth, _NEAREST - points[:, 2].min())
    while True:
        transl = np.array([-middle[0], -middle[1], depth])
        for _ in range(4):  # perspective couples x, y and depth a little
            pixels = focal * (points + transl)[:, :2] / (points + transl)[:, 2:] + size / 2
            low, high = pixels.min(0), pixels.max(0)
            room = size - 2 * margin - (high - low)
            wanted = margin + place * np.maximum(room, 0)
            transl[:2] += (wanted - low) * (depth + middle[2]) / focal
        transl = transl.round(6)
        pixels = focal * (points + transl)[:, :2] / (points + transl)[:, 2:] + size / 2
        if (pixels > margin / 2).all() and (pixels < size - margin / 2).all():
            return transl
        depth *= 1.1


def _project(
    columns: dict[str, np.ndarray], points: np.ndarray, random: np.random.Generator
) -> None:
    n = len(points)
    camera = points + columns["trans_cam"][:, None]
    focal = columns["cam_int"][:, 0, 0][:, None, None]
    pixels = (focal * camera[:, :, :2] / camera[:, :, 2:]).round(4)
    pixels += columns["image_size"][:, None] / 2
    confidence = random.uniform(0.3, 1, (n, 44)).round(3)
    confidence[random.random((n, 44)) < 0.1] = 0
    seen = confidence > 0
    low = np.where(seen[..., None], pixels, np.inf).min(1)
    high = np.where(seen[..., None], pixels, -np.inf).max(1)
    columns["gtkps"] = np.concatenate([pixels, confidence[..., None]], axis=2) * seen[..., None]
    columns["center"] = ((low + high) / 2).round(4)
    columns["scale"] = (1.2 * (high - low).max(1) / 200).round(6)


def _keypoints(bodies: dict[str, SmplKeypoints], columns: dict[str, np.ndarray]) -> np.ndarray:
    """(rows, 44, 3) metres, before translation, each row with its own body."""
    result = np.empty((len(columns["gender"]), 44, 3))
    poses = columns["pose_cam"].reshape(-1, 24, 3)
    for gender, body in bodies.items():
        chosen = np.flatnonzero(columns["gender"] == gender)
        result[chosen] = body.keypoints(poses[chosen], columns["shape"][chosen])
    return result
