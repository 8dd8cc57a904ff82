"""SKEL bodies of the people in pictures, as npz, JSON, CSV, overlays, views and meshes.

Pictures are read, predicted and drawn a few at a time; only the numbers of the people are kept.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import InputError
from pipeline.flat_table import ANGLES
from pipeline.manifest import models_directory
from pipeline.output_files import write_bytes, write_json
from skel_fit import anatomy
from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import NAMES
from skel_fit.model_files import load_skel
from skel_fit.skel import SKEL
from stages.drawing.meshes import Part, glb_bytes
from stages.drawing.overlays import PREDICTED as LIMB_COLOR
from stages.drawing.overlays import SKIN, Posed, draw_body, draw_limbs, pose_bodies
from stages.drawing.pictures import meshes_picture, side_by_side
from stages.drawing.render import BONE_COLOR, Mesh, png_bytes
from stages.regressor.data.boxes import Box, find_boxes, read_file, whole_picture
from stages.regressor.data.images import decode
from stages.regressor.evaluation.trained import Person, TrainedNetwork
from stages.regressor.network import camera

_SKIN_ALPHA = 0.45
_BONE_COLOR = (*BONE_COLOR, 1.0)
_TOGETHER = 16  # pictures in memory
_VIEW_SIZE = 256
VIEWS = {"front": (0.0, False), "side": (90.0, False), "top": (0.0, True)}
"""View -> turn about the vertical, degrees; seen from above."""
KINDS = ("npz", "json", "csv", "overlay", "views", "glb")
NUMBERS = ("predictions.npz", "predictions.json", "predictions.csv", "skipped.txt")
PICTURES = ("*.overlay.png", "*.views.png", "*.glb")
"""What is written into the folder of a prediction: names, and patterns of names."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

Results = dict[str, Any]
"""One row a person: image, box, cam_int, poses, betas, trans, keypoints_3d, keypoints_2d."""


@dataclass(frozen=True)
class Wish:
    """What to make of pictures.

    out: folder; save: of `KINDS`; views: of `VIEWS`; focal: pixels, for all pictures, None: what
    the network makes of each; boxes: file; find: boxes of the people in a picture, where there is
    no file; turned: upright, as their EXIF orientation says.
    """

    out: Path
    save: frozenset[str]
    views: tuple[str, ...] = ("front", "side")
    focal: float | None = None
    boxes: Path | None = None
    find: Callable[[Path, np.ndarray], list[Box]] | None = None
    turned: bool = True


@dataclass
class Outcome:
    """What became of the pictures.

    results: of all people; skipped: pictures that cannot be read -> why; empty: without boxes.
    """

    results: Results = field(default_factory=dict)
    skipped: dict[Path, str] = field(default_factory=dict)
    empty: list[Path] = field(default_factory=list)

    @property
    def people(self) -> int:
        return len(self.results["image"]) if self.results else 0


def find_pictures(given: Sequence[Path]) -> list[Path]:
    """Files as they are, the pictures right in a folder by name, the files of a pattern (`**` goes
    deeper); each once.

    Raises:
        InputError: a folder or pattern without a picture, a file that is not there.
    """
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            inside = [p for p in sorted(path.iterdir()) if _is_picture(p)]
        elif not path.exists() and any(mark in str(path) for mark in "*?["):
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(root)) if path.is_absolute() else str(path)
            try:
                inside = [p for p in sorted(root.glob(pattern)) if _is_picture(p)]
            except ValueError as error:
                raise InputError(f"{path}: no pattern of files ({error})") from None
        else:
            read_file(path, 1)
            inside = [path]
        if not inside:
            raise InputError(
                f"{path}: no picture there; expected files that end in {', '.join(SUFFIXES)}"
            )
        found |= dict.fromkeys(inside)
    return list(found)


def _is_picture(path: Path) -> bool:
    own = path.name.endswith((".overlay.png", ".views.png", ".attention.png", ".layers.png"))
    return path.suffix.lower() in SUFFIXES and not own and path.is_file()


