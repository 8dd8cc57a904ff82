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
