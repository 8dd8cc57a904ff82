"""`hmr-skel video` on a rendered clip: frames a second, memory, errors of the motion.

    python -m benchmarks.video DIR [--frames 300] [--take kick]

DIR: folder for the clip and the results. The clip: a take (the kick of a test actor; things are
tuned on the dance of a train actor), 30 frames a second, 640 x 480, to and fro for as many frames
as asked, in one dress before one background, seen by one camera. Wall and CPU seconds are those of
the whole command, as a new user starts it; memory is its largest resident set. Errors: SMPL's 24
joints of both skins, acceleration as the second difference a frame of joints from the pelvis, and
of joints in the camera's frame.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.measure import conditions, markdown_conditions, markdown_table
from pipeline.takes import take
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel, load_smpl
from skel_fit.rotations import matrix_to_axis_angle
from stages.regressor.data.demo_pictures import dressed_picture, wardrobe
from stages.regressor.evaluation.metrics import aligned_point_error, point_error

RATE, SIZE, FOCAL = 30.0, (480, 640), 620.0
AWAY = np.array([0.0, 1.05, 4.2])
"""Metres from the camera to the point of the floor below the first pelvis."""


def bodies(frames: int, name: str = "kick") -> dict[str, np.ndarray]:
    """SMPL in the camera's frame, as columns of a label file."""
    kick = take(name).every(RATE)
    there_and_back = np.concatenate([np.arange(len(kick.poses)), np.arange(len(kick.poses))[::-1]])
    chosen = np.resize(there_and_back, frames)
    poses = kick.poses[chosen].copy()
    down = np.diag([1.0, -1.0, -1.0])
    smpl = load_smpl(default_body_directory(), "neutral")
    pelvis = (smpl.J_regressor @ smpl.v_template)[0].double().numpy()
    root = np.stack([down @ cv2.Rodrigues(pose[:3])[0] for pose in poses])
    poses[:, :3] = matrix_to_axis_angle(torch.as_tensor(root)).numpy()
    where = kick.transl[chosen] + pelvis
    where = where - kick.transl[0] * (1, 0, 1)
    return {
        "pose_cam": poses, "shape": np.zeros((frames, 10)),
        "trans_cam": where @ down.T - pelvis + AWAY,
    }  # fmt: skip


def write_clip(path: Path, columns: dict[str, np.ndarray]) -> None:
    clothes = wardrobe(Path(default_body_directory()), "neutral")
    lens = np.array([[FOCAL, 0, SIZE[1] / 2], [0, FOCAL, SIZE[0] / 2], [0, 0, 1.0]])
    part = path.with_name(f"part-{path.name}")
    film = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"MJPG"), RATE, SIZE[::-1])
    for first in range(0, len(columns["pose_cam"]), 16):
        rows = list(range(first, min(first + 16, len(columns["pose_cam"]))))
        for vertices in clothes.posed(columns, rows):
            picture = dressed_picture(clothes, vertices, lens, SIZE, np.random.default_rng(5))
            film.write(np.ascontiguousarray(picture[..., ::-1]))
    film.release()
    part.rename(path)


def true_joints(columns: dict[str, np.ndarray]) -> torch.Tensor:
    smpl = load_smpl(default_body_directory(), "neutral")
    pose, shape, trans = (
        torch.as_tensor(columns[k], dtype=torch.float32) for k in ("pose_cam", "shape", "trans_cam")
    )
    with torch.no_grad():
        skin = smpl(betas=shape, global_orient=pose[:, :3], body_pose=pose[:, 3:], transl=trans)
    return (smpl.J_regressor @ skin.vertices).double()


def found_joints(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Frames and their joints."""
    skel = load_skel(default_body_directory(), "male")
    regressor = load_smpl(default_body_directory(), "neutral").J_regressor
    with np.load(path, allow_pickle=False) as file:
        given = (torch.as_tensor(file[k], dtype=torch.float32) for k in ("poses", "betas", "trans"))
        with torch.no_grad():
            skin = skel(*given).skin_vertices
        return file["frame"], (regressor @ skin).double()


def second_difference(joints: torch.Tensor) -> torch.Tensor:
    """(n - 2, 24, 3) mm a squared frame."""
    return 1000 * (joints[2:] - 2 * joints[1:-1] + joints[:-2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--take", default="kick")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    clip = given.folder / f"{given.take}-{given.frames}.avi"
    out = given.folder / f"out-{given.take}-{given.frames}"
    columns = bodies(given.frames, given.take)
    if not clip.is_file():
        write_clip(clip, columns)
    command = [sys.executable, "-m", "stages.cli", "video", str(clip), "--out", str(out),
               "--models", "default-body", "--focal", str(FOCAL), "--quiet"]  # fmt: skip
    began = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    wall = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(markdown_conditions(conditions()))
    print(
        f"\n{given.frames} frames: status {status}, {wall:.1f} s by the clock, {seconds:.1f} s of "
        f"CPU; {given.frames / wall:.1f} frames/s, {2 * given.frames / seconds:.1f} on two cores "
        f"by CPU; {used.ru_maxrss / 1024:.0f} MiB at most\n"
    )
    people = json.loads((out / "video.json").read_text())["people"]
    frames, found = found_joints(out / "person-0.npz")
    true = true_joints(columns)[frames]
    own = found - found[:, :1]
    truth = true - true[:, :1]
    lines = []
    for name, a, b in (("from the pelvis", own, truth), ("camera's frame", found, true)):
        wanted = float(second_difference(b).norm(dim=-1).mean())
        miss = float((second_difference(a) - second_difference(b)).norm(dim=-1).mean())
        lines.append([name, f"{wanted:.1f}", f"{miss:.1f}", f"{miss / wanted:.2f}"])
    print(markdown_table(["acceleration", "true mm/frame^2", "error", "error / true"], lines))
    print(
        f"\n{len(people)} people, {len(frames)} frames; MPJPE {point_error(own, truth).mean():.0f} "
        f"mm, PA {aligned_point_error(found, true).mean():.1f} mm"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