def predict_pictures(
    trained: TrainedNetwork, skel: SKEL, body: KeypointBody, images: Sequence[Path], wish: Wish,
    prepare: Callable[[], None], progress: Callable[[int, str], None],
) -> Outcome:  # fmt: skip
    """Predict and draw everybody in the pictures, a few pictures at a time.

    prepare: called before the first file is written; progress: with pictures done and a note.

    Raises:
        InputError: boxes that cannot be, a value that is not finite, no picture that can be read.
    """
    outcome = Outcome()
    given = _given_boxes(images, wish, outcome)
    parts: list[Results] = []
    named = stems(images)
    for chunk in _chunks(images):
        pictures, people = {}, []
        for image in chunk:
            if image in outcome.skipped:
                continue
            try:
                data = read_file(image)
                picture = decode(data, str(image), turned=wish.turned)
            except InputError as error:
                outcome.skipped[image] = str(error)
                continue
            boxes = _found(image, picture, wish) if given is None else given.get(image, [])
            if not boxes:
                outcome.empty.append(image)
            pictures[image] = (data, picture)
            people += boxes
        for some in _possible(trained, body, pictures, people, wish, outcome):
            parts.append(some)
            prepare()
            _write_pictures(skel, pictures, some, named, wish)
        progress(len(chunk), f"{sum(len(part['image']) for part in parts)} people")
    if not parts:
        raise InputError(next(iter(outcome.skipped.values())))
    outcome.results = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return outcome


def _found(image: Path, picture: np.ndarray, wish: Wish) -> list[Box]:
    """Boxes of a picture that no file names; the whole of it where nobody is found."""
    people = wish.find(image, picture) if wish.find is not None else []
    return people or [whole_picture(image, (picture.shape[0], picture.shape[1]))]


def _possible(
    trained: TrainedNetwork, body: KeypointBody, pictures: Mapping[Path, tuple[bytes, np.ndarray]],
    people: Sequence[Box], wish: Wish, outcome: Outcome,
) -> Iterator[Results]:  # fmt: skip
    """Predictions of some pictures; where they fail together, of each that does not by itself."""
    if not pictures:
        return
    try:
        yield predict_people(trained, body, pictures, people, wish)
        return
    except InputError as error:
        if len(pictures) == 1:
            outcome.skipped[next(iter(pictures))] = str(error)
            return
    for image, found in pictures.items():
        own = [box for box in people if box.image == image]
        yield from _possible(trained, body, {image: found}, own, wish, outcome)


def _chunks(images: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(images), _TOGETHER):
        yield images[start : start + _TOGETHER]


def _given_boxes(
    images: Sequence[Path], wish: Wish, outcome: Outcome
) -> dict[Path, list[Box]] | None:
    """Boxes of each picture from the file, all checked before anything is written."""
    if wish.boxes is None:
        return None
    sizes = {}
    for image in images:
        try:
            picture = decode(read_file(image), str(image), turned=wish.turned)
            sizes[image] = (picture.shape[0], picture.shape[1])
        except InputError as error:
            outcome.skipped[image] = str(error)
    boxes = find_boxes(images, sizes, wish.boxes)
    return {k: list(group) for k, group in itertools.groupby(boxes, key=lambda box: box.image)}


def load_body(trained: TrainedNetwork, models: Path | None) -> tuple[Path, SKEL]:
    """The models folder and the SKEL that the network was trained on."""
    kind = "default-body" if trained.standin else "licensed"
    folder = models_directory(kind, models)
    skel = load_skel(folder, trained.gender)
    if skel.standin != trained.standin:
        raise InputError(
            f"{folder}: the checkpoint was trained on "
            f"{'the stand-in body' if trained.standin else 'the licensed SKEL'}, this is the "
            "other one; its betas would mean another shape"
        )
    return folder, skel


