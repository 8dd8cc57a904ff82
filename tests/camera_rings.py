"""Cameras in a ring around a moving stand-in, for the tests of several cameras: calibration files
in both formats, written from the definitions and not by what reads them; landmarks without noise.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import torch

from skel_fit.body_points import BLAZEPOSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.keypoint_fit import Cameras, KeypointFitConfig, Problem
from skel_fit.model_files import load_skel
from skel_fit.pose_prior import pose_prior
from stages.drawing.render import Camera, Mesh, render
from stages.photo.camera_files import CalibratedCamera
from stages.photo.fitting import POINTS, Marks
from stages.photo.views import Views
from stages.regressor.data.demo_pictures import background, wardrobe

HEIGHT, WIDTH = 600, 500
UP = np.array([0.0, 0.0, 1.0])


def ring(count: int = 4, focal: float = 500.0) -> list[CalibratedCamera]:
    """Cameras in a world whose z is up, 3 m from a person at the origin, 1.6 m high."""
    cameras = []
    for k in range(count):
        angle = 2 * np.pi * (k + 0.3) / count
        centre = np.array([3.0 * np.cos(angle), 3.0 * np.sin(angle), 1.6])
        forward = np.array([0.0, 0.0, 0.9]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, UP)
        right /= np.linalg.norm(right)
        turn = np.stack([right, np.cross(forward, right), forward])
        cam_int = np.array([[focal, 0, WIDTH / 2 + 3], [0, focal + 2, HEIGHT / 2 - 5], [0, 0, 1.0]])
        cameras.append(
            CalibratedCamera(
                f"cam{k + 1}", (HEIGHT, WIDTH), cam_int, np.zeros(5), turn, -turn @ centre
            )
        )
    return cameras


def write_qualisys(path: Path, cameras: list[CalibratedCamera]) -> Path:
    """As Qualisys: millimetres, 64ths of pixels counted from their centres, y up, z backwards."""
    lines = ["<?xml version='1.0' encoding='ASCII'?>", '<calibration source="test"><cameras>']
    for c in cameras:
        a = np.diag([1.0, -1.0, -1.0]) @ c.turn
        x, y, z = (1000.0 * c.centre).tolist()
        cells = " ".join(
            f'r{i + 1}{j + 1}="{float(a[i, j])!r}"' for i in range(3) for j in range(3)
        )
        u, v = 64 * (c.cam_int[:2, 2] - 0.5)
        lines.append(
            f'<camera serial="{c.name}" viewrotation="0">'
            f'<fov_video left="0" top="0" right="{c.size[1] - 1}" bottom="{c.size[0] - 1}"/>'
            f'<transform {cells} x="{x!r}" y="{y!r}" z="{z!r}"/>'
            f'<intrinsic focalLengthU="{64 * c.cam_int[0, 0]}" '
            f'focalLengthV="{64 * c.cam_int[1, 1]}" centerPointU="{u}" centerPointV="{v}" '
            f'skew="0" radialDistortion1="{c.distortion[0]}" '
            f'radialDistortion2="{c.distortion[1]}" tangentalDistortion1="{c.distortion[2]}" '
            f'tangentalDistortion2="{c.distortion[3]}"/></camera>'
        )
    path.write_text("\n".join([*lines, "</cameras></calibration>"]))
    return path


def write_toml(path: Path, cameras: list[CalibratedCamera]) -> Path:
    """As Pose2Sim: OpenCV's world -> camera, rotation as an axis times its angle, metres."""
    parts = []
    for c in cameras:
        half = np.arccos((np.trace(c.turn) - 1) / 2)
        skewed = (c.turn - c.turn.T) / (2 * np.sin(half))
        axis = half * np.array([skewed[2, 1], skewed[0, 2], skewed[1, 0]])
        k = c.cam_int - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        parts.append(
            f'[{c.name}]\nname = "{c.name}"\nsize = [ {c.size[1]}.0, {c.size[0]}.0]\n'
            f"matrix = {k.tolist()}\ndistortions = {c.distortion[:4].tolist()}\n"
            f"rotation = {axis.tolist()}\ntranslation = {c.shift.tolist()}\nfisheye = false\n"
        )
    path.write_text("\n".join([*parts, "[metadata]\nadjusted = false\nerror = 0.0\n"]))
    return path


