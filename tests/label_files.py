"""Label files in the published formats, made from random numbers
(docs/reference/label-formats.md)."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def camerahmr(rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """The members of a `coco-release.npz` without defects."""
    random = np.random.default_rng(seed)
    body = np.clip(random.normal(0, 0.25, (rows, 24, 3)), -1.2, 1.2)
    body[:, 22:] = 0
    body[:, 0] = (np.pi, 0, 0)
    width, height = 640, 480
    focal = height / (2 * np.tan(np.radians(random.uniform(25, 100, rows)) / 2))
    cam_int = np.zeros((rows, 3, 3))
    cam_int[:, 0, 0] = cam_int[:, 1, 1] = focal
    cam_int[:] += np.array([[0, 0, width / 2], [0, 0, height / 2], [0, 0, 1]])
    points = np.concatenate(
        [random.uniform(50, 400, (rows, 44, 2)), random.uniform(0.3, 1, (rows, 44, 1))], axis=2
    )
    points[random.random((rows, 44)) < 0.1] = 0
    return {
        "imgname": np.array(
            [f"images/train2014/COCO_train2014_{i:012d}.jpg" for i in range(rows)], "<U60"
        ),
        "center": random.uniform(150, 330, (rows, 2)),
        "scale": random.uniform(0.3, 3, rows),
        "pose_cam": body.reshape(rows, 72),
        "shape": np.clip(random.normal(size=(rows, 10)), -3, 3),
        "trans_cam": np.c_[random.uniform(-1, 1, (rows, 2)), random.uniform(2, 12, rows)],
        "cam_int": cam_int,
        "gtkps": points,
    }


def write_npz(path: Path, members: dict[str, Any], *, compressed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **members)
    return path


def hmr_skel(rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """What the published converter writes (label-formats.md#hmr-skel), after its 3D joints were
    added."""
    random = np.random.default_rng(seed + 100)
    members = camerahmr(rows, seed)
    return {
        **members,
        "poses": members["pose_cam"],
        "betas": members["shape"],
        "trans": members["trans_cam"],
        "skel_poses": random.normal(0, 0.3, (rows, 46)).astype(np.float32),
        "skel_betas": members["shape"].astype(np.float32),
        "skel_trans": members["trans_cam"].astype(np.float32),
        "keypoints3d": random.normal(size=(rows, 44, 4)),
    }


def person(random: np.random.Generator, *, hsmr: bool = False) -> dict[str, Any]:
    """One dict of a 4D-Humans (or HSMR) `data.pyd` (label-formats.md#webdataset)."""
    loss = np.empty((), object)
    loss[()] = {"reprojection_loss": np.float32(random.uniform(100, 40_000))}
    result: dict[str, Any] = {
        "keypoints_2d": random.uniform(0.3, 1, (44, 3)).astype("f4") * (300, 300, 1),
        "keypoints_3d": random.normal(size=(44, 4)).astype("f4"),
        "center": random.uniform(100, 300, 2),
        "scale": random.uniform(0.5, 2, 2),
        "body_pose": random.normal(0, 0.3, 72).astype("f4"),
        "betas": random.normal(size=10).astype("f4"),
        "has_body_pose": np.array(1.0),
        "has_betas": np.array(1.0),
        "extra_info": {"fitting_loss": loss, "detection_npz_idx": int(random.integers(5))},
    }
    if hsmr:
        for side in ("orig", "flip"):
            result[f"{side}_poses"] = random.normal(0, 0.3, 46).astype("f4")
            result[f"{side}_betas"] = random.normal(size=10).astype("f4")
            result[f"{side}_pve_max"] = float(random.uniform(0.01, 0.1))
    return result


def write_tar(
    path: Path, images: dict[str, list[dict] | None], *, blob: bytes | None = None
) -> Path:
    """A tar of `<key>.jpg` and `<key>.data.pyd`; None: an image without labels.

    blob: bytes for every data.pyd instead of the pickled list.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for key, persons in images.items():
            add(f"{key}.jpg", b"\xff\xd8\xff picture of " + key.encode())
            if persons is not None:
                add(f"{key}.data.pyd", pickle.dumps(persons) if blob is None else blob)
    return path


def amass(frames: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """An AMASS SMPL+H file (label-formats.md#sequences)."""
    random = np.random.default_rng(seed)
    return {
        "trans": random.normal(size=(frames, 3)),
        "gender": np.array("male"),
        "mocap_framerate": np.array(120.0),
        "betas": random.normal(size=16),
        "dmpls": random.normal(size=(frames, 8)),
        "poses": random.normal(0, 0.3, (frames, 156)),
    }


def single_image(*, seed: int = 0, tensors: bool = True) -> dict[str, Any]:
    """The three members of a single-image fit; its parameters as torch tensors or arrays."""
    random = np.random.default_rng(seed)
    orient, body = random.normal(0, 0.4, (1, 1, 3)), random.normal(0, 0.4, (1, 23, 3))
    parameters = {
        "global_orient": _matrices(orient),
        "body_pose": _matrices(body),
        "global_orient_axis_angle": orient,
        "body_pose_axis_angle": body,
        "betas": random.normal(size=(1, 10)),
    }
    convert = torch.tensor if tensors else np.asarray
    wrapped = np.empty((), object)
    wrapped[()] = {name: convert(value.astype("f4")) for name, value in parameters.items()}
    return {
        "pred_smpl_parms": wrapped,
        "verts": random.normal(size=(6890, 3)).astype("f4"),
        "pred_cam_t": random.normal(size=3).astype("f4"),
    }


def _matrices(vectors: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    flat = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return flat.reshape(*vectors.shape, 3)


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