def predict_people(
    trained: TrainedNetwork,
    body: KeypointBody,
    pictures: Mapping[Path, tuple[bytes, np.ndarray]],
    boxes: Sequence[Box],
    wish: Wish,
) -> Results:
    """Predict everybody. pictures: encoded, and decoded as `wish.turned` says.

    Raises:
        InputError: a value that is not finite.
    """
    if not boxes:
        shapes = {"box": (4,), "cam_int": (3, 3), "poses": (46,), "betas": (10,), "trans": (3,),
                  "keypoints_3d": (44, 3), "keypoints_2d": (44, 2)}  # fmt: skip
        empty = {name: np.zeros((0, *shape), np.float32) for name, shape in shapes.items()}
        return {"image": np.zeros(0, np.str_), **empty}
    cam_ints = {
        image: _intrinsics(trained, image, picture, wish.focal)
        for image, (_, picture) in pictures.items()
    }
    persons = [
        Person(pictures[box.image][0], str(box.image), box.center, box.size, cam_ints[box.image],
               wish.turned)
        for box in boxes
    ]  # fmt: skip
    found = trained.predict(persons, trained.rule())
    with torch.no_grad():
        keypoints = body(found.poses, found.betas).keypoints + found.translation[:, None]
    results = {
        "image": np.array([str(box.image) for box in boxes], dtype=np.str_),
        "box": np.array([(b.left, b.top, b.right, b.bottom) for b in boxes]).reshape(-1, 4),
        "cam_int": found.cam_int.numpy(),
        "poses": found.poses.numpy(),
        "betas": found.betas.numpy(),
        "trans": found.translation.numpy(),
        "keypoints_3d": keypoints.numpy(),
        "keypoints_2d": camera.project(keypoints, found.cam_int).numpy(),
    }
    bad = [k for k in range(len(boxes)) if not np.isfinite(results["keypoints_3d"][k]).all()]
    if bad:
        raise InputError(
            f"{trained.path}: predicts values that are not finite for {boxes[bad[0]].image}"
        )
    return results


def _intrinsics(
    trained: TrainedNetwork, image: Path, picture: np.ndarray, focal: float | None
) -> np.ndarray:
    if focal is None:
        return trained.intrinsics(picture, str(image))
    height, width = picture.shape[:2]
    return np.array(camera.intrinsics(focal, width, height))


def focal_source(trained: TrainedNetwork, focal: float | None) -> str:
    """Where the focal length of the pictures comes from, in words."""
    return "--focal" if focal and trained.uses_intrinsics else trained.focal_source


def write_numbers(outcome: Outcome, trained: TrainedNetwork, wish: Wish) -> None:
    """`predictions.npz`, `.json` and `.csv`, as wished; `skipped.txt` where pictures were."""
    results, out = outcome.results, wish.out
    if "npz" in wish.save:
        buffer = io.BytesIO()
        np.savez(buffer, **results)
        write_bytes(out / NUMBERS[0], buffer.getvalue())
    if "json" in wish.save:
        _write_json(outcome, trained, wish)
    if "csv" in wish.save:
        write_bytes(out / NUMBERS[2], _csv(results))
    skipped = out / NUMBERS[3]
    if outcome.skipped:
        lines = (f"{image}\t{reason}\n" for image, reason in outcome.skipped.items())
        write_bytes(skipped, "".join(lines).encode("utf-8", "replace"))
    else:
        skipped.unlink(missing_ok=True)


def _write_json(outcome: Outcome, trained: TrainedNetwork, wish: Wish) -> None:
    results = outcome.results
    people: list[dict[str, Any]] = [
        {name: values[k].tolist() for name, values in results.items()}
        for k in range(len(results["image"]))
    ]
    write_json(
        wish.out / NUMBERS[1],
        {
            "checkpoint": dict(trained.provenance()),
            "focal_length": focal_source(trained, wish.focal),
            "pixels": "upright pictures (EXIF)" if wish.turned else "stored pictures",
            "units": "poses: radians; trans, keypoints_3d: metres, camera frame (x right, y down, "
                     "z forward); box, cam_int, keypoints_2d: pixels",
            "pose_names": list(anatomy.POSE_NAMES),
            "keypoint_names": list(NAMES),
            "people": people,
            "skipped": {str(image): reason for image, reason in outcome.skipped.items()},
        },
    )  # fmt: skip


