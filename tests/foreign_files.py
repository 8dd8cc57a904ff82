"""Label files of other projects, made from random numbers in their published schemas.

Two people where a format has several, one row that is not valid, every member and dtype.
"""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

FRAMES = 4


def bodies(frames: int = FRAMES, seed: int = 0) -> dict[str, np.ndarray]:
    """Mild SMPL poses (frames, 72) upright in a world with y up, translations, betas (10)."""
    random = np.random.default_rng(seed)
    poses = np.clip(random.normal(0, 0.15, (frames, 72)), -0.4, 0.4)
    poses[:, :3] = [0.0, 0.3 + seed, 0.0]
    poses[:, 66:] = 0
    return {
        "poses": poses,
        "trans": random.uniform(-0.5, 0.5, (frames, 3)),
        "betas": np.clip(random.normal(0, 0.7, 10), -2, 2),
    }


def world_to_camera(frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    """(frames, 4, 4): a camera three metres away that turns a little; y down, z forward."""
    random = np.random.default_rng(seed + 50)
    turn = Rotation.from_euler("x", np.pi) * Rotation.from_rotvec(
        random.normal(0, 0.1, (frames, 3))
    )
    cameras = np.tile(np.eye(4), (frames, 1, 1))
    cameras[:, :3, :3] = turn.as_matrix()
    cameras[:, :3, 3] = [0.1, 0.2, 4.0]
    return cameras


CAM_INT = np.array([[1000.0, 0, 540], [0, 1000, 960], [0, 0, 1]])


def threedpw(frames: int = FRAMES) -> dict[str, Any]:
    """The dictionary of a file of 3DPW with two people; frame 1 of the second has no camera."""
    people = [bodies(frames, seed) for seed in range(2)]
    valid = np.ones(frames, np.int64)
    valid[1] = 0
    return {
        "sequence": "street_00",
        "poses": [person["poses"] for person in people],
        "betas": [np.pad(person["betas"], (0, 290)) for person in people],
        "trans": [person["trans"] for person in people],
        "genders": ["m", "f"],
        "cam_poses": world_to_camera(frames),
        "cam_intrinsics": CAM_INT,
        "campose_valid": [np.ones(frames, np.int64), valid],
        "img_frame_ids": np.arange(frames) * 2,
        "poses2d": [np.ones((frames, 3, 18)) for _ in people],
        "poses_60Hz": [np.zeros((2 * frames, 72)) for _ in people],
        "trans_60Hz": [np.zeros((2 * frames, 3)) for _ in people],
        "v_template_clothed": [np.zeros((6890, 3)) for _ in people],
    }


def emdb(frames: int = FRAMES) -> dict[str, Any]:
    """The dictionary of a file of EMDB; frame 2 is not good."""
    body = bodies(frames)
    good = np.ones(frames, bool)
    good[2] = False
    return {
        "gender": "female",
        "name": "23_outdoor_hug_tree",
        "emdb1": True,
        "emdb2": False,
        "n_frames": frames,
        "good_frames_mask": good,
        "camera": {
            "intrinsics": CAM_INT,
            "extrinsics": world_to_camera(frames),
            "width": 1080,
            "height": 1920,
        },
        "smpl": {
            "poses_root": body["poses"][:, :3],
            "poses_body": body["poses"][:, 3:],
            "trans": body["trans"],
            "betas": body["betas"],
        },
        "kp2d": np.ones((frames, 24, 2)),
        "bboxes": {"bboxes": np.full((frames, 4), 100.0), "invalid_idxs": np.array([2])},
    }


def wham(frames: int = FRAMES) -> dict[int, Any]:
    """The dictionary of a result of WHAM with two tracks."""
    result = {}
    for track in (0, 3):
        body = bodies(frames, track)
        camera = body["trans"] + [0, 0, 4]
        result[track] = {
            "pose": body["poses"].astype(np.float32),
            "trans": camera.astype(np.float32),
            "pose_world": body["poses"].astype(np.float32),
            "trans_world": body["trans"].astype(np.float32),
            "betas": np.tile(body["betas"], (frames, 1)).astype(np.float32),
            "verts": np.asfortranarray(np.zeros((frames, 6890, 3), np.float32)),
            "frame_ids": np.arange(frames) + 10,
        }
    return result


def smpl_file(frames: int = FRAMES) -> dict[str, Any]:
    """The members of a `.smpl` file of SMPL."""
    body = bodies(frames)
    return {
        "codecVersion": np.array(2, np.int32),
        "smplVersion": np.array(0, np.int32),
        "gender": np.array(2, np.int32),
        "shapeParameters": body["betas"].astype(np.float32),
        "frameCount": np.array(frames, np.int32),
        "frameRate": np.array(30.0, np.float32),
        "bodyTranslation": body["trans"].astype(np.float32),
        "bodyPose": body["poses"].reshape(frames, 24, 3).astype(np.float32),
    }


def write_smpl(path: Path, members: dict[str, Any]) -> Path:
    """npz without the suffix of one."""
    with path.open("wb") as stream:
        np.savez_compressed(stream, **members)
    return path


def write_python2(path: Path, content: Any) -> Path:
    """A pickle as Python 2 wrote it: text and array contents are its byte strings."""
    with path.open("wb") as stream:
        _Python2(stream, 2, fix_imports=False).dump(content)
    return path


class _Python2(pickle._Pickler):
    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def _string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = _string
    dispatch[type] = save_global


def write_joblib(path: Path, content: Any, *, alignment: int | None = 16) -> Path:
    """As `joblib.dump` writes, without joblib (docs/reference/label-formats.md#joblib).

    alignment: None: as joblib before 1.2.
    """
    with path.open("wb") as stream:
        _Joblib(stream, alignment).dump(content)
    return path


class NumpyArrayWrapper:
    """Stands for joblib's class of this name."""


class _Joblib(pickle._Pickler):
    def __init__(self, stream: io.BufferedWriter, alignment: int | None) -> None:
        super().__init__(stream, 4)
        self._stream, self._alignment = stream, alignment

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) is not np.ndarray:
            super().save(obj, save_persistent_id)
            return
        wrapper = NumpyArrayWrapper()
        fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        wrapper.__dict__.update(
            subclass=np.ndarray, shape=obj.shape, order="F" if fortran else "C", dtype=obj.dtype,
            allow_mmap=True,
        )  # fmt: skip
        if self._alignment is not None:
            wrapper.__dict__["numpy_array_alignment_bytes"] = self._alignment
        super().save(wrapper, save_persistent_id)
        self.framer.commit_frame(force=True)
        if self._alignment is not None:
            padding = self._alignment - (self._stream.tell() + 1) % self._alignment
            self._stream.write(bytes([padding]) + b"\xff" * padding)
        self._stream.write(obj.tobytes("F" if fortran else "C"))

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is not NumpyArrayWrapper:
            super().save_global(obj, name)
            return
        self.save("joblib.numpy_pickle")
        self.save("NumpyArrayWrapper")
        self.write(pickle.STACK_GLOBAL)

    dispatch: ClassVar[dict] = {**pickle._Pickler.dispatch, type: save_global}


