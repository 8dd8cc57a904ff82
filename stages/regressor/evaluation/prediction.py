"""SKEL bodies of the people in pictures, as npz, JSON, overlays and meshes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import InputError
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
from stages.drawing.render import BONE_COLOR, png_bytes
from stages.regressor.data.boxes import Box
from stages.regressor.data.images import decode
from stages.regressor.evaluation.trained import Person, TrainedNetwork
from stages.regressor.network import camera

_SKIN_ALPHA = 0.45
_BONE_COLOR = (*BONE_COLOR, 1.0)
NUMBERS = ("predictions.npz", "predictions.json")
PICTURES = ("*.overlay.png", "*.glb")
"""What is written into the folder of a prediction: names, and patterns of names."""

Results = dict[str, Any]
"""One row a person: image, box, cam_int, poses, betas, trans, keypoints_3d, keypoints_2d."""


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
    pictures: dict[Path, bytes],
    boxes: Sequence[Box],
    focal: float | None,
) -> Results:
    """Predict everybody. focal: pixels, for all pictures; None: what `trained` makes of each.

    Raises:
        InputError: a value that is not finite.
    """
    cam_ints = {image: _intrinsics(trained, image, data, focal) for image, data in pictures.items()}
    persons = [
        Person(pictures[box.image], str(box.image), box.center, box.size, cam_ints[box.image])
        for box in boxes
    ]
    found = trained.predict(persons, trained.rule())
    with torch.no_grad():
        keypoints = body(found.poses, found.betas).keypoints + found.translation[:, None]
    results = {
        "image": np.array([str(box.image) for box in boxes]),
        "box": np.array([(b.left, b.top, b.right, b.bottom) for b in boxes]),
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
    trained: TrainedNetwork, image: Path, data: bytes, focal: float | None
) -> np.ndarray:
    if focal is None:
        return trained.intrinsics(data, str(image))
    height, width = decode(data, str(image)).shape[:2]
    return np.array(camera.intrinsics(focal, width, height))


def focal_source(trained: TrainedNetwork, focal: float | None) -> str:
    """Where the focal length of the pictures comes from, in words."""
    return "--focal" if focal and trained.uses_intrinsics else trained.focal_source


def write_numbers(
    out: Path, results: Results, trained: TrainedNetwork, focal: float | None
) -> None:
    """`predictions.npz` and the same as `predictions.json`."""
    buffer = io.BytesIO()
    np.savez(buffer, **results)
    write_bytes(out / NUMBERS[0], buffer.getvalue())
    people: list[dict[str, Any]] = [
        {name: values[k].tolist() for name, values in results.items()}
        for k in range(len(results["image"]))
    ]
    write_json(
        out / NUMBERS[1],
        {
            "checkpoint": dict(trained.provenance()),
            "focal_length": focal_source(trained, focal),
            "units": "poses: radians; trans, keypoints_3d: metres, camera frame (x right, y down, "
                     "z forward); box, cam_int, keypoints_2d: pixels",
            "pose_names": list(anatomy.POSE_NAMES),
            "keypoint_names": list(NAMES),
            "people": people,
        },
    )  # fmt: skip


def write_pictures(
    out: Path, skel: SKEL, pictures: dict[Path, bytes], results: Results, *, meshes: bool
) -> None:
    """An overlay a picture and, with `meshes`, a GLB a person."""
    bodies = pose_bodies(
        skel, *(torch.from_numpy(results[name]) for name in ("poses", "betas", "trans"))
    )
    stems = _stems(list(pictures))
    for image, data in pictures.items():
        mine = np.flatnonzero(results["image"] == str(image)).tolist()
        picture = _overlay(decode(data, str(image)), mine, bodies, results)
        write_bytes(out / f"{stems[image]}.overlay.png", png_bytes(picture))
        for number, k in enumerate(mine if meshes else []):
            write_bytes(out / f"{stems[image]}.{number}.glb", glb_bytes(_parts(bodies[k])))


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