def _csv(results: Results) -> bytes:
    """A line a person: picture, box, focal length, translation, betas, angles in degrees."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([
        "image", "left", "top", "right", "bottom", "focal_px",
        *(f"trans_{axis}_m" for axis in "xyz"), *(f"beta_{k}" for k in range(10)), *ANGLES,
    ])  # fmt: skip
    degrees = np.rad2deg(results["poses"].astype(np.float64))
    for k, image in enumerate(results["image"].tolist()):
        numbers = (results["box"][k], results["cam_int"][k, 0, :1], results["trans"][k],
                   results["betas"][k], degrees[k])  # fmt: skip
        table.writerow([image, *(f"{x:.6g}" for part in numbers for x in part.tolist())])
    return text.getvalue().encode("utf-8", "replace")


def _write_pictures(
    skel: SKEL,
    pictures: Mapping[Path, tuple[bytes, np.ndarray]],
    results: Results,
    named: Mapping[Path, str],
    wish: Wish,
) -> None:
    """An overlay and a picture of views for each picture, a GLB for each person."""
    if not wish.save & {"overlay", "views", "glb"}:
        return
    bodies: list[Posed] = []
    if len(results["image"]):
        posed = (torch.from_numpy(results[name]) for name in ("poses", "betas", "trans"))
        bodies = pose_bodies(skel, *posed)
    for image, (_, picture) in pictures.items():
        stem = wish.out / named[image]
        mine = np.flatnonzero(results["image"] == str(image)).tolist()
        if "overlay" in wish.save:
            drawn = _overlay(picture, mine, bodies, results)
            write_bytes(Path(f"{stem}.overlay.png"), png_bytes(drawn))
        if "views" in wish.save and mine:
            rows = [views_picture(bodies[k], wish.views) for k in mine]
            write_bytes(Path(f"{stem}.views.png"), png_bytes(np.concatenate(rows)))
        for number, k in enumerate(mine if "glb" in wish.save else []):
            write_bytes(Path(f"{stem}.{number}.glb"), glb_bytes(body_parts(bodies[k])))


def views_picture(body: Posed, views: Sequence[str]) -> np.ndarray:
    """Skin, then skeleton, from each of the `VIEWS`, side by side, (size, n size, 3) uint8."""
    skin, bones = Mesh(body.skin, body.faces, SKIN), Mesh(body.bones, body.bone_faces, BONE_COLOR)
    return side_by_side([
        meshes_picture([mesh], VIEWS[view][0], _VIEW_SIZE, above=VIEWS[view][1])
        for mesh in (skin, bones) for view in views
    ])  # fmt: skip


def _overlay(
    picture: np.ndarray, people: list[int], bodies: list[Posed], results: Results
) -> np.ndarray:
    """All people of a picture, the farthest first."""
    # Distance under one and the same lens: crop cameras have a focal length each.
    for k in sorted(people, key=lambda k: -results["trans"][k, 2] / results["cam_int"][k, 0, 0]):
        picture = draw_body(picture, bodies[k], results["cam_int"][k].astype(np.float64))
    thickness = max(1, round(max(picture.shape) / 500))
    for k in people:
        picture = draw_limbs(picture, results["keypoints_2d"][k], LIMB_COLOR, thickness=thickness)
    return picture


def body_parts(body: Posed) -> list[Part]:
    """Skin and skeleton of a body for a GLB file."""
    return [
        Part("skin", body.skin, body.faces, (*SKIN, _SKIN_ALPHA)),
        Part("skeleton", body.bones, body.bone_faces, _BONE_COLOR),
    ]


def stems(images: Sequence[Path]) -> dict[Path, str]:
    """Names of the output files; pictures of one name from two folders are numbered."""
    found: dict[Path, str] = {}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for image in images:
        stem = image.stem
        while stem in taken:
            counts[image.stem] = counts.get(image.stem, 1) + 1
            stem = f"{image.stem}-{counts[image.stem]}"
        taken.add(stem)
        found[image] = stem
    return found