def smplx_pose(frames: int = FRAMES, seed: int = 0, width: int = 165) -> np.ndarray:
    """(frames, 156 | 165): the body of `bodies`, small angles in face and hands."""
    random = np.random.default_rng(seed + 7)
    pose = random.normal(0, 0.05, (frames, width))
    pose[:, :66] = bodies(frames, seed)["poses"][:, :66]
    return pose


def amass(frames: int = FRAMES, body: str = "smplx") -> dict[str, Any]:
    """The members of a motion of AMASS, with the objects that its files have."""
    width, rate = (165, "mocap_frame_rate") if body == "smplx" else (156, "mocap_framerate")
    labels = np.empty((), object)
    labels[()] = {"ARIEL": [1, 2]}
    return {
        "poses": smplx_pose(frames, width=width),
        "trans": bodies(frames)["trans"],
        "betas": np.pad(bodies(frames)["betas"], (0, 6)),
        "gender": np.array("female"),
        rate: np.array(60.0),
        "markers_latent_vids": labels,
        "markers_latent": np.zeros((53, 3)),
    }


def moyo(frames: int = FRAMES) -> dict[str, Any]:
    """The dictionary of a file of MOYO, as far as it is plain."""
    return {
        "fullpose": smplx_pose(frames),
        "trans": bodies(frames)["trans"],
        "betas": np.pad(bodies(frames)["betas"], (0, 290)),
        "v_template_fname": "/somewhere/template.ply",
    }