def motion(frames: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses (n, 46), betas (10,), trans (n, 3), y up: somebody who turns, bends knees and elbows
    and drifts along x."""
    mean = pose_prior("wide").mean
    poses = np.zeros((frames, 46))
    poses[:, 3:] = mean
    time = np.arange(frames) / 25.0
    poses[:, 2] = 0.5 + 0.8 * time
    poses[:, 6] = 0.6 + 0.3 * np.sin(5 * time)  # right knee
    poses[:, 13] = 0.5 - 0.3 * np.sin(5 * time)
    for elbow in (32, 42):
        poses[:, elbow] = 1.0 + 0.4 * np.cos(4 * time)
    betas = np.array([0.6, -0.5, 0.3, *[0.0] * 7])
    trans = np.stack([0.4 * time - 0.2, 1.0 + 0 * time, 0.1 * np.sin(3 * time)], 1)
    return poses, betas, trans


@functools.cache
def skel():
    return load_skel(default_body_directory(), "male")


def points_of(poses: np.ndarray, betas: np.ndarray, trans: np.ndarray) -> np.ndarray:
    """(n, 33, 3) landmarks of bodies."""
    n = len(poses)
    ones = np.ones((n, 33, 2)), np.ones((n, 33))
    problem = Problem.of(
        skel(), POINTS, *ones, Cameras.assumed(100, 100), None, None, pose_prior("wide"),
        KeypointFitConfig(),
    )  # fmt: skip
    away = np.array([0.0, 0.0, 10.0])  # points behind the camera are not looked at
    at = np.concatenate([poses, trans + away, np.broadcast_to(betas, (n, 10))], 1)
    return problem.search(at, 0).points - away


Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""From the ring's world to the axes of `motion`."""


def seen_by(
    cameras: list[CalibratedCamera], world: np.ndarray, noise: float = 0.0, seed: int = 0
) -> Views:
    """Landmarks (n, 33, 3) of the ring's world in every camera; noise: px."""
    rng = np.random.default_rng(seed)
    marks = []
    for camera in cameras:
        inside = world @ camera.turn.T + camera.shift
        flat = inside @ camera.cam_int.T
        pixels = flat[..., :2] / flat[..., 2:] + noise * rng.normal(size=(*world.shape[:2], 2))
        hips = inside[:, [BLAZEPOSE_NAMES.index(f"{s} hip") for s in ("left", "right")]].mean(1)
        marks.append(Marks(pixels, np.ones(pixels.shape[:2]), inside - hips[:, None], camera.size))
    return Views(tuple(cameras), tuple(marks), np.ones((len(world), len(cameras)), bool))


def write_clips(
    folder: Path, cameras: list[CalibratedCamera], frames: int, rate: float = 25.0
) -> list[Path]:
    """A dressed stand-in who moves as `motion`, as a video of each camera."""
    poses, betas, trans = motion(frames)
    body, random = skel(), np.random.default_rng(5)
    colors = wardrobe(Path(default_body_directory()), "male").dress(random)
    with torch.no_grad():
        skin = body(
            *(torch.as_tensor(v, dtype=body.dtype)
              for v in (poses, np.tile(betas, (frames, 1)), trans))
        ).skin_vertices.double().numpy() @ Y_UP  # fmt: skip
    paths = []
    for camera in cameras:
        behind = background(HEIGHT, WIDTH, random)
        lens = Camera(camera.cam_int, HEIGHT, WIDTH)
        path = folder / f"{camera.name}.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (WIDTH, HEIGHT))
        assert writer.isOpened()
        for vertices in skin:
            inside = vertices @ camera.turn.T + camera.shift
            mesh = Mesh(inside, body.faces.numpy(), colors)
            writer.write(np.ascontiguousarray(render(mesh, lens, background=behind)[..., ::-1]))
        writer.release()
        paths.append(path)
    return paths
