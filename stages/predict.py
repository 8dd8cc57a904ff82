"""`hmr-skel predict`: SKEL bodies of the people in pictures, as npz, JSON, overlays and meshes."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.atomic import make_directory, write_bytes, write_json
from pipeline.errors import InputError, UsageError
from pipeline.fitters import models_directory
from skel_fit import anatomy
from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import NAMES, keypoint_matrix
from skel_fit.model_files import load_skel
from skel_fit.skel import SKEL
from stages.drawing.glb import Part, glb_bytes
from stages.drawing.overlays import PREDICTED as LIMB_COLOR
from stages.drawing.overlays import SKIN, Posed, draw_body, draw_limbs, pose_bodies
from stages.drawing.render import png_bytes
from stages.regressor.data.images import decode
from stages.regressor.evaluation.trained import Person, TrainedNetwork
from stages.regressor.network import camera
from stages.regressor.network.hrnet import load_human_fov

_SKIN_ALPHA = 0.45
_BONE_COLOR = (0.93, 0.90, 0.80, 1.0)


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


def run_predict(
    images: Sequence[Path],
    checkpoint: Path,
    out: Path,
    *,
    boxes: Path | None = None,
    focal: float | None = None,
    fov_checkpoint: Path | None = None,
    models: Path | None = None,
    device: str = "cpu",
    meshes: bool = True,
) -> None:
    """Predict and write everything into `out`.

    boxes: JSON `{image: [[left, top, right, bottom], ...]}` or CSV with a header
    `image,left,top,right,bottom`, an image by its path as given or by its bare name; without it
    each picture is one person's box. focal: pixels, for all pictures; fov_checkpoint: HumanFOV
    weights.

    Raises:
        InputError: a picture, the boxes, the checkpoint or a body model is missing or broken.
    """
    if focal is not None and not focal > 0:
        raise UsageError(f"--focal {focal:g}: expected a positive number of pixels")
    fov = load_human_fov(fov_checkpoint) if fov_checkpoint else None
    trained = TrainedNetwork(checkpoint, device=device, focal=fov)
    images = list(dict.fromkeys(images))
    folder, skel = _skel(trained, models)
    body = KeypointBody(skel, keypoint_matrix(folder))
    pictures = {image: _read(image) for image in images}
    wanted = _boxes(images, pictures, boxes)
    cam_ints = {image: _intrinsics(trained, image, data, focal) for image, data in pictures.items()}
    persons = [
        Person(pictures[box.image], str(box.image), box.center, box.size, cam_ints[box.image])
        for box in wanted
    ]
    found = trained.predict(persons, trained.rule())
    with torch.no_grad():
        keypoints = body(found.poses, found.betas).keypoints + found.translation[:, None]
    results = {
        "image": np.array([str(box.image) for box in wanted]),
        "box": np.array([(b.left, b.top, b.right, b.bottom) for b in wanted]),
        "cam_int": found.cam_int.numpy(),
        "poses": found.poses.numpy(),
        "betas": found.betas.numpy(),
        "trans": found.translation.numpy(),
        "keypoints_3d": keypoints.numpy(),
        "keypoints_2d": camera.project(keypoints, found.cam_int).numpy(),
    }
    bad = [k for k in range(len(wanted)) if not np.isfinite(results["keypoints_3d"][k]).all()]
    if bad:
        raise InputError(
            f"{checkpoint}: predicts values that are not finite for {wanted[bad[0]].image}"
        )
    make_directory(out)
    _write_numbers(out, results, trained, focal)
    bodies = pose_bodies(skel, found.poses, found.betas, found.translation)
    stems = _stems(images)
    for image in images:
        mine = [k for k, box in enumerate(wanted) if box.image == image]
        picture = _overlay(decode(pictures[image], str(image)), mine, bodies, results)
        write_bytes(out / f"{stems[image]}.overlay.png", png_bytes(picture))
        for number, k in enumerate(mine if meshes else []):
            write_bytes(out / f"{stems[image]}.{number}.glb", glb_bytes(_parts(bodies[k])))
    source = _focal_source(trained, focal)
    for image in images:
        if not any(box.image == image for box in wanted):
            print(f"{image}: 0 people, the boxes name none")
    print(f"{len(wanted)} people in {len(images)} pictures -> {out} (focal length: {source})")
    if trained.standin:
        print("the network was trained on the licence-free stand-in body: a demonstration, "
              "not for photographs of people", file=sys.stderr)  # fmt: skip


def _skel(trained: TrainedNetwork, models: Path | None) -> tuple[Path, SKEL]:
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _intrinsics(
    trained: TrainedNetwork, image: Path, data: bytes, focal: float | None
) -> np.ndarray:
    if focal is None:
        return trained.intrinsics(data, str(image))
    height, width = decode(data, str(image)).shape[:2]
    return np.array(camera.intrinsics(focal, width, height))


def _focal_source(trained: TrainedNetwork, focal: float | None) -> str:
    return "--focal" if focal and trained.uses_intrinsics else trained.focal_source


def _boxes(images: Sequence[Path], pictures: dict[Path, bytes], file: Path | None) -> list[Box]:
    """Checked boxes of all pictures, in the order of the pictures."""
    sizes = {image: decode(data, str(image)).shape[:2] for image, data in pictures.items()}
    if file is None:
        return [Box(image, 0, 0, sizes[image][1], sizes[image][0]) for image in images]
    given = _read_boxes(file)
    result = []
    for name, corners in given.items():
        image = _named(name, images, file)
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
    if not result:
        raise InputError(f"{file}: holds no boxes")
    order = {image: k for k, image in enumerate(images)}
    return sorted(result, key=lambda box: order[box.image])


def _named(name: str, images: Sequence[Path], file: Path) -> Path:
    """The picture that a boxes file means: by its path as given, else by its bare name."""
    if Path(name) in images:
        return Path(name)
    found = [image for image in images if image.name == name]
    if not found:
        raise InputError(
            f"{file}: image {name!r} is not among the pictures given; write the paths as they are "
            "on the command line, or bare file names"
        )
    if len(found) > 1:
        raise InputError(
            f"{file}: image {name!r} may be {found[0]} or {found[1]}; write the paths as they are "
            "given on the command line"
        )
    return found[0]


def _read_boxes(file: Path) -> dict[str, list[tuple[float, ...]]]:
    text = _read(file).decode("utf-8", "replace")
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


def _write_numbers(
    out: Path, results: dict[str, np.ndarray], trained: TrainedNetwork, focal: float | None
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **results)
    write_bytes(out / "predictions.npz", buffer.getvalue())
    people: list[dict[str, Any]] = [
        {name: values[k].tolist() for name, values in results.items()}
        for k in range(len(results["image"]))
    ]
    write_json(
        out / "predictions.json",
        {
            "checkpoint": dict(trained.provenance()),
            "focal_length": _focal_source(trained, focal),
            "units": "poses: radians; trans, keypoints_3d: metres, camera frame (x right, y down, "
                     "z forward); box, cam_int, keypoints_2d: pixels",
            "pose_names": list(anatomy.POSE_NAMES),
            "keypoint_names": list(NAMES),
            "people": people,
        },
    )  # fmt: skip


def _overlay(
    picture: np.ndarray, people: list[int], bodies: list[Posed], results: dict[str, np.ndarray]
) -> np.ndarray:
    """All people of a picture, the farthest first."""
    # Distance under one and the same lens: crop cameras have a focal length each.
    for k in sorted(people, key=lambda k: -results["trans"][k, 2] / results["cam_int"][k, 0, 0]):
        picture = draw_body(picture, bodies[k], results["cam_int"][k].astype(np.float64))
    thickness = max(1, round(max(picture.shape) / 500))
    for k in people:
        picture = draw_limbs(picture, results["keypoints_2d"][k], LIMB_COLOR, thickness=thickness)
    return picture


def _parts(body: Posed) -> list[Part]:
    return [
        Part("skin", body.skin, body.faces, (*SKIN, _SKIN_ALPHA)),
        Part("skeleton", body.bones, body.bone_faces, _BONE_COLOR),
    ]


def _stems(images: Sequence[Path]) -> dict[Path, str]:
    """Names of the output files; pictures of one name from two folders are numbered."""
    stems: dict[Path, str] = {}
    for image in images:
        stem, number = image.stem, 1
        while stem in stems.values():
            number += 1
            stem = f"{image.stem}-{number}"
        stems[image] = stem
    return stems