def bedlam(rows: int = 8, width: int = 165, betas: int = 10) -> dict[str, Any]:
    """The members of a scene of BEDLAM with two people; row 3 has no pose."""
    people = [bodies(rows // 2, seed) for seed in range(2)]
    poses = np.concatenate([smplx_pose(rows // 2, seed, 165) for seed in range(2)])[:, :width]
    poses[:, :3] = [np.pi - 0.2, 0.1, 0.0]
    poses[3, 5] = np.nan
    cam_ext = np.tile(np.eye(4), (rows, 1, 1))
    cam_ext[:, :3, 3] = [0.3, -0.2, 4.0]
    info = np.empty(rows, object)
    info[:] = [{"clip": i} for i in range(rows)]
    shape = np.concatenate([np.tile(one["betas"], (rows // 2, 1)) for one in people])
    return {
        "imgname": np.array([f"seq_0/{i:04d}.png" for i in range(rows)]),
        "center": np.full((rows, 2), 500.0),
        "scale": np.full(rows, 2.0),
        "pose_cam": poses,
        "pose_world": poses,
        "shape": np.pad(shape, ((0, 0), (0, betas - 10))),
        "trans_cam": np.concatenate([one["trans"] for one in people]),
        "trans_world": np.concatenate([one["trans"] for one in people]),
        "gtkps": np.ones((rows, 127, 2)),
        "cam_int": np.tile(CAM_INT, (rows, 1, 1)),
        "cam_ext": cam_ext,
        "gender": np.array(["female", "male"]).repeat(rows // 2),
        "sub": np.array(["rp_a", "rp_b"]).repeat(rows // 2),
        "motion_info": info,
    }


def gvhmr(frames: int = FRAMES) -> dict[str, Any]:
    """The dictionary of a result of GVHMR, of torch tensors."""
    import torch

    def parameters(seed: int) -> dict[str, Any]:
        pose = smplx_pose(frames, seed)
        values = {
            "body_pose": pose[:, 3:66],
            "betas": np.tile(bodies(frames, seed)["betas"], (frames, 1)),
            "global_orient": pose[:, :3],
            "transl": bodies(frames, seed)["trans"] + [0, 0, 4],
        }
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}

    return {
        "smpl_params_global": parameters(1),
        "smpl_params_incam": parameters(0),
        "K_fullimg": torch.tensor(np.tile(CAM_INT, (frames, 1, 1)), dtype=torch.float32),
        "net_outputs": {"static_conf_logits": torch.zeros(1, frames, 6)},
    }


def prompthmr(frames: int = FRAMES, tensors: bool = True) -> dict[str, Any]:
    """The dictionary of a result of PromptHMR with two people."""
    import torch

    def person(seed: int) -> dict[str, Any]:
        pose, body = smplx_pose(frames, seed), bodies(frames, seed)
        matrices = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix()
        camera = {
            "pose": pose[:, :75],
            "rotmat": matrices.reshape(frames, 55, 3, 3),
            "shape": np.tile(body["betas"], (frames, 1)),
            "trans": body["trans"] + [0, 0, 4],
        }
        camera = {name: value.astype(np.float32) for name, value in camera.items()}
        if tensors:
            camera = {name: torch.tensor(value) for name, value in camera.items()}
        world = {"pose": pose, "shape": np.tile(body["betas"], (frames, 1)), "trans": body["trans"]}
        return {"frames": np.arange(frames) + 5, "smplx_cam": camera, "smplx_world": world}

    return {
        "people": {1: person(0), 4: person(1)},
        "camera": {"img_focal": 1000.0, "img_center": np.array([540.0, 960.0])},
        "has_slam": False,
    }


def smplx_file(frames: int = FRAMES) -> dict[str, Any]:
    """The members of a `.smpl` file of SMPL-X."""
    pose = smplx_pose(frames).astype(np.float32).reshape(frames, 55, 3)
    return smpl_file(frames) | {
        "smplVersion": np.array(2, np.int32),
        "bodyPose": pose[:, :22],
        "headPose": pose[:, 22:25],
        "leftHandPose": pose[:, 25:40],
        "rightHandPose": pose[:, 40:],
    }
